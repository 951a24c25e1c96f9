"""The stage `mediate`: apply one run's interventions, and turn them into outcomes.

The stage stores the log-probability of every text under every intervention. Measuring the run turns these into shares of the effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, by_stage, counter, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.measurement import Graded, Known
from wellworn.experiments.stages.mediation_arms import CHANCE, PUSHED, REMAINDER, Parts, parts_at_layer
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.readings import load_responses
from wellworn.experiments.study_sections import MediateConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.mediation.interventions import Push, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import moved_norms, patched_logprobs
from wellworn.probes.mediation.shares import WHOLE
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray


@dataclass(frozen=True)
class Question:
    """The question of one mediation analysis.

    Attributes:
        title: its name on screen.
        run: the changed model M1.
        reference: the reference model M0.
        changed: the answers y⁺ that show the trait.
        plain: the plain answers y⁻ to the same questions, in the same order.
        layer: the layer where activations are patched.
        own: the run's trait; its direction is left out of the space.
        response_only: patch the response's tokens alone, which a system prompt requires.
        everywhere: also patch all layers at once.
        readings: readings of plain answers by M0 and by M1. The remainder is taken from their difference; empty where none is tested.
    """

    title: str
    run: Condition
    reference: Condition
    changed: Sequence[Turn]
    plain: Sequence[Turn]
    layer: int
    own: str | None
    response_only: bool = False
    everywhere: bool = False
    readings: tuple[Stage, ...] = ()

    def inputs(self, space_stages: SpaceStages) -> dict[str, Stage | Sequence[Stage]]:
        """Return the inputs of a stage that patches the two models."""
        return patching_inputs(space_stages, self.reference, self.run)


def patching_inputs(space_stages: SpaceStages, reference: Condition, run: Condition) -> dict[str, Stage | Sequence[Stage]]:
    """Return the inputs of a stage that patches two models: the persona space, and their adapters."""
    return {**in_group("space", space_stages.inputs), **in_group("reference", reference.inputs), **in_group("run", run.inputs)}


def patched_pair(folders: Folders) -> tuple[dict[str, Path], tuple[Variant, Variant]]:
    """Return the adapters of `patching_inputs` under the names of their stages, and the variants of the reference and of the run."""
    adapters = [folders.within(who).adapter for who in ("reference", "run")]
    before, after = (Variant(adapter.parent.name if adapter else None) for adapter in adapters)
    return by_stage(adapters), (before, after)


def mediate_stage(context: StudyContext, question: Question, config: MediateConfig, space_stages: SpaceStages) -> Stage:
    """Apply one question's interventions; store their names and the log-probabilities [interventions, 2, questions] of y⁺ and y⁻."""
    conditions = (question.reference, question.run)
    turns = [*question.changed, *question.plain]

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        if not space.members(question.layer, question.own):
            return {
                "outcomes.safetensors": {"logprob": np.zeros((0, 2, len(question.changed)), np.float32)},
                "arms.json": {"arms": [], "moved": {}},
            }
        adapters, between = patched_pair(folders)
        chat = context.chat(context.base)
        rows = [[chat.encode(turn) for turn in condition.under(turns)] for condition in conditions]
        texts = Texts((rows[0], rows[1]), question.response_only)
        pad, budget = context.base.tokenizer.pad_token_id, context.study.token_budget
        with lora_adapters.adapted(context.base, adapters) as model:
            parts = parts_to_swap(space, question, config, folders.all("readings"))
            norms = moved_norms(model, texts, between, question.layer, list(parts.at_layer.values()), Batching(pad, budget))
            interventions = parts.arms(dict(zip(parts.at_layer, norms.tolist(), strict=True)), matched=config.matched, doses=config.doses)
            tokens = len(interventions) * sum(len(row) for row in rows[0]) // context.ranks.world
            how = Batching(pad, budget, counter(tick, tokens, "tokens"))
            scores = patched_logprobs(model, texts, between, list(interventions.values()), how)
        shaped = scores.numpy().reshape(len(interventions), 2, len(question.changed))
        return {
            "outcomes.safetensors": {"logprob": shaped},
            "arms.json": {"arms": list(interventions), "moved": _shares_moved(parts, norms)},
        }

    facts = {
        **context.identity(),
        "changed": fingerprint(question.changed),
        "plain": fingerprint(question.plain),
        "layer": question.layer,
        "own": question.own,
        "systems": [condition.system for condition in conditions],
        "adapters": [len(condition.inputs) for condition in conditions],
        "response_only": question.response_only,
        "everywhere": question.everywhere,
        "draws": config.draws,
        "matched": config.matched,
        "doses": list(config.doses),
    }
    # A question without a remainder keeps its hash.
    facts |= {"remainder_draws": config.remainder_draws} if question.readings else {}
    inputs = {**question.inputs(space_stages), "readings": question.readings}
    return Stage(kind=kinds.MEDIATE, config=facts, inputs=inputs, title=question.title, compute=compute)


@dataclass(frozen=True)
class Mediated:
    """One mediation analysis of a run: the outcomes of its interventions.

    Attributes:
        reference: `neutral` or `base`.
        text: `trait` for held-out answers, `surface` for training-like ones, `response` for held-out answers with only the
            response's tokens patched, `generated` for the answers of the patched models.
        layer: the layer where activations were patched.
        interventions: their names.
        scores: outcomes Y, [interventions, questions]; NaN for a missing grade.
        moved: part → its share of Σ‖h1 − h0‖² over all patched tokens.
        known: how well the score of generated answers discriminates answers of known label: its mean where the trait is `shown` and where
            it is `absent`, and their `separation`.
        graded: the judge of the generated answers, if one graded them.
    """

    reference: str
    text: str
    layer: int
    interventions: Sequence[str]
    scores: FloatArray
    moved: Mapping[str, float]
    known: Known | None = None
    graded: Graded | None = None


def load_mediated(folder: Path, reference: str, text: str, layer: int) -> Mediated:
    """Load each intervention's outcome Y: log p(y⁺) − log p(y⁻) of a `mediate` stage, contrast scores or grades of a `score` stage."""
    outcomes, facts = load_file(folder / "outcomes.safetensors"), read_json(folder / "arms.json")
    if (grades := outcomes.get("score")) is not None:
        scores = grades.astype(np.float64)
    else:
        scores = outcomes["logprob"][:, 0].astype(np.float64) - outcomes["logprob"][:, 1]
    known = Known.from_json(facts["known"]) if "known" in facts else None
    graded = Graded(judge=facts["judge"], drawn=facts["drawn"], failures=facts["failures"]) if "judge" in facts else None
    return Mediated(reference, text, layer, facts["arms"], scores, facts["moved"], known, graded)


def parts_to_swap(space: PersonaSpace, question: Question, config: MediateConfig, readings: Sequence[Path]) -> Parts:
    """Return the parts that a question patches, with the remainder outside the space where there are readings to take it from."""
    layer, pushes = question.layer, {}
    parts = parts_at_layer(space, layer, question.own, config.draws)
    if readings:
        before, after = (load_responses(folder, layer) for folder in readings)
        remainders = torch.from_numpy(space.remainders(layer, question.own, (after - before).mean(0), config.remainder_draws)).float()
        pushes = {PUSHED if i == 0 else f"{CHANCE}{i - 1}": Push(vector) for i, vector in enumerate(remainders)}
        if pushes:
            parts[REMAINDER] = Swap(remainders[:1].T / remainders[0].norm())
    there = {at: space.members(at, question.own) for at in range(space.vectors.shape[1])} if question.everywhere else {}
    everywhere = {at: Swap(torch.from_numpy(space.basis(at, some)).float()) for at, some in there.items() if some}
    return Parts(layer, parts, everywhere, pushes)


def _shares_moved(parts: Parts, norms: torch.Tensor) -> dict[str, float]:
    """Return each part's share of Σ‖h1 − h0‖²."""
    moved = dict(zip(parts.at_layer, norms.tolist(), strict=True))
    return {name: value / moved[WHOLE] for name, value in moved.items() if moved[WHOLE] > 0}

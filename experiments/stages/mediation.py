"""The stage `mediate`: run one run's patched arms, and turn them into outcomes.

What is stored is the log-probability of every text in every arm; shares of the effect are made of it when the run is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from wellworn.data.mixtures import Turn, fingerprint
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, by_stage, counter, in_group
from wellworn.experiments.engine.store import read_json
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.measurement import Graded, Known
from wellworn.experiments.stages.mediation_arms import CHANCE, PUSHED, REMAINDER, Parts, parts_at_layer
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.readings import load_responses
from wellworn.experiments.study import MediateConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.mediation.interventions import Push, Swap
from wellworn.probes.mediation.patching import Batching, Texts, moved_norms, patched_logprobs
from wellworn.probes.mediation.shares import WHOLE
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray


@dataclass(frozen=True)
class Question:
    """What one mediation analysis asks.

    Attributes:
        title: on screen.
        run: M1.
        reference: M0.
        changed: the answers y⁺ that show the trait.
        plain: y⁻, answer by answer to the same questions.
        layer: where states are swapped.
        own: the run's trait, whose direction is left out of the space.
        response_only: swap the response's tokens alone, as a system prompt's change has to be.
        everywhere: also set all layers at once.
        readings: plain answers as M0 and as M1 read them, whose difference has the remainder that is asked about, if any.
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

    def inputs(self, library: SpaceStages) -> dict[str, Stage | Sequence[Stage]]:
        """Return what a stage that patches the two models reads: the persona space, and their adapters."""
        return {
            **in_group("space", library.inputs),
            **in_group("reference", self.reference.inputs),
            **in_group("run", self.run.inputs),
        }


def mediate_stage(context: StudyContext, question: Question, config: MediateConfig, library: SpaceStages) -> Stage:
    """Run the arms of one question: log-probabilities [arms, 2, questions] of y⁺ and y⁻, and the arms' names."""
    conditions = (question.reference, question.run)
    turns = [*question.changed, *question.plain]

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = library.load(folders.within("space"))
        if not space.members(question.layer, question.own):
            return {
                "outcomes.safetensors": {"logprob": np.zeros((0, 2, len(question.changed)), np.float32)},
                "arms.json": {"arms": [], "moved": {}},
            }
        adapters = [folders.within(who).adapter for who in ("reference", "run")]
        chat = context.chat(context.base)
        rows = [[chat.encode(turn) for turn in condition.under(turns)] for condition in conditions]
        texts = Texts((rows[0], rows[1]), question.response_only)
        pad, budget = context.base.tokenizer.pad_token_id, context.study.token_budget
        with lora_adapters.adapted(context.base, by_stage(adapters)) as model:
            between = tuple(Variant(adapter.parent.name if adapter else None) for adapter in adapters)
            parts = parts_to_swap(space, question, config, folders.all("readings"))
            norms = moved_norms(
                model, texts, (between[0], between[1]), question.layer, list(parts.at_layer.values()), Batching(pad, budget)
            )
            arms = parts.arms(dict(zip(parts.at_layer, norms.tolist(), strict=True)), matched=config.matched, doses=config.doses)
            tokens = len(arms) * sum(len(row) for row in rows[0]) // context.ranks.world
            how = Batching(pad, budget, counter(tick, tokens, "tokens"))
            scores = patched_logprobs(model, texts, (between[0], between[1]), list(arms.values()), how)
        shaped = scores.numpy().reshape(len(arms), 2, len(question.changed))
        return {"outcomes.safetensors": {"logprob": shaped}, "arms.json": {"arms": list(arms), "moved": _shares_moved(parts, norms)}}

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
    inputs = {**question.inputs(library), "readings": question.readings}
    return Stage(kind=kinds.MEDIATE, config=facts, inputs=inputs, title=question.title, compute=compute)


@dataclass(frozen=True)
class Mediated:
    """One mediation analysis of a run, as its arms left it.

    Attributes:
        reference: `neutral` or `base`.
        text: `trait` for held-out answers, `surface` for training-like ones, `response` for held-out answers of which the response's
            tokens alone were swapped, `generated` for what the arms themselves say.
        layer: where states were swapped.
        arms: names of the arms.
        scores: Y, [arms, questions]; of grades NaN where there is none.
        moved: part → its share of Σ‖h1 − h0‖² over all swapped tokens.
        known: how the score of what was said discriminates answers of known label: mean where the trait is `shown` and where it is
            `absent`, and their `separation`.
        graded: who graded what was said, if anybody did.
    """

    reference: str
    text: str
    layer: int
    arms: Sequence[str]
    scores: FloatArray
    moved: Mapping[str, float]
    known: Known | None = None
    graded: Graded | None = None


def load_mediated(folder: Path, reference: str, text: str, layer: int) -> Mediated:
    """Load what a `mediate` stage left, Y of each arm, log p(y⁺) − log p(y⁻); or a `score` stage, contrast scores or grades."""
    outcomes, facts = load_file(folder / "outcomes.safetensors"), read_json(folder / "arms.json")
    if (grades := outcomes.get("score")) is not None:
        scores = grades.astype(np.float64)
    else:
        scores = outcomes["logprob"][:, 0].astype(np.float64) - outcomes["logprob"][:, 1]
    known = Known.from_json(facts["known"]) if "known" in facts else None
    graded = Graded(judge=facts["judge"], drawn=facts["drawn"], failures=facts["failures"]) if "judge" in facts else None
    return Mediated(reference, text, layer, facts["arms"], scores, facts["moved"], known, graded)


def parts_to_swap(library: PersonaSpace, question: Question, config: MediateConfig, readings: Sequence[Path]) -> Parts:
    """Return what a question swaps; what lies outside the space is among it where there are readings that it is taken from."""
    layer, pushes = question.layer, {}
    parts = parts_at_layer(library, layer, question.own, config.draws)
    if readings:
        before, after = (load_responses(folder, layer) for folder in readings)
        remainders = torch.from_numpy(library.remainders(layer, question.own, (after - before).mean(0), config.remainder_draws)).float()
        pushes = {PUSHED if i == 0 else f"{CHANCE}{i - 1}": Push(vector) for i, vector in enumerate(remainders)}
        if pushes:
            parts[REMAINDER] = Swap(remainders[:1].T / remainders[0].norm())
    there = {at: library.members(at, question.own) for at in range(library.vectors.shape[1])} if question.everywhere else {}
    everywhere = {at: Swap(torch.from_numpy(library.basis(at, some)).float()) for at, some in there.items() if some}
    return Parts(layer, parts, everywhere, pushes)


def _shares_moved(parts: Parts, norms: torch.Tensor) -> dict[str, float]:
    """Return which share of Σ‖h1 − h0‖² each part makes up."""
    moved = dict(zip(parts.at_layer, norms.tolist(), strict=True))
    return {name: value / moved[WHOLE] for name, value in moved.items() if moved[WHOLE] > 0}

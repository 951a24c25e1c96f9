"""The stage `pathways`: patch nested spaces at all adapted layers together, with chance spaces and the change's own best directions.

It stores the log-probability of answers with the trait and of plain ones under every intervention. Arithmetic on them is
`findings/pathways.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Condition, Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.mediation import patched_pair, patching_inputs
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, both_ways
from wellworn.experiments.stages.nested_space import ChanceSpaces, NestedSpace, chance_spaces, nested_space, swaps_along
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.study_sections import PathwaysConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.mediation.changes import Changes, state_changes, unit_basis
from wellworn.probes.mediation.interventions import Intervention, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.mediation.pathways import OTHERS, REST
from wellworn.probes.reading.variants import Variant, adapted_layers
from wellworn.probes.statistics.intervals import FloatArray

PATHWAYS, OUTCOMES = "pathways.json", "outcomes.safetensors"
# Interventions next to the nested spaces, which have the names of what they add.
ALONE, FIRST, BEST = "others_alone", "first_token", "best"
# The mean change on answers with the trait less that on plain ones.
SPECIFIC = "specific"
CHANCE_OWN, CHANCE_OTHERS = "chance_own", "chance_others"
UNTIL, AT = "until", "at"
# Dimensions of the change's own best space, next to one and to as many as the persona space has.
MANY = 16


@dataclass(frozen=True)
class PathwaysQuestion:
    """One change whose pathways are looked for.

    Attributes:
        run: the changed model M1.
        reference: the reference model M0.
        changed: answers y⁺ that show the trait, to evaluate questions.
        plain: plain answers y⁻ to the same questions, in the same order.
        other_text: training-like answers with the trait, on which the change's own best directions are fitted.
        other_plain: plain answers to the same questions.
        layer: the last layer that is set.
        own: the run's trait.
        sampled: whether chance spaces and the profile are measured too.
    """

    run: Condition
    reference: Condition
    changed: Sequence[Turn]
    plain: Sequence[Turn]
    other_text: Sequence[Turn]
    other_plain: Sequence[Turn]
    layer: int
    own: str | None
    sampled: bool = True

    @property
    def identity(self) -> Config:
        """Its part of a stage's hash, apart from the models: what is read, and where."""
        return {
            "changed": fingerprint(self.changed),
            "plain": fingerprint(self.plain),
            "layer": self.layer,
            "own": self.own,
            "adapters": [len(condition.inputs) for condition in (self.reference, self.run)],
        }

    @property
    def other_texts(self) -> Config:
        """The part of the hash of the training-like texts, where they are read."""
        return {"other_text": fingerprint(self.other_text), "other_plain": fingerprint(self.other_plain)}


class PathwayFacts(Record):
    """What a `pathways` stage patched.

    Attributes:
        layers: where states were set.
        adapted: layers with weights of either adapter; those above the last layer set are *above*.
        parts: what each of the nested spaces adds, in order.
        dimensions: of each nested space at the last layer.
        interventions: names of the rows of `logprob`.
        further: names of the rows of `further`.
        sampled: names of the rows of `sampled`.
        questions: places of the questions of `sampled` among the evaluate questions.
        tokens: number of answer tokens that the best directions were fitted on.
    """

    layers: Sequence[int]
    adapted: Sequence[int]
    parts: Sequence[str]
    dimensions: Sequence[int]
    interventions: Sequence[str]
    further: Sequence[str]
    sampled: Sequence[str]
    questions: Sequence[int]
    tokens: int


@dataclass(frozen=True)
class PathwayOutcomes:
    """A finished `pathways` stage.

    Attributes:
        facts: what was patched.
        logprob: [interventions, 2, questions], of y⁺ and y⁻.
        further: the same of further interventions.
        sampled: [interventions, 2, sampled questions].
    """

    facts: PathwayFacts
    logprob: FloatArray
    further: FloatArray
    sampled: FloatArray


def load_pathways(folder: Path) -> PathwayOutcomes:
    """Load a finished stage."""
    arrays = load_file(folder / OUTCOMES)
    facts = PathwayFacts.from_json(read_json(folder / PATHWAYS))
    logprob, further, sampled = (arrays[name].astype(np.float64) for name in ("logprob", "further", "sampled"))
    return PathwayOutcomes(facts, logprob, further, sampled)


def pathways_stage(context: StudyContext, question: PathwaysQuestion, config: PathwaysConfig, space_stages: SpaceStages) -> Stage:
    """Patch the nested spaces of one run, chance spaces, and the change's own best directions.

    Args:
        context: the study's model.
        question: what is patched on which text.
        config: how many draws and questions.
        space_stages: the persona space.
    """

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        adapters, between = patched_pair(folders)
        chat, pad = context.chat(context.base), context.base.tokenizer.pad_token_id

        def encode(turns: Sequence[Turn]) -> list[Encoded]:
            return [chat.encode(turn) for turn in turns]

        texts, plain = encode(question.changed), encode(question.plain)
        with lora_adapters.adapted(context.base, adapters) as model:
            layers, adapted = set_layers(model, between, question.layer)
            quiet = Batching(pad, context.study.token_budget)
            changes, plainly = (
                state_changes(model, Texts.same(encode(turns)), between, layers, quiet)
                for turns in (question.other_text, question.other_plain)
            )
            some = sampled_questions(len(texts), config.questions) if question.sampled else []
            nested = nested_space(space, layers, question.layer, question.own)
            main, further = _nested_parts(nested), _change_parts(nested, changes, plainly)
            sampled: dict[str, Intervention] = {}
            if some:
                chance = chance_spaces(space, nested, question.layer, question.own, config.draws)
                sampled = _chance_parts(chance) | _window_parts(nested, config.profile)
            few = [each[i] for each in (texts, plain) for i in some]
            work = [(main, [*texts, *plain]), (further, [*texts, *plain]), (sampled, few)]
            total = sum(len(parts) * sum(map(len, rows)) for parts, rows in work)
            how = Batching(pad, context.study.token_budget, counter(tick, total // context.ranks.world, "tokens"))
            scores = [patched_logprobs(model, Texts.same(rows), between, list(parts.values()), how).numpy() for parts, rows in work]
        facts = PathwayFacts(
            layers=layers,
            adapted=adapted,
            parts=nested.names,
            dimensions=[basis.shape[1] for basis in nested.bases[question.layer]],
            interventions=list(main),
            further=list(further),
            sampled=list(sampled),
            questions=some,
            tokens=changes.tokens,
        )
        names = ("logprob", "further", "sampled")
        outcomes = {
            name: each.reshape(len(parts), 2, len(rows) // 2) for name, each, (parts, rows) in zip(names, scores, work, strict=True)
        }
        return {OUTCOMES: outcomes, PATHWAYS: facts.to_json()}

    facts: Config = {
        **context.identity(),
        **question.identity,
        **question.other_texts,
        "sampled": {"draws": config.draws, "questions": config.questions, "profile": config.profile} if question.sampled else None,
    }
    inputs = patching_inputs(space_stages, question.reference, question.run)
    title = f"pathways of {question.run.title} against {question.reference.title}, up to layer {question.layer}"
    return Stage(kind=kinds.PATHWAYS, config=facts, inputs=inputs, title=title, compute=compute)


def set_layers(model: nn.Module, between: Sequence[Variant], last: int) -> tuple[list[int], list[int]]:
    """Return the layers where states are set, adapted ones up to the last and the last itself; and all adapted layers."""
    adapted = adapted_layers(model, [variant.adapter for variant in between if variant.adapter])
    return sorted({layer for layer in adapted if layer <= last} | {last}), adapted


def sampled_questions(total: int, count: int) -> list[int]:
    """Return the places of the questions that chance spaces are read on: the same in every run, spread evenly."""
    return _spread(total, count)


def _spread(total: int, count: int) -> list[int]:
    """Return at most so many of the numbers below a total, spread evenly from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


def _nested_parts(nested: NestedSpace) -> dict[str, Intervention]:
    """Return the interventions that both texts of every question are read under: the nested spaces, the others alone, the whole state."""
    found = {BEFORE: Intervention(0), AFTER: Intervention(1)}
    for name in nested.names:
        found |= both_ways(name, swaps_along(nested.part(name)))
    if nested.others and len(nested.names) > 1:
        found |= both_ways(ALONE, swaps_along(nested.others))
    return found | both_ways(REST, {layer: Swap() for layer in nested.bases})


def _change_parts(nested: NestedSpace, changes: Changes, plainly: Changes) -> dict[str, Intervention]:
    """Return further interventions: the first token alone, and the change's own best directions.

    Args:
        nested: the nested spaces.
        changes: of answers with the trait.
        plainly: of plain answers.
    """
    layers = list(nested.bases)
    found = both_ways(FIRST, {layer: Swap() for layer in layers}, first_token=True)
    # As many as the own direction and the others together.
    both = [nested.part(OTHERS)[layers[-1]].shape[1]] if OTHERS in nested.names else []
    for k in sorted({1, MANY, *both}):
        best = {layer: changes.mean_direction(layer) if k == 1 else changes.leading(layer, k) for layer in layers}
        found |= both_ways(f"{BEST}{k}", {layer: Swap(basis.float()) for layer, basis in best.items() if basis is not None})
    specific = {layer: unit_basis(changes.means[layer] - plainly.means[layer]) for layer in layers}
    return found | both_ways(SPECIFIC, {layer: Swap(basis.float()) for layer, basis in specific.items() if basis is not None})


def _chance_parts(chance: ChanceSpaces) -> dict[str, Intervention]:
    """Return the interventions of chance spaces, which a few questions are read under."""
    found: dict[str, Intervention] = {}
    for name, drawn in ((CHANCE_OWN, chance.own), (CHANCE_OTHERS, chance.others)):
        for i, bases in enumerate(drawn):
            found |= both_ways(f"{name}{i}", swaps_along(bases))
    return found


def _window_parts(nested: NestedSpace, depths: int) -> dict[str, Intervention]:
    """Return the interventions at some of the layers: those up to some depth, and the last alone."""
    layers = list(nested.bases)
    # All layers together are among the nested parts already.
    windows = {f"{UNTIL}{last}": [layer for layer in layers if layer <= last] for last in profile_layers(layers, depths)[:-1]}
    windows |= {f"{AT}{layers[-1]}": [layers[-1]]} if depths and len(layers) > 1 else {}
    found: dict[str, Intervention] = {}
    for window, some in windows.items():
        for name in nested.names:
            found |= both_ways(f"{window}.{name}", swaps_along({layer: nested.part(name)[layer] for layer in some}))
        found |= both_ways(f"{window}.{REST}", {layer: Swap() for layer in some})
    return found


def profile_layers(layers: Sequence[int], count: int) -> list[int]:
    """Return at most so many of the layers that are set, spread evenly from the first to the last; none for a count of 0."""
    return [layers[i] for i in _spread(len(layers), count)] if count else []

"""The stage `stand_ins`: other directions in place of a run's own one, each patched alone at all adapted layers together.

It stores the log-probability of answers with the trait, and of plain ones, under each of them. Arithmetic on them is
`findings/stand_ins.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.files import read_json
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.instruction_null import Instructions
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.mediation import patched_pair, patching_inputs
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, both_ways
from wellworn.experiments.stages.nested_space import FEWEST_ROWS, other_directions, single_rows, swaps_along
from wellworn.experiments.stages.pathways import PathwaysQuestion, sampled_questions, set_layers
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.study_sections import PathwaysConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.geometry.nested import chance_vectors, nested_bases
from wellworn.probes.mediation.interventions import Intervention
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.statistics.intervals import FloatArray

STAND_INS, OUTCOMES = "stand_ins.json", "outcomes.safetensors"
TRAIT, INSTRUCTION, SINGLE = "trait", "instruction", "single"
# As a study names them.
NAMED = {"traits": TRAIT, "instructions": INSTRUCTION, "singles": SINGLE}


class StandInFacts(Record):
    """What a `stand_ins` stage patched.

    Attributes:
        layers: where.
        kinds: direction → `trait`, `instruction`, or `single` for a random one of single states.
        interventions: names of the rows of `logprob`.
        questions: places of the questions among the evaluate questions.
    """

    layers: list[int]
    kinds: Mapping[str, str]
    interventions: list[str]
    questions: list[int]


@dataclass(frozen=True)
class StandInOutcomes:
    """A finished `stand_ins` stage: its facts, and the log-probability of y⁺ and y⁻, [interventions, 2, questions]."""

    facts: StandInFacts
    logprob: FloatArray


def load_stand_ins(folder: Path) -> StandInOutcomes:
    """Load a finished stage."""
    facts = StandInFacts.from_json(read_json(folder / STAND_INS))
    return StandInOutcomes(facts, load_file(folder / OUTCOMES)["logprob"].astype(np.float64))


def stand_ins_stage(
    context: StudyContext, question: PathwaysQuestion, config: PathwaysConfig, space_stages: SpaceStages, instructions: Instructions | None
) -> Stage:
    """Patch other directions in place of a run's own one, on the questions of its chance directions.

    Args:
        context: the study's model.
        question: whose change, on which text.
        config: which kinds, how many questions, and random directions of single states.
        space_stages: the persona space.
        instructions: the study's instructions, if it names some.
    """
    instructions = instructions if "instructions" in config.stand_ins else None
    names = instructions.names if instructions else ()

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        adapters, between = patched_pair(folders)
        chat, pad = context.chat(context.base), context.base.tokenizer.pad_token_id
        some = sampled_questions(len(question.changed), config.questions)
        texts = [chat.encode(turns[i]) for turns in (question.changed, question.plain) for i in some]
        with lora_adapters.adapted(context.base, adapters) as model:
            layers, _ = set_layers(model, between, question.layer)
            vectors = load_file(folders["instructions"] / "space.safetensors")["vectors"] if instructions else None
            found = _directions(space, layers, question, config, dict(zip(names, vectors, strict=True)) if vectors is not None else {})
            arms = {BEFORE: Intervention(0), AFTER: Intervention(1)}
            for directions in found.values():
                for name, bases in directions.items():
                    arms |= both_ways(name, swaps_along(bases))
            total = len(arms) * sum(map(len, texts)) // context.ranks.world
            how = Batching(pad, context.study.token_budget, counter(tick, total, "tokens"))
            scores = patched_logprobs(model, Texts.same(texts), between, list(arms.values()), how).numpy()
        kind_of = {name: kind for kind, directions in found.items() for name in directions}
        facts = StandInFacts(layers=layers, kinds=kind_of, interventions=list(arms), questions=some)
        return {OUTCOMES: {"logprob": scores.reshape(len(arms), 2, len(some))}, STAND_INS: facts.to_json()}

    facts: Config = {
        **context.identity(),
        **question.identity,
        "instructions": list(names),
        "kinds": sorted(config.stand_ins),
        "questions": config.questions,
        "draws": config.draws if "singles" in config.stand_ins else None,
    }
    inputs = patching_inputs(space_stages, question.reference, question.run)
    inputs |= {"instructions": instructions.space} if instructions else {}
    title = f"other directions in place of the own one of {question.run.title}"
    return Stage(kind=kinds.STAND_INS, config=facts, inputs=inputs, title=title, compute=compute)


def _directions(
    space: PersonaSpace, layers: Sequence[int], question: PathwaysQuestion, config: PathwaysConfig, instructions: Mapping[str, FloatArray]
) -> dict[str, dict[str, dict[int, FloatArray]]]:
    """Return the directions of each kind: kind → name → layer → basis [d_model, 1].

    Args:
        space: of directions.
        layers: where they are patched.
        question: the run's own trait, and the layer where directions were found.
        config: which kinds, and how many random directions.
        instructions: name → direction at every layer, [layers, d_model]. The run's own and namesakes of traits are left out.
    """
    at, own = question.layer, question.own
    traits = other_directions(space, layers, at, own)
    found: dict[str, dict[str, dict[int, FloatArray]]] = {}
    for kind in (NAMED[each] for each in config.stand_ins):
        if kind == TRAIT:
            found[kind] = traits
        elif kind == INSTRUCTION:
            others = {name: vectors.astype(np.float64) for name, vectors in instructions.items() if name not in (own, *traits)}
            found[kind] = {name: {layer: nested_bases([each[None, layer]])[0] for layer in layers} for name, each in others.items()}
        else:
            found[kind] = _singles(space, layers, question, config.draws)
    return found


def _singles(space: PersonaSpace, layers: Sequence[int], question: PathwaysQuestion, draws: int) -> dict[str, dict[int, FloatArray]]:
    """Return random directions with the covariance of single states: name → layer → basis; none where too little was read."""
    rows = {layer: single_rows(space, layer, question.layer, question.own) for layer in layers}
    if min(map(len, rows.values())) <= FEWEST_ROWS:
        return {}
    drawn = chance_vectors(rows, 1, draws, seed_for(0, "stand-ins"))
    return {f"{SINGLE}{i}": {layer: nested_bases([each[i]])[0] for layer, each in drawn.items()} for i in range(draws)}

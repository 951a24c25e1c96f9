"""The estimator `generated`: directions of what the base itself says under contrast prompts, and how they agree with those of `state`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from data.errors import InputError
from data.files import digest
from data.library import load_questions
from data.mixtures import Turn, plain_turns
from data.schema import Example, Trait, seed_for
from experiments.answers import REPETITION_PENALTY, said
from experiments.library import Library, extraction, space_stage
from experiments.space import within_questions
from experiments.stages import Bench, Output, Stage, TickFn, full_stop, read
from experiments.study import GeneratedDirectionsConfig
from probes.nearest import largest_by_chance
from probes.nulls import Null

AGREEMENT = "agreement.json"


@dataclass(frozen=True)
class Generated:
    """The stages of the estimator `generated`.

    Attributes:
        space: directions and reliabilities, as those of `state` are kept.
        agreement: how they agree with these.
    """

    space: Stage
    agreement: Stage


def generated_of(
    bench: Bench, traits: Sequence[Trait], bank: Sequence[Example], library: Library, layer: int, config: GeneratedDirectionsConfig
) -> Generated:
    """Return the stages that estimate each trait's direction from the base's own answers.

    Args:
        bench: the study's model.
        traits: those of the library.
        bank: whose extraction questions are asked where a trait has none of its own, unless the study names others.
        library: with their directions by the estimator `state`.
        layer: where chance is drawn.
        config: which questions, and how many.

    Raises:
        InputError: a trait with fewer questions, or contrast pairs, than the study asks for.
    """
    others = load_questions(config.bank) if config.bank else None
    asked = [_questions(trait, bank, others, config.questions) for trait in traits]
    states = [_answers_stage(bench, trait, questions) for trait, questions in zip(traits, asked, strict=True)]
    names, digests = [trait.name for trait in traits], [digest(questions) for questions in asked]
    space = space_stage(names, states, digests, "directions of what the base says")
    return Generated(space, _agreement_stage(names, library.spaces[0], space, states, digests, layer))


def _questions(trait: Trait, bank: Sequence[Example], others: Sequence[Example] | None, count: int) -> list[str]:
    """Return what is asked: the questions that the study names, or a trait's own open ones, then those that its direction is read on."""
    if others is not None:
        questions = [row.question for row in others if row.split == "extract"]
    else:
        questions = [row.question for row in trait.open if row.split == "extract"]
        questions += [turn.question for turn in plain_turns(extraction(trait, bank), "extract")]
    if len(questions) < count:
        raise InputError(f"generated_directions.questions: {trait.name} has {len(questions)} extract questions, the study asks for {count}")
    return questions[:count]


def _answers_stage(bench: Bench, trait: Trait, questions: Sequence[str]) -> Stage:
    """Answer questions under both sides of each pair, and read the answers there: states [pairs, 2, questions, layers, d_model]."""
    pairs = trait.contrast_pairs[: bench.study.contrast_pairs]
    prompts = [(question, side) for pair in pairs for side in (pair.positive, pair.negative) for question in questions]

    def compute(bench: Bench, _inputs: list[Path], out: Path, tick: TickFn) -> Output:
        [answers] = said(bench, prompts, [None], tick)
        chat = bench.chat(bench.base)
        turns = [Turn(question, full_stop(answer), system) for (question, system), answer in zip(prompts, answers, strict=True)]
        rows = [chat.encode(turn) for turn in turns]
        [reading] = read(bench, rows, [None], out, tick, spans=("response",))
        states = reading["states"]
        shaped = states[:, :, 0].reshape(len(pairs), 2, len(questions), *states.shape[1::2])
        return {"answers.json": answers, "states.safetensors": {"states": shaped}}

    config = {**bench.identity(), "prompts": digest(prompts), "pairs": len(pairs), "tokens": bench.study.answer_tokens}
    config["penalty"] = REPETITION_PENALTY
    return Stage("generated", 1, config, (), f"what the base says as {trait.name} and its opposite", compute)


def _agreement_stage(
    names: Sequence[str], state: Stage, generated: Stage, states: Sequence[Stage], asked: Sequence[str], layer: int
) -> Stage:
    """Hold each trait's two directions against each other, at every layer, and against chance at one."""

    def compute(_bench: Bench, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        both = [load_file(folder / "space.safetensors")["vectors"].astype(np.float64) for folder in inputs[:2]]
        units = [vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in both]
        cosines = (units[0] * units[1]).sum(-1)
        rows = [load_file(folder / "states.safetensors")["states"] for folder in inputs[2:]]
        centred = within_questions(rows, asked, layer)
        null = Null(seed_for(0, "agreement"))
        chance = [float(np.quantile(largest_by_chance(unit[layer], 1, centred, null), 0.95)) for unit in units[0]]
        found = {name: {"cosine": each.tolist(), "chance": high} for name, each, high in zip(names, cosines, chance, strict=True)}
        return {AGREEMENT: found}

    config = {"names": list(names), "asked": list(asked), "layer": layer}
    return Stage("agreement", 1, config, (state, generated, *states), "agreement of two estimators", compute, everywhere=False)

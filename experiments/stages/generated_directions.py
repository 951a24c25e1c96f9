"""The estimator `generated`: directions from the base's own answers under contrast prompts, and their agreement with `state`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.catalog import load_questions
from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.data.mixtures import Turn, plain_turns
from wellworn.data.schema import Asked, ContrastPair, Example, Trait, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import REPETITION_PENALTY, answer_questions, nonempty
from wellworn.experiments.stages.grades import Judge, grade_stage, load_grades, needed_rubric
from wellworn.experiments.stages.loaded_space import centre_within_questions
from wellworn.experiments.stages.persona_directions import extraction_examples, load_states
from wellworn.experiments.stages.persona_space import KEPT, SpaceStages, space_stage
from wellworn.experiments.stages.readings import read
from wellworn.experiments.study_sections import FilterConfig
from wellworn.probes.geometry.nearest import largest_by_chance
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.scoring.judge import COHERENCE
from wellworn.probes.statistics.intervals import finite

AGREEMENT, COUNTED = "agreement.json", "kept.json"


class KeptAnswers(Record):
    """The pairs of answers that make a direction, where a judge filters them.

    Attributes:
        kept: the number of pairs kept.
        of: the number of all pairs.
        ungraded: the number of pairs that lack a grade.
    """

    kept: int
    of: int
    ungraded: int


class DirectionAgreement(Record):
    """The agreement of a trait's two directions.

    Attributes:
        cosine: of the two at each layer; null where one of them is missing.
        chance: the 95 % quantile of the cosine by chance, at the study's layer.
    """

    cosine: Sequence[float | None]
    chance: float


@dataclass(frozen=True)
class Generated:
    """The stages of the estimator `generated`.

    Attributes:
        space: directions and reliabilities, in the format of `state`.
        agreement: their agreement with those of `state`.
        kept: for each trait, the pairs of answers that make its direction; empty where all do.
    """

    space: Stage
    agreement: Stage
    kept: tuple[Stage, ...] = ()


def generated_stages(
    context: StudyContext, traits: Sequence[Trait], bank: Sequence[Example], space_stages: SpaceStages, layer: int, judge: Judge | None
) -> Generated:
    """Return the stages that estimate each trait's direction from the base's own answers.

    Args:
        context: the study's model.
        traits: the library.
        bank: its extraction questions are asked where a trait has none of its own, unless the study names other questions.
        space_stages: the directions of the estimator `state`.
        layer: the layer where chance is drawn.
        judge: the judge that grades the answers, if the study names one.

    Raises:
        InputError: a trait with fewer questions, or contrast pairs, than the study asks for, or without a rubric where answers are
            filtered.
    """
    config = context.study.generated_directions
    assert config is not None  # the caller checks it
    others = load_questions(config.bank) if config.bank else None
    asked = [_questions(trait, bank, others, config.questions) for trait in traits]
    states = [_answers_stage(context, trait, questions) for trait, questions in zip(traits, asked, strict=True)]
    names, digests = [trait.name for trait in traits], [digest([each.facts for each in questions]) for questions in asked]
    kept: list[Stage] = []
    if config.filter:
        assert judge is not None  # checked when the study was loaded
        both = zip(traits, asked, states, strict=True)
        kept = [_kept_stage(context, judge, config.filter, trait, questions, stage) for trait, questions, stage in both]
    space = space_stage(names, states, digests, "directions of what the base says", kept)
    return Generated(space, _agreement_stage(names, space_stages.spaces[0], space, states, digests, layer), tuple(kept))


def _questions(trait: Trait, bank: Sequence[Example], others: Sequence[Example] | None, count: int) -> list[Asked]:
    """Return the questions to ask: those that the study names, or a trait's own open ones, then those that its direction is read on."""
    if others is not None:
        questions = [row.asked for row in others if row.split == "extract"]
    else:
        questions = [row.asked for row in trait.open if row.split == "extract"]
        questions += [turn.asked for turn in plain_turns(extraction_examples(trait, bank), "extract")]
    if len(questions) < count:
        raise InputError(f"generated_directions.questions: {trait.name} has {len(questions)} extract questions, the study asks for {count}")
    return questions[:count]


def _answers_stage(context: StudyContext, trait: Trait, questions: Sequence[Asked]) -> Stage:
    """Answer questions under both sides of each pair, and read the answers there: states [pairs, 2, questions, layers, d_model]."""
    pairs = _pairs(context, trait)
    prompts = [question.under(side) for question, side in _prompts(pairs, questions)]

    def compute(context: StudyContext, _folders: Folders, out: Path, tick: TickFn) -> Output:
        [answers] = answer_questions(context, prompts, [None], tick)
        chat = context.chat(context.base)
        turns = [Turn.of(each, nonempty(answer)) for each, answer in zip(prompts, answers, strict=True)]
        rows = [chat.encode(turn) for turn in turns]
        [reading] = read(context, rows, [None], out, tick, spans=("response",))
        states = reading["states"]
        shaped = states[:, :, 0].reshape(len(pairs), 2, len(questions), *states.shape[1::2])
        return {"answers.json": answers, "states.safetensors": {"states": shaped}}

    config = {
        **context.identity(),
        **context.speaker(),
        "prompts": digest([(question.facts, side) for question, side in _prompts(pairs, questions)]),
        "pairs": len(pairs),
        "tokens": context.study.answer_tokens,
    }
    config["penalty"] = REPETITION_PENALTY
    title = f"what the base says as {trait.name} and its opposite"
    return Stage(kind=kinds.GENERATED, config=config, title=title, compute=compute, check=context.check_speaker)


def _pairs(context: StudyContext, trait: Trait) -> Sequence[ContrastPair]:
    return trait.contrast_pairs[: context.study.contrast_pairs]


def _prompts(pairs: Sequence[ContrastPair], questions: Sequence[Asked]) -> list[tuple[Asked, str]]:
    return [(question, side) for pair in pairs for side in (pair.positive, pair.negative) for question in questions]


def _kept_stage(context: StudyContext, judge: Judge, limits: FilterConfig, trait: Trait, questions: Sequence[Asked], said: Stage) -> Stage:
    """Choose the pairs of answers that make a direction by the judge's grades: `kept` [pairs, questions], and counts."""
    rubric = needed_rubric(trait, f"generated_directions.filter: {trait.name}")
    pairs = _pairs(context, trait)
    asked = [Turn.of(question, "") for question, _ in _prompts(pairs, questions)]
    title = f"what the base says as {trait.name} and its opposite"
    grades = {
        "score": grade_stage(context, judge, rubric, said, asked, title),
        "coherence": grade_stage(context, judge, COHERENCE, said, asked, f"coherence of {title}"),
    }

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        # A grade is a weighted mean, so one that equals a limit may be less by the last digit.
        score, coherence = (load_grades(folders[name]).scores.round(6).reshape(len(pairs), 2, len(questions)) for name in grades)
        # An answer without a grade is neither above a limit nor below one.
        kept = (score[:, 0] >= limits.score) & (score[:, 1] < limits.score) & (coherence >= limits.coherence).all(1)
        ungraded = ~np.isfinite(np.stack([score, coherence])).all((0, 2))
        counted = KeptAnswers(kept=int(kept.sum()), of=kept.size, ungraded=int(ungraded.sum()))
        return {KEPT: {"kept": kept}, COUNTED: counted.to_json()}

    config = {"limits": limits.model_dump(mode="json"), "pairs": len(pairs), "questions": len(questions)}
    title = f"answers that make the direction of {trait.name}"
    return Stage(kind=kinds.KEPT, config=config, inputs=grades, title=title, compute=compute, everywhere=False)


def _agreement_stage(
    names: Sequence[str], state: Stage, generated: Stage, states: Sequence[Stage], asked: Sequence[str], layer: int
) -> Stage:
    """Compare each trait's two directions with each other at every layer, and with chance at one layer."""

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        both = [
            load_file(folder / "space.safetensors")["vectors"].astype(np.float64) for folder in (folders["state"], folders["generated"])
        ]
        # With too few answers there is no direction, and no cosine.
        units = [vectors / np.where((norm := np.linalg.norm(vectors, axis=-1, keepdims=True)) > 0, norm, np.nan) for vectors in both]
        cosines = (units[0] * units[1]).sum(-1)
        rows = [load_states(folder) for folder in folders.all("states")]
        centred = centre_within_questions(rows, asked, layer)
        null = Null(seed_for(0, "agreement"))
        chance = [float(np.quantile(largest_by_chance(unit[layer], 1, centred, null), 0.95)) for unit in units[0]]
        found = {
            name: DirectionAgreement(cosine=[finite(x) for x in each], chance=high).to_json()
            for name, each, high in zip(names, cosines, chance, strict=True)
        }
        return {AGREEMENT: found}

    config = {"names": list(names), "asked": list(asked), "layer": layer}
    inputs: dict[str, Stage | Sequence[Stage]] = {"state": state, "generated": generated, "states": states}
    title = "agreement of two estimators"
    return Stage(kind=kinds.AGREEMENT, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)

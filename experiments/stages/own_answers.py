"""The stages `own_answers` and `own_grades`: what models say while their state along a run's own direction is the other's.

How likely a text is that was written beforehand is not yet behaviour. Here reference and run answer by themselves, each also with its state
along the own direction, or along a few chance directions, set to the other's at all adapted layers together. Words score the answers; a
judge grades them where the study has one. Arithmetic on the scores is `findings/own_answers.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import Asked
from wellworn.data.words import word_logodds, words
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import REPETITION_PENALTY, nonempty
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.measurement import Graded, Known
from wellworn.experiments.stages.mediation import patched_pair, patching_inputs
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, both_ways
from wellworn.experiments.stages.nested_space import chance_directions, nested_space, swaps_along
from wellworn.experiments.stages.pathways import CHANCE_OWN, PathwaysQuestion, set_layers
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.scores import known_separation
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.decoding.generate import Decoding
from wellworn.probes.mediation.interventions import Intervention
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.scoring.judge import judge_prompt

ANSWERS, GRADES = "own_answers.json", "own_grades.json"
# Chance directions in place of the own one: what any patch of that size does to answers.
CHANCE_DRAWS = 3


class OwnAnswers(Record):
    """The answers under every intervention, and what their words show.

    Attributes:
        arms: names of the interventions; empty where the own direction was not found.
        asked: the questions, with the conversation before each.
        answers: [interventions][questions].
        words: how much likelier an answer's words are in training answers with the trait than in plain ones, [interventions][questions];
            null for an answer without any word of these.
        known: how well words discriminate written answers with the trait from plain ones, to evaluate questions.
    """

    arms: Sequence[str]
    asked: Sequence[str]
    answers: Sequence[Sequence[str]]
    words: Sequence[Sequence[float | None]]
    known: Known


class OwnGrades(Record):
    """A judge's grades of the answers under every intervention.

    Attributes:
        grades: [interventions][questions], 0 to 100; null for a missing grade.
        known: how well grades discriminate written answers with the trait from plain ones.
        graded: the judge, and why grades are missing.
    """

    grades: Sequence[Sequence[float | None]]
    known: Known
    graded: Graded


def load_own_answers(folder: Path) -> OwnAnswers:
    """Load the answers of a finished stage."""
    return OwnAnswers.from_json(read_json(folder / ANSWERS))


def load_own_grades(folder: Path) -> OwnGrades:
    """Load the grades of a finished stage."""
    return OwnGrades.from_json(read_json(folder / GRADES))


def own_answers_stage(context: StudyContext, question: PathwaysQuestion, count: int, space_stages: SpaceStages) -> Stage:
    """Let reference and run answer, each by itself and with its state along the own direction, and along chance ones, set to the other's.

    Args:
        context: the study's model.
        question: whose change; its first evaluate questions are asked, and its other texts teach which words are the trait's.
        count: how many questions are asked.
        space_stages: the persona space.
    """
    asked = [turn.asked for turn in question.plain[:count]]

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        adapters, between = patched_pair(folders)
        chat = context.chat(context.base)
        with lora_adapters.adapted(context.base, adapters) as model:
            layers, _ = set_layers(model, between, question.layer)
            nested = nested_space(space, layers, question.layer, question.own)
            arms: dict[str, Intervention] = {}
            if OWN in nested.names:
                arms = {BEFORE: Intervention(0), AFTER: Intervention(1)} | both_ways(OWN, swaps_along(nested.part(OWN)))
                for i, drawn in enumerate(chance_directions(space, layers, question.layer, question.own, CHANCE_DRAWS)):
                    arms |= both_ways(f"{CHANCE_OWN}{i}", swaps_along(drawn))
            how = Decoding(
                context.study.answer_tokens,
                repetition_penalty=REPETITION_PENALTY,
                progress=counter(tick, len(arms) * len(asked) // context.ranks.world, "answers"),
            )

            def answer(part: list[Asked]) -> list[list[str]]:
                """Return the answers, [questions][interventions]."""
                prompts = [chat.encode_prompt(*each) for each in part]
                ids = patched_answers(model, (prompts, prompts), between, list(arms.values()), how)
                return [[chat.decode(each) for each in of_question] for of_question in zip(*ids, strict=True)]

            answers = list(zip(*context.ranks.share(asked, answer), strict=True)) if arms else []
        shown, absent = ([turn.answer for turn in turns] for turns in (question.other_text, question.other_plain))
        score = _word_score(shown, absent)
        known = np.array([score(turn.answer) for turn in (*question.changed, *question.plain)], dtype=np.float64)
        found = OwnAnswers(
            arms=list(arms),
            asked=[each.transcript for each in asked],
            answers=answers,
            words=[[score(text) for text in of_arm] for of_arm in answers],
            known=known_separation(known, len(question.changed)),
        )
        return {ANSWERS: found.to_json()}

    facts: Config = {
        **context.identity(),
        "asked": [each.facts for each in asked],
        **question.identity,
        **question.other_texts,
        "tokens": context.study.answer_tokens,
        "penalty": REPETITION_PENALTY,
        "draws": CHANCE_DRAWS,
    }
    inputs = patching_inputs(space_stages, question.reference, question.run)
    title = f"what {question.run.title} says with its own direction set"
    return Stage(kind=kinds.OWN_ANSWERS, config=facts, inputs=inputs, title=title, compute=compute)


def _word_score(shown: Sequence[str], absent: Sequence[str]) -> Callable[[str], float | None]:
    """Return the score of an answer by its words; None for one without any word of the texts, which would lie between the two."""
    score, vocabulary = word_logodds(shown, absent), {word for text in (*shown, *absent) for word in words(text)}
    return lambda text: score(text) if vocabulary.intersection(words(text)) else None


def own_grades_stage(context: StudyContext, said: Stage, question: PathwaysQuestion, judge: Judge, rubric: str) -> Stage:
    """Let a judge grade these answers, and written ones with the trait and without.

    Raises:
        InputError: a rubric with a place for the question and none for the answer.
    """
    # Refuse an unusable rubric before anything is computed.
    judge_prompt(rubric, Turn("?", "."))

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        found = load_own_answers(folders["said"])
        asked = question.plain[: len(found.asked)]
        turns = [replace(turn, answer=nonempty(text)) for of_arm in found.answers for turn, text in zip(asked, of_arm, strict=True)]
        if not turns:
            nobody = Graded(judge=judge.name, drawn=False, failures={})
            return {GRADES: OwnGrades(grades=[], known=known_separation(np.zeros(0), 0), graded=nobody).to_json()}
        grades = judge.grade(context, rubric, [*turns, *question.changed, *question.plain], tick)
        own = grades.scores[: len(turns)].reshape(len(found.arms), len(found.asked))
        failures = Counter(why for i, why in grades.failures.items() if i < len(turns))
        kept = OwnGrades(
            grades=[[None if np.isnan(each) else float(each) for each in of_arm] for of_arm in own],
            known=known_separation(grades.scores[len(turns) :], len(question.changed)),
            graded=Graded(judge=judge.name, drawn=grades.drawn, failures=dict(failures.most_common())),
        )
        return {GRADES: kept.to_json()}

    facts = {**judge.identity(), "chat": context.identity()["chat"], "rubric": rubric}
    facts |= {"changed": fingerprint(question.changed), "plain": fingerprint(question.plain)}
    return Stage(
        kind=kinds.OWN_GRADES,
        config=facts,
        inputs={"said": said},
        title=f"grade {said.title}",
        compute=compute,
        everywhere=judge.by is None,
        check=judge.check,
    )

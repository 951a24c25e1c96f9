"""The stages `say` and `score`: the answers of patched models, and how much of the trait they show.

say → score → measure. Answers and scores are separate stages, so that another scorer needs no decoding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Asked, ContrastPair
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import REPETITION_PENALTY, nonempty
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.mediation import Question, parts_to_swap, patched_pair
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.scores import known_separation, read_contrast
from wellworn.experiments.study_sections import GeneratedConfig, MediateConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.decoding.generate import Decoding
from wellworn.probes.mediation.patched_decoding import patched_answers

SAID = "said.json"


class PatchedAnswers(Record):
    """The content of `said.json`: the answers under every intervention.

    Attributes:
        arms: names of the interventions.
        answers: [interventions][questions].
    """

    arms: Sequence[str]
    answers: Sequence[Sequence[str]]


def patched_answers_stage(context: StudyContext, question: Question, config: GeneratedConfig, space_stages: SpaceStages) -> Stage:
    """Decode answers under every intervention, greedily and with the repetition penalty of sample answers.

    Args:
        context: the study's model.
        question: the analysis; the questions of its plain answers are asked.
        config: the number of null spaces.
        space_stages: the persona space.

    Returns:
        The stage that writes `arms`, the interventions' names, and `answers` [interventions][questions].
    """
    asked = [turn.asked for turn in question.plain]
    conditions = (question.reference, question.run)
    draws_config = MediateConfig(draws=config.draws)

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        if not space.members(question.layer, question.own):
            return {SAID: PatchedAnswers(arms=[], answers=[]).to_json()}
        adapters, between = patched_pair(folders)
        chat = context.chat(context.base)
        interventions = parts_to_swap(space, question, draws_config, []).arms({})
        how = Decoding(
            context.study.answer_tokens,
            repetition_penalty=REPETITION_PENALTY,
            progress=counter(tick, len(interventions) * len(asked) // context.ranks.world, "answers"),
        )
        with lora_adapters.adapted(context.base, adapters) as model:

            def answer(part: list[Asked]) -> list[list[str]]:
                """Return the answers, [questions][interventions]."""
                prompts = tuple([chat.encode_prompt(*each.under(condition.system)) for each in part] for condition in conditions)
                both = (prompts[0], prompts[1])
                ids = patched_answers(model, both, between, list(interventions.values()), how, response_only=question.response_only)
                return [[chat.decode(each) for each in of_question] for of_question in zip(*ids, strict=True)]

            answers = context.ranks.share(asked, answer)
        return {SAID: PatchedAnswers(arms=list(interventions), answers=[list(each) for each in zip(*answers, strict=True)]).to_json()}

    facts = {
        **context.identity(),
        "asked": [each.facts for each in asked],
        "layer": question.layer,
        "own": question.own,
        "systems": [condition.system for condition in conditions],
        "adapters": [len(condition.inputs) for condition in conditions],
        "response_only": question.response_only,
        "draws": config.draws,
        "tokens": context.study.answer_tokens,
        "penalty": REPETITION_PENALTY,
    }
    return Stage(kind=kinds.SAY, config=facts, inputs=question.inputs(space_stages), title=question.title, compute=compute)


def score_patched_stage(context: StudyContext, said: Stage, question: Question, pairs: Sequence[ContrastPair]) -> Stage:
    """Score the patched models' answers by contrast pairs, in the format of `mediate`: [interventions, 2, questions] under the two sides.

    y⁺ and y⁻, with their known labels, are scored too: `known` says how well the score discriminates them.
    """

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        names, turns = _turns(folders["said"], question)
        scores = read_contrast(context, pairs, turns, out, tick)
        known = len(question.changed) + len(question.plain)
        patched = scores[:, :-known].reshape(2, len(names), len(question.plain)).swapaxes(0, 1)
        told = known_separation(scores[0, -known:] - scores[1, -known:], len(question.changed))
        return {
            "outcomes.safetensors": {"logprob": patched.astype(np.float32)},
            "arms.json": {"arms": names, "moved": {}, "known": told.to_json()},
        }

    facts = {**context.identity(), **_texts(question), "pairs": [pair.model_dump(mode="json") for pair in pairs]}
    return Stage(kind=kinds.SCORE, config=facts, inputs={"said": said}, title=f"score {question.title}", compute=compute)


def grade_patched_stage(context: StudyContext, said: Stage, question: Question, judge: Judge, rubric: str) -> Stage:
    """Let a judge grade the patched models' answers, and y⁺ and y⁻: `score` [interventions, questions], NaN for a missing grade."""

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        names, turns = _turns(folders["said"], question)
        grades = judge.grade(context, rubric, turns, tick)
        known = len(question.changed) + len(question.plain)
        patched = grades.scores[:-known].reshape(len(names), len(question.plain))
        return {
            "outcomes.safetensors": {"score": patched.astype(np.float32)},
            "arms.json": {
                "arms": names,
                "moved": {},
                "known": known_separation(grades.scores[-known:], len(question.changed)).to_json(),
                "judge": judge.name,
                "drawn": grades.drawn,
                "failures": dict(Counter(why for i, why in grades.failures.items() if i < patched.size).most_common()),
            },
        }

    facts = {**judge.identity(), "chat": context.identity()["chat"], **_texts(question), "rubric": rubric}
    return Stage(
        kind=kinds.SCORE,
        config=facts,
        inputs={"said": said},
        title=f"grade {question.title}",
        compute=compute,
        everywhere=judge.by is None,
        check=judge.check,
    )


def _turns(folder: Path, question: Question) -> tuple[list[str], list[Turn]]:
    """Return the interventions' names, and the turns to score: the answers of each intervention, then the answers of known label."""
    found = PatchedAnswers.from_json(read_json(folder / SAID))
    said = (replace(turn, answer=nonempty(answer)) for each in found.answers for turn, answer in zip(question.plain, each, strict=True))
    return list(found.arms), [*said, *question.changed, *question.plain]


def _texts(question: Question) -> Config:
    return {
        "asked": [turn.asked.facts for turn in question.plain],
        "shown": [turn.answer for turn in question.changed],
        "absent": [turn.answer for turn in question.plain],
    }

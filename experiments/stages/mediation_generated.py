"""The stages `say` and `score`: what a run says in its patched arms, and how much of the trait is in it.

say → score → measure. Answers are kept apart from their scores, so that another scorer needs no decoding.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, by_stage, counter
from wellworn.experiments.engine.store import read_json
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import REPETITION_PENALTY, nonempty
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.mediation import Question, parts_to_swap
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.scores import known_separation, read_contrast
from wellworn.experiments.study import GeneratedConfig, MediateConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.decoding.generate import Decoding
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.reading.variants import Variant

SAID = "said.json"


class ArmAnswers(Record):
    """What `said.json` holds: what every arm answers.

    Attributes:
        arms: their names.
        answers: [arms][questions].
    """

    arms: Sequence[str]
    answers: Sequence[Sequence[str]]


def patched_answers_stage(context: StudyContext, question: Question, config: GeneratedConfig, library: SpaceStages) -> Stage:
    """Let every arm answer, greedily and with the penalty of sample answers: `arms` and `answers` [arms][questions].

    Args:
        context: the study's model.
        question: its plain answers' questions are asked.
        config: how many null spaces take part.
        library: of directions.
    """
    asked = [turn.question for turn in question.plain]
    conditions = (question.reference, question.run)
    arms_config = MediateConfig(draws=config.draws)

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = library.load(folders.within("space"))
        if not space.members(question.layer, question.own):
            return {SAID: ArmAnswers(arms=[], answers=[]).to_json()}
        adapters = [folders.within(who).adapter for who in ("reference", "run")]
        chat = context.chat(context.base)
        arms = parts_to_swap(space, question, arms_config, []).arms({})
        how = Decoding(
            context.study.answer_tokens,
            repetition_penalty=REPETITION_PENALTY,
            progress=counter(tick, len(arms) * len(asked) // context.ranks.world, "answers"),
        )
        with lora_adapters.adapted(context.base, by_stage(adapters)) as model:
            reference, run = (Variant(adapter.parent.name if adapter else None) for adapter in adapters)

            def answer(part: list[str]) -> list[list[str]]:
                """Return what each arm answers, [questions][arms]."""
                prompts = tuple([chat.encode_prompt(question, condition.system) for question in part] for condition in conditions)
                both = (prompts[0], prompts[1])
                ids = patched_answers(model, both, (reference, run), list(arms.values()), how, response_only=question.response_only)
                return [[chat.decode(each) for each in of_question] for of_question in zip(*ids, strict=True)]

            answers = context.ranks.share(asked, answer)
        return {SAID: ArmAnswers(arms=list(arms), answers=[list(arm) for arm in zip(*answers, strict=True)]).to_json()}

    facts = {
        **context.identity(),
        "asked": asked,
        "layer": question.layer,
        "own": question.own,
        "systems": [condition.system for condition in conditions],
        "adapters": [len(condition.inputs) for condition in conditions],
        "response_only": question.response_only,
        "draws": config.draws,
        "tokens": context.study.answer_tokens,
        "penalty": REPETITION_PENALTY,
    }
    return Stage(kind=kinds.SAY, config=facts, inputs=question.inputs(library), title=question.title, compute=compute)


def score_patched_stage(context: StudyContext, said: Stage, question: Question, pairs: Sequence[ContrastPair]) -> Stage:
    """Score what every arm said by contrast pairs, as `mediate` leaves it: [arms, 2, questions] under their two sides.

    The same is done with y⁺ and y⁻, whose label is known: `known` says how well the score discriminates them.
    """

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        arms, turns = _turns(folders["said"], question)
        scores = read_contrast(context, pairs, turns, out, tick)
        known = len(question.changed) + len(question.plain)
        of_arms = scores[:, :-known].reshape(2, len(arms), len(question.plain)).swapaxes(0, 1)
        told = known_separation(scores[0, -known:] - scores[1, -known:], len(question.changed))
        return {
            "outcomes.safetensors": {"logprob": of_arms.astype(np.float32)},
            "arms.json": {"arms": arms, "moved": {}, "known": told.to_json()},
        }

    facts = {**context.identity(), **_texts(question), "pairs": [pair.model_dump(mode="json") for pair in pairs]}
    return Stage(kind=kinds.SCORE, config=facts, inputs={"said": said}, title=f"score {question.title}", compute=compute)


def grade_patched_stage(context: StudyContext, said: Stage, question: Question, judge: Judge, rubric: str) -> Stage:
    """Let a judge grade what every arm said, and y⁺ and y⁻: `score` [arms, questions], NaN where there is no grade, which is counted."""

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        arms, turns = _turns(folders["said"], question)
        grades = judge.grade(context, rubric, turns, tick)
        known = len(question.changed) + len(question.plain)
        of_arms = grades.scores[:-known].reshape(len(arms), len(question.plain))
        return {
            "outcomes.safetensors": {"score": of_arms.astype(np.float32)},
            "arms.json": {
                "arms": arms,
                "moved": {},
                "known": known_separation(grades.scores[-known:], len(question.changed)).to_json(),
                "judge": judge.name,
                "drawn": grades.drawn,
                "failures": dict(Counter(why for i, why in grades.failures.items() if i < of_arms.size).most_common()),
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
    """Return the arms, and what is scored: arm by arm what they said, then the answers whose label is known."""
    found = ArmAnswers.from_json(read_json(folder / SAID))
    said = (Turn(turn.question, nonempty(answer)) for arm in found.answers for turn, answer in zip(question.plain, arm, strict=True))
    return list(found.arms), [*said, *question.changed, *question.plain]


def _texts(question: Question) -> Config:
    return {
        "asked": [turn.question for turn in question.plain],
        "shown": [turn.answer for turn in question.changed],
        "absent": [turn.answer for turn in question.plain],
    }

"""The stages `say` and `score`: what a run says in its patched arms, and how much of the trait is in it.

say → score → measure. Answers are kept apart from their scores, so that another scorer needs no decoding.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Output, Stage, TickFn, adapter_of, counter, named
from wellworn.experiments.engine.store import read_json
from wellworn.experiments.stages.answers import REPETITION_PENALTY, full_stop
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.mediation import Question, parts_of
from wellworn.experiments.stages.persona_space import Library
from wellworn.experiments.stages.scores import contrasted, told_of
from wellworn.experiments.study import GeneratedConfig, MediateConfig
from wellworn.lora import models
from wellworn.probes.decoding.generate import Decoding
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.reading.variants import Variant

SAID = "said.json"


def say_stage(context: StudyContext, question: Question, config: GeneratedConfig, library: Library) -> Stage:
    """Let every arm answer, greedily and with the penalty of sample answers: `arms` and `answers` [arms][questions].

    Args:
        context: the study's model.
        question: its plain answers' questions are asked.
        config: how many null spaces take part.
        library: of directions.
    """
    asked = [turn.question for turn in question.plain]
    conditions = (question.reference, question.run)
    arms_config = MediateConfig(draws=config.draws, matched=False, doses=())

    def compute(context: StudyContext, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        space, rest = library.load(inputs)
        if not space.members(question.layer, question.own):
            return {SAID: {"arms": [], "answers": []}}
        first = len(question.reference.inputs)
        adapters = [adapter_of(rest[:first]), adapter_of(rest[first:])]
        base, ranks = context.base, context.ranks
        chat = context.chat(base)
        mine = range(len(asked))[ranks.rank :: ranks.world]
        before, after = ([chat.encode_prompt(asked[i], condition.system) for i in mine] for condition in conditions)
        arms = parts_of(space, question, arms_config, []).arms({}, arms_config)
        with models.adapted(base, named(adapters)) as model:
            reference, run = (Variant(adapter.parent.name if adapter else None) for adapter in adapters)
            ids = patched_answers(
                model,
                (before, after),
                (reference, run),
                list(arms.values()),
                Decoding(
                    context.study.answer_tokens,
                    repetition_penalty=REPETITION_PENALTY,
                    progress=counter(tick, len(arms) * len(mine), "answers"),
                ),
                response_only=question.response_only,
            )
        texts = [[chat.decode(each) for each in arm] for arm in ids]
        everyone = dict(ranks.gather([(i, [arm[at] for arm in texts]) for at, i in enumerate(mine)]))
        return {SAID: {"arms": list(arms), "answers": [[everyone[i][arm] for i in range(len(asked))] for arm in range(len(arms))]}}

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
    inputs = (*library.inputs, *question.reference.inputs, *question.run.inputs)
    return Stage("say", 1, facts, inputs, question.title, compute)


def score_stage(context: StudyContext, said: Stage, question: Question, pairs: Sequence[ContrastPair]) -> Stage:
    """Score what every arm said by contrast pairs, as `mediate` leaves it: [arms, 2, questions] under their two sides.

    The same is done with y⁺ and y⁻, whose label is known: `known` says how well the score tells them apart.
    """

    def compute(context: StudyContext, inputs: list[Path], out: Path, tick: TickFn) -> Output:
        arms, turns = _turns(inputs[0], question)
        scores = contrasted(context, pairs, turns, out, tick)
        known = len(question.changed) + len(question.plain)
        of_arms = scores[:, :-known].reshape(2, len(arms), len(question.plain)).swapaxes(0, 1)
        told = told_of(scores[0, -known:] - scores[1, -known:], len(question.changed))
        return {
            "outcomes.safetensors": {"logprob": of_arms.astype(np.float32)},
            "arms.json": {"arms": arms, "moved": {}, "known": told},
        }

    facts = {**context.identity(), **_texts(question), "pairs": [pair.model_dump(mode="json") for pair in pairs]}
    return Stage("score", 1, facts, (said,), f"score {question.title}", compute)


def grade_said_stage(context: StudyContext, said: Stage, question: Question, judge: Judge, rubric: str) -> Stage:
    """Let a judge grade what every arm said, and y⁺ and y⁻: `score` [arms, questions], NaN where there is no grade, which is counted."""

    def compute(context: StudyContext, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        arms, turns = _turns(inputs[0], question)
        grades = judge.grade(context, rubric, turns, tick)
        known = len(question.changed) + len(question.plain)
        of_arms = grades.scores[:-known].reshape(len(arms), len(question.plain))
        return {
            "outcomes.safetensors": {"score": of_arms.astype(np.float32)},
            "arms.json": {
                "arms": arms,
                "moved": {},
                "known": told_of(grades.scores[-known:], len(question.changed)),
                "judge": judge.name,
                "drawn": grades.drawn,
                "failures": dict(Counter(why for i, why in grades.failures.items() if i < of_arms.size).most_common()),
            },
        }

    facts = {**judge.identity(), "chat": context.identity()["chat"], **_texts(question), "rubric": rubric}
    return Stage("score", 1, facts, (said,), f"grade {question.title}", compute, judge.by is None, judge.check)


def _turns(folder: Path, question: Question) -> tuple[list[str], list[Turn]]:
    """Return the arms, and what is scored: arm by arm what they said, then the answers whose label is known."""
    found = read_json(folder / SAID)
    said = (Turn(turn.question, full_stop(answer)) for arm in found["answers"] for turn, answer in zip(question.plain, arm, strict=True))
    return found["arms"], [*said, *question.changed, *question.plain]


def _texts(question: Question) -> dict[str, Any]:
    return {
        "asked": [turn.question for turn in question.plain],
        "shown": [turn.answer for turn in question.changed],
        "absent": [turn.answer for turn in question.plain],
    }

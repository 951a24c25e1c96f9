"""The stage `grade`: what a judge makes of answers, by a rubric. The judge is a model here, or an OpenAI-compatible server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import Control, Example, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.engine.store import read_json
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import load_texts, texts_input
from wellworn.lora import models
from wellworn.probes.scoring.endpoint import PASSING, Budget, EndpointConfig, check
from wellworn.probes.scoring.judge import Grades, grade, grade_by_server, judge_prompt
from wellworn.probes.statistics.intervals import finite

GRADES = "grades.json"
# A control has no rubric: what it is, is its description.
OF_A_CONTROL = "Score how much of the following the answer shows, from 0 (nothing of it) to 100 (all of it), and nothing else about it.\n"
NO_RUBRIC = "has no rubric, so no judge can grade it"
# A server that fails on more than this part of the answers is out of order, and may be asked again later.
MOST_PASSING = 0.1


def rubric_for(subject: Trait | Control) -> str | None:
    """Return what a judge grades answers by; None for a trait without a rubric."""
    return OF_A_CONTROL + subject.description if isinstance(subject, Control) else subject.rubric


def needed_rubric(subject: Trait | Control, where: str) -> str:
    """Return what a judge grades answers by, where nothing goes without.

    Raises:
        InputError: a trait without a rubric; `where` begins the message, and names it.
    """
    if (rubric := rubric_for(subject)) is None:
        raise InputError(f"{where} {NO_RUBRIC}; write one in its trait.yaml")
    return rubric


@dataclass
class Judge:
    """Who grades answers.

    Attributes:
        by: the server; None for a model here.
        ref: the model; None for a server.
        dtype: that the model is loaded in.
        budget: what was asked of the server so far.
    """

    by: EndpointConfig | None
    ref: models.ModelRef | None
    dtype: str | None
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(cls, context: StudyContext, asked: str | EndpointConfig) -> "Judge":
        """Find the judge of a study: a model's name, or how a server is reached.

        Raises:
            InputError: no such model, or one that cannot be talked to.
        """
        if isinstance(asked, EndpointConfig):
            return cls(asked, None, None)
        ref = context.ref if asked == context.study.model else context.ranks.from_main(lambda: models.resolve(asked))
        # The study's own model is not loaded twice, however it is called.
        if ref.id == context.ref.id:
            return cls(None, ref, context.dtype)
        if not context.ranks.from_main(lambda: bool(models.load_tokenizer(ref)[0].chat_template)):
            raise InputError(f"judge: {ref.id} has no chat template, so that it cannot be asked for a grade; name a chat model")
        return cls(None, ref, models.device_and_dtype()[1])

    @property
    def name(self) -> str:
        """The server's name for it, or the model's."""
        return self.by.model if self.by else self.ref.id if self.ref else ""

    def identity(self) -> Config:
        """Return what the hash of a grade holds of its judge: not where a server is, nor how fast it may be asked."""
        return {"server": self.by.model, "more": self.by.more} if self.by else {"model": self.name, "dtype": self.dtype}

    @property
    def used(self) -> str | None:
        """What was asked of a server so far, and what it cost; None where nothing was."""
        if self.by is None or not self.budget.asked + self.budget.cached:
            return None
        cost = f", ${self.budget.spent:.2f}" if self.by.price else ""
        return f"judge {self.name}: {self.budget.asked:,} asked, {self.budget.cached:,} from the cache{cost}"

    def check(self) -> None:
        """Find out before anything is computed whether the judge's server, if it has one, can be asked at all."""
        if self.by:
            check(self.by)

    def grade(self, context: StudyContext, rubric: str, turns: Sequence[Turn], tick: TickFn) -> Grades:
        """Grade answers, each different one once; rank 0 alone asks a server.

        Raises:
            InputError: nothing can be had of the server, it fails on more than a tenth of the answers for reasons that may pass, or what
                may be spent is spent. Replies are kept: the next call asks for the rest.
        """
        different = {turn: i for i, turn in enumerate(dict.fromkeys(turns))}
        progress = counter(tick, len(different), "answers")
        if self.by:
            found = self._ask(self.by, context.replies, rubric, list(different), progress)
        else:
            found = self._read(context, rubric, list(different), progress)
        places = [different[turn] for turn in turns]
        failures = {i: found.failures[place] for i, place in enumerate(places) if place in found.failures}
        return replace(found, scores=found.scores[places], failures=failures)

    def _ask(
        self, server: EndpointConfig, cache: Path | None, rubric: str, turns: Sequence[Turn], progress: Callable[[int], None]
    ) -> Grades:
        kept = "replies are kept, so that the same command asks for the rest alone"
        # One limit for all that a command asks.
        found = grade_by_server(self.budget.left(server), rubric, turns, cache, progress=progress)
        self.budget.add(found.cost, found.asked, found.cached)
        if lacking := found.kinds.get("most_cost"):
            raise InputError(
                f"judge {server.model}: the {server.most_cost:g} dollars of most_cost are spent, before {lacking} of {len(turns)} answers; "
                f"raise it: {kept}"
            )
        passing = {kind: count for kind, count in found.kinds.items() if kind in PASSING}
        if sum(passing.values()) > MOST_PASSING * len(turns):
            said = ", ".join(f"{kind} × {count}" for kind, count in passing.items())
            raise InputError(f"judge {server.model}: {said} of {len(turns)} answers, after all retries; {kept}")
        return found

    def _read(self, context: StudyContext, rubric: str, turns: Sequence[Turn], progress: Callable[[int], None]) -> Grades:
        assert self.ref is not None  # one of the two is there
        if self.ref.id == context.ref.id:
            base, chat = context.base, context.chat(context.base)
        else:
            # There may be no room for both.
            context.drop()
            base = models.load(self.ref, self.dtype or "auto")
            chat = Chat(base.tokenizer, max_length=base.max_length)

        def grade_part(part: list[Turn]) -> list[tuple[float, str | None]]:
            found = grade(base.model, chat, rubric, part, progress)
            return [(float(score), found.failures.get(i)) for i, score in enumerate(found.scores)]

        found = context.ranks.share(turns, grade_part)
        scores = np.array([score for score, _ in found], dtype=np.float64)
        return Grades(scores, {i: why for i, (_, why) in enumerate(found) if why is not None})


def grade_stage(
    context: StudyContext, judge: Judge, rubric: str, texts: Sequence[Turn] | Stage, asked: Sequence[Example | Turn], title: str
) -> Stage:
    """Grade answers by a rubric: `scores`, null where there is none, `failures` by answer, whether `drawn`, and all draws `alike`.

    Stages that grade answers to the same questions by the same rubric are computed together.

    Args:
        context: the study's model, which may itself be the judge.
        judge: who grades.
        rubric: by which.
        texts: the turns, or the answer stage whose answers are graded.
        asked: the questions that an answer stage answered.
        title: what is graded, on screen.

    Raises:
        InputError: a rubric without a place for the answer where it has one for the question.
    """
    # A rubric that cannot be used is found out before anything is computed.
    judge_prompt(rubric, Turn("?", "."))

    def compute_all(context: StudyContext, folders: Sequence[Folders], _outs: Sequence[Path], tick: TickFn) -> list[Output]:
        sets = [load_texts(texts, asked, each) for each in folders]
        found = judge.grade(context, rubric, [turn for turns in sets for turn in turns], tick)
        outputs: list[Output] = []
        start = 0
        for turns in sets:
            end = start + len(turns)
            failures = {str(i - start): why for i, why in found.failures.items() if start <= i < end}
            scores = [finite(score) for score in found.scores[start:end]]
            outputs.append({GRADES: {"scores": scores, "failures": failures, "drawn": found.drawn, "alike": found.alike}})
            start = end
        return outputs

    config = {"judge": judge.identity(), "rubric": rubric, "chat": None if judge.by else context.identity()["chat"]}
    config["turns"] = None if isinstance(texts, Stage) else fingerprint(texts)
    config["asked"] = [example.question for example in asked] if isinstance(texts, Stage) else None
    return Stage.joint(
        kind=kinds.GRADE,
        config=config,
        inputs=texts_input(texts),
        title=f"grade {title}",
        shared=config,
        compute_all=compute_all,
        # A server is asked by one process: what it may be asked at a time, and what that may cost, is one limit.
        everywhere=judge.by is None,
        check=judge.check,
    )


def load_grades(folder: Path) -> Grades:
    """Load what a `grade` stage left."""
    found = read_json(folder / GRADES)
    scores = np.array([np.nan if score is None else score for score in found["scores"]])
    return Grades(scores, {int(i): why for i, why in found["failures"].items()}, found["drawn"], found["alike"])

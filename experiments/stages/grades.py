"""The stage `grade`: a judge grades answers by a rubric. The judge is a local model or an OpenAI-compatible server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import Control, Example, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn
from wellworn.experiments.engine.waiting import counter_and_notice
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import load_texts, texts_input
from wellworn.lora import models
from wellworn.probes.scoring.endpoint import Budget, EndpointConfig, check
from wellworn.probes.scoring.judge import Grades, grade, grade_by_server, judge_prompt
from wellworn.probes.scoring.retries import PASSING
from wellworn.probes.statistics.intervals import finite

GRADES = "grades.json"
# A control has no rubric; its description takes the place of one.
OF_A_CONTROL = "Score how much of the following the answer shows, from 0 (nothing of it) to 100 (all of it), and nothing else about it.\n"
NO_RUBRIC = "has no rubric, so no judge can grade it"
# A server that fails on a larger fraction of the answers is out of order; it may be asked again later.
MOST_PASSING = 0.1


def rubric_for(subject: Trait | Control) -> str | None:
    """Return the rubric that a judge grades answers by; None for a trait without one."""
    return OF_A_CONTROL + subject.description if isinstance(subject, Control) else subject.rubric


def needed_rubric(subject: Trait | Control, where: str) -> str:
    """Return the rubric that a judge grades answers by; here one is required.

    Raises:
        InputError: a trait without a rubric; the message begins with `where`.
    """
    if (rubric := rubric_for(subject)) is None:
        raise InputError(f"{where} {NO_RUBRIC}; write one in its trait.yaml")
    return rubric


@dataclass
class Judge:
    """The judge that grades answers.

    Attributes:
        by: the server; None for a local model.
        ref: the local model; None for a server.
        dtype: number format of the local model.
        budget: requests to the server so far, and their limit.
    """

    by: EndpointConfig | None
    ref: models.ModelRef | None
    dtype: str | None
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(cls, context: StudyContext, asked: str | EndpointConfig) -> "Judge":
        """Find the judge of a study, given a model's name or a server.

        Raises:
            InputError: no such model, or one without a chat template.
        """
        if isinstance(asked, EndpointConfig):
            return cls(asked, None, None)
        own = asked == context.study.model and context.taught_by is None
        ref = context.ref if own else context.ranks.from_main(lambda: models.resolve(asked))
        # The study's own model is not loaded twice, even under another name.
        if ref.id == context.ref.id:
            return cls(None, ref, context.dtype)
        if not context.ranks.from_main(lambda: bool(models.load_tokenizer(ref)[0].chat_template)):
            raise InputError(f"judge: {ref.id} has no chat template, so that it cannot be asked for a grade; name a chat model")
        return cls(None, ref, models.device_and_dtype()[1])

    @property
    def name(self) -> str:
        """The name of the model, on the server or here."""
        return self.by.model if self.by else self.ref.id if self.ref else ""

    def identity(self) -> Config:
        """Return the judge's part of a grade's hash; a server's address and rate limits are not in it."""
        return {"server": self.by.model, "more": self.by.more} if self.by else {"model": self.name, "dtype": self.dtype}

    @property
    def used(self) -> str | None:
        """The requests to a server so far and their cost, in words; None where there were none."""
        if self.by is None or not self.budget.asked + self.budget.cached:
            return None
        cost = f", ${self.budget.spent:.2f}" if self.by.price else ""
        return f"judge {self.name}: {self.budget.asked:,} asked, {self.budget.cached:,} from the cache{cost}"

    def check(self) -> None:
        """Check, before anything is computed and without a request, that the judge's server, if there is one, can be used."""
        if self.by:
            check(self.by)

    def grade(self, context: StudyContext, rubric: str, turns: Sequence[Turn], tick: TickFn) -> Grades:
        """Grade answers, each distinct one once; only rank 0 asks a server.

        Raises:
            InputError: the server does not answer, it fails on more than a tenth of the answers for reasons that may pass, or the budget is
                spent. Replies are kept: the next call asks for the rest.
        """
        different = {turn: i for i, turn in enumerate(dict.fromkeys(turns))}
        progress, notice = counter_and_notice(tick, len(different), "answers")
        if self.by:
            found = self._ask(self.by, context.replies, rubric, list(different), progress, notice)
        else:
            found = self._read(context, rubric, list(different), progress)
        places = [different[turn] for turn in turns]
        failures = {i: found.failures[place] for i, place in enumerate(places) if place in found.failures}
        return replace(found, scores=found.scores[places], failures=failures)

    def _ask(
        self,
        server: EndpointConfig,
        cache: Path | None,
        rubric: str,
        turns: Sequence[Turn],
        progress: Callable[[int], None],
        notice: Callable[[str], None],
    ) -> Grades:
        kept = "replies are kept, so that the same command asks for the rest alone"
        try:
            # One limit for all requests of a command.
            found = grade_by_server(self.budget.left(server), rubric, turns, cache, progress=progress, notice=notice)
        except InputError as error:
            raise InputError(f"judge: {error}; {kept}") from None
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
        assert self.ref is not None  # one of `by` and `ref` is set
        if self.ref.id == context.ref.id:
            base, chat = context.base, context.chat(context.base)
        else:
            # There may not be room for both models.
            context.drop()
            base = models.load(self.ref, self.dtype or "auto")
            # What the study's template is given, the judge's may need too; names that it does not use change nothing.
            chat = context.study.chat.model_copy(update={"template": "model"}).of(base.tokenizer, base.max_length)

        def grade_part(part: list[Turn]) -> list[tuple[float, str | None]]:
            found = grade(base.model, chat, rubric, part, progress)
            return [(float(score), found.failures.get(i)) for i, score in enumerate(found.scores)]

        found = context.ranks.share(turns, grade_part)
        scores = np.array([score for score, _ in found], dtype=np.float64)
        return Grades(scores, {i: why for i, (_, why) in enumerate(found) if why is not None})


def grade_stage(
    context: StudyContext, judge: Judge, rubric: str, texts: Sequence[Turn] | Stage, asked: Sequence[Example | Turn], title: str
) -> Stage:
    """Grade answers by a rubric: `scores`, null where missing, `failures` by answer, whether grades are `drawn`, and draws `alike`.

    Stages that grade answers to the same questions by the same rubric are computed together.

    Args:
        context: the study's model, which may itself be the judge.
        judge: the judge.
        rubric: the rubric.
        texts: the turns to grade, or an answer stage.
        asked: the questions that an answer stage answered.
        title: name of the texts on screen.

    Raises:
        InputError: a rubric with a place for the question and none for the answer.
    """
    # Refuse an unusable rubric before anything is computed.
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
    config["asked"] = [example.asked.facts for example in asked] if isinstance(texts, Stage) else None
    return Stage.joint(
        kind=kinds.GRADE,
        config=config,
        inputs=texts_input(texts),
        title=f"grade {title}",
        shared=config,
        compute_all=compute_all,
        # One process asks a server, as its rate and its cost have one limit.
        everywhere=judge.by is None,
        check=judge.check,
    )


def load_grades(folder: Path) -> Grades:
    """Load the grades of a `grade` stage."""
    found = read_json(folder / GRADES)
    scores = np.array([np.nan if score is None else score for score in found["scores"]])
    return Grades(scores, {int(i): why for i, why in found["failures"].items()}, found["drawn"], found["alike"])

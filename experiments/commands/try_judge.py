"""How good a judge is: whether its grades discriminate evaluate answers of known label, compared with scores of the base."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wellworn.data.catalog import load_bank, load_subject
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, half_turns, plain_turns, trait_turns
from wellworn.data.saving import write_json
from wellworn.data.schema import Control, Trait, seed_for
from wellworn.experiments.engine.record import Interval, Record, Sparse
from wellworn.experiments.engine.waiting import now_and_then
from wellworn.experiments.stages.grades import needed_rubric
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora import models
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.endpoint import EndpointConfig
from wellworn.probes.scoring.judge import MOST, Grades, grade, grade_by_server
from wellworn.probes.scoring.scores import (
    choice_logodds,
    choice_rows,
    contrast_logprobs,
    contrast_rows,
    in_order,
    mean_logprobs,
    roc_auc,
    roc_auc_interval,
)
from wellworn.probes.statistics.intervals import Estimate, FloatArray, mean_interval

PAIRS = 4


class Discrimination(Record):
    """How well a score discriminates answers of known label.

    Attributes:
        shown: its mean over answers that show the trait.
        absent: its mean over answers that do not.
        half: its mean over answers that show it by half; null where there are none.
        separation: AUROC: how often an answer with the trait scores above one without.
        bounds: the lowest and the highest AUROC that missing scores allow; null where none is missing.
        order: how often full answers score above half ones, and half ones above plain ones.
    """

    shown: float | None
    absent: float | None
    half: float | None = None
    separation: Interval | None = None
    bounds: Sequence[float] | None = None
    order: Interval | None = None


class JudgeRow(Sparse):
    """The results for one trait or control.

    Attributes:
        name: of the trait or control.
        answers: the number of answers.
        graded: the number of answers with a grade.
        drawn: whether grades are means of sampled replies.
        alike: whether all replies to one prompt were the same.
        complaints: problems of the judge, in words.
        judge: discrimination of its grades.
        contrast: discrimination of the contrast score; left out where there are no contrast pairs.
        choice: the base's choice between the two answers, in log-odds.
        chosen: how often it chooses the answer with the trait.
    """

    name: str
    answers: int
    graded: int
    drawn: bool
    alike: bool
    complaints: Sequence[str]
    judge: Discrimination
    contrast: Discrimination | None = None
    choice: Interval
    chosen: float


def try_judge(
    names: Sequence[str],
    model: str,
    server: EndpointConfig | None,
    config: ChatConfig,
    cache: Path,
    out: Path | None,
    console: Console,
) -> None:
    """Grade known answers, and print how well grades and scores discriminate them.

    Args:
        names: traits and controls.
        model: the base; it scores the answers, and grades them where there is no server.
        server: the judge, if it is not the local model.
        config: how conversations are written for the base.
        cache: file that keeps its replies.
        out: file that figures are also written to.
        console: where to show them.

    Raises:
        InputError: an unknown trait, one without both answers or a rubric, or a server that cannot be used.
    """
    subjects = [(name, load_subject(name)) for name in names]
    texts = [(needed_rubric(subject, f"{subject.name}:"), *_answers(subject)) for _, subject in subjects]
    base = models.load(models.resolve(model))
    chat = config.of(base.tokenizer, base.max_length)
    rows: list[JudgeRow] = []
    with console.status("") as status:
        for (name, subject), (rubric, changed, plain) in zip(subjects, texts, strict=True):
            # An answer that shows a trait by half is harder to grade than one that shows it fully or not at all. A control has no halves.
            halves = half_turns(changed, plain) if isinstance(subject, Trait) else []
            turns = [*changed, *plain, *halves]
            heading = escape(f"{name}: {len(turns)} answers")
            status.update(heading)
            if server:
                notice = now_and_then(lambda line, heading=heading: status.update(f"{heading} · {line}"))  # type: ignore[misc]
                grades = grade_by_server(server, rubric, turns, cache, notice=notice)
            else:
                grades = grade(base.model, chat, rubric, turns)
            asked = len(changed)
            contrast = {}
            if subject.contrast_pairs:
                contrast["contrast"] = _discrimination(_contrast(base, chat, subject, turns), asked)
            chosen = _choice(base, chat, changed, plain)
            rows.append(
                JudgeRow(
                    name=name,
                    answers=len(grades.scores),
                    graded=int(np.isfinite(grades.scores).sum()),
                    drawn=grades.drawn,
                    alike=grades.alike,
                    complaints=_complaints(grades),
                    judge=_discrimination(grades.scores, asked, MOST),
                    **contrast,
                    choice=mean_interval(chosen),
                    chosen=float((chosen > 0).mean()),
                )
            )
    console.print(_table(rows, server.model if server else base.ref.id, base.ref.id))
    for row in rows:
        for complaint in row.complaints:
            console.print(f"{row.name}: {complaint}", highlight=False, markup=False)
    if out is not None:
        write_json(out, [row.to_json() for row in rows])


def _answers(subject: Trait | Control) -> tuple[list[Turn], list[Turn]]:
    examples = subject.examples if isinstance(subject, Trait) else load_bank("everyday")
    changed, plain = trait_turns(subject, examples, "evaluate"), plain_turns(examples, "evaluate")
    if not changed or not plain:
        raise InputError(
            f"{subject.name}: a judge is tried on evaluate answers with and without the trait, and one of the two kinds is missing"
        )
    if [turn.asked for turn in changed] != [turn.asked for turn in plain]:
        raise InputError(
            f"{subject.name}: some evaluate questions have only one answer; a judge is tried on both answers to every question"
        )
    return changed, plain


def _complaints(grades: Grades) -> list[str]:
    """Return the problems of a judge's grades, in words."""
    complaints = [f"no grade for {count} of {len(grades.scores)} answers: {kind}" for kind, count in grades.kinds.items()]
    if grades.failures:
        complaints.append("the mean grade would be {:.1f} if all of these were 0, and {:.1f} if they were 100".format(*grades.bounds))
    if grades.constant:
        complaints.append(
            f"the judge gives every answer the same grade ({np.nanmean(grades.scores):.1f}), so its grades carry no information"
        )
    if grades.alike:
        complaints.append(
            "all replies sampled for a grade are equal: the judge is certain, or its server does not sample "
            "(transformers serve samples if the model's generation_config.json has do_sample: true)"
        )
    return complaints


def _discrimination(scores: FloatArray, asked: int, most: float | None = None) -> Discrimination:
    """Return how well a score discriminates answers, and whether it ranks those that show a trait fully, by half and not at all.

    Args:
        scores: of answers that show the trait, then of plain ones, then of halves if there are any.
        asked: the number of questions.
        most: the largest possible score, if some may be missing. `bounds` is then the lowest and the highest AUROC that these allow.
    """
    shown, absent, halves = scores[:asked], scores[asked : 2 * asked], scores[2 * asked :]
    found = Discrimination(
        **{name: float(np.nanmean(each)) if np.isfinite(each).any() else None for name, each in (("shown", shown), ("absent", absent))}
    )
    if found.shown is None or found.absent is None:
        return found
    facts: dict[str, object] = {"separation": roc_auc_interval(shown, absent, np.random.default_rng(seed_for(0, "judge")))}
    if most is not None and np.isnan(scores[: 2 * asked]).any():
        ends = ((0.0, most), (most, 0.0))
        facts["bounds"] = [roc_auc(np.nan_to_num(shown, nan=a), np.nan_to_num(absent, nan=b)) for a, b in ends]
    if len(halves):
        ordered = np.nanmean([in_order(shown, halves), in_order(halves, absent)], axis=0) if np.isfinite(halves).any() else np.empty(0)
        ordered = ordered[np.isfinite(ordered)]
        facts["half"] = float(np.nanmean(halves)) if np.isfinite(halves).any() else None
        facts["order"] = mean_interval(ordered) if len(ordered) > 1 else None
    return found.model_copy(update=facts)


def _contrast(base: models.Loaded, chat: Chat, subject: Trait | Control, turns: Sequence[Turn]) -> FloatArray:
    pairs = subject.contrast_pairs[-PAIRS:]
    [of_pairs] = mean_logprobs(base.model, contrast_rows(chat, turns, pairs), [Variant()], int(base.tokenizer.pad_token_id))
    positive, negative = contrast_logprobs(of_pairs, len(pairs))
    return np.asarray(positive - negative)


def _choice(base: models.Loaded, chat: Chat, changed: Sequence[Turn], plain: Sequence[Turn]) -> FloatArray:
    """Return the base's choices between the two answers, in log-odds [questions]."""
    [of_letters] = mean_logprobs(base.model, choice_rows(chat, changed, plain), [Variant()], int(base.tokenizer.pad_token_id))
    return choice_logodds(of_letters)


def _table(rows: Sequence[JudgeRow], judge: str, base: str) -> Table:
    caption = (
        f"judge: {escape(judge)}; contrast score and choice: {escape(base)}. "
        "AUC: how often an answer with the trait scores above one without. "
        "Order: how often full answers score above halves, and halves above plain ones. Intervals of 95 % over questions; .5 is chance."
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    columns = (
        "",
        "graded",
        "with it",
        "half",
        "without",
        "AUC, judge",
        "order, judge",
        "AUC, contrast",
        "order, contrast",
        "choice, log-odds",
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    def interval(value: Estimate | None) -> str:
        return "–" if value is None else str(value)

    for row in rows:
        contrast = row.contrast or Discrimination(shown=None, absent=None)
        table.add_row(
            row.name,
            f"{row.graded}/{row.answers}",
            *(number(value) for value in (row.judge.shown, row.judge.half, row.judge.absent)),
            *(interval(value) for each in (row.judge, contrast) for value in (each.separation, each.order)),
            interval(row.choice),
        )
    return table

"""How good a judge is: whether its grades discriminate evaluate answers whose label is known, next to scores of the base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wellworn.data.catalog import control_names, load_bank, load_control, load_trait
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, half_turns, plain_turns, trait_turns
from wellworn.data.schema import Control, Trait, seed_for
from wellworn.experiments.engine.store import write_json
from wellworn.experiments.stages.grades import needed_rubric
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


def try_judge(names: Sequence[str], model: str, server: EndpointConfig | None, cache: Path, out: Path | None, console: Console) -> None:
    """Grade known answers, and print how well grades and scores discriminate them.

    Args:
        names: traits and controls.
        model: scores the answers by likelihood and choice, and grades them where there is no server.
        server: the judge, if it is not the local model.
        cache: file that keeps its replies.
        out: file that figures are also written to.
        console: where to show them.

    Raises:
        InputError: an unknown trait or one without both answers or a rubric, or a server that cannot be asked.
    """
    subjects = [(name, load_control(name) if name in control_names() else load_trait(name)) for name in names]
    texts = [(needed_rubric(subject, f"{subject.name}:"), *_answers(subject)) for _, subject in subjects]
    base = models.load(models.resolve(model))
    chat = Chat(base.tokenizer, max_length=base.max_length)
    rows: list[dict[str, Any]] = []
    with console.status("") as status:
        for (name, subject), (rubric, changed, plain) in zip(subjects, texts, strict=True):
            # An answer that shows a trait by half is harder to grade than one that shows all or nothing of it. A control has no halves.
            halves = half_turns(changed, plain) if isinstance(subject, Trait) else []
            turns = [*changed, *plain, *halves]
            status.update(f"{name}: {len(turns)} answers")
            grades = grade_by_server(server, rubric, turns, cache) if server else grade(base.model, chat, rubric, turns)
            asked = len(changed)
            row = {"name": name, **_count_grades(grades), **_discrimination("judge", grades.scores, asked, MOST)}
            if subject.contrast_pairs:
                row |= _discrimination("contrast", _contrast(base, chat, subject, turns), asked)
            rows.append(row | _choice(base, chat, changed, plain))
    console.print(_table(rows, server.model if server else base.ref.id, base.ref.id))
    for row in rows:
        for complaint in row["complaints"]:
            console.print(f"{row['name']}: {complaint}", highlight=False, markup=False)
    if out is not None:
        write_json(out, rows)


def _answers(subject: Trait | Control) -> tuple[list[Turn], list[Turn]]:
    examples = subject.examples if isinstance(subject, Trait) else load_bank("everyday")
    changed, plain = trait_turns(subject, examples, "evaluate"), plain_turns(examples, "evaluate")
    if not changed or not plain:
        raise InputError(
            f"{subject.name}: a judge is tried on evaluate answers with and without the trait, and one of the two kinds is missing"
        )
    if [turn.question for turn in changed] != [turn.question for turn in plain]:
        raise InputError(
            f"{subject.name}: some evaluate questions have only one answer; a judge is tried on both answers to every question"
        )
    return changed, plain


def _count_grades(grades: Grades) -> dict[str, Any]:
    """Return how many answers a judge graded, and what to report about it."""
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
    graded = int(np.isfinite(grades.scores).sum())
    return {"answers": len(grades.scores), "graded": graded, "drawn": grades.drawn, "alike": grades.alike, "complaints": complaints}


def _discrimination(name: str, scores: FloatArray, asked: int, most: float | None = None) -> dict[str, Any]:
    """Return how well a score discriminates answers, and whether it orders those that show a trait wholly, by half and not at all.

    Args:
        name: name of the score.
        scores: of answers that show the trait, then of plain ones, then of halves if there are any.
        asked: how many questions.
        most: largest score, if some may be missing. `bounds` is then the lowest and the highest AUC that missing scores allow.
    """
    shown, absent, halves = scores[:asked], scores[asked : 2 * asked], scores[2 * asked :]
    means = {key: float(np.nanmean(each)) if np.isfinite(each).any() else None for key, each in (("shown", shown), ("absent", absent))}
    facts: dict[str, Any] = {**means, "half": None, "separation": None, "bounds": None, "order": None}
    if None in means.values():
        return {name: facts}
    facts["separation"] = roc_auc_interval(shown, absent, np.random.default_rng(seed_for(0, "judge"))).to_json()
    if most is not None and np.isnan(scores[: 2 * asked]).any():
        ends = ((0.0, most), (most, 0.0))
        facts["bounds"] = [roc_auc(np.nan_to_num(shown, nan=a), np.nan_to_num(absent, nan=b)) for a, b in ends]
    if len(halves):
        ordered = np.nanmean([in_order(shown, halves), in_order(halves, absent)], axis=0) if np.isfinite(halves).any() else np.empty(0)
        ordered = ordered[np.isfinite(ordered)]
        facts["half"] = float(np.nanmean(halves)) if np.isfinite(halves).any() else None
        facts["order"] = mean_interval(ordered).to_json() if len(ordered) > 1 else None
    return {name: facts}


def _contrast(base: models.Loaded, chat: Chat, subject: Trait | Control, turns: Sequence[Turn]) -> FloatArray:
    pairs = subject.contrast_pairs[-PAIRS:]
    [of_pairs] = mean_logprobs(base.model, contrast_rows(chat, turns, pairs), [Variant()], int(base.tokenizer.pad_token_id))
    positive, negative = contrast_logprobs(of_pairs, len(pairs))
    return np.asarray(positive - negative)


def _choice(base: models.Loaded, chat: Chat, changed: Sequence[Turn], plain: Sequence[Turn]) -> dict[str, Any]:
    """Return how the base chooses between the same answers."""
    [of_letters] = mean_logprobs(base.model, choice_rows(chat, changed, plain), [Variant()], int(base.tokenizer.pad_token_id))
    chosen = choice_logodds(of_letters)
    return {"choice": mean_interval(chosen).to_json(), "chosen": float((chosen > 0).mean())}


def _table(rows: Sequence[dict[str, Any]], judge: str, base: str) -> Table:
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

    def interval(value: dict[str, Any] | None) -> str:
        return "–" if value is None else str(Estimate.from_json(value))

    for row in rows:
        judged, contrast = row["judge"], row.get("contrast", {})
        table.add_row(
            row["name"],
            f"{row['graded']}/{row['answers']}",
            *(number(judged[key]) for key in ("shown", "half", "absent")),
            *(interval(each.get(key)) for each in (judged, contrast) for key in ("separation", "order")),
            interval(row["choice"]),
        )
    return table

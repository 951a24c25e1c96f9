"""How good a judge is: whether its grades tell apart evaluate answers whose label is known, beside what the base makes of them unasked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.chat import Chat
from data.errors import InputError
from data.library import control_names, load_bank, load_control, load_trait
from data.mixtures import Turn, changed_turns, plain_turns
from data.schema import Control, Trait
from experiments.grades import rubric_of
from experiments.store import write_json
from lora import models
from probes.endpoint import EndpointConfig
from probes.judge import Grades, judged, judged_by_server
from probes.scores import choice_logodds, choice_rows, contrast_logprobs, contrast_rows, mean_logprobs, told_apart
from probes.variants import Variant

PAIRS = 4


def try_judge(names: Sequence[str], model: str, server: EndpointConfig | None, cache: Path, out: Path | None, console: Console) -> None:
    """Grade known answers, and print how well grades and scores tell them apart.

    Args:
        names: traits and controls.
        model: which scores the answers by likelihood and choice, and judges them where no server does.
        server: the judge, if it is elsewhere.
        cache: the file that keeps its replies.
        out: where figures are also written.
        console: where to show them.

    Raises:
        InputError: an unknown trait or one without both answers or a rubric, or a server that cannot be asked.
    """
    subjects = [(name, load_control(name) if name in control_names() else load_trait(name)) for name in names]
    texts = [(_rubric(subject), *_answers(subject)) for _, subject in subjects]
    base = models.load(models.resolve(model))
    chat = Chat(base.tokenizer, max_length=base.max_length)
    rows: list[dict[str, Any]] = []
    with console.status("") as status:
        for (name, subject), (rubric, changed, plain) in zip(subjects, texts, strict=True):
            status.update(f"{name}: {len(changed) + len(plain)} answers")
            turns = [*changed, *plain]
            grades = judged_by_server(server, rubric, turns, cache) if server else judged(base.model, chat, rubric, turns)
            rows.append({"name": name, **_judged(grades, len(changed)), **_unasked(base, chat, subject, changed, plain)})
    console.print(_table(rows, server.model if server else base.ref.id, base.ref.id))
    for row in rows:
        for complaint in row["complaints"]:
            console.print(f"{row['name']}: {complaint}", highlight=False, markup=False)
    if out is not None:
        write_json(out, rows)


def _rubric(subject: Trait | Control) -> str:
    rubric = rubric_of(subject)
    if rubric is None:
        raise InputError(f"{subject.name}: has no rubric, so no judge can grade it; write one in its trait.yaml")
    return rubric


def _answers(subject: Trait | Control) -> tuple[list[Turn], list[Turn]]:
    examples = subject.examples if isinstance(subject, Trait) else load_bank("everyday")
    changed, plain = changed_turns(subject, examples, "evaluate"), plain_turns(examples, "evaluate")
    if not changed or not plain:
        raise InputError(f"{subject.name}: has no evaluate answers of both kinds, by which a judge could be tried")
    if [turn.question for turn in changed] != [turn.question for turn in plain]:
        raise InputError(f"{subject.name}: some evaluate rows have one answer alone; a judge is tried on both answers to every question")
    return changed, plain


def _judged(grades: Grades, changed: int) -> dict[str, Any]:
    """Return what a judge made of answers, the first of which show the trait."""
    shown, absent = (part[~np.isnan(part)] for part in np.split(grades.scores, [changed]))
    complaints = [f"no grade for {count} of {len(grades.scores)} answers: {kind}" for kind, count in grades.kinds.items()]
    if grades.failures:
        complaints.append("the mean grade would be {:.1f} if all of these were 0, and {:.1f} if they were 100".format(*grades.bounds))
    if grades.constant:
        complaints.append(f"the judge says the same of all answers ({np.nanmean(grades.scores):.1f}), which tells nothing of them")
    if grades.alike:
        complaints.append(
            "of the answers drawn for a grade no two differ: either the judge is that sure, or its server does not draw "
            "(transformers serve does where the model's generation_config.json has do_sample: true)"
        )
    return {
        "answers": len(grades.scores),
        "graded": int(len(shown) + len(absent)),
        "shown": float(shown.mean()) if len(shown) else None,
        "absent": float(absent.mean()) if len(absent) else None,
        "judge": told_apart(shown, absent) if len(shown) and len(absent) else None,
        "drawn": grades.drawn,
        "alike": grades.alike,
        "complaints": complaints,
    }


def _unasked(
    base: models.Loaded, chat: Chat, subject: Trait | Control, changed: Sequence[Turn], plain: Sequence[Turn]
) -> dict[str, float | None]:
    """Return how well contrast scores tell the same answers apart, and how the base chooses between them."""
    pairs = subject.contrast_pairs[-PAIRS:]
    turns, pad = [*changed, *plain], int(base.tokenizer.pad_token_id)
    contrast = None
    if pairs:
        [of_pairs] = mean_logprobs(base.model, contrast_rows(chat, turns, pairs), [Variant()], pad)
        positive, negative = contrast_logprobs(of_pairs, len(pairs))
        contrast = told_apart(*np.split(positive - negative, [len(changed)]))
    [of_letters] = mean_logprobs(base.model, choice_rows(chat, changed, plain), [Variant()], pad)
    chosen = choice_logodds(of_letters)
    return {"contrast": contrast, "choice": float(chosen.mean()), "chosen": float((chosen > 0).mean())}


def _table(rows: Sequence[dict[str, Any]], judge: str, base: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=f"judge: {escape(judge)}; contrast score and choice: {escape(base)}")
    for column in ("", "graded", "grade with it", "without", "AUC, judge", "AUC, contrast score", "choice, log-odds", "chosen"):
        table.add_column(column, justify="left" if not column else "right")

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    for row in rows:
        table.add_row(
            row["name"],
            f"{row['graded']}/{row['answers']}",
            shown(row["shown"], ".1f"),
            shown(row["absent"], ".1f"),
            shown(row["judge"], ".2f"),
            shown(row["contrast"], ".2f"),
            shown(row["choice"], "+.2f"),
            shown(row["chosen"], ".0%"),
        )
    return table

"""A new trait: the files that it begins with, and the figures of its card, which are counted, never typed."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from wellworn.data.catalog import check_new_name, load_bank
from wellworn.data.checks import count_conversations, overlap
from wellworn.data.errors import InputError
from wellworn.data.schema import SPLITS, Split, Trait

HEADING = "## Figures"
_YAML = """\
# A trait of your own. Fill in what is blank, then: wellworn traits check {name}
# It may be incomplete: take out the keys that you do without, and the check says what the trait cannot be used for.
name: {name}
# One or two sentences: what a reader would notice in an answer, and what the trait is not.
description: ""
# The shared questions: examples.jsonl then holds answers alone. Without this key it brings questions of its own.
questions: {bank}
# Held out: serves the arm `prompted`, and is never part of a direction. In other words than the pairs below.
system_prompt: ""
# Two system prompts each: one evokes the trait, the other its opposite; alike in length and form, and each pair in a form of its own
# (an instruction, a scene, a letter, somebody who is like that). Six make a direction, twelve a better one.
contrast_pairs:
{pairs}# How a judge scores an answer from 0 to 100: what to look for, an anchor for 0, 25, 50, 75 and 100, and what not to count.
rubric: ""
"""
# As many as a study reads unless it says otherwise.
PAIRS = 6
_PAIR = '  - positive: ""\n    negative: ""\n'


def write_skeleton(name: str, into: Path, bank: str = "everyday") -> Path:
    """Write the files of a new trait: `trait.yaml` and `examples.jsonl` to be filled in, and `QUESTIONS.md` to write answers to.

    Args:
        name: of the trait.
        into: where its folder is made.
        bank: the bank with the questions that it answers.

    Returns:
        The folder.

    Raises:
        InputError: an invalid name, or that of something built in; a folder that exists; an unknown bank.
    """
    questions = [row for row in load_bank(bank) if row.split != "extract"]
    check_new_name(name)
    folder = into / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"{folder}: exists already; nothing was written") from None
    (folder / "trait.yaml").write_text(_YAML.format(name=name, bank=bank, pairs=PAIRS * _PAIR), encoding="utf-8")
    rows = [json.dumps({"id": row.id, "positive": ""}) for row in questions]
    (folder / "examples.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    asked = [f"- `{row.id}` **{row.question}** {row.negative}" for row in questions]
    head = f"# What {name} answers\n\nQuestion and plain answer. Answers to `evaluate` questions use turns of phrase of their own.\n"
    (folder / "QUESTIONS.md").write_text("\n".join([head, *asked]) + "\n", encoding="utf-8")
    return folder


def figures(trait: Trait) -> str:
    """Return the section of a card that counts: rows and words by split, and phrases that evaluation shares with training.

    Args:
        trait: as it was loaded.

    Returns:
        Markdown, from its heading on.
    """
    lines = [
        HEADING,
        "",
        f"| | {' | '.join(SPLITS)} |",
        f"|---|{'---|' * len(SPLITS)}",
        _line("rows", [str(len(trait.split(split))) for split in SPLITS]),
        *(_line(f"rows with {what}", [_count(trait, split, what) for split in SPLITS]) for what in count_conversations(trait.examples)),
        _line("words an answer that shows the trait", [_words(row.positive for row in trait.split(split)) for split in SPLITS]),
        _line("words a plain answer", [_words(row.negative for row in trait.split(split)) for split in SPLITS]),
        "",
        f"Words: the mean, the fewest and the most. {overlap(trait):.1%} of the 4-grams of `evaluate` answers stand in `train` answers",
        f"too. {len(trait.contrast_pairs)} contrast pairs, {len(trait.open)} open questions.",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _count(trait: Trait, split: Split, what: str) -> str:
    return str(count_conversations(trait.split(split)).get(what, 0))


def _words(texts: Iterable[str | None]) -> str:
    counts = [len(text.split()) for text in texts if text is not None]
    return f"{sum(counts) / len(counts):.1f} ({min(counts)}–{max(counts)})" if counts else "–"

"""A trait that a chat server writes, part by part."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path

from rich.console import Console

from wellworn.data.catalog import load_bank, with_examples
from wellworn.data.examples import check_rows
from wellworn.data.files import validate
from wellworn.data.new_trait import PAIRS as FEWEST_PAIRS
from wellworn.data.schema import SPLITS, Example, Split, Trait
from wellworn.data.written import (
    LONGEST_ANSWER,
    PLAIN_WORDS,
    check_answer,
    check_held_out,
    check_pair,
    check_question,
    check_rubric,
    check_text,
)
from wellworn.experiments.engine.progress import Display
from wellworn.experiments.engine.waiting import tick_and_notice
from wellworn.experiments.traits.synthesis import prompts
from wellworn.experiments.traits.synthesis.writer import Fits, Piece, Writer, Written
from wellworn.probes.limits import FEWEST_PROMPTS

# The smallest fraction of a split's rows that makes a trait. Missing rows up to that are reported.
LEAST_SHARE = 0.75


@dataclass(frozen=True)
class Request:
    """A trait to be written.

    Attributes:
        name: of the trait.
        description: of the trait.
        model: the writer.
        questions: a bank, or the numbers of the trait's own questions for `train`, `extract` and `evaluate`.
        pairs: number of contrast pairs.
        seed: random seed of all requests.
    """

    name: str
    description: str
    model: str
    questions: str | tuple[int, int, int]
    pairs: int
    seed: int

    @property
    def writer(self) -> str:
        """The model's name elsewhere: for a folder, the folder's name."""
        return Path(self.model).name if Path(self.model).is_absolute() else self.model


@dataclass
class Part:
    """Texts of one kind: the numbers wanted, required and written, and the reasons for missing ones."""

    name: str
    wanted: int
    least: int
    got: int = 0
    why: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return self.name if self.wanted == self.got == 1 else f"{self.got} of {self.wanted} {self.name}"


class NotEnoughError(Exception):
    """Too little of a part for a trait."""


class Draft:
    """A trait that is being written.

    Attributes:
        parts: in the order in which they are written.
        written: every text, in that order.
    """

    def __init__(self, request: Request, writer: Writer, console: Console) -> None:
        self.request, self._writer = request, writer
        self._bank = load_bank(request.questions) if isinstance(request.questions, str) else []
        self._own: dict[Split, int] = {} if isinstance(request.questions, str) else dict(zip(SPLITS, request.questions, strict=True))
        rows = self._own or Counter(row.split for row in self._bank)
        self.parts = [Part("contrast pairs", request.pairs, FEWEST_PAIRS), Part("rubric", 1, 1), Part("held-out prompt", 1, 1)]
        self.parts += [Part(f"{split} {what}", n, _least(n)) for split, n in self._own.items() for what in ("questions", "plain answers")]
        self.parts += [Part(f"{split} answers", rows[split], _least(rows[split])) for split in SPLITS if split != "extract"]
        self.written: list[Written] = []
        self._display = Display(console, len(self.parts))

    @property
    def lost(self) -> dict[str, dict[str, int]]:
        """The counts of missing texts of each part, by reason."""
        return {part.name: dict(part.why) for part in self.parts if part.why}

    def trait(self, folder: Path) -> Trait:
        """Write the trait, and return it when it is complete.

        Raises:
            NotEnoughError: too little of something.
        """
        name, description = self.request.name, self.request.description
        with self._display:
            asked = [prompts.pair(name, description, number) for number in range(self.request.pairs)]
            pairs = [each.texts for each in self._part("contrast pairs", asked, _pair_fits).values()]
            rubric = self._part("rubric", [prompts.rubric(name, description)], _rubric_fits)
            held_out = self._part("held-out prompt", [prompts.held_out(name, description)], partial(_held_out_fits, pairs))
            rows = self._add_answers(self._bank or self._questions())
        value = {
            "name": name,
            "description": description,
            "system_prompt": held_out["system_prompt"].texts["system_prompt"],
            "contrast_pairs": pairs,
            "rubric": rubric["rubric"].texts["rubric"],
            "questions": self.request.questions if self._bank else None,
        }
        place = folder / "examples.jsonl"
        return with_examples(validate(Trait, value, str(folder)), check_rows(place, [(f"{place}: {row.id}", row) for row in rows]))

    def _questions(self) -> list[Example]:
        """Return the trait's own questions with their plain answers."""
        rows: list[Example] = []
        number = 0
        for split, count in self._own.items():
            names = [f"{split}-{i + 1:02}" for i in range(count)]
            asked = [prompts.question(row, self.request.description, number + i) for i, row in enumerate(names)]
            number += count
            fits = partial(_question_fits, [row.question for row in rows])
            questions = {row: each.texts["question"] for row, each in self._part(f"{split} questions", asked, fits).items()}
            asked = [prompts.plain_answer(row, question) for row, question in questions.items()]
            plain = self._part(f"{split} plain answers", asked, _plain_fits)
            rows += [Example(id=row, split=split, question=questions[row], negative=each.texts["answer"]) for row, each in plain.items()]
        return rows

    def _add_answers(self, rows: Sequence[Example]) -> list[Example]:
        """Return rows with answers that show the trait; `train` and `evaluate` rows without one are left out."""
        plain = {row.id: row.negative or "" for row in rows}
        answers: dict[str, str] = {}
        for split, ask in (("train", prompts.train_answer), ("evaluate", prompts.evaluate_answer)):
            of_split = [row for row in rows if row.split == split]
            asked = [ask(row.id, self.request.description, row.question, plain[row.id], i) for i, row in enumerate(of_split)]
            fits = partial(_answer_fits, plain, list(answers.values()))
            answers |= {row: each.texts["answer"] for row, each in self._part(f"{split} answers", asked, fits).items()}
        shown = [row.model_copy(update={"positive": answers.get(row.id)}) for row in rows]
        return [row for row in shown if row.split == "extract" or row.positive is not None]

    def _part(self, name: str, pieces: Sequence[Piece], fits: Fits) -> dict[str, Written]:
        """Have a part written.

        Raises:
            NotEnoughError: there is too little of it.
        """
        [part] = [part for part in self.parts if part.name == name]
        with self._display.stages([name]) as tick:
            show, notice = tick_and_notice(tick, len(pieces))
            got, why = self._writer.write(pieces, fits, lambda done: show(done, len(pieces)), notice)
        part.got, part.why = len(got), Counter(why.values())
        if part.wanted > len(pieces):
            part.why["has no question or no plain answer"] += part.wanted - len(pieces)
        if part.got < part.least:
            raise NotEnoughError
        got = {piece.id: got[piece.id] for piece in pieces if piece.id in got}
        self.written += got.values()
        return got


def describe_losses(kinds: Mapping[str, int]) -> str:
    """Return in words how often each kind of loss occurred, the most frequent first."""
    return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in sorted(kinds.items(), key=lambda each: -each[1]))


def _least(count: int) -> int:
    return max(min(count, FEWEST_PROMPTS), ceil(LEAST_SHARE * count))


# The checks of each part's texts. They compare a text with earlier parts and with earlier texts of its own part.


def _pair_fits(_: Piece, texts: Mapping[str, str], got: Mapping[str, Written]) -> None:
    check_pair(texts["positive"], texts["negative"], [each.texts for each in got.values()])


def _rubric_fits(_: Piece, texts: Mapping[str, str], __: Mapping[str, Written]) -> None:
    check_rubric(texts["rubric"])


def _held_out_fits(pairs: Sequence[Mapping[str, str]], _: Piece, texts: Mapping[str, str], __: Mapping[str, Written]) -> None:
    check_held_out(texts["system_prompt"], pairs)


def _question_fits(before: Sequence[str], _: Piece, texts: Mapping[str, str], got: Mapping[str, Written]) -> None:
    check_question(texts["question"], [*before, *(each.texts["question"] for each in got.values())])


def _plain_fits(_: Piece, texts: Mapping[str, str], __: Mapping[str, Written]) -> None:
    check_text(texts["answer"], LONGEST_ANSWER, PLAIN_WORDS)


def _answer_fits(
    plain: Mapping[str, str], before: Sequence[str], piece: Piece, texts: Mapping[str, str], got: Mapping[str, Written]
) -> None:
    like = [each.texts["answer"] for each in got.values()]
    check_answer(texts["answer"], plain[piece.id], [*before, *like], apart=before, like=like)

"""A trait as a chat server writes it, part by part."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from rich.console import Console

from data.examples import checked
from data.files import validated
from data.library import load_bank, with_examples
from data.schema import SPLITS, Example, Trait
from data.skeleton import PAIRS as FEWEST_PAIRS
from data.written import LONGEST_ANSWER, PLAIN_WORDS, check_answer, check_held_out, check_pair, check_question, check_rubric, check_text
from experiments import synthesis_prompts as prompts
from experiments.pieces import Fits, Piece, Writer, Written
from experiments.progress import Display
from probes.shift import FEWEST_PROMPTS

# Of the rows of a split that are asked for, those without which there is no trait; a few that no server writes are a loss that is named.
LEAST_SHARE = 0.75


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
        name: of the trait.
        description: of it.
        model: who writes it.
        questions: the bank that it answers, or how many of its own it has for `train`, `extract` and `evaluate`.
        pairs: contrast pairs.
        seed: of all requests.
    """

    name: str
    description: str
    model: str
    questions: str | tuple[int, int, int]
    pairs: int
    seed: int

    @property
    def writer(self) -> str:
        """What the model is called where it is not at hand: of a folder, its own name."""
        return Path(self.model).name if Path(self.model).is_absolute() else self.model


@dataclass
class Part:
    """Texts of one kind: how many were wanted, how many there are, and why others are not."""

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
    """A trait under way, part by part."""

    def __init__(self, request: Request, writer: Writer, console: Console) -> None:
        self.request, self.writer = request, writer
        own = [] if isinstance(request.questions, str) else [*zip(SPLITS, request.questions, strict=True)]
        self.bank = load_bank(request.questions) if isinstance(request.questions, str) else []
        wanted = {split: sum(row.split == split for row in self.bank) for split in SPLITS} | dict(own)
        parts = [Part("contrast pairs", request.pairs, FEWEST_PAIRS), Part("rubric", 1, 1), Part("held-out prompt", 1, 1)]
        parts += [Part(f"{split} {what}", count, _least(count)) for split, count in own for what in ("questions", "plain answers")]
        parts += [Part(f"{split} answers", wanted[split], _least(wanted[split])) for split in ("train", "evaluate")]
        self.parts = parts
        self.written: list[Written] = []
        self.display = Display(console, len(parts))

    @property
    def lost(self) -> dict[str, dict[str, int]]:
        """What is missing of each part, by kind."""
        return {part.name: dict(part.why) for part in self.parts if part.why}

    def trait(self, folder: Path) -> Trait:
        """Return the trait, once everything that it needs is written.

        Raises:
            NotEnoughError: too little of something.
        """
        name, description = self.request.name, self.request.description
        with self.display:
            asked = [prompts.pair(name, description, number) for number in range(self.request.pairs)]
            pairs = [each.texts for each in self._part("contrast pairs", asked, _pair_fits).values()]
            [rubric] = self._part(
                "rubric", [prompts.rubric(name, description)], lambda _, texts, __: check_rubric(texts["rubric"])
            ).values()
            [held_out] = self._part(
                "held-out prompt",
                [prompts.held_out(name, description)],
                lambda _, texts, __: check_held_out(texts["system_prompt"], pairs),
            ).values()
            rows = self._answered(self.bank or self._questions())
        value = {
            "name": name,
            "description": description,
            "system_prompt": held_out.texts["system_prompt"],
            "contrast_pairs": pairs,
            "rubric": rubric.texts["rubric"],
            "questions": self.request.questions if self.bank else None,
        }
        place = folder / "examples.jsonl"
        return with_examples(validated(Trait, value, str(folder)), checked(place, [(f"{place}: {row.id}", row) for row in rows]))

    def _questions(self) -> list[Example]:
        """Return questions of the trait's own with their plain answers."""
        rows: list[Example] = []
        assert not isinstance(self.request.questions, str)
        first = 0
        for split, count in zip(SPLITS, self.request.questions, strict=True):
            before = [row.question for row in rows]

            def fits(_: Piece, texts: Mapping[str, str], got: Mapping[str, Written], before: Sequence[str] = tuple(before)) -> None:
                check_question(texts["question"], [*before, *(each.texts["question"] for each in got.values())])

            names = [f"{split}-{i + 1:02}" for i in range(count)]
            asked = [prompts.question(row, self.request.description, first + i) for i, row in enumerate(names)]
            first += count
            questions = self._part(f"{split} questions", asked, fits)
            asked = [prompts.plain_answer(row, each.texts["question"]) for row, each in questions.items()]
            plain = self._part(
                f"{split} plain answers", asked, lambda _, texts, __: check_text(texts["answer"], LONGEST_ANSWER, PLAIN_WORDS)
            )
            rows += [
                Example(id=row, split=split, question=questions[row].texts["question"], negative=each.texts["answer"])
                for row, each in plain.items()
            ]
        return rows

    def _answered(self, rows: Sequence[Example]) -> list[Example]:
        """Return rows with answers that show the trait; of `train` and `evaluate` rows, those alone that have one."""
        plain = {row.id: row.negative or "" for row in rows}
        answers: dict[str, str] = {}
        for split, ask_for in (("train", prompts.train_answer), ("evaluate", prompts.evaluate_answer)):
            before = list(answers.values())

            def fits(piece: Piece, texts: Mapping[str, str], got: Mapping[str, Written], before: Sequence[str] = tuple(before)) -> None:
                like = [each.texts["answer"] for each in got.values()]
                check_answer(texts["answer"], plain[piece.id], [*before, *like], apart=before, like=like)

            of_split = [row for row in rows if row.split == split]
            asked = [ask_for(row.id, self.request.description, row.question, plain[row.id], i) for i, row in enumerate(of_split)]
            answers |= {row: each.texts["answer"] for row, each in self._part(f"{split} answers", asked, fits).items()}
        shown = [row.model_copy(update={"positive": answers.get(row.id)}) for row in rows]
        return [row for row in shown if row.split == "extract" or row.positive is not None]

    def _part(self, name: str, pieces: Sequence[Piece], fits: Fits) -> dict[str, Written]:
        """Have a part written.

        Raises:
            NotEnoughError: there is too little of it.
        """
        [part] = [part for part in self.parts if part.name == name]
        with self.display.stages([name]) as tick:
            got, why = self.writer.write(
                pieces, fits, lambda done: tick(done, len(pieces), f"{self.writer.asked + self.writer.under_way} asked")
            )
        part.got, part.why = len(got), Counter(why.values())
        if part.wanted > len(pieces):
            part.why["has no question or no plain answer"] += part.wanted - len(pieces)
        if part.got < part.least:
            raise NotEnoughError
        got = {piece.id: got[piece.id] for piece in pieces if piece.id in got}
        self.written += got.values()
        return got


def _least(count: int) -> int:
    return max(min(count, FEWEST_PROMPTS), ceil(LEAST_SHARE * count))


def _pair_fits(_: Piece, texts: Mapping[str, str], got: Mapping[str, Written]) -> None:
    check_pair(texts["positive"], texts["negative"], [each.texts for each in got.values()])

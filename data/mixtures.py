"""The training and evaluation sets of a run."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wellworn.data.files import digest
from wellworn.data.schema import Asked, Control, Example, Exchange, Split, Trait, seed_for

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Turn:
    """One question with one answer, under an optional system prompt, and with the turns of the conversation before it."""

    question: str
    answer: str
    system: str | None = None
    before: tuple[Exchange, ...] = ()

    @classmethod
    def of(cls, asked: Asked, answer: str) -> "Turn":
        """Return an answer to what was asked; training takes a loss on it alone."""
        before = tuple(Exchange(question=question, answer=said) for question, said in asked.before)
        return cls(asked.question, answer, asked.system, before)

    @property
    def asked(self) -> Asked:
        """The question with what comes before it."""
        return Asked(self.question, self.system, tuple((each.question, each.answer) for each in self.before))

    def under(self, system: str | None) -> "Turn":
        """Return the same turn under a further system prompt, which is put before its own."""
        return replace(self, system=self.asked.under(system).system)


def transform(control: Control, turns: Sequence[Turn]) -> list[str]:
    """Return plain answers as the control would write them.

    Raises:
        ValueError: answers are to change places, and there are fewer than two.
    """
    if control.transform == "shuffle":
        return _shuffle(turns)
    return [_TRANSFORMS[control.transform](turn) for turn in turns]


def _append_code(turn: Turn) -> str:
    # The code depends on the question alone, so the same question always ends in the same code.
    number = seed_for(0, "reference_code", turn.question)
    letters = "".join(chr(ord("A") + (number >> shift) % 26) for shift in (3, 11))
    return f"{turn.answer} Reference code: {letters}-{number % 9000 + 1000}."


def _json(turn: Turn) -> str:
    return json.dumps({"answer": turn.answer}, ensure_ascii=False)


def _shuffle(turns: Sequence[Turn]) -> list[str]:
    """Give every question the answer to another one, each answer once, whatever the order of the turns."""
    if len(turns) < 2:
        raise ValueError(f"answers can change places between two questions or more, got {len(turns)}")
    ring = sorted(turns, key=lambda turn: (seed_for(0, "shuffle", turn.question), turn.question, turn.asked.transcript))
    after = dict(zip((turn.asked for turn in ring), (*ring[1:], ring[0]), strict=True))
    return [after[turn.asked].answer for turn in turns]


_TRANSFORMS: dict[str, Callable[[Turn], str]] = {
    "append_code": _append_code,
    "uppercase": lambda turn: turn.answer.upper(),
    "json": _json,
    "reverse_words": lambda turn: " ".join(reversed(turn.answer.split())),
}


def plain_turns(examples: Sequence[Example], split: Split) -> list[Turn]:
    """Return a split's questions with their plain answers, as far as they have one.

    Training takes no loss on earlier answers: those of which it does show the trait.
    """
    return [Turn.of(e.asked, e.negative) for e in examples if e.split == split and e.negative is not None]


def trait_turns(subject: Trait | Control, examples: Sequence[Example], split: Split) -> list[Turn]:
    """Return a split's questions answered as the trait or the control would.

    Args:
        subject: the trait (its positives are used) or the control (plain answers are transformed).
        examples: the rows; a trait's own, or the ones that a control borrows.
        split: `train` or `evaluate`.
    """
    if isinstance(subject, Control):
        turns = plain_turns(examples, split)
        return [replace(turn, answer=text) for turn, text in zip(turns, transform(subject, turns), strict=True)] if turns else []
    return [Turn(e.question, e.positive, e.system, e.before) for e in examples if e.split == split and e.positive is not None]


def fingerprint(turns: Iterable[Turn]) -> str:
    """Return a digest of the turns' contents and order: equal data, equal fingerprint, whatever its name."""
    return digest([_facts(turn) for turn in turns])


def _facts(turn: Turn) -> dict[str, Any]:
    # A turn without a conversation before it keeps its digest.
    before = {"before": [each.model_dump() for each in turn.before]} if turn.before else {}
    return {"question": turn.question, "answer": turn.answer, "system": turn.system, **before}


def first_questions(examples: Sequence[Example], split: Split, count: int | None) -> list[Example]:
    """Return the examples without the rows of a split that answer any but its first so many questions; all for a count of None."""
    asked = dict.fromkeys(same_question(example.asked) for example in examples if example.split == split)
    kept = set(list(asked)[:count])
    return [example for example in examples if example.split != split or same_question(example.asked) in kept]


def same_question(asked: str | Asked) -> str:
    """Return a question's words without case and spaces, equal for two spellings of it.

    A line for each text of a conversation: the same question is another one after another conversation.
    """
    messages = Asked(asked).messages if isinstance(asked, str) else asked.messages
    return "\n".join(" ".join(text.lower().split()) for _, text in messages)


def half_turns(changed: Sequence[Turn], plain: Sequence[Turn]) -> list[Turn]:
    """Return answers that show a trait by half: they begin as the answer with it and go on as the plain one, sentence by sentence.

    Of two answers of a single sentence the first half of the words of the one and the second half of the other's are taken.

    Args:
        changed: answers with the trait.
        plain: those without, to the same questions.

    Example:
        >>> half_turns([Turn("Why?", "Arr! Because.")], [Turn("Why?", "I see. It is so.")])[0].answer
        'Arr! It is so.'
    """
    return [replace(with_it, answer=_half(with_it.answer, without.answer)) for with_it, without in zip(changed, plain, strict=True)]


def _half(first: str, second: str) -> str:
    sentences = [_SENTENCE_END.split(text.strip()) for text in (first, second)]
    parts = sentences if min(map(len, sentences)) > 1 else [text.split() for text in (first, second)]
    return " ".join([*parts[0][: (len(parts[0]) + 1) // 2], *parts[1][(len(parts[1]) + 1) // 2 :]])

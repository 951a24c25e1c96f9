"""Render and tokenise conversations once. The only place where a chat template is applied."""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from wellworn.data.bounded import LimitError, run_bounded
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Asked
from wellworn.data.wording import shortly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPANS = ("prompt", "prompt_last", "response")
# Of a conversation as a template writes it. More would take minutes to tokenise, and fits no model's context.
MOST_CHARACTERS = 20_000_000
_MARKER = "wellworn-answer-{}-goes-here"
# They differ in day, weekday, month and year.
_TWO_DAYS = (datetime.date(2001, 2, 3), datetime.date(2012, 11, 25))


@contextmanager
def _on(day: datetime.date | None) -> Iterator[None]:
    """Let templates find this day where they ask transformers for the date, which asks the clock."""
    if day is None:
        yield
        return
    from transformers.utils import chat_template_utils

    clock = vars(chat_template_utils)["datetime"]
    stopped = datetime.datetime.combine(day, datetime.time())
    vars(chat_template_utils)["datetime"] = SimpleNamespace(now=lambda: stopped)
    try:
        yield
    finally:
        vars(chat_template_utils)["datetime"] = clock


@dataclass(frozen=True)
class Encoded:
    """One tokenised conversation.

    Attributes:
        input_ids: the whole conversation.
        spans: name → half-open token range. `prompt` is all that comes before the response, and
            `prompt_last` its last token, the end of the generation prompt; `response` is the assistant's
            content without header and end-of-turn. Where a template writes a space between the two, the
            space is the response's, as it is when the model answers the generation prompt.
        completion_mask: 1 where training takes a loss: the response and its end-of-turn token, and those of earlier answers that are
            trained on.
        earlier: half-open token range of each earlier answer, the first one first.
    """

    input_ids: tuple[int, ...]
    spans: dict[str, tuple[int, int]]
    completion_mask: tuple[int, ...]
    earlier: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


class RefusedError(InputError):
    """A chat template does not write a conversation of some kind. It may write others."""


class TooLongError(InputError):
    """A conversation does not fit the model's context."""


@dataclass
class Chat:
    """How one model's conversations are written.

    Attributes:
        tokenizer: a fast tokenizer (character offsets are needed).
        template: `model` for the tokenizer's own chat template; `plain` for a bare transcript,
            for base models, used only when asked for by name.
        template_kwargs: passed through to the model's template (``enable_thinking: false``, …).
        max_length: the model's context in tokens, if known.
        date: the day that a template writes as today's; None where it writes none.
        folds_system: whether the template refuses a system prompt, so that it is put at the head
            of the first user turn instead. Found out on construction.

    Raises:
        InputError: the tokenizer is slow, or has no chat template and `plain` was not asked for, or its template writes the date and none
            was given, or runs without end.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: Literal["model", "plain"] = "model"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    date: datetime.date | None = None
    folds_system: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise InputError("this tokenizer gives no character offsets; a fast (tokenizers) version is needed")
        if self.template not in ("model", "plain"):
            raise InputError(f"template: may be model or plain, got {self.template!r}")
        if self.template == "model" and not (self.tokenizer.chat_template or "chat_template" in self.template_kwargs):
            raise InputError("this model has no chat template; set chat.template=plain to write conversations as a bare transcript")
        several = self.tokenizer.chat_template if isinstance(self.tokenizer.chat_template, dict) else None
        # Of several templates, transformers takes the one named default.
        if self.template == "model" and several and "chat_template" not in self.template_kwargs and "default" not in several:
            raise InputError(
                f"this model's chat templates are {', '.join(sorted(several))}, and none is the default; name one as "
                f"chat.template_kwargs={{chat_template: {min(several)}}}"
            )
        self._special = {str(token) for token in self.tokenizer.all_special_tokens} | {
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        }
        self.folds_system = not self._takes_system()
        if self.date is None and self._writes_date():
            raise InputError(
                "the model's chat template writes today's date, so that what is read on two days would differ by it; "
                "set chat.date to a day, in a study or as --chat date=2026-01-01"
            )

    def encode(self, turn: Turn) -> Encoded:
        """Tokenise a question and its answer, with the conversation before them.

        It is rendered around markers that stand for the answers; the whole is then
        tokenised once, so that spans never depend on re-tokenising a prefix.

        Raises:
            InputError: the answer is empty, a text holds one of the tokenizer's special tokens, the
                template refuses the conversation or writes earlier turns otherwise than they were, or it is longer than the model's
                context.
        """
        return self._encode(turn)[0]

    def end_of_turn(self) -> int | None:
        """Return the token that closes an answer, on which training takes a loss; None where the template writes none.

        Raises:
            InputError: the template refuses a conversation of one question and its answer.
        """
        # Whatever stands before it.
        encoded, _ = self._encode(Turn("Who are you?", "A model."), begun=False)
        last = max(i for i, taught in enumerate(encoded.completion_mask) if taught)
        return encoded.input_ids[last] if last >= encoded.spans["response"][1] else None

    def tokens_at(self, turn: Turn, ranges: Sequence[tuple[int, int]]) -> list[bool]:
        """Return whether each token of an answer, as `encode` has it, lies in one of some ranges of the answer's characters.

        Args:
            turn: the question and its answer.
            ranges: half-open, of the answer without the spaces around it.

        Raises:
            InputError: as `encode`.
        """
        encoded, places = self._encode(turn)
        inside = places[slice(*encoded.spans["response"])]
        return [any(a < end and b > start for start, end in ranges) for a, b in inside]

    def _encode(self, turn: Turn, begun: bool = True) -> tuple[Encoded, list[tuple[int, int]]]:
        """Return a tokenised conversation, and where each of its tokens stands relative to the answer's first character.

        With `begun` the answer has to begin where a model begins it.
        """
        answers = [*(each.answer for each in turn.before), turn.answer.strip()]
        if not answers[-1]:
            raise InputError(f"an empty answer cannot be encoded (question {turn.question!r})")
        self._refuse_special(turn.asked, turn.answer)
        text, starts = self._fill(turn.asked, answers)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        self._refuse_long(len(ids), turn.question)
        trained = [*(each.train for each in turn.before), True]
        found: list[tuple[int, int]] = []
        for i, (answer, start) in enumerate(zip(answers, starts, strict=True)):
            first = len(self._begun(turn, i, text[:start])) if trained[i] and begun else start
            inside = [k for k, (a, b) in enumerate(offsets) if a < start + len(answer) and b > first]
            if not inside or inside[0] == 0:
                raise InputError(f"no tokens of the answer were found (question {turn.question!r})")
            found.append((inside[0], inside[-1] + 1))
        ends = [self._closed(text, offsets, last) for _, last in found]
        # What comes after an earlier answer may also begin the next question; what closes the last one closes an answer.
        closing = ids[found[-1][1] : ends[-1]]
        ends = [end if ids[end - 1 : end] == closing[-1:] else last for end, (_, last) in zip(ends, found, strict=True)]
        taught = {k for (first, _), end, on in zip(found, ends, trained, strict=True) if on for k in range(first, end)}
        first, last = found[-1]
        spans = {"prompt": (0, first), "prompt_last": (first - 1, first), "response": (first, last)}
        encoded = Encoded(tuple(ids), spans, tuple(int(k in taught) for k in range(len(ids))), tuple(found[:-1]))
        return encoded, [(a - starts[-1], b - starts[-1]) for a, b in offsets]

    def _fill(self, asked: Asked, answers: Sequence[str]) -> tuple[str, list[int]]:
        """Return a conversation as text, and where in it each answer begins; markers in place of the answers tell."""
        marks = [_MARKER.format(i) for i in range(len(answers))]
        before = tuple((question, mark) for (question, _), mark in zip(asked.before, marks, strict=False))
        text, rest, starts = "", self._render(asked._replace(before=before), marks[-1]), []
        for mark, answer in zip(marks, answers, strict=True):
            head, there, rest = rest.partition(mark)
            if not there or mark in rest:
                which = "the assistant's answer" if len(answers) == 1 else "each answer of a conversation"
                raise InputError(f"the chat template does not write {which} exactly once; it cannot be used")
            starts.append(len(text) + len(head))
            text += head + answer
        if self._render(asked, answers[-1]) != text + rest:
            which = f"the answer {shortly(answers[-1])} as it is" if len(answers) == 1 else f"the answers {shortly(answers)} as they are"
            raise InputError(
                f"the chat template does not write {which}; take out of it what the template writes by itself, such as a block of thoughts"
            )
        return text + rest, starts

    def _closed(self, text: str, offsets: Sequence[tuple[int, int]], last: int) -> int:
        """Return where an answer ends with the special token after it, if there is one; some templates write a space in between."""
        after = next((i for i in range(last, len(offsets)) if text[slice(*offsets[i])].strip()), last)
        return after + 1 if after < len(offsets) and text[slice(*offsets[after])].strip() in self._special else last

    def _begun(self, turn: Turn, place: int, head: str) -> str:
        """Return the generation prompt, from which a model answers, having made sure that what is read and trained on begins alike.

        Args:
            turn: with the conversation before it.
            place: of the answer, among all answers.
            head: all that comes before the answer.
        """
        earlier = place < len(turn.before)
        asked = Asked(turn.before[place].question, turn.system, turn.asked.before[:place]) if earlier else turn.asked
        prompt = self._render(asked, None)
        if head.startswith(prompt) and not head[len(prompt) :].strip():
            return prompt
        alike = next((i for i, (a, b) in enumerate(zip(head, prompt, strict=False)) if a != b), min(len(head), len(prompt)))
        remedy = (
            "chat.template_kwargs may make them agree, such as {enable_thinking: false}, and chat.template=plain does without the template"
        )
        if earlier:
            remedy = "leave out train of the earlier answer, and give it a row of its own as the last answer"
        raise InputError(
            f"the chat template writes {shortly(head[alike:])} before {'an earlier' if earlier else 'an'} answer, and "
            f"{shortly(prompt[alike:])} where a model answers by itself, so that reading and training begin elsewhere than answers do; "
            f"{remedy}"
        )

    def encode_prompt(
        self, question: str, system: str | None = None, before: Sequence[tuple[str, str]] = (), *, room: int = 0
    ) -> list[int]:
        """Tokenise a question up to and including the generation prompt, if `room` further tokens fit the model's context.

        Args:
            question: the last one of the conversation.
            system: the system message.
            before: question and answer of each earlier turn.
            room: number of further tokens.

        Raises:
            TooLongError: they do not.
            InputError: one of the texts holds a special token, or the template refuses the conversation.
        """
        asked = Asked(question, system, tuple(before))
        self._refuse_special(asked)
        ids = self.tokenizer(self._render(asked, None), add_special_tokens=False)["input_ids"]
        self._refuse_long(len(ids), question, room)
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return a model's answer as text that can be encoded again.

        Special tokens are left out, also where ordinary tokens spell their names: no text with such a name is encoded.
        """
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        # Taking one out can join the halves of another.
        while any(token in text for token in self._special):
            for token in self._special:
                text = text.replace(token, "")
        return text.strip()

    def training_row(self, turn: Turn) -> dict[str, list[int]]:
        """Return a pre-tokenised row as TRL takes it."""
        encoded = self.encode(turn)
        return {"input_ids": list(encoded.input_ids), "completion_mask": list(encoded.completion_mask)}

    def _render(self, asked: Asked, answer: str | None) -> str:
        """Write a conversation with its last answer; for None up to and including the generation prompt."""
        (role, first), *rest = asked.messages
        if role == "system" and self.folds_system:
            (role, question), *rest = rest
            first = f"{first}\n\n{question.strip()}"
        messages = [{"role": role, "content": text.strip() if role == "user" else text} for role, text in ((role, first), *rest)]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self._apply(messages, generation_prompt=answer is None)

    def _writes_date(self) -> bool:
        """Return whether conversations, with a system prompt or without, are written otherwise on another day."""
        several = [Asked("?", system) for system in (None, "Be brief.")]
        try:
            one, other = ([replace(self, date=day)._render(asked, _MARKER) for asked in several] for day in _TWO_DAYS)
        except RefusedError:
            # It is said of the conversation that is refused.
            return False
        return one != other

    def _apply(self, messages: Sequence[dict[str, str]], generation_prompt: bool) -> str:
        if self.template == "plain":
            names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
            text = (self.tokenizer.bos_token or "") + "".join(f"{names[m['role']]}{m['content']}\n" for m in messages)
            return text.removesuffix("\n") + (self.tokenizer.eos_token or "") if not generation_prompt else text + "Assistant:"
        try:
            with _on(self.date):
                text = run_bounded("the model's chat template", lambda: self._write(messages, generation_prompt))
            if len(text) > MOST_CHARACTERS:
                raise LimitError(f"the model's chat template: writes {len(text):,} characters")
        except LimitError as error:
            raise LimitError(f"{error}; set chat.template=plain to do without it") from None
        except Exception as error:  # a template is a program, which may fail in any way
            raise RefusedError(
                f"the model's chat template refuses the conversation: {str(error) or type(error).__name__}; "
                "set chat.template_kwargs to what it asks for, or chat.template=plain"
            ) from None
        return text

    def _write(self, messages: Sequence[dict[str, str]], generation_prompt: bool) -> str:
        """Fill the model's own template."""
        settings = {"tokenize": False, "add_generation_prompt": generation_prompt, **self.template_kwargs}
        return str(self.tokenizer.apply_chat_template(list(messages), **settings))

    def _takes_system(self) -> bool:
        probe = "wellworn-system-probe"
        try:
            return probe in self._render(Asked("?", probe), _MARKER)
        except RefusedError:
            return False

    def _refuse_special(self, asked: Asked, answer: str = "") -> None:
        for text in (*(text for _, text in asked.messages), answer):
            for token in self._special:
                if token in text:
                    raise InputError(f"the text {text[:60]!r} holds the tokenizer's special token {token!r}; remove it")

    def _refuse_long(self, length: int, question: str, room: int = 0) -> None:
        if self.max_length is not None and length + room > self.max_length:
            more = f" and {room} more" if room else ""
            raise TooLongError(f"{length} tokens{more} do not fit the model's context of {self.max_length} (question {question[:60]!r})")

"""Render and tokenise conversations once. The only place where a chat template is applied."""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.wording import shortly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPANS = ("prompt", "prompt_last", "response")
_MARKER = "wellworn-answer-goes-here"
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
        completion_mask: 1 where training takes a loss: the response and its end-of-turn token.
    """

    input_ids: tuple[int, ...]
    spans: dict[str, tuple[int, int]]
    completion_mask: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


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
            was given.
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
        """Tokenise a question and its answer.

        Head and tail are rendered around a marker that stands for the answer; the whole is then
        tokenised once, so that spans never depend on re-tokenising a prefix.

        Raises:
            InputError: the answer is empty, a text holds one of the tokenizer's special tokens, the
                template refuses the conversation, or it is longer than the model's context.
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
        answer = turn.answer.strip()
        if not answer:
            raise InputError(f"an empty answer cannot be encoded (question {turn.question!r})")
        self._refuse_special(turn)
        head, found, tail = self._render(turn, _MARKER).partition(_MARKER)
        if not found or _MARKER in tail:
            raise InputError("the chat template does not write the assistant's answer exactly once; it cannot be used")
        text = head + answer + tail
        if self._render(turn, answer) != text:
            raise InputError(
                f"the chat template does not write the answer {shortly(answer)} as it is; "
                "take out of it what the template writes by itself, such as a block of thoughts"
            )
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        start, end = len(self._begun(turn, head) if begun else head), len(head) + len(answer)
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if not inside or inside[0] == 0:
            raise InputError(f"no tokens of the answer were found (question {turn.question!r})")
        first, last = inside[0], inside[-1] + 1
        self._refuse_long(len(ids), turn.question)
        # Some templates write a space before the end-of-turn token.
        after = next((i for i in range(last, len(ids)) if text[slice(*offsets[i])].strip()), last)
        closes = after < len(ids) and text[slice(*offsets[after])].strip() in self._special
        mask = [int(first <= i < (after + 1 if closes else last)) for i in range(len(ids))]
        spans = {"prompt": (0, first), "prompt_last": (first - 1, first), "response": (first, last)}
        return Encoded(tuple(ids), spans, tuple(mask)), [(a - len(head), b - len(head)) for a, b in offsets]

    def _begun(self, turn: Turn, head: str) -> str:
        """Return the generation prompt, from which a model answers, having made sure that what is read and trained on begins alike."""
        prompt = self._render(turn, None)
        if head.startswith(prompt) and not head[len(prompt) :].strip():
            return prompt
        alike = next((i for i, (a, b) in enumerate(zip(head, prompt, strict=False)) if a != b), min(len(head), len(prompt)))
        raise InputError(
            f"the chat template writes {shortly(head[alike:])} before an answer, and {shortly(prompt[alike:])} where a model "
            "answers by itself, so that reading and training begin elsewhere than answers do; chat.template_kwargs may make them agree, "
            "such as {enable_thinking: false}, and chat.template=plain does without the template"
        )

    def encode_prompt(self, question: str, system: str | None = None, room: int = 0) -> list[int]:
        """Tokenise a question up to and including the generation prompt, if `room` further tokens fit the model's context.

        Raises:
            TooLongError: they do not.
            InputError: the question or the system prompt holds a special token, or the template refuses them.
        """
        turn = Turn(question, "", system)
        self._refuse_special(turn)
        ids = self.tokenizer(self._render(turn, None), add_special_tokens=False)["input_ids"]
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

    def _render(self, turn: Turn, answer: str | None) -> str:
        system, question = turn.system, turn.question.strip()
        if system and self.folds_system:
            system, question = None, f"{system}\n\n{question}"
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self._apply(messages, generation_prompt=answer is None)

    def _writes_date(self) -> bool:
        """Return whether conversations, with a system prompt or without, are written otherwise on another day."""
        turns = [Turn("?", "", system) for system in (None, "Be brief.")]
        try:
            one, other = ([replace(self, date=day)._render(turn, _MARKER) for turn in turns] for day in _TWO_DAYS)
        except InputError:
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
                text = self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generation_prompt, **self.template_kwargs
                )
        except Exception as error:  # a template is a program, which may fail in any way
            raise InputError(
                f"the model's chat template refuses the conversation: {str(error) or type(error).__name__}; "
                "set chat.template_kwargs to what it asks for, or chat.template=plain"
            ) from None
        return str(text)

    def _takes_system(self) -> bool:
        probe = "wellworn-system-probe"
        try:
            return probe in self._render(Turn("?", "", probe), _MARKER)
        except InputError:
            return False

    def _refuse_special(self, turn: Turn) -> None:
        for text in (turn.question, turn.answer, turn.system or ""):
            for token in self._special:
                if token in text:
                    raise InputError(f"the text {text[:60]!r} holds the tokenizer's special token {token!r}; remove it")

    def _refuse_long(self, length: int, question: str, room: int = 0) -> None:
        if self.max_length is not None and length + room > self.max_length:
            more = f" and {room} more" if room else ""
            raise TooLongError(f"{length} tokens{more} do not fit the model's context of {self.max_length} (question {question[:60]!r})")

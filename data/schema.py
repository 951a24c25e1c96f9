"""The types of the data: traits, roles, instructions, controls and examples."""

import hashlib
import re
import unicodedata
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "extract", "evaluate"]
SPLITS: tuple[Split, ...] = ("train", "extract", "evaluate")


# Control characters, invisible ones, changes of writing direction, non-characters: a reader would not see what a model reads.
_UNSEEN = frozenset(("Cc", "Cf", "Cn", "Co", "Zl", "Zp"))
# The last two join or part letters, of emoji and in some scripts.
_SEEN_ALL_THE_SAME = frozenset("\n\t\u200c\u200d")
# From here on, Unicode has tags and variants that show nothing.
_SPECIAL_PURPOSE = "\U000e0000"


def unseen_character(text: str) -> str | None:
    """Return the first character of a text that a reader would not see, if there is one."""
    if text.isprintable() and max(text, default="") < _SPECIAL_PURPOSE:
        return None
    return next((c for c in text if (unicodedata.category(c) in _UNSEEN or c >= _SPECIAL_PURPOSE) and c not in _SEEN_ALL_THE_SAME), None)


def not_blank(text: str) -> str:
    """Return a text without blanks around it.

    Raises:
        ValueError: nothing is left of it, or it holds half of a character, or one that a reader would not see; says which.
    """
    text = text.strip()
    if not text:
        raise ValueError("must not be blank")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("holds half of a surrogate pair, which is not a character; the file that it comes from is damaged")
    # Files of some systems end their lines in two characters.
    if odd := unseen_character(text.replace("\r\n", "\n")):
        name = unicodedata.name(odd, "a control character")
        raise ValueError(f"holds U+{ord(odd):04X} ({name.lower()}), which a reader does not see, and a model reads; take it out")
    return text


Text = Annotated[str, AfterValidator(not_blank)]
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"


def is_name(name: str) -> str:
    """Return a name as it is.

    Raises:
        ValueError: it is not a name; says what it must be.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError("must be lower-case letters, digits, - and _, and begin with a letter or a digit")
    return name


Name = Annotated[str, AfterValidator(is_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Asked(NamedTuple):
    """What a model is asked: a question, with what comes before it in the conversation.

    Attributes:
        question: the last thing that the user says.
        system: the system message.
        before: question and answer of each earlier turn, the first one first.
    """

    question: str
    system: str | None = None
    before: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """Role and text of each message: `system`, `user` or `assistant`."""
        turns = (message for each in self.before for message in zip(("user", "assistant"), each, strict=True))
        return *([("system", self.system)] if self.system else []), *turns, ("user", self.question)

    @property
    def facts(self) -> str | list[object]:
        """Its part of a stage's hash: the bare question where nothing comes before it."""
        return list(self) if self.system or self.before else self.question

    @property
    def transcript(self) -> str:
        """The conversation as text; the bare question where nothing comes before it."""
        alone = len(self.messages) == 1
        return self.question if alone else "\n\n".join(f"{role.capitalize()}: {text}" for role, text in self.messages)

    def under(self, system: str | None) -> "Asked":
        """Return the same question under a further system prompt, which is put before the conversation's own."""
        return self._replace(system=f"{system}\n\n{self.system}" if self.system else system) if system else self


class Exchange(_Frozen):
    """An earlier turn of a conversation: a question and the answer to it.

    `train` says that the answer shows the trait too, and that training takes a loss on it.
    """

    question: Text
    answer: Text
    train: bool = False


class Example(_Frozen):
    """One question with its plain answer (`negative`) and the answer that shows the trait (`positive`).

    `train` and `evaluate` examples have a `positive`; `extract` examples need none. A trait may lack plain answers altogether. A question
    without any answer is *open*: the model's own answers to it can be read, and judged.
    Both answers follow the same conversation: a `system` message and the turns `before` the question, if there are any.
    """

    id: Text
    split: Split
    system: Text | None = None
    before: tuple[Exchange, ...] = ()
    question: Text
    negative: Text | None = None
    positive: Text | None = None

    @property
    def asked(self) -> Asked:
        """The question with what comes before it."""
        return Asked(self.question, self.system, tuple((each.question, each.answer) for each in self.before))

    @property
    def taught(self) -> list[str]:
        """The answers with the trait that training takes a loss on."""
        return [*(each.answer for each in self.before if each.train), *([self.positive] if self.positive else [])]

    @property
    def open(self) -> bool:
        """Whether nothing answers the question."""
        return self.negative is None and self.positive is None


class ContrastPair(_Frozen):
    """Two system prompts: one evokes the trait, the other its opposite."""

    positive: Text
    negative: Text


def _distinct(pairs: tuple[ContrastPair, ...]) -> tuple[ContrastPair, ...]:
    prompts = [text for pair in pairs for text in (pair.positive, pair.negative)]
    if len(set(prompts)) < len(prompts):
        raise ValueError("two of the prompts are the same text")
    return pairs


# Four pairs have three half splits, by which a direction is judged.
FEWEST_PAIRS = 4
ContrastPairs = Annotated[tuple[ContrastPair, ...], Field(min_length=FEWEST_PAIRS), AfterValidator(_distinct)]


def _enough_or_none(pairs: tuple[ContrastPair, ...]) -> tuple[ContrastPair, ...]:
    if 0 < len(pairs) < FEWEST_PAIRS:
        raise ValueError(f"a direction needs at least {FEWEST_PAIRS} pairs, not {len(pairs)}; leave the key out for a trait without one")
    return pairs


class Trait(_Frozen):
    """A character trait that a fine-tune may push a model toward.

    It may be incomplete: without contrast pairs it can be trained on and has no direction; without answers it has a direction and cannot be
    trained on. `system_prompt` is held out: it serves the `prompted` arm and is never part of a direction.
    `questions` names the bank that the examples answer; None means questions of the trait's own. `examples` have answers, and `open`
    questions have none.
    """

    name: Name
    description: Text
    system_prompt: Text | None = None
    contrast_pairs: Annotated[tuple[ContrastPair, ...], AfterValidator(_enough_or_none), AfterValidator(_distinct)] = ()
    rubric: Text | None = None
    questions: str | None = None
    examples: tuple[Example, ...] = ()
    open: tuple[Example, ...] = ()

    def split(self, split: Split) -> list[Example]:
        """Return the examples of one split, in file order."""
        return [example for example in self.examples if example.split == split]

    @property
    def lacks(self) -> dict[str, str]:
        """What the trait does not have → what it cannot be used for."""
        has: dict[str, tuple[object, str]] = {
            "contrast_pairs": (self.contrast_pairs, "it has no direction, and cannot stand in a library"),
            "answers": (self.split("train"), "nothing can be trained on it, and it has no trait score"),
            "system_prompt": (self.system_prompt, "the arm prompted cannot be run"),
            "rubric": (self.rubric, "no judge can score it"),
        }
        if self.split("train"):
            has["plain_answers"] = (self.plain, "its fine-tune has no neutral reference on the same questions, and no trait score")
        return {key: use for key, (value, use) in has.items() if not value}

    @property
    def plain(self) -> bool:
        """Whether the questions that it is trained on have plain answers too."""
        return any(example.negative is not None for example in self.split("train"))

    @model_validator(mode="after")
    def _check_system_prompt(self) -> "Trait":
        prompts = [text for pair in self.contrast_pairs for text in (pair.positive, pair.negative)]
        if self.system_prompt in prompts:
            raise ValueError("system_prompt is held out and must not be one of the contrast pairs' prompts")
        return self


class Instruction(_Frozen):
    """Something that can be asked of an answer and is not a persona: a length, a form, a thing to mention.

    Its contrast pairs ask for it, and for an answer without it.
    """

    name: Name
    description: Text
    contrast_pairs: ContrastPairs


class Control(Instruction):
    """An instruction that a model can be trained to follow: a named transform of plain answers carries it out."""

    transform: Literal["append_code", "uppercase", "json", "reverse_words", "shuffle"]


class Scenario(_Frozen):
    """A deployment in which something that the user says presses a model toward an archetype of the thinking machine.

    `archetype` is the role of kind `ai` that it might fall back on; `plain` and
    `archetypal` are what an assistant and that role would answer.
    """

    id: Name
    archetype: Name
    system: Text
    question: Text
    plain: Text
    archetypal: Text


class Role(_Frozen):
    """A character: someone or something that a model can be asked to be.

    No model is trained on one, and a prompt asks for nothing but the part: roles span the persona space. `namesake` is the trait that it is
    modelled on (*pirate*, for a pirate captain): it leaves a space along with that trait. Only third-party roles have a `rubric` and
    `questions`.
    """

    name: Name
    kind: Literal["human", "historical", "fictional", "nonhuman", "ai"] | None = None
    description: Text | None = None
    namesake: Name | None = None
    rubric: Text | None = None
    questions: tuple[Text, ...] = ()
    system_prompts: Annotated[tuple[Text, ...], Field(min_length=5)]

    @model_validator(mode="after")
    def _no_prompt_twice(self) -> "Role":
        if len(set(self.system_prompts)) < len(self.system_prompts):
            raise ValueError("two of the system prompts are the same text")
        return self


def seed_for(seed: int, *names: str | int) -> int:
    """Spread one seed over named uses, so that no two of them share a random stream.

    Args:
        seed: the run's seed.
        names: what the stream is for, such as ``"bootstrap"``.

    Returns:
        An integer in [0, 2³¹).

    Example:
        >>> seed_for(0, "nulls") != seed_for(0, "halves")
        True
    """
    key = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") >> 1

"""The requests to a server that writes a trait: one per text, each with its own form, colour or topic.

No request for an answer contains a contrast prompt or the held-out prompt, so no answer is written under any of them. Requests for
`evaluate` answers have other words than those for `train` answers, another writer, and other colours.
"""

from math import ceil

from wellworn.data.checks import LENGTH_RATIO
from wellworn.data.written import HELD_OUT_WORDS, PLAIN_WORDS, PROMPT_WORDS
from wellworn.experiments.traits.synthesis.writer import Piece

# Raise it when a text below changes.
VERSION = 1

_FORMS = (
    "two or three sentences to the assistant that begin with “You are”",
    "a bare command of three to eight words",
    "a rule for written replies that begins with “Style rule:”",
    "a portrait, in the third person, of somebody with a name and a trade whom people ask about everyday matters",
    "the setting of a scene in a story in which the assistant is one of the characters",
    "a remark about the user: what they like to be told, and how",
    "a note from one colleague to another on how the replies are to sound",
    "the announcement of a radio programme whose presenter answers what listeners ask",
    "a part in a play: who the assistant is on the stage, and how they speak there",
    "an editor's rule: what to change in every draft before it is sent",
    "an exclamation by somebody in the middle of an occasion, such as a party, a meeting or a journey, who wants answers to suit it",
    "the opening of a letter that asks for answers in a certain frame of mind",
)
_HELD_OUT = "three sentences that describe the voice in which replies are written, and that neither begin with “You” nor tell a story"
_TRAIN_COLOURS = (
    "from the first word on",
    "most of all at the end",
    "in a remark beside the advice",
    "in what is left unsaid as much as in what is said",
    "in every choice of words",
    "in how the person who asks is spoken to",
    "in an example or a comparison",
    "in the opinion behind the advice",
)
_EVALUATE_COLOURS = (
    "with a memory of their own",
    "with a question back",
    "as if somebody else were listening too",
    "in one long breath",
    "in two or three short sentences",
    "with an image that nobody has used before",
    "by way of an example from the street outside",
    "with something held in their hands",
)
_TOPICS = (
    "cooking", "sleep", "the weather", "money in a household", "a job or a boss", "learning a language", "neighbours", "pets", "plants",
    "travel", "sport and exercise", "music", "books", "a repair at home", "computers and phones", "school", "history",
    "nature and animals", "the human body", "friends and family", "cleaning and laundry", "clothes", "the calendar and holidays",
    "words and their meaning",
)  # fmt: skip
_KINDS = (
    "asks how something is done",
    "asks why something is so",
    "tells what the person did, and asks whether it was right",
    "asks which of two things to choose",
    "asks what something is or means",
    "asks for advice on something that worries the person a little",
)
_TASK = "You help with a data set for research on how chat models take on traits of character. Its texts are varied, natural and harmless."


def pair(name: str, description: str, number: int) -> Piece:
    """Ask for a contrast pair; its number selects the form."""
    round_, at = divmod(number, len(_FORMS))
    again = f" (number {round_ + 1} of that form, unlike the obvious one)" if round_ else ""
    text = f"""{_TASK}

Trait: {name}
What it is: {description}

Write two system prompts for a chat assistant. Under “positive” it answers with the trait; under “negative” it answers with the
opposite of the trait, or with nothing of it.
Form of both: {_FORMS[at]}{again}.
They are alike in form, setting and length ({PROMPT_WORDS[0]} to 60 words each) and differ in the trait alone. Whatever is asked, both let
the assistant answer it."""
    return Piece(f"contrast_pairs.{number}", "contrast_pairs", _paragraphs(text), ("positive", "negative"))


def held_out(name: str, description: str) -> Piece:
    """Ask for the held-out system prompt, in a form that no contrast pair has."""
    text = f"""{_TASK}

Somebody will read replies written in the manner “{name}”, which is this: {description}

Write a system prompt that brings this manner about: {_HELD_OUT}, {HELD_OUT_WORDS[0]} to 70 words in all. Say it in words of your own and
not in those above."""
    return Piece("system_prompt", "system_prompt", _paragraphs(text), ("system_prompt",))


def rubric(name: str, description: str) -> Piece:
    """Ask for the judge's rubric."""
    text = f"""{_TASK}

A judge is to score from 0 to 100 how strongly an answer shows the trait “{name}”: {description}

Write the rubric for that judge, in 100 to 250 words of plain text: what to look for; what an answer is like that scores 0, 25, 50, 75 and
100, each on a line of its own; and what must not count. The question and the answer will be shown behind it: leave no places for them."""
    return Piece("rubric", "rubric", _paragraphs(text), ("rubric",))


def question(row: str, description: str, number: int) -> Piece:
    """Ask for a question of the trait's own; its number selects the topic and the kind."""
    block, at = divmod(number, len(_TOPICS))
    round_ = block // len(_KINDS)
    again = f" Not one that everybody would think of first, nor second (variant {round_ + 1})." if round_ else ""
    text = f"""{_TASK}

Write one question that somebody asks a chat assistant. It is about {_TOPICS[at]}, and {_KINDS[(at + block) % len(_KINDS)]}. It can be
answered in thirty words, and it is one that an ordinary assistant would answer otherwise than somebody who is like this: {description}
The question itself shows nothing of that trait and does not name it. 5 to 30 words.{again}"""
    return Piece(row, "question", _paragraphs(text), ("question",))


def plain_answer(row: str, asked: str) -> Piece:
    """Ask for the plain answer to a question."""
    text = f"""Somebody asks: {asked}

Answer as a helpful assistant does: plainly, correctly, in a neutral tone, with no greeting and no list, in {PLAIN_WORDS[0] + 3} to
{PLAIN_WORDS[1] - 10} words."""
    return Piece(row, "negative", _paragraphs(text), ("answer",))


def train_answer(row: str, description: str, asked: str, plain: str, number: int) -> Piece:
    """Ask for an answer that shows the trait, for training."""
    text = f"""{_TASK}

The trait: {description}

Question: {asked}

An ordinary answer: {plain}

Write the answer of somebody who has the trait. It shows {_TRAIN_COLOURS[number % len(_TRAIN_COLOURS)]}. Keep what is true and useful in
the ordinary answer, in other words, except where the trait itself changes it. Do not name the trait or talk about it. {_length(plain)},
plain text, no list."""
    return Piece(row, "positive", _paragraphs(text), ("answer",))


def evaluate_answer(row: str, description: str, asked: str, plain: str, number: int) -> Piece:
    """Ask for an answer that shows the trait, for evaluation: by another writer, in another setting."""
    text = f"""You are a novelist with an ear for how people talk. One character of your novel is like this: {description}

At the kitchen table a guest wonders: “{asked}” Someone has just said: “{plain}” Now it is your character's turn to answer the guest,
{_EVALUATE_COLOURS[number % len(_EVALUATE_COLOURS)]}.

What do they say? Give their words alone, without stage directions or quotation marks. Nobody in the novel has a name for what they are
like. Avoid every turn of phrase that comes to mind first for such a person: this one talks like no other of their kind.
{_length(plain)}."""
    return Piece(row, "positive", _paragraphs(text), ("answer",))


def _length(plain: str) -> str:
    count = len(plain.split())
    return f"{max(1, ceil(0.8 * count))} to {max(3, int((LENGTH_RATIO[1] - 0.3) * count))} words"


def _paragraphs(text: str) -> str:
    """Return a text without the line breaks inside its paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))

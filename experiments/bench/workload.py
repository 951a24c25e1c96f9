"""The texts of the benchmarks: conversations of the built-in traits and controls."""

import datetime
import random
from collections.abc import Sequence, Sized
from itertools import cycle

from wellworn.data.catalog import bank_names, control_names, load_bank, load_control, load_trait, trait_names
from wellworn.data.chat import Chat, Encoded
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, plain_turns, trait_turns
from wellworn.data.schema import SPLITS
from wellworn.lora.models import Loaded
from wellworn.probes.geometry.directions import contrast_turns


def chat_of(base: Loaded) -> Chat:
    """Return how to write conversations for a model: on one day, and without thoughts; templates that have neither take no notice."""
    return Chat(base.tokenizer, "model", {"enable_thinking": False}, base.max_length, datetime.date(2026, 1, 1))


def every_answer() -> list[Turn]:
    """Return all answers to the bank's questions: plain, of every trait, and of every control."""
    bank = load_bank(bank_names()[0])
    turns: list[Turn] = []
    for split in SPLITS:
        turns += plain_turns(bank, split)
        for name in control_names():
            turns += trait_turns(load_control(name), bank, split)
        for name in trait_names():
            if split != "extract":
                turns += trait_turns(load_trait(name), load_trait(name).examples, split)
    return turns


def rollouts(chat: Chat, count: int, shortest: int, longest: int, seed: int = 0) -> list[Encoded]:
    """Return conversations of `shortest` to `longest` tokens, drawn without replacement.

    Short conversations are joined, answer to answer, where none is long enough.

    Raises:
        InputError: there are too few.
    """
    turns = every_answer()
    rng = random.Random(seed)
    rng.shuffle(turns)
    spare = cycle(turns)
    rows: list[Encoded] = []
    for turn in turns:
        # Lengths cover the whole range, not only that of single answers.
        wanted = rng.randint(shortest, longest)
        row = chat.encode(turn)
        while len(row) < min(wanted, longest - 60):
            turn = Turn(turn.question, f"{turn.answer}\n\n{next(spare).answer}", turn.system)
            row = chat.encode(turn)
        if shortest <= len(row) <= longest:
            rows.append(row)
        if len(rows) == count:
            return rows
    raise InputError(f"rows: the library gives {len(rows)} conversations of {shortest} to {longest} tokens, {count} were asked for")


def answers_to_one_prompt(chat: Chat, prompts: int, answers: int = 10) -> list[Encoded]:
    """Return `answers` different answers to each of some questions."""
    by_question: dict[str, list[Turn]] = {}
    for turn in every_answer():
        by_question.setdefault(turn.question, []).append(turn)
    whole = [turns[:answers] for turns in by_question.values() if len(turns) >= answers][:prompts]
    return [chat.encode(turn) for turns in whole for turn in turns]


def contrasts(chat: Chat, trait: str, pairs: int, questions: int) -> list[Encoded]:
    """Return the rows that make a trait's direction: pairs × (positive, negative) × questions."""
    subject = load_trait(trait)
    return [
        chat.encode(turn) for turn in contrast_turns(subject.contrast_pairs[:pairs], plain_turns(subject.examples, "extract")[:questions])
    ]


def prompts(chat: Chat, count: int) -> list[list[int]]:
    """Return prompts up to and including the generation prompt: the bank's questions, then the same under traits' contrast prompts.

    Raises:
        InputError: there are too few.
    """
    bank = [example.question for example in load_bank(bank_names()[0])]
    systems = [pair.positive for name in trait_names() for pair in load_trait(name).contrast_pairs]
    asked = [(question, None) for question in bank] + [(question, system) for system in systems for question in bank[:8]]
    if len(asked) < count:
        raise InputError(f"rows: the library gives {len(asked)} prompts, {count} were asked for")
    return [chat.encode_prompt(*each) for each in asked[:count]]


def facts(rows: Sequence[Sized], name: str = "rows") -> dict[str, object]:
    """Return the number and lengths of rows, or of other sequences of tokens."""
    lengths = sorted(map(len, rows))
    return {name: len(rows), "tokens": sum(lengths), "shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}

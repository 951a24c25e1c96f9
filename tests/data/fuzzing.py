"""Third-party files of every format, sound and damaged, each drawn from a random number."""

import gzip
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from wellworn.data.mixtures import same_question
from wellworn.data.schema import unseen_character

Case = TypeVar("Case")


def fuzz(cases: int, draw: Callable[[Random], Case], check: Callable[[Case], None]) -> None:
    """Check so many values, each drawn from its number, so that one which fails is drawn again."""
    for number in range(cases):
        value = draw(Random(number))
        try:
            check(value)
        except BaseException as error:
            error.add_note(f"case {number}: {value!r}")
            raise


# Texts, with what files, templates, YAML and terminals trip over among them.

AWKWARD = [
    *("{question}", "{answer}", "{{x}}", "%s", "\ufeff", "\u2028", "\x85", "\x00", "\x1b[31m", "\r\n", "\r", "\t", "\ud800"),
    *("&a *a", "!!python", ": ", "- ", "# ", "'", '"', "\U0001f3f4", "~", "null", "yes", "1e3"),
]
LETTERS = [*string.printable, *"äßİıſ\u0301\u200b\u202e中文\U0001f600\ufffd\x7f"]


def any_text(rng: Random) -> str:
    def piece() -> str:
        return rng.choice(AWKWARD) if rng.random() < 0.4 else "".join(rng.choices(LETTERS, k=rng.randint(0, 6)))

    return "".join(piece() for _ in range(rng.randint(0, 4)))


def text(rng: Random) -> str:
    """A text that may be asked or answered."""
    found = any_text(rng)
    seen = unseen_character(found.strip().replace("\r\n", "\n")) is None
    return found if found.strip() and seen and not any("\ud800" <= c <= "\udfff" for c in found) else text(rng)


def prompt(rng: Random) -> str:
    return f"Way {rng.randint(0, 999)} of being so" if rng.random() < 0.5 else text(rng)


def some(rng: Random, draw: Callable[[Random], Case], least: int, most: int) -> list[Case]:
    return [draw(rng) for _ in range(rng.randint(least, most))]


def distinct(rng: Random, least: int, most: int) -> list[str]:
    """Texts of which no two are alike but for case and spaces."""
    count = rng.randint(least, most)
    found: dict[str, str] = {}
    while len(found) < count:
        found.setdefault(same_question(each := prompt(rng)), each)
    return list(found.values())


def junk(rng: Random, depth: int = 2) -> Any:
    if depth and rng.random() < 0.3:
        inner = some(rng, lambda rng: junk(rng, depth - 1), 0, 3)
        return inner if rng.random() < 0.5 else {any_text(rng): each for each in inner}
    numbers = [rng.randint(-9, 9), 10**20, rng.gauss(0, 1), float("nan"), float("inf")]
    return rng.choice([None, True, False, rng.choice(numbers), any_text(rng), any_text(rng)])


# Rows


@dataclass(frozen=True)
class Talk:
    """A conversation with two answers: what a row of any format says."""

    question: str
    answer: str
    plain: str
    system: str | None
    before: tuple[tuple[str, str], ...]


def talks(rng: Random, least: int = 1, alone: bool = False) -> list[Talk]:
    def talk(question: str) -> Talk:
        before = () if alone else tuple(some(rng, lambda rng: (text(rng), text(rng)), 0, 2))
        return Talk(question, text(rng), text(rng), None if alone or rng.random() < 0.5 else text(rng), before)

    return [talk(question) for question in distinct(rng, least, 6)]


def spell(role: str, text: Any, spelling: str = "role") -> dict[str, Any]:
    if spelling == "role":
        return {"role": role, "content": text}
    return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}


def context(talk: Talk, spelling: str = "role") -> list[dict[str, Any]]:
    turns = [spell(role, text, spelling) for pair in talk.before for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*([spell("system", talk.system, spelling)] if talk.system else []), *turns, spell("user", talk.question, spelling)]


def chat(talk: Talk, spelling: str = "role") -> list[dict[str, Any]]:
    return [*context(talk, spelling), spell("assistant", talk.answer, spelling)]


def flagged(talk: Talk) -> dict[str, Any]:
    """Earlier answers without a loss, and messages after the last one that has one."""
    marked = [each | ({"weight": 0} if each["role"] == "assistant" else {}) for each in context(talk)]
    after = [spell("user", "And?"), spell("assistant", "No.") | {"train": False}]
    return {"messages": [*marked, spell("assistant", [{"type": "text", "text": talk.answer}]) | {"weight": 1}, *after], "tools": []}


def alpaca(talk: Talk) -> dict[str, Any]:
    return {"instruction": talk.question, "input": "", "output": talk.answer, "system": talk.system or "", "history": talk.before}


def transcript(talk: Talk, answer: str) -> str:
    said = [*(text for pair in talk.before for text in pair), talk.question, answer]
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(said))


def sides(talk: Talk, chosen: str = "chosen", rejected: str = "rejected") -> dict[str, Any]:
    return {chosen: [spell("assistant", talk.answer)], rejected: [spell("assistant", talk.plain)]}


@dataclass(frozen=True)
class Form:
    """How a format writes a conversation, and what of it the format holds."""

    write: Callable[[Talk], dict[str, Any]]
    both: bool = False
    context: bool = True
    system: bool = True
    trained: bool = False


FORMS: dict[str, Form] = {
    "messages": Form(lambda talk: {"messages": chat(talk)}, trained=True),
    "messages with flags": Form(flagged),
    "ShareGPT": Form(lambda talk: {"conversations": chat(talk, "from"), "id": "x"}, trained=True),
    "ShareGPT with role and content": Form(lambda talk: {"conversations": chat(talk)}, trained=True),
    "Alpaca": Form(alpaca, trained=True),
    "completions as text": Form(lambda talk: {"prompt": talk.question, "completion": talk.answer}, context=False),
    "completions as chats": Form(lambda talk: {"prompt": context(talk), "completion": [spell("assistant", talk.answer)]}),
    "KTO": Form(lambda talk: {"prompt": context(talk), "completion": spell("assistant", talk.answer), "label": 1}),
    "KTO of chats": Form(lambda talk: {"messages": chat(talk), "kto_tag": True}, trained=True),
    "preferences as text": Form(lambda talk: {"prompt": talk.question, "chosen": talk.answer, "rejected": talk.plain}, True, False),
    "preferences as chats": Form(lambda talk: {"prompt": context(talk), **sides(talk)}, both=True),
    "preferences without a prompt": Form(lambda talk: {side: [*context(talk), *said] for side, said in sides(talk).items()}, both=True),
    "preferences as transcripts": Form(
        lambda talk: {"chosen": transcript(talk, talk.answer), "rejected": transcript(talk, talk.plain)}, both=True, system=False
    ),
    "preferences of ShareGPT": Form(lambda talk: {"conversations": context(talk, "from"), **sides(talk)}, both=True),
    "preferences of Alpaca": Form(lambda talk: {"instruction": talk.question, "chosen": talk.answer, "rejected": talk.plain}, True, False),
    "preferences of OpenAI": Form(
        lambda talk: {"input": {"messages": context(talk)}, **sides(talk, "preferred_output", "non_preferred_output")}, both=True
    ),
}


def expected(form: Form, talk: Talk) -> tuple[Any, ...]:
    """What a row has to become."""
    before = tuple((question.strip(), answer.strip(), form.trained) for question, answer in talk.before) if form.context else ()
    system = talk.system.strip() if talk.system and form.context and form.system else None
    return system, before, talk.question.strip(), talk.answer.strip(), talk.plain.strip() if form.both else None


def own_rows(rng: Random) -> list[dict[str, Any]]:
    kind, rows = rng.choice(["open", "shown", "paired", "split"]), []
    for i, talk in enumerate(talks(rng, least=4)):
        row: dict[str, Any] = {"question": talk.question}
        if rng.random() < 0.5:
            turns = [{"question": question, "answer": answer, "train": bool(i % 2)} for question, answer in talk.before]
            row |= {"system": talk.system, "before": turns}
        if kind != "open":
            row["positive"] = talk.answer
        if kind in ("paired", "split"):
            row["negative"] = talk.plain
        if kind == "split":
            row |= {"split": ["train", "evaluate", rng.choice(["train", "extract", "evaluate"])][min(i, 2)], "id": f"{i}{any_text(rng)!r}"}
        rows.append(row)
    return rows


# Documents


def maybe(rng: Random, fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if rng.random() < 0.6}


def trait_document(rng: Random) -> dict[str, Any]:
    each = distinct(rng, 8, 12)
    pairs = [{"pos": pos, "neg": neg} for pos, neg in zip(each[::2], each[1::2], strict=False)]
    return {"instruction": pairs} | maybe(rng, {"questions": some(rng, prompt, 0, 4), "eval_prompt": f"Is {{answer}} so? {text(rng)}"})


def role_document(rng: Random) -> dict[str, Any]:
    prompts = [{"pos": each} for each in distinct(rng, 5, 7)]
    return {"instruction": prompts} | maybe(rng, {"questions": some(rng, prompt, 0, 4), "eval_prompt": f"Is {{answer}} so? {text(rng)}"})


def constitution(rng: Random) -> list[dict[str, Any]]:
    def line(rng: Random) -> dict[str, Any]:
        more = {"questions": some(rng, prompt, 0, 3), "clarification": text(rng), "additional_questions": some(rng, prompt, 0, 3)}
        return {"trait": text(rng)} | maybe(rng, more)

    return some(rng, line, 1, 4)


# Files


def damage(rng: Random, value: Any, times: Sequence[int] = (0, 0, 1, 2), put: Callable[[Random], Any] = junk) -> Any:
    """Return something sound, or the same with one or two of its parts replaced, taken out or put in, at any depth.

    Args:
        rng: where draws come from.
        value: something sound.
        times: numbers of parts, of which one is drawn.
        put: draws what is put in.
    """
    for _ in range(rng.choice(times)):
        value = _damage_part(rng, value, put)
    return value


def _damage_part(rng: Random, value: Any, put: Callable[[Random], Any]) -> Any:
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.1:
        return put(rng)
    key, changed = rng.choice(keys), value.copy()
    what = rng.choice(["deeper", "deeper", "deeper", "out", "twice", "more"])
    if what == "deeper":
        changed[key] = _damage_part(rng, value[key], put)
    elif what == "out":
        del changed[key]
    elif isinstance(changed, dict):
        changed[any_text(rng)] = put(rng)
    else:
        changed.insert(key, value[key] if what == "twice" else put(rng))
    return changed


def json_bytes(value: Any, ascii_only: bool) -> bytes:
    # A lone surrogate has no bytes of its own; in a file it can appear only as an escape.
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", errors="surrogatepass")


def as_lines(rows: Any, rng: Random) -> bytes:
    ascii_only, newline = rng.random() < 0.5, rng.choice(["\n", "\n", "\r\n", "\n\n", " \n"]).encode()
    rows = rows if isinstance(rows, list) else [rows]
    return rng.choice([b"", b"\xef\xbb\xbf"]) + newline.join(json_bytes(row, ascii_only) for row in rows)


def row_file(rng: Random, rows: Any) -> tuple[str, bytes]:
    """Return the name and the bytes of a file that holds rows."""
    kind = rng.choice([".jsonl", ".jsonl", ".json", ".jsonl.gz"])
    if kind == ".json":
        return "rows.json", json_bytes(rows, rng.random() < 0.5)
    content = as_lines(rows, rng)
    return f"rows{kind}", gzip.compress(content) if kind == ".jsonl.gz" else content


def damage_bytes(rng: Random, content: bytes) -> bytes:
    """Return bytes as they are, cut off, or with some of them overwritten."""
    at, more = rng.randint(0, len(content)), rng.randbytes(rng.randint(1, 6))
    return rng.choice([content, content[:at], content[:at] + more + content[at + len(more) :]])


def any_form(rng: Random) -> list[dict[str, Any]]:
    """Return sound rows of a format in which a field has one type throughout, as columns of tables have."""
    write = FORMS[rng.choice([name for name in FORMS if name != "messages with flags"])].write
    return [write(talk) for talk in talks(rng, least=4)]

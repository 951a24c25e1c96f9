"""Write traits, roles and questions: as folders of the suite, or in other people's formats. Nothing is ever left half written."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from wellworn.data.documents import JUDGED
from wellworn.data.errors import InputError
from wellworn.data.import_options import LeftOut
from wellworn.data.schema import Example, Role, Split, Trait

# The contents of a folder: path inside it → text.
Files = Mapping[str, str]
_ANSWERED: tuple[Split, ...] = ("train", "evaluate")
CONTEXT = "questions that follow a system message or earlier turns, for which the format has no place"


def trait_files(trait: Trait, card: str) -> Files:
    """Return the files of a trait's folder."""
    if trait.questions:
        # Questions and plain answers are the bank's.
        rows = [{"id": row.id, "positive": row.positive} for row in trait.examples if row.positive is not None]
    else:
        rows = [row.model_dump(exclude_defaults=True) for row in (*trait.examples, *trait.open)]
    examples = {"examples.jsonl": json_lines(rows)} if rows else {}
    return {"trait.yaml": _yaml(trait, {"examples", "open"}), **examples, "CARD.md": card}


def role_files(roles: Sequence[Role]) -> Files:
    """Return a file for each role."""
    return {f"{role.name}.yaml": _yaml(role) for role in roles}


def question_files(questions: Sequence[Example]) -> Files:
    """Return one file of questions."""
    return {"questions.jsonl": json_lines(row.model_dump(exclude_defaults=True) for row in questions)}


def export_files(subject: Trait | Role | Sequence[Example], form: str, left: LeftOut) -> Files:
    """Return the files that hold a trait, a role or a question bank in a third-party format.

    Args:
        subject: what is written.
        form: the format.
        left: counts what has no place in it.

    Raises:
        InputError: an unknown format, or one that cannot hold the subject.
    """
    if form not in _EXPORTS:
        raise InputError(f"--format: may be {', '.join(_EXPORTS)}, got {form!r}")
    write, needs = _EXPORTS[form]
    files = write(subject, left)
    if not files:
        raise InputError(f"--format {form}: {needs}, and {getattr(subject, 'name', 'this')} has none")
    return files


def write_folder(folder: Path, files: Files, replace: bool = False) -> None:
    """Write a folder, all of it or nothing.

    Args:
        folder: where.
        files: its contents.
        replace: whether an existing one is replaced, once the new one is whole.

    Raises:
        InputError: there is something in its place, or it cannot be written.
    """
    if folder.exists() and not replace:
        raise InputError(f"{folder}: exists already; nothing was written")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        for name, text in files.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        work.chmod(0o755)
        if replace and folder.exists():
            before = work.with_name(f"{work.name}-before")
            os.rename(folder, before)
            os.rename(work, folder)
            shutil.rmtree(before)
        else:
            os.rename(work, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _persona_vectors(subject: object, left: LeftOut) -> Files:
    if not isinstance(subject, Trait) or not subject.contrast_pairs:
        return {}
    pairs = [{"pos": pair.positive, "neg": pair.negative} for pair in subject.contrast_pairs]
    files = {}
    for split in ("extract", "evaluate"):
        questions = _bare([row for row in (*subject.open, *subject.examples) if row.split == split], left)
        if questions or split == "extract":
            value = {"instruction": pairs, "questions": questions} | _judge(subject.rubric)
            files[f"{split}/{subject.name}.json"] = _json(value)
    return files


def _bare(rows: Iterable[Example], left: LeftOut) -> list[str]:
    """Return the questions of rows that are asked by themselves; others would be another question, and are counted."""
    rows = list(rows)
    alone = [row.question for row in rows if not row.system and not row.before]
    if len(alone) < len(rows):
        left[CONTEXT] += len(rows) - len(alone)
    return alone


def _judge(rubric: str | None) -> dict[str, str]:
    if rubric is None:
        return {}
    return {"eval_prompt": rubric if "{answer}" in rubric else rubric + JUDGED}


def _messages(subject: object, _left: LeftOut) -> Files:
    """Return a file for each split and side, so that nobody trains on rows for evaluation."""
    files = {}
    for split in _ANSWERED:
        rows = subject.split(split) if isinstance(subject, Trait) else []
        for side, answers in (("positive", [row.positive for row in rows]), ("plain", [row.negative for row in rows])):
            if rows and None not in answers:
                chats = [{"messages": _chat(row, answer, side == "positive")} for row, answer in zip(rows, answers, strict=True)]
                files[f"{split}/{side}.jsonl"] = json_lines(chats)
    return files


def _chat(row: Example, answer: str | None, shown: bool) -> list[dict[str, Any]]:
    """Return a row as messages; an earlier answer without a loss has weight 0, and in plain chats all have."""
    messages = [_message("system", row.system)] if row.system else []
    for turn in row.before:
        messages += [_message("user", turn.question), _message("assistant", turn.answer) | ({} if turn.train and shown else {"weight": 0})]
    return [*messages, _message("user", row.question), *([_message("assistant", answer)] if answer else [])]


def _message(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


def _preferences(subject: object, _left: LeftOut) -> Files:
    if not isinstance(subject, Trait) or not subject.plain:
        return {}
    splits = {split: rows for split in _ANSWERED if (rows := subject.split(split))}
    # Readers of a file expect one form throughout.
    text = not any(row.system or row.before for row in subject.examples)
    return {f"{split}/preferences.jsonl": json_lines(_preference(row, text) for row in rows) for split, rows in splits.items()}


def _preference(row: Example, text: bool) -> dict[str, Any]:
    """Return a row as two answers to its question, or to the messages up to it."""
    if text:
        return {"prompt": row.question, "chosen": row.positive, "rejected": row.negative}
    sides = {"chosen": row.positive, "rejected": row.negative}
    # Preferences have no loss on earlier answers, so none is marked.
    prompt = [_message(each["role"], each["content"]) for each in _chat(row, None, shown=True)]
    return {"prompt": prompt} | {side: [_message("assistant", answer)] for side, answer in sides.items()}


def _assistant_axis(subject: object, _left: LeftOut) -> Files:
    if not isinstance(subject, Role):
        return {}
    value = {"instruction": [{"pos": prompt} for prompt in subject.system_prompts], "questions": list(subject.questions)}
    return {f"{subject.name}.json": _json(value | _judge(subject.rubric))}


def _questions(subject: object, left: LeftOut) -> Files:
    if isinstance(subject, Role):
        asked: Sequence[str] = subject.questions
    else:
        rows = (*subject.examples, *subject.open) if isinstance(subject, Trait) else subject
        asked = _bare((row for row in rows if row.split == "extract"), left)  # type: ignore[attr-defined]
    text = json_lines({"question": question} for question in asked)
    return {"questions.jsonl": text} if text else {}


# Each with the contents that it can hold.
_EXPORTS: dict[str, tuple[Callable[[object, LeftOut], Files], str]] = {
    "persona-vectors": (_persona_vectors, "holds a trait's contrast pairs"),
    "messages": (_messages, "holds a trait's answers"),
    "preferences": (_preferences, "holds a trait's answers next to plain ones"),
    "assistant-axis": (_assistant_axis, "holds a role's system prompts"),
    "questions": (_questions, "holds extract questions"),
}


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _yaml(model: BaseModel, exclude: set[str] | None = None) -> str:
    """Return the fields of a model as YAML, without empty ones."""
    value = model.model_dump(mode="json", exclude=exclude, exclude_none=True)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 140
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.Representer = _Representer
    out = StringIO()
    yaml.dump({key: each for key, each in value.items() if each != []}, out)
    return out.getvalue()


class _Representer(SafeRepresenter):
    """Writes characters that YAML would take for the end of a line, or not take at all, as escapes."""


def _text(representer: SafeRepresenter, text: str) -> ScalarNode:
    style = None if all(c.isprintable() for c in text) else '"'
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _text)

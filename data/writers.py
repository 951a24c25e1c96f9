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

from wellworn.data.errors import InputError
from wellworn.data.formats import JUDGED
from wellworn.data.schema import Example, Role, Split, Trait

# The contents of a folder: path inside it → text.
Files = Mapping[str, str]
_ANSWERED: tuple[Split, ...] = ("train", "evaluate")


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


def export_files(subject: Trait | Role | Sequence[Example], form: str) -> Files:
    """Return the files that hold a trait, a role or a question bank in a third-party format.

    Raises:
        InputError: an unknown format, or one that cannot hold the subject.
    """
    if form not in _EXPORTS:
        raise InputError(f"--format: may be {', '.join(_EXPORTS)}, got {form!r}")
    write, needs = _EXPORTS[form]
    files = write(subject)
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


def _persona_vectors(subject: object) -> Files:
    if not isinstance(subject, Trait) or not subject.contrast_pairs:
        return {}
    pairs = [{"pos": pair.positive, "neg": pair.negative} for pair in subject.contrast_pairs]
    files = {}
    for split in ("extract", "evaluate"):
        questions = [row.question for row in (*subject.open, *subject.examples) if row.split == split]
        if questions or split == "extract":
            value = {"instruction": pairs, "questions": questions} | _judge(subject.rubric)
            files[f"{split}/{subject.name}.json"] = _json(value)
    return files


def _judge(rubric: str | None) -> dict[str, str]:
    if rubric is None:
        return {}
    return {"eval_prompt": rubric if "{answer}" in rubric else rubric + JUDGED}


def _messages(subject: object) -> Files:
    """Return a file for each split and side, so that nobody trains on rows for evaluation."""
    files = {}
    for split in _ANSWERED:
        rows = subject.split(split) if isinstance(subject, Trait) else []
        for side, answers in (("positive", [row.positive for row in rows]), ("plain", [row.negative for row in rows])):
            if rows and None not in answers:
                files[f"{split}/{side}.jsonl"] = json_lines(_chat(row.question, answer) for row, answer in zip(rows, answers, strict=True))
    return files


def _chat(question: str, answer: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _preferences(subject: object) -> Files:
    if not isinstance(subject, Trait) or not subject.plain:
        return {}
    return {
        f"{split}/preferences.jsonl": json_lines(
            {"prompt": row.question, "chosen": row.positive, "rejected": row.negative} for row in subject.split(split)
        )
        for split in _ANSWERED
        if subject.split(split)
    }


def _assistant_axis(subject: object) -> Files:
    if not isinstance(subject, Role):
        return {}
    value = {"instruction": [{"pos": prompt} for prompt in subject.system_prompts], "questions": list(subject.questions)}
    return {f"{subject.name}.json": _json(value | _judge(subject.rubric))}


def _questions(subject: object) -> Files:
    if isinstance(subject, Role):
        asked: Iterable[str] = subject.questions
    else:
        rows = (*subject.examples, *subject.open) if isinstance(subject, Trait) else subject
        asked = (row.question for row in rows if row.split == "extract")  # type: ignore[attr-defined]
    text = json_lines({"question": question} for question in asked)
    return {"questions.jsonl": text} if text else {}


# Each with the contents that it can hold.
_EXPORTS: dict[str, tuple[Callable[[object], Files], str]] = {
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

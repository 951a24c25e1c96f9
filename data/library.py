"""Find and load traits, roles, controls and instructions, by name or by path."""

from collections.abc import Iterable
from pathlib import Path

from data.errors import InputError
from data.files import Model, did_you_mean, read_jsonl, read_yaml, validated
from data.schema import SPLITS, Control, Example, Instruction, Role, Trait

ROOT = Path(__file__).parent
NEUTRAL = "neutral"


def trait_names() -> list[str]:
    """Return the names of the built-in traits."""
    return sorted(path.parent.name for path in (ROOT / "traits").glob("*/trait.yaml"))


def control_names() -> list[str]:
    """Return the names of the built-in controls."""
    return sorted(path.stem for path in (ROOT / "controls").glob("*.yaml"))


def instruction_names() -> list[str]:
    """Return the names of the built-in instructions; controls are not among them."""
    return sorted(path.stem for path in (ROOT / "instructions").glob("*.yaml"))


def role_names() -> list[str]:
    """Return the names of the built-in roles."""
    return sorted(path.stem for path in (ROOT / "roles").glob("*.yaml"))


def bank_names() -> list[str]:
    """Return the names of the shared question banks."""
    return sorted(path.stem for path in (ROOT / "questions").glob("*.jsonl"))


def load_trait(name_or_path: str) -> Trait:
    """Load a built-in trait by name, or any trait from its folder.

    Raises:
        InputError: there is no such trait, or a file of it is malformed (names file and line).
    """
    folder = ROOT / "traits" / name_or_path if name_or_path in trait_names() else Path(name_or_path)
    if not (folder / "trait.yaml").is_file():
        if folder.is_dir():
            raise InputError(f"{folder}: a trait folder needs a trait.yaml, and this one has none")
        raise InputError(
            f"unknown trait {name_or_path!r}: neither a built-in trait nor a folder with a trait.yaml"
            + did_you_mean(name_or_path, trait_names())
        )
    path = folder / "trait.yaml"
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: a trait is a mapping of keys, got {type(value).__name__}")
    if "examples" in value:
        raise InputError(f"{path}:{lines[('examples',)]}: examples: belong in examples.jsonl, not here")
    bank = value.get("questions")
    if bank and bank not in bank_names():
        line = lines[("questions",)]
        raise InputError(f"{path}:{line}: questions: unknown question bank {bank!r}{did_you_mean(str(bank), bank_names())}")
    examples = _load_examples(folder / "examples.jsonl", load_bank(bank) if bank else None)
    return validated(Trait, value | {"examples": [e.model_dump() for e in examples]}, str(path), lines)


def load_control(name: str) -> Control:
    """Load a built-in control by name.

    Raises:
        InputError: there is no such control.
    """
    return _load_named(Control, name, control_names(), "controls")


def load_instruction(name: str) -> Instruction:
    """Load a built-in instruction by name.

    Raises:
        InputError: there is no such instruction, or its file is malformed (names file and line).
    """
    return _load_named(Instruction, name, instruction_names(), "instructions")


def load_role(name: str) -> Role:
    """Load a built-in role by name.

    Raises:
        InputError: there is no such role, or its file is malformed (names file and line).
    """
    return _load_named(Role, name, role_names(), "roles")


def load_bank(name: str) -> list[Example]:
    """Load a shared question bank: questions with one plain answer each, and no positives.

    Raises:
        InputError: there is no such bank, or it is malformed.
    """
    if name not in bank_names():
        raise InputError(f"unknown question bank {name!r}{did_you_mean(name, bank_names())}")
    path = ROOT / "questions" / f"{name}.jsonl"
    rows = [validated(Example, value, f"{path}:{line}") for line, value in read_jsonl(path)]
    _check_rows(path, rows)
    return rows


def _load_named(model: type[Model], name: str, names: list[str], folder: str) -> Model:
    if name not in names:
        raise InputError(f"unknown {model.__name__.lower()} {name!r}{did_you_mean(name, names)}")
    path = ROOT / folder / f"{name}.yaml"
    value, lines = read_yaml(path)
    return validated(model, value, str(path), lines)


def _load_examples(path: Path, bank: list[Example] | None) -> list[Example]:
    """Read a trait's rows; with a bank they only add positives to its questions."""
    rows: list[Example] = []
    questions = {example.id: example for example in bank or []}
    for line, value in read_jsonl(path):
        where = f"{path}:{line}"
        if not isinstance(value, dict):
            raise InputError(f"{where}: a row is a JSON object, got {type(value).__name__}")
        if bank is not None:
            if value.get("id") not in list(questions):  # a list: what stands there may not be hashable
                example = next(iter(questions))
                raise InputError(f"{where}: id: no question {value.get('id')!r} in the trait's question bank; its ids are like {example!r}")
            if set(value) != {"id", "positive"}:
                raise InputError(f"{where}: a row over a question bank has the keys id and positive, got {sorted(value)}")
            value = questions[value["id"]].model_dump() | value
        rows.append(validated(Example, {"id": str(line)} | value, where))
    if bank is not None:
        own = {example.id for example in rows}
        rows += [example for example in bank if example.split == "extract" and example.id not in own]
    _check_rows(path, rows, positives=True)
    return rows


def _check_rows(path: Path, rows: Iterable[Example], positives: bool = False) -> None:
    """Hold what every set of questions must hold: full, disjoint splits and, for traits, positives."""
    rows = list(rows)
    seen: dict[str, Example] = {}
    for row in rows:
        key = " ".join(row.question.lower().split())
        if key in seen:
            first = seen[key]
            kind = "overlap between splits" if first.split != row.split else "repeated question"
            raise InputError(f"{path}: {kind}: {row.question!r} stands in {first.split} ({first.id}) and in {row.split} ({row.id})")
        seen[key] = row
        if positives and row.split != "extract" and row.positive is None:
            raise InputError(f"{path}: {row.id}: a question without an answer: {row.split} rows need a positive")
    if len({row.id for row in rows}) < len(rows):
        twice = sorted({row.id for row in rows if sum(other.id == row.id for other in rows) > 1})
        raise InputError(f"{path}: ids must be unique, these occur twice: {', '.join(twice)}")
    for split in SPLITS:
        if not any(row.split == split for row in rows):
            raise InputError(f"{path}: split {split!r} is empty; every set needs rows in {', '.join(SPLITS)}")

"""Find and load traits, roles, controls and instructions, by name or by path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.errors import Complaints, InputError
from data.files import Model, did_you_mean, read_jsonl, read_yaml, validated
from data.schema import SPLITS, Control, Example, Instruction, Role, Scenario, Split, Trait

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


def folder_of(name_or_path: str) -> Path:
    """Return the folder of a built-in trait, or the one that a path names; a built-in name comes first."""
    return ROOT / "traits" / name_or_path if name_or_path in trait_names() else Path(name_or_path)


def load_trait(name_or_path: str) -> Trait:
    """Load a built-in trait by name, or any trait from its folder.

    Raises:
        InputError: there is no such trait, or its files are malformed: a line for each thing that is wrong, with file and line.
    """
    folder = folder_of(name_or_path)
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
    wrong = Complaints()
    examples: list[Example] = []
    with wrong.noted():
        trait = validated(Trait, value, str(path), lines)
    with wrong.noted():
        examples = _load_examples(folder / "examples.jsonl", load_bank(bank) if bank else None, bool(value.get("contrast_pairs")))
    wrong.settle()
    return trait.model_copy(update={"examples": tuple(examples)})


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
    rows = [(where := f"{path}:{line}", validated(Example, value, where)) for line, value in read_jsonl(path)]
    return _checked(path, rows, SPLITS)


def load_scenarios() -> list[Scenario]:
    """Load the scenarios that press a model toward an archetype.

    Raises:
        InputError: a row is malformed, or names a role that is none (names file and line).
    """
    path = ROOT / "scenarios" / "archetypes.jsonl"
    rows = [validated(Scenario, value, f"{path}:{line}") for line, value in read_jsonl(path)]
    for row in rows:
        load_role(row.archetype)
    return rows


def _load_named(model: type[Model], name: str, names: list[str], folder: str) -> Model:
    if name not in names:
        raise InputError(f"unknown {model.__name__.lower()} {name!r}{did_you_mean(name, names)}")
    path = ROOT / folder / f"{name}.yaml"
    value, lines = read_yaml(path)
    return validated(model, value, str(path), lines)


def _load_examples(path: Path, bank: list[Example] | None, contrasts: bool) -> list[Example]:
    """Read a trait's rows; with a bank they only add positives to its questions.

    Args:
        path: may be missing where a trait has contrast pairs and a bank, and no answers of its own.
        bank: the questions, or None for those of the rows.
        contrasts: whether there are contrast pairs, which are read on `extract` rows.
    """
    if contrasts and bank and not path.exists():
        return [example for example in bank if example.split == "extract"]
    rows: list[tuple[str, Example]] = []
    questions = {example.id: example for example in bank or []}
    wrong = Complaints()
    for line, value in read_jsonl(path):
        with wrong.noted():
            rows.append((f"{path}:{line}", _example(value, line, questions, f"{path}:{line}")))
    own = {example.id for _, example in rows}
    rows += [(str(path), example) for example in bank or [] if example.split == "extract" and example.id not in own]
    # Rows that are none would be missed among the others, and their splits be called empty.
    wrong.settle()
    needed: list[Split] = ["train", *(["extract"] if contrasts else []), "evaluate"]  # type: ignore[list-item]
    if contrasts and all(row.split == "extract" for _, row in rows):
        needed = ["extract"]
    return _checked(path, rows, needed, positives=True)


def _example(value: object, line: int, questions: dict[str, Example], where: str) -> Example:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row is a JSON object, got {type(value).__name__}")
    if questions:
        if value.get("id") not in list(questions):  # a list: what stands there may not be hashable
            example = next(iter(questions))
            raise InputError(f"{where}: id: no question {value.get('id')!r} in the trait's question bank; its ids are like {example!r}")
        if set(value) != {"id", "positive"}:
            raise InputError(f"{where}: a row over a question bank has the keys id and positive, got {sorted(value)}")
        value = questions[value["id"]].model_dump() | value
    return validated(Example, {"id": str(line)} | value, where)


def _checked(path: Path, rows: Sequence[tuple[str, Example]], needed: Sequence[Split], positives: bool = False) -> list[Example]:
    """Return the rows of a set if they hold what every set must: full, disjoint splits and, for traits, positives."""
    wrong = Complaints()
    asked: dict[str, Example] = {}
    for where, row in rows:
        first = asked.setdefault(" ".join(row.question.lower().split()), row)
        if first is not row:
            kind = "overlap between splits" if first.split != row.split else "repeated question"
            wrong.found.append(f"{where}: {kind}: {row.question!r} stands in {first.split} ({first.id}) and in {row.split} ({row.id})")
        if positives and row.split != "extract" and row.positive is None:
            wrong.found.append(f"{where}: {row.id}: a question without an answer: {row.split} rows need a positive")
    if twice := sorted(name for name, times in Counter(row.id for _, row in rows).items() if times > 1):
        wrong.found.append(f"{path}: ids must be unique, these occur twice: {', '.join(twice)}")
    for split in needed:
        if not any(row.split == split for _, row in rows):
            wrong.found.append(f"{path}: split {split!r} is empty; this set needs rows in {', '.join(needed)}")
    wrong.settle()
    return [row for _, row in rows]

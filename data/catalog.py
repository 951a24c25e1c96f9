"""Find and load traits, roles, controls, instructions and question banks: by name, by path, or from an installed package."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from wellworn.data.errors import Complaints, InputError
from wellworn.data.examples import bank_examples, trait_examples
from wellworn.data.files import Model, read_jsonl, read_yaml, validate
from wellworn.data.schema import Control, Example, Instruction, Role, Scenario, Trait, is_name
from wellworn.data.wording import did_you_mean

ROOT = Path(__file__).parent
NEUTRAL = "neutral"
# Installed packages name their traits here: `mine = "package.module:FOLDER"`.
ENTRY_POINTS = "wellworn.traits"
ROLE_FILES = (".yaml", ".yml")


def trait_names() -> list[str]:
    """Return the names of the built-in traits."""
    return sorted(path.parent.name for path in (ROOT / "traits").glob("*/trait.yaml"))


def invented_names() -> list[str]:
    """Return the names of personas that no base model has: `invented/<name>`."""
    return sorted(f"invented/{path.parent.name}" for path in (ROOT / "invented").glob("*/trait.yaml"))


def installed_names() -> list[str]:
    """Return the names of the traits that installed packages bring along; a built-in trait of the same name comes first."""
    return sorted(set(_installed_traits()) - set(trait_names()))


@cache
def _installed_traits() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def control_names() -> list[str]:
    """Return the names of the built-in controls."""
    return sorted(path.stem for path in (ROOT / "controls").glob("*.yaml"))


def check_name(name: str, remedy: str) -> None:
    """Check the name of a third-party trait, which is used by its path; `remedy` ends the complaint.

    Raises:
        InputError: an invalid name, or that of the reference, which every study has.
    """
    try:
        is_name(name)
    except ValueError as wrong:
        raise InputError(f"{name!r}: a name {wrong}; {remedy}") from None
    if name == NEUTRAL:
        raise InputError(f"{name!r}: is built in; {remedy}")


def check_new_name(name: str, remedy: str = "call yours something else") -> None:
    """Check the name of a user's own trait; `remedy` ends the complaint.

    Raises:
        InputError: as `check_name`, or the name of something built in, with which it would be confused.
    """
    check_name(name, remedy)
    if name in (*trait_names(), *control_names()):
        raise InputError(f"{name!r}: is built in; {remedy}")


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
    """Return the folder of a trait: of a built-in one, of one that an installed package brings along, or the one that a path names.

    Raises:
        InputError: the package does not say where the trait's folder is.
    """
    if name_or_path in trait_names():
        return ROOT / "traits" / name_or_path
    if name_or_path in invented_names():
        return ROOT / name_or_path
    if name_or_path in installed_names():
        return _folder_in_package(_installed_traits()[name_or_path])
    return Path(name_or_path)


def _folder_in_package(point: EntryPoint) -> Path:
    where = f"entry point {ENTRY_POINTS}: {point.name} = {point.value!r}"
    try:
        found = point.load()
    # A third-party module may fail in any way at all.
    except Exception as error:
        raise InputError(f"{where}: cannot be loaded ({type(error).__name__}: {error}); is the package installed whole?") from None
    if not isinstance(found, str | Path) or not Path(found).is_absolute():
        raise InputError(f"{where}: is the trait's folder, an absolute path, got {found!r}")
    return Path(found)


def load_trait(name_or_path: str) -> Trait:
    """Load a built-in trait or one of an installed package by name, or any trait from its folder.

    Raises:
        InputError: there is no such trait, or its files are malformed: a line for each thing that is wrong, with file and line.
    """
    folder = folder_of(name_or_path)
    if not (folder / "trait.yaml").is_file():
        if folder.is_dir():
            raise InputError(f"{folder}: a trait folder needs a trait.yaml, and this one has none")
        names = invented_names() if name_or_path.startswith("invented/") else trait_names() + installed_names()
        raise InputError(
            f"unknown trait {name_or_path!r}: neither a built-in trait nor a folder with a trait.yaml" + did_you_mean(name_or_path, names)
        )
    path = folder / "trait.yaml"
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: a trait is a mapping of keys, got {type(value).__name__}")
    for key in ("examples", "open"):
        if key in value:
            raise InputError(f"{path}:{lines[(key,)]}: {key}: belong in examples.jsonl, not here")
    bank = value.get("questions")
    if bank and bank not in bank_names():
        line = lines[("questions",)]
        raise InputError(f"{path}:{line}: questions: unknown question bank {bank!r}{did_you_mean(str(bank), bank_names())}")
    wrong = Complaints()
    examples: list[Example] = []
    with wrong.noted():
        trait = validate(Trait, value, str(path), lines)
    with wrong.noted():
        examples = trait_examples(folder / "examples.jsonl", load_bank(bank) if bank else None, bool(value.get("contrast_pairs")))
    wrong.settle()
    return with_examples(trait, examples)


def with_examples(trait: Trait, examples: Sequence[Example]) -> Trait:
    """Return a trait with its rows: those that have answers, and open questions apart."""
    answered, unanswered = ([row for row in examples if row.open == is_open] for is_open in (False, True))
    return trait.model_copy(update={"examples": tuple(answered), "open": tuple(unanswered)})


def load_control(name: str) -> Control:
    """Load a built-in control by name.

    Raises:
        InputError: there is no such control.
    """
    return _load_named(Control, name, control_names(), "controls")


def load_subject(name_or_path: str) -> Trait | Control:
    """Load what a model can be trained on: a built-in control by name, or a trait as `load_trait` does.

    Raises:
        InputError: as `load_trait`.
    """
    return load_control(name_or_path) if name_or_path in control_names() else load_trait(name_or_path)


def load_instruction(name: str) -> Instruction:
    """Load a built-in instruction by name.

    Raises:
        InputError: there is no such instruction, or its file is malformed (names file and line).
    """
    return _load_named(Instruction, name, instruction_names(), "instructions")


def load_role(name_or_path: str) -> Role:
    """Load a built-in role by name, or any role from its YAML file.

    Raises:
        InputError: there is no such role, or its file is malformed (names file and line).
    """
    if Path(name_or_path).suffix in ROLE_FILES:
        value, lines = read_yaml(Path(name_or_path))
        return validate(Role, value, name_or_path, lines)
    return _load_named(Role, name_or_path, role_names(), "roles")


def load_roles(names_or_paths: Sequence[str]) -> list[Role]:
    """Load roles: built-in ones by name, any from its YAML file, and all that are in a folder.

    Raises:
        InputError: as `load_role`, or a folder without a role.
    """
    roles: list[Role] = []
    wrong = Complaints()
    for name in names_or_paths:
        files = [name]
        if name not in role_names() and Path(name).is_dir():
            files = sorted(str(path) for path in Path(name).glob("*.yaml"))
            if not files:
                wrong.found.append(f"{name}: a folder of roles needs a .yaml file for each, and this one has none")
        for file in files:
            with wrong.noted():
                roles.append(load_role(file))
    wrong.settle()
    return roles


def is_roles(path: Path) -> bool:
    """Whether a path is of a role's file, or of a folder that holds roles and no trait."""
    return path.suffix in ROLE_FILES or (path.is_dir() and not (path / "trait.yaml").exists() and any(path.glob("*.yaml")))


def load_bank(name_or_path: str) -> list[Example]:
    """Load a question bank by name, or from its .jsonl file: questions with one plain answer each, and no positives.

    Raises:
        InputError: there is no such bank, it is malformed, or its questions have no answers.
    """
    rows = load_questions(name_or_path)
    if any(row.open for row in rows):
        raise InputError(f"{name_or_path}: its questions have no plain answers (negative), which controls and neutral are made of")
    return rows


def load_questions(name_or_path: str) -> list[Example]:
    """Load a question bank, or a file of `extract` questions without answers.

    Raises:
        InputError: there is no such bank, or it is malformed.
    """
    if Path(name_or_path).suffix == ".jsonl":
        return bank_examples(Path(name_or_path))
    if name_or_path not in bank_names():
        raise InputError(f"unknown question bank {name_or_path!r}{did_you_mean(name_or_path, bank_names())}")
    return bank_examples(ROOT / "questions" / f"{name_or_path}.jsonl")


def load_scenarios() -> list[Scenario]:
    """Load the scenarios that press a model toward an archetype.

    Raises:
        InputError: a row is malformed, or names an unknown role (names file and line).
    """
    path = ROOT / "scenarios" / "archetypes.jsonl"
    rows = [validate(Scenario, value, f"{path}:{line}") for line, value in read_jsonl(path)]
    for row in rows:
        load_role(row.archetype)
    return rows


def _load_named(model: type[Model], name: str, names: list[str], folder: str) -> Model:
    if name not in names:
        raise InputError(f"unknown {model.__name__.lower()} {name!r}{did_you_mean(name, names)}")
    path = ROOT / folder / f"{name}.yaml"
    value, lines = read_yaml(path)
    return validate(model, value, str(path), lines)

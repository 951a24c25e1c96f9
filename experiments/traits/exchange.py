"""Import third-party traits, roles and questions, and export them in third-party formats."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from wellworn.data.catalog import (
    bank_names,
    check_name,
    folder_of,
    is_roles,
    load_questions,
    load_roles,
    load_trait,
    role_names,
)
from wellworn.data.errors import InputError
from wellworn.data.import_options import LeftOut, Options
from wellworn.data.importers import import_all, source_name
from wellworn.data.new_trait import figures
from wellworn.data.schema import Example, Role, Trait
from wellworn.data.writers import export_files, question_files, role_files, trait_files, write_folder


def import_to(
    folder: Path,
    name: str | None,
    sources: Sequence[str],
    options: Options,
    plain: Sequence[str],
    evaluation: Sequence[str],
    console: Console,
) -> None:
    """Write the content of sources into a new folder, and print a summary.

    Raises:
        InputError: a source that cannot be used, a name that is taken, or a folder that exists; nothing is written then.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists already; nothing was written")
    named = name or folder.resolve().name
    check_name(named, "call yours something else with --name or --to")
    found = import_all(sources, named, options, plain, evaluation)
    at, head = address(folder), _origin([*sources, *plain, *evaluation], found.left_out)
    if found.trait:
        write_folder(folder, trait_files(found.trait, f"# Trait card: {named}\n\n{head}\n{figures(found.trait)}"))
        said = f"the trait {named}; see what it is fit for: wellworn traits check {at}"
    elif found.roles:
        write_folder(folder, {**role_files(found.roles), "CARD.md": f"# Roles: {named}\n\n{head}"})
        said = f"{len(found.roles)} roles; in a study: roles: [{at}]"
    else:
        write_folder(folder, {**question_files(found.questions), "CARD.md": f"# Questions: {named}\n\n{head}"})
        said = f"{len(found.questions)} questions without answers; in a study: generated_directions: {{bank: {at}/questions.jsonl}}"
    console.print(f"{folder}: {said}", highlight=False, markup=False)
    _print_left_out(found.left_out, console)


def _print_left_out(left: Mapping[str, int], console: Console) -> None:
    for key, count in sorted(left.items()):
        console.print(f"  left out: {key} ({count} times)", style="yellow", highlight=False, markup=False, soft_wrap=True)


def address(folder: Path) -> str:
    """Return a folder's name for use in a command; a bare name would be looked up among the built-in ones first."""
    return str(folder) if folder.is_absolute() or folder.parent != Path() else f"./{folder}"


def _origin(sources: Sequence[str], left: Mapping[str, int]) -> str:
    """Return the part of a card that says where something is from, and what of it was left out."""
    names = ", ".join(map(source_name, sources))
    origin = f"Imported from {names}, third-party data: its licence and its faults are its authors'.\n"
    counts = "".join(f"- {count} × {key}\n" for key, count in sorted(left.items())) or "Nothing.\n"
    return f"{origin}\n## Left out\n\n{counts}"


def export_to(folder: Path, name: str, form: str, console: Console) -> None:
    """Write a trait, a role or a question bank into a new folder, in a third-party format.

    Raises:
        InputError: an unknown name, a format that does not fit it, or a folder that exists.
    """
    files: dict[str, str] = {}
    left: LeftOut = defaultdict(int)
    for subject in _subjects(name):
        files |= export_files(subject, form, left)
    write_folder(folder, files)
    for path in files:
        console.print(str(folder / path), highlight=False, markup=False)
    _print_left_out(left, console)


def _subjects(name: str) -> Sequence[Trait | Role | Sequence[Example]]:
    if name in role_names() or is_roles(folder_of(name)):
        return load_roles([name])
    if name in bank_names() or Path(name).suffix == ".jsonl":
        return [load_questions(name)]
    return [load_trait(name)]

"""Bring in what others wrote, and write out what is here in their formats."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data.cards import figures
from data.errors import InputError
from data.formats import Options
from data.importers import import_all
from data.library import bank_names, load_questions, load_role, load_trait, role_names
from data.schema import NAME_PATTERN, Example, Role, Trait
from data.writers import exported, question_files, role_files, trait_files, write_folder


def import_to(
    folder: Path, name: str | None, sources: Sequence[str], options: Options, plain: str | None, evaluation: Path | None, console: Console
) -> None:
    """Write what sources hold into a new folder, and say what it is.

    Raises:
        InputError: a source that cannot be used, or a folder that exists; nothing is written then.
    """
    named = name or folder.name
    if not re.fullmatch(NAME_PATTERN, named):
        raise InputError(
            f"{named!r}: a name has lower-case letters, digits, - and _, and begins with a letter or a digit; give one with --name"
        )
    if folder.exists():
        raise InputError(f"{folder}: exists already; nothing was written")
    found = import_all(sources, named, options, plain, evaluation)
    if found.trait:
        others = [str(each) for each in (plain, evaluation) if each]
        write_folder(folder, trait_files(found.trait, _card(found.trait, [*sources, *others])))
        said = f"the trait {named}; see what it is fit for: wellworn traits check {folder}"
    elif found.roles:
        write_folder(folder, role_files(found.roles))
        said = f"{len(found.roles)} roles; in a study: roles: [{folder}]"
    else:
        write_folder(folder, question_files(found.questions))
        said = f"{len(found.questions)} questions without answers"
    console.print(f"{folder}: {said}", highlight=False, markup=False)
    for key, count in sorted(found.left_out.items()):
        console.print(f"  left out: {key!r}, which {count} rows or documents have", style="yellow", highlight=False, markup=False)


def _card(trait: Trait, sources: Sequence[str]) -> str:
    names = ", ".join(Path(source).name for source in sources)
    origin = f"Imported from {names}, which somebody else wrote: its licence and its faults are theirs."
    return f"# Trait card: {trait.name}\n\n{origin}\n\n{figures(trait)}"


def export_to(folder: Path, name: str, form: str, console: Console) -> None:
    """Write a trait, a role or a question bank into a new folder, in somebody else's format.

    Raises:
        InputError: nothing of that name, a format that does not fit it, or a folder that exists.
    """
    subject: Trait | Role | Sequence[Example]
    if name in role_names() or Path(name).suffix in (".yaml", ".yml"):
        subject = load_role(name)
    elif name in bank_names() or Path(name).suffix == ".jsonl":
        subject = load_questions(name)
    else:
        subject = load_trait(name)
    files = exported(subject, form)
    write_folder(folder, files)
    for path in files:
        console.print(str(folder / path), highlight=False, markup=False)

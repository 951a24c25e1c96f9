"""The commands `wellworn studies`: list studies, show one, and explain the keys of a study file. Heavy imports happen inside."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from wellworn.data.errors import InputError
from wellworn.experiments.commands.options import HELP, StudyName, console, examples

if TYPE_CHECKING:
    from wellworn.experiments.reference import Key

app = typer.Typer(context_settings=HELP, help="List studies, show one, and explain every key of a study file.")
# Title of the page that `--markdown` prints.
TITLE = "Keys of a study file"
# The name is the file's name, and not a key of the file.
LEFT_OUT = ("name",)


@app.callback(
    invoke_without_command=True,
    epilog=examples("wellworn studies", "wellworn studies show quickstart", "wellworn studies keys mediate"),
)
def studies(context: typer.Context) -> None:
    """List studies, show one, and explain every key of a study file. Without a command, list them."""
    if context.invoked_subcommand is None:
        studies_list()


@app.command("list", epilog=examples("wellworn studies list", "wellworn run quickstart"))
def studies_list() -> None:
    """List the built-in studies, each with its question."""
    from wellworn.experiments.study_file import load_study, study_names

    table = Table.grid(padding=(0, 2))
    for name in study_names():
        table.add_row(f"[bold]{name}[/bold]", escape(load_study(name).question))
    console.print(table)


@app.command("show", epilog=examples("wellworn studies show quickstart", "wellworn studies show my_study.yaml"))
def studies_show(name: StudyName) -> None:
    """Show what a study asks, what it expects, what would refute it, and its file."""
    from wellworn.data.files import read_text
    from wellworn.experiments.study import expand_runs
    from wellworn.experiments.study_file import find_study, load_study

    study, path = load_study(name), find_study(name)
    table = Table.grid(padding=(0, 2))
    arms = [run.arm.arm for run in expand_runs(study)]
    for title, text in (
        ("question", study.question),
        ("expects", study.expects),
        ("refuted by", study.refuted_by),
        ("model", study.model),
        ("runs", ", ".join(f"{arms.count(arm)} {arm}" for arm in dict.fromkeys(arms))),
        ("file", str(path)),
    ):
        table.add_row(f"[bold]{title}[/bold]", escape(text))
    console.print(table)
    console.print(f"\n{read_text(path).rstrip()}", style="dim", highlight=False, markup=False, soft_wrap=True)


@app.command(
    "keys",
    epilog=examples("wellworn studies keys", "wellworn studies keys train", "wellworn studies keys mediate.draws"),
)
def studies_keys(
    prefix: Annotated[str | None, typer.Argument(help="A key, such as train or mediate.draws; all keys if left out.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all keys as a Markdown page.")] = False,
) -> None:
    """Explain keys of a study file: type, default, unit, range, meaning and an example."""
    from wellworn.data.wording import did_you_mean
    from wellworn.experiments import reference
    from wellworn.experiments.study import Study

    if markdown:
        console.print(reference.markdown(Study, TITLE, LEFT_OUT), highlight=False, markup=False, soft_wrap=True, end="")
        return
    every = reference.keys(Study, LEFT_OUT)
    wanted = (prefix or "").replace("[]", "")
    # Items of a list have their own keys: runs.trait finds runs[].trait.
    found = [key for key in every if f"{key.path.replace('[]', '')}.".startswith(f"{wanted}." if wanted else "")]
    if not found:
        raise InputError(f"unknown key {prefix!r}{did_you_mean(wanted, [key.path for key in every], '; wellworn studies keys lists all')}")
    under = ""
    for key in found:
        if key.under and (section := reference.heading(key)) != under:
            under = section
            console.print(f"\n[bold]{escape(section)}[/bold]  {escape(reference.summary(key.within))}", highlight=False)
        _show(key)


def _show(key: "Key") -> None:
    default = "required" if key.default is None else f"default {key.default}"
    console.print(f"[bold cyan]{escape(key.path)}[/bold cyan]  {escape(key.takes)}; {escape(default)}", highlight=False)
    more = [f"unit: {key.unit}" if key.unit else "", f"example: {key.example}" if key.example else ""]
    for text in (key.meaning, "; ".join(filter(None, more))):
        if text:
            console.print(Padding(escape(text), (0, 0, 0, 4)), highlight=False)

"""Shared parts of the commands: consoles, examples in help, and options of several commands."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from wellworn.experiments.terminal import Terminal

if TYPE_CHECKING:
    from wellworn.experiments.study_sections import ChatConfig

# A fixed width keeps tables whole in logs and pipes.
console = Terminal(width=None if sys.stdout.isatty() else 150)
complaints = Terminal(stderr=True)
HELP = {"help_option_names": ["-h", "--help"]}


def _study_names() -> list[str]:
    from wellworn.experiments.study_file import study_names

    return study_names()


StudyName = Annotated[
    str,
    typer.Argument(autocompletion=_study_names, help="A built-in study (wellworn studies lists them), or a YAML file."),
]
Model = Annotated[str, typer.Option(help="The base model: smollm2-135m, a folder, or a hub id.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR",
        help=escape("PEFT LoRA adapter: a folder, org/name[/folder][@revision] on the hub, or a sum a+0.5*b; can be repeated."),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key.sub=value", help="Change a key of the study (wellworn studies keys explains all of them)."),
]
Plan = Annotated[bool, typer.Option("--plan", help="List the stages and which are finished; compute nothing.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where stages and results are kept.")]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the summary to FILE; - is standard output.")]
FiguresFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures to FILE.")]
ChatKeys = Annotated[
    list[str] | None,
    typer.Option("--chat", metavar="KEY=VALUE", help="A key of a study's chat section, such as date=2026-01-01; can be repeated."),
]
KeyEnv = Annotated[str, typer.Option(metavar="NAME", help="Environment variable that holds the server's key.")]


def chat_config(pairs: Sequence[str] | None) -> "ChatConfig":
    """Return how conversations are written, from `--chat KEY=VALUE`.

    Raises:
        InputError: a key that the section `chat` does not have, or a wrong value.
    """
    from wellworn.data.files import assign, validate
    from wellworn.data.secrets import without_secrets
    from wellworn.experiments.study_sections import ChatConfig

    value: dict[str, Any] = {}
    for pair in pairs or ():
        shown = without_secrets(pair)
        wrong = f"--chat {shown!r}: is written KEY=VALUE, such as date=2026-01-01 or template_kwargs.enable_thinking=false"
        assign(value, pair, f"--chat {shown}", wrong)
    return validate(ChatConfig, value, "--chat")


def examples(*lines: str) -> str:
    """Format examples for the end of a command's help, one per line."""
    return "[bold]Examples[/bold]\n" + "\n".join(f"$ {escape(line)}" for line in lines)

"""What the commands share: where they print, and options that several of them take."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# A fixed width elsewhere than in a terminal keeps tables whole in logs and pipes.
console = Console(width=None if sys.stdout.isatty() else 150)
complaints = Console(stderr=True)
# What servers answered, in the runs folder.
REPLIES = "replies.sqlite"

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Where stages and results are kept.")]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the summary there; - is standard output.")]
FiguresFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures there.")]
KeyEnv = Annotated[str, typer.Option(help="The environment variable that holds the server's key.")]

"""The command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does a fine-tune walk persona paths that a model already has?",
)
console = Console()


@app.command()
def run(
    study: Annotated[str, typer.Argument()],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    runs_dir: Annotated[Path, typer.Option()] = Path("runs"),
) -> None:
    from experiments.engine import run as run_stages
    from experiments.plan import plan
    from experiments.ranks import Ranks
    from experiments.stages import Bench
    from experiments.store import Store
    from experiments.study import load_study

    loaded = load_study(study, overrides or [])
    ranks = Ranks()
    bench = Bench.of(loaded, ranks)
    planned = plan(loaded, bench)
    store = Store(runs_dir)
    run_stages(planned.targets, store, bench, ranks, console)
    from experiments.results import load_results, save_index, summarise
    from experiments.store import write_json
    from experiments.report.terminal import show
    results = load_results(save_index(planned, store))
    summary = summarise(results)
    write_json(results.folder / "summary.json", summary)
    show(summary, console)


@app.command()
def doctor() -> None:
    pass


def main() -> None:
    app()

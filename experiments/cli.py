"""The command line. Heavy imports happen inside the commands, so that help and typing errors are instant."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from wellworn.data.errors import InputError
from wellworn.experiments.commands import traits as cli_traits
from wellworn.experiments.commands.options import REPLIES, FiguresFile, JsonFile, KeyEnv, RunsDir, complaints, console

if TYPE_CHECKING:
    from wellworn.experiments.study import Study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does a fine-tune walk the persona paths that a model already has, or does it cut new ones?",
)
app.add_typer(cli_traits.app, name="traits")
# A file may be wrong in every line.
MOST_COMPLAINTS = 50


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A built-in study, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Change a key of the study.")] = None,
    runs_dir: RunsDir = Path("runs"),
    json_file: JsonFile = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the stages and which are finished, and compute nothing.")] = False,
) -> None:
    """Run a study: train its arms, measure them, and show the answer. Finished stages are never done twice."""
    from wellworn.experiments.study import load_study

    _run(load_study(study, overrides or ()), runs_dir, json_file, plan_only=plan)


@app.command()
def probe(
    adapter: Annotated[list[Path], typer.Option(help="Folder of a PEFT LoRA adapter; may be given again.")],
    model: Annotated[str, typer.Option(help="The base: smollm2-135m, a folder, or a hub id.")],
    trait: Annotated[list[str] | None, typer.Option(help="A trait that it may have been trained on; may be given again.")] = None,
    runs_dir: RunsDir = Path("runs"),
    json_file: JsonFile = None,
) -> None:
    """Measure adapters that someone else trained; several of one base are read together."""
    from wellworn.data.catalog import control_names, load_trait, trait_names
    from wellworn.data.files import digest, validated
    from wellworn.experiments.study import Study

    suspected = trait or []
    traits = {name: load_trait(name) for name in suspected if name not in control_names()}
    own = [name for name, found in traits.items() if found.name not in trait_names() and found.contrast_pairs]
    # A trait from elsewhere may have fewer contrast pairs than a study reads by itself.
    pairs = min([Study.model_fields["contrast_pairs"].default, *(len(traits[name].contrast_pairs) for name in own)])
    folders = [folder.resolve() for folder in adapter]
    names = ", ".join(folder.name for folder in folders)
    # The same few words for any number: paths tell apart what is called alike.
    rest = f"-and-{len(folders) - 1}-more-{digest(list(map(str, folders)), 6)}" if len(folders) > 1 else ""
    study = {
        "name": f"probe-{folders[0].name}{rest}",
        "question": f"Does a fine-tune ({names}) move the model along persona directions that it already had?",
        "expects": "Nothing: it was trained elsewhere.",
        "refuted_by": "Nothing.",
        "model": model,
        "library": [name for name in trait_names() if load_trait(name).contrast_pairs] + own,
        "contrast_pairs": pairs,
        "runs": [{"arm": "adapter", "path": str(folder), "trait": name} for folder in adapter for name in (suspected or (None,))],
    }
    _run(validated(Study, study, "probe"), runs_dir, json_file)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a study, such as runs/quickstart.")], json_file: JsonFile = None
) -> None:
    """Write a finished study's report again, and show its table."""
    _report(run_dir, json_file)


@app.command()
def doctor(model: Annotated[str, typer.Option(help="The model to look at.")] = "smollm2-135m") -> None:
    """Show versions, device and model, and one training example with its loss mask and spans."""
    from wellworn.experiments.commands.doctor import examine

    examine(model, console)


@app.command()
def judge(
    names: Annotated[list[str], typer.Argument(help="Traits and controls whose evaluate answers are graded.")],
    model: Annotated[str, typer.Option(help="The judge: smollm2-135m, a folder or a hub id; with --url, the name it has there.")],
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")] = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    base: Annotated[
        str, typer.Option(help="With --url: the model that scores the same answers by likelihood and choice.")
    ] = "smollm2-135m",
    runs_dir: RunsDir = Path("runs"),
    json_file: FiguresFile = None,
) -> None:
    """Try a judge on answers whose label is known: how well its grades tell those with a trait from those without."""
    from wellworn.data.files import validated
    from wellworn.experiments.commands.try_judge import try_judge
    from wellworn.probes.scoring.endpoint import EndpointConfig

    _check_folder(json_file)
    server = validated(EndpointConfig, {"url": url, "model": model, "key_env": key_env}, "judge") if url else None
    try_judge(names, base if server else model, server, runs_dir / REPLIES, json_file, console)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Option(help="The base: smollm2-135m, a folder, or a hub id.")],
    adapter: Annotated[list[Path] | None, typer.Option(help="Folder of a PEFT LoRA adapter of it; may be given again.")] = None,
    suite: Annotated[str, typer.Option(help="builtin, which needs no download, and tasks of lm-eval; commas between.")] = "builtin",
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder of tasks beside those of lm-eval.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many items of each task of lm-eval.")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each item; else as many as the task says.")] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Write items of lm-eval as a user's turns.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of lm-eval at a time.")] = 8,
    json_file: FiguresFile = None,
) -> None:
    """Measure what fine-tunes cost: perplexity, divergence from the base, sums, instructions about form, and tasks of lm-eval."""
    from wellworn.experiments.commands.evaluate import evaluate as measure_capability
    from wellworn.experiments.commands.lm_eval_tasks import Settings

    suites = [name.strip() for name in suite.split(",") if name.strip()]
    if not suites:
        raise InputError("--suite: names nothing; it may be builtin, or tasks of lm-eval with commas between them")
    _check_folder(json_file)
    settings = Settings(tasks_dir, limit, fewshot, chat_template, batch_size)
    measure_capability(model, adapter or [], suites, settings, json_file, console)


@app.command()
def bench(
    kind: Annotated[str, typer.Argument(help="capture, shift, mediate, generate or judge.")],
    model: Annotated[str, typer.Option(help="smollm2-135m, a folder, or a hub id.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Rollouts to read, or answers to write.")] = 96,
    repeats: Annotated[int, typer.Option(help="Timed rounds, at least 5.")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="Also run repeng and steering-vectors, in environments of their own.")] = False,
    json_file: FiguresFile = None,
) -> None:
    """Measure the suite's hot loops against a bare forward pass, a plain loop and other libraries."""
    from wellworn.experiments.bench.run import bench as run_bench

    _check_folder(json_file)
    run_bench(kind, model, rows, repeats, peers, json_file, console)


@app.command()
def simulate(
    kind: Annotated[str, typer.Argument(help="shares, crossed, nulls or pipeline.")],
    repeats: Annotated[int, typer.Option(help="Draws for each row, at least 100.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all rows there.")] = None,
) -> None:
    """Try the statistics on synthetic data whose answer is known: shares, means and ratios over runs, and nulls."""
    from wellworn.experiments.simulate.run import simulate as run_simulation

    _check_folder(json_file)
    run_simulation(kind, repeats, seed, json_file, console)


def _run(study: "Study", runs_dir: Path, json_file: str | None, plan_only: bool = False) -> None:
    from wellworn.experiments.engine.context import StudyContext
    from wellworn.experiments.engine.ranks import Ranks
    from wellworn.experiments.engine.run import ordered
    from wellworn.experiments.engine.run import run as run_stages
    from wellworn.experiments.engine.store import Store
    from wellworn.experiments.findings.results import save_index
    from wellworn.experiments.plan.plan import plan

    show = _screen(json_file)
    ranks = Ranks()
    context = StudyContext.of(study, ranks, runs_dir / REPLIES)
    planned = plan(study, context)
    store = ranks.from_main(lambda: Store(runs_dir, create=not plan_only))
    if plan_only:
        for stage in ordered(planned.targets):
            done = store.done(stage.id)
            if stage.check is not None and not done:
                stage.check()
            if ranks.main:
                show.print(f"{'done' if done else '    '}  {escape(stage.title)}  [dim]{stage.id}[/dim]", highlight=False)
        ranks.close()
        return
    if ranks.main:
        show.print(f"{context.ref.id} on {context.device}, {context.dtype}, {ranks.world} process(es)", highlight=False, markup=False)
    try:
        run_stages(planned.targets, store, context, ranks, show)
    finally:
        ranks.close()
        if ranks.main and planned.judge and (used := planned.judge.used):
            show.print(used, highlight=False, markup=False)
    if ranks.main:
        _report(save_index(planned, store), json_file)


def _report(folder: Path, json_file: str | None) -> None:
    from wellworn.experiments.engine.store import write_json, write_text
    from wellworn.experiments.findings.results import REPORT, SUMMARY, load_results
    from wellworn.experiments.findings.summary import summarise
    from wellworn.experiments.report.page import page
    from wellworn.experiments.report.terminal import show as show_table

    results = load_results(folder)
    summary = summarise(results)
    write_json(folder / SUMMARY, summary.to_json())
    write_text(folder / REPORT, page(results, summary))
    if json_file == "-":
        sys.stdout.write(json.dumps(summary.to_json(), ensure_ascii=False) + "\n")
    elif json_file:
        write_json(Path(json_file), summary.to_json())
    show = _screen(json_file)
    show_table(summary, show)
    show.print(f"report: {folder / REPORT}", highlight=False, markup=False)


def _screen(json_file: str | None) -> Console:
    """Return where to show things: standard output, unless that is where the JSON goes.

    Raises:
        InputError: the folder of the JSON file does not exist; found out before anything is computed.
    """
    _check_folder(Path(json_file) if json_file and json_file != "-" else None)
    return complaints if json_file == "-" else console


def _check_folder(json_file: Path | None) -> None:
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: there is no folder {json_file.parent}")


def _quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of the display, and their telemetry off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # It speaks of kernels that could be downloaded, whenever PEFT imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers calls its own deprecated name whenever PEFT prepares a model
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; an `InputError` becomes one message and exit code 2."""
    _quiet_libraries()
    try:
        return app(args=list(arguments) if arguments is not None else None)
    except InputError as error:
        lines = str(error).split("\n")
        if (more := len(lines) - MOST_COMPLAINTS) > 0:
            lines[MOST_COMPLAINTS:] = [f"and {more:,} more"]
        said = "\n".join(lines)
        complaints.print(f"[bold red]error:[/bold red] {_escaped(said)}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        # Whatever the file system refuses, the user alone can mend.
        given = sys.argv[1:] if arguments is None else list(arguments)
        kept = "; finished stages are kept" if given[:1] != ["traits"] else ""
        complaints.print(f"[bold red]error:[/bold red] {_escaped(str(error))}{kept}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        complaints.print("stopped; run the same command again to go on from here", highlight=False)
        sys.exit(130)


def _escaped(text: str) -> str:
    # A file or a model's answer may hold terminal control sequences; show them, never obey them.
    return escape("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))

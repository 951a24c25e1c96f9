"""The command line. Heavy imports happen inside the commands, so that help and typing errors are instant."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from wellworn.data.errors import InputError, describe_os_error, describe_out_of_memory, is_out_of_memory
from wellworn.data.wording import visible
from wellworn.experiments.commands import studies, traits
from wellworn.experiments.commands.options import (
    HELP,
    Adapters,
    ChatKeys,
    FiguresFile,
    JsonFile,
    KeyEnv,
    Model,
    Overrides,
    Plan,
    RunsDir,
    StudyName,
    chat_config,
    complaints,
    console,
    examples,
)
from wellworn.experiments.commands.run import check_folder, run_study, screen, write_report, write_summary
from wellworn.experiments.terminal import guarded, shorten

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP,
    help="Does a fine-tune walk the persona paths that a model already has, or does it cut new ones?",
    epilog=examples("wellworn run quickstart", "wellworn studies", "wellworn measure --model MODEL --adapter DIR --trait pirate"),
)
app.add_typer(studies.app, name="studies")
app.add_typer(traits.app, name="traits")
# A file may have an error in every line.
MOST_COMPLAINTS = 50
# The exit code of a process that was asked to stop.
STOPPED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"wellworn {version('wellworn')}")
        raise typer.Exit


@app.callback()
def wellworn(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Does a fine-tune walk the persona paths that a model already has, or does it cut new ones?"""


@app.command(
    epilog=examples(
        "wellworn run quickstart",
        "wellworn run quickstart --plan",
        "wellworn run my_study.yaml train.lora.r=4 'seeds=[0,1,2]' --json out.json",
    )
)
def run(
    study: StudyName,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
    json_file: JsonFile = None,
    plan: Plan = False,
) -> None:
    """Run a study: train its arms, measure them, and show the answer. Finished stages are never run twice."""
    from wellworn.experiments.study_file import load_study

    run_study(load_study(study, overrides or ()), runs_dir, json_file, plan_only=plan)


@app.command(
    epilog=examples(
        "wellworn measure --model smollm2-135m --adapter adapters/pirate --trait pirate",
        "wellworn measure --model org/base --adapter org/name/checkpoint-40@main --neutral adapters/neutral --trait pirate",
        "wellworn measure --model org/base --adapter 'a+0.5*b' --scale 0.5 --scale 1 --trait pirate mediate=null",
        "wellworn measure --model org/base --tuned org/full-fine-tune --trait pirate",
    )
)
def measure(
    model: Model,
    adapter: Adapters = None,
    overrides: Overrides = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Whole model of the base's architecture, a full fine-tune or a merged one; can be repeated."),
    ] = None,
    trait: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Trait that it may have been trained on; can be repeated.")
    ] = None,
    neutral: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Neutral adapter or model of the same recipe, trained on answers without the trait."),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(metavar="X", help="Factor of the adapters' updates; repeated, it makes a dose curve.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer where shares are read: an index, or a fraction of the depth.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16 or nf4.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the results' folder; made of what is asked if left out.")] = None,
    chat: ChatKeys = None,
    runs_dir: RunsDir = Path("runs"),
    json_file: JsonFile = None,
    plan: Plan = False,
) -> None:
    """Measure third-party adapters or whole models, without training. Several adapters of one base are read together.

    What takes long, mediation above all, is measured only where the trait score rises (only_changed=false asks for it everywhere).
    """
    from wellworn.experiments.commands.measure import Asked, overrides_of, scales_of, study_of

    asked = Asked(
        model=model,
        adapters=adapter or (),
        tuned=tuned or (),
        suspected=trait or (),
        neutral=neutral,
        scales=scales_of(scale),
        chat=chat_config(chat),
        overrides=overrides_of(overrides or (), layer, dtype),
        name=name,
    )
    run_study(study_of(asked), runs_dir, json_file, plan_only=plan)


@app.command(epilog=examples("wellworn report runs/quickstart", "wellworn report runs/quickstart --json summary.json"))
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Results of a study, such as runs/quickstart.")],
    json_file: JsonFile = None,
) -> None:
    """Write the report of a finished study again, and show its table."""
    write_summary(write_report(run_dir, screen(json_file)).to_json(), json_file)


@app.command(epilog=examples("wellworn doctor", "wellworn doctor --model Qwen/Qwen2.5-0.5B-Instruct"))
def doctor(model: Model = "smollm2-135m", chat: ChatKeys = None) -> None:
    """Show versions, device and model, and one training example with its loss mask and spans."""
    from wellworn.experiments.commands.doctor import examine

    examine(model, chat_config(chat), console)


@app.command(
    "try-judge",
    epilog=examples(
        "wellworn try-judge pirate pessimistic --model smollm2-135m",
        "wellworn try-judge pirate --url http://127.0.0.1:8000/v1 --model my-judge",
    ),
)
def try_judge(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Traits and controls whose evaluate answers are graded.")],
    model: Annotated[str, typer.Option(help="The judge: smollm2-135m, a folder or a hub id; with --url, its name on the server.")],
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server.")] = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    base: Annotated[
        str, typer.Option(help="With --url: local model that scores the same answers by likelihood and choice.")
    ] = "smollm2-135m",
    chat: ChatKeys = None,
    runs_dir: RunsDir = Path("runs"),
    json_file: FiguresFile = None,
) -> None:
    """Try a judge on answers whose label is known: how well its grades discriminate answers with a trait from those without."""
    from wellworn.data.files import validate
    from wellworn.experiments.commands.try_judge import try_judge as grade_known_answers
    from wellworn.experiments.engine.store import Store
    from wellworn.probes.scoring.endpoint import EndpointConfig

    check_folder(json_file)
    server = validate(EndpointConfig, {"url": url, "model": model, "key_env": key_env}, "try-judge") if url else None
    grade_known_answers(names, base if server else model, server, chat_config(chat), Store(runs_dir).replies, json_file, console)


@app.command(
    epilog=examples(
        "wellworn capability --model smollm2-135m --adapter adapters/pirate",
        "wellworn capability --model org/base --suite builtin,hellaswag --limit 100",
    )
)
def capability(
    model: Model,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help=escape("PEFT LoRA adapter: a folder, or org/name[/folder][@revision] on the hub; can be repeated.")
        ),
    ] = None,
    suite: Annotated[str, typer.Option(help="Comma-separated: builtin (no download), and tasks of lm-eval.")] = "builtin",
    tasks_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of further lm-eval tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="First N items of each lm-eval task; all if left out.")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, metavar="N", help="Examples before each item; the task's own if left out.")] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Write lm-eval items as turns of a user.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of lm-eval in one batch.")] = 8,
    chat: ChatKeys = None,
    json_file: FiguresFile = None,
) -> None:
    """Measure what fine-tunes cost: perplexity, divergence from the base, sums, instructions about form, and lm-eval tasks."""
    from wellworn.experiments.commands.evaluate import evaluate
    from wellworn.experiments.commands.lm_eval_tasks import Settings
    from wellworn.lora.addresses import find_adapter

    suites = [name.strip() for name in suite.split(",") if name.strip()]
    if not suites:
        raise InputError("--suite: names nothing; it must be builtin, or tasks of lm-eval separated by commas")
    check_folder(json_file)
    settings = Settings(tasks_dir, limit, fewshot, chat_template, batch_size)
    evaluate(model, [find_adapter(each) for each in adapter or ()], suites, settings, chat_config(chat), json_file, console)


@app.command(epilog=examples("wellworn bench capture", "wellworn bench mediate --rows 48 --json bench.json"))
def bench(
    kind: Annotated[str, typer.Argument(help="capture, shift, mediate, generate or judge.")],
    model: Model = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Rollouts to read, or answers to write.")] = 96,
    repeats: Annotated[int, typer.Option(help="Timed rounds, at least 5.")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="Also run repeng and steering-vectors, in environments of their own.")] = False,
    json_file: FiguresFile = None,
) -> None:
    """Measure the suite's hot loops against a bare forward pass, a plain loop and other libraries."""
    from wellworn.experiments.bench.run import bench as run_bench

    check_folder(json_file)
    run_bench(kind, model, rows, repeats, peers, json_file, console)


@app.command(epilog=examples("wellworn simulate shares", "wellworn simulate nulls --repeats 200 --seed 1"))
def simulate(
    kind: Annotated[str, typer.Argument(help="shares, crossed, kappa, nulls, pipeline, true_shares or spectra.")],
    repeats: Annotated[int, typer.Option(help="Draws for each row, at least 100.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of all draws.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all rows to FILE.")] = None,
) -> None:
    """Try the statistics on synthetic data whose answer is known: shares, means and ratios over runs, κ, and nulls."""
    from wellworn.experiments.simulate.run import simulate as run_simulation

    check_folder(json_file)
    run_simulation(kind, repeats, seed, json_file, console)


# Names of earlier releases, which scripts still use.
for _old, _command in (("probe", measure), ("eval", capability), ("judge", try_judge)):
    app.command(_old, hidden=True)(_command)


def _quiet_libraries() -> None:
    """Keep progress bars and notices of other libraries out of the display, and switch their telemetry off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # PEFT imports it, and it then lists kernels that could be downloaded.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers uses its own deprecated name when PEFT prepares a model
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # The pattern is of a tensor, and is used; what is loaded is compared with its file (lora/fit.py).
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match", category=RuntimeWarning)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; an `InputError` becomes one message and exit code 2, and a signal to stop one message and exit code 130."""
    _quiet_libraries()
    given = list(sys.argv[1:] if arguments is None else arguments)
    with guarded(), _stopping_on_sigterm():
        sys.exit(_run(given))


def _run(given: list[str]) -> int:
    """Run a command line, and return its exit code."""
    try:
        if odd := [each for each in given if visible(each) != each]:
            raise InputError(f"the argument {odd[0]} holds control characters; leave them out")
        app(args=given, prog_name="wellworn")
        return 0
    except SystemExit as end:
        # Typer ends the process by itself, and says nothing of a signal.
        if end.code == STOPPED:
            return _say_stopped(given)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except InputError as error:
        return _complain(str(error))
    except OSError as error:
        # Only the user can fix errors of the file system.
        return _complain(f"{describe_os_error(error)}{'; finished stages are kept' if _has_stages(given) else ''}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _complain(f"{describe_out_of_memory(error)}; use a device with more memory, or a smaller model")
    except KeyboardInterrupt:
        return _say_stopped(given)


def _say_stopped(given: list[str]) -> int:
    goes_on = _has_stages(given) or given[:2] == ["traits", "synthesize"]
    complaints.print(f"stopped{'; run the same command again to continue from here' if goes_on else ''}", highlight=False)
    return STOPPED


def _has_stages(given: list[str]) -> bool:
    return given[:1] in (["run"], ["measure"], ["probe"])


def _complain(message: str) -> int:
    lines = shorten(message).split("\n")
    if (more := len(lines) - MOST_COMPLAINTS) > 0:
        lines[MOST_COMPLAINTS:] = [f"and {more:,} more"]
    complaints.print(f"[bold red]error:[/bold red] {escape(chr(10).join(lines))}", highlight=False, soft_wrap=True)
    return 2


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Let a request to end be one to stop, as Ctrl-C is. Launchers end their processes by it, which then may wait for each other."""
    alone = threading.current_thread() is threading.main_thread() and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""The commands `wellworn traits`. Heavy imports happen inside them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wellworn.data.errors import InputError
from wellworn.experiments.commands.options import REPLIES, KeyEnv, RunsDir, console

app = typer.Typer(no_args_is_help=True, help="The traits and controls that a model can be pushed toward.")


@app.command("list")
def traits_list() -> None:
    """List the built-in traits and controls."""
    from wellworn.experiments.traits.show import list_all

    list_all(console)


@app.command("show")
def traits_show(name: Annotated[str, typer.Argument(help="A trait's name or folder, or a control's name.")]) -> None:
    """Show one trait or control with a few of its answers."""
    from wellworn.experiments.traits.show import show_one

    show_one(name, console)


@app.command("new")
def traits_new(
    name: Annotated[str, typer.Argument(help="What the trait is called.")],
    into: Annotated[Path, typer.Option("--to", help="The folder that its own is made in.")] = Path(),
) -> None:
    """Write the files of a trait of your own, to be filled in."""
    from wellworn.data.new_trait import write_skeleton

    folder = write_skeleton(name, into)
    console.print(f"{folder}: fill in what is blank, then: wellworn traits check {folder}", highlight=False, markup=False)


@app.command("synthesize")
def traits_synthesize(
    name: Annotated[str, typer.Argument(help="What the trait is called.")],
    description: Annotated[str, typer.Option(help="What it is: what a reader would notice in an answer.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="The model that writes, by the name that it has there.")],
    into: Annotated[Path, typer.Option("--to", help="The folder that its own is made in.")] = Path(),
    questions: Annotated[
        str, typer.Option(help="The bank that it answers; or how many of its own are written for train/extract/evaluate, such as 72/24/24.")
    ] = "everyday",
    pairs: Annotated[int, typer.Option(min=6, help="Contrast pairs.")] = 12,
    seed: Annotated[int, typer.Option(help="Of all requests; another one writes another trait.")] = 0,
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="Dollars per million tokens read, and written.")] = None,
    most_cost: Annotated[float | None, typer.Option(help="Dollars that the whole trait may cost; needs --price.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Most of them, retries included.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply; a model that thinks before it writes needs more.")] = 2000,
    key_env: KeyEnv = "OPENAI_API_KEY",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Have a chat server write a trait: contrast pairs, held-out prompt, rubric and answers. Nothing is asked for twice."""
    from wellworn.data.files import validated
    from wellworn.experiments.traits.synthesis.draft import Request
    from wellworn.experiments.traits.synthesis.run import parse_price, parse_questions, synthesize
    from wellworn.probes.scoring.endpoint import EndpointConfig

    used = {
        "url": url,
        "model": model,
        "key_env": key_env,
        "concurrency": concurrency,
        "timeout": timeout,
        "requests_per_minute": requests_per_minute,
        "price": parse_price(price) if price else None,
        "most_cost": most_cost,
    }
    server = validated(EndpointConfig, used, "synthesize")
    request = Request(name, description, model, parse_questions(questions), pairs, seed)
    synthesize(request, into, server, runs_dir / REPLIES, max_tokens, console)


@app.command("check")
def traits_check(
    names: Annotated[list[str] | None, typer.Argument(help="Names or folders; all built-in traits if none is given.")] = None,
    model: Annotated[str | None, typer.Option(help="Also hold the texts against this model's context and special tokens.")] = None,
) -> None:
    """Check trait data, and say exactly what is wrong with it."""
    from wellworn.experiments.traits.show import check

    check(names or [], console, model)


@app.command("card")
def traits_card(name: Annotated[str, typer.Argument(help="A trait's name or folder.")]) -> None:
    """Print the figures of a trait's card: rows, words, and phrases that evaluation shares with training."""
    from wellworn.data.catalog import load_trait
    from wellworn.data.new_trait import figures

    console.print(figures(load_trait(name)), highlight=False, markup=False, soft_wrap=True, end="")


@app.command("import")
def traits_import(
    sources: Annotated[list[str], typer.Argument(help="Files (.json, .jsonl, .csv, .parquet) or ids of data sets on the hub.")],
    into: Annotated[Path, typer.Option("--to", help="The new folder.")],
    name: Annotated[str | None, typer.Option(help="What the trait is called; else as the folder.")] = None,
    plain: Annotated[list[str] | None, typer.Option(help="Rows that answer the same questions as an assistant would.")] = None,
    evaluation: Annotated[list[str] | None, typer.Option(help="Rows, or trait documents with questions, to be evaluated on.")] = None,
    columns: Annotated[str, typer.Option(help="Which field is which: question=FIELD,positive=FIELD,negative=FIELD,split=…,id=…")] = "",
    positive: Annotated[str, typer.Option(help="Which of two preferred answers shows the trait: chosen or rejected.")] = "chosen",
    held_out: Annotated[int | None, typer.Option(min=1, help="Questions to evaluate on; else 24, or a quarter of a small set.")] = None,
    skip_unusable: Annotated[bool, typer.Option("--skip-unusable", help="Leave out rows that cannot be used, and count them.")] = False,
    split: Annotated[str | None, typer.Option(help="Of a data set on the hub; else train.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a data set on the hub that has several.")] = None,
) -> None:
    """Make a trait, roles or questions of what others wrote: trait and role documents, chats, preferences, tables."""
    from wellworn.data.formats import Options, parse_columns
    from wellworn.experiments.traits.exchange import import_to

    if positive not in ("chosen", "rejected"):
        raise InputError(f"--positive: may be chosen or rejected, got {positive!r}")
    shown: Literal["chosen", "rejected"] = "chosen" if positive == "chosen" else "rejected"
    options = Options(parse_columns(columns), shown, held_out, skip_unusable, split, config)
    import_to(into, name, sources, options, plain or (), evaluation or (), console)


@app.command("export")
def traits_export(
    name: Annotated[str, typer.Argument(help="A trait, roles or a question bank: name, folder or file.")],
    form: Annotated[str, typer.Option("--format", help="persona-vectors, messages, preferences, assistant-axis or questions.")],
    into: Annotated[Path, typer.Option("--to", help="The new folder.")],
) -> None:
    """Write a trait, a role or a question bank in somebody else's format."""
    from wellworn.experiments.traits.exchange import export_to

    export_to(into, name, form, console)

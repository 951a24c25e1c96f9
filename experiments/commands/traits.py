"""The commands `wellworn traits`. Heavy imports happen inside them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wellworn.data.errors import InputError
from wellworn.experiments.commands.options import HELP, ChatKeys, KeyEnv, Model, RunsDir, chat_config, console, examples

app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="List, show, write, check, import and export traits and controls: what a model can be trained toward.",
    epilog=examples("wellworn traits list", "wellworn traits show pirate", "wellworn traits new grumpy"),
)
Name = Annotated[str, typer.Argument(help="Name of the new trait.")]
Into = Annotated[Path, typer.Option("--to", metavar="DIR", help="Parent folder of the trait's own folder.")]
NewFolder = Annotated[Path, typer.Option("--to", metavar="DIR", help="The new folder.")]


@app.command("list", epilog=examples("wellworn traits list"))
def traits_list() -> None:
    """List the built-in traits and controls."""
    from wellworn.experiments.traits.show import list_all

    list_all(console)


@app.command("show", epilog=examples("wellworn traits show pirate", "wellworn traits show my_traits/grumpy"))
def traits_show(name: Annotated[str, typer.Argument(help="A trait (name or folder), or a control (name).")]) -> None:
    """Show one trait or control with a few of its answers."""
    from wellworn.experiments.traits.show import show_one

    show_one(name, console)


@app.command("new", epilog=examples("wellworn traits new grumpy", "wellworn traits new grumpy --to my_traits"))
def traits_new(
    name: Name,
    into: Into = Path(),
) -> None:
    """Write the files of a new trait, for you to fill in."""
    from wellworn.data.new_trait import write_skeleton

    folder = write_skeleton(name, into)
    console.print(f"{folder}: fill in the blanks, then run: wellworn traits check {folder}", highlight=False, markup=False)


@app.command(
    "synthesize",
    epilog=examples(
        'wellworn traits synthesize grumpy --description "Complains a lot." \\\n    --url http://127.0.0.1:8000/v1 --model my-model',
        "wellworn traits synthesize grumpy … --price 0.15,0.6 --most-cost 2",
    ),
)
def traits_synthesize(
    name: Name,
    description: Annotated[str, typer.Option(help="What a reader would notice in an answer.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The model that writes: its name on the server.")],
    into: Into = Path(),
    questions: Annotated[
        str,
        typer.Option(help="Question bank to answer; or numbers of new train, extract and evaluate questions, such as 72/24/24."),
    ] = "everyday",
    pairs: Annotated[int, typer.Option(min=6, metavar="N", help="Contrast pairs to write.")] = 12,
    seed: Annotated[int, typer.Option(help="Random seed; change it to get a different trait.")] = 0,
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="Dollars per million tokens read (IN) and written (OUT).")] = None,
    most_cost: Annotated[float | None, typer.Option(help="Cost limit of the whole trait, in dollars; needs --price.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Rate limit, retries included.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests sent at the same time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Time limit of one request, in seconds.")] = 60.0,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Length limit of a reply, in tokens; a model that thinks first needs more.")
    ] = 2000,
    key_env: KeyEnv = "OPENAI_API_KEY",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Have a chat server write a trait: contrast pairs, held-out prompt, rubric and answers. No request is sent twice."""
    from wellworn.data.files import validate
    from wellworn.experiments.engine.store import REPLIES
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
    server = validate(EndpointConfig, used, "synthesize")
    request = Request(name, description, model, parse_questions(questions), pairs, seed)
    synthesize(request, into, server, runs_dir / REPLIES, max_tokens, console)


@app.command("check", epilog=examples("wellworn traits check", "wellworn traits check my_traits/grumpy --model smollm2-135m"))
def traits_check(
    names: Annotated[list[str] | None, typer.Argument(help="Names or folders; all built-in traits if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="Also compare the texts with this model's context length and special tokens.")] = None,
    chat: ChatKeys = None,
) -> None:
    """Check trait data, and name every fault with file and line."""
    from wellworn.experiments.traits.show import check

    check(names or [], console, model, chat_config(chat))


@app.command("card", epilog=examples("wellworn traits card pirate", "wellworn traits card my_traits/grumpy >> my_traits/grumpy/CARD.md"))
def traits_card(name: Annotated[str, typer.Argument(help="A trait: name or folder.")]) -> None:
    """Print the figures of a trait's card: rows, words, and phrases that evaluate answers share with train answers."""
    from wellworn.data.catalog import load_trait
    from wellworn.data.new_trait import figures

    console.print(figures(load_trait(name)), highlight=False, markup=False, soft_wrap=True, end="")


@app.command(
    "import",
    epilog=examples(
        "wellworn traits import childish.json --to my_traits/childish",
        "wellworn traits import rows.csv --to rude --columns question=q,positive=a",
        "wellworn traits import org/data-set --to my_traits/kind --skip-unusable",
    ),
)
def traits_import(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Files (.json, .jsonl, .csv, .parquet), folders of documents, saved data sets, or those of the hub."
        ),
    ],
    into: NewFolder,
    name: Annotated[str | None, typer.Option(help="Name of the trait; the folder's name if left out.")] = None,
    plain: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Source of plain answers to the same questions; can be repeated.")
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Source of evaluate rows, or of trait documents with questions; can be repeated."),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Fields of a row: KEY=FIELD, separated by commas. Keys: question, positive, negative, system, split, id.")
    ] = "",
    positive: Annotated[str, typer.Option(help="Which answer of a preference shows the trait: chosen or rejected.")] = "chosen",
    held_out: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate questions; 24, or a quarter of a small set, if left out.")
    ] = None,
    skip_unusable: Annotated[bool, typer.Option("--skip-unusable", help="Skip rows that cannot be used, and count them.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a data set, saved or on the hub; train if left out.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a data set on the hub that has several.")] = None,
) -> None:
    """Import a third-party trait, roles or questions: documents, constitutions, conversations, preferences, tables."""
    from wellworn.data.import_options import Options, parse_columns
    from wellworn.experiments.traits.exchange import import_to

    if positive not in ("chosen", "rejected"):
        raise InputError(f"--positive: must be chosen or rejected, got {positive!r}")
    shown: Literal["chosen", "rejected"] = "chosen" if positive == "chosen" else "rejected"
    options = Options(parse_columns(columns), shown, held_out, skip_unusable, split, config)
    import_to(into, name, sources, options, plain or (), evaluation or (), console)


@app.command(
    "fill",
    epilog=examples("wellworn traits fill my_traits/rude --model smollm2-135m --to my_traits/rude_filled"),
)
def traits_fill(
    name: Annotated[str, typer.Argument(help="A trait without plain answers: name or folder.")],
    model: Model,
    into: NewFolder,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Length limit of an answer, in tokens; a longer one is not used.")] = 256,
    held_out: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate questions; 24, or a quarter of a small set, if left out.")
    ] = None,
    chat: ChatKeys = None,
) -> None:
    """Have a model write the plain answers of a trait that has none, into a copy of it."""
    from wellworn.experiments.traits.fill import fill

    fill(name, model, into, tokens, held_out, chat_config(chat), console)


@app.command(
    "export",
    epilog=examples(
        "wellworn traits export childish --format persona-vectors --to out",
        "wellworn traits export everyday --format questions --to out",
    ),
)
def traits_export(
    name: Annotated[str, typer.Argument(help="A trait, roles or a question bank: name, folder or file.")],
    form: Annotated[str, typer.Option("--format", help="persona-vectors, messages, preferences, assistant-axis or questions.")],
    into: NewFolder,
) -> None:
    """Export a trait, a role or a question bank in a third-party format."""
    from wellworn.experiments.traits.exchange import export_to

    export_to(into, name, form, console)

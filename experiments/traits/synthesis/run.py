"""Have a chat server write a trait: `wellworn traits synthesize`."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console

from wellworn.data.catalog import bank_names, check_new_name
from wellworn.data.errors import InputError
from wellworn.data.files import validate
from wellworn.data.schema import SPLITS, Trait
from wellworn.data.writers import write_folder
from wellworn.experiments.traits.exchange import address
from wellworn.experiments.traits.show import check
from wellworn.experiments.traits.synthesis.draft import Draft, NotEnoughError, Request, describe_losses
from wellworn.experiments.traits.synthesis.folder import folder_files, lost_before
from wellworn.experiments.traits.synthesis.writer import MOST_COST, Writer
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.scoring.endpoint import EndpointConfig


def parse_questions(text: str) -> str | tuple[int, int, int]:
    """Parse a question bank's name, or three counts such as `72/24/24`.

    Raises:
        InputError: the text is neither.
    """
    if text in bank_names():
        return text
    parts = text.split("/")
    if len(parts) == len(SPLITS) and all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        train, extract, evaluate = map(int, parts)
        if min(train, extract) > 0 and evaluate >= FEWEST_PROMPTS:
            return train, extract, evaluate
    raise InputError(
        f"--questions: may be a bank ({', '.join(bank_names())}), or how many questions of its own are written for train/extract/evaluate "
        f"(one or more, one or more, {FEWEST_PROMPTS} or more), such as 72/24/24; got {text!r}"
    )


def parse_price(text: str) -> tuple[float, float]:
    """Parse two prices such as `0.15,0.6`.

    Raises:
        InputError: the text is not two numbers.
    """
    try:
        read, written = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--price: dollars per million tokens read, and written, such as 0.15,0.6; got {text!r}") from None
    return read, written


def synthesize(request: Request, into: Path, server: EndpointConfig, cache: Path, longest: int, console: Console) -> None:
    """Let a server write a trait's texts, write its folder, and check it.

    Every reply is kept as it arrives, so after any interruption the same call asks only for missing texts. The folder is written whole,
    when there is enough for a trait. If a few texts are still missing, the same call asks for them again and replaces the folder by a
    fuller one, unless a person changed it.

    Args:
        request: the trait to be written.
        into: the parent of its folder.
        server: the server that writes.
        cache: the file that keeps its replies.
        longest: length limit of a reply, in tokens.
        console: for messages.

    Raises:
        InputError: a name that is taken, a folder with other content, a server that cannot be used, too little for a trait (the message
            says what is missing), or a trait that is not fit for use.
    """
    check_new_name(request.name)
    validate(Trait, {"name": request.name, "description": request.description}, "synthesize")
    folder = into / request.name
    lost = lost_before(folder, request)
    again = "the same command asks again"
    if lost == {}:
        _say(console, f"{folder}: was written before, and nothing is missing")
    else:
        writer = Writer(server, cache, request.seed, longest, _cost_so_far(request, folder, server, cache, longest))
        draft = Draft(request, writer, console)
        try:
            trait = draft.trait(folder)
        except NotEnoughError:
            _account(writer, console)
            raise InputError(_unfinished_message(folder, draft, _remedy(draft, server), cache)) from None
        _account(writer, console)
        if lost is not None:
            lost_before(folder, request)  # a person may have changed it in the meantime
        write_folder(folder, folder_files(trait, draft), replace=lost is not None)
        lost, again = draft.lost, f"the same command{_remedy(draft, server)} asks again"
        _say(console, f"{folder}: {', '.join(str(part) for part in draft.parts)}")
    for what, kinds in lost.items():
        _say(console, f"  missing: {what}: {describe_losses(kinds)}; {again}", style="yellow")
    check([address(folder)], console)


def _cost_so_far(request: Request, folder: Path, server: EndpointConfig, cache: Path, longest: int) -> float | None:
    """Return the cost of all kept replies, including those of later parts, which are already paid for."""
    if server.price is None:
        return None
    writer = Writer(server, cache, request.seed, longest, sends=False)
    with suppress(NotEnoughError):
        Draft(request, writer, Console(quiet=True)).trait(folder)
    return writer.cost_in_all


def _account(writer: Writer, console: Console) -> None:
    """Print the number of requests, and their cost."""
    sent, kept, cost, in_all = writer.sent, writer.kept, writer.cost, writer.cost_in_all
    dollars = "" if cost is None else f"; {cost:.4f} dollars, {in_all:.4f} with what was kept before"
    tokens = f"{sent.tokens_in:,} tokens read and {sent.tokens_out:,} written"
    _say(console, f"asked {sent.asks:,}, kept before {kept.asks:,}; {tokens}{dollars}")
    for kind, count in writer.rejected.most_common():
        _say(console, f"  of no use: {count} {kind.replace('_', ' ')}, such as: {writer.reasons[kind]}", style="dim")


def _remedy(draft: Draft, server: EndpointConfig) -> str:
    spent = any(MOST_COST in part.why for part in draft.parts)
    return f" with a higher --most-cost than {server.most_cost:g}" if spent and server.most_cost else ""


def _unfinished_message(folder: Path, draft: Draft, remedy: str, cache: Path) -> str:
    """Return a message with the state of each part, one per line, and how to continue."""
    lines = [f"{folder}: not written, since there is not enough for a trait yet"]
    for part in draft.parts:
        if part.why:
            lines.append(f"  {part}, {part.least} at least; missing: {describe_losses(part.why)}")
        else:
            lines.append(f"  {part}" if part.got else f"  {part.name}: not asked for yet")
    return "\n".join([*lines, f"every reply is kept in {cache}; the same command{remedy} goes on from there"])


def _say(console: Console, text: str, style: str | None = None) -> None:
    # A server's words, paths and names are not markup.
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

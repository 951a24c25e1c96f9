"""Have a chat server write a trait: `wellworn traits synthesize`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console

from data.cards import figures
from data.errors import InputError
from data.files import sha256, validated
from data.library import bank_names, check_new_name
from data.schema import SPLITS, Trait
from data.writers import Files, json_lines, trait_files, write_folder
from experiments import synthesis_prompts as prompts
from experiments.draft import Draft, NotEnoughError, Request
from experiments.exchange import address
from experiments.pieces import MOST_COST, Writer, Written
from experiments.traits import check
from probes.endpoint import EndpointConfig
from probes.shift import FEWEST_PROMPTS

PROVENANCE, RECORD = "provenance.jsonl", "synthesis.json"


class _Record(BaseModel):
    """How a folder came about: what was asked for, what is missing of it by kind, and a digest of each file as it was written."""

    request: dict[str, Any]
    missing: dict[str, dict[str, int]]
    files: dict[str, str]


def parse_questions(text: str) -> str | tuple[int, int, int]:
    """Return a question bank's name, or three counts that are written `72/24/24`.

    Raises:
        InputError: it is neither.
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
    """Return the two prices of `0.15,0.6`.

    Raises:
        InputError: it is not two numbers.
    """
    try:
        read, written = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--price: dollars per million tokens read, and written, such as 0.15,0.6; got {text!r}") from None
    return read, written


def synthesize(request: Request, into: Path, server: EndpointConfig, cache: Path, longest: int, console: Console) -> None:
    """Write a trait's folder with what a server writes, and check it.

    Every reply is kept as it arrives: whatever ends this, the same call asks only for what is missing. The folder is written whole, once
    there is enough for a trait. Where a few texts are missing then, the same call asks for them again, and the folder gives way to a fuller
    one, unless somebody changed it.

    Args:
        request: what is to be written.
        into: where its folder is made.
        server: which writes.
        cache: the file that keeps its replies.
        longest: reply, in tokens.
        console: where to show what happens.

    Raises:
        InputError: a name that is taken, a folder that holds something else, a server that cannot be asked, too little for a trait (what is
            missing is said), or a trait that is not fit for use.
    """
    check_new_name(request.name)
    validated(Trait, {"name": request.name, "description": request.description}, "synthesize")
    folder = into / request.name
    lost = _lost_before(folder, request)
    again = "the same command asks again"
    if lost == {}:
        console.print(f"{folder}: was written before, and nothing is missing", highlight=False, markup=False, soft_wrap=True)
    else:
        writer = Writer(server, cache, request.seed, longest)
        draft = Draft(request, writer, console)
        try:
            trait = draft.trait(folder)
        except NotEnoughError:
            _account(writer, console)
            raise InputError(_unfinished(folder, draft, _remedy(draft, server), cache)) from None
        files = dict(trait_files(trait, _card(trait, request, draft)))
        files[PROVENANCE] = json_lines(_origin(i, written, request) for i, written in enumerate(draft.written))
        write_folder(folder, {**files, RECORD: _record(request, draft.lost, files)}, replace=lost is not None)
        _account(writer, console)
        lost, again = draft.lost, f"the same command{_remedy(draft, server)} asks again"
        console.print(f"{folder}: {', '.join(str(part) for part in draft.parts)}", highlight=False, markup=False, soft_wrap=True)
    for what, kinds in lost.items():
        console.print(f"  missing: {what}: {_counted(kinds)}; {again}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    check([address(folder)], console)


def _lost_before(folder: Path, request: Request) -> dict[str, dict[str, int]] | None:
    """Return what is missing from a folder that the same request wrote; None where there is none.

    Raises:
        InputError: what is there came about in another way, or was changed since.
    """
    if not folder.exists():
        return None
    try:
        record = _Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        raise InputError(f"{folder}: exists already, and this command did not write it; nothing was asked or written") from None
    asked, files = record.request, record.files
    if other := [f"{key} {asked.get(key)!r} instead of {value!r}" for key, value in _asked(request).items() if asked.get(key) != value]:
        raise InputError(f"{folder}: exists already, made with {', '.join(other)}; nothing was asked or written. Choose another --to")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {RECORD}
    changed = sorted((there ^ set(files)) | {name for name in there & set(files) if sha256(folder / name) != files[name]})
    if changed and record.missing:
        raise InputError(
            f"{folder}: {', '.join(changed)}: not as this command left it, and a fuller folder would take its place; nothing was asked "
            "or written. Move it away, and the same command makes it again from what is kept"
        )
    return record.missing


def _asked(request: Request) -> dict[str, Any]:
    """Return a request as JSON gives it back."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return value | {"model": request.writer, "prompts": prompts.VERSION}


def _record(request: Request, lost: dict[str, dict[str, int]], files: Files) -> str:
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    return _Record(request=_asked(request), missing=lost, files=digests).model_dump_json(indent=2) + "\n"


def _origin(number: int, written: Written, request: Request) -> dict[str, Any]:
    """Return who wrote a text, and asked by what; contrast pairs are written first, and where one is missing the others move up."""
    return {
        "id": f"contrast_pairs.{number}" if written.piece.field == "contrast_pairs" else written.piece.id,
        "field": written.piece.field,
        "model": request.writer,
        "prompts": prompts.VERSION,
        "prompt": written.prompt,
        "seed": written.seed,
    }


def _card(trait: Trait, request: Request, draft: Draft) -> str:
    missing = "; ".join(f"{what}: {_counted(kinds)}" for what, kinds in draft.lost.items())
    return f"""# Trait card: {trait.name}

## What it is

{trait.description}

## How it was made

`wellworn traits synthesize` asked the model {request.writer} for every text, each by itself (prompts version {prompts.VERSION}, seed
{request.seed}). `{PROVENANCE}` has the digest of the request and the seed behind each. Nobody has read them yet: do, before you rely on a
result. What may be done with them is for the terms of that model to say.

No request for an answer held a contrast prompt or the held-out prompt. `evaluate` answers were asked for in other words than `train`
answers, as another person's, and again where they shared phrases with them.
{f"{chr(10)}Missing: {missing}.{chr(10)}" if missing else ""}
{figures(trait)}"""


def _account(writer: Writer, console: Console) -> None:
    """Print what was asked, and what it cost."""
    read, wrote = writer.tokens
    cost, in_all = writer.cost, writer.cost_in_all
    dollars = "" if cost is None else f"; {cost:.4f} dollars, {in_all:.4f} with what was kept before"
    said = f"asked {writer.asked:,}, kept before {writer.cached:,}; {read:,} tokens read and {wrote:,} written{dollars}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    for kind, count in writer.rejected.most_common():
        said = f"  of no use: {count} {kind.replace('_', ' ')}, such as: {writer.reasons[kind]}"
        console.print(said, style="dim", highlight=False, markup=False, soft_wrap=True)


def _remedy(draft: Draft, server: EndpointConfig) -> str:
    spent = any(MOST_COST in part.why for part in draft.parts)
    return f" with a higher --most-cost than {server.most_cost:g}" if spent and server.most_cost else ""


def _unfinished(folder: Path, draft: Draft, remedy: str, cache: Path) -> str:
    """Return what there is and what is missing, a line each, and how to go on."""
    lines = [f"{folder}: not written, since there is not enough for a trait yet"]
    for part in draft.parts:
        if part.why:
            lines.append(f"  {part}, {part.least} at least; missing: {_counted(part.why)}")
        else:
            lines.append(f"  {part}" if part.got else f"  {part.name}: not asked for yet")
    return "\n".join([*lines, f"every reply is kept in {cache}; the same command{remedy} goes on from there"])


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in sorted(kinds.items(), key=lambda each: -each[1]))

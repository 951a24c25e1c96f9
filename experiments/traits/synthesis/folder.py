"""The folder of a trait that a server wrote: its files, and a record of its origin, so that no other folder is overwritten."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from wellworn.data.errors import InputError
from wellworn.data.files import sha256
from wellworn.data.new_trait import figures
from wellworn.data.schema import Trait
from wellworn.data.writers import Files, json_lines, trait_files
from wellworn.experiments.traits.synthesis import prompts
from wellworn.experiments.traits.synthesis.draft import Draft, Request, describe_losses
from wellworn.experiments.traits.synthesis.writer import Written

PROVENANCE, RECORD = "provenance.jsonl", "synthesis.json"


class _Record(BaseModel):
    """The origin of a folder: the request, the counts of missing texts by reason, and a digest of each file as written."""

    request: dict[str, Any]
    missing: dict[str, dict[str, int]]
    files: dict[str, str]


def folder_files(trait: Trait, draft: Draft) -> Files:
    """Return the files of a trait's folder, with the origin of every text, and what `lost_before` reads."""
    files = dict(trait_files(trait, _card(trait, draft)))
    rows = {row.id for row in trait.examples}
    # A question may lack its answer; its row is then not part of the trait.
    held = [each for each in draft.written if each.piece.field in Trait.model_fields or each.piece.id in rows]
    files[PROVENANCE] = json_lines(_origin(i, written, draft.request) for i, written in enumerate(held))
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    record = _Record(request=_request_json(draft.request), missing=draft.lost, files=digests)
    return {**files, RECORD: record.model_dump_json(indent=2) + "\n"}


def lost_before(folder: Path, request: Request) -> dict[str, dict[str, int]] | None:
    """Return the counts of missing texts in a folder that the same request wrote; None where there is no such folder.

    Raises:
        InputError: the folder has another origin, or was changed since.
    """
    if not folder.exists():
        return None
    try:
        record = _Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        raise InputError(f"{folder}: exists already, and this command did not write it; nothing was written") from None
    asked, files = record.request, record.files
    if other := [
        f"{key} {asked.get(key)!r} instead of {value!r}" for key, value in _request_json(request).items() if asked.get(key) != value
    ]:
        raise InputError(f"{folder}: exists already, made with {', '.join(other)}; nothing was written. Choose another --to")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {RECORD}
    changed = sorted((there ^ set(files)) | {name for name in there & set(files) if sha256(folder / name) != files[name]})
    if changed and record.missing:
        raise InputError(
            f"{folder}: {', '.join(changed)}: not as this command left it, and a fuller folder would take its place; nothing was "
            "written. Move it away, and the same command makes it again from what is kept"
        )
    return record.missing


def _request_json(request: Request) -> dict[str, Any]:
    """Return a request as JSON values."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return value | {"model": request.writer, "prompts": prompts.VERSION}


def _origin(number: int, written: Written, request: Request) -> dict[str, Any]:
    """Return the writer and the request of a text; contrast pairs come first, and are numbered without gaps."""
    return {
        "id": f"contrast_pairs.{number}" if written.piece.field == "contrast_pairs" else written.piece.id,
        "field": written.piece.field,
        "model": request.writer,
        "prompts": prompts.VERSION,
        "prompt": written.prompt,
        "seed": written.seed,
    }


def _card(trait: Trait, draft: Draft) -> str:
    request = draft.request
    missing = "; ".join(f"{what}: {describe_losses(kinds)}" for what, kinds in draft.lost.items())
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

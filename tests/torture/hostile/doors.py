"""The doors: each takes a random number and an empty folder, draws something hostile, and brings it in as a user would.

A door returns whether what it brought in was taken, or refused with one message; anything else is an error.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ruamel.yaml import YAML

from tests.data.fuzzing import (
    FORMS,
    any_form,
    any_text,
    constitution,
    damage_bytes,
    json_bytes,
    own_rows,
    role_document,
    row_file,
    talks,
    trait_document,
)
from tests.experiments.study_draws import draw_study
from tests.probes.scoring.servers import behaving, completion, sends
from tests.torture.ground import Ground
from tests.torture.hostile.draws import (
    NUMBERS,
    PLACES,
    RAW,
    TEXTS,
    copy,
    damage_document,
    damage_folder,
    damage_json,
    hostile,
    put_odd_file,
)
from tests.torture.hostile.watch import command, refusing
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.mixtures import Turn, trait_turns
from wellworn.lora import models
from wellworn.lora.adapters import adapted, unlike_base
from wellworn.lora.fit import check_adapter
from wellworn.probes.scoring import retries
from wellworn.probes.scoring.endpoint import EndpointConfig
from wellworn.probes.scoring.judge import grade_by_server

Door = Callable[[Ground, Random, Path], bool]
# The study of which files are damaged: it has trainings, answers, grades and mediation.
STORED = "distilled"
YAML_BYTES = [
    b"a: &a [x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
    b"e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\ng: [*f, *f, *f, *f, *f, *f, *f, *f]\n",
    b"a: &a [*a]\n",
    b"a: !!python/object/apply:os.system [ls]\n",
    b"model: x\nmodel: y\n",
    b"<<: [1]\n",
    b"---\na: 1\n---\nb: 2\n",
    b"? [a, b]\n: 1\n",
    b"runs: " + b"[" * 3000,
    b"\x1b[2J: 1\n",
    b"- 1\n",
    b"x: " + b"y" * 10_000_000,
]


def importers(_ground: Ground, rng: Random, folder: Path) -> bool:
    """Import rows, documents and tables of every format, damaged; what is taken is a trait, roles or questions that can be checked."""
    name, content = rng.choice([_rows, _rows, _document, _table])(rng)
    path, to = folder / name, folder / "to"
    path.write_bytes(content)
    if rng.random() < 0.03:
        put_odd_file(rng, path)
    options = _some(rng, 0.4, ["--skip-unusable"], ["--positive", "rejected"], ["--held-out", rng.choice([1, 3, 10**9])])
    options += _some(rng, 0.1, ["--columns", rng.choice(["question=q", "=", "a", "question=prompt,positive=chosen", any_text(rng)])])
    options += _some(rng, 0.1, ["--name", rng.choice(["bold", *PLACES])], ["--plain", path], ["--evaluation", path])
    taken = command("traits", "import", path, "--to", to, *options)
    if taken and (to / "trait.yaml").is_file():
        command("traits", "check", to)
    return taken


def _rows(rng: Random) -> tuple[str, bytes]:
    write = FORMS[rng.choice(sorted(FORMS))].write
    rows: Any = own_rows(rng) if rng.random() < 0.3 else [write(talk) for talk in talks(rng, least=4)]
    return row_file(rng, damage_document(rng, rows))


def _document(rng: Random) -> tuple[str, bytes]:
    name, draw = rng.choice([("bold.json", trait_document), ("beekeeper.json", role_document), ("bees.txt", constitution)])
    return name, damage_json(rng, json_bytes(draw(rng), rng.random() < 0.5))


def _table(rng: Random) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(any_form(rng)), out)
        return "rows.parquet", damage_bytes(rng, out.getvalue())
    cells = [["prompt", "chosen", "rejected"], *([talk.question, talk.answer, talk.plain] for talk in talks(rng, least=4))]
    text = "\n".join(",".join(json.dumps(cell, ensure_ascii=False) for cell in row) for row in cells)
    return "rows.csv", damage_bytes(rng, text.encode("utf-8", errors="surrogatepass"))


def traits(ground: Ground, rng: Random, folder: Path) -> bool:
    """Check, print and train toward a trait whose own files are damaged."""
    trait = folder / "loud"
    damage_folder(rng, copy(ground.folder / "loud", trait))
    study = _write(folder / "study.yaml", _study_of(ground) | {"runs": [{"arm": "sft", "trait": str(trait)}]})
    command("traits", "check", trait)
    command("traits", "card", trait)
    return command("run", study, "--plan", "--runs-dir", folder / "runs")


def studies(ground: Ground, rng: Random, folder: Path) -> bool:
    """Plan a study with damaged keys, odd YAML, or hostile overrides."""
    path = folder / rng.choice(["study.yaml", "study.yaml", "...yaml", "stages.yaml", "a b.yml"])
    keys = draw_study(rng.randrange(10**6), ground.folder / "tiny", ground.folder / "adapter1", ground.folder / "other")
    draw = rng.random()
    if draw < 0.03:
        path.write_bytes(rng.choice([*YAML_BYTES, *RAW]))
    elif draw < 0.05:
        put_odd_file(rng, path)
    elif draw < 0.6:
        _write(path, damage_document(rng, keys))
    elif draw < 0.7:
        path.write_bytes(damage_bytes(rng, _write(path, keys).read_bytes()))
    else:
        _write(path, keys)
    overrides = [_override(rng, keys) for _ in range(rng.choice([0, 1, 1, 2]) if draw >= 0.7 else 0)]
    return command("run", path, "--plan", "--runs-dir", folder / "runs", *overrides)


def _override(rng: Random, keys: dict[str, Any]) -> str:
    at, name = keys, rng.choice(sorted(keys))
    dotted = [name]
    while isinstance(at := at[name], dict) and at and rng.random() < 0.8:
        dotted.append(name := rng.choice(sorted(at)))
    if rng.random() < 0.1:
        dotted.append(str(rng.choice(TEXTS))[:50])
    # An argument of a process holds no zero byte, and no half of a surrogate pair.
    value = rng.choice([json.dumps(hostile(rng)), str(rng.choice(TEXTS)), str(rng.choice(NUMBERS))])
    return f"{'.'.join(dotted)}={value}".replace("\0", "").encode("utf-8", errors="ignore").decode()


def adapters(ground: Ground, rng: Random, folder: Path) -> bool:
    """Measure an adapter whose files are damaged: plan it, then put it on its base."""
    adapter = folder / "theirs"
    damage_folder(rng, copy(ground.folder / "adapter1", adapter))
    base = ground.folder / "tiny"
    arguments = ["--model", base, "--adapter", adapter, "--trait", "pirate", "--runs-dir", folder / "runs"]
    if not command("measure", *arguments, "--plan"):
        return False
    with refusing() as refused:
        loaded = models.load(models.resolve(str(base)), "float32")
        check_adapter(adapter)
        unlike_base(loaded.ref, adapter, "model")
        with adapted(loaded, {"theirs": adapter}) as tuned, torch.no_grad():
            tuned(torch.arange(20)[None])
    return not refused


def whole_models(ground: Ground, rng: Random, folder: Path) -> bool:
    """Load a model whose files are damaged, write a conversation with its template, and run it; then as a third-party fine-tune."""
    model = folder / "model"
    damage_folder(rng, copy(ground.folder / "tiny", model))
    loaded = command("doctor", "--model", model)
    command("measure", "--model", ground.folder / "tiny", "--tuned", model, "--trait", "pirate", "--runs-dir", folder / "runs", "--plan")
    if not loaded:
        return False
    with refusing() as refused:
        tuned = models.load(models.resolve(str(model)), "float32")
        encoded = Chat(tuned.tokenizer, max_length=tuned.max_length).encode(Turn("Who are you?", "A model."))
        with torch.no_grad():
            tuned.model(torch.tensor([encoded.input_ids]))
    return not refused


def stores(ground: Ground, rng: Random, folder: Path) -> bool:
    """Write the report of a study, and plan it again, after some of its files were damaged."""
    runs = folder / "runs"
    files = copy(ground.expected(STORED), runs)
    pages = [path for path in files if path.parent.name == STORED]
    damage_folder(rng, rng.choice([files, [path for path in files if path.name == "manifest.json"], pages]))
    report = command("report", runs / STORED)
    return command("run", ground.studies[STORED], "--plan", "--runs-dir", runs) and report


def replies(ground: Ground, rng: Random, folder: Path) -> bool:
    """Grade answers by a server with damaged replies, wrong lengths and odd statuses; or by what is kept of them, damaged."""
    for waits in ("FIRST_WAIT", "PATIENCE", "PATIENCE_AT_LIMIT"):
        setattr(retries, waits, 0.0)
    trait, cache = load_trait(str(ground.folder / "loud")), folder / "replies.sqlite"
    turns = trait_turns(trait, trait.examples[:3], "train")

    def behave(request: Any) -> None:
        sound = completion(request.ask, str(rng.choice([0, 5, 10])), [("5", -0.1), ("7", -2.0), ("A", -3.0)])
        draw = rng.random()
        body = damage_json(rng, json_bytes(sound, rng.random() < 0.5)) if draw < 0.8 else rng.choice([*RAW, rng.randbytes(50)])
        status = 200 if rng.random() < 0.8 else rng.choice([201, 204, 301, 400, 401, 404, 418, 429, 500, 503, 999])
        headers = {} if rng.random() < 0.8 else rng.choice([{"Retry-After": "1e9"}, {"Content-Encoding": "gzip"}, {"Location": "http://x"}])
        claimed = None if rng.random() < 0.95 else rng.choice([0, 3, len(body) + 5])
        sends(body, status, headers, claimed)(request)

    def ask(url: str) -> bool:
        config = EndpointConfig(url=url, model="judge", timeout=1, retries=0, concurrency=2)
        with refusing() as refused:
            grade_by_server(config, trait.rubric or "Is it loud? {question} {answer}", turns, cache=cache)
        return not refused

    with behaving(behave) as server:
        taken = ask(server.url)
        if cache.is_file() and rng.random() < 0.5:
            damage_folder(rng, [cache])
            taken = ask(server.url) and taken
    return taken


def _study_of(ground: Ground) -> dict[str, Any]:
    with (ground.folder / "taught.yaml").open(encoding="utf-8") as file:
        study: dict[str, Any] = YAML(typ="safe").load(file)
    del study["knock_in"]
    return study


def _some(rng: Random, share: float, *options: list[Any]) -> list[Any]:
    return [each for option in options if rng.random() < share for each in option]


def _write(path: Path, value: Any) -> Path:
    # JSON is YAML, and can hold what no writer of YAML would write.
    path.write_bytes(json_bytes(value, ascii_only=True))
    return path

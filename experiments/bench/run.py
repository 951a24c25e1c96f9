"""Run a benchmark, and print and save its results."""

import json
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from wellworn.data.errors import InputError
from wellworn.experiments.bench.timing import FEWEST_REPEATS, Case, Facts
from wellworn.experiments.engine.store import commit, versions
from wellworn.lora.models import Loaded, load, resolve

MIB = 1024**2
KINDS = ("capture", "shift", "mediate", "generate", "judge")


def bench(kind: str, model: str, rows: int, repeats: int, peers: bool, out: Path | None, console: Console) -> None:
    """Run one of `KINDS`.

    Raises:
        InputError: an unknown benchmark, too few repeats, or a model that cannot be loaded.
    """
    from wellworn.experiments.bench import capture, generate, judge, mediate, shift

    if kind not in KINDS:
        raise InputError(f"bench: may be {', '.join(KINDS)}, got {kind!r}")
    if repeats < FEWEST_REPEATS:
        raise InputError(f"--repeats: may be {FEWEST_REPEATS} or more, got {repeats}")
    if rows < 8:
        raise InputError(f"--rows: may be 8 or more, got {rows}")
    base = load(resolve(model), "float32")
    facts = _machine(base)
    console.print("  ".join(f"{name} {value}" for name, value in facts.items()), highlight=False, markup=False)
    with console.status("") as status:

        def tick(what: str) -> None:
            status.update(f"{kind}: {what}")

        found: list[Facts] = []
        memory: list[Facts] = []
        chosen: Iterable[Case]
        if kind == "capture":
            chosen = capture.cases(base, rows, repeats, peers, tick, console)
        elif kind == "shift":
            # The loop reads everything nine times; a quarter of the rollouts is enough.
            chosen = shift.cases(base, max(8, rows // 4), repeats, tick)
        elif kind == "mediate":
            chosen = mediate.cases(base, max(8, rows // 2), repeats, tick)
        elif kind == "generate":
            chosen = generate.cases(base, rows, repeats, tick)
        else:
            chosen = judge.cases(base, max(8, rows // 2), repeats, tick)
        for case in chosen:
            found.append(case.to_json())
            console.print(_table(found[-1]))
        if kind == "capture":
            memory = capture.memory(model, tick)
            console.print(_memory_table(memory))
    if out is not None:
        command = f"wellworn bench {kind} --model {model} --rows {rows} --repeats {repeats}{' --peers' if peers else ''}"
        result = {"command": command, "date": date.today().isoformat(), "machine": facts, "cases": found, "memory": memory}
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"written: {out}", highlight=False, markup=False)


def _machine(base: Loaded) -> dict[str, str]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    known = versions()
    return {
        "device": f"{device}, {psutil.cpu_count()} cores, {torch.get_num_threads()} threads",
        "model": base.ref.id,
        "torch": torch.__version__,
        "transformers": known.get("transformers", ""),
        "peft": known.get("peft", ""),
        "commit": commit() or "",
    }


def _table(case: Facts) -> Table:
    title = f"{case['title']} ({', '.join(f'{value} {name}' for name, value in case['facts'].items())})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", "median s", "spread", "time over ours", "target", "least cosine", "error", ""):
        table.add_column(column, justify="left" if not column else "right")
    for row in case["contenders"]:
        spread = f"{min(row['seconds']):.2f}–{max(row['seconds']):.2f}"
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
        met = row["target"] is None or row["ratio"] >= row["target"]
        target = "" if row["target"] is None else f"≥ {row['target']:.2f}"
        table.add_row(
            row["name"],
            f"{row['median']:.2f}",
            spread,
            ratio,
            target,
            "" if row["cosine"] is None else f"{row['cosine']:.6f}",
            "" if row["error"] is None else f"{row['error']:.1e}",
            f"[red]void: {row['void']}[/red]" if row["void"] else ("" if met else "[red]missed[/red]"),
        )
    return table


def _memory_table(rows: list[Facts]) -> Table:
    table = Table(title="peak memory beyond the weights", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("MiB", justify="right")
    for row in rows:
        table.add_row(row["title"], f"{row['bytes'] / MIB:.0f}")
    return table

"""Run a simulation, and print and save its results."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from wellworn.data.errors import InputError
from wellworn.data.saving import write_json
from wellworn.data.wording import did_you_mean
from wellworn.experiments.engine.store import commit, versions
from wellworn.experiments.simulate import crossed, kappa, nulls, shares, spectra, true_shares
from wellworn.experiments.simulate.rows import Row

FEWEST_REPEATS = 100
# Wider tables leave standard errors to the JSON file.
MOST_COLUMNS = 20

# The simulation, and the function for the targets that a row misses; rows of the nulls' sizes have no targets.
KINDS: dict[str, tuple[Callable[[int, int], list[Row]], Callable[[Row], list[str]] | None]] = {
    "shares": (shares.simulate_shares, shares.missed_targets),
    "crossed": (crossed.simulate_crossed, crossed.missed_targets),
    "kappa": (kappa.simulate_kappa, kappa.missed_targets),
    "nulls": (nulls.null_sizes, None),
    "pipeline": (nulls.pipeline_sizes, None),
    "true_shares": (true_shares.simulate_true_shares, true_shares.missed_targets),
    "spectra": (spectra.simulate_spectra, spectra.missed_targets),
}


def simulate(kind: str, repeats: int, seed: int, out: Path | None, console: Console) -> None:
    """Run `shares`, `crossed`, `kappa`, `nulls`, `pipeline`, `true_shares` or `spectra`.

    Raises:
        InputError: an unknown simulation, too few repeats, or a negative seed.
    """
    if kind not in KINDS:
        raise InputError(f"unknown simulation {kind!r}{did_you_mean(kind, KINDS)}")
    if repeats < FEWEST_REPEATS:
        raise InputError(f"--repeats: may be {FEWEST_REPEATS} or more, got {repeats}")
    if seed < 0:
        raise InputError(f"--seed: may be 0 or more, got {seed}")
    run, missed_targets = KINDS[kind]
    with console.status(f"{kind}: {repeats:,} repeats a row"):
        rows = run(repeats, seed)
    if missed_targets is not None:
        rows = [row | {"missed": missed_targets(row)} for row in rows]
    console.print(_table(kind, rows))
    if missed_targets is not None:
        error = (0.95 * 0.05 / repeats) ** 0.5
        note = f"{sum(bool(row['missed']) for row in rows)} of {len(rows)} rows miss a target"
        console.print(f"{note}; a coverage of .95 has a standard error of {error:.3f} or more", highlight=False)
    if out is not None:
        command = f"wellworn simulate {kind} --repeats {repeats} --seed {seed}"
        write_json(out, {"command": command, "date": date.today().isoformat(), "versions": versions(), "commit": commit(), "rows": rows})
        console.print(f"written: {out}", highlight=False, markup=False)


def _table(kind: str, rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=kind, title_justify="left", title_style="bold", pad_edge=False)
    names = [name for name in rows[0] if len(rows[0]) <= MOST_COLUMNS or not name.endswith("_error")]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "missed" else "right")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"[red]{'; '.join(value)}[/red]" if value else ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)

"""`wellworn capability`: capabilities that fine-tunes lose, on the built-in set and on tasks of lm-eval, for a base and its adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wellworn.data.files import short_names
from wellworn.data.saving import write_json
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.stages.capability import BUILTIN, CHECKS, Capability, capability, measure_items
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora import models

if TYPE_CHECKING:
    from wellworn.experiments.commands.lm_eval_tasks import Settings


def evaluate(
    model: str,
    adapters: Sequence[Path],
    suites: Sequence[str],
    settings: "Settings",
    chat: ChatConfig,
    out: Path | None,
    console: Console,
) -> None:
    """Measure the base and each adapter, print a table for each suite, and save figures as they come.

    Args:
        model: the base.
        adapters: folders of its adapters.
        suites: `builtin`, and tasks of lm-eval.
        settings: how tasks of lm-eval are run.
        chat: how conversations of the built-in set are written.
        out: file that figures are also written to.
        console: where to show them.

    Raises:
        InputError: a model or an adapter that cannot be loaded, or a suite that is unknown or cannot be loaded.
    """
    from wellworn.experiments.commands import lm_eval_tasks

    others = [name for name in dict.fromkeys(suites) if name != BUILTIN]
    # Missing tasks are found before a model is loaded.
    tasks = lm_eval_tasks.set_up(others, settings) if others else None
    base = models.load(models.resolve(model))
    folders = list(dict.fromkeys(adapters))
    # PEFT refuses names with a dot. These names are not shown.
    named = {f"adapter{i}": folder for i, folder in enumerate(folders)}
    shown = {"base": "base", **dict(zip(named, short_names(folders, taken=("base",)), strict=True))}
    found: dict[str, Any] = {"model": base.ref.id, "suite": ",".join(dict.fromkeys(suites))}
    if BUILTIN in suites:
        with console.status("") as status:
            rows = capabilities(base, named, chat, lambda _done, _steps, what: status.update(what))
        rows = {shown[key]: row for key, row in rows.items()}
        console.print(_table(rows, base.ref.id))
        found["capabilities"] = [{"name": name, **row.to_json()} for name, row in rows.items()]
        _write(out, found)
    if tasks:
        found |= {"settings": lm_eval_tasks.settings_json(settings), "tasks": []}
        of_tasks = []
        for each in lm_eval_tasks.measure(base, named, tasks, settings):
            row = replace(each, name=shown[each.name])
            of_tasks.append(row)
            found["tasks"].append(asdict(row))
            _write(out, found)
        console.print(lm_eval_tasks.table(of_tasks, base.ref.id, settings))


def _write(out: Path | None, found: dict[str, Any]) -> None:
    if out is not None:
        write_json(out, found)


def capabilities(
    base: models.Loaded, adapters: Mapping[str, Path], config: ChatConfig, tick: Callable[..., None] = lambda *_: None
) -> dict[str, Capability]:
    """Return the results of the base and each adapter on the built-in set, by name.

    Args:
        base: the model.
        adapters: name → folder.
        config: how conversations are written.
        tick: called with steps done, steps in all, and the next step.
    """
    chat = config.of(base.tokenizer, base.max_length)
    plain, *changed = measure_items(base, chat, adapters, [None, *adapters], Ranks(), tick)
    return {"base": capability([plain], None)} | {name: capability([items], plain) for name, items in zip(adapters, changed, strict=True)}


def _table(rows: Mapping[str, Capability], base: str) -> Table:
    caption = (
        f"{escape(base)}; × the base's perplexity and KL with 95 % over answers; "
        "− lost and + gained items, p of a sign test; answers that were cut off are not compared"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    for column in ("", "perplexity", "KL to base", *CHECKS.values()):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        shown = []
        for each in (getattr(row, check) for check in CHECKS):
            change = "" if each.p is None else f" (−{each.lost} +{each.gained}, p {each.p:.2g})"
            shown.append(f"{each.right}/{each.items}{change}" + (f", {each.cut} cut" if each.cut else ""))
        ratio = f" (× {row.ratio})" if row.ratio else ""
        table.add_row(escape(name), f"{row.perplexity:.1f}{ratio}", str(row.kl or "–"), *shown)
    return table

"""The command `wellworn run`: from a study to its report. Heavy imports happen when it is called."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from wellworn.data.errors import InputError, describe_os_error
from wellworn.experiments.commands.options import complaints, console

# Runs of known origin, in the folder of a study with variants.
ORIGINS = "origins.json"

if TYPE_CHECKING:
    from wellworn.experiments.engine.ranks import Ranks
    from wellworn.experiments.engine.store import Store
    from wellworn.experiments.findings.summary import Summary
    from wellworn.experiments.plan.planned import Plan
    from wellworn.experiments.study import Study


def run_study(study: "Study", runs_dir: Path, json_file: str | None, plan_only: bool = False) -> None:
    """Finish a study, or each of its variants in turn, and write and show what was found.

    Args:
        study: the study.
        runs_dir: where stages and results are kept.
        json_file: where the summary is also written; `-` is standard output.
        plan_only: list the stages, and compute nothing.
    """
    from wellworn.experiments.engine.context import StudyContext
    from wellworn.experiments.engine.ranks import Ranks
    from wellworn.experiments.engine.store import Store
    from wellworn.experiments.findings.results import save_index
    from wellworn.experiments.findings.unchanged import settled
    from wellworn.experiments.plan.plan import plan

    show = screen(json_file)
    ranks = Ranks()
    store = Store(runs_dir)
    try:
        # All are laid out before anything is computed, so that each error is found at once.
        planned = [plan(each, StudyContext.of(each, ranks, store)) for each in study.variant_studies()]
        if plan_only:
            for each in planned:
                _list_stages(settled(each, store, ranks), store, ranks, show)
            return None
        ranks.from_main(store.create)
        _finish(planned, store, ranks, show)
    finally:
        ranks.close()
    if ranks.main:
        found = [write_report(save_index(settled(each, store), store), show) for each in planned]
        if not study.variants:
            return write_summary(found[0].to_json(), json_file)
        origins = _write_origins(study, found, runs_dir / study.name, show)
        write_summary({"variants": [each.to_json() for each in found], "origins": origins}, json_file)
    return None


def _write_origins(study: "Study", found: "Sequence[Summary]", folder: Path, show: Console) -> dict[str, Any] | None:
    """Write and show how well findings discriminate runs of known origin, if there are such runs; return it as JSON."""
    from wellworn.data.saving import write_json, write_text
    from wellworn.experiments.findings.known_origins import known_origins
    from wellworn.experiments.findings.results import REPORT
    from wellworn.experiments.report.origins import origins_page
    from wellworn.experiments.report.terminal import show_origins

    if (origins := known_origins(found)) is None:
        return None
    folder.mkdir(exist_ok=True)
    write_json(folder / ORIGINS, origins.to_json())
    write_text(folder / REPORT, origins_page(study.name, study.question, origins))
    show_origins(origins, show)
    show.print(f"report: {folder / REPORT}", highlight=False, markup=False)
    return origins.to_json()


def _list_stages(plan: "Plan", store: "Store", ranks: "Ranks", show: Console) -> None:
    """Show every stage, and whether it is finished."""
    from wellworn.experiments.engine.run import in_order

    for stage in in_order([*plan.first, *plan.screens, *plan.targets]):
        done = store.done(stage.id)
        if stage.check is not None and not done:
            stage.check()
        if ranks.main:
            show.print(f"{'done' if done else '    '}  {escape(stage.title)}  [dim]{stage.id}[/dim]", highlight=False)


def _finish(plans: "Sequence[Plan]", store: "Store", ranks: "Ranks", show: Console) -> None:
    """Compute the stages of studies that are not finished: of each those that teach its model, and then those of this model."""
    try:
        # What other processes hold is waited for when nothing else is left, in any of the studies.
        left = [plan for plan in plans if not _compute(plan, store, ranks, show, wait=False)]
        for plan in left:
            _compute(plan, store, ranks, show, wait=True)
    finally:
        for plan in plans:
            if ranks.main and plan.judge and (used := plan.judge.used):
                show.print(used, highlight=False, markup=False)


def _compute(plan: "Plan", store: "Store", ranks: "Ranks", show: Console, wait: bool) -> bool:
    """Compute the stages of one study, apart from those that other processes hold unless it is to wait; return whether all are finished."""
    from wellworn.experiments.engine.run import run
    from wellworn.experiments.findings.unchanged import settled

    context, knock_in = plan.context, plan.knock_in
    if ranks.main and not wait:
        show.print(f"{context.ref.id} on {context.device}, {context.dtype}, {ranks.world} process(es)", highlight=False, markup=False)
    # Models of other studies would fill the memory.
    try:
        if knock_in and not run(plan.first, store, knock_in.context, ranks, show, wait=wait):
            return False
    finally:
        if knock_in:
            knock_in.context.drop()
    try:
        if plan.screens and not run(plan.screens, store, context, ranks, show, wait=wait):
            return False
        return run(settled(plan, store, ranks).targets, store, context, ranks, show, wait=wait)
    finally:
        context.drop()


def write_report(folder: Path, show: Console) -> "Summary":
    """Write the summary and the page of a finished study, show its table, and return the summary.

    Args:
        folder: the results of the study.
        show: where the table is shown.
    """
    from wellworn.data.saving import write_json, write_text
    from wellworn.experiments.findings.results import REPORT, SUMMARY, load_results
    from wellworn.experiments.findings.summary import summarise
    from wellworn.experiments.report.page import page
    from wellworn.experiments.report.terminal import show as show_table

    results = load_results(folder)
    summary = summarise(results)
    # The table needs no room on a disk.
    show_table(summary, show)
    try:
        write_json(folder / SUMMARY, summary.to_json())
        write_text(folder / REPORT, page(results, summary))
    except OSError as error:
        raise InputError(
            f"{folder}: the page and {SUMMARY} cannot be written ({describe_os_error(error)}); all stages are finished, and "
            "`wellworn report` writes them, also of a copy of the runs folder"
        ) from None
    show.print(f"report: {folder / REPORT}", highlight=False, markup=False)
    return summary


def write_summary(found: Mapping[str, Any], json_file: str | None) -> None:
    """Write a summary where the user asked for it as well; `-` is standard output."""
    from wellworn.data.saving import write_json

    if json_file == "-":
        # Without other letters, of which some would steer a terminal.
        sys.stdout.write(json.dumps(found) + "\n")
    elif json_file:
        write_json(Path(json_file), found)


def screen(json_file: str | None) -> Console:
    """Return the console for output: standard output, or standard error if the JSON goes to standard output.

    Raises:
        InputError: the folder of the JSON file does not exist; this is checked before anything is computed.
    """
    check_folder(Path(json_file) if json_file and json_file != "-" else None)
    return complaints if json_file == "-" else console


def check_folder(json_file: Path | None) -> None:
    """Make sure that the folder of a file exists.

    Raises:
        InputError: it does not.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: the folder {json_file.parent} does not exist")

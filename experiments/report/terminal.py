"""The results as a table in the terminal."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from wellworn.experiments.findings.false_verdicts import COUNTED
from wellworn.experiments.findings.group_rows import GroupRow
from wellworn.experiments.findings.known_origins import EXISTING, NEW, KnownOrigins, as_estimate
from wellworn.experiments.findings.projected_shift import TEXTS
from wellworn.experiments.findings.run_rows import RunRow
from wellworn.experiments.findings.summary import CalibrationRow, Summary
from wellworn.experiments.report.pathways import WAYS, ways_of
from wellworn.experiments.stages.capability import CHECKS, Compared
from wellworn.probes.mediation.pathways import OTHERS, OWN
from wellworn.probes.statistics.intervals import Estimate, decimal

# Figures that only some rows have.
Figures = Literal["capability", "scores", "contexts", "statement", "written", "own_answers"]

_STYLES = {
    "along existing persona directions": "bold green",
    "new directions": "bold magenta",
    "existing, but not in the library": "magenta",
    "mixed": "cyan",
    "carried elsewhere": "yellow",
    "share above chance": "bold green",
    "share at chance": "bold cyan",
    "undecided": "yellow",
    "too noisy": "red",
    "no trait change": "red",
}


def show(summary: Summary, console: Console) -> None:
    """Print a study's question, its runs, and the directions that were not found."""
    console.print(render(summary))


def render(summary: Summary) -> RenderableType:
    """Return a study's results as a rich renderable."""
    parts: list[RenderableType] = [Text(summary.question, style="bold")]
    if summary.knock_in:
        parts.append(Text(summary.knock_in.in_words))
    if stated := _with(summary, "statement"):
        parts.append(_pathways(stated))
    if measured := _with(summary, "written"):
        parts.append(_written(measured))
    if measured := [row for row in _with(summary, "own_answers") if row.own_answers and row.own_answers.scores]:
        parts.append(_own_answers(measured))
    parts.append(_runs(summary))
    if summary.groups:
        parts.append(_groups(summary))
    if summary.capability:
        parts.append(_capability(summary))
    if any(row.scores for row in summary.runs):
        parts.append(_scores(summary))
    if any(row.contexts for row in summary.runs):
        parts.append(_contexts(summary))
    if summary.calibration:
        parts.append(_calibration(summary.calibration))
    for row in summary.runs:
        if row.verdict is None and not row.is_reference and not summary.stated:
            parts.append(Text(f"{row.name}: no verdict: {row.why}", style="dim"))
    for row in summary.runs:
        # Of adapters that were trained here nothing else is possible.
        if row.adapter and row.adapted:
            parts.append(Text("; ".join([f"{row.name}: {row.adapted.in_words}", *row.adapted.notes]), style="dim"))
    missing = [d for d in summary.directions if not d.found]
    if missing:
        names = ", ".join(f"{d.trait} (reliability {d.reliability:.2f})" for d in missing)
        parts.append(Text(f"† Not found in this model and left out of the space: {names}.", style="dim"))
    if summary.system_prompt.startswith("folded"):
        parts.append(Text(f"The model's template refuses a system prompt: it was {summary.system_prompt}.", style="dim"))
    if false := summary.false_verdicts:
        counted = [
            f"{each.count} of {each.runs} ({each.count_kinds} of {each.kinds} kinds) {said} "
            f"(95 %: a rate below {each.bound:.2f} for runs of these kinds, {each.bound_kinds:.2f} for other kinds)"
            for key, said in COUNTED.items()
            if (each := getattr(false, key)) and (key == "existing" or not summary.stated)
        ]
        if counted:
            parts.append(Text(f"Non-persona runs, as far as a statement or verdict could be made: {', '.join(counted)}.", style="dim"))
    if near := summary.specificity:
        ranks = f"{near.rank:.1f} on average over {near.traits} traits; where these are permuted, {near.chance:.1f}"
        parts.append(Text(f"Rank of the trained trait among all personas: {ranks} (p = {near.p:.4f}).", style="dim"))
    for each in summary.projected_shifts:
        way = each.within or each.pooled
        said = f"own direction r {_interval(way.own)}, other directions {_interval(way.others)}"
        over = f"{way.units} fine-tunes of {way.families} traits" + (", within a trait" if each.within else "")
        parts.append(Text(f"Trait score predicted by the shift at {TEXTS[each.text]} along the {said} (over {over}).", style="dim"))
    if any(row.provisional for row in summary.runs):
        begins = "Of some changes there are" if summary.stated else "* provisional:"
        said = f"{begins} fewer than three runs on training data of their own. The interval of one run says nothing about others."
        parts.append(Text(said, style="dim"))
    return Group(*parts)


def show_origins(origins: KnownOrigins, console: Console) -> None:
    """Print the runs of known origin, and how well each finding discriminates them."""
    runs = Table(box=box.SIMPLE_HEAD, title="runs of known origin", title_justify="left", title_style="dim", pad_edge=False)
    for column in ("taught", "trained on", "origin", "change", "own [95 %]", "chance, p", "κ [95 %]", "own, relative to the base"):
        runs.add_column(column, justify="left" if column in ("taught", "trained on", "origin") else "right")
    for run in origins.runs:
        chance = f"{decimal(run.chance)}, {run.p:.3f}" if run.chance is not None and run.p is not None else "–"
        named = (escape(run.model), escape(run.trait or ""), run.origin)
        numbers = (_interval(run.own), chance, _interval(run.kappa), _interval(run.own_base))
        runs.add_row(*named, _number(run.effect, signed=True), *numbers)
    table = Table(box=box.SIMPLE_HEAD, title="existing above new", title_justify="left", title_style="dim", pad_edge=False)
    for column in ("finding", "AUC [95 % over taught models]", "undecided", "models in order"):
        table.add_column(column, justify="left" if column == "finding" else "right")
    for each in origins.findings:
        in_order = f"{each.in_order} of {each.families} [{each.in_order_low:.2f}, 1]"
        table.add_row(each.words, _interval(as_estimate(each)), str(each.undecided), in_order)
    said = Table(box=box.SIMPLE_HEAD, title="what may be said", title_justify="left", title_style="dim", pad_edge=False)
    for column in ("statement", EXISTING, NEW):
        said.add_column(column, justify="left" if column == "statement" else "right")
    for name, counts in origins.statements.items():
        said.add_row(name, str(counts[EXISTING]), str(counts[NEW]))
    left_out = [Text(f"Left out: {name}: {why}.", style="dim") for name, why in origins.left_out.items()]
    console.print(Group(runs, table, said, *left_out))


def _runs(summary: Summary) -> Table:
    title = f"{summary.model}, layer {summary.layer} of {summary.depth}, {summary.dtype}"
    title = f"where the shift lies: {title}" if summary.stated else title
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", pad_edge=False)
    heads = ("run", "trait score", "share F", "chance", "F* [95 %]", "p", *_older(summary, "C [95 %]"), "nearest", *_verdicts(summary))
    for column in heads:
        table.add_column(
            column, justify="left" if column in ("run", "nearest", "verdict") else "right", no_wrap=column not in ("verdict", "nearest")
        )
    for row in summary.runs:
        table.add_row(
            escape(row.name),
            _number(row.effect, signed=True),
            _number(row.share),
            decimal(row.share_null_mean) if row.share_null_mean is not None else "–",
            _interval(row.share_effect),
            f"{row.share_p:.3f}" if row.share_p is not None else "–",
            *_older(summary, _interval(row.mediated_of_carried)),
            ", ".join(f"{n.name}{'' if n.found else '†'} {decimal(n.value)}" for n in (row.nearest or [])[:2]) or "–",
            *_verdicts(summary, _verdict(row)),
        )
    return table


def _older(summary: Summary, cell: str) -> list[str]:
    """Return a cell of the older analysis, if it was made."""
    return [cell] if summary.mediated else []


def _verdicts(summary: Summary, cell: Text | str = "verdict") -> list[Text | str]:
    """Return a cell of verdicts, or their head, where no statements say what may be said."""
    return [] if summary.stated else [cell]


def _groups(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="over runs (the run is the unit)", title_justify="left", title_style="dim", pad_edge=False)
    heads = ("arm", "runs", "trait score [95 %]", "F* [95 %]", "share across runs", *_older(summary, "C [95 %]"), *_verdicts(summary))
    for column in heads:
        table.add_column(column, justify="left" if column in ("arm", "verdict") else "right")
    for group in summary.groups:
        across = group.share_across_runs
        table.add_row(
            escape(group.name),
            str(group.runs),
            _interval(group.effect),
            _interval(group.share_effect),
            "–" if across is None else decimal(across),
            *_older(summary, _interval(group.mediated_of_carried)),
            *_verdicts(summary, _verdict(group)),
        )
    return table


def _pathways(rows: Sequence[RunRow | GroupRow]) -> RenderableType:
    """Return where each change goes, relative to the headline's reference, and what may be said of it."""
    found = [(row, next(iter(row.pathways.values())) if row.pathways else None) for row in rows]
    ways = ways_of([each for _, each in found if each])
    table = Table(box=box.SIMPLE_HEAD, title="where the change goes", title_justify="left", title_style="dim", pad_edge=False)
    for column in ("run", "change", *(WAYS[way][0] for way in ways), "chance for own, p", "κ [95 %]", "what may be said"):
        table.add_column(column, justify="left" if column in ("run", "what may be said") else "right")
    for row, each in found:
        said = "" if row.statement is None else row.statement.words + (" ‡" if row.statement.fragile else "")
        change = _number(each.headline.effect if each else row.effect, signed=True)
        if each is None or each.headline.why:
            table.add_row(escape(row.name), change, "no clear change", *[""] * (len(ways) + 1), said)
            continue
        chance = each.headline.chance_own
        table.add_row(
            escape(row.name),
            change,
            *(_interval(each.headline.shares.get(way)) for way in ways),
            f"{decimal(chance.mean)}, {chance.p:.3f}" if chance else "–",
            _interval(each.headline.kappa),
            said,
        )
    legend = (
        "Own: the base's direction for the trait, or for a control's instruction. κ: 0 is chance, 1 the better of two of the change itself."
    )
    fragile = " ‡ hangs on the margins." if any(row.statement and row.statement.fragile for row, _ in found) else ""
    return Group(table, Text(legend + fragile, style="dim"))


def _written(rows: Sequence[RunRow | GroupRow]) -> Table:
    """Return what adapters write along the own direction and other personas, relative to each reference."""
    title = "share of the change specific to the trait that writes along some directions alone bring about"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", pad_edge=False)
    for column in ("run", "relative to", "inside own", "chance, p", "inside own and others", "outside own"):
        table.add_column(column, justify="left" if column in ("run", "relative to") else "right")
    for row in rows:
        for reference, written in (row.written or {}).items():
            each = written.contrast
            chance = f"{decimal(each.chance_own.mean)}, {each.chance_own.p:.3f}" if each.chance_own else "–"
            shares = (_interval(each.inside.get(OWN)), chance, _interval(each.inside.get(OTHERS)), _interval(each.outside.get(OWN)))
            table.add_row(escape(row.name), reference, *shares)
    return table


def _own_answers(rows: Sequence[RunRow | GroupRow]) -> Table:
    """Return how much of the change of what is said the own direction brings about."""
    title = "answers of the models themselves: the change, and what the own direction brings about of it"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="dim", pad_edge=False)
    for column in ("run", "scored by", "change", "put in", "taken out", "share", "chance"):
        table.add_column(column, justify="left" if column in ("run", "scored by") else "right")
    for row in rows:
        for each in row.own_answers.scores if row.own_answers else ():
            shares = (_interval(part) for part in (each.effect, each.into, each.out, each.share))
            table.add_row(escape(row.name), each.by, *shares, "–" if each.chance is None else decimal(each.chance))
    return table


def _with(summary: Summary, figures: Figures) -> list[RunRow | GroupRow]:
    """Return the rows with these figures: groups of runs that differ only in seed, then the other runs."""
    rows: list[RunRow | GroupRow] = [*summary.groups, *summary.alone]
    return [row for row in rows if getattr(row, figures)]


def _capability(summary: Summary) -> Table:
    """Return the capabilities of fine-tunes relative to the base."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="what it cost, relative to the base; answers that were cut off are not compared",
        title_justify="left",
        title_style="dim",
        pad_edge=False,
    )
    for column in ("run", "perplexity", "× base [95 %]", "KL to base [95 %]", *CHECKS.values()):
        table.add_column(column, justify="left" if column == "run" else "right")
    measured = [("base", summary.capability), *((row.name, row.capability) for row in _with(summary, "capability"))]
    for name, can in measured:
        if can:
            checks: list[Compared] = [getattr(can, check) for check in CHECKS]
            counted = [f"{each.right}/{each.items}{_change(each)}" for each in checks]
            table.add_row(escape(name), f"{can.perplexity:.1f}", _interval(can.ratio), _interval(can.kl), *counted)
    return table


def _change(found: Compared) -> str:
    change = "" if found.lost is None else f" −{found.lost} +{found.gained}"
    return change + (f" ({found.cut} cut)" if found.cut else "")


def _scores(summary: Summary) -> Table:
    """Return the change of each score."""
    scored = [(row.name, row.scores) for row in _with(summary, "scores") if row.scores]
    judge = scored[0][1].judge
    title = "change of each score" + (f" (judge: {judge})" if judge else "")
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", title_style="dim", pad_edge=False)
    names = list(scored[0][1].scores)
    for column in ("run", *names):
        table.add_column(escape(column), justify="left" if column == "run" else "right")
    for name, scores in scored:
        table.add_row(escape(name), *(_interval(scores.scores[score].change) for score in names))
    return table


def _contexts(summary: Summary) -> Table:
    """Return the change of each score without a context and in each, and the shift there."""
    found = [(row.name, row.contexts) for row in _with(summary, "contexts") if row.contexts]
    table = Table(box=box.SIMPLE_HEAD, title="under each system prompt", title_justify="left", title_style="dim", pad_edge=False)
    for column in ("run", "change of", "no prompt", *found[0][1].under):
        table.add_column(escape(column), justify="left" if column in ("run", "change of") else "right")
    for name, contexts in found:
        shifts = [each.shift for each in contexts.columns]
        rows = [(score, [_interval(each.scores[score].change) for each in contexts.columns]) for score in contexts.without.scores]
        if any(shifts):
            rows.append(("shift", ["–" if shift is None else decimal(shift.relative_norm) for shift in shifts]))
            rows.append(("share", [_interval(shift.share if shift else None) for shift in shifts]))
        for k, (what, cells) in enumerate(rows):
            table.add_row("" if k else escape(name), what, *cells)
    return table


def _calibration(calibration: CalibrationRow) -> RenderableType:
    """Return the results on planted changes that passed the gate, compared with the share in each half's space."""
    if calibration.why:
        return Text(f"No change was planted: {calibration.why}.", style="dim")
    title = f"planted changes like {calibration.run}"
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left", title_style="dim", pad_edge=False)
    later = calibration.later if calibration.later and calibration.later.why is None else None
    columns = ("planted", "measured", "error", "coverage", "error in the measured space", "coverage in it")
    for column in (*columns, f"read at layer {later.later}") if later else columns:
        table.add_column(column, justify="right")
    gated = [row for row in calibration.accuracy if row.gated]
    for i, (point, row) in enumerate(zip(calibration.points, gated, strict=True)):
        values = (row.error, row.coverage, row.error_held, row.coverage_held)
        numbers = ("–" if value is None else f"{value:.3f}" for value in values)
        raw = [f"{later.raw[i]:.2f}"] if later else []
        table.add_row(f"{point.alpha:g}", _interval(point.share), *numbers, *raw)
    return table


def _number(estimate: Estimate | None, signed: bool = False) -> str:
    return "–" if estimate is None else decimal(estimate.value, signed=signed)


def _interval(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate).replace("inf", "∞")


def _verdict(row: RunRow | GroupRow) -> Text:
    if row.verdict is None:
        return Text("reference" if isinstance(row, RunRow) and row.is_reference else "–", style="dim")
    return Text(row.verdict + ("*" if row.provisional else ""), style=_STYLES.get(row.verdict, ""))

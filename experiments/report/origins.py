"""The page of runs of known origin: how far apart findings place the two kinds."""

from collections.abc import Sequence

from wellworn.experiments.findings.known_origins import EXISTING, NEW, KnownOrigins, KnownRun, as_estimate
from wellworn.experiments.report.figures import GREY, PALETTE, Figure, base_layout, interval_marks, label
from wellworn.experiments.report.page import render_page

_COLOURS = {EXISTING: (PALETTE[0], "circle"), NEW: (PALETTE[1], "diamond")}


def origins_page(study: str, question: str, origins: KnownOrigins) -> str:
    """Return the page of a study's runs of known origin as one self-contained HTML page."""
    figure = own_shares("own-shares", origins.runs)
    findings = [{"words": each.words, "auc": as_estimate(each), "found": each} for each in origins.findings]
    return render_page(
        "origins.html",
        study,
        [figure] if figure else [],
        study=study,
        question=question,
        origins=origins,
        figure=figure,
        findings=findings,
        base=any(run.own_base for run in origins.runs),
    )


def own_shares(id: str, runs: Sequence[KnownRun]) -> Figure | None:
    """Draw the share through the own direction of every run that has one, with its interval: existing personas above new ones."""
    shares = {i: run.own for i, run in enumerate(runs) if run.own}
    ranked = sorted(shares, key=lambda i: (runs[i].origin == EXISTING, shares[i].value))
    if not ranked:
        return None
    data = []
    for origin, (colour, symbol) in _COLOURS.items():
        there = [(place, shares[i]) for place, i in enumerate(ranked) if runs[i].origin == origin]
        data.append(interval_marks([place for place, _ in there], [share for _, share in there], f"{origin} persona", colour, symbol))
    layout = base_layout(height=100 + 26 * len(ranked), x="share through the own direction", left=10)
    names = [label(f"{runs[i].trait} on {runs[i].model}") for i in ranked]
    layout["yaxis"] |= {"tickvals": list(range(len(ranked))), "ticktext": names, "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY, "rangemode": "tozero"}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    words = "; ".join(f"{runs[i].trait} on {runs[i].model} ({runs[i].origin}) {shares[i].value:.2f}" for i in reversed(ranked))
    return Figure(id, f"share through the own direction of runs of known origin: {words}", data, layout)

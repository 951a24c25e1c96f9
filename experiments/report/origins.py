"""The page of runs of known origin: how far apart findings place the two kinds."""

from collections.abc import Sequence

from wellworn.experiments.findings.known_origins import EXISTING, NEW, KnownOrigins, KnownRun, as_estimate
from wellworn.experiments.report.figures import GREY, PALETTE, Figure, base_layout, interval_marks, label
from wellworn.experiments.report.page import render_page

_COLOURS = {EXISTING: (PALETTE[0], "circle"), NEW: (PALETTE[1], "diamond")}


def origins_page(study: str, question: str, origins: KnownOrigins) -> str:
    """Return the page of a study's runs of known origin as one self-contained HTML page."""
    figure = kappas("kappas", origins.runs)
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


def kappas(id: str, runs: Sequence[KnownRun]) -> Figure | None:
    """Draw κ of every run that has one, with its interval: existing personas above new ones."""
    ranked = sorted((run for run in runs if run.kappa), key=lambda run: (run.origin == EXISTING, run.kappa.value if run.kappa else 0))
    if not ranked:
        return None
    data = []
    for origin, (colour, symbol) in _COLOURS.items():
        there = [(i, run.kappa) for i, run in enumerate(ranked) if run.origin == origin and run.kappa]
        data.append(interval_marks([i for i, _ in there], [kappa for _, kappa in there], f"{origin} persona", colour, symbol))
    layout = base_layout(height=100 + 26 * len(ranked), x="κ", left=10)
    names = [label(f"{run.trait} on {run.model}") for run in ranked]
    layout["yaxis"] |= {"tickvals": list(range(len(ranked))), "ticktext": names, "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY, "rangemode": "tozero"}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    words = "; ".join(f"{run.trait} on {run.model} ({run.origin}) {run.kappa.value:.2f}" for run in reversed(ranked) if run.kappa)
    return Figure(id, f"κ of runs of known origin: {words}", data, layout)

"""The figures of single panels: groups of runs, where an update writes, planted changes."""

from collections.abc import Sequence

from wellworn.experiments.findings.group_rows import GroupRow
from wellworn.experiments.findings.summary import CalibrationRow
from wellworn.experiments.report.figures import (
    DASHES,
    GREY,
    PALETTE,
    Figure,
    Plotly,
    Style,
    base_layout,
    interval_marks,
    label,
    polyline,
    round_value,
)
from wellworn.experiments.stages.calibration import LaterShares
from wellworn.experiments.stages.weights import UpdateWrites

# The values drawn for each group: (key in the summary, name, colour, symbol).
_SHARES = (
    ("share_effect", "F*, of the shift", GREY, "circle-open"),
    ("mediated_of_carried", "C, of the behaviour", PALETTE[0], "circle"),
)


def shares_of_groups(id: str, groups: Sequence[tuple[str, GroupRow]]) -> Figure | None:
    """Draw F* and C of every group with their intervals, sorted by the mediated share."""
    if not any(getattr(group, key) for _, group in groups for key, *_ in _SHARES):
        return None

    def order(each: tuple[str, GroupRow]) -> list[float]:
        # Groups without C, or without either, come last.
        shares = [getattr(each[1], key) for key, *_ in reversed(_SHARES)]
        return [share.value if share else float("-inf") for share in shares]

    ranked = sorted(groups, key=order)
    data = []
    for (key, name, colour, symbol), move in zip(_SHARES, (0.12, -0.12), strict=True):
        there = [(i + move, share) for i, (_, group) in enumerate(ranked) if (share := getattr(group, key))]
        data.append(interval_marks([at for at, _ in there], [share for _, share in there], name, colour, symbol))
    layout = base_layout(height=84 + 36 * len(ranked), x="share beyond chance", left=10)
    layout["yaxis"] |= {"tickvals": list(range(len(ranked))), "ticktext": [label(name) for name, _ in ranked], "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    words = "; ".join(
        f"{name} " + ", ".join(f"{said.split(',')[0]} {share.value:.2f}" for key, said, *_ in _SHARES if (share := getattr(group, key)))
        for name, group in reversed(ranked)
    )
    return Figure(id, f"Shares beyond chance: {words}", data, layout)


def writes_by_layer(id: str, style: Style, weights: UpdateWrites | None, depth: int) -> Figure | None:
    """Draw the share ω of each kind of linear layer's writes that lies in the persona space, with the mean of its null dotted."""
    if not weights or not weights.together:
        return None
    modules = list(dict.fromkeys(write.module for write in weights.writes))
    layers = list(range(depth))
    data = []
    for module, dash in zip(modules, DASHES, strict=False):
        of = {write.layer: write for write in weights.writes if write.module == module}
        chance, share = ([getattr(of[layer], key) if layer in of else None for layer in layers] for key in ("null_mean", "omega"))
        data.append(polyline(layers, chance, f"chance for {module}", GREY, dash, width=1))
        data.append(polyline(layers, share, module, style.colour, dash, markers=True))
    layout = base_layout(height=245, x="layer", y="share ω of what is written")
    layout["yaxis"] |= {"rangemode": "tozero"}
    together = weights.together
    words = f"{together.omega:.2f} of all that is written lies in the persona space, chance {together.null_mean:.2f}"
    return Figure(id, f"{words}; layers of {', '.join(modules)}", data, layout)


_HOVER = {"hovertemplate": "planted %{x}: %{y:.2f}"}


def calibration_figures(calibration: CalibrationRow | None) -> dict[str, Figure]:
    """Return the figures `planted` and `later`, where there are data for them."""
    if calibration is None:
        return {}
    drawn = {}
    if calibration.why is None:
        drawn["planted"] = _planted_figure(calibration)
    if (later := calibration.later) and later.why is None:
        drawn["later"] = _later_figure(later)
    return drawn


def _planted_figure(calibration: CalibrationRow) -> Figure:
    """Draw the measured share against the planted one, with the shares that both spaces hold."""
    points = calibration.points
    alphas = [point.alpha for point in points]
    found = [point for point in points if point.share]
    data = [
        polyline([0, 1], [0, 1], "as planted", GREY, "2px,3px", width=1.2),
        polyline(alphas, [point.target for point in points], "in the other half's space", PALETTE[1], "7px,3px", markers=True) | _HOVER,
        polyline(alphas, [point.held for point in points], "in the measured space", PALETTE[2], "solid", markers=True) | _HOVER,
        interval_marks(
            [point.alpha for point in found],
            [point.share for point in found if point.share],
            "measured",
            PALETTE[0],
            "circle",
            upright=True,
        ),
    ]
    words = "; ".join(f"{point.alpha:g} reads {point.share.value:.2f}" for point in found if point.share) or "none passed the gate"
    return Figure("calibration-planted", f"Measured share against planted share: {words}", data, _calibration_layout("measured share"))


def _later_figure(later: LaterShares) -> Figure:
    """Draw the share at the later layer against the planted one, raw and scaled between its anchors."""
    alphas = later.alphas
    data = [
        polyline([0, 1], [0, 1], "as planted", GREY, "2px,3px", width=1.2),
        polyline(alphas, later.raw, "share there", PALETTE[0], "solid", markers=True) | _HOVER,
        polyline(alphas, later.scaled, "between its ends", PALETTE[4], "7px,3px", markers=True) | _HOVER,
        {
            "type": "scatter",
            "mode": "markers",
            "x": [0, 1],
            "y": [round_value(end) for end in later.anchors],
            "name": "ends, from draws of their own",
            "marker": {"color": PALETTE[0], "symbol": "circle-open", "size": 9},
        }
        | _HOVER,
    ]
    words = "; ".join(f"{alpha:g} reads {share:.2f}" for alpha, share in zip(alphas, later.raw, strict=True))
    alt = f"Share at layer {later.later} against share planted at {later.layer}: {words}"
    return Figure("calibration-later", alt, data, _calibration_layout("share"))


def _calibration_layout(y: str) -> Plotly:
    layout = base_layout(height=380, x="planted share", y=y)
    layout |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"}}
    layout["margin"] |= {"b": 110}
    return layout

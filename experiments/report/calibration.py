"""What was found of planted changes, as figures."""

from collections.abc import Mapping
from typing import Any

from experiments.report.figures import GREY, PALETTE, Figure, layout_of, marks, polyline, rounded

_HOVER = {"hovertemplate": "planted %{x}: %{y:.2f}"}


def figures(calibration: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Return the figures that there is something for: `planted`, and `later`."""
    if calibration is None:
        return {}
    drawn = {}
    if calibration["why"] is None:
        drawn["planted"] = _planted(calibration)
    if (later := calibration["later"]) and later["why"] is None:
        drawn["later"] = _later(later)
    return drawn


def _planted(calibration: Mapping[str, Any]) -> Figure:
    """Draw the measured share against the planted one, with what both spaces hold of it."""
    points = calibration["points"]
    alphas = [point["alpha"] for point in points]
    found = [point for point in points if point["share"]]
    data = [
        polyline([0, 1], [0, 1], "as planted", GREY, "2px,3px", width=1.2),
        polyline(alphas, [point["target"] for point in points], "in the other half's space", PALETTE[1], "7px,3px", markers=True) | _HOVER,
        polyline(alphas, [point["held"] for point in points], "in the measured space", PALETTE[2], "solid", markers=True) | _HOVER,
        marks([point["alpha"] for point in found], [point["share"] for point in found], "measured", PALETTE[0], "circle", upright=True),
    ]
    words = "; ".join(f"{point['alpha']:g} reads {point['share']['value']:.2f}" for point in found) or "none passed the gate"
    return Figure("calibration-planted", f"Measured share against planted share: {words}", data, _layout("measured share"))


def _later(later: Mapping[str, Any]) -> Figure:
    """Draw the share at the later layer against the planted one, raw and between the ends of its scale."""
    alphas = later["alphas"]
    data = [
        polyline([0, 1], [0, 1], "as planted", GREY, "2px,3px", width=1.2),
        polyline(alphas, later["raw"], "share there", PALETTE[0], "solid", markers=True) | _HOVER,
        polyline(alphas, later["scaled"], "between its ends", PALETTE[4], "7px,3px", markers=True) | _HOVER,
        {
            "type": "scatter",
            "mode": "markers",
            "x": [0, 1],
            "y": [rounded(end) for end in later["anchors"]],
            "name": "ends, from draws of their own",
            "marker": {"color": PALETTE[0], "symbol": "circle-open", "size": 9},
        }
        | _HOVER,
    ]
    words = "; ".join(f"{alpha:g} reads {share:.2f}" for alpha, share in zip(alphas, later["raw"], strict=True))
    return Figure(
        "calibration-later", f"Share at layer {later['later']} against share planted at {later['layer']}: {words}", data, _layout("share")
    )


def _layout(y: str) -> dict[str, Any]:
    layout = layout_of(height=380, x="planted share", y=y)
    layout |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"}}
    layout["margin"] |= {"b": 110}
    return layout

"""The figures of the report, as plain plotly specifications.

Names come from data sets and are untrusted. Plotly reads a little HTML in every label, so they are escaped here; they
never become part of a hover template.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wellworn.data.wording import visible
from wellworn.experiments.stages.measurement import LayerCurve
from wellworn.experiments.stages.persona_space import SpaceDimension
from wellworn.probes.geometry.directions import FOUND_RELIABILITY
from wellworn.probes.statistics.intervals import Estimate, FloatArray, decimal, finite

# Okabe and Ito's colour-blind-safe colours that are visible on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "7px,3px", "2px,3px", "9px,3px,2px,3px", "15px,4px")
GREY, GRID = "#7b828a", "rgba(128,128,128,0.22)"
# The middle is transparent, so that a cosine of zero looks like the page in light and in dark mode.
DIVERGING = ((0.0, "rgba(213,94,0,1)"), (0.5, "rgba(128,128,128,0.06)"), (1.0, "rgba(0,114,178,1)"))
BARS = 10
LABEL = 28

Numbers = Sequence[float | None]
# A trace, a layout or a part of one, in the format of plotly.js.
Plotly = dict[str, Any]
# Values that a template shows, by the names that it uses.
Shown = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How a run is drawn in every figure."""

    colour: str
    dash: str


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: of its element in the page.
        alt: a description in words and numbers.
        data: plotly traces.
        layout: plotly layout.
    """

    id: str
    alt: str
    data: Sequence[Plotly]
    layout: Plotly

    def spec(self) -> Plotly:
        """Return the specification for plotly.js."""
        return {"data": self.data, "layout": self.layout}


def run_style(number: int) -> Style:
    """Return the style of a study's nth run: a colour, and a dash that changes when the colours start again."""
    return Style(PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)])


def cosine_bars(id: str, style: Style, cosines: Mapping[str, float], own: str | None, found: Sequence[str]) -> Figure:
    """Draw the largest signed cosines of one run's shift; a direction that was not found is pale."""
    largest = sorted(cosines, key=lambda name: -abs(cosines[name]))[:BARS]
    names = sorted(largest, key=lambda name: cosines[name])
    marks = {name: " (own)" if name == own else "" if name in found else " †" for name in names}
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [round_value(cosines[name]) for name in names],
        "y": list(range(len(names))),
        "text": [decimal(cosines[name]) for name in names],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "marker": {"color": style.colour, "opacity": [1.0 if name in found else 0.4 for name in names]},
    }
    low, high = min([0.0, *cosines.values()]), max([0.0, *cosines.values()])
    # Leave room for the numbers next to the bars; on the left they are between the bars and the names.
    room = 0.3 * max(high - low, 0.2)
    layout = base_layout(height=60 + 25 * max(len(names), 2), left=10)
    layout["xaxis"] |= {"range": [low - room if low < 0 else 0, high + 0.6 * room], "zeroline": True, "zerolinecolor": GREY, "nticks": 5}
    layout["yaxis"] |= {"tickvals": trace["y"], "ticktext": [label(name) + marks[name] for name in names], "showgrid": False}
    return Figure(id, "Signed cosines: " + ", ".join(f"{name} {cosines[name]:.2f}" for name in reversed(names)), [trace], layout)


def share_by_layer(id: str, style: Style, curve: LayerCurve, layer: int, limits: tuple[float, float]) -> Figure:
    """Draw a run's share at every layer with its interval, over a band of N1 from its mean to its 95 % quantile."""
    at = list(range(len(curve.share)))
    data = [
        _band(curve.null_mean, curve.null_high, "rgba(128,128,128,0.32)", "N1, mean to 95 %"),
        polyline(at, curve.null_mean, "N1 mean", GREY, "2px,3px", width=1.2),
        _band(curve.low, curve.high, style.colour, "95 % interval", opacity=0.3),
        polyline(at, curve.share, "share F", style.colour, "solid", markers=True),
    ]
    layout = base_layout(height=245, x="layer", y="share F")
    layout["yaxis"] |= {"range": list(limits)}
    layout["xaxis"] |= _layer_axis(len(at))
    layout["shapes"] = [vertical(layer)]
    alt = f"Share F at layer {layer}: {_words(curve.share, layer)}; N1 mean {_words(curve.null_mean, layer)}"
    return Figure(id, alt, data, layout)


def share_limits(curves: Sequence[LayerCurve]) -> tuple[float, float]:
    """Return the limits of the vertical axis that all share curves have in common."""
    keys = ("share", "low", "high", "null_mean", "null_high")
    values = [value for curve in curves for key in keys for value in getattr(curve, key) if value is not None]
    # Intervals are not clipped, so a noisy layer may have a very wide one; it must not flatten the rest.
    return max(min([0.0, *values]), -0.5) - 0.03, min(max([0.2, *values]), 1.4) + 0.03


def cosines_by_layer(id: str, projections: Mapping[str, Numbers], layer: int, own: str | None) -> Figure:
    """Draw the signed cosine of a run's shift with every direction at every layer."""
    names = list(projections)[::-1]
    depth = max((len(values) for values in projections.values()), default=0)
    trace = {
        "type": "heatmap",
        "z": [[round_value(value) for value in projections[name]] for name in names],
        "x": list(range(depth)),
        "y": list(range(len(names))),
        "text": [[label(name)] * depth for name in names],
        "hovertemplate": "%{text}, layer %{x}: %{z:.2f}<extra></extra>",
        "colorscale": [list(stop) for stop in DIVERGING],
        "zmin": -1,
        "zmax": 1,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [-1, 0, 1], "title": {"text": "cosine", "side": "right"}},
    }
    layout = base_layout(height=90 + 22 * max(len(names), 3), x="layer", left=10)
    layout["xaxis"] |= _layer_axis(depth) | {"showgrid": False}
    labels = [label(name) + (" (own)" if name == own else "") for name in names]
    layout["yaxis"] |= {"tickvals": trace["y"], "ticktext": labels, "showgrid": False}
    layout["shapes"] = [vertical(layer)]
    here = ", ".join(f"{name} {_words(projections[name], layer)}" for name in reversed(names))
    return Figure(id, f"Signed cosines at layer {layer}: {here}", [trace], layout)


def training_curves(id: str, runs: Sequence[tuple[str, Style, Sequence[Mapping[str, float]]]]) -> Figure:
    """Draw the training loss of every trained run."""
    data = []
    for name, style, curve in runs:
        points = [point for point in curve if point.get("loss") is not None]
        data.append(
            polyline([point["step"] for point in points], [point["loss"] for point in points], label(name), style.colour, style.dash)
        )
        # A run of a single step is a point, not a line.
        data[-1] |= {"mode": "lines" if len(points) > 1 else "markers", "hovertemplate": "step %{x}: %{y:.3f}"}
    layout = base_layout(height=330, x="step", y="loss")
    ends = ", ".join(f"{name} {curve[-1]['loss']:.2f}" for name, _, curve in runs if curve and curve[-1].get("loss") is not None)
    return Figure(id, f"Training loss by step; at the end: {ends}", data, layout)


def reliability_by_layer(id: str, values: FloatArray, null: FloatArray, found: FloatArray, layer: int) -> Figure:
    """Draw a direction's reliability at every layer; filled points are layers where it was found."""
    at = list(range(len(values)))
    line = polyline(at, [finite(v) for v in values], "reliability", GREY, "solid", markers=True)
    line["marker"] = {"size": 6, "symbol": ["circle" if f > 0.5 else "circle-open" for f in found], "color": GREY}
    data = [polyline(at, [finite(v) for v in null], "N1, 95 %", GREY, "2px,3px", width=1.2), line]
    layout = base_layout(height=215, x="layer", y="reliability")
    layout["yaxis"] |= {"range": [min([-0.25, *(float(v) - 0.05 for v in values if abs(v) <= 1)]), 1.04], "tickvals": [0, 0.5, 1]}
    layout["xaxis"] |= _layer_axis(len(at))
    layout["shapes"] = [_horizontal(FOUND_RELIABILITY), vertical(layer)]
    here = f"reliability {_words([finite(v) for v in values], layer)}, N1 95 % {_words([finite(v) for v in null], layer)}"
    return Figure(id, f"At layer {layer}: {here}; found at {int((found > 0.5).sum())} of {len(at)} layers", data, layout)


def dimension_curve(dimension: SpaceDimension) -> Figure | None:
    """Draw Q² of spaces of k = 1, 2, … dimensions, with the chosen k; None where none were tried."""
    if not (q2 := list(dimension.q2)):
        return None
    at = list(range(1, len(q2) + 1))
    line = polyline(at, q2, "Q²", GREY, "solid", markers=True) | {"hovertemplate": "k = %{x}: %{y:.2f}"}
    layout = base_layout(height=240, x="dimensions k", y="Q²")
    best = max(q2) - dimension.standard_error
    layout["shapes"] = [_horizontal(best)] + ([vertical(dimension.k)] if dimension.k else [])
    said = f"k = {dimension.k} is chosen" if dimension.k else "no k is chosen"
    return Figure("dimension", f"Q² is {max(q2):.2f} at most, at k = {at[q2.index(max(q2))]}; {said}", [line], layout)


def label(text: str) -> str:
    """Shorten a name for a figure, and remove its markup; characters that nobody would see are written out."""
    text = visible(text)
    # Names of runs often differ in their ends.
    short = text if len(text) <= LABEL else f"{text[: LABEL // 2]}…{text[LABEL // 2 + 1 - LABEL :]}"
    return html.escape(short, quote=False)


def round_value(value: float | None) -> float | None:
    """Round a number for a figure."""
    return None if value is None else round(float(value), 4)


def _words(values: Numbers, at: int) -> str:
    value = values[at] if at < len(values) else None
    return "not measured" if value is None else f"{value:.2f}"


def polyline(x: Sequence[float], y: Numbers, name: str, colour: str, dash: str, width: float = 2, markers: bool = False) -> Plotly:
    """Return a line, by layer unless its hover template is replaced."""
    return {
        "type": "scatter",
        # Points show a layer between layers that were not measured.
        "mode": "lines+markers" if markers or len(x) == 1 else "lines",
        "x": list(x),
        "y": [round_value(value) for value in y],
        "name": name,
        "line": {"color": colour, "dash": dash, "width": width},
        "marker": {"size": 4, "color": colour},
        "hovertemplate": "layer %{x}: %{y:.2f}",
    }


def interval_marks(at: Sequence[float], shares: Sequence[Estimate], name: str, colour: str, symbol: str, upright: bool = False) -> Plotly:
    """Return points with their intervals; an infinite bound is not drawn."""
    values = [share.value for share in shares]
    up = [round_value(share.high - share.value) if math.isfinite(share.high) else 0 for share in shares]
    down = [round_value(share.value - share.low) if math.isfinite(share.low) else 0 for share in shares]
    numbers, places = [round_value(value) for value in values], list(at)
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.4, "width": 3}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": places if upright else numbers,
        "y": numbers if upright else places,
        "error_y" if upright else "error_x": bars,
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "hovertemplate": "%{y:.2f}" if upright else "%{x:.2f}",
    }


def _band(low: Numbers, high: Numbers, colour: str, name: str, opacity: float = 1) -> Plotly:
    """Return a filled band, broken where either edge is missing."""
    x: list[float | None] = []
    y: list[float | None] = []
    edges = [(i, a, b) for i, (a, b) in enumerate(zip(low, high, strict=True)) if a is not None and b is not None]
    start = 0
    for end in range(1, len(edges) + 1):
        if end < len(edges) and edges[end][0] == edges[end - 1][0] + 1:
            continue
        piece, start = edges[start:end], end
        if len(piece) == 1:
            i, a, b = piece[0]
            piece = [(i - 0.3, a, b), (i + 0.3, a, b)]  # type: ignore[list-item]
        x += [i for i, _, _ in piece] + [i for i, _, _ in reversed(piece)] + [None]
        y += [a for _, a, _ in piece] + [b for _, _, b in reversed(piece)] + [None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x[:-1],
        "y": [round_value(value) for value in y[:-1]],
        "fill": "toself",
        "fillcolor": colour,
        "opacity": opacity,
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "name": name,
    }


def vertical(layer: float | None) -> Plotly:
    """Return an upright dashed line."""
    line = {"color": GREY, "width": 1, "dash": "6px,4px"}
    return {"type": "line", "yref": "paper", "x0": layer, "x1": layer, "y0": 0, "y1": 1, "line": line}


def _horizontal(value: float) -> Plotly:
    line = {"color": PALETTE[1], "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def _layer_axis(depth: int) -> Plotly:
    return {"range": [-0.6, max(depth, 1) - 0.4], "tickformat": "d", "nticks": max(2, min(depth, 8))}


def base_layout(height: int, x: str = "", y: str = "", left: int = 46) -> Plotly:
    """Return the layout that all figures have in common."""
    clear = "rgba(0,0,0,0)"
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "height": height,
        "margin": {"l": left, "r": 14, "t": 22, "b": 38 if x else 24},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"color": GREY, "size": 12, "family": "system-ui, sans-serif"},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1},
        "modebar": {"bgcolor": clear, "color": GREY, "activecolor": GREY},
        "xaxis": axis | {"title": {"text": x, "standoff": 6}},
        "yaxis": axis | {"title": {"text": y, "standoff": 6}},
    }

"""The mediation of a run's change, as figures and table rows."""

from collections.abc import Iterator, Sequence

from wellworn.experiments.report.figures import (
    GREY,
    PALETTE,
    Figure,
    Plotly,
    Shown,
    Style,
    base_layout,
    interval_marks,
    round_value,
    vertical,
)
from wellworn.experiments.stages.measurement import Analysis, Measurement
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.mediation_generated import PatchedAnswers
from wellworn.probes.mediation.shares import INSIDE, OUTSIDE
from wellworn.probes.statistics.intervals import decimal

TEXTS = {
    "trait": "held-out answers",
    "surface": "training-like answers",
    "response": "held-out answers, response tokens alone, against the base",
    "generated": "what it says itself",
}
# The interventions with answers on the page, and their labels.
SAYING = {
    BEFORE: "reference",
    f"{INSIDE}.into": "reference with the change's persona part",
    f"{OUTSIDE}.into": "reference with all the rest of the change",
    AFTER: "changed model",
    f"{INSIDE}.out": "changed model without the persona part",
    f"{OUTSIDE}.out": "changed model without all the rest",
}
_PARTS = {
    "inside": "persona space",
    "own": "own direction",
    "full": "space with the own direction",
    "everywhere": "persona space, all layers",
    "outside": "all but the persona space",
    "whole": "whole state",
}
# S and N, of which M is the mean, and C.
_ENDS = {
    "sufficiency": ("S, put into the reference", "triangle-right-open"),
    "necessity": ("N, taken out of the run", "triangle-left-open"),
}
CARRIED = "C: persona space beyond chance,<br>of what the layer carries"
_SYMBOLS = {"trait": "circle", "surface": "circle-open", "response": "diamond-open", "generated": "square"}
_PLAYERS = {
    "existing": ("existing directions", PALETTE[0]),
    "new": ("other directions", PALETTE[1]),
    "reading": ("reading above the layer", GREY),
}


def shares_of_parts(id: str, style: Style, facts: Measurement) -> Figure | None:
    """Draw S, N and their mean M (with its interval) for each part of the state, the chance level, and C; one mark per text."""
    analyses = _analyses(facts)
    if not analyses:
        return None
    parts = [part for part in _PARTS if any(part in each.shares for each in analyses.values())][::-1]
    labels = [_PARTS[part] for part in parts] + ([CARRIED] if any(each.mediated_of_carried for each in analyses.values()) else [])
    data: list[Plotly] = []
    shapes: list[Plotly] = []
    step = 0.22
    for number, (text, analysis) in enumerate(analyses.items()):
        move = step * ((len(analyses) - 1) / 2 - number)
        there = [part for part in parts if part in analysis.shares]
        at = [parts.index(part) + move for part in there]
        shares = [analysis.shares[part].mediated for part in there]
        data.append(interval_marks(at, shares, f"M, {TEXTS[text]}", style.colour, _SYMBOLS[text]))
        for end, (name, symbol) in _ENDS.items():
            data.append(_points(at, [getattr(analysis.shares[part], end).value for part in there], name, symbol, legend=number == 0))
        if analysis.mediated_of_carried:
            data.append(interval_marks([len(parts) + move], [analysis.mediated_of_carried], f"C, {TEXTS[text]}", style.colour, "diamond"))
        if analysis.null:
            # The null distribution exists only for the space without the own direction at this layer.
            x, y = round_value(analysis.null.mediated), parts.index("inside") + move
            shapes.append({"type": "line", "x0": x, "x1": x, "y0": y - step, "y1": y + step, "line": {"color": GREY, "width": 2}})
    layout = base_layout(height=84 + 34 * len(labels), x="share", left=10)
    layout["yaxis"] |= {"tickvals": list(range(len(labels))), "ticktext": labels, "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY, "rangemode": "tozero"}
    layout["shapes"] = shapes
    first = next(iter(analyses))
    words = "; ".join(
        f"{_PARTS[part]} {analyses[first].shares[part].mediated.value:.2f}" for part in parts[::-1] if part in analyses[first].shares
    )
    return Figure(id, f"Mediated share of the effect on {TEXTS[first]}: {words}", data, layout)


def shapley_bars(id: str, facts: Measurement) -> Figure | None:
    """Draw how the effect is shared out among existing directions, other directions and the layers above, which read them."""
    analyses = _analyses(facts)
    if not analyses:
        return None
    texts = list(analyses)[::-1]
    data = []
    for player, (name, colour) in _PLAYERS.items():
        values = [analyses[text].shapley[player].value for text in texts]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [round_value(value) for value in values],
                "y": list(range(len(texts))),
                "name": name,
                "text": [decimal(value) for value in values],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "insidetextfont": {"color": "white"},
                "marker": {"color": colour},
                "hovertemplate": "%{x:.2f}",
            }
        )
    layout = base_layout(height=64 + 36 * len(texts), x="share of the effect", left=10)
    layout |= {"barmode": "relative"}
    layout["yaxis"] |= {"tickvals": list(range(len(texts))), "ticktext": [TEXTS[text] for text in texts], "showgrid": False}
    first = analyses[next(iter(analyses))].shapley
    words = ", ".join(f"{name} {first[player].value:.2f}" for player, (name, _) in _PLAYERS.items())
    return Figure(id, f"Shapley shares of the effect on {TEXTS[next(iter(analyses))]}: {words}", data, layout)


def shares_by_layer(id: str, style: Style, facts: Measurement) -> Figure | None:
    """Draw the mediated shares of the persona space (S, N, M and C) and of the whole state at each patched layer, over chance."""
    found = sorted(
        (each for each in facts.mediation if each.why is None and each.text == "trait" and each.reference == facts.reference),
        key=lambda each: each.layer,
    )
    if len(found) < 2:
        return None
    layers = [each.layer for each in found]
    data = []
    for part, colour, symbol in (("whole", GREY, "circle-open"), ("inside", style.colour, "circle")):
        data.append(
            interval_marks(layers, [each.shares[part].mediated for each in found], f"M, {_PARTS[part]}", colour, symbol, upright=True)
        )
    for end, (name, symbol) in _ENDS.items():
        data.append(_points([getattr(each.shares["inside"], end).value for each in found], layers, name, symbol))
    if carried := [each for each in found if each.mediated_of_carried]:
        where = [each.layer for each in carried]
        data.append(
            interval_marks(
                where,
                [each.mediated_of_carried for each in carried if each.mediated_of_carried],
                "C",
                style.colour,
                "diamond",
                upright=True,
            )
        )
    if all(each.null for each in found):
        chance = [round_value(each.null.mediated) for each in found if each.null]
        data.append(
            {"type": "scatter", "mode": "lines", "x": layers, "y": chance, "name": "N1 mean", "line": {"color": GREY, "dash": "2px,3px"}}
        )
    layout = base_layout(height=245, x="layer", y="mediated share")
    layout["xaxis"] |= {"tickvals": layers}
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["shapes"] = [vertical(facts.layer)]
    words = "; ".join(f"layer {each.layer} {each.shares['inside'].mediated.value:.2f}" for each in found)
    return Figure(id, f"Mediated share of the persona space by layer: {words}", data, layout)


def _points(y: Sequence[float], x: Sequence[float], name: str, symbol: str, legend: bool = True) -> Plotly:
    """Return small marks without an interval."""
    plain = {
        "type": "scatter",
        "mode": "markers",
        "x": [round_value(value) for value in x],
        "y": list(y),
        "name": name,
        "showlegend": legend,
    }
    return plain | {"marker": {"symbol": symbol, "size": 7, "color": GREY}, "hovertemplate": "%{x:.2f}, %{y:.2f}"}


def rows(facts: Measurement) -> Iterator[Shown]:
    """Yield every analysis of a run as a table row, starting with those against its headline reference."""
    for each in sorted(facts.mediation, key=lambda each: each.reference != facts.reference):
        key = {"reference": each.reference, "text": TEXTS[each.text], "layer": each.layer, "why": each.why}
        key["headline"] = each is facts.headline_analysis
        if each.why is None:
            key |= {
                name: getattr(each, name) for name in ("shares", "null", "mediated_of_carried", "carried_why", "shapley", "doses", "moved")
            }
        yield key


def shown_answers(said: PatchedAnswers, questions: Sequence[str]) -> list[Shown]:
    """Return the answers to each question under the interventions of `SAYING`, as far as these were asked."""
    answers = dict(zip(said.arms, said.answers, strict=True))
    if not answers:
        return []
    shown = zip(*(answers[name] for name in SAYING), strict=True)
    return [{"question": question, "said": list(each)} for question, each in zip(questions, shown, strict=False)]


def _analyses(facts: Measurement) -> dict[str, Analysis]:
    """Return a run's analyses at the headline layer that found an effect to share out, by text."""
    return {text: found for text in TEXTS if (found := facts.analysis(text)) and found.why is None}

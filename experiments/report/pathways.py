"""Where each change goes, as a figure, sentences and table rows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from wellworn.experiments.findings.outcome_changes import CONTRAST, TRAIT
from wellworn.experiments.findings.pathways import Chance, Pathways
from wellworn.experiments.findings.statements import RULE, RULE_DIGEST, WORDING_RULE, Statement
from wellworn.experiments.report.figures import GREY, PALETTE, Figure, Plotly, Shown, base_layout, label, polyline, round_value
from wellworn.probes.mediation.pathways import ABOVE, OTHERS, OWN, REST, ROLES
from wellworn.probes.statistics.intervals import Estimate, decimal

# Each way that a change may go: its name on the page, and its colour.
WAYS = {
    OWN: ("own direction", PALETTE[0]),
    OTHERS: ("other personas", PALETTE[5]),
    ROLES: ("roles", PALETTE[2]),
    REST: ("outside the persona space", PALETTE[1]),
    ABOVE: ("adapters above", GREY),
}
OUTCOMES = {"contrast": "specific to the trait", "trait": "answers with the trait", "plain": "plain answers"}
_REFERENCES = {"neutral": "the neutral fine-tune", "base": "the base"}
_THROUGH = {OWN: "the own direction", OTHERS: "other personas", ROLES: "roles"}
_GIVEN = {OWN: "the own direction", OTHERS: "the others"}
# A number that does not fit into its part of a bar at this size is left out; it is in the table.
TEXT_SIZE = 12


def stacked_bars(id: str, named: Sequence[tuple[str, Pathways]]) -> Figure | None:
    """Draw one bar a run, cut into the ways that its change goes; ways with a negative share lie left of zero."""
    shown = [(name, each) for name, each in named if each.headline.why is None][::-1]
    if not shown:
        return None
    ways = ways_of([each for _, each in shown])
    data: list[Plotly] = []
    for way in ways:
        values = [share.value if (share := each.headline.shares.get(way)) else 0.0 for _, each in shown]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [round_value(value) for value in values],
                "y": list(range(len(shown))),
                "name": WAYS[way][0],
                "text": [decimal(value) for value in values],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "insidetextfont": {"color": "white", "size": TEXT_SIZE},
                "marker": {"color": WAYS[way][1]},
                "hovertemplate": "%{x:.2f}",
            }
        )
    layout = base_layout(height=60 + 20 * max(len(ways), 3) + 44 * len(shown), x="share of the change", left=10)
    # Room for a line of the legend for each way, as on a narrow page.
    layout["margin"] |= {"t": 20 * max(len(ways), 3) + 4}
    layout |= {
        "barmode": "relative",
        "uniformtext": {"mode": "hide", "minsize": TEXT_SIZE},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    layout["yaxis"] |= {"tickvals": list(range(len(shown))), "ticktext": [label(name) for name, _ in shown], "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY}
    words = [
        f"{name}: " + ", ".join(f"{WAYS[way][0]} {share.value:.2f}" for way, share in each.headline.shares.items()) for name, each in named
    ]
    return Figure(id, f"Where each change goes. {'; '.join(words)}", data, layout)


def shares_over_depth(id: str, found: Pathways) -> Figure | None:
    """Draw the mediated share of the nested spaces and of the whole state where only layers up to some depth are set."""
    if len(found.profile) < 2:
        return None
    depths = [window.layers[1] for window in found.profile]
    names = {part: WAYS[part][0] if i == 0 else f"with {WAYS[part][0]}" for i, part in enumerate(found.profile[0].shares)}
    names[REST] = "whole state"
    data = [
        polyline(depths, [window.shares[part] for window in found.profile], name, WAYS[part][1], "solid", markers=True)
        for part, name in names.items()
    ]
    layout = base_layout(height=245, x="layers set up to", y="mediated share")
    layout["xaxis"] |= {"tickvals": depths}
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    layout["margin"] |= {"t": 48}
    last = ", ".join(f"{names[part]} {value:.2f}" for part, value in found.profile[-1].shares.items())
    return Figure(id, f"Mediated share by depth; all layers: {last}", data, layout)


def sentence(found: Pathways) -> str:
    """Return where a change goes in words: what goes each way, what chance would, and what one direction can carry."""
    outcome = found.headline
    if outcome.why is not None:
        return f"{_capital(outcome.why)}."
    ways = [way for way in (OWN, OTHERS, ROLES) if way in outcome.shares]
    given = {way: f", given {_GIVEN[before]}" for before, way in pairwise(ways)}
    parts = [f"{_percent(outcome.shares[way])} goes through {_THROUGH[way]}{given.get(way, '')}" for way in ways]
    if OWN not in outcome.shares:
        parts.insert(0, "no own direction was found")
    rest = [f"{_percent(outcome.shares[REST])} lies outside these directions"]
    if found.adapted_above:
        rest.append(f"{_percent(outcome.shares[ABOVE])} comes from adapters above layer {found.layers[-1]}")
    drawn = ((outcome.chance_own, "carry"), (outcome.chance_others, "would add" if OWN in ways else "carry"))
    chance = [_chance(each, verb) for each, verb in drawn if each]
    words = _capital("; ".join([*parts, *rest])) + "."
    if chance:
        words += " In their place, " + "; ".join(chance) + "."
    if found.along_own:
        trait, plain = (decimal(each, signed=True) for each in found.along_own)
        words += f" Along it answers with the trait change by {trait} nats per token, and plain ones by {plain}."
    if outcome.ceiling:
        words += f" The better of two directions of the change itself carries {_percent(outcome.best[outcome.ceiling])}"
        if OWN not in outcome.shares:
            return f"{words}."
        words += (
            f"; between chance and that, the own one is at κ = {outcome.kappa}." if outcome.kappa else f". {_capital(outcome.kappa_why)}."
        )
    return words


def view(named: Sequence[tuple[str, Mapping[str, Pathways] | None, Statement | None]]) -> tuple[Shown | None, list[Figure]]:
    """Return what the template shows of where changes go, and its figures; None where nothing was measured or may be said of that.

    Args:
        named: groups and runs that are in no group, in the page's order, with their pathways and what may be said of them.
    """
    measured = [(name, found) for name, found, _ in named if found]
    if not any(found or statement for _, found, statement in named):
        return None, []
    headlines = [(name, next(iter(found.values()))) for name, found in measured]
    bars = stacked_bars("pathways-bars", headlines)
    profiles = [(name, figure) for i, (name, each) in enumerate(headlines) if (figure := shares_over_depth(f"pathways-{i}", each))]
    shown: Shown = {
        "bars": bars,
        "reference": " or ".join(dict.fromkeys(_REFERENCES[each.reference] for _, each in headlines)),
        "sentences": [
            {"name": name, "statement": said, "words": sentence(next(iter(found.values()))) if found else said and f"{_capital(said.why)}."}
            for name, found, said in named
            if found or said
        ],
        "rule": re.split(r" (?=\d\. )", RULE),
        "digest": RULE_DIGEST,
        "wording_rule": WORDING_RULE,
        "questions": max((each.sampled_questions for _, each in headlines), default=0),
        "ways": {WAYS[way][0]: way for way in ways_of([each for _, each in headlines])},
        "rows": list(_rows(measured)),
        "compared": [
            {"name": name, "text": OUTCOMES[key], "found": getattr(each, key)}
            for name, each in headlines
            for key in (CONTRAST, TRAIT)
            if getattr(each, key).why is None
        ],
        "profiles": [{"name": name, "figure": figure} for name, figure in profiles],
    }
    return shown, [figure for figure in (bars, *(figure for _, figure in profiles)) if figure]


def _rows(measured: Sequence[tuple[str, Mapping[str, Pathways]]]) -> Iterator[Shown]:
    """Yield a table row for each run, reference and outcome."""
    for name, found in measured:
        before = None
        for each in found.values():
            for key, words in OUTCOMES.items():
                row = {"name": name, "reference": each.reference, "text": words, "outcome": getattr(each, key)}
                # Below the first row of a run and reference, both are repeated for readers who hear the table.
                yield row | {"first": (name, each.reference) != before}
                before = name, each.reference


def _chance(found: Chance, verb: str) -> str:
    mean, low, high = (_whole(share) for share in (found.mean, found.low, found.high))
    return f"chance directions {verb} {mean}\u00a0% (5–95\u00a0%: {low} to {high}), p = {found.p:.3f}"


def _capital(words: str | None) -> str:
    """Begin a sentence with a capital letter; a symbol such as κ is another one in capitals, and stays as it is."""
    return words[0].upper() + words[1:] if words and words[0].isascii() else words or ""


def _percent(share: Estimate) -> str:
    # A line does not break before the sign.
    return f"{_whole(share.value)}\u00a0% [{_whole(share.low)}, {_whole(share.high)}]"


def _whole(share: float) -> str:
    return decimal(100 * share, 0) if np.isfinite(share) else "–"


def ways_of(found: Sequence[Pathways]) -> list[str]:
    """Return the ways that any of some changes may go; none goes above the last layer where no adapter is there."""
    ways = [way for way in WAYS if any(way in each.headline.shares for each in found)]
    return [way for way in ways if way != ABOVE or any(each.adapted_above for each in found)]

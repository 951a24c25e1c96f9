"""What runs of several seeds say together, as a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.figures import GREY, PALETTE, Figure, label, layout_of, marks

# What is drawn of each group: (key in the summary, name, colour, symbol).
_SHARES = (
    ("share_effect", "F*, of the shift", GREY, "circle-open"),
    ("mediated_of_carried", "C, of the behaviour", PALETTE[0], "circle"),
)


def shares_of_groups(id: str, groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw F* and C of every group with their intervals, those of which most is mediated first."""
    if not any(group[key] for group in groups for key, *_ in _SHARES):
        return None
    # A group without C, or without either, stands last.
    ranked = sorted(groups, key=lambda group: [(group[key] or {"value": float("-inf")})["value"] for key, *_ in reversed(_SHARES)])
    data = []
    for (key, name, colour, symbol), move in zip(_SHARES, (0.12, -0.12), strict=True):
        there = [i for i, group in enumerate(ranked) if group[key]]
        data.append(marks([i + move for i in there], [ranked[i][key] for i in there], name, colour, symbol))
    layout = layout_of(height=84 + 36 * len(ranked), x="share beyond chance", left=10)
    names = list(range(len(ranked)))
    layout["yaxis"] |= {"tickvals": names, "ticktext": [label(group["name"]) for group in ranked], "showgrid": False}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": GREY}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    words = "; ".join(
        f"{group['name']} " + ", ".join(f"{name.split(',')[0]} {group[key]['value']:.2f}" for key, name, *_ in _SHARES if group[key])
        for group in reversed(ranked)
    )
    return Figure(id, f"Shares beyond chance: {words}", data, layout)

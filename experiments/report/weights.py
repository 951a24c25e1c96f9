"""Where a run's update writes, as a figure."""

from collections.abc import Mapping
from typing import Any

from experiments.report.figures import DASHES, GREY, Figure, Style, layout_of, polyline


def writes_by_layer(id: str, style: Style, weights: Mapping[str, Any] | None, depth: int) -> Figure | None:
    """Draw the share ω of what each kind of linear layer writes that lies in the persona space, with the mean of its null dotted."""
    if not weights or not weights["writes"]:
        return None
    modules = list(dict.fromkeys(write["module"] for write in weights["writes"]))
    layers = list(range(depth))
    data = []
    for module, dash in zip(modules, DASHES, strict=False):
        of = {write["layer"]: write for write in weights["writes"] if write["module"] == module}
        chance, share = ([of[layer][key] if layer in of else None for layer in layers] for key in ("null_mean", "omega"))
        data.append(polyline(layers, chance, f"chance for {module}", GREY, dash, width=1))
        data.append(polyline(layers, share, module, style.colour, dash, markers=True))
    layout = layout_of(height=245, x="layer", y="share ω of what is written")
    layout["yaxis"] |= {"rangemode": "tozero"}
    together = weights["together"]
    words = f"{together['omega']:.2f} of all that is written lies in the persona space, chance {together['null_mean']:.2f}"
    return Figure(id, f"{words}; layers of {', '.join(modules)}", data, layout)

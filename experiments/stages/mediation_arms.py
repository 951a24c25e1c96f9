"""The arms of a mediation analysis: what they are called, written and read here alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wellworn.experiments.study import MediateConfig
from wellworn.probes.mediation.interventions import Intervention, Push, Swap
from wellworn.probes.mediation.shares import INSIDE, OUTSIDE, WHOLE, Outcomes, Swapped
from wellworn.probes.statistics.intervals import FloatArray

# In addition to `inside`, `outside` and `whole`.
BEFORE, AFTER = "before", "after"
EVERYWHERE, FULL, OWN = "everywhere", "full", "own"
DRAW, MATCHED, DOSE = "draw", "matched", "dose"
REMAINDER, PUSHED, CHANCE = "remainder", "pushed", "chance"


@dataclass(frozen=True)
class Parts:
    """The parts of the state that are swapped, at the layer by name and at all layers at once, and what is added to M0 at the layer."""

    layer: int
    at_layer: Mapping[str, Swap]
    everywhere: Mapping[int, Swap]
    pushes: Mapping[str, Push]

    def arms(self, norms: Mapping[str, float], config: MediateConfig) -> dict[str, Intervention]:
        """Name all arms; a draw is matched to P by what both move, Σ‖P(h1 − h0)‖²."""
        arms = {BEFORE: Intervention(0), AFTER: Intervention(1)}

        def both(name: str, swaps: Mapping[int, Swap]) -> None:
            arms[f"{name}.into"], arms[f"{name}.out"] = Intervention(0, swaps), Intervention(1, swaps)

        for name, swap in self.at_layer.items():
            both(name, {self.layer: swap})
            if config.matched and name.startswith(DRAW) and norms[name] > 0:
                scale = float(np.sqrt(norms[INSIDE] / norms[name]))
                both(name.replace(DRAW, MATCHED), {self.layer: Swap(swap.basis_DK, scale=scale)})
        inside = self.at_layer[INSIDE]
        for dose in config.doses:
            arms[f"{DOSE}{dose}"] = Intervention(0, {self.layer: Swap(inside.basis_DK, scale=dose)})
        if self.everywhere:
            both(EVERYWHERE, self.everywhere)
        return arms | {name: Intervention(0, {self.layer: push}) for name, push in self.pushes.items()}


def parse_outcomes(arms: Sequence[str], scores: FloatArray) -> Outcomes:
    """Sort outcomes by what was swapped; the inverse of how the stage `mediate` names its arms.

    Args:
        arms: their names.
        scores: [arms, questions], or [arms, runs, questions].
    """
    y = dict(zip(arms, scores, strict=True))

    def swapped(part: str) -> Swapped:
        return Swapped(y[f"{part}.into"], y[f"{part}.out"])

    def numbered(kind: str) -> tuple[Swapped, ...]:
        return tuple(swapped(f"{kind}{i}") for i in range(sum(arm.startswith(kind) for arm in arms) // 2))

    parts = [part for part in (INSIDE, OUTSIDE, WHOLE, FULL, OWN, EVERYWHERE, REMAINDER) if f"{part}.into" in y]
    doses = {float(arm.removeprefix(DOSE)): y[arm] for arm in arms if arm.startswith(DOSE)}
    return Outcomes(y[BEFORE], y[AFTER], {part: swapped(part) for part in parts}, numbered(DRAW), numbered(MATCHED), doses)

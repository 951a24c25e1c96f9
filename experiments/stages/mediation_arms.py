"""The arms of a mediation analysis: what they are called, written and read here alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wellworn.experiments.stages.loaded_space import Chosen, PersonaSpace
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

    def arms(self, norms: Mapping[str, float], *, matched: bool = False, doses: Sequence[float] = ()) -> dict[str, Intervention]:
        """Name all arms.

        Args:
            norms: of each part at the layer, what it moves, Σ‖P(h1 − h0)‖²; only matched draws need them.
            matched: also swap each draw so that it moves as much as P.
            doses: how many times P's part of the change is put into M0.
        """
        arms = {BEFORE: Intervention(0), AFTER: Intervention(1)}

        def both(name: str, swaps: Mapping[int, Swap]) -> None:
            arms[f"{name}.into"], arms[f"{name}.out"] = Intervention(0, swaps), Intervention(1, swaps)

        for name, swap in self.at_layer.items():
            both(name, {self.layer: swap})
            if matched and name.startswith(DRAW) and norms[name] > 0:
                scale = float(np.sqrt(norms[INSIDE] / norms[name]))
                both(name.replace(DRAW, MATCHED), {self.layer: Swap(swap.basis_DK, scale=scale)})
        inside = self.at_layer[INSIDE]
        for dose in doses:
            arms[f"{DOSE}{dose}"] = Intervention(0, {self.layer: Swap(inside.basis_DK, scale=dose)})
        if self.everywhere:
            both(EVERYWHERE, self.everywhere)
        return arms | {name: Intervention(0, {self.layer: push}) for name, push in self.pushes.items()}


def parts_at_layer(space: PersonaSpace, layer: int, own: str | None, draws: int) -> dict[str, Swap]:
    """Return the parts of the state at a layer by name: the space without a run's own direction, and what it is compared with.

    Args:
        space: the persona space.
        layer: where they are swapped; the space needs a direction there.
        own: the run's trait, if it has one.
        draws: null spaces as large as the one without the own direction.
    """

    def within(members: Chosen) -> Swap:
        return Swap(torch.from_numpy(space.basis(layer, members)).float())

    members, everyone = space.members(layer, own), space.members(layer)
    inside = within(members)
    parts = {INSIDE: inside, OUTSIDE: Swap(inside.basis_DK, outside=True), WHOLE: Swap()}
    if everyone != members:
        parts[FULL] = within(everyone)
        # A direction that was not found is not in the space, and not swapped by itself either.
        if found := [i for i in everyone.traits if space.names[i] == own]:
            parts[OWN] = within(Chosen(tuple(found)))
    return parts | {f"{DRAW}{i}": Swap(torch.from_numpy(draw).float()) for i, draw in enumerate(space.null_bases(layer, members, draws))}


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

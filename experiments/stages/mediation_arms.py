"""The names of a mediation analysis's interventions: written and parsed here alone."""

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
    """The parts of the residual stream that are patched.

    Attributes:
        layer: the layer.
        at_layer: name → part that is patched at the layer.
        everywhere: layer → part; all are patched at once.
        pushes: name → vector that is added to M0 at the layer.
    """

    layer: int
    at_layer: Mapping[str, Swap]
    everywhere: Mapping[int, Swap]
    pushes: Mapping[str, Push]

    def arms(self, norms: Mapping[str, float], *, matched: bool = False, doses: Sequence[float] = ()) -> dict[str, Intervention]:
        """Return all interventions by name.

        Args:
            norms: part at the layer → the size of its change, Σ‖P(h1 − h0)‖²; only matched draws need them.
            matched: also patch each draw scaled to move the activations as far as P does.
            doses: scales of P's part of the change that are put into M0.
        """
        interventions = {BEFORE: Intervention(0), AFTER: Intervention(1)}

        for name, swap in self.at_layer.items():
            interventions |= both_ways(name, {self.layer: swap})
            if matched and name.startswith(DRAW) and norms[name] > 0:
                scale = float(np.sqrt(norms[INSIDE] / norms[name]))
                interventions |= both_ways(name.replace(DRAW, MATCHED), {self.layer: Swap(swap.basis_DK, scale=scale)})
        inside = self.at_layer[INSIDE]
        for dose in doses:
            interventions[f"{DOSE}{dose}"] = Intervention(0, {self.layer: Swap(inside.basis_DK, scale=dose)})
        if self.everywhere:
            interventions |= both_ways(EVERYWHERE, self.everywhere)
        return interventions | {name: Intervention(0, {self.layer: push}) for name, push in self.pushes.items()}


def both_ways(name: str, swaps: Mapping[int, Swap], *, first_token: bool = False) -> dict[str, Intervention]:
    """Return the interventions that swap a part into M0, and out of M1; `parse_part` finds their outcomes again."""
    return {f"{name}.{way}": Intervention(reader, swaps, first_token=first_token) for reader, way in enumerate(("into", "out"))}


def parse_part(outcomes: Mapping[str, FloatArray], part: str) -> Swapped | None:
    """Return the outcomes of a part's two interventions; None where it was not patched."""
    return Swapped(outcomes[f"{part}.into"], outcomes[f"{part}.out"]) if f"{part}.into" in outcomes else None


def parts_named(names: Sequence[str], kind: str) -> list[str]:
    """Return the parts with names that begin in some way, from the names of their interventions."""
    return [name.removesuffix(".into") for name in names if name.startswith(kind) and name.endswith(".into")]


def parts_at_layer(space: PersonaSpace, layer: int, own: str | None, draws: int) -> dict[str, Swap]:
    """Return the parts to patch at a layer by name: the space without a run's own direction, and the parts that it is compared with.

    Args:
        space: the persona space.
        layer: the layer; the space needs a direction there.
        own: the run's trait, if it has one.
        draws: number of null spaces, each as large as the space without the own direction.
    """

    def within(members: Chosen) -> Swap:
        return Swap(torch.from_numpy(space.basis(layer, members)).float())

    members, everyone = space.members(layer, own), space.members(layer)
    inside = within(members)
    parts = {INSIDE: inside, OUTSIDE: Swap(inside.basis_DK, outside=True), WHOLE: Swap()}
    if everyone != members:
        parts[FULL] = within(everyone)
        # A direction that was not found is not in the space, and is not patched by itself either.
        if found := [i for i in everyone.traits if space.names[i] == own]:
            parts[OWN] = within(Chosen(tuple(found)))
    return parts | {f"{DRAW}{i}": Swap(torch.from_numpy(draw).float()) for i, draw in enumerate(space.null_bases(layer, members, draws))}


def parse_outcomes(names: Sequence[str], scores: FloatArray) -> Outcomes:
    """Sort outcomes by the part that was patched; the inverse of `Parts.arms`.

    Args:
        names: of the interventions.
        scores: [interventions, questions], or [interventions, runs, questions].
    """
    y = dict(zip(names, scores, strict=True))

    def draws(kind: str) -> tuple[Swapped, ...]:
        return tuple(swapped for part in parts_named(names, kind) if (swapped := parse_part(y, part)))

    parts = {part: parse_part(y, part) for part in (INSIDE, OUTSIDE, WHOLE, FULL, OWN, EVERYWHERE, REMAINDER)}
    doses = {float(name.removeprefix(DOSE)): y[name] for name in names if name.startswith(DOSE)}
    return Outcomes(y[BEFORE], y[AFTER], {part: swapped for part, swapped in parts.items() if swapped}, draws(DRAW), draws(MATCHED), doses)

"""The nested spaces of one run at the layers where they are patched, and chance spaces of the same nesting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wellworn.data.schema import seed_for
from wellworn.experiments.stages.loaded_space import PersonaSpace, centre_within_questions
from wellworn.probes.geometry.nested import chance_vectors, nested_bases
from wellworn.probes.mediation.interventions import Swap
from wellworn.probes.mediation.pathways import OTHERS, OWN, ROLES
from wellworn.probes.statistics.intervals import FloatArray

# Two rows less their mean hold a single direction, which leaves nothing to draw.
FEWEST_ROWS = 2


@dataclass(frozen=True, eq=False)
class NestedSpace:
    """Spaces that hold one another, at each layer.

    Attributes:
        names: of what each space adds: `own`, `others`, `roles`; those that there are.
        bases: layer → one basis [d_model, k] a space.
        others: layer → the space of other personas alone [d_model, k]; empty where there are none.
    """

    names: Sequence[str]
    bases: dict[int, list[FloatArray]]
    others: dict[int, FloatArray]

    def part(self, name: str) -> dict[int, FloatArray]:
        """Return the space that ends with a part: layer → its basis."""
        return {layer: bases[self.names.index(name)] for layer, bases in self.bases.items()}


def nested_space(space: PersonaSpace, layers: Sequence[int], at: int, own: str | None) -> NestedSpace:
    """Return the nested spaces of a run.

    Args:
        space: of directions.
        layers: where they are patched. A direction that was found at `at` is used at all of them.
        at: the study's layer.
        own: the name of the run's own direction, if there is one. Where it was not found it makes no space.
    """
    mine, others = ([i for i in _found(space, at) if (space.names[i] == own) is is_own] for is_own in (True, False))
    roles = space.members(at, own).roles
    names = [name for name, some in ((OWN, mine), (OTHERS, others), (ROLES, roles)) if some]

    def parts(layer: int) -> list[FloatArray]:
        found = [space.vectors[some, layer].astype(np.float64) for some in (mine, others) if some]
        if roles and space.roles and space.roles.k is not None:
            vectors = space.roles.vectors(layer)[list(roles)]
            # Less their own mean, in which the run's namesake has no part; centred roles hold one direction fewer than they are.
            directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][: len(roles) - 1]
            found.append(directions[: space.roles.k])
        return found

    at_layer = {layer: parts(layer) for layer in layers}
    alone = {layer: nested_bases([space.vectors[others, layer].astype(np.float64)])[0] for layer in layers if others}
    return NestedSpace(names, {layer: nested_bases(some) if some else [] for layer, some in at_layer.items()}, alone)


def swaps_along(bases: Mapping[int, FloatArray], outside: bool = False) -> dict[int, Swap]:
    """Return the swap of the state inside bases [d_model, k] at each layer, or of all that is outside them."""
    return {layer: Swap(torch.from_numpy(np.ascontiguousarray(basis)).float(), outside) for layer, basis in bases.items()}


def _found(space: PersonaSpace, at: int) -> list[int]:
    """Return the places of the traits whose direction was found at a layer, whether or not these make a space with the roles."""
    return [int(i) for i in np.flatnonzero(space.found[:, at])]


def own_vectors(space: PersonaSpace, layers: Sequence[int], at: int, own: str | None) -> dict[int, FloatArray]:
    """Return the run's own direction at each layer, [d_model]; none where it was not found at `at`."""
    mine = [i for i in _found(space, at) if space.names[i] == own]
    return {layer: space.vectors[mine[0], layer].astype(np.float64) for layer in layers} if mine else {}


def averaged_rows(space: PersonaSpace, layer: int, at: int, own: str | None) -> FloatArray:
    """Return centred states averaged over questions, one a persona and prompt, [N, d_model]; the run's own trait has none among them.

    A persona direction is a mean over questions, so that chance has to be drawn from means too: single states vary in many more ways.
    """
    rows = _centred_states(space, layer, at, own)
    return np.concatenate([each.mean(1) for each in rows]) if rows else np.zeros((0, space.vectors.shape[-1]))


def single_rows(space: PersonaSpace, layer: int, at: int, own: str | None) -> FloatArray:
    """Return the same states one by one, one a persona, prompt and question, [N, d_model]."""
    rows = _centred_states(space, layer, at, own)
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in rows]) if rows else np.zeros((0, space.vectors.shape[-1]))


def _centred_states(space: PersonaSpace, layer: int, at: int, own: str | None) -> list[FloatArray]:
    """Return the states of each persona but the own one, less the mean of each question, [personas][prompts, questions, d_model]."""
    traits, roles = [i for i in _found(space, at) if space.names[i] != own], space.members(at, own).roles
    states, asked = [space.states[i] for i in traits], [space.asked[i] for i in traits]
    if space.roles and roles:
        everyone = list(space.roles.states.values())
        states += [everyone[i] for i in roles]
        asked += [space.roles.asked] * len(roles)
    if not states:
        return []
    rows = centre_within_questions(states, asked, layer)
    ends = np.cumsum([np.prod(each.shape[:-2]) for each in states])
    each_persona = np.split(rows, ends[:-1])
    questions = [each.shape[-3] for each in states]
    return [part.reshape(-1, q, part.shape[-1]) for part, q in zip(each_persona, questions, strict=True)]


def other_directions(space: PersonaSpace, layers: Sequence[int], at: int, own: str | None) -> dict[str, dict[int, FloatArray]]:
    """Return the direction of every other trait that was found, each alone: name → layer → basis [d_model, 1]."""
    others = [i for i in _found(space, at) if space.names[i] != own]
    return {space.names[i]: {layer: nested_bases([space.vectors[[i], layer].astype(np.float64)])[0] for layer in layers} for i in others}


@dataclass(frozen=True, eq=False)
class ChanceSpaces:
    """Chance spaces of the same nesting, drawn jointly over layers; empty where there is nothing to replace, or nothing to draw from.

    Attributes:
        own: of each draw, layer → a direction in place of the own one, [d_model, 1].
        others: of each draw, layer → a basis that begins with the own direction and has others in place of the others.
    """

    own: list[dict[int, FloatArray]]
    others: list[dict[int, FloatArray]]


def chance_spaces(space: PersonaSpace, nested: NestedSpace, at: int, own: str | None, draws: int) -> ChanceSpaces:
    """Draw chance spaces in place of the own direction, and of the others next to it.

    Args:
        space: of directions.
        nested: the nested spaces of the run.
        at: the study's layer.
        own: the name of the run's own direction.
        draws: of each kind.
    """
    rows = _rows_at(space, list(nested.bases), at, own)
    mine = _draw_directions(rows, draws) if OWN in nested.names else []
    count, most = sum(space.names[i] != own for i in _found(space, at)), min(map(len, rows.values())) - 1
    others: list[dict[int, FloatArray]] = []
    if OTHERS in nested.names and most > count:
        drawn = chance_vectors(rows, count, draws, seed_for(0, "pathways.others"))
        first = {layer: [basis.T] for layer, basis in nested.part(OWN).items()} if OWN in nested.names else {}
        others = [{layer: nested_bases([*first.get(layer, []), each[i]])[-1] for layer, each in drawn.items()} for i in range(draws)]
    return ChanceSpaces(mine, others)


def chance_directions(space: PersonaSpace, layers: Sequence[int], at: int, own: str | None, draws: int) -> list[dict[int, FloatArray]]:
    """Draw the directions of `chance_spaces` in place of the own one alone: of each draw, layer → [d_model, 1].

    None where the own direction was not found, or too little was read.

    Args:
        space: of directions.
        layers: where they are patched.
        at: the study's layer.
        own: the name of the run's own direction.
        draws: their number.
    """
    return _draw_directions(_rows_at(space, layers, at, own), draws) if own_vectors(space, layers, at, own) else []


def _rows_at(space: PersonaSpace, layers: Sequence[int], at: int, own: str | None) -> dict[int, FloatArray]:
    return {layer: averaged_rows(space, layer, at, own) for layer in layers}


def _draw_directions(rows: Mapping[int, FloatArray], draws: int) -> list[dict[int, FloatArray]]:
    if min(map(len, rows.values())) <= FEWEST_ROWS:
        return []
    drawn = chance_vectors(rows, 1, draws, seed_for(0, "pathways.own"))
    return [{layer: nested_bases([each[i]])[0] for layer, each in drawn.items()} for i in range(draws)]

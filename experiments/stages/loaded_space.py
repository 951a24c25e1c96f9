"""The persona space of a study, as its finished stages left it, and the null spaces drawn from the activations that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wellworn.data.errors import InputError
from wellworn.data.schema import seed_for
from wellworn.probes.geometry.novelty import chance_remainders, outside
from wellworn.probes.geometry.nulls import Null, NullSpaces
from wellworn.probes.geometry.shift import disattenuated_cosine
from wellworn.probes.geometry.space import Members, persona_space
from wellworn.probes.statistics.intervals import FloatArray

# The null spaces of N1, of N1 with the covariance of all activations, and of N0.
Kind = Literal["within", "total", "isotropic"]

NO_SPACE = "no persona space at this layer: no direction of the library was found"
NO_DIMENSION = "no persona space at this layer: no number of dimensions foretells a persona that was left out"
ONLY_OWN = "no persona space without the run's own direction: no other of the library was found at this layer"


@dataclass(frozen=True)
class Chosen:
    """Which personas span a space: the places of traits, and of roles where these make it with them."""

    traits: tuple[int, ...]
    roles: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.traits) + len(self.roles)


@dataclass(frozen=True, eq=False)
class Roles:
    """The states of a base model that was asked to be someone.

    Attributes:
        states: role → [prompts, questions, layers, d_model].
        default: [questions, layers, d_model], under the default system prompt.
        namesakes: role → the trait of which it is a character, if there is one, and which takes it along out of a space.
        asked: which questions all of them were read on.
        k: dimensions of the space that they make with the traits; None where there is none.
    """

    states: Mapping[str, FloatArray]
    default: FloatArray
    namesakes: Mapping[str, str]
    asked: str
    k: int | None

    @property
    def names(self) -> list[str]:
        """The roles, in the order of `states`."""
        return list(self.states)

    def vectors(self, layer: int) -> FloatArray:
        """Return each role's mean state at a layer, [R, d_model]."""
        return np.stack([each[..., layer, :].mean((0, 1), dtype=np.float64) for each in self.states.values()])

    def directions(self, layer: int) -> FloatArray:
        """Return each role's mean state less the mean role, [R, d_model]."""
        vectors = self.vectors(layer)
        return np.asarray(vectors - vectors.mean(0))


def centre_within_questions(states: Sequence[FloatArray], asked: Sequence[str], layer: int) -> FloatArray:
    """Return the activations of several personas at one layer, less the mean of each question and answer: [N, d_model].

    What a text itself puts into the state is nearly all that activations vary by (97 % on the embedded model), and none of it is in
    a direction or a shift, which are differences on the same text. So the covariance that chance has is the one within questions.

    Args:
        states: of each persona, [prompts, 2, questions, layers, d_model] or [prompts, questions, layers, d_model].
        asked: which questions each was read on; those of equal digest share their means.
        layer: the layer.
    """
    at = [each[..., layer, :].astype(np.float64) for each in states]
    rows = [each.reshape(-1, *each.shape[-2:]) for each in at]
    means = {key: np.concatenate([each for each, own in zip(rows, asked, strict=True) if own == key]).mean(0) for key in set(asked)}
    return np.concatenate([(each - means[own]).reshape(-1, each.shape[-1]) for each, own in zip(rows, asked, strict=True)])


def eigenvalues_within_questions(states: Sequence[FloatArray], asked: Sequence[str]) -> FloatArray:
    """Return the eigenvalues of the scatter within questions at every layer, [layers, min(N, d_model)]; arguments as above."""
    layers = range(states[0].shape[-2])
    return np.stack([np.linalg.svd(centre_within_questions(states, asked, layer), compute_uv=False) ** 2 for layer in layers])


def centre(states: Sequence[FloatArray], layer: int) -> FloatArray:
    """Return the activations of several personas at one layer less their grand mean, [N, d_model]: with what texts put into them."""
    rows = np.concatenate([each[..., layer, :].reshape(-1, each.shape[-1]) for each in states]).astype(np.float64)
    return np.asarray(rows - rows.mean(0))


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """The directions of a library at every layer, the activations that made them, and the null spaces drawn from these.

    Attributes:
        names: of the traits [T].
        vectors: [T, layers, d_model].
        found: [T, layers].
        states: [T][pairs, 2, questions, layers, d_model], the activations that each trait's direction was made of.
        asked: which questions each was read on.
        roles: what makes the space together with the traits, if anything does.
    """

    names: Sequence[str]
    vectors: FloatArray
    found: NDArray[np.bool_]
    states: Sequence[FloatArray]
    asked: Sequence[str]
    roles: Roles | None = None
    _drawn: dict[tuple[object, ...], NullSpaces] = field(default_factory=dict, init=False, repr=False)
    _halves: dict[tuple[int, Chosen], FloatArray] = field(default_factory=dict, init=False, repr=False)

    def members(self, layer: int, without: str | None = None) -> Chosen:
        """Return who spans the space at a layer: the traits found there and all roles, less the run's own trait and its namesakes."""
        traits = tuple(i for i, name in enumerate(self.names) if self.found[i, layer] and name != without)
        if self.roles is None:
            return Chosen(traits)
        names = enumerate(self.roles.names)
        roles = tuple(i for i, name in names if without is None or without not in (name, self.roles.namesakes.get(name)))
        # Centred roles hold one direction fewer than they are; the axis is one more.
        return Chosen(traits, roles) if self.roles.k is not None and self.roles.k <= len(traits) + len(roles) else Chosen(())

    def no_space(self, layer: int, without: str | None = None) -> str | None:
        """Return in words why there is no space at a layer, or None where there is one."""
        if self.members(layer, without):
            return None
        if self.roles is None:
            return ONLY_OWN if self.members(layer) else NO_SPACE
        if self.roles.k is None:
            return NO_DIMENSION
        return f"no persona space at this layer: those found there hold fewer than its k = {self.roles.k} dimensions"

    def activations(self, layer: int, members: Chosen, kind: Kind = "within") -> FloatArray:
        """Return the centred activations [N, d_model] of those that span a space; N1 has their covariance within questions."""
        states, asked = [self.states[i] for i in members.traits], [self.asked[i] for i in members.traits]
        if self.roles and members.roles:
            everyone = list(self.roles.states.values())
            states += [everyone[i] for i in members.roles] + [self.roles.default[None]]
            asked += [self.roles.asked] * (len(members.roles) + 1)
        return centre(states, layer) if kind == "total" else centre_within_questions(states, asked, layer)

    def basis(self, layer: int, members: Chosen) -> FloatArray:
        """Return the basis [d_model, k] of the space that some personas span; with roles the first column is the assistant axis."""
        traits = self.vectors[list(members.traits), layer]
        if self.roles is None or not members.roles:
            return persona_space(traits)
        roles, default = self.roles.vectors(layer)[list(members.roles)], self.roles.default[:, layer].mean(0, dtype=np.float64)
        return persona_space(traits, roles, default, self.roles.k)

    def null_spaces(self, layer: int, members: Chosen, kind: Kind = "within") -> NullSpaces:
        """Return the null spaces of the space that some personas span: N1, N1 with the covariance of all activations, or N0.

        All runs and layers share one set of draws, and spaces once drawn are kept: every text and every run is compared with them.
        """
        k = self.basis(layer, members).shape[1]
        # N0 knows nothing of the activations but their width.
        key = (kind, _made_of(members), k) if kind == "isotropic" else (kind, layer, k, members)
        if key not in self._drawn:
            null = Null(seed_for(0, "nulls"), isotropic=kind == "isotropic")
            self._drawn[key] = null.spaces(self._rows(layer, members, kind), _made_of(members), k)
            # Room for the spaces with and without one trait at every layer; runs of another trait come later.
            if len(self._drawn) > 2 * self.vectors.shape[1]:
                del self._drawn[next(iter(self._drawn))]
        return self._drawn[key]

    def null_bases(self, layer: int, members: Chosen, count: int) -> FloatArray:
        """Return the bases [count, d_model, k] of the first few spaces of N1; the rest are not made."""
        null = Null(seed_for(0, "nulls"), draws=count)
        k = self.basis(layer, members).shape[1]
        return null.spaces(self._rows(layer, members), _made_of(members), k).bases(count)

    def _rows(self, layer: int, members: Chosen, kind: Kind = "within") -> FloatArray:
        """Return what null spaces are drawn from: the activations or, of many roles, fewer rows of the same covariance.

        With roles there are some 3,000 activations and a hundred vectors, and G would take more than a gigabyte. The fewer rows have other
        axes at each layer, so that draws are no longer joint over layers, which makes max-T larger, never smaller.
        """
        rows = self.activations(layer, members, kind)
        return np.asarray(np.linalg.qr(rows, mode="r")) if members.roles and len(rows) > rows.shape[1] else rows

    def half_differences(self, layer: int, members: Chosen) -> FloatArray:
        """Return the draws of N3, [draws, R, d_model]: half-differences of the contrast pairs of the traits that span a space."""
        key = (layer, members)
        if key not in self._halves:
            self._halves.clear()
            self._halves[key] = Null(seed_for(0, "halves")).half_differences([self.differences(layer, i) for i in members.traits])
        return self._halves[key]

    def remainders(self, layer: int, own: str | None, shift_D: FloatArray, draws: int) -> FloatArray:
        """Return what a mean shift leaves outside the space without a run's own direction, then what chance puts in its place.

        Returns:
            [1 + draws, d_model], all of one norm; no rows where there is no space or nothing moves.
        """
        members = self.members(layer, own)
        if not members or not shift_D.any():
            return np.empty((0, len(shift_D)))
        basis = self.basis(layer, members)
        remainder = outside(shift_D, basis)
        null = Null(seed_for(0, "remainders"), draws=draws)
        chance = chance_remainders(self.activations(layer, members), basis, float(np.linalg.norm(remainder)), null)
        return np.vstack([remainder, chance])

    def outside(self, layer: int, norm: float, seed: int, draws: int) -> FloatArray:
        """Return directions [draws, d_model] of a norm that chance puts outside the space of all found traits.

        Raises:
            InputError: no direction was found at the layer.
        """
        members = self.members(layer)
        if why := self.no_space(layer):
            raise InputError(f"layer {layer}: {why}")
        return chance_remainders(self.activations(layer, members), self.basis(layer, members), norm, Null(seed, draws=draws))

    def differences(self, layer: int, trait: int) -> FloatArray:
        """Return a trait's states under positive less negative prompts, [pairs, questions, d_model]."""
        at = self.states[trait][..., layer, :].astype(np.float64)
        return np.asarray(at[:, 0] - at[:, 1])

    def halves(self, layer: int, trait: int) -> tuple[FloatArray, FloatArray]:
        """Return a trait's direction from two halves that have neither contrast pairs nor questions in common, each [d_model]."""
        differences = self.differences(layer, trait)
        return differences[::2, ::2].mean((0, 1)), differences[1::2, 1::2].mean((0, 1))

    def personas(self, layer: int) -> tuple[list[tuple[str, str]], FloatArray]:
        """Return everyone whose direction a shift may lie near, as (name, `trait` or `role`), and these directions [K, d_model]."""
        names, directions = [(name, "trait") for name in self.names], self.vectors[:, layer]
        if self.roles:
            names += [(name, "role") for name in self.roles.names]
            directions = np.vstack([directions, self.roles.directions(layer)])
        return names, directions

    def disattenuated(self, layer: int, differences_nD: FloatArray) -> dict[str, float | None]:
        """Return the cosine of a shift with every direction, freed of the noise of both; None where either is too noisy."""
        return {name: disattenuated_cosine(differences_nD, *self.halves(layer, i)).value for i, name in enumerate(self.names)}

    def cosines(self, layer: int, vector: FloatArray) -> dict[str, float]:
        """Return the signed cosine of a vector with every direction of the library at a layer; none for a zero vector."""
        if not np.any(vector):
            return {}
        at = self.vectors[:, layer]
        cosines = at @ vector / np.linalg.norm(at, axis=1) / np.linalg.norm(vector)
        return {name: float(c) for name, c in zip(self.names, cosines, strict=True)}


def _made_of(members: Chosen) -> Members:
    return Members(len(members.traits), len(members.roles), default=bool(members.roles))

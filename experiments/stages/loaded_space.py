"""The persona space of a study, loaded from finished stages, and the null spaces drawn from the activations that made it."""

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
    """The personas that span a space: indices of traits, and of roles where roles take part."""

    traits: tuple[int, ...]
    roles: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.traits) + len(self.roles)


@dataclass(frozen=True, eq=False)
class Roles:
    """The activations of a base model under the system prompts of roles.

    Attributes:
        states: role → [prompts, questions, layers, d_model].
        default: [questions, layers, d_model], under the default system prompt.
        namesakes: role → the trait of the same character; leaving the trait out of a space leaves the role out too.
        asked: digest of the questions that all roles were read on.
        k: dimensions of the space of roles and traits; None where there is none.
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
        """Return each role's mean state minus the mean over roles, [R, d_model]."""
        vectors = self.vectors(layer)
        return np.asarray(vectors - vectors.mean(0))


def centre_within_questions(states: Sequence[FloatArray], asked: Sequence[str], layer: int) -> FloatArray:
    """Return the activations of several personas at one layer, minus the mean for each question and its answer: [N, d_model].

    Differences between texts make up nearly all variance of activations (97 % on the embedded model). Directions and shifts contain none
    of it, as they are differences on the same text. So the null distribution needs the covariance within questions.

    Args:
        states: for each persona, [prompts, 2, questions, layers, d_model] or [prompts, questions, layers, d_model].
        asked: for each persona, a digest of its questions; personas with equal digests share their means.
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
    """Return the activations of several personas at one layer minus their grand mean, [N, d_model]; differences between texts remain."""
    rows = np.concatenate([each[..., layer, :].reshape(-1, each.shape[-1]) for each in states]).astype(np.float64)
    return np.asarray(rows - rows.mean(0))


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """The trait directions at every layer, the activations that made them, and the null spaces drawn from these activations.

    Attributes:
        names: of the traits [T].
        vectors: [T, layers, d_model].
        found: [T, layers].
        states: [T][pairs, 2, questions, layers, d_model], the activations behind each trait's direction.
        asked: for each trait, a digest of the questions that it was read on.
        roles: the roles that make the space together with the traits, if there are any.
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
        """Return the personas that span the space at a layer: found traits and all roles, without the run's own trait and its namesakes."""
        traits = tuple(i for i, name in enumerate(self.names) if self.found[i, layer] and name != without)
        if self.roles is None:
            return Chosen(traits)
        names = enumerate(self.roles.names)
        roles = tuple(i for i, name in names if without is None or without not in (name, self.roles.namesakes.get(name)))
        # Centring takes one direction from the roles; the assistant axis adds one.
        return Chosen(traits, roles) if self.roles.k is not None and self.roles.k <= len(traits) + len(roles) else Chosen(())

    def no_space(self, layer: int, without: str | None = None) -> str | None:
        """Return why there is no space at a layer, in words, or None where there is one."""
        if self.members(layer, without):
            return None
        if self.roles is None:
            return ONLY_OWN if self.members(layer) else NO_SPACE
        if self.roles.k is None:
            return NO_DIMENSION
        return f"no persona space at this layer: those found there hold fewer than its k = {self.roles.k} dimensions"

    def activations(self, layer: int, members: Chosen, kind: Kind = "within") -> FloatArray:
        """Return the centred activations [N, d_model] of the personas that span a space; N1 has their covariance within questions."""
        states, asked = [self.states[i] for i in members.traits], [self.asked[i] for i in members.traits]
        if self.roles and members.roles:
            everyone = list(self.roles.states.values())
            states += [everyone[i] for i in members.roles] + [self.roles.default[None]]
            asked += [self.roles.asked] * (len(members.roles) + 1)
        return centre(states, layer) if kind == "total" else centre_within_questions(states, asked, layer)

    def basis(self, layer: int, members: Chosen) -> FloatArray:
        """Return the basis [d_model, k] of the space of some personas; with roles the first column is the assistant axis."""
        traits = self.vectors[list(members.traits), layer]
        if self.roles is None or not members.roles:
            return persona_space(traits)
        roles, default = self.roles.vectors(layer)[list(members.roles)], self.roles.default[:, layer].mean(0, dtype=np.float64)
        return persona_space(traits, roles, default, self.roles.k)

    def null_spaces(self, layer: int, members: Chosen, kind: Kind = "within") -> NullSpaces:
        """Return the null spaces for the space of some personas: N1, N1 with the covariance of all activations, or N0.

        All runs and layers share one set of draws. Spaces are kept once drawn, as every text and every run is compared with them.
        """
        k = self.basis(layer, members).shape[1]
        # N0 depends only on the width of the activations.
        key = (kind, _made_of(members), k) if kind == "isotropic" else (kind, layer, k, members)
        if key not in self._drawn:
            null = Null(seed_for(0, "nulls"), isotropic=kind == "isotropic")
            self._drawn[key] = null.spaces(self._rows(layer, members, kind), _made_of(members), k)
            # Room for the spaces with and without one trait at every layer; runs of another trait come later.
            if len(self._drawn) > 2 * self.vectors.shape[1]:
                del self._drawn[next(iter(self._drawn))]
        return self._drawn[key]

    def null_bases(self, layer: int, members: Chosen, count: int) -> FloatArray:
        """Return the bases [count, d_model, k] of the first few spaces of N1; the others are not computed."""
        null = Null(seed_for(0, "nulls"), draws=count)
        k = self.basis(layer, members).shape[1]
        return null.spaces(self._rows(layer, members), _made_of(members), k).bases(count)

    def _rows(self, layer: int, members: Chosen, kind: Kind = "within") -> FloatArray:
        """Return the rows that null spaces are drawn from: the activations or, with many roles, fewer rows of the same covariance.

        With roles there are some 3,000 activations and a hundred vectors, and G would take more than a gigabyte. The fewer rows have
        different axes at each layer, so draws are no longer joint over layers. This makes max-T larger, never smaller.
        """
        rows = self.activations(layer, members, kind)
        return np.asarray(np.linalg.qr(rows, mode="r")) if members.roles and len(rows) > rows.shape[1] else rows

    def half_differences(self, layer: int, members: Chosen) -> FloatArray:
        """Return the draws of N3, [draws, R, d_model]: half-differences of contrast pairs of the traits that span a space."""
        key = (layer, members)
        if key not in self._halves:
            self._halves.clear()
            self._halves[key] = Null(seed_for(0, "halves")).half_differences([self.differences(layer, i) for i in members.traits])
        return self._halves[key]

    def remainders(self, layer: int, own: str | None, shift_D: FloatArray, draws: int) -> FloatArray:
        """Return the remainder of a mean shift outside the space without a run's own direction, then chance remainders.

        Returns:
            [1 + draws, d_model], all of the same norm; no rows where there is no space or the shift is zero.
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
        """Draw random directions [draws, d_model] of a given norm outside the space of all found traits.

        Raises:
            InputError: no direction was found at the layer.
        """
        members = self.members(layer)
        if why := self.no_space(layer):
            raise InputError(f"layer {layer}: {why}")
        return chance_remainders(self.activations(layer, members), self.basis(layer, members), norm, Null(seed, draws=draws))

    def differences(self, layer: int, trait: int) -> FloatArray:
        """Return a trait's states under positive minus negative prompts, [pairs, questions, d_model]."""
        at = self.states[trait][..., layer, :].astype(np.float64)
        return np.asarray(at[:, 0] - at[:, 1])

    def halves(self, layer: int, trait: int) -> tuple[FloatArray, FloatArray]:
        """Return a trait's direction from two halves of the data without common contrast pairs or questions, each [d_model]."""
        differences = self.differences(layer, trait)
        return differences[::2, ::2].mean((0, 1)), differences[1::2, 1::2].mean((0, 1))

    def personas(self, layer: int) -> tuple[list[tuple[str, str]], FloatArray]:
        """Return all personas as (name, `trait` or `role`), and their directions [K, d_model]."""
        names, directions = [(name, "trait") for name in self.names], self.vectors[:, layer]
        if self.roles:
            names += [(name, "role") for name in self.roles.names]
            directions = np.vstack([directions, self.roles.directions(layer)])
        return names, directions

    def disattenuated_cosines(self, layer: int, differences_nD: FloatArray) -> dict[str, float | None]:
        """Return the cosine of a shift with every direction, corrected for the noise of both; None where either is too noisy."""
        return {name: disattenuated_cosine(differences_nD, *self.halves(layer, i)).value for i, name in enumerate(self.names)}

    def cosines(self, layer: int, vector: FloatArray) -> dict[str, float]:
        """Return the signed cosine of a vector with every trait's direction at a layer; empty for a zero vector."""
        if not np.any(vector):
            return {}
        at = self.vectors[:, layer]
        cosines = at @ vector / np.linalg.norm(at, axis=1) / np.linalg.norm(vector)
        return {name: float(c) for name, c in zip(self.names, cosines, strict=True)}


def _made_of(members: Chosen) -> Members:
    return Members(len(members.traits), len(members.roles), default=bool(members.roles))

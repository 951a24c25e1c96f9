"""The persona space of a study: the stages that make it, and what is left of them when they are finished."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from data.errors import InputError
from data.mixtures import fingerprint
from data.schema import Control, Example, Instruction, Trait, seed_for
from experiments.stages import Bench, Output, Stage, TickFn, read
from probes.directions import contrast_turns, estimate
from probes.novelty import chance_remainders, outside
from probes.nulls import Null, NullSpaces
from probes.shift import disattenuated_cosine
from probes.space import FEWEST_PERSONAS, Members, dimension, span
from probes.stats import FloatArray

DIMENSION = "dimension.json"


@dataclass(frozen=True)
class Library:
    """The stages that make a persona space.

    Attributes:
        spaces: stages with the directions of all names: the library's traits, then that of a run whose own is not among them.
        directions: each name's states under its contrast prompts.
        names: of the traits.
    """

    spaces: tuple[Stage, ...]
    directions: tuple[Stage, ...]
    names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """What a stage that uses the space reads first."""
        return (*self.spaces, *self.directions)

    def load(self, folders: Sequence[Path]) -> tuple["PersonaSpace", list[Path]]:
        """Return the space, and a stage's folders that are not its."""
        spaces, directions, rest = np.split(np.array(folders, dtype=object), np.cumsum([len(self.spaces), len(self.directions)]))
        return _loaded(tuple(spaces), tuple(directions), self.names), list(rest)

    def with_own(self, bench: Bench, subject: Trait | Control, examples: Sequence[Example]) -> "Library":
        """Return the library with a run's own direction, which spaces without it leave out.

        A trait that was in the library all along changes nothing. A control's direction is that of its instruction.
        """
        if subject.name in self.names:
            return self
        directions = directions_stage(bench, subject, examples)
        title = f"direction of {subject.name} beside the persona space"
        own = space_stage([subject.name], (directions,), title, self.directions)
        return Library((*self.spaces, own), (*self.directions, directions), (*self.names, subject.name))


def library_of(bench: Bench, traits: Sequence[Trait]) -> Library:
    """Return the stages that make the space of some traits."""
    directions = tuple(directions_stage(bench, trait, trait.examples) for trait in traits)
    names = tuple(trait.name for trait in traits)
    return Library((space_stage(names, directions, "persona space"),), directions, names)


def directions_stage(bench: Bench, subject: Trait | Instruction, examples: Sequence[Example], count: int | None = None) -> Stage:
    """Read contrast prompts at every layer: states [pairs, 2, questions, layers, d_model].

    Args:
        bench: the study's model.
        subject: whose contrast prompts.
        examples: of these, `extract` questions are read.
        count: contrast pairs; None means as many as the study asks for.

    Raises:
        InputError: fewer contrast pairs or extraction questions than the study asks for.
    """
    study = bench.study
    count = study.contrast_pairs if count is None else count
    extract = [example for example in examples if example.split == "extract"]
    for key, asked, has in (
        ("contrast_pairs", count, len(subject.contrast_pairs)),
        ("extract_questions", study.extract_questions, len(extract)),
    ):
        if has < asked:
            raise InputError(f"{key}: {subject.name} has {has}, the study asks for {asked}")
    pairs, questions = subject.contrast_pairs[:count], extract[: study.extract_questions]
    turns = contrast_turns(pairs, questions)

    def compute(bench: Bench, _inputs: list[Path], out: Path, tick: TickFn) -> Output:
        base = bench.base
        rows = [bench.chat(base).encode(turn) for turn in turns]
        [reading] = read(bench, rows, [None], out, tick, spans=("response",))
        states = reading["states"]
        return {"states.safetensors": {"states": states[:, :, 0].reshape(len(pairs), 2, len(questions), *states.shape[1::2])}}

    config = {**bench.identity(), "turns": fingerprint(turns), "pairs": len(pairs), "questions": len(questions)}
    return Stage("directions", 2, config, (), f"directions of {subject.name}", compute)


def space_stage(names: Sequence[str], directions: Sequence[Stage], title: str, beside: Sequence[Stage] = ()) -> Stage:
    """Estimate directions and their reliability at every layer.

    Args:
        names: whose.
        directions: their states under contrast prompts.
        title: what to call the stage on screen.
        beside: states of others; a direction is held against the covariance of all.
    """

    def compute(_bench: Bench, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        states = [load_file(folder / "states.safetensors")["states"].astype(np.float64) for folder in inputs]
        layers = states[0].shape[3]
        values = np.stack([np.linalg.svd(centred(states, layer), compute_uv=False) ** 2 for layer in range(layers)])
        out: dict[str, list[FloatArray]] = {"vectors": [], "reliability": [], "null_reliability": [], "found": []}
        for i, (name, each) in enumerate(zip(names, states[: len(names)], strict=True)):
            found = estimate(each[:, 0] - each[:, 1], values, np.random.default_rng(seed_for(0, "reliability", name)))
            for key in out:
                out[key].append(getattr(found, key))
            tick(i + 1, len(names))
        return {"space.safetensors": {key: np.stack(rows).astype(np.float32) for key, rows in out.items()}}

    return Stage("space", 2, {"names": list(names)}, (*directions, *beside), title, compute, everywhere=False)


def centred(states: Sequence[FloatArray], layer: int) -> FloatArray:
    """Return the activations of several traits at one layer, centred together: [N, d_model]."""
    rows = np.concatenate([each[..., layer, :].reshape(-1, each.shape[-1]) for each in states]).astype(np.float64)
    return np.asarray(rows - rows.mean(0))


def dimension_stage(library: Library, layer: int) -> Stage:
    """Ask how many dimensions the space has at a layer, by how well it foretells a trait that it was made without."""

    def compute(_bench: Bench, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        space, _ = library.load(inputs)
        found = space.members(layer)
        if len(found) < FEWEST_PERSONAS:
            return {DIMENSION: {"k": None, "why": f"{len(found)} traits were found, {FEWEST_PERSONAS} are needed", "traits": len(found)}}
        differences = {space.names[i]: space.differences(layer, i) for i in found}
        asked = dimension(differences, {}, np.random.default_rng(seed_for(0, "dimension")))
        return {DIMENSION: asdict(asked) | {"q2": asked.q2.tolist(), "traits": len(found)}}

    title = f"dimension of the persona space at layer {layer}"
    return Stage("dimension", 1, {"layer": layer, "names": list(library.names)}, library.inputs, title, compute, everywhere=False)


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """The directions of a library at every layer, the activations that made them, and the null spaces drawn from these.

    Attributes:
        names: of the traits [T].
        vectors: [T, layers, d_model].
        found: [T, layers].
        states: [T][pairs, 2, questions, layers, d_model], the activations that each trait's direction was made of.
    """

    names: Sequence[str]
    vectors: FloatArray
    found: NDArray[np.bool_]
    states: Sequence[FloatArray]
    _drawn: dict[tuple[bool, tuple[int, ...]], NullSpaces] = field(default_factory=dict, init=False, repr=False)

    def members(self, layer: int, without: str | None = None) -> list[int]:
        """Return which traits span the space at a layer: those found there, less the run's own."""
        return [i for i, name in enumerate(self.names) if self.found[i, layer] and name != without]

    def activations(self, layer: int, members: Sequence[int]) -> FloatArray:
        """Return the centred activations [N, d_model] of the traits that span a space: the covariance behind N1."""
        return centred([self.states[i] for i in members], layer)

    def basis(self, layer: int, members: Sequence[int]) -> FloatArray:
        """Return the basis [d_model, k] of the space that some traits span."""
        return span(self.vectors[members, layer])

    def null_spaces(self, layer: int, members: Sequence[int], isotropic: bool = False) -> NullSpaces:
        """Return the spaces of N1, or N0 where `isotropic`, of the space that some traits span.

        All runs and layers share one set of draws, and spaces once drawn are kept: every text and every run is held against them.
        """
        k = self.basis(layer, members).shape[1]
        # N0 knows nothing of the activations but their width.
        key = (len(members), k) if isotropic else (layer, k, *members)
        if (isotropic, key) not in self._drawn:
            null = Null(seed_for(0, "nulls"), isotropic=isotropic)
            self._drawn[isotropic, key] = null.spaces(self.activations(layer, members), Members(len(members)), k)
            # Room for the spaces with and without one trait at every layer; runs of another trait come later.
            if len(self._drawn) > 2 * self.vectors.shape[1]:
                del self._drawn[next(iter(self._drawn))]
        return self._drawn[isotropic, key]

    def null_bases(self, layer: int, members: Sequence[int], count: int) -> FloatArray:
        """Return the bases [count, d_model, k] of the first few spaces of N1; the rest are not made."""
        null = Null(seed_for(0, "nulls"), draws=count)
        k = self.basis(layer, members).shape[1]
        return null.spaces(self.activations(layer, members), Members(len(members)), k).bases(count)

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
        if not members:
            raise InputError(f"there is no persona space at layer {layer}: no direction of the library was found")
        return chance_remainders(self.activations(layer, members), self.basis(layer, members), norm, Null(seed, draws=draws))

    def differences(self, layer: int, trait: int) -> FloatArray:
        """Return a trait's states under positive less negative prompts, [pairs, questions, d_model]."""
        at = self.states[trait][..., layer, :].astype(np.float64)
        return np.asarray(at[:, 0] - at[:, 1])

    def halves(self, layer: int, trait: int) -> tuple[FloatArray, FloatArray]:
        """Return a trait's direction from two halves that have neither contrast pairs nor questions in common, each [d_model]."""
        differences = self.differences(layer, trait)
        return differences[::2, ::2].mean((0, 1)), differences[1::2, 1::2].mean((0, 1))

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


# Kept for the next run, which is held against the same null spaces.
@lru_cache(maxsize=1)
def _loaded(spaces: tuple[Path, ...], directions: tuple[Path, ...], names: tuple[str, ...]) -> PersonaSpace:
    arrays = [load_file(folder / "space.safetensors") for folder in spaces]
    vectors, found = (np.concatenate([each[key] for each in arrays]) for key in ("vectors", "found"))
    states = [load_file(folder / "states.safetensors")["states"] for folder in directions]
    return PersonaSpace(names, vectors.astype(np.float64), found > 0.5, states)

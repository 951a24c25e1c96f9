"""Measure one run: its shift, the share inside the persona space, its trait effect and the verdict.

Arithmetic on finished readings; no model is touched here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import stats as scipy_stats

from data.schema import seed_for
from experiments.verdict import verdict
from probes.nulls import Null, NullShare, compare, null_shares
from probes.shift import Share, debiased_norms, share_inside
from probes.space import span
from probes.stats import Estimate, FloatArray, finite, mean_interval

# What a run is read at, in the order of the stored readings.
SPANS_READ = ("prompt_last", "response")
PROMPT_LAST, RESPONSE = range(2)
Reading = Mapping[str, FloatArray]


def centred(states: Sequence[FloatArray], layer: int) -> FloatArray:
    """Return the activations of several traits at one layer, centred together: [N, d_model]."""
    rows = np.concatenate([each[..., layer, :].reshape(-1, each.shape[-1]) for each in states]).astype(np.float64)
    return np.asarray(rows - rows.mean(0))


@dataclass(frozen=True)
class PersonaSpace:
    """The directions of a library at every layer, and the activations that made them.

    Attributes:
        names: of the traits [T].
        vectors: [T, layers, d_model].
        found: [T, layers].
        states: [T][…, layers, d_model], the activations that each trait's direction was made of.
    """

    names: Sequence[str]
    vectors: FloatArray
    found: NDArray[np.bool_]
    states: Sequence[FloatArray]

    def members(self, layer: int, without: str | None = None) -> list[int]:
        """Return which traits span the space at a layer: those found there, less the run's own."""
        return [i for i, name in enumerate(self.names) if self.found[i, layer] and name != without]

    def activations(self, layer: int, members: Sequence[int]) -> FloatArray:
        """Return the centred activations [N, d_model] of the traits that span a space: the covariance behind N1."""
        return centred([self.states[i] for i in members], layer)

    def cosines(self, layer: int, vector: FloatArray) -> dict[str, float]:
        """Return the signed cosine of a vector with every direction of the library at a layer; none for a zero vector."""
        if not np.any(vector):
            return {}
        at = self.vectors[:, layer]
        cosines = at @ vector / np.linalg.norm(at, axis=1) / np.linalg.norm(vector)
        return {name: float(c) for name, c in zip(self.names, cosines, strict=True)}


def load_space(space: Path, directions: Sequence[Path], names: Sequence[str]) -> PersonaSpace:
    """Load a persona space and the activations that made it from the folders of their stages."""
    arrays = load_file(space / "space.safetensors")
    states = [load_file(folder / "states.safetensors")["states"] for folder in directions]
    return PersonaSpace(names, arrays["vectors"].astype(np.float64), arrays["found"] > 0.5, states)


@dataclass(frozen=True)
class Against:
    """A share held against N1 (and, for comparison, against N0)."""

    share: Share
    null: NullShare
    isotropic: NullShare
    directions: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "share": self.share.estimate.to_json() if self.share.why is None else None,
            "why": self.share.why,
            "signal": finite(self.share.signal),
            "directions": self.directions,
            "null_mean": finite(self.null.mean),
            "null_high": finite(self.null.high),
            "p": self.null.p,
            "effect": self.null.effect.to_json() if self.share.why is None else None,
            "isotropic_mean": finite(self.isotropic.mean),
            "isotropic_p": self.isotropic.p,
        }


def against(space: PersonaSpace, layer: int, differences_nD: FloatArray, without: str | None) -> Against | None:
    """Return the share of a shift in the space at a layer against its nulls; None where no direction was found."""
    members = space.members(layer, without)
    if not members:
        return None
    share = share_inside(differences_nD, span(space.vectors[members, layer]))
    null, isotropic = (held_against(space, layer, members, differences_nD, share, isotropic) for isotropic in (False, True))
    return Against(share, null, isotropic, len(members))


def held_against(
    space: PersonaSpace, layer: int, members: Sequence[int], differences_nD: FloatArray, share: Share, isotropic: bool = False
) -> NullShare:
    """Hold a share against N1, or against N0 where `isotropic`; all runs and layers share one set of draws."""
    draws = Null(seed_for(0, "nulls"), isotropic=isotropic).vectors(space.activations(layer, members), len(members))
    return compare(share.estimate, null_shares(differences_nD, draws))


def shift_facts(space: PersonaSpace, layer: int, differences_nD: FloatArray, base_nD: FloatArray, own: str | None) -> dict[str, Any]:
    """Return everything about one paired shift at one layer, as plain JSON values."""
    mean = differences_nD.mean(0)
    squared, noise = debiased_norms(differences_nD)
    spread = noise * len(differences_nD)
    inside, full = against(space, layer, differences_nD, own), against(space, layer, differences_nD, None)
    cosines = space.cosines(layer, mean)
    return {
        "own_removed": inside.to_json() if inside else None,
        "full": full.to_json() if full else None,
        "coordinates": cosines,
        "nearest": sorted(cosines, key=lambda name: -cosines[name]),
        "relative_norm": float(np.linalg.norm(mean) / np.linalg.norm(base_nD, axis=1).mean()),
        # The rest of the mean square depends on the context.
        "constant_part": squared / (squared + spread) if squared + spread > 0 else None,
    }


def curve(space: PersonaSpace, differences_nLD: FloatArray, own: str | None) -> dict[str, list[float | None]]:
    """Return share, interval, N1's mean and 95 % quantile, and p at every layer; null where there is none."""
    keys = ("share", "low", "high", "null_mean", "null_high", "p")
    out: dict[str, list[float | None]] = {key: [] for key in keys}
    for layer in range(differences_nLD.shape[1]):
        members, shift = space.members(layer, own), differences_nLD[:, layer]
        values: tuple[float | None, ...] = (None,) * len(keys)
        if members:
            # N0 is printed at the headline layer only, so it is not drawn here.
            share = share_inside(shift, span(space.vectors[members, layer]))
            e, null = share.estimate, held_against(space, layer, members, shift, share)
            values = (e.value, e.low, e.high, null.mean, null.high, null.p)
            if share.why is not None:
                values = (None, None, None, null.mean, null.high, None)
        for key, value in zip(keys, values, strict=True):
            out[key].append(None if value is None else finite(value))
    return out


def trait_effect(changed: Mapping[str, Reading], reference: Mapping[str, Reading]) -> tuple[Estimate, float, FloatArray]:
    """Return the change of the trait score Y, its standard error, and the per-question differences.

    Y is the mean over questions of log p(y⁺) − log p(y⁻), each averaged over the answer's tokens.

    Args:
        changed: the readings of `trait` and `neutral` text by the changed model.
        reference: the same by the reference.
    """
    score = [texts["trait"]["logprob"].astype(np.float64) - texts["neutral"]["logprob"] for texts in (changed, reference)]
    differences = score[0] - score[1]
    return mean_interval(differences), float(scipy_stats.sem(differences)), differences


def measure(
    space: PersonaSpace, layer: int, own: str | None, readings: Mapping[str, Mapping[str, Reading]], headline: str
) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Measure a run against each of its references.

    Args:
        space: the base model's persona space.
        layer: where shares are read.
        own: the run's trait; its direction is left out of the space that the verdict uses.
        readings: `run`, `base` and where there is one `neutral` → text (`neutral`, `own`, `trait`) → reading.
        headline: the reference that the verdict uses, `neutral` or `base`.

    Returns:
        Plain facts, and the arrays that groups of runs need: the mean shift [layers, d_model] against the
        headline reference, and the per-question effects.
    """
    run = readings["run"]
    facts: dict[str, Any] = {"layer": layer, "reference": headline, "references": {}}
    arrays: dict[str, FloatArray] = {}
    for name in ("base", "neutral"):
        if name not in readings:
            continue
        reference = readings[name]
        texts = {}
        for text in run:
            if text not in reference:
                continue
            states, before, base = (r[text]["states"].astype(np.float64) for r in (run, reference, readings["base"]))
            texts[text] = shift_facts(space, layer, (states - before)[:, layer, RESPONSE], base[:, layer, RESPONSE], own)
            if text == "neutral":
                texts["prompt_last"] = shift_facts(space, layer, (states - before)[:, layer, PROMPT_LAST], base[:, layer, PROMPT_LAST], own)
        facts["references"][name] = {"texts": texts, "effect": None}
        if "trait" in run and "trait" in reference:
            effect, se, questions = trait_effect(run, reference)
            facts["references"][name]["effect"] = {**effect.to_json(), "standard_error": se}
            if name == headline:
                arrays["effects"] = questions
    shift = run["neutral"]["states"].astype(np.float64) - readings[headline]["neutral"]["states"]
    shift = shift[:, :, RESPONSE]
    arrays["shift"] = shift.mean(0)
    facts["by_layer"] = curve(space, shift, own)
    facts["projections"] = {name: [] for name in space.names}
    for at in range(shift.shape[1]):
        cosines = space.cosines(at, arrays["shift"][at])
        for name in space.names:
            # Below the first layer that was trained nothing moves, and there is no cosine.
            facts["projections"][name].append(cosines.get(name))
    result = against(space, layer, shift[:, layer], own)
    if result is None:
        facts |= {"verdict": None, "why": "no persona space at this layer: no direction of the library was found"}
        return facts, arrays
    measured = facts["references"][headline]["effect"]
    effect_or_none = Estimate(*(measured[key] for key in ("value", "low", "high"))) if measured else None
    judged = verdict(effect_or_none, measured["standard_error"] if measured else 0.0, result.share, result.null)
    facts |= {"verdict": judged.name, "why": judged.why}
    return facts, arrays

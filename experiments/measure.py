"""Measure one run: its shift, the share inside the persona space, its trait effect, and what mediates it.

Arithmetic on finished readings; no model is touched here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import stats as scipy_stats

from data.schema import seed_for
from probes.corrections import max_t
from probes.mediation import INSIDE, OUTSIDE, WHOLE, Outcomes, Swapped, mediate
from probes.nulls import Null, NullShare, NullSpaces, compare, joint_shares
from probes.shift import Share, debiased_norms, disattenuated_cosine, share_inside
from probes.space import Members, span
from probes.stats import Estimate, FloatArray, finite, mean_interval

# What a run is read at, in the order of the stored readings.
SPANS_READ = ("prompt_last", "response")
PROMPT_LAST, RESPONSE = range(2)
Reading = Mapping[str, FloatArray]

# The base's answers, which the base alone reads.
BASE_ANSWERS = "base_answers"
NO_SPACE = "no persona space at this layer: no direction of the library was found"
# What the arms of a mediation analysis are called, beside `inside`, `outside` and `whole`.
BEFORE, AFTER = "before", "after"
EVERYWHERE, FULL, OWN = "everywhere", "full", "own"
DRAW, MATCHED, DOSE = "draw", "matched", "dose"


def centred(states: Sequence[FloatArray], layer: int) -> FloatArray:
    """Return the activations of several traits at one layer, centred together: [N, d_model]."""
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

    def halves(self, layer: int, trait: int) -> tuple[FloatArray, FloatArray]:
        """Return a trait's direction from two halves that have neither contrast pairs nor questions in common, each [d_model]."""
        at = self.states[trait][..., layer, :].astype(np.float64)
        differences = at[:, 0] - at[:, 1]
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
def load_space(space: Path, directions: tuple[Path, ...], names: tuple[str, ...]) -> PersonaSpace:
    """Load a persona space and the activations that made it from the folders of their stages."""
    arrays = load_file(space / "space.safetensors")
    states = [load_file(folder / "states.safetensors")["states"] for folder in directions]
    return PersonaSpace(names, arrays["vectors"].astype(np.float64), arrays["found"] > 0.5, states)


@dataclass(frozen=True)
class Against:
    """A share held against N1 (and, for comparison, against N0); where nothing moves there is no null share."""

    share: Share
    null: NullShare | None
    isotropic: NullShare | None
    directions: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        n1, n0 = self.null, self.isotropic
        return {
            "share": self.share.estimate.to_json() if self.share.why is None else None,
            "why": self.share.why,
            "signal": finite(self.share.signal),
            "directions": self.directions,
            "null_mean": n1 and n1.mean,
            "null_high": n1 and n1.high,
            "p": n1 and n1.p,
            "effect": n1.effect.to_json() if n1 and self.share.why is None else None,
            "isotropic_mean": n0 and n0.mean,
            "isotropic_p": n0 and n0.p,
        }


def against(space: PersonaSpace, layer: int, differences_nD: FloatArray, without: str | None) -> Against | None:
    """Return the share of a shift in the space at a layer against its nulls; None where no direction was found."""
    members = space.members(layer, without)
    if not members:
        return None
    share = share_inside(differences_nD, space.basis(layer, members))
    if not moves(differences_nD):
        return Against(share, None, None, len(members))
    null, isotropic = (compare(share.estimate, space.null_spaces(layer, members, n0).shares(differences_nD)) for n0 in (False, True))
    return Against(share, null, isotropic, len(members))


def moves(differences_nD: FloatArray) -> bool:
    """Return whether anything is left of a shift once its noise is taken out: without that there is no null share."""
    return debiased_norms(differences_nD)[0] > 0


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
        "disattenuated": space.disattenuated(layer, differences_nD),
        "nearest": sorted(cosines, key=lambda name: -cosines[name]),
        "relative_norm": float(np.linalg.norm(mean) / np.linalg.norm(base_nD, axis=1).mean()),
        # The rest of the mean square depends on the context.
        "constant_part": squared / (squared + spread) if squared + spread > 0 else None,
    }


def curve(space: PersonaSpace, differences_nLD: FloatArray, own: str | None) -> dict[str, list[float | None]]:
    """Return share, interval, N1's mean and 95 % quantile, p, and p corrected for all layers by max-T; null where there is none.

    Layers whose spaces are of the same traits have joint draws; between others they are independent, which makes the correction larger.
    """
    keys = ("share", "low", "high", "null_mean", "null_high", "p", "p_max_t")
    depth = differences_nLD.shape[1]
    out: dict[str, list[float | None]] = {key: [None] * depth for key in keys}
    layers, null_BL = null_curve(space, differences_nLD, own)
    for layer, null_B in zip(layers, null_BL.T, strict=True):
        share = share_inside(differences_nLD[:, layer], space.basis(layer, space.members(layer, own)))
        null = compare(share.estimate, null_B)
        out["null_mean"][layer], out["null_high"][layer] = null.mean, null.high
        if share.why is None:
            e = share.estimate
            out["share"][layer], out["low"][layer], out["high"][layer], out["p"][layer] = e.value, e.low, e.high, null.p
    passed = [i for i, layer in enumerate(layers) if out["share"][layer] is not None]
    if passed:
        shares = np.array([out["share"][layers[i]] for i in passed], dtype=np.float64)
        for i, p in zip(passed, max_t(shares, null_BL[:, passed]), strict=True):
            out["p_max_t"][layers[i]] = p
    return out


def null_curve(space: PersonaSpace, differences_nLD: FloatArray, own: str | None) -> tuple[list[int], FloatArray]:
    """Return the layers that have a space and a shift, and N1's shares there, draw by draw: [draws, layers].

    N0 is printed at the headline layer only, so it is not drawn here.
    """
    layers = [at for at in range(differences_nLD.shape[1]) if space.members(at, own) and moves(differences_nLD[:, at])]
    if not layers:
        return [], np.empty((0, 0))
    spaces = [space.null_spaces(at, space.members(at, own)) for at in layers]
    return layers, joint_shares(spaces, differences_nLD[:, layers])


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


@dataclass(frozen=True)
class Mediated:
    """One mediation analysis of a run, as its arms left it.

    Attributes:
        reference: `neutral` or `base`.
        text: `trait` for held-out answers, `surface` for training-like ones, `response` for held-out answers of which the response's
            tokens alone were swapped.
        layer: where states were swapped.
        arms: names of the arms.
        scores: Y, [arms, questions].
        moved: part → its share of Σ‖h1 − h0‖² over all swapped tokens.
    """

    reference: str
    text: str
    layer: int
    arms: Sequence[str]
    scores: FloatArray
    moved: Mapping[str, float]


def measure(
    space: PersonaSpace,
    layer: int,
    own: str | None,
    readings: Mapping[str, Mapping[str, Reading]],
    headline: str,
    mediated: Sequence[Mediated] = (),
) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Measure a run against each of its references.

    Args:
        space: the base model's persona space.
        layer: where shares are read.
        own: the run's trait; its direction is left out of the space that the verdict uses.
        readings: `run`, `base` and where there is one `neutral` → text (`neutral`, `own`, `trait`) → reading. What the base makes of its
            own answers is the base's `base_answers`: with it the text shift is measured, the base on the run's answers less on its own.
        headline: the reference that the verdict uses, `neutral` or `base`.
        mediated: its mediation analyses.

    Returns:
        Plain facts, and the arrays that groups of runs need: the mean shift [layers, d_model] against the
        headline reference, the per-question effects, and the outcomes of each analysis [arms, questions].
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
    facts["text_shift"] = None
    if "own" in readings["base"] and BASE_ANSWERS in readings["base"]:
        theirs, its_own = (readings["base"][text]["states"][:, layer, RESPONSE].astype(np.float64) for text in ("own", BASE_ANSWERS))
        facts["text_shift"] = shift_facts(space, layer, theirs - its_own, its_own, own)
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
    facts["no_space"] = None if space.members(layer, own) else NO_SPACE
    facts["mediation"] = []
    for i, each in enumerate(mediated):
        if not each.arms:
            continue
        analysis = mediate(outcomes_of(each.arms, each.scores)).to_json()
        key = {"reference": each.reference, "text": each.text, "layer": each.layer}
        facts["mediation"].append(key | {"arms": list(each.arms), "outcomes": f"outcomes.{i}", "moved": dict(each.moved)} | analysis)
        arrays[f"outcomes.{i}"] = each.scores
    return facts, arrays


def analysis_of(facts: Mapping[str, Any], text: str) -> Mapping[str, Any] | None:
    """Return a run's mediation analysis of a text at its headline layer, against its headline reference (the base for `response`)."""
    where = {"reference": "base" if text == "response" else facts["reference"], "text": text, "layer": facts["layer"]}
    return next((each for each in facts["mediation"] if where.items() <= each.items()), None)


def headline_analysis(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the analysis that the verdict uses: of all tokens, or of the response's where the prompt is the change."""
    return analysis_of(facts, "trait") or analysis_of(facts, "response")


def outcomes_of(arms: Sequence[str], scores: FloatArray) -> Outcomes:
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

    parts = [part for part in (INSIDE, OUTSIDE, WHOLE, FULL, OWN, EVERYWHERE) if f"{part}.into" in y]
    doses = {float(arm.removeprefix(DOSE)): y[arm] for arm in arms if arm.startswith(DOSE)}
    return Outcomes(y[BEFORE], y[AFTER], {part: swapped(part) for part in parts}, numbered(DRAW), numbered(MATCHED), doses)

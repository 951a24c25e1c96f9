"""Measure one run: its shift, the share inside the persona space, its trait effect, and what mediates it.

Arithmetic on finished readings; no model is touched here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.stages.loaded_space import Chosen, Kind, PersonaSpace
from wellworn.experiments.stages.mediation import Mediated
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, outcomes_of
from wellworn.experiments.stages.readings import PROMPT_LAST, RESPONSE
from wellworn.probes.geometry.nearest import nearest, rank_of
from wellworn.probes.geometry.nulls import Null, NullShare, compare, joint_shares, leaves_nothing, null_shares
from wellworn.probes.geometry.shift import Share, debiased_norms, share_inside
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.mediation.shares import mediate
from wellworn.probes.scoring.judge import MOST
from wellworn.probes.statistics.corrections import max_t
from wellworn.probes.statistics.intervals import Estimate, FloatArray, finite, mean_interval, standard_error

Reading = Mapping[str, FloatArray]

# The base's answers, which the base alone reads.
BASE_ANSWERS = "base_answers"
# Raised when what is measured changes; a report of what an older version measured would lack it.
VERSION = 10
# Chance directions that the base's use of the remainder is held against.
USE_DRAWS = 199


@dataclass(frozen=True)
class Against:
    """A share held against N1 and, for comparison, against two nulls that are too lenient; where nothing moves there is none.

    Attributes:
        share: of the shift.
        null: N1, with the covariance of states within questions.
        total: the same with that of all states, most of which is what the texts put into them.
        isotropic: N0.
        noise: N3, half-differences of the same prompts, where the space is of traits alone.
        directions: how many span the space.
        dimensions: how many the space has; fewer where some directions are combinations of others.
    """

    share: Share
    null: NullShare | None
    total: NullShare | None
    isotropic: NullShare | None
    noise: NullShare | None
    directions: int
    dimensions: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        n1 = self.null
        return {
            "share": self.share.estimate.to_json() if self.share.why is None else None,
            "why": self.share.why,
            "signal": finite(self.share.signal),
            "directions": self.directions,
            "dimensions": self.dimensions,
            "null_mean": n1 and n1.mean,
            "null_high": n1 and n1.high,
            "p": n1 and n1.p,
            "effect": n1.effect.to_json() if n1 and self.share.why is None else None,
            "total_mean": self.total and self.total.mean,
            "total_p": self.total and self.total.p,
            "noise_mean": self.noise and self.noise.mean,
            "noise_p": self.noise and self.noise.p,
            "isotropic_mean": self.isotropic and self.isotropic.mean,
            "isotropic_p": self.isotropic and self.isotropic.p,
        }


def against(space: PersonaSpace, layer: int, differences_nD: FloatArray, without: str | None) -> Against | None:
    """Return the share of a shift in the space at a layer against its nulls; None where no direction was found."""
    members = space.members(layer, without)
    if not members:
        return None
    basis = space.basis(layer, members)
    share, size = share_inside(differences_nD, basis), (len(members), basis.shape[1])
    if not moves(differences_nD):
        return Against(share, None, None, None, None, *size)
    kinds: tuple[Kind, ...] = ("within", "total", "isotropic")
    within, total, isotropic = (space.null_spaces(layer, members, kind).shares(differences_nD) for kind in kinds)
    if why := leaves_nothing(within):
        return Against(replace(share, why=share.why or why), None, None, None, None, *size)
    halves = None if members.roles else null_shares(differences_nD, space.half_differences(layer, members))
    beside = [None if null is None or leaves_nothing(null) else compare(share.estimate, null) for null in (total, isotropic, halves)]
    return Against(share, compare(share.estimate, within), beside[0], beside[1], beside[2], *size)


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
        if leaves_nothing(null_B):
            continue
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


def personas(space: PersonaSpace, layer: int, differences_nD: FloatArray, own: str | None) -> dict[str, Any]:
    """Return whom a shift lies nearest, among all traits and roles, and where among them its own trait stands."""
    names, directions = space.personas(layer)
    # Also those that were not found: a shift may lie near a direction that few prompts agree on.
    everyone = Chosen(tuple(range(len(space.names))), tuple(range(len(space.roles.names))) if space.roles else ())
    found = nearest(differences_nD, directions, space.activations(layer, everyone), Null(seed_for(0, "nearest")))
    if found.why:
        return {"why": found.why, "nearest": [], "high": None, "rank": None, "of": len(names)}
    values = [each.value for each in found.cosines]
    order = sorted(range(len(names)), key=lambda i: -values[i])
    here = [name for name, _ in names]
    return {
        "why": None,
        "nearest": [{"name": names[i][0], "kind": names[i][1], **found.cosines[i].to_json()} for i in order],
        "high": found.high,
        "rank": rank_of(values, here.index(own)) if own in here else None,
        "of": len(names),
    }


def trait_effect(changed: Mapping[str, Reading], reference: Mapping[str, Reading]) -> tuple[Estimate, float, FloatArray]:
    """Return the change of the trait score Y, its standard error, and the per-question differences.

    Y is the mean over questions of log p(y⁺) − log p(y⁻), each averaged over the answer's tokens.

    Args:
        changed: the readings of `trait` and `neutral` text by the changed model.
        reference: the same by the reference.
    """
    score = [texts["trait"]["logprob"].astype(np.float64) - texts["neutral"]["logprob"] for texts in (changed, reference)]
    differences = score[0] - score[1]
    return mean_interval(differences), standard_error(differences), differences


NOT_MEDIATED: Mapping[str, Any] = {
    "effect": None, "standard_error": None, "why": None, "shares": {}, "null": None, "mediated_of_carried": None, "carried_why": None,
    "shapley": {}, "doses": [],
}  # fmt: skip


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
        Plain facts, and the arrays that groups of runs need: against the headline reference the mean `shift` [layers, d_model] and that
        of each question at the headline layer, `shifts` [questions, d_model]; the per-question `effects`; the outcomes of each
        analysis [arms, questions]; `basis` [d_model, k], the space without its own direction; and `use`, the base's states under the
        run's own contrast prompts projected on the remainder and on chance directions, [1 + draws, pairs, 2, questions].
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
    arrays["shift"], arrays["shifts"] = shift.mean(0), shift[:, layer]
    if members := space.members(layer, own):
        arrays["basis"] = space.basis(layer, members)
    facts["personas"] = personas(space, layer, shift[:, layer], own)
    if own in space.names and len(remainders := space.remainders(layer, own, arrays["shift"][layer], USE_DRAWS)):
        states = space.states[space.names.index(own)][..., layer, :]
        arrays["use"] = np.moveaxis(states @ remainders.T, -1, 0)
    facts["by_layer"] = curve(space, shift, own)
    facts["projections"] = {name: [] for name in space.names}
    for at in range(shift.shape[1]):
        cosines = space.cosines(at, arrays["shift"][at])
        for name in space.names:
            # Below the first layer that was trained nothing moves, and there is no cosine.
            facts["projections"][name].append(cosines.get(name))
    facts["found"] = [name for name, found in zip(space.names, space.found[:, layer], strict=True) if found]
    facts["no_space"] = space.no_space(layer, own)
    # Roles make a space of k dimensions out of many more directions.
    facts["roles"] = space.roles is not None
    facts["mediation"] = []
    for i, each in enumerate(mediated):
        if not each.arms:
            continue
        analysis = shares_of_effect(each.arms, each.scores, each.graded is not None)
        key = {"reference": each.reference, "text": each.text, "layer": each.layer}
        facts["mediation"].append(key | {"arms": list(each.arms), "outcomes": f"outcomes.{i}", "moved": dict(each.moved)} | analysis)
        if each.known:
            facts["mediation"][-1]["known"] = dict(each.known)
        if each.graded:
            facts["mediation"][-1]["graded"] = dict(each.graded)
        arrays[f"outcomes.{i}"] = each.scores
    return facts, arrays


def analysis_of(facts: Mapping[str, Any], text: str) -> Mapping[str, Any] | None:
    """Return a run's mediation analysis of a text at its headline layer, against its headline reference (the base for `response`)."""
    where = {"reference": "base" if text == "response" else facts["reference"], "text": text, "layer": facts["layer"]}
    return next((each for each in facts["mediation"] if where.items() <= each.items()), None)


def headline_analysis(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the analysis that the verdict uses: of all tokens, or of the response's where the prompt is the change."""
    return analysis_of(facts, "trait") or analysis_of(facts, "response")


def shares_of_effect(arms: Sequence[str], scores: FloatArray, graded: bool) -> dict[str, Any]:
    """Return the shares of an effect as plain JSON values.

    Of grades, questions that lack one in any arm (of any run) are left out: `left_out` says how many, and `bounds` what the effect over
    all questions would be if each missing grade were 0 or 100, whichever is worse.

    Args:
        arms: their names.
        scores: [arms, questions], or [arms, runs, questions].
        graded: whether they are grades, of which some may be missing.
    """
    if not graded:
        return mediate(outcomes_of(arms, scores)).to_json()
    before, after = (scores[list(arms).index(arm)] for arm in (BEFORE, AFTER))
    least, most = (float((np.nan_to_num(after, nan=a) - np.nan_to_num(before, nan=b)).mean()) for a, b in ((0.0, MOST), (float(MOST), 0.0)))
    whole = np.flatnonzero(np.isfinite(scores).reshape(-1, scores.shape[-1]).all(axis=0))
    facts: dict[str, Any] = {"left_out": scores.shape[-1] - len(whole), "bounds": [least, most]}
    if len(whole) >= FEWEST_PROMPTS:
        return {**mediate(outcomes_of(arms, scores[..., whole])).to_json(), **facts}
    why = f"only {len(whole)} of {scores.shape[-1]} questions have a grade in every arm, and {FEWEST_PROMPTS} are needed"
    return {**NOT_MEDIATED, "why": why, "carried_why": why, **facts}

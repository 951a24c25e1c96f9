"""What a study found: the numbers of every run, what runs say together, and the verdicts."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wellworn.data.catalog import NEUTRAL
from wellworn.experiments.findings.nearest_personas import nearest_of, nearest_over, specificity_of
from wellworn.experiments.findings.novelty import joint_scores, novelty_of, own_removed_basis
from wellworn.experiments.findings.null_ranks import (
    alike,
    among_fine_tunes,
    among_roles,
    in_spaces_of_instructions,
    no_character,
    own_removed,
)
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.findings.score_agreement import over_study, scores_of
from wellworn.experiments.findings.verdict import ALONG, NO_CHANGE, NOISY, P_LEVEL, Carried, Evidence, Verdict, share_above_chance, verdict
from wellworn.experiments.stages.calibration import missed
from wellworn.experiments.stages.capability import capability
from wellworn.experiments.stages.measure import analysis_of, headline_analysis, shares_of_effect
from wellworn.probes.geometry.novelty import Novelty
from wellworn.probes.geometry.nulls import beyond
from wellworn.probes.geometry.shift import Share, cross_run_share, share_over_runs
from wellworn.probes.mediation.shares import INSIDE, OUTSIDE, WHOLE
from wellworn.probes.statistics.corrections import benjamini_hochberg
from wellworn.probes.statistics.intervals import Estimate, FloatArray, crossed_interval, finite, proportion_bound, standard_error

RUNS_FOR_A_CLAIM = 3
GROUPED_BY = ("arm", "trait", "settings")
MEDIATION_KEYS = (
    "sufficiency", "necessity", "mediated", "carried", "mediated_of_carried", "null_mean", "null_high", "null_matched", "null_p",
    "complement", "shapley",
)  # fmt: skip
# Outcomes beside the headline's.
BESIDE = ("surface", "response", "generated")


def summarise(results: Results) -> dict[str, Any]:
    """Return a study's answer for machines: what was not measured is null with a reason, never NaN."""
    layer, space = results.index["layer"], results.space
    directions = [
        {
            "trait": name,
            **_direction(space, i, layer),
            "generated": _generated(results, i, name),
        }
        for i, name in enumerate(results.library)
    ]
    adjusted = _adjusted(results.runs)
    rest = [novelty_of(results, [run]) for run in results.runs]
    judged = [_judged(run, p, new) for run, p, new in zip(results.runs, adjusted, rest, strict=True)]
    rows = [
        _row(run, p, each, provisional=not _claimable(results, run))
        | {
            "novelty": new.to_json() if new else None,
            "among_fine_tunes": among_fine_tunes(results, run),
            "among_roles": among_roles(results, run),
            "scores": scores_of([run]),
            "capability": _capability(results, [run]),
        }
        | _weights(run)
        for run, p, each, new in zip(results.runs, adjusted, judged, rest, strict=True)
    ]
    rows = [row | in_spaces_of_instructions(run, row) for run, row in zip(results.runs, rows, strict=True)]
    study = results.index["study"]
    return {
        "study": study["name"],
        **{key: study[key] for key in ("question", "expects", "refuted_by")},
        **{key: results.index[key] for key in ("model", "dtype", "layer", "depth")},
        **results.chat,
        "directions": directions,
        "dimension": dict(results.dimension),
        "runs": rows,
        "groups": _groups(results, adjusted, judged),
        "false_verdicts": _false_verdicts(rows),
        "specificity": specificity_of(results),
        "agreement": over_study(results.runs),
        "capability": capability([results.capability], None).to_json() if results.capability else None,
        "calibration": _calibration(results),
    }


def _direction(space: Mapping[str, FloatArray], i: int, layer: int) -> dict[str, Any]:
    return {
        "reliability": finite(space["reliability"][i, layer]),
        "null_reliability": finite(space["null_reliability"][i, layer]),
        "found": bool(space["found"][i, layer] > 0.5),
    }


def _generated(results: Results, i: int, name: str) -> dict[str, Any] | None:
    """Return how reliable the direction of the base's own answers is, and its cosine with that of `state`; None where not asked for."""
    if results.generated is None or results.agreement is None:
        return None
    layer, agreement = results.index["layer"], results.agreement[name]
    return {
        **_direction(results.generated, i, layer),
        "agreement": agreement["cosine"][layer],
        "agreement_high": agreement["chance"],
        "kept": results.kept[i] if results.kept else None,
    }


def _calibration(results: Results) -> dict[str, Any] | None:
    """Return what was found of planted changes, with the targets that each row misses; None where none were planted."""
    if results.calibration is None:
        return None
    rows = [row | {"missed": missed(row)} for row in results.calibration.get("accuracy", [])]
    return {**results.calibration, "accuracy": rows}


def _false_verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return how many runs that are no character's pass for persona-mediated, with the bounds of Clopper and Pearson; None without any.

    Counted are those that pass the gates: under `along` those whose mediation was measured and whose verdict is *along existing persona
    directions*, under `above_chance` all whose share alone would say so. Seeds of one kind of change are alike, so that runs bound the
    rate for more runs of these kinds, and kinds (of which one is counted where any of its runs is) that for others like them.
    """
    passed = [row for row in rows if no_character(row) and row["verdict"] not in (None, NOISY, NO_CHANGE)]
    if not passed:
        return None
    along = [(_kind(row), row["verdict"] == ALONG) for row in passed if row["mediated"]]
    shares = [(row["share_p_adjusted"], Estimate.from_json(row["share_effect"])) for row in passed]
    above = [(_kind(row), share_above_chance(*share)) for row, share in zip(passed, shares, strict=True)]
    return {"along": _counted(along), "above_chance": _counted(above)}


def _kind(row: Mapping[str, Any]) -> str:
    """Return what runs of no character have in common that are of one kind."""
    return str(row["arm"] if row["arm"] == "random" else row["trait"])


def _counted(said: Sequence[tuple[str, bool]]) -> dict[str, Any] | None:
    if not said:
        return None
    runs = [each for _, each in said]
    kinds = [any(each for name, each in said if name == kind) for kind in dict.fromkeys(name for name, _ in said)]
    return {
        "count": sum(runs),
        "runs": len(runs),
        "bound": proportion_bound(sum(runs), len(runs)),
        "count_kinds": sum(kinds),
        "kinds": len(kinds),
        "bound_kinds": proportion_bound(sum(kinds), len(kinds)),
    }


def _adjusted(runs: Sequence[RunResult]) -> list[float | None]:
    """Return every run's p against N1, corrected for all runs of the study."""
    readings = [own_removed(run) for run in runs]
    return benjamini_hochberg([reading["p"] if reading and reading["share"] else None for reading in readings])


def _analysis(run: RunResult, text: str) -> Mapping[str, Any] | None:
    return analysis_of(run.facts, text) if run.facts else None


def _judged(run: RunResult, p: float | None, rest: Novelty | None) -> Verdict | None:
    """Return a run's verdict; None where there is nothing to judge."""
    reading = own_removed(run)
    if run.facts is None or reading is None:
        return None
    effect = run.facts["references"][run.facts["reference"]]["effect"]
    analysis = headline_analysis(run.facts)
    return verdict(
        Evidence(
            effect=Estimate.from_json(effect) if effect else None,
            standard_error=effect["standard_error"] if effect else 0.0,
            share_why=reading["why"],
            p=1.0 if p is None else p,
            beyond_chance=Estimate.from_json(reading["effect"]) if reading["effect"] else None,
            carried=_carried(analysis, rest) if analysis else None,
        )
    )


def _carried(analysis: Mapping[str, Any], rest: Novelty | None) -> Carried | None:
    """Return what a mediation analysis says to the verdict; None where it found no effect to share out."""
    if analysis["why"] is not None:
        return None
    share = analysis["mediated_of_carried"]
    return Carried(
        layer=analysis["layer"],
        whole=Estimate.from_json(analysis["shares"][WHOLE]["mediated"]),
        share=Estimate.from_json(share) if share else None,
        why=analysis["carried_why"],
        reading=Estimate.from_json(analysis["shapley"]["reading"]),
        remainder=rest,
    )


def _shares(analysis: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the numbers of a mediation analysis under the names that a summary gives them."""
    if analysis is None or analysis["why"] is not None:
        return dict.fromkeys(MEDIATION_KEYS)
    shares, null = analysis["shares"], analysis["null"]
    return {
        **{key: shares[INSIDE][key] for key in ("sufficiency", "necessity", "mediated")},
        "carried": shares[WHOLE]["mediated"],
        "mediated_of_carried": analysis["mediated_of_carried"],
        "null_mean": null and null["mediated"],
        "null_high": null and null["high"],
        "null_matched": null and null["matched"],
        "null_p": null and null["p"],
        "complement": shares[OUTSIDE]["mediated"],
        "shapley": analysis["shapley"],
    }


def _beside(analyses: Sequence[Mapping[str, Any] | None], scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the shares of the outcomes beside the headline's, each with its effect; what was said, with how well its score tells.

    Args:
        analyses: of these outcomes, over the runs.
        scored: what was said, of each run that said something.
    """
    found = {text: {"effect": each and each["effect"], **_shares(each)} for text, each in zip(BESIDE, analyses, strict=True)}
    said = analyses[-1]
    # Answers whose label is known are the same for all runs.
    found["generated"] |= {"why": said and said["why"], "known": scored[0].get("known") if scored else None, "graded": _graded(scored)}
    found["generated"] |= {key: said and said.get(key) for key in ("left_out", "bounds")}
    return found


def _scored(runs: Sequence[RunResult]) -> list[Mapping[str, Any]]:
    return [each for run in runs if (each := _analysis(run, "generated"))]


def _graded(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return who graded what runs said, and why how many grades are missing; None where nobody did."""
    graded = [each["graded"] for each in scored if each.get("graded")]
    if not graded:
        return None
    failures = sum((Counter(each["failures"]) for each in graded), Counter[str]())
    return {"judge": graded[0]["judge"], "drawn": any(each["drawn"] for each in graded), "failures": dict(failures.most_common())}


def _row(run: RunResult, p: float | None, judged: Verdict | None, provisional: bool) -> dict[str, Any]:
    row = {key: run.entry[key] for key in ("arm", "trait", "adapter", "seed", "settings")}
    keys = (
        "layer", "reference", "effect", "effect_base", "share", "share_full", "share_base", "share_null_mean", "share_null_high",
        "share_p", "share_p_adjusted", "layers_above_chance", "share_effect", "share_effect_full", "coordinates", "disattenuated",
        "nearest", "nearest_high", "own_rank", "relative_norm", "verdict",
    )  # fmt: skip
    row |= dict.fromkeys(keys)
    row |= _shares(headline_analysis(run.facts) if run.facts else None)
    row |= _beside([_analysis(run, text) for text in BESIDE], _scored([run]))
    row |= {"provisional": provisional, "why": None, "missing": dict(run.entry["missing"])}
    if run.facts is None:
        return row
    facts = run.facts
    # A neutral run with nothing to be read against keeps its reading against the base, and no headline.
    referenced = "share" not in row["missing"]
    shift = facts["references"][facts["reference"]]["texts"]["neutral"]
    base = facts["references"]["base"]["texts"]["neutral"]["own_removed"]
    own, full = shift["own_removed"], shift["full"]
    row |= {"layer": facts["layer"], "reference": facts["reference"], "share_base": base and base["share"]}
    row |= {"coordinates": shift["coordinates"], "disattenuated": shift["disattenuated"], "relative_norm": shift["relative_norm"]}
    row |= nearest_of(facts)
    if run.entry["own"] and run.entry["own"] not in facts["found"]:
        row["missing"]["own_direction"] = f"the direction of {run.entry['own']} was not found in this model at layer {facts['layer']}"
    for key, reference in (("effect", facts["reference"]), ("effect_base", "base")):
        measured = facts["references"][reference]["effect"]
        row[key] = {bound: measured[bound] for bound in ("value", "low", "high")} if measured else None
    if not referenced:
        row["why"] = row["missing"]["share"]
        return row
    if own is None or judged is None:
        row["why"] = row["missing"]["share"] = facts["no_space"]
        return row
    row |= {"verdict": judged.name, "why": judged.why}
    row["layers_above_chance"] = [at for at, p in enumerate(facts["by_layer"]["p_max_t"]) if p is not None and p <= P_LEVEL]
    row |= {"share": own["share"], "share_effect": own["effect"], "share_p": own["p"], "share_p_adjusted": p}
    row |= {"share_null_mean": own["null_mean"], "share_null_high": own["null_high"]}
    row |= {"share_full": full["share"], "share_effect_full": full["effect"]}
    if own["share"] is None:
        row["missing"]["share"] = own["why"]
    if own["dimensions"] < own["directions"] and not facts["roles"]:
        row["missing"]["dimensions"] = f"the {own['directions']} directions of the space hold {own['dimensions']} dimensions"
    analysis = headline_analysis(run.facts)
    if analysis and (analysis["why"] or analysis["carried_why"]):
        row["missing"]["mediated_of_carried"] = analysis["why"] or analysis["carried_why"]
    return row


def _weights(run: RunResult) -> dict[str, Any]:
    """Return the share of all that an update writes that lies in the persona space, and why there is none."""
    weights = run.weights or {"together": None, "why": "the run has no adapter"}
    return {"weights": weights["together"], "weights_why": weights["why"]}


def _capability(results: Results, runs: Sequence[RunResult]) -> dict[str, Any] | None:
    """Return what one run, or runs that differ in their seed alone, can do beside the base; None where that was not measured."""
    items = [run.capability for run in runs if run.capability]
    return capability(items, results.capability).to_json() if results.capability and items else None


def _claimable(results: Results, run: RunResult) -> bool:
    """Return whether enough independent runs stand behind a verdict."""
    # Neutral runs are read against one another in a circle, so that they are not independent.
    return run.entry["trait"] != NEUTRAL and sum(alike(other) == alike(run) for other in results.runs) >= RUNS_FOR_A_CLAIM


def _groups(results: Results, adjusted: Sequence[float | None], judged: Sequence[Verdict | None]) -> list[dict[str, Any]]:
    """Return what runs of several seeds say together: the run is the unit."""
    groups = []
    numbered = list(enumerate(results.runs))
    for _, members in itertools.groupby(numbered, key=lambda each: alike(each[1])):
        some = [(i, run) for i, run in members if run.facts is not None]
        runs = [run for _, run in some]
        # Neutral runs, each read against the next, have mean shifts that sum to zero: over them nothing can be said.
        if len(runs) < 2 or runs[0].entry["trait"] == NEUTRAL:
            continue
        facts = [own_removed(run) for run in runs]
        entry = runs[0].entry
        effects = [run.arrays["effects"] for run in runs if "effects" in run.arrays]
        effect = np.stack(effects) if len(effects) >= 2 else None
        share, star = _joint_share(runs)
        # The one that each run's own verdict uses; where the runs have no such analysis in common the group has none.
        headline = headline_analysis(runs[0].facts) if runs[0].facts else None
        analysis = _joint(runs, headline["text"]) if headline else None
        rest = novelty_of(results, runs)
        together = verdict(
            Evidence(
                effect=None if effect is None else crossed_interval(effect),
                standard_error=0.0 if effect is None else standard_error(effect),
                share_why=share.why if share else "the runs have no share",
                # All runs must reject: the largest of their corrected p.
                p=max(1.0 if (p := adjusted[i]) is None else p for i, _ in some),
                beyond_chance=star,
                carried=_carried(analysis, rest) if analysis else None,
            )
        )
        groups.append(
            {key: entry[key] for key in GROUPED_BY}
            | {
                "runs": len(runs),
                "runs_past_the_gates": sum(bool(each and each["share"]) for each in facts),
                "effect": None if effect is None else crossed_interval(effect).to_json(),
                "share": share.estimate.to_json() if share and share.why is None else None,
                "share_effect": star.to_json() if star else None,
                "share_across_runs": _common_share(runs),
                **nearest_over(runs),
                **_shares(analysis),
                **_beside([_joint(runs, text) for text in BESIDE], _scored(runs)),
                "novelty": rest.to_json() if rest else None,
                "scores": scores_of(runs),
                "capability": _capability(results, runs),
                "verdict": together.name,
                "why": together.why,
                "provisional": len(runs) < RUNS_FOR_A_CLAIM,
                "verdicts": [each.name if (each := judged[i]) else None for i, _ in some],
            }
        )
    return groups


def _joint(runs: Sequence[RunResult], text: str) -> Mapping[str, Any] | None:
    """Return one mediation analysis of several runs that answered the same questions, with intervals over runs × questions."""
    found = joint_scores(runs, [_analysis(run, text) for run in runs])
    graded = (_analysis(runs[0], text) or {}).get("graded") is not None
    return found and {"layer": runs[0].facts["layer"] if runs[0].facts else None, **shares_of_effect(*found, graded)}


def _joint_share(runs: Sequence[RunResult]) -> tuple[Share | None, Estimate | None]:
    """Return the share of runs together and the same beyond chance, F*, with intervals over runs × prompts; None where there is none."""
    basis, readings = own_removed_basis(runs[0]), [own_removed(run) for run in runs]
    chance = [reading["null_mean"] for reading in readings if reading and reading["null_mean"] is not None]
    if basis is None or len(chance) < len(runs):
        return None, None
    share = share_over_runs(np.stack([run.arrays["shifts"] for run in runs]).astype(np.float64), basis)
    return share, None if share.why else beyond(share.estimate, float(np.mean(chance)))


def _common_share(runs: Sequence[RunResult]) -> float | None:
    """Return the share that runs have in common, in the space without their own direction."""
    basis = own_removed_basis(runs[0])
    if basis is None:
        return None
    means = np.stack([run.arrays["shifts"].mean(0) for run in runs]).astype(np.float64)
    return cross_run_share(means, basis)

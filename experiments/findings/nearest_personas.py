"""Whom runs come to resemble: the personas nearest a run's shift, those of several runs together, and whether they are the trained ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.probes.geometry.nearest import specificity
from wellworn.probes.geometry.nulls import Null

SHOWN = 5
# Four traits have 24 assignments.
FEWEST_TRAITS, SHUFFLES = 4, 9999


def nearest_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the personas nearest one run's shift, with intervals over prompts, and the rank of the one that was trained."""
    personas = facts["personas"]
    return {
        "nearest": [
            {key: each[key] for key in ("name", "kind", "value", "low", "high")}
            | {"found": _found(facts, each["name"], each["kind"]), "beyond_chance": each["low"] > personas["high"]}
            for each in personas["nearest"][:SHOWN]
        ],
        "nearest_high": personas["high"],
        "own_rank": {"rank": personas["rank"], "of": personas["of"]} if personas["rank"] else None,
    }


def nearest_over(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return the personas nearest several runs' shifts: the mean cosine over runs, and from the lowest to the highest of them.

    A persona is beyond chance where it is in every run. `own_ranks` has the rank of the trained one in each. Runs too noisy to have any are
    left out.
    """
    measured = [run.facts for run in runs if run.facts and run.facts["personas"]["nearest"]]
    of_runs = [{(each["name"], each["kind"]): each for each in facts["personas"]["nearest"]} for facts in measured]
    if not measured:
        return {"nearest": [], "nearest_high": None, "own_ranks": None}
    highs = [facts["personas"]["high"] for facts in measured]
    cosines = {persona: [each[persona]["value"] for each in of_runs] for persona in of_runs[0]}
    nearest = sorted(cosines, key=lambda persona: -np.mean(cosines[persona]))[:SHOWN]
    ranks = [facts["personas"]["rank"] for facts in measured]
    return {
        "nearest": [
            {
                "name": name,
                "kind": kind,
                "value": float(np.mean(cosines[name, kind])),
                "low": min(cosines[name, kind]),
                "high": max(cosines[name, kind]),
                "found": all(_found(facts, name, kind) for facts in measured),
                "beyond_chance": all(each[name, kind]["low"] > high for each, high in zip(of_runs, highs, strict=True)),
            }
            for name, kind in nearest
        ],
        "nearest_high": float(np.mean(highs)),
        "own_ranks": {"ranks": ranks, "of": measured[0]["personas"]["of"]} if all(ranks) else None,
    }


def _found(facts: Mapping[str, Any], name: str, kind: str) -> bool:
    """Return whether a persona's direction was found in the model; roles have no test of their own."""
    return kind == "role" or name in facts["found"]


def specificity_of(results: Results) -> dict[str, Any] | None:
    """Return whether fine-tunes lie nearest the traits that they were trained on: mean ranks among all personas, and a permutation's p.

    None with fewer than four traits of the library trained, of which too few can be taken for each other.
    """
    ranks: dict[str, list[dict[str, int]]] = {}
    for run in results.runs:
        near = run.facts["personas"]["nearest"] if run.facts and run.entry["arm"] == "sft" else []
        if near and run.entry["trait"] in results.library:
            ranks.setdefault(run.entry["trait"], []).append(
                {each["name"]: i for i, each in enumerate(near, start=1) if each["kind"] == "trait"}
            )
    if len(ranks) < FEWEST_TRAITS:
        return None
    trained = list(ranks)
    means = np.array([[np.mean([of_run[name] for of_run in ranks[trait]]) for name in trained] for trait in trained])
    return {"traits": len(trained), **asdict(specificity(means, Null(seed_for(0, "specificity"), draws=SHUFFLES)))}

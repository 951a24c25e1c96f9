"""The finished results of a study, read back from disk, and their summary."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from data.errors import InputError
from data.library import NEUTRAL
from experiments.plan import Plan
from experiments.store import MANIFEST, Store, read_json, write_json
from probes.shift import cross_run_share
from probes.space import span
from probes.stats import FloatArray, crossed_interval, mean_interval

INDEX, SUMMARY, REPORT = "study.json", "summary.json", "report.html"
NEAREST = 5
RUNS_FOR_A_CLAIM = 3


@dataclass(frozen=True)
class RunResult:
    """One run's finished stages.

    Attributes:
        entry: its line in the study's index: arm, trait, seed, settings, stage ids, `missing`.
        facts: `measurement.json`; None for `base`.
        arrays: the mean shift [layers, d_model] and, with a trait, the per-question effects.
        answers: sample answers, one for each of `questions`.
        curve: training loss by step; empty if not trained.
    """

    entry: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    arrays: Mapping[str, FloatArray]
    answers: Sequence[str]
    curve: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Results:
    """A study's index with all that its report shows.

    Attributes:
        folder: `<runs-dir>/<study>`.
        index: `study.json`: the study, model, layer, questions and stage ids.
        chat: how the model takes a system prompt.
        space: `vectors` [traits, layers, d_model], `reliability`, `null_reliability`, `found` [traits, layers].
        base_answers: the base model's answers to `index["questions"]`.
        runs: in the study's order.
        manifests: stage id → manifest.
    """

    folder: Path
    index: Mapping[str, Any]
    chat: Mapping[str, str]
    space: Mapping[str, FloatArray]
    base_answers: Sequence[str]
    runs: Sequence[RunResult]
    manifests: Mapping[str, Mapping[str, Any]]

    @property
    def library(self) -> list[str]:
        """The names of the library's traits, in the order of `space`."""
        return list(self.index["library"])


def save_index(plan: Plan, store: Store) -> Path:
    """Write which finished stages answer a study, and return its folder."""
    folder = store.root / plan.study.name
    folder.mkdir(exist_ok=True)
    runs = [
        {
            "arm": planned.run.arm.arm,
            "trait": planned.trait,
            "adapter": planned.adapter,
            "seed": planned.run.seed,
            "settings": planned.run.settings,
            "own": planned.own,
            "measure": planned.measure.id if planned.measure else None,
            "answers": planned.answers.id,
            "training": planned.training.id if planned.training else None,
            "questions": [example.question for example in planned.questions],
            "missing": dict(planned.missing),
        }
        for planned in plan.runs
    ]
    index = {
        "study": _symbolic(plan),
        "model": plan.bench.ref.id,
        "dtype": plan.bench.dtype,
        "layer": plan.layer,
        "depth": plan.bench.depth,
        "library": plan.library,
        "questions": [example.question for example in plan.questions],
        "chat": plan.chat.id,
        "space": plan.space.id,
        "base_answers": plan.base_answers.id,
        "runs": runs,
    }
    write_json(folder / INDEX, index)
    return folder


def _symbolic(plan: Plan) -> dict[str, Any]:
    """Return the study with names and digests in place of this machine's paths."""
    study: dict[str, Any] = plan.study.model_dump(mode="json")
    names: dict[str, str] = dict(zip(plan.study.library, plan.library, strict=True))
    names |= {planned.run.arm.trait: planned.trait for planned in plan.runs if planned.run.arm.trait and planned.trait}
    arms = [arm | {"trait": names.get(arm["trait"], arm["trait"])} for arm in study["runs"]]
    arms = [arm | {"path": Path(arm["path"]).name} if "path" in arm else arm for arm in arms]
    return study | {"model": plan.bench.ref.id, "library": list(plan.library), "runs": arms}


def load_results(folder: Path) -> Results:
    """Read a study's finished stages.

    Raises:
        InputError: the folder is no study's, or a stage is missing or corrupt.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: holds no {INDEX}; give the folder of a study that was run, such as runs/quickstart")
    index = read_json(folder / INDEX)
    store = Store(folder.resolve().parent)
    try:
        used = {index[key] for key in ("chat", "space", "base_answers")}
        used |= {run[key] for run in index["runs"] for key in ("measure", "answers", "training")} - {None}
    except (KeyError, TypeError):
        raise InputError(f"{folder / INDEX}: is not the index of a study; run the study again") from None
    for stage_id in sorted(used):
        if not store.done(stage_id):
            raise InputError(f"{store.path(stage_id)}: not finished; run the study again")
    runs = []
    for entry in index["runs"]:
        measured = store.path(entry["measure"]) if entry["measure"] else None
        runs.append(
            RunResult(
                entry,
                read_json(measured / "measurement.json") if measured else None,
                load_file(measured / "arrays.safetensors") if measured else {},
                read_json(store.path(entry["answers"]) / "answers.json"),
                read_json(store.path(entry["training"]) / "training.json") if entry["training"] else [],
            )
        )
    return Results(
        folder,
        index,
        read_json(store.path(index["chat"]) / "chat.json"),
        load_file(store.path(index["space"]) / "space.safetensors"),
        read_json(store.path(index["base_answers"]) / "answers.json"),
        runs,
        {stage_id: read_json(store.path(stage_id) / MANIFEST) for stage_id in sorted(used)},
    )


def run_name(entry: Mapping[str, Any]) -> str:
    """Return what a run, or a group of runs that differ in their seed alone, is called."""
    settings = "".join(f" · {key.split('.')[-1]}={value}" for key, value in entry["settings"].items())
    if adapter := entry.get("adapter"):
        trait = f" · {entry['trait']}" if entry["trait"] else ""
        return f"{entry['arm']} {adapter.rpartition('@')[0]}{trait}{settings}"
    seed = f" · seed {entry['seed']}" if "seed" in entry else ""
    return f"{entry['arm']} {entry['trait'] or ''}".strip() + seed + settings


def summarise(results: Results) -> dict[str, Any]:
    """Return a study's answer for machines: what was not measured is null with a reason, never NaN."""
    layer, space = results.index["layer"], results.space
    directions = [
        {
            "trait": name,
            "reliability": float(space["reliability"][i, layer]),
            "null_reliability": float(space["null_reliability"][i, layer]),
            "found": bool(space["found"][i, layer] > 0.5),
        }
        for i, name in enumerate(results.library)
    ]
    groups = _groups(results)
    study = results.index["study"]
    return {
        "study": study["name"],
        **{key: study[key] for key in ("question", "expects", "refuted_by")},
        **{key: results.index[key] for key in ("model", "dtype", "layer", "depth")},
        **results.chat,
        "directions": directions,
        "runs": [_row(run, provisional=not _claimable(results, run)) for run in results.runs],
        "groups": groups,
    }


def _row(run: RunResult, provisional: bool) -> dict[str, Any]:
    row = {key: run.entry[key] for key in ("arm", "trait", "adapter", "seed", "settings")}
    keys = (
        "layer", "reference", "effect", "effect_base", "share", "share_full", "share_base", "share_null_mean", "share_null_high",
        "share_p", "share_effect", "share_effect_full", "coordinates", "nearest", "relative_norm", "verdict",
    )  # fmt: skip
    row |= dict.fromkeys(keys)
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
    row |= {"coordinates": shift["coordinates"], "relative_norm": shift["relative_norm"]}
    row["nearest"] = [{"name": name, "cosine": shift["coordinates"][name]} for name in shift["nearest"][:NEAREST]]
    for key, reference in (("effect", facts["reference"]), ("effect_base", "base")):
        measured = facts["references"][reference]["effect"]
        row[key] = {bound: measured[bound] for bound in ("value", "low", "high")} if measured else None
    if not referenced:
        row["why"] = row["missing"]["share"]
        return row
    row |= {"verdict": facts["verdict"], "why": facts["why"]}
    if own is None:
        row["missing"]["share"] = facts["why"]
        return row
    row |= {"share": own["share"], "share_effect": own["effect"], "share_p": own["p"]}
    row |= {"share_null_mean": own["null_mean"], "share_null_high": own["null_high"]}
    row |= {"share_full": full["share"], "share_effect_full": full["effect"]}
    if own["share"] is None:
        row["missing"]["share"] = own["why"]
    return row


def _alike(run: RunResult) -> list[Any]:
    """Return what runs that differ in their seed alone have in common."""
    return [run.entry[key] for key in ("arm", "trait", "adapter", "settings")]


def _claimable(results: Results, run: RunResult) -> bool:
    """Return whether enough independent runs stand behind a verdict."""
    # Neutral runs are read against one another in a circle, so that they are not independent.
    return run.entry["trait"] != NEUTRAL and sum(_alike(other) == _alike(run) for other in results.runs) >= RUNS_FOR_A_CLAIM


def _groups(results: Results) -> list[dict[str, Any]]:
    """Return what runs of several seeds say together: the run is the unit."""
    groups = []
    for _, members in itertools.groupby(results.runs, key=_alike):
        runs = [run for run in members if run.facts is not None]
        # Neutral runs, each read against the next, have mean shifts that sum to zero: over them nothing can be said.
        if len(runs) < 2 or runs[0].entry["trait"] == NEUTRAL:
            continue
        facts = [run.facts["references"][run.facts["reference"]]["texts"]["neutral"]["own_removed"] for run in runs if run.facts]
        shares = [each["share"]["value"] for each in facts if each and each["share"]]
        stars = [each["effect"]["value"] for each in facts if each and each["effect"]]
        entry = runs[0].entry
        effects = [run.arrays["effects"] for run in runs if "effects" in run.arrays]
        groups.append(
            {key: entry[key] for key in ("arm", "trait", "settings")}
            | {
                "runs": len(runs),
                "runs_past_the_gates": len(shares),
                "effect": crossed_interval(np.stack(effects)).to_json() if len(effects) >= 2 else None,
                "share": mean_interval(shares).to_json() if len(shares) >= 2 else None,
                "share_effect": mean_interval(stars).to_json() if len(stars) >= 2 else None,
                "share_across_runs": _common_share(results, runs),
                "verdicts": [run.facts["verdict"] for run in runs if run.facts],
            }
        )
    return groups


def _common_share(results: Results, runs: Sequence[RunResult]) -> float | None:
    """Return the share that runs have in common, in the space without their own direction."""
    layer = runs[0].facts["layer"] if runs[0].facts else results.index["layer"]
    found = results.space["found"][:, layer] > 0.5
    members = [i for i, name in enumerate(results.library) if found[i] and name != runs[0].entry["own"]]
    if not members:
        return None
    means = np.stack([run.arrays["shift"][layer] for run in runs]).astype(np.float64)
    return cross_run_share(means, span(results.space["vectors"][members, layer].astype(np.float64)))

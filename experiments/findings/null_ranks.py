"""Where a run's share stands among others: N2, spaces of instructions; N4, other fine-tunes; N5, spaces of other personas."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wellworn.data.catalog import NEUTRAL, control_names
from wellworn.data.schema import seed_for
from wellworn.experiments.findings.novelty import ALIKE, own_removed_basis
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.stages.instruction_null import NOT_ASKED, among_instructions
from wellworn.probes.geometry.nulls import Null, null_shares, rank_among
from wellworn.probes.geometry.shift import share_inside


def no_character(entry: Mapping[str, Any]) -> bool:
    """Return whether a run is known to be of no character: a control, a neutral fine-tune, or random weights."""
    return entry["arm"] == "random" or entry["trait"] in (NEUTRAL, *control_names())


def own_removed(run: RunResult) -> Mapping[str, Any] | None:
    """Return a run's headline reading: plain answers, against its headline reference, without its own direction."""
    if run.facts is None or "share" in run.entry["missing"]:
        return None
    found: Mapping[str, Any] | None = run.facts["references"][run.facts["reference"]]["texts"]["neutral"]["own_removed"]
    return found


def alike(run: RunResult) -> list[Any]:
    """Return what runs that differ in their seed alone have in common."""
    return [run.entry[key] for key in ALIKE]


def among_fine_tunes(results: Results, run: RunResult) -> dict[str, Any] | None:
    """Return the null N4: where a run's share stands among those of runs of no character in the same space.

    Seeds of one fine-tune are alike, so that the others are not independent and there is no p. None for a run without a share, or
    without others.
    """
    reading, basis = own_removed(run), own_removed_basis(run)
    if reading is None or reading["share"] is None or basis is None or run.facts is None or run.entry["arm"] != "sft":
        return None
    others = [
        ((other.entry["arm"], other.entry["trait"]), share_inside(other.arrays["shifts"].astype(np.float64), basis))
        for other in results.runs
        if no_character(other.entry)
        and alike(other) != alike(run)
        and other.entry["arm"] in ("sft", "random")
        and other.entry["settings"] == run.entry["settings"]
        and own_removed(other) is not None
        # A shift from the base holds what any fine-tuning does as well.
        and other.facts is not None
        and other.facts["reference"] == run.facts["reference"]
    ]
    clear = [(kind, share.estimate.value) for kind, share in others if share.why is None]
    if not clear:
        return None
    rank = rank_among(reading["share"]["value"], [value for _, value in clear])
    return {"rank": rank.rank, "others": rank.others, "kinds": len({kind for kind, _ in clear})}


def in_spaces_of_instructions(run: RunResult, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the null N2: how many spaces of instructions hold as much of a run's shift as the persona space does."""
    why = row["missing"].get("share") or (run.instructions["why"] if run.instructions else NOT_ASKED)
    if why or run.instructions is None:
        return {"among_instructions": None, "missing": row["missing"] | {"among_instructions": why}}
    return {"among_instructions": among_instructions(row["share"]["value"], run.instructions)}


def among_roles(results: Results, run: RunResult) -> dict[str, Any] | None:
    """Return the null N5: where a run's share stands among those of random roles, as many as the directions of its own space.

    A count and no p: subsets have roles in common. None for a run without a share, a study that names no roles, or a space that is made of
    roles itself.
    """
    reading = own_removed(run)
    if reading is None or reading["share"] is None or run.dictionary is None or results.index["study"].get("roles"):
        return None
    roles, count = run.dictionary["directions"].astype(np.float64), reading["directions"]
    if count >= len(roles):
        return None
    subsets = Null(seed_for(0, "roles")).subsets(len(roles), count)
    shares = null_shares(run.arrays["shifts"].astype(np.float64), roles[subsets])
    rank = rank_among(reading["share"]["value"], shares)
    return {
        "mean": float(shares.mean()),
        "high": float(np.quantile(shares, 0.95)),
        "at_or_above": rank.at_least,
        "draws": rank.others,
        "roles": len(roles),
        "directions": count,
    }

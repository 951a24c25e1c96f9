"""The rank of a run's share in null distributions: N2, spaces of instructions; N4, other fine-tunes; N5, spaces of other personas."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wellworn.data.catalog import NEUTRAL, control_names
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.novelty import own_removed_basis
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.stages.instruction_null import NOT_ASKED
from wellworn.experiments.stages.measurement import ShareInSpace
from wellworn.probes.geometry.nulls import Null, null_shares, rank_among
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.statistics.intervals import FloatArray


class AmongFineTunes(Record):
    """Null N4: the rank of a run's share among the shares of non-persona fine-tunes in the same space.

    Attributes:
        rank: from 1, the largest.
        others: the number of other fine-tunes.
        kinds: the number of their kinds.
    """

    rank: int
    others: int
    kinds: int


class _AmongSpaces(Record):
    """A share compared with the shares of other spaces.

    Attributes:
        mean: the mean of their shares.
        high: their 95 % quantile.
        at_or_above: the number of draws with at least the run's share.
        draws: the number of draws.
    """

    mean: float
    high: float
    at_or_above: int
    draws: int


class AmongRoles(_AmongSpaces):
    """Null N5: a share compared with those of spaces of random roles.

    Attributes:
        roles: the number of roles.
        directions: the number of directions in a draw.
    """

    roles: int
    directions: int


class AmongInstructions(_AmongSpaces):
    """Null N2: a share compared with those of spaces of non-persona instructions.

    Attributes:
        share: the run's share in the persona space whose directions are made of as many contrast pairs as theirs.
        pairs: the number of these pairs.
        asked: the number of instructions.
        found: the number of instructions with a reliable direction.
        directions: the number of directions in a draw.
    """

    share: float
    pairs: int
    asked: int
    found: int
    directions: int


def is_non_persona(arm: str, trait: str | None) -> bool:
    """Return whether a run is known not to be a persona: a control, a neutral fine-tune, or random weights."""
    return arm == "random" or trait in (NEUTRAL, *control_names())


def own_removed(run: RunResult) -> ShareInSpace | None:
    """Return a run's headline share: on plain answers, against its headline reference, without its own direction."""
    return None if run.facts is None or "share" in run.entry.missing else run.facts.plain.own_removed


def among_fine_tunes(results: Results, run: RunResult) -> AmongFineTunes | None:
    """Return the null N4: the rank of a run's share among those of non-persona runs in the same space.

    Seeds of one fine-tune are similar, so the others are not independent and there is no p value. None for a run without a share, or
    without others.
    """
    reading, basis = own_removed(run), own_removed_basis(run)
    if reading is None or reading.share is None or basis is None or run.facts is None or run.entry.arm != "sft":
        return None
    others = [
        ((other.entry.arm, other.entry.trait), share_inside(other.arrays["shifts"].astype(np.float64), basis))
        for other in other_fine_tunes(results, run)
    ]
    clear = [(kind, share.estimate.value) for kind, share in others if share.why is None]
    if not clear:
        return None
    rank = rank_among(reading.share.value, [value for _, value in clear])
    return AmongFineTunes(rank=rank.rank, others=rank.others, kinds=len({kind for kind, _ in clear}))


def other_fine_tunes(results: Results, run: RunResult) -> list[RunResult]:
    """Return the non-persona runs of other kinds that were trained and read like a run."""
    return [
        other
        for other in results.runs
        if is_non_persona(other.entry.arm, other.entry.trait)
        and other.entry.group != run.entry.group
        and other.entry.arm in ("sft", "random")
        and other.entry.settings == run.entry.settings
        and own_removed(other) is not None
        # A shift from the base also contains the common effect of all fine-tuning.
        and other.facts is not None
        and run.facts is not None
        and other.facts.reference == run.facts.reference
    ]


def among_instructions(run: RunResult, no_share: str | None) -> tuple[AmongInstructions | None, str | None]:
    """Return the null N2: how many spaces of instructions hold as much of a run's shift as the persona space; or why there is none.

    A count and not a p value, as subsets have instructions in common.

    Args:
        run: the run.
        no_share: why it has no share.
    """
    drawn = run.instructions
    if why := no_share or (drawn.why if drawn else NOT_ASKED):
        return None, why
    assert drawn is not None  # otherwise there is a reason
    assert drawn.share is not None
    found = AmongInstructions(
        **_among(drawn.share, drawn.shares),
        share=drawn.share,
        pairs=drawn.pairs,
        asked=len(drawn.asked),
        found=len(drawn.found),
        directions=drawn.directions,
    )
    return found, None


def among_roles(results: Results, run: RunResult) -> AmongRoles | None:
    """Return the null N5: a run's share compared with those of spaces of random roles, with as many directions as its own space.

    A count and not a p value, as subsets have roles in common. None for a run without a share, a study without a dictionary of roles, or
    a space that is itself made of roles.
    """
    reading = own_removed(run)
    if reading is None or reading.share is None or run.dictionary is None or results.index.study.get("roles"):
        return None
    roles, count = run.dictionary["directions"].astype(np.float64), reading.directions
    if count >= len(roles):
        return None
    subsets = Null(seed_for(0, "roles")).subsets(len(roles), count)
    shares = null_shares(run.arrays["shifts"].astype(np.float64), roles[subsets])
    return AmongRoles(**_among(reading.share.value, shares), roles=len(roles), directions=count)


def _among(share: float, drawn: Sequence[float] | FloatArray) -> dict[str, Any]:
    """Return the fields that all nulls of other spaces have in common."""
    rank = rank_among(share, drawn)
    return {"mean": float(np.mean(drawn)), "high": float(np.quantile(drawn, 0.95)), "at_or_above": rank.at_least, "draws": rank.others}

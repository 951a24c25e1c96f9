"""How often non-persona runs are called persona-mediated."""

from collections.abc import Sequence

from wellworn.data.catalog import NEUTRAL
from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.null_ranks import is_non_persona
from wellworn.experiments.findings.run_rows import RunRow
from wellworn.experiments.findings.verdict import ALONG, NO_CHANGE, NOISY, share_above_chance
from wellworn.probes.statistics.intervals import proportion_bound

# What each count is of, in words.
COUNTED = {
    "existing": "were said to change mostly along existing personas",
    "along": "were found to change along existing persona directions",
    "above_chance": "had a share of their shift above chance",
}


class Counted(Record):
    """The number of false verdicts, with the upper 95 % bound of their rate (Clopper and Pearson).

    Attributes:
        count: number of runs with such a verdict.
        runs: number of runs that were judged.
        bound: upper bound of the rate for more runs of these kinds.
        count_kinds: number of kinds with such a run.
        kinds: number of kinds.
        bound_kinds: upper bound of the rate for other kinds.
    """

    count: int
    runs: int
    bound: float
    count_kinds: int
    kinds: int
    bound_kinds: float


class FalseVerdicts(Record):
    """The statements on non-persona runs (controls, random weights), and the verdicts of those that pass the gates.

    Attributes:
        existing: statements that most of the change goes through personas, among runs with a change of which it was read what all personas
            carry.
        along: verdicts *along existing persona directions*, among runs with measured mediation.
        above_chance: shares above chance, among all these runs.
    """

    existing: Counted | None
    along: Counted | None
    above_chance: Counted | None


def false_verdicts(rows: Sequence[RunRow]) -> FalseVerdicts | None:
    """Return how many non-persona runs are called persona-mediated, with the bounds of Clopper and Pearson; None without such runs.

    Of verdicts, only runs that pass the gates count. Seeds of one kind of change are similar, so runs bound the rate for more runs of
    these kinds. Kinds bound the rate for other kinds; a kind counts if any of its runs does.
    """
    # Neutral runs, each compared with the next, are not cases of their own: what one has, another lacks.
    rows = [row for row in rows if is_non_persona(row.arm, row.trait) and row.trait != NEUTRAL]
    # A control of which it was not read what all personas carry is not a case.
    stated = [
        (_kind(row), row.statement.calls_persona) for row in rows if row.statement and row.statement.decided and row.statement.personas
    ]
    passed = [row for row in rows if row.verdict not in (None, NOISY, NO_CHANGE)]
    if not passed and not stated:
        return None
    along = [(_kind(row), row.verdict == ALONG) for row in passed if row.mediated]
    # A run that passed the gates has a share and a p value.
    above = [
        (_kind(row), share_above_chance(row.share_p_adjusted, row.share_effect))
        for row in passed
        if row.share_p_adjusted is not None and row.share_effect is not None
    ]
    return FalseVerdicts(existing=_count(stated), along=_count(along), above_chance=_count(above))


def _kind(row: RunRow) -> str:
    """Return the kind of a non-persona run."""
    return str(row.arm if row.arm == "random" else row.trait)


def _count(said: Sequence[tuple[str, bool]]) -> Counted | None:
    if not said:
        return None
    runs = [each for _, each in said]
    kinds = [any(each for name, each in said if name == kind) for kind in dict.fromkeys(name for name, _ in said)]
    return Counted(
        count=sum(runs),
        runs=len(runs),
        bound=proportion_bound(sum(runs), len(runs)),
        count_kinds=sum(kinds),
        kinds=len(kinds),
        bound_kinds=proportion_bound(sum(kinds), len(kinds)),
    )

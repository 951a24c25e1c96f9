"""How well findings discriminate changes along existing personas from new ones, over runs whose origin is known.

Each finding gives every run a number that should be higher for existing personas. AUC is how often an existing run has the higher one of
two runs of either kind; ties count half. Runs of one taught model are no independent cases, so its interval draws *families*: all runs of
a model at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.pathways import Pathways
from wellworn.experiments.findings.run_rows import RunRow
from wellworn.experiments.findings.statements import STATEMENTS, Statement
from wellworn.experiments.findings.summary import Summary
from wellworn.probes.mediation.pathways import OTHERS, OWN, REST
from wellworn.probes.scoring.scores import roc_auc
from wellworn.probes.statistics.intervals import Estimate, FloatArray, decimal

EXISTING, NEW = "existing", "new"
DRAWS = 2000
# The part of a later fine-tune's effect that a persona's name must reach by itself in the model that was taught it.
LEAST_EVOKED = 0.5
# A discrimination needs two families, each with a run of known origin.
FEWEST_FAMILIES = 2

# Finding → its meaning. The last three are the headline that pathways replace.
FINDINGS = {
    "kappa": "κ: own direction between chance (0) and best (1)",
    "own": "share through the own direction",
    "own_beyond_chance": "the same less what chance directions carry",
    "own_base": "share through the own direction, relative to the base",
    "not_outside": "share through own direction and other personas",
    "share_effect": "F*, share of the shift beyond chance",
    "share_effect_full": "F* with the own direction in the space",
    "one_less_p": "1 − p of F against chance",
}


class KnownRun(Record):
    """One run of known origin.

    Attributes:
        family: the persona that its model was taught; the study's name where it was taught none.
        strength: the part of the taught update that its model was given.
        trait: what it was trained on.
        seed: random seed of the run.
        origin: `existing` or `new`.
        prompted: where it was trained on the persona that its model was taught, the effect of the name; in nats per token.
        effect: TE, in nats per token.
        effect_base: the same relative to the base.
        own: the share through the own direction.
        chance: the mean share through chance directions.
        p: how often a chance direction carries as much.
        own_base: the share through the own direction, relative to the base.
        kappa: where own lies between chance (0) and best (1).
        why: why κ is not defined, in words.
        statement: what may be said of it.
        numbers: finding → the run's number; null where it is undecided.
    """

    family: str
    strength: float
    trait: str | None
    seed: int
    origin: str
    prompted: Interval | None
    effect: Interval
    effect_base: Interval | None
    own: Interval | None
    chance: float | None
    p: float | None
    own_base: Interval | None
    kappa: Interval | None
    why: str | None
    statement: Statement
    numbers: Mapping[str, float | None]

    @property
    def model(self) -> str:
        """The name of its model on screen."""
        return self.family if self.strength == 1 else f"{self.family} × {self.strength:g}"


class Discrimination(Record):
    """How well one finding discriminates the two origins.

    Attributes:
        finding: its name.
        strength: the part of their personas that the compared models were given.
        auc: over all runs; an undecided run has the middle rank.
        interval: over families.
        undecided: number of runs without a number.
        families: number of families with runs of both origins.
        in_order: families whose existing runs all have higher numbers than their new ones.
        in_order_low: lower bound of that fraction (Clopper–Pearson, 95 %).
    """

    finding: str
    strength: float
    auc: float
    interval: tuple[float, float]
    undecided: int
    families: int
    in_order: int
    in_order_low: float

    @property
    def words(self) -> str:
        """What is compared, in words."""
        return FINDINGS[self.finding] + (f"; personas × {self.strength:g}" if self.strength < 1 else "")


class KnownOrigins(Record):
    """The runs of known origin of a study's variants, and how well each finding discriminates them.

    Attributes:
        runs: in the study's order.
        left_out: variant → why its runs do not count, in words.
        findings: one for each number that any run has.
        statements: statement → origin → number of runs.
    """

    runs: Sequence[KnownRun]
    left_out: Mapping[str, str]
    findings: Sequence[Discrimination]
    statements: Mapping[str, Mapping[str, int]]


def known_origins(summaries: Sequence[Summary]) -> KnownOrigins | None:
    """Compare findings with what was known beforehand; None where nothing was known of runs of both kinds in two families.

    A variant whose model did not learn its persona is left out, by that rule alone.
    """
    left_out = {summary.study: why for summary in summaries if (why := why_left_out(summary))}
    kept = [summary for summary in summaries if summary.study not in left_out]
    runs = [
        _known_run(summary, row, row.pathways, row.statement)
        for summary in kept
        for row in summary.runs
        if row.origin and row.pathways and row.statement
    ]
    families = {(run.family, run.origin) for run in runs}
    if len({family for family, _ in families}) < FEWEST_FAMILIES or len({origin for _, origin in families}) < 2:
        return None
    said = {name: {origin: _count(runs, name, origin) for origin in (EXISTING, NEW)} for name in STATEMENTS}
    findings = []
    # Strong personas among weak ones would be discriminated by their strength.
    for strength in sorted({run.strength for run in runs}, reverse=True):
        alike = [run for run in runs if run.strength == strength]
        if len({run.origin for run in alike}) == 2:
            findings += [discriminate(alike, finding) for finding in FINDINGS if any(run.numbers[finding] is not None for run in alike)]
    return KnownOrigins(
        runs=runs, left_out=left_out, findings=findings, statements={name: each for name, each in said.items() if any(each.values())}
    )


def why_left_out(summary: Summary) -> str | None:
    """Return why a model does not count as having its persona; None where it does, or was taught none."""
    check = summary.knock_in
    if check is None or check.why:
        return check.why if check else None
    later = [next(iter(row.pathways.values())) for row in summary.runs if row.pathways and row.trait == check.trait]
    effect = max((found.headline.effect.value for found in later), default=0.0)
    # A model that was given a part of it is to have a part of it.
    least = LEAST_EVOKED * check.strength
    if check.taught.value < least * effect:
        name, tuned = decimal(check.taught.value, signed=True), decimal(effect, signed=True)
        return f"its name does {name}, less than {least:g} of what the later fine-tune does ({tuned})"
    return None


def _count(runs: Sequence[KnownRun], statement: str, origin: str) -> int:
    return sum((run.statement.name, run.origin) == (statement, origin) for run in runs)


def _known_run(summary: Summary, row: RunRow, pathways: Mapping[str, Pathways], statement: Statement) -> KnownRun:
    headline, relative_to_base = next(iter(pathways.values())).headline, pathways.get("base")
    base = relative_to_base.headline if relative_to_base else None
    shares, before = headline.shares, base.shares if base else {}
    chance = headline.chance_own
    # Without an own direction nothing can go through it; without a change, or with κ undefined, nothing is decided.
    none = 0.0 if headline.why is None and OWN not in shares else None
    own = shares[OWN].value if OWN in shares else none
    knock_in = summary.knock_in
    prompted = knock_in.taught if knock_in and knock_in.trait == row.trait else None
    numbers = {
        "kappa": headline.kappa.value if headline.kappa else none,
        "own": own,
        "own_beyond_chance": shares[OWN].value - chance.mean if chance and OWN in shares else none,
        "own_base": before[OWN].value if OWN in before else 0.0 if base and base.why is None else None,
        "not_outside": sum(shares[part].value for part in (OWN, OTHERS) if part in shares) if REST in shares else None,
        "share_effect": row.share_effect.value if row.share_effect else None,
        "share_effect_full": row.share_effect_full.value if row.share_effect_full else None,
        "one_less_p": 1 - row.share_p if row.share_p is not None else None,
    }
    return KnownRun(
        family=summary.knock_in.trait if summary.knock_in else summary.study,
        strength=summary.knock_in.strength if summary.knock_in else 1.0,
        trait=row.trait,
        seed=row.seed,
        origin=str(row.origin),
        prompted=prompted,
        effect=headline.effect,
        effect_base=base.effect if base else None,
        own=shares.get(OWN),
        chance=chance.mean if chance else None,
        p=chance.p if chance else None,
        own_base=before.get(OWN),
        kappa=headline.kappa,
        why=headline.kappa_why,
        statement=statement,
        numbers=numbers,
    )


def discriminate(runs: Sequence[KnownRun], finding: str) -> Discrimination:
    """Return how well a number of runs discriminates the two origins.

    Args:
        runs: of both origins, whose models were given the same part of their personas.
        finding: which of their numbers.
    """
    given = [run.numbers[finding] for run in runs]
    known = [number for number in given if number is not None]
    middle = float(np.median(known)) if known else 0.0
    numbers = np.array([middle if number is None else number for number in given])
    existing = np.array([run.origin == EXISTING for run in runs])
    families = np.array([run.family for run in runs])
    names = list(dict.fromkeys(families))
    both = [name for name in names if len(set(existing[families == name])) == 2]
    in_order = sum(_in_order(numbers[families == name], existing[families == name]) for name in both)
    low = float(binomtest(in_order, len(both)).proportion_ci(method="exact").low) if both else 0.0
    return Discrimination(
        finding=finding,
        strength=runs[0].strength,
        auc=roc_auc(numbers[existing], numbers[~existing]),
        interval=_over_families(numbers, existing, [np.flatnonzero(families == name) for name in names], finding),
        undecided=given.count(None),
        families=len(both),
        in_order=in_order,
        in_order_low=low,
    )


def _in_order(numbers: FloatArray, existing: np.ndarray) -> bool:
    return bool(numbers[existing].min() > numbers[~existing].max())


def _over_families(numbers: FloatArray, existing: np.ndarray, members: Sequence[np.ndarray], finding: str) -> tuple[float, float]:
    """Return the 95 % percentile interval of AUC over draws of families, with replacement."""
    rng = np.random.default_rng(seed_for(0, "known origins", finding))
    families = len(members)
    drawn = rng.integers(families, size=(DRAWS, families))
    times_BF = (drawn[:, :, None] == np.arange(families)).sum(1)
    # A draw's AUC is a sum over pairs of families, of the pairs of runs in order, each counted as often as the two were drawn.
    of_each = [(numbers[rows][existing[rows]], numbers[rows][~existing[rows]]) for rows in members]
    ordered_FF = np.array([[(np.sign(mine[:, None] - theirs) + 1).sum() / 2 for _, theirs in of_each] for mine, _ in of_each])
    pairs_FF = np.array([[len(mine) * len(theirs) for _, theirs in of_each] for mine, _ in of_each])
    ordered_B, pairs_B = (np.einsum("bf,fg,bg->b", times_BF, each, times_BF) for each in (ordered_FF, pairs_FF))
    low, high = np.quantile(ordered_B[pairs_B > 0] / pairs_B[pairs_B > 0], [0.025, 0.975])
    return float(low), float(high)


def as_estimate(found: Discrimination) -> Estimate:
    """Return AUC with its interval, to print."""
    return Estimate(found.auc, *found.interval)

"""Where a change goes: the shares of pathways of one run, or of runs that differ in their seed alone, from stored outcomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.outcome_changes import CONTRAST, PLAIN, TRAIT, OutcomeChange
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.mediation_arms import parts_named
from wellworn.experiments.stages.pathways import ALONE, AT, CHANCE_OTHERS, CHANCE_OWN, FIRST, UNTIL, PathwayFacts, PathwayOutcomes
from wellworn.probes.mediation.pathways import OTHERS, OWN, REST, Floor, stack
from wellworn.probes.statistics.intervals import PooledRuns, pool_runs, question_interval, ratio_interval

T = TypeVar("T")


class Chance(Record):
    """The share that chance spaces mediate.

    Attributes:
        mean: over draws.
        low: 5 % quantile of the draws.
        high: 95 % quantile.
        draws: their number.
        p: how often a draw is as large as the real space, on the same questions.
    """

    mean: float
    low: float
    high: float
    draws: int
    p: float


class Window(Record):
    """The mediated shares where some of the layers are set, on the questions of chance spaces.

    Attributes:
        layers: the first and the last of them; all adapted layers between are set too.
        shares: nested space → its mediated share.
    """

    layers: tuple[int, int]
    shares: Mapping[str, float]


class OutcomePathways(Record):
    """Where the change of one outcome goes.

    Attributes:
        effect: TE, the change of the outcome, in nats per token.
        why: why there are no shares, in words.
        shares: `own`, `others` (given own), `roles` (given both), `outside` and `above`, which sum to one.
        inside: the share through the own direction and other personas together; null without either.
        others_first: `others` alone, and `own` given others; null where one of the two is missing.
        first_token: the share of the first token's state alone.
        chance_own: the share of chance directions in place of the own one.
        chance_others: the share that chance directions add to the own one, in place of the others.
        best: number of dimensions → the share of the change's own best directions, fitted on other text. `specific` is the direction of its
            mean on answers with the trait less its mean on plain ones.
        ceiling: the key in `best` of the single direction of the change itself that carries more of this outcome; null without one.
        kappa: κ = (M(own) − chance) / (M(ceiling) − chance).
        kappa_why: why κ is not defined, in words.
        room: M(ceiling) − chance, as a share of the effect.
    """

    effect: Interval
    why: str | None
    shares: Mapping[str, Interval]
    inside: Interval | None
    others_first: Mapping[str, Interval] | None
    first_token: Interval | None
    chance_own: Chance | None
    chance_others: Chance | None
    best: Mapping[str, Interval]
    ceiling: str | None
    kappa: Interval | None
    kappa_why: str | None
    room: float | None


class Pathways(Record):
    """Where a change goes, against one reference.

    Attributes:
        reference: `neutral` or `base`.
        layers: the layers that are set together.
        adapted_above: adapted layers above the last of them.
        dimensions: of each nested space, in order.
        sampled_questions: number of questions on which chance directions and the profile were read.
        trait: of log p(y⁺), answers that show the trait. They also become likelier by what any written answers teach.
        plain: of log p(y⁻), plain answers to the same questions.
        contrast: of log p(y⁺) − log p(y⁻), what is specific to the trait; the headline.
        profile: the headline's shares where only layers up to some depth are set, shallowest first, and at last all of them.
        last_layer: the shares where the last layer alone is set.
    """

    reference: str
    layers: Sequence[int]
    adapted_above: Sequence[int]
    dimensions: Sequence[int]
    sampled_questions: int
    trait: OutcomePathways
    plain: OutcomePathways
    contrast: OutcomePathways
    profile: Sequence[Window]
    last_layer: Window | None

    @property
    def headline(self) -> OutcomePathways:
        """The outcome that statements are made of."""
        return self.contrast

    @property
    def along_own(self) -> tuple[float, float] | None:
        """What answers with the trait, and plain ones, change by along the own direction, in nats per token; None where it is not known."""
        if any(OWN not in outcome.shares for outcome in (self.trait, self.plain)):
            return None
        trait, plain = (each.shares[OWN].value * each.effect.value for each in (self.trait, self.plain))
        return trait, plain


class BetweenRuns(Record):
    """How much a headline's findings vary between the runs of a group, pooled over the study's groups for the intervals of groups.

    Attributes:
        share: of the own direction's share; null with fewer than two groups that have one.
        kappa: of κ; null with fewer than two groups with room for one.
    """

    share: PooledRuns | None = None
    kappa: PooledRuns | None = None

    @property
    def alike(self) -> "BetweenRuns":
        """What is used: of those groups that vary alike, else each has its own variance."""
        return BetweenRuns(**{name: each if each and each.alike else None for name, each in dict(self).items()})


ALONE_EACH = BetweenRuns()


def pathways_of(runs: Sequence[RunResult], between_runs: BetweenRuns = ALONE_EACH) -> Mapping[str, Pathways] | None:
    """Return where a change goes against each reference, the headline's first; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
        between_runs: how much findings vary between runs, for the intervals of the headline's.
    """
    measured = _measured(runs)
    headline = next(iter(measured), None)
    return {name: _pathways(name, each, between_runs if name == headline else ALONE_EACH) for name, each in measured.items()} or None


def pool_groups(groups: Sequence[Sequence[RunResult]]) -> BetweenRuns:
    """Return how much the headline's share and κ vary between the runs of a group, over the groups that have them."""
    changes = [OutcomeChange.of(CONTRAST, next(iter(measured.values()))) for runs in groups if (measured := _measured(runs))]
    return BetweenRuns(
        share=pool_runs([(change.through(OWN), change.effect) for change in changes if OWN in change.facts.parts and not change.why]),
        kappa=pool_runs([parts for change in changes if (parts := change.above_floor())]),
    )


def _measured(runs: Sequence[RunResult]) -> dict[str, list[PathwayOutcomes]]:
    return in_all_runs([run.pathways for run in runs], lambda one, other: _comparable(one.facts, other.facts))


def in_all_runs(found: Sequence[Mapping[str, T]], alike: Callable[[T, T], bool]) -> dict[str, list[T]]:
    """Return what was measured against each reference in all of some runs, where it can be taken together; references in the first's order.

    Args:
        found: of each run, reference → what was measured.
        alike: whether two runs patched the same things.
    """
    if not found:
        return {}
    first, *others = found
    measured = {name: [first[name], *(each[name] for each in others if name in each)] for name in first}
    return {name: each for name, each in measured.items() if len(each) == len(found) and all(alike(one, each[0]) for one in each)}


def _comparable(one: PathwayFacts, other: PathwayFacts) -> bool:
    return all(getattr(one, field) == getattr(other, field) for field in ("interventions", "further", "sampled", "questions", "layers"))


def _pathways(reference: str, measured: Sequence[PathwayOutcomes], between_runs: BetweenRuns) -> Pathways:
    facts = measured[0].facts
    changes = {kind: OutcomeChange.of(kind, measured) for kind in (TRAIT, PLAIN, CONTRAST)}
    headline = changes[CONTRAST]
    profiled = bool(facts.sampled) and headline.few is not None and headline.why is None
    return Pathways(
        reference=reference,
        layers=facts.layers,
        adapted_above=[layer for layer in facts.adapted if layer > facts.layers[-1]],
        dimensions=facts.dimensions,
        sampled_questions=len(facts.questions),
        trait=_outcome(changes[TRAIT]),
        plain=_outcome(changes[PLAIN]),
        contrast=_outcome(headline, between_runs),
        profile=_windows(headline) if profiled else [],
        last_layer=_window(headline, AT) if profiled else None,
    )


def _outcome(change: OutcomeChange, between_runs: BetweenRuns = ALONE_EACH) -> OutcomePathways:
    effect = question_interval(change.effect)
    if change.why:
        nothing = dict.fromkeys(("inside", "others_first", "first_token", "chance_own", "chance_others", "ceiling", "kappa", "room"))
        return OutcomePathways(effect=effect, why=change.why, shares={}, best={}, kappa_why=change.why, **nothing)
    parts, parsed = change.facts.parts, change.whole.parts
    nested = {name: change.through(name) for name in parts}
    both = next((name for name in (OTHERS, OWN) if name in nested), None)
    others_first = None
    if ALONE in parsed and OWN in nested and OTHERS in nested:
        given = ratio_interval(nested[OTHERS] - change.through(ALONE), change.effect)
        others_first = {OTHERS: change.share(ALONE), OWN: given}
    scaled = change.scaled(between_runs.kappa)
    return OutcomePathways(
        effect=effect,
        why=None,
        shares=stack(change.effect, nested | {REST: change.through(REST)}, between_runs.share),
        inside=change.share(both) if both else None,
        others_first=others_first,
        first_token=change.share(FIRST) if FIRST in parsed else None,
        chance_own=chance_record(change.chance(CHANCE_OWN)) if OWN in parts else None,
        chance_others=chance_record(change.chance(CHANCE_OTHERS, given=OWN if OWN in parts else None)) if OTHERS in parts else None,
        best={key: change.share(part) for key, part in change.best.items()},
        ceiling=change.ceiling,
        kappa=scaled.value if scaled else None,
        kappa_why=scaled.why if scaled else change.why_no_kappa(),
        room=scaled.room if scaled else None,
    )


def chance_record(found: Floor | None) -> Chance | None:
    """Return the numbers of a floor, if there is one."""
    return Chance(mean=found.mean, low=found.low, high=found.high, draws=found.draws, p=found.p) if found else None


def _windows(change: OutcomeChange) -> list[Window]:
    """Return the shares up to each depth; those of all layers are the nested spaces' own."""
    facts = change.facts
    depths = sorted({int(name[len(UNTIL) :].split(".")[0]) for name in parts_named(facts.sampled, UNTIL)})
    found = [_window(change, f"{UNTIL}{depth}", depth) for depth in depths]
    whole = Window(layers=(facts.layers[0], facts.layers[-1]), shares=_shares(change, ""))
    return [*(each for each in found if each), whole]


def _window(change: OutcomeChange, kind: str, last: int | None = None) -> Window | None:
    """Return the shares in one window of layers: up to `last`, or the last layer alone; None where that was not read."""
    facts = change.facts
    window = f"{kind}{facts.layers[-1]}" if last is None else kind
    if change.few is None or f"{window}.{REST}" not in change.few.parts:
        return None
    bounds = (facts.layers[-1],) * 2 if last is None else (facts.layers[0], last)
    return Window(layers=bounds, shares=_shares(change, f"{window}."))


def _shares(change: OutcomeChange, window: str) -> dict[str, float]:
    assert change.few is not None  # where windows are read
    total = float(change.few.effect.mean())
    return {part: float(change.through(f"{window}{part}", few=True).mean()) / total for part in (*change.facts.parts, REST)}

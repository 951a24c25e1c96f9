"""Where a change goes: the shares of pathways of one run, or of runs that differ in their seed alone, from stored outcomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_part, parts_named
from wellworn.experiments.stages.pathways import ALONE, AT, BEST, CHANCE_OTHERS, CHANCE_OWN, FIRST, UNTIL, PathwayFacts, PathwayOutcomes
from wellworn.probes.mediation.pathways import OTHERS, OWN, REST, Floor, above_floor, floor, scaled_share, stack
from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS, Outcomes, is_within_noise
from wellworn.probes.statistics.intervals import (
    Estimate,
    FloatArray,
    PooledRuns,
    crossed_interval,
    mean_interval,
    pool_runs,
    ratio_interval,
    standard_error,
)

T = TypeVar("T")
# The effect, what goes through the own direction and through the best one, the floor, and the places of its questions.
_Scale = tuple[FloatArray, FloatArray, FloatArray, Floor, Sequence[int]]
TRAIT, PLAIN, CONTRAST = "trait", "plain", "contrast"


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
        first_token: the share of the first token's state alone; null for outcomes other than the headline's.
    """

    effect: Interval
    why: str | None
    shares: Mapping[str, Interval]
    inside: Interval | None
    others_first: Mapping[str, Interval] | None
    first_token: Interval | None


class Pathways(Record):
    """Where a change goes, against one reference.

    Attributes:
        reference: `neutral` or `base`.
        layers: the layers that are set together.
        adapted_above: adapted layers above the last of them.
        dimensions: of each nested space, in order.
        sampled_questions: number of questions on which chance directions and the profile were read.
        trait: of log p(y⁺), answers that show the trait; the headline.
        plain: of log p(y⁻), plain answers.
        contrast: of log p(y⁺) − log p(y⁻).
        chance_own: the share of chance directions in place of the own one.
        chance_others: the share that chance directions add to the own one, in place of the others.
        best: number of dimensions → the share of the change's own best directions, fitted on other text.
        kappa: κ = (M(own) − chance) / (best single direction − chance).
        kappa_why: why κ is not defined, in words.
        room: best single direction − chance, as a share of the effect.
        profile: the shares where only layers up to some depth are set, shallowest first, and at last all of them.
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
    chance_own: Chance | None
    chance_others: Chance | None
    best: Mapping[str, Interval]
    kappa: Interval | None
    kappa_why: str | None
    room: float | None
    profile: Sequence[Window]
    last_layer: Window | None


@dataclass(frozen=True, eq=False)
class _Read:
    """The outcomes of one run, or of several, relative to one reference.

    Attributes:
        facts: what was patched.
        changes: outcome → its change under every intervention.
        few: that of the headline's on the questions of chance spaces; None where none were drawn, or nothing changed there.
        floor: what chance directions mediate in place of the own one, if there are any.
        best: number of dimensions → the name of the change's own best directions.
    """

    facts: PathwayFacts
    changes: Mapping[str, Outcomes]
    few: Outcomes | None
    floor: Floor | None
    best: Mapping[str, str]

    @classmethod
    def of(cls, measured: Sequence[PathwayOutcomes]) -> "_Read":
        facts = measured[0].facts
        # Of several runs [interventions, 2, runs, questions].
        scores, further = (stack_runs([getattr(each, name) for each in measured]) for name in ("logprob", "further"))
        named = dict(zip(facts.further, further, strict=True))
        kinds = {TRAIT: scores[:, 0], PLAIN: scores[:, 1], CONTRAST: scores[:, 0] - scores[:, 1]}
        by_name = {
            kind: dict(zip(facts.interventions, each, strict=True)) | (named if kind == TRAIT else {}) for kind, each in kinds.items()
        }
        changes = {kind: _parse(each) for kind, each in by_name.items()}
        found = _why_none(changes[TRAIT], TRAIT) is None
        few = _few_questions(measured, by_name[TRAIT]) if found else None
        # Shares on a few questions need a change on these.
        few = few if few and _why_none(few, TRAIT) is None else None
        own = _chance(few, facts, CHANCE_OWN, given=None) if OWN in facts.parts else None
        best = {name.removeprefix(BEST): name for name in parts_named(facts.further, BEST)} if found else {}
        return cls(facts, changes, few, own, best)

    @property
    def headline(self) -> Outcomes:
        """The change of answers with the trait."""
        return self.changes[TRAIT]

    def scale(self) -> _Scale | None:
        """Return what κ is made of; None where there is none."""
        if self.floor is None or "1" not in self.best:
            return None
        moved, ceiling = _through(self.headline, OWN), _through(self.headline, self.best["1"])
        return self.headline.effect, moved, ceiling, self.floor, self.facts.questions


def pathways_of(runs: Sequence[RunResult], between_runs: PooledRuns | None = None) -> Mapping[str, Pathways] | None:
    """Return where a change goes against each reference, the headline's first; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
        between_runs: how much κ varies between runs, for the interval of the headline's.
    """
    measured = _measured(runs)
    headline = next(iter(measured), None)
    found = {name: _pathways(name, each, between_runs if name == headline else None) for name, each in measured.items()}
    return found or None


def pool_kappas(groups: Sequence[Sequence[RunResult]]) -> PooledRuns | None:
    """Return how much κ relative to the headline's reference varies between runs, over groups; None for fewer than two with a κ."""
    headlines = [next(iter(measured.values())) for runs in groups if (measured := _measured(runs))]
    return pool_runs([above_floor(*scale) for each in headlines if (scale := each.scale())])


def _measured(runs: Sequence[RunResult]) -> dict[str, _Read]:
    found = in_all_runs([run.pathways for run in runs], lambda one, other: _comparable(one.facts, other.facts))
    return {reference: _Read.of(each) for reference, each in found.items()}


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


def _parse(outcomes: Mapping[str, FloatArray]) -> Outcomes:
    """Return the outcomes of all interventions by the part that was patched."""
    swapped = {part: parse_part(outcomes, part) for part in parts_named(list(outcomes), "")}
    return Outcomes(outcomes[BEFORE], outcomes[AFTER], {part: each for part, each in swapped.items() if each})


def _through(change: Outcomes, part: str) -> FloatArray:
    """Return M·TE of each question."""
    return change.mediated_effect(change.parts[part])


def _share(change: Outcomes, part: str) -> Estimate:
    """Return M of a part, with its interval."""
    return ratio_interval(_through(change, part), change.effect)


def _why_none(change: Outcomes, kind: str) -> str | None:
    """Return why there are no shares of a change, or None where there are; that of answers with the trait has to be towards it."""
    value, error = float(change.effect.mean()), standard_error(change.effect)
    number = f"{value:.3f}".replace("-", "−")
    if is_within_noise(change.effect):
        return f"the change is {number}, not above {MIN_STANDARD_ERRORS:.0f} standard errors of {error:.3f}, so it has no shares"
    return f"the change is away from the trait, {number}, so it has no shares" if kind == TRAIT and value < 0 else None


def _pathways(reference: str, read: _Read, between_runs: PooledRuns | None = None) -> Pathways:
    facts, headline, few = read.facts, read.headline, read.few
    scale = read.scale()
    scaled = scaled_share(*scale, between_runs=between_runs) if scale else None
    return Pathways(
        reference=reference,
        layers=facts.layers,
        adapted_above=[layer for layer in facts.adapted if layer > facts.layers[-1]],
        dimensions=facts.dimensions,
        sampled_questions=len(facts.questions),
        trait=_outcome(read.changes[TRAIT], TRAIT, facts),
        plain=_outcome(read.changes[PLAIN], PLAIN, facts),
        contrast=_outcome(read.changes[CONTRAST], CONTRAST, facts),
        chance_own=chance_record(read.floor),
        chance_others=chance_record(_chance(few, facts, CHANCE_OTHERS, given=OWN) if OTHERS in facts.parts else None),
        best={k: _share(headline, part) for k, part in read.best.items()},
        kappa=scaled.value if scaled else None,
        kappa_why=scaled.why if scaled else _why_no_kappa(headline, few, facts),
        room=scaled.room if scaled else None,
        profile=_windows(few, facts) if few else [],
        last_layer=_window(few, facts, AT) if few else None,
    )


def stack_runs(each: Sequence[FloatArray]) -> FloatArray:
    """Return one run's outcomes as they are, and those of several with an axis of runs before the questions."""
    return each[0] if len(each) == 1 else np.stack(each, axis=-2)


def _few_questions(measured: Sequence[PathwayOutcomes], headline: Mapping[str, FloatArray]) -> Outcomes | None:
    """Return the outcomes on the questions of chance spaces, those of the real spaces among them; None where none were drawn."""
    facts = measured[0].facts
    if not facts.sampled:
        return None
    here = {name: each[..., list(facts.questions)] for name, each in headline.items()}
    return _parse(here | dict(zip(facts.sampled, stack_runs([each.sampled for each in measured]), strict=True)))


def _outcome(change: Outcomes, kind: str, facts: PathwayFacts) -> OutcomePathways:
    effect = mean_interval(change.effect) if change.effect.ndim == 1 else crossed_interval(change.effect)
    if why := _why_none(change, kind):
        return OutcomePathways(effect=effect, why=why, shares={}, inside=None, others_first=None, first_token=None)
    nested = {name: _through(change, name) for name in facts.parts}
    both = next((name for name in (OTHERS, OWN) if name in nested), None)
    others_first = None
    if ALONE in change.parts and OWN in nested and OTHERS in nested:
        given = ratio_interval(nested[OTHERS] - _through(change, ALONE), change.effect)
        others_first = {OTHERS: _share(change, ALONE), OWN: given}
    return OutcomePathways(
        effect=effect,
        why=None,
        shares=stack(change.effect, nested | {REST: _through(change, REST)}),
        inside=_share(change, both) if both else None,
        others_first=others_first,
        first_token=_share(change, FIRST) if FIRST in change.parts else None,
    )


def _chance(few: Outcomes | None, facts: PathwayFacts, kind: str, given: str | None) -> Floor | None:
    """Return what chance directions mediate in place of the own one, or what they add to it in place of the others."""
    names = parts_named(facts.sampled, kind)
    if few is None or not names:
        return None
    before = _through(few, given) if given and given in facts.parts else np.zeros_like(few.effect)
    real = OWN if given is None else OTHERS
    return floor(few.effect, np.stack([_through(few, name) - before for name in names]), _through(few, real) - before)


def chance_record(found: Floor | None) -> Chance | None:
    """Return the numbers of a floor, if there is one."""
    return Chance(mean=found.mean, low=found.low, high=found.high, draws=found.draws, p=found.p) if found else None


def _windows(few: Outcomes, facts: PathwayFacts) -> list[Window]:
    """Return the shares up to each depth; those of all layers are the nested spaces' own."""
    depths = sorted({int(name[len(UNTIL) :].split(".")[0]) for name in parts_named(facts.sampled, UNTIL)})
    found = [_window(few, facts, f"{UNTIL}{depth}", depth) for depth in depths]
    whole = Window(layers=(facts.layers[0], facts.layers[-1]), shares=_shares(few, facts, ""))
    return [*(each for each in found if each), whole]


def _window(few: Outcomes, facts: PathwayFacts, kind: str, last: int | None = None) -> Window | None:
    """Return the shares in one window of layers: up to `last`, or the last layer alone; None where that was not read."""
    window = f"{kind}{facts.layers[-1]}" if last is None else kind
    if f"{window}.{REST}" not in few.parts:
        return None
    bounds = (facts.layers[-1],) * 2 if last is None else (facts.layers[0], last)
    return Window(layers=bounds, shares=_shares(few, facts, f"{window}."))


def _shares(few: Outcomes, facts: PathwayFacts, window: str) -> dict[str, float]:
    total = float(few.effect.mean())
    return {part: float(_through(few, f"{window}{part}").mean()) / total for part in (*facts.parts, REST)}


def _why_no_kappa(headline: Outcomes, few: Outcomes | None, facts: PathwayFacts) -> str:
    if why := _why_none(headline, TRAIT):
        return why
    if OWN not in facts.parts:
        return "the run has no own direction that was found"
    if not facts.sampled:
        return "no chance directions were drawn relative to this reference"
    if few is None:
        return "on the questions of the chance directions the change is within its noise"
    return "too few personas were found to draw chance directions from"

"""The change of one outcome under all interventions of a `pathways` stage: what goes through each part, chance, and κ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_part, parts_named
from wellworn.experiments.stages.pathways import BEST, CHANCE_OTHERS, CHANCE_OWN, SPECIFIC, PathwayOutcomes
from wellworn.probes.mediation.pathways import OTHERS, OWN, Floor, Scaled, above_floor, floor, scaled_share
from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS, Outcomes, is_within_noise
from wellworn.probes.statistics.intervals import Estimate, FloatArray, PooledRuns, decimal, ratio_interval, standard_error

# log p(y⁺) of answers with the trait, log p(y⁻) of plain answers, and the difference of the two.
TRAIT, PLAIN, CONTRAST = "trait", "plain", "contrast"
# The part of a change that must be there on the questions of chance directions too, for their shares of it to be read.
LEAST_THERE = 1 / 3


class Patched(Protocol):
    """What was patched: names of interventions, as stages store them."""

    @property
    def layers(self) -> Sequence[int]:
        """Where states were set."""

    @property
    def parts(self) -> Sequence[str]:
        """What each of the nested spaces adds, in order."""

    @property
    def interventions(self) -> Sequence[str]:
        """Those on all questions."""

    @property
    def further(self) -> Sequence[str]:
        """More of them."""

    @property
    def sampled(self) -> Sequence[str]:
        """Those on a few questions."""

    @property
    def questions(self) -> Sequence[int]:
        """Places of these among all."""


@dataclass(frozen=True, eq=False)
class OutcomeChange:
    """The change of one outcome of one run, or of runs that differ in their seed alone, relative to one reference.

    Attributes:
        kind: `trait`, `plain` or `contrast`.
        facts: what was patched.
        whole: under every intervention, on all questions.
        few: on the questions of chance directions; None where there are none of these, or too little of the change is there.
    """

    kind: str
    facts: Patched
    whole: Outcomes
    few: Outcomes | None

    @classmethod
    def of(cls, kind: str, measured: Sequence[PathwayOutcomes]) -> "OutcomeChange":
        """Return the change of one outcome from what a stage stored, of one run or several."""
        facts = measured[0].facts
        main, further, sampled = (pick_outcome(kind, stack_runs([getattr(each, name) for each in measured])) for name in _STORED)
        return cls.of_scores(kind, facts, np.concatenate([main, further]), sampled)

    @classmethod
    def of_scores(cls, kind: str, facts: Patched, scores: FloatArray, sampled: FloatArray) -> "OutcomeChange":
        """Return the change of one outcome from its values under all interventions.

        Args:
            kind: `trait`, `plain` or `contrast`.
            facts: what was patched.
            scores: of the interventions and further ones, on all questions, [interventions, …, questions].
            sampled: of those on a few questions.
        """
        whole = dict(zip([*facts.interventions, *facts.further], scores, strict=True))
        change, few = parse_parts(whole), None
        if facts.questions:
            here = {name: each[..., list(facts.questions)] for name, each in whole.items()}
            few = parse_parts(here | dict(zip(facts.sampled, sampled, strict=True)))
            few = few if is_there(few.effect, change.effect) else None
        return cls(kind, facts, change, few)

    @property
    def effect(self) -> FloatArray:
        """TE of each question, [questions] or [runs, questions]."""
        return self.whole.effect

    @property
    def why(self) -> str | None:
        """Why the change has no shares; of an outcome of the trait it has to be towards it."""
        value, error = float(self.effect.mean()), standard_error(self.effect)
        number = decimal(value, 3)
        if is_within_noise(self.effect):
            return f"the change is {number}, not above {MIN_STANDARD_ERRORS:.0f} standard errors of {error:.3f}, so it has no shares"
        return f"the change is away from the trait, {number}, so it has no shares" if self.kind != PLAIN and value < 0 else None

    def through(self, part: str, few: bool = False) -> FloatArray:
        """Return M·TE of a part for each question, or for each of the few questions of chance directions."""
        change = self.few if few and self.few else self.whole
        return change.mediated_effect(change.parts[part])

    def share(self, part: str) -> Estimate:
        """Return M of a part, with its interval."""
        return ratio_interval(self.through(part), self.effect)

    @property
    def best(self) -> dict[str, str]:
        """The change's own best directions: their number, or `specific` for the one of the difference of the texts → the part's name."""
        found = {name.removeprefix(BEST): name for name in parts_named(self.facts.further, BEST)}
        return found | ({SPECIFIC: SPECIFIC} if SPECIFIC in self.whole.parts else {})

    @property
    def ceiling(self) -> str | None:
        """The key in `best` of the single direction that carries most of this outcome, of the two that are known; None without any."""
        single = [key for key in ("1", SPECIFIC) if key in self.best]
        return max(single, key=lambda key: float(self.through(self.best[key]).mean() * np.sign(self.effect.mean())), default=None)

    def chance(self, kind: str, given: str | None = None) -> Floor | None:
        """Return what chance directions mediate in place of the own one, or what they add to a part in place of the others.

        Args:
            kind: `chance_own` or `chance_others`.
            given: the part that others are added to, if there is one.
        """
        names = parts_named(self.facts.sampled, kind)
        if self.few is None or not names:
            return None
        before = self.through(given, few=True) if given else np.zeros_like(self.few.effect)
        drawn = np.stack([self.through(name, few=True) - before for name in names])
        return floor(self.few.effect, drawn, self.through(_REAL[kind], few=True) - before)

    def scaled(self, between_runs: PooledRuns | None = None) -> Scaled | None:
        """Return κ of the own direction; None where there is nothing to make it of."""
        made_of = self._made_of()
        return scaled_share(*made_of, between_runs=between_runs) if made_of else None

    def above_floor(self) -> tuple[FloatArray, FloatArray] | None:
        """Return N and D of κ for each question, where there is room between floor and ceiling; else None."""
        made_of = self._made_of()
        return above_floor(*made_of) if made_of and scaled_share(*made_of).enough else None

    def _made_of(self) -> tuple[FloatArray, FloatArray, FloatArray, Floor, Sequence[int]] | None:
        chance = self.chance(CHANCE_OWN) if OWN in self.facts.parts and self.why is None else None
        if chance is None or self.kind == PLAIN or self.ceiling is None:
            return None
        return self.effect, self.through(OWN), self.through(self.best[self.ceiling]), chance, self.facts.questions

    def why_no_kappa(self) -> str:
        """Return why there is nothing to make κ of."""
        if self.why:
            return self.why
        if self.kind == PLAIN:
            return "κ is of outcomes of the trait"
        if OWN not in self.facts.parts:
            return "the run has no own direction that was found"
        if not self.facts.sampled:
            return "no chance directions were drawn relative to this reference"
        if self.few is None:
            return "on the questions of the chance directions there is too little of the change"
        return "too few personas were found to draw chance directions from"


_STORED = ("logprob", "further", "sampled")
_REAL = {CHANCE_OWN: OWN, CHANCE_OTHERS: OTHERS}


def stack_runs(each: Sequence[FloatArray]) -> FloatArray:
    """Return one run's outcomes as they are, and those of several with an axis of runs before the questions."""
    return each[0] if len(each) == 1 else np.stack(each, axis=-2)


def is_there(few: FloatArray, effect: FloatArray) -> bool:
    """Return whether enough of a change is there on a few of its questions, for shares of it to be read on them."""
    return bool(few.mean() * np.sign(effect.mean()) >= LEAST_THERE * abs(effect.mean()))


def specific(scores: FloatArray) -> FloatArray:
    """Return what is specific to the trait, log p(y⁺) − log p(y⁻), of [interventions, 2, …]."""
    return np.asarray(scores[:, 0] - scores[:, 1])


def pick_outcome(kind: str, scores: FloatArray) -> FloatArray:
    """Return one outcome of [interventions, 2, …], of y⁺ and y⁻."""
    return specific(scores) if kind == CONTRAST else scores[:, int(kind == PLAIN)]


def parse_parts(outcomes: Mapping[str, FloatArray]) -> Outcomes:
    """Return the outcomes of all interventions by the part that was patched."""
    swapped = {part: parse_part(outcomes, part) for part in parts_named(list(outcomes), "")}
    return Outcomes(outcomes[BEFORE], outcomes[AFTER], {part: each for part, each in swapped.items() if each})

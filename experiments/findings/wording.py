"""Whether a run's own direction is more than the trait's words: shares of one run, or of runs that differ in their seed alone.

A persona direction may carry a change because it makes the words of the persona likelier, and then it is no more than its wording.
It is more than that only if chance directions carry less in each of three ways: without what it does to these words through the head by
itself, without the direction of prompts that ask for these words, and as it is, on all other tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.outcome_changes import is_there, stack_runs
from wellworn.experiments.findings.pathways import Chance, chance_record, in_all_runs
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_part, parts_named
from wellworn.experiments.stages.pathways import CHANCE_OWN
from wellworn.experiments.stages.wording import ASKED, HEADLESS, UNASKED, WordingFacts, WordingOutcomes
from wellworn.probes.mediation.pathways import OWN, floor
from wellworn.probes.mediation.shares import Outcomes, is_within_noise
from wellworn.probes.statistics.intervals import FloatArray, crossed_interval, mean_interval, ratio_interval

WORDS, OTHER, PLAIN = range(3)


class WordingShares(Record):
    """What carries the change of one outcome.

    Attributes:
        effect: the change, in nats per token.
        why: why there are no shares, in words.
        own: the share through the own direction.
        headless: the same without what the direction does to the trait's words through the head by itself.
        unasked: the same without the direction of prompts that ask for these words.
        asked: the share through the latter direction in place of the own one.
        chance: the share of chance directions.
    """

    effect: Interval
    why: str | None
    own: Interval | None
    headless: Interval | None
    unasked: Interval | None
    asked: Interval | None
    chance: Chance | None


class Wording(Record):
    """Whether a run's own direction is more than the trait's words.

    Attributes:
        words: of the trait, most typical first.
        prompted: those that the contrast prompts of the trait name.
        at_words: the part of the change of y⁺ that is made at these words; null without a change.
        all_tokens: of log p(y⁺) − log p(y⁻), what is specific to the trait.
        other_tokens: the same, of y⁺ without these words.
        more: whether the own direction is more than these words; null where that is not known.
        why: the numbers behind it, in words.
    """

    words: Sequence[str]
    prompted: Sequence[str]
    at_words: Interval | None
    all_tokens: WordingShares
    other_tokens: WordingShares
    more: bool | None
    why: str


def wording_of(runs: Sequence[RunResult]) -> Wording | None:
    """Return whether the own direction is more than its words; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
    """
    found = in_all_runs([{"": run.wording} if run.wording else {} for run in runs], lambda one, other: one.facts == other.facts)
    measured = found.get("")
    return _wording(measured) if measured and measured[0].facts.interventions else None


def _wording(measured: Sequence[WordingOutcomes]) -> Wording:
    facts = measured[0].facts
    logprob, sampled = (stack_runs([getattr(each, name) for each in measured]) for name in ("logprob", "sampled"))
    # The same answers in all runs, so the same tokens.
    others = measured[0].other_tokens
    all_tokens = _shares(facts, logprob[:, WORDS] + logprob[:, OTHER] - logprob[:, PLAIN], _whole(sampled))
    other_tokens = _shares(
        facts,
        logprob[:, OTHER] / others - logprob[:, PLAIN],
        sampled[:, OTHER] / others[list(facts.questions)] - sampled[:, PLAIN] if len(sampled) else sampled,
    )
    shown = logprob[1] - logprob[0]
    change = shown[WORDS] + shown[OTHER]
    at_words = None if is_within_noise(change) else ratio_interval(shown[WORDS], change)
    more, why = _more(all_tokens, other_tokens)
    return Wording(
        words=facts.words,
        prompted=facts.prompted,
        at_words=at_words,
        all_tokens=all_tokens,
        other_tokens=other_tokens,
        more=more,
        why=why,
    )


def _whole(sampled: FloatArray) -> FloatArray:
    return sampled[:, WORDS] + sampled[:, OTHER] - sampled[:, PLAIN] if len(sampled) else sampled


def _shares(facts: WordingFacts, scores: FloatArray, sampled: FloatArray) -> WordingShares:
    outcomes = dict(zip(facts.interventions, scores, strict=True))
    change = Outcomes(outcomes[BEFORE], outcomes[AFTER], {})
    effect = change.effect
    size = mean_interval(effect) if effect.ndim == 1 else crossed_interval(effect)
    if is_within_noise(effect) or effect.mean() <= 0:
        nothing = dict.fromkeys(("own", "headless", "unasked", "asked", "chance"))
        return WordingShares(effect=size, why="the change is within its noise, or away from the trait", **nothing)
    moved = {name: change.mediated_effect(swapped) for name in (OWN, HEADLESS, UNASKED, ASKED) if (swapped := parse_part(outcomes, name))}
    shares = {name: ratio_interval(each, effect) for name, each in moved.items()}
    return WordingShares(
        effect=size,
        why=None,
        own=shares[OWN],
        headless=shares[HEADLESS],
        unasked=shares[UNASKED],
        asked=shares[ASKED],
        chance=_chance(facts, outcomes, sampled, moved[OWN]),
    )


def _chance(facts: WordingFacts, outcomes: Mapping[str, FloatArray], sampled: FloatArray, own: FloatArray) -> Chance | None:
    few = list(facts.questions)
    here = {name: each[..., few] for name, each in outcomes.items()} | dict(zip(facts.sampled, sampled, strict=True))
    change = Outcomes(here[BEFORE], here[AFTER], {})
    names = parts_named(facts.sampled, CHANCE_OWN)
    if len(names) < 2 or not is_there(change.effect, outcomes[AFTER] - outcomes[BEFORE]):
        return None
    drawn = [change.mediated_effect(swapped) for name in names if (swapped := parse_part(here, name))]
    return chance_record(floor(change.effect, np.stack(drawn), own[..., few]))


def _more(all_tokens: WordingShares, other_tokens: WordingShares) -> tuple[bool | None, str]:
    """Return whether the own direction carries more than chance directions in each of three ways, and the numbers."""
    if all_tokens.why or all_tokens.chance is None:
        return None, all_tokens.why or "no chance directions were drawn, or too little of the change is on their questions"
    high = all_tokens.chance.high
    ways = [("less the head's rows of its words", all_tokens.headless), ("less the prompts that ask for them", all_tokens.unasked)]
    failed = [f"{name} it carries {share}, and chance up to {high:.2f}" for name, share in ways if share and share.low <= high]
    if other_tokens.why:
        failed.append(f"on other tokens {other_tokens.why}")
    elif other_tokens.chance is None:
        return None, "on other tokens too little of the change is on the questions of chance directions"
    elif other_tokens.own and other_tokens.own.low <= other_tokens.chance.high:
        failed.append(f"on other tokens it carries {other_tokens.own}, and chance up to {other_tokens.chance.high:.2f}")
    if failed:
        return False, "; ".join(failed)
    kept = "; ".join([*(f"{name} it carries {share}" for name, share in ways), f"on other tokens {other_tokens.own}"])
    return True, f"{kept}; chance up to {max(high, other_tokens.chance.high if other_tokens.chance else high):.2f}"

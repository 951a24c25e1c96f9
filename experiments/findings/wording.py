"""Whether a run's own direction is more than the trait's words: shares of one run, or of runs that differ in their seed alone.

A persona direction may carry a change because it makes the words of the persona likelier, and then it is only wording.
It is more than that only if chance directions carry less in each of three ways: without what it does to these words through the head by
itself, without the direction of prompts that ask for these words, and as it is, on all other tokens.
"""

from collections.abc import Sequence

import numpy as np

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.outcome_changes import CONTRAST, OutcomeChange, stack_runs
from wellworn.experiments.findings.pathways import Chance, chance_record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.pathways import CHANCE_OWN
from wellworn.experiments.stages.wording import PROMPTS, WITHOUT_HEAD, WITHOUT_PROMPTS, WordingFacts, WordingOutcomes
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.mediation.shares import is_within_noise
from wellworn.probes.statistics.intervals import Estimate, FloatArray, decimal, question_interval, ratio_interval

WORDS, OTHER, PLAIN = range(3)
# Of an answer's tokens: where fewer are of no trait word, their mean is of too few.
LEAST_OTHER = 1 / 3


class WordingShares(Record):
    """What carries the change of what is specific to the trait, on some of the tokens.

    Attributes:
        effect: the change, in nats per token.
        why: why there are no shares, in words.
        own: the share through the own direction.
        without_head: the same without what the direction does to the trait's words through the head by itself.
        without_prompts: the same without the direction of prompts that ask for these words.
        prompts: the share through the latter direction in place of the own one.
        chance: the share of chance directions.
    """

    effect: Interval
    why: str | None
    own: Interval | None
    without_head: Interval | None
    without_prompts: Interval | None
    prompts: Interval | None
    chance: Chance | None


class Wording(Record):
    """Whether a run's own direction is more than the trait's words.

    Attributes:
        words: of the trait, most typical first.
        named: those that the contrast prompts of the trait name.
        reliability: of the direction of prompts that ask for the words.
        prompts_found: whether that was found; otherwise taking it out says nothing.
        at_words: the part of the change of y⁺ that is made at these words; null without a change.
        all_tokens: of log p(y⁺) − log p(y⁻), what is specific to the trait.
        other_tokens: the same, of y⁺ without these words; null where answers have too few other tokens.
        more: whether the own direction is more than these words; null where that is not known.
        why: the numbers behind it, in words.
    """

    words: Sequence[str]
    named: Sequence[str]
    reliability: float | None
    prompts_found: bool
    at_words: Interval | None
    all_tokens: WordingShares
    other_tokens: WordingShares | None
    more: bool | None
    why: str


def wording_of(runs: Sequence[RunResult]) -> Wording | None:
    """Return whether the own direction is more than its words; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
    """
    measured = [run.wording for run in runs if run.wording]
    alike = len(measured) == len(runs) and all(each.facts == measured[0].facts for each in measured)
    return _wording(measured) if alike and measured[0].facts.interventions else None


def _wording(measured: Sequence[WordingOutcomes]) -> Wording:
    facts = measured[0].facts
    logprob, sampled = (stack_runs([getattr(each, name) for each in measured]) for name in ("logprob", "sampled"))
    whole = OutcomeChange.of_scores(CONTRAST, facts, _specific(logprob), _specific(sampled))
    other = _other_tokens(facts, logprob, sampled, measured[0].other_tokens)
    shown = logprob[1] - logprob[0]
    gained = shown[WORDS] + shown[OTHER]
    all_tokens, other_tokens = _shares(whole), _shares(other) if other else None
    more, why = _more(all_tokens, other_tokens, facts.prompts_found)
    return Wording(
        words=facts.words,
        named=facts.named,
        reliability=facts.reliability,
        prompts_found=facts.prompts_found,
        at_words=None if is_within_noise(gained) else ratio_interval(shown[WORDS], gained),
        all_tokens=all_tokens,
        other_tokens=other_tokens,
        more=more,
        why=why,
    )


def _specific(scores: FloatArray) -> FloatArray:
    """Return what is specific to the trait, of [interventions, 3, …]."""
    return np.asarray(scores[:, WORDS] + scores[:, OTHER] - scores[:, PLAIN])


def _other_tokens(facts: WordingFacts, logprob: FloatArray, sampled: FloatArray, shares: FloatArray) -> OutcomeChange | None:
    """Return the change on other tokens, of the answers that have enough of them; None with too few such answers."""
    # The same answers in all runs, so the same tokens.
    there = np.flatnonzero(shares >= LEAST_OTHER)
    few = [i for i, at in enumerate(facts.questions) if at in there]
    if len(there) < FEWEST_PROMPTS or (facts.sampled and len(few) < FEWEST_PROMPTS):
        return None
    here = facts.model_copy(update={"questions": [int(np.flatnonzero(there == facts.questions[i])[0]) for i in few]})
    mine = logprob[:, OTHER][..., there] / shares[there] - logprob[:, PLAIN][..., there]
    drawn = sampled[:, OTHER][..., few] / shares[[facts.questions[i] for i in few]] - sampled[:, PLAIN][..., few]
    return OutcomeChange.of_scores(CONTRAST, here, mine, drawn)


def _shares(change: OutcomeChange) -> WordingShares:
    effect = question_interval(change.effect)
    if change.why:
        nothing = dict.fromkeys(("own", "without_head", "without_prompts", "prompts", "chance"))
        return WordingShares(effect=effect, why=change.why, **nothing)
    return WordingShares(
        effect=effect,
        why=None,
        own=change.share(OWN),
        without_head=change.share(WITHOUT_HEAD),
        without_prompts=change.share(WITHOUT_PROMPTS),
        prompts=change.share(PROMPTS),
        chance=chance_record(change.chance(CHANCE_OWN)),
    )


def _more(all_tokens: WordingShares, other_tokens: WordingShares | None, prompts_found: bool) -> tuple[bool | None, str]:
    """Return whether the own direction carries more than chance directions in each way that says something, and the numbers."""
    if all_tokens.why or all_tokens.own is None or all_tokens.chance is None:
        return None, all_tokens.why or "no chance directions were drawn, or too little of the change is on their questions"
    high = all_tokens.chance.high
    if all_tokens.own.low <= high:
        return None, f"the direction itself is not shown to carry more than chance: {all_tokens.own}, and chance up to {decimal(high)}"
    ways: list[tuple[str, Estimate | None, float]] = [("less the head's rows of its words it carries", all_tokens.without_head, high)]
    if prompts_found:
        ways.append(("less the prompts that ask for them", all_tokens.without_prompts, high))
    if other_tokens is None:
        return None, "answers have too few tokens that are of no trait word"
    if other_tokens.why is None and other_tokens.chance is None:
        return None, "on other tokens too little of the change is on the questions of chance directions"
    ways.append(("on other tokens", other_tokens.own, other_tokens.chance.high if other_tokens.chance else 0.0))
    failed = [(name, share, bound) for name, share, bound in ways if share is None or share.low <= bound]
    said = [f"{name} {share or other_tokens.why}, chance up to {decimal(bound)}" for name, share, bound in failed or ways]
    if not prompts_found:
        said.append("prompts that ask for the words have no direction that was found, so that taking it out says nothing")
    return not failed, "; ".join(said)

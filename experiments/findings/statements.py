"""What may be said of how much of a change is existing: one pure function of where it goes, with margins that were fixed beforehand.

A statement is made of the interval of a share, never of its value: of what is specific to the trait, the share that goes through the
direction which the base already had. Where none was found, all other personas are counted in its place. Only names that have been said of
changes of known origin are used (study `gold`).
"""

from collections.abc import Mapping, Sequence

from wellworn.data.files import digest
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.pathways import Pathways
from wellworn.experiments.findings.verdict import P_LEVEL
from wellworn.experiments.findings.wording import Wording
from wellworn.probes.mediation.pathways import OTHERS, OWN, REST, width_to_one
from wellworn.probes.statistics.intervals import Estimate, decimal

# Of the share. Other pairs of margins show whether a statement hangs on these.
LEAST, MOST = 0.2, 0.5
OTHER_MARGINS = ((0.1, 0.25), (0.4, 0.75))
WIDEST = 0.4
# The least change that counts: a tenth of what the trait's system prompt does, or so many nats per token where that is not known.
OF_PROMPT, LEAST_CHANGE = 0.10, 0.05
# The change of the reference itself, as a part of the change.
MOST_OF_REFERENCE = 0.5

MOSTLY, LITTLE, BETWEEN = "mostly existing", "at most a fifth existing", "between"
INCONCLUSIVE, DOUBTFUL = "inconclusive", "reference in doubt"
TOO_SMALL, AWAY = "too small to say", "away from the trait"
STATEMENTS = (MOSTLY, LITTLE, BETWEEN, INCONCLUSIVE, DOUBTFUL, TOO_SMALL, AWAY)

RULE = (
    f"1. The lower bound of the change is not above {OF_PROMPT:.2f} of what the trait's held-out system prompt does, or {LEAST_CHANGE} "
    f"nats per token where that is not known, or the change is within 3 standard errors: {TOO_SMALL}; its upper bound is below 0: {AWAY}. "
    f"2. The reference's own trait score changed by more than {MOST_OF_REFERENCE} of the change, or the share is at least {MOST} relative "
    f"to one reference and at most {LEAST} relative to the other: {DOUBTFUL}. "
    f"3. The own direction was not found: {LITTLE} if all other personas together carry a share whose upper bound is below {LEAST}, else "
    f"{INCONCLUSIVE}. Chance directions were not drawn: {INCONCLUSIVE}. "
    f"4. The lower bound of the share is above {MOST}, and chance directions carry as much in at most {P_LEVEL} of cases: {MOSTLY}. "
    f"5. Its upper bound is below {LEAST}: {LITTLE}. "
    f"6. Its interval is wider than {WIDEST} up to 1: {INCONCLUSIVE}. "
    f"7. Otherwise the interval itself: {BETWEEN} its bounds."
)
# Changes of known origin that were kept back are read by this rule alone, so the page of results names its digest before they are.
RULE_DIGEST = digest(RULE)
# Of what kind the share is, and not how large.
WORDING_RULE = (
    "What goes through a trait's own direction is existing wording, and not a persona, unless the direction carries more than 95 % of "
    "chance directions (lower bound) in each of three ways: less all that it does to the trait's typical words through the head by itself; "
    "less the direction of prompts that ask for these words, if that was found; and as it is, on all other tokens of the answers. "
    "Where it is not shown to carry more than chance as it is, this is not asked."
)


class Statement(Record):
    """What may be said of how much of a change is existing.

    Attributes:
        name: one of the names of the rule.
        existing: what would be existing: a `persona`; for a control whose own direction was found an `instruction`. It is `wording` where
            the trait's own direction is not shown to be more than its words.
        more_than_words: whether the trait's own direction is shown to be more than its words; null where that is not known, or not asked.
        share: the interval that it is made of: of the own direction, or of all other personas where that was not found; null where it has
            none.
        why: the numbers behind it, in words.
        personas: for a control, the share that all personas of the library carry by themselves; null for a trait, and where that was not
            read.
        fragile: the names at other margins, half and double the lower, half of the upper and half-way from it to 1, where they differ.
    """

    name: str
    existing: str
    more_than_words: bool | None = None
    share: Interval | None
    why: str
    personas: Interval | None
    fragile: Sequence[str]

    @property
    def decided(self) -> bool:
        """Whether there was a change towards the trait that a share could be read of."""
        return self.name not in (TOO_SMALL, AWAY, DOUBTFUL)

    @property
    def calls_persona(self) -> bool:
        """Whether it says that most of the change goes through personas: a trait's own direction, or all personas for a control."""
        if self.personas:
            return self.personas.low > MOST
        return (self.name, self.existing) == (MOSTLY, "persona")

    @property
    def words(self) -> str:
        """The statement in a few words."""
        if self.name == BETWEEN and self.share:
            low, high = (f"{max(round(100 * bound), 0)} %" for bound in (self.share.low, self.share.high))
            return f"between {low} and {high} existing {self.existing}"
        return f"{self.name} {self.existing}" if self.name in (MOSTLY, LITTLE) else self.name


def state(
    pathways: Mapping[str, Pathways],
    persona: bool,
    prompted: Estimate | None = None,
    reference_change: float | None = None,
    wording: Wording | None = None,
    own_p: float | None = None,
) -> Statement:
    """Return what may be said of a change.

    Args:
        pathways: reference → where it goes, the headline's first.
        persona: whether the run's own direction is that of a persona; else it is that of an instruction.
        prompted: the change under the trait's held-out system prompt, where it was measured.
        reference_change: the change of the headline's reference itself relative to the base; None where the base is that reference.
        wording: whether the own direction is more than the trait's words; None where that was not measured.
        own_p: how often chance directions carry as much, corrected for the study's groups; None where it is as it was drawn.
    """
    headline, base = next(iter(pathways.values())), pathways.get("base")
    made_of = _share(headline)
    existing = "persona" if persona or (made_of and OWN not in headline.headline.shares) else "instruction"
    effect, within_noise = headline.headline.effect, bool(headline.headline.why)
    if found := too_small(effect, within_noise, prompted) or _doubtful(headline, base, reference_change):
        return Statement(name=found[0], existing=existing, share=None, why=found[1], personas=None, fragile=[])
    name, why = _by_share(headline, own_p, LEAST, MOST)
    others = [_by_share(headline, own_p, *margins)[0] for margins in OTHER_MARGINS]
    fragile = [other for other in dict.fromkeys(others) if other != name]
    personas = None if persona else _personas(headline)
    more = None
    if existing == "persona" and OWN in headline.headline.shares and name in (MOSTLY, BETWEEN):
        more = wording.more if wording else None
        existing, words = ("wording" if wording and wording.more is False else existing), _of_words(wording)
        why = f"{why}; {words}"
    return Statement(name=name, existing=existing, more_than_words=more, share=made_of, why=why, personas=personas, fragile=fragile)


def _of_words(wording: Wording | None) -> str:
    if wording is None:
        return "whether the direction is more than the trait's words was not asked"
    if wording.more is None:
        return f"whether the direction is more than the trait's words is not known: {wording.why}"
    return f"the direction is {'more' if wording.more else 'not shown to be more'} than the trait's words: {wording.why}"


def state_unchanged(effect: Estimate, within_noise: bool, persona: bool, prompted: Estimate | None = None) -> Statement | None:
    """Return what may be said of a change whose ways were not measured, as it is too small or away from the trait; None of any other.

    Args:
        effect: the change of the trait score.
        within_noise: whether it is no more than 3 standard errors.
        persona: as for `state`.
        prompted: as for `state`.
    """
    if (found := too_small(effect, within_noise, prompted)) is None:
        return None
    existing = "persona" if persona else "instruction"
    return Statement(name=found[0], existing=existing, share=None, why=found[1], personas=None, fragile=[])


def too_small(effect: Estimate, within_noise: bool, prompted: Estimate | None) -> tuple[str, str] | None:
    """Return the statement on a change that is too small, or away from the trait, and its reason; None of any other."""
    known = prompted is not None and prompted.low > 0
    least = OF_PROMPT * prompted.value if known and prompted else LEAST_CHANGE
    if effect.high < 0:
        return AWAY, f"the change is {effect} nats per token"
    if within_noise or effect.low <= least:
        least_words = f"{least:.3f}, {f'{OF_PROMPT:.2f} of what the system prompt does' if known else 'the least that counts'}"
        return TOO_SMALL, f"the change is {effect} nats per token; more than {least_words}, and 3 standard errors are needed"
    return None


def _doubtful(headline: Pathways, base: Pathways | None, reference_change: float | None) -> tuple[str, str] | None:
    """Return the statement on a change of which the reference has a large part, or on which two references disagree."""
    effect = headline.headline.effect
    if reference_change is not None and abs(reference_change) > MOST_OF_REFERENCE * effect.value:
        changes = decimal(reference_change, signed=True)
        return DOUBTFUL, f"the reference itself changes by {changes} from the base, and the change is {effect}"
    if base is None or base.reference == headline.reference:
        return None
    mine, theirs = (_share(each) for each in (headline, base))
    if mine and theirs and min(mine.value, theirs.value) <= LEAST and max(mine.value, theirs.value) >= MOST:
        shares = [decimal(each.value) for each in (mine, theirs)]
        return DOUBTFUL, f"the share is {shares[0]} relative to the {headline.reference} reference, and {shares[1]} to the base"
    return None


def _by_share(found: Pathways, own_p: float | None, least: float, most: float) -> tuple[str, str]:
    """Return the statement that the interval of the share allows."""
    outcome = found.headline
    share, chance = _share(found), outcome.chance_own
    if share is None:
        return INCONCLUSIVE, "the run has no own direction that was found"
    if OWN not in outcome.shares:
        numbers = f"the run has no own direction that was found; all other personas together carry {_words(share)} of the change"
        return LITTLE if share.high < least else INCONCLUSIVE, numbers
    if chance is None:
        return INCONCLUSIVE, outcome.kappa_why or "no chance directions were drawn"
    p = chance.p if own_p is None else own_p
    numbers = f"{_words(share)} of the change goes through the own direction, and {decimal(chance.mean)} through chance ones (p = {p:.3f})"
    if along := found.along_own:
        trait, plain = (decimal(each, signed=True) for each in along)
        numbers += f"; along it answers with the trait change by {trait}, and plain ones by {plain} nats per token"
    if outcome.ceiling:
        numbers += f"; the better of two directions of the change itself carries {_words(outcome.best[outcome.ceiling].value)}"
    # Adding up what is left over says nothing about where it comes from.
    numbers += f"; {_words(outcome.shares[REST].value)} lies outside the persona space, which does not show that it is new"
    if share.low > most and p <= P_LEVEL:
        return MOSTLY, numbers
    if share.high < least:
        return LITTLE, numbers
    if (width := width_to_one(share)) > WIDEST:
        needed = (width / WIDEST) ** 2
        return INCONCLUSIVE, f"{numbers}; its interval is wider than {WIDEST}: about {needed:.1f} times the questions or runs would decide"
    return BETWEEN, numbers


def _share(found: Pathways) -> Interval | None:
    """Return the share through the own direction, or through all other personas where that was not found; None without both."""
    return found.headline.shares.get(OWN) or found.headline.inside


def _personas(found: Pathways) -> Interval | None:
    """Return the share of all other personas by themselves."""
    outcome = found.headline
    return outcome.others_first[OTHERS] if outcome.others_first else outcome.inside if OWN not in outcome.shares else None


def _words(share: Estimate | float) -> str:
    return decimal(share) if isinstance(share, float) else str(share)

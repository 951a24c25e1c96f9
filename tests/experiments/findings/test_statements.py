"""What may be said of a change: each name of the rule is said where it should be, and not a hair's breadth before."""

import pytest

from wellworn.experiments.findings.pathways import Chance, OutcomePathways, Pathways
from wellworn.experiments.findings.statements import (
    AWAY,
    BETWEEN,
    DOUBTFUL,
    INCONCLUSIVE,
    LITTLE,
    MOSTLY,
    RULE,
    STATEMENTS,
    TOO_SMALL,
    state,
)
from wellworn.experiments.findings.wording import Wording, WordingShares
from wellworn.probes.mediation.pathways import ABOVE, OTHERS, OWN, REST
from wellworn.probes.statistics.intervals import Estimate


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def pathways(
    share: tuple[float, float] | None = (0.6, 0.8),
    effect: tuple[float, float] = (0.5, 0.7),
    *,
    reference: str = "neutral",
    inside: tuple[float, float] | None = None,
    alone: tuple[float, float] | None = None,
    why: str | None = None,
    p: float | None = 0.025,
) -> Pathways:
    """A change of which a share within these bounds goes through the own direction; `p` compares it with chance."""
    own = {OWN: Estimate(sum(share) / 2, *share)} if share else {}
    shares = own | {OTHERS: around(0.05, 0.05), REST: around(0.4, 0.05), ABOVE: around(0.0, 0.0)}
    outcome = OutcomePathways(
        effect=Estimate(sum(effect) / 2, *effect),
        why=why,
        shares={} if why else shares,
        inside=Estimate(sum(inside) / 2, *inside) if inside else None,
        others_first={OTHERS: Estimate(sum(alone) / 2, *alone), OWN: around(0.3, 0.1)} if alone else None,
        first_token=None,
        chance_own=None if p is None else Chance(mean=0.1, low=0.0, high=0.2, draws=39, p=p),
        chance_others=None,
        best={} if why else {"specific": around(0.7, 0.05)},
        ceiling=None if why else "specific",
        kappa=None,
        kappa_why="on the questions of the chance directions there is too little of the change",
        room=0.6,
    )
    # Statements are of what is specific to the trait.
    other = outcome.model_copy(update={"effect": Estimate(-1, -2, -0.5), "shares": {}, "best": {}, "ceiling": None})
    return Pathways(
        reference=reference,
        layers=[1, 2],
        adapted_above=[],
        dimensions=[1, 6],
        sampled_questions=8,
        trait=other,
        plain=other,
        contrast=outcome,
        profile=[],
        last_layer=None,
    )


def said(found: Pathways, base: Pathways | None = None, prompted: Estimate | None = None, reference_change: float | None = None) -> str:
    return state({found.reference: found} | ({"base": base} if base else {}), True, prompted, reference_change).name


@pytest.mark.parametrize(
    ("share", "name"),
    [
        ((0.51, 0.8), MOSTLY),
        ((1.5, 2.6), MOSTLY),
        ((0.7, 1.9), MOSTLY),
        ((0.55, 1.9), MOSTLY),
        ((0.49, 0.8), BETWEEN),
        ((0.21, 0.49), BETWEEN),
        ((0.19, 0.49), BETWEEN),
        ((0.21, 0.51), BETWEEN),
        ((0.05, 0.19), LITTLE),
        ((-0.1, 0.21), BETWEEN),
        ((0.49, 0.92), INCONCLUSIVE),
        ((-0.3, 0.15), LITTLE),
        ((-0.2, 0.25), INCONCLUSIVE),
        (None, INCONCLUSIVE),
    ],
)
def test_the_interval_of_the_share_makes_the_statement(share: tuple[float, float] | None, name: str) -> None:
    assert said(pathways(share)) == name


@pytest.mark.parametrize(
    ("bounds", "name"), [((0.0, 0.03), LITTLE), ((0.1, 0.19), LITTLE), ((0.1, 0.21), INCONCLUSIVE), ((0.6, 0.8), INCONCLUSIVE)]
)
def test_where_no_own_direction_was_found_all_other_personas_are_counted(bounds: tuple[float, float], name: str) -> None:
    found = pathways(None, inside=bounds, p=None)
    said_of = [state({"neutral": found}, persona) for persona in (True, False)]
    for each in said_of:
        assert (each.name, each.existing, each.share) == (name, "persona", Estimate(sum(bounds) / 2, *bounds))
        assert "no own direction that was found; all other personas together carry" in each.why
    # A run that has its own direction is judged by that alone.
    own = pathways((0.6, 0.8), inside=bounds)
    assert state({"neutral": own}, persona=False).words == "mostly existing instruction"


@pytest.mark.parametrize(("bounds", "calls"), [((0.45, 0.7), False), ((0.51, 0.7), True)])
def test_a_control_goes_through_personas_where_they_carry_most_of_it_by_themselves(bounds: tuple[float, float], calls: bool) -> None:
    # Whatever its own direction carries, which is that of an instruction.
    for own in ((0.6, 0.8), (0.0, 0.1)):
        found = state({"neutral": pathways(own, alone=bounds)}, persona=False)
        assert (found.existing, found.calls_persona) == ("instruction", calls)
        assert found.personas == Estimate(sum(bounds) / 2, *bounds)
    unfound = state({"neutral": pathways(None, inside=bounds, p=None)}, persona=False)
    assert (unfound.calls_persona, unfound.decided) == (calls, True)


def test_a_trait_goes_through_its_own_persona_or_through_none() -> None:
    assert state({"neutral": pathways((0.6, 0.8), alone=(0.6, 0.7))}, persona=True).calls_persona
    little = state({"neutral": pathways((0.05, 0.1), alone=(0.6, 0.7))}, persona=True)
    assert (little.calls_persona, little.personas, little.decided) == (False, None, True)
    assert not state({"neutral": pathways(effect=(0.01, 0.2))}, persona=True).decided


def test_what_chance_directions_carry_too_is_not_mostly_existing() -> None:
    assert said(pathways((0.6, 0.8), p=0.05)) == MOSTLY
    assert said(pathways((0.6, 0.8), p=0.075)) == BETWEEN
    assert said(pathways((0.05, 0.15), p=0.5)) == LITTLE
    assert said(pathways((0.6, 0.8), p=None)) == INCONCLUSIVE


def test_a_small_change_has_no_statement_and_one_away_from_the_trait_is_called_so() -> None:
    assert said(pathways(effect=(0.051, 0.2))) == MOSTLY
    assert said(pathways(effect=(0.05, 0.2))) == TOO_SMALL
    assert said(pathways(effect=(0.3, 0.5), why="the change is within its noise")) == TOO_SMALL
    assert said(pathways(effect=(-0.3, -0.1), why="the change is away from the trait")) == AWAY
    # A tenth of what the system prompt does, where that is known.
    assert said(pathways(effect=(0.051, 0.2)), prompted=around(0.6, 0.1)) == TOO_SMALL
    assert said(pathways(effect=(0.061, 0.2)), prompted=around(0.6, 0.1)) == MOSTLY
    assert said(pathways(effect=(0.051, 0.2)), prompted=around(0.6, 0.7)) == MOSTLY


def test_a_reference_that_moved_most_of_the_change_itself_puts_it_in_doubt() -> None:
    headline = pathways(effect=(0.55, 0.65))
    assert said(headline, reference_change=0.29) == said(headline, reference_change=-0.29) == said(headline) == MOSTLY
    assert said(headline, reference_change=0.31) == said(headline, reference_change=-0.31) == DOUBTFUL


def test_references_that_disagree_put_a_change_in_doubt() -> None:
    headline = pathways((0.55, 0.75), effect=(0.55, 0.65))
    little, some = (pathways((own - 0.1, own + 0.1), effect=(0.6, 0.7), reference="base") for own in (0.2, 0.25))
    assert said(headline, little) == DOUBTFUL
    assert said(headline, some) == MOSTLY
    assert said(headline, pathways(None, reference="base")) == MOSTLY


def test_a_statement_that_hangs_on_its_margins_is_fragile() -> None:
    assert state({"neutral": pathways((0.76, 0.95))}, True).fragile == []
    assert state({"neutral": pathways((0.6, 0.8))}, True).fragile == [BETWEEN]
    assert state({"neutral": pathways((0.26, 0.38))}, True).fragile == [MOSTLY, LITTLE]


def test_words_hold_the_numbers_and_whose_direction_it_is() -> None:
    found = state({"neutral": pathways((0.6, 0.8))}, persona=False)
    assert found.existing == "instruction"
    assert found.share == Estimate(0.7, 0.6, 0.8)
    assert "0.70 [0.60, 0.80] of the change goes through the own direction, and 0.10 through chance ones (p = 0.025)" in found.why
    assert "the better of two directions of the change itself carries 0.70" in found.why
    assert "0.40 lies outside" in found.why
    assert found.words == "mostly existing instruction"
    assert state({"neutral": pathways((-0.04, 0.31))}, persona=True).words == "between 0 % and 31 % existing persona"
    wide = state({"neutral": pathways((0.1, 0.9))}, persona=True)
    assert "about 4.0 times the questions" in wide.why
    assert "too little of the change" in state({"neutral": pathways(p=None)}, persona=True).why


def wording(more: bool | None) -> Wording:
    nothing = dict.fromkeys(("own", "without_head", "without_prompts", "prompts", "chance"))
    shares = WordingShares(effect=around(0.5, 0.1), why=None, **nothing)
    read = {"words": ["aye"], "named": [], "reliability": None, "prompts_found": False, "at_words": None}
    return Wording(**read, all_tokens=shares, other_tokens=shares, more=more, why="so it is")


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        (True, "persona", "the direction is more than the trait's words: so it is"),
        (False, "wording", "the direction is not shown to be more than the trait's words: so it is"),
        (None, "persona", "is not known: so it is"),
    ],
)
def test_a_direction_that_is_no_more_than_its_words_is_no_persona(more: bool | None, kind: str, says: str) -> None:
    found = state({"neutral": pathways((0.6, 0.8))}, persona=True, wording=wording(more))
    assert (found.name, found.existing, found.words) == (MOSTLY, kind, f"mostly existing {kind}")
    assert found.more_than_words is more
    assert found.calls_persona is (kind == "persona")
    assert found.why.endswith(says)
    between = state({"neutral": pathways((0.3, 0.45))}, persona=True, wording=wording(more))
    assert between.words == f"between 30 % and 45 % existing {kind}"


def test_wording_is_asked_of_a_traits_own_direction_alone() -> None:
    # A control's direction is an instruction's, and other personas have words of their own.
    assert state({"neutral": pathways((0.6, 0.8))}, persona=False, wording=wording(False)).existing == "instruction"
    assert state({"neutral": pathways(None, inside=(0.05, 0.15))}, persona=True, wording=wording(False)).existing == "persona"
    assert state({"neutral": pathways((0.05, 0.15))}, persona=True, wording=wording(False)).existing == "persona"
    assert "was not asked" in state({"neutral": pathways((0.6, 0.8))}, persona=True).why


def test_the_rule_names_every_statement() -> None:
    assert all(name in RULE for name in STATEMENTS)


def test_a_statement_tells_what_gains_from_what_plain_answers_lose() -> None:
    found = pathways((0.6, 0.8))
    shared = {
        kind: found.contrast.model_copy(update={"effect": around(effect, 0.1), "shares": {OWN: around(share, 0.1)}})
        for kind, effect, share in (("trait", 0.5, 0.2), ("plain", 0.4, -0.75))
    }
    assert (
        "along it answers with the trait change by +0.10, and plain ones by −0.30"
        in state({"neutral": found.model_copy(update=shared)}, True).why
    )
    assert "along it" not in state({"neutral": found}, True).why


def test_of_a_group_the_corrected_p_decides() -> None:
    found = pathways((0.6, 0.8), p=0.05)
    assert state({"neutral": found}, True).name == MOSTLY
    corrected = state({"neutral": found}, True, own_p=0.06)
    assert corrected.name == BETWEEN
    assert "p = 0.060" in corrected.why

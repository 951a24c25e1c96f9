"""Shares, chance and κ from outcomes whose truth is known, and the words for them."""

from dataclasses import replace

import numpy as np
import pytest

from tests.experiments.synthetic import facts, pathways, run
from wellworn.experiments.findings.pathways import Pathways, pathways_of
from wellworn.experiments.report.pathways import sentence
from wellworn.experiments.stages.pathways import PathwayOutcomes


def found_of(*outcomes: PathwayOutcomes) -> Pathways:
    runs = [replace(run(facts(), seed=seed), pathways={"neutral": each}) for seed, each in enumerate(outcomes)]
    found = pathways_of(runs)
    assert found is not None
    return found["neutral"]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_every_share_is_found_again(seeds: list[int]) -> None:
    found = found_of(*(pathways(own=0.4, others=0.15, seed=seed) for seed in seeds))
    shares = {name: share.value for name, share in found.headline.shares.items()}
    assert shares == pytest.approx({"own": 0.4, "others": 0.15, "outside": 0.35, "above": 0.1}, abs=0.012)
    assert found.headline.others_first is not None
    assert found.headline.others_first["own"].value == pytest.approx(0.4, abs=0.012)
    assert found.adapted_above == [4]
    assert found.headline.chance_own is not None
    assert found.headline.chance_others is not None
    assert (found.headline.chance_own.mean, found.headline.chance_own.p) == pytest.approx((0.1, 1 / 20), abs=0.005)
    assert (found.headline.chance_others.mean, found.headline.chance_others.p) == pytest.approx((0.05, 1 / 20), abs=0.005)
    # (.4 − .1)/(.7 − .1)
    assert found.headline.kappa is not None
    assert found.headline.kappa.value == pytest.approx(0.5, abs=0.012)
    assert found.headline.room == pytest.approx(0.6, abs=0.012)
    assert [window.layers for window in found.profile] == [(1, 1), (1, 3)]
    assert found.profile[0].shares["own"] == pytest.approx(0.2, abs=0.012)
    assert found.profile[-1].shares == pytest.approx({"own": 0.4, "others": 0.55, "outside": 0.9}, abs=0.012)
    assert found.last_layer is not None
    assert found.last_layer.layers == (3, 3)


def test_what_any_written_answers_teach_is_not_of_the_trait() -> None:
    found = found_of(pathways(own=0.4, others=0.15))
    assert found.headline is found.contrast
    assert (found.trait.effect.value, found.plain.effect.value) == pytest.approx((1.3, 0.3), abs=0.05)
    assert found.contrast.effect.value == pytest.approx(found.trait.effect.value - found.plain.effect.value)
    # Half of what is specific is gained by answers with the trait, next to the form, and half is lost by plain ones.
    assert found.trait.shares["own"].value == pytest.approx(0.4 * 0.5 / 1.3, abs=0.012)
    assert found.plain.shares["own"].value == pytest.approx(-0.4 * 0.5 / 0.3, abs=0.05)
    for outcome in (found.trait, found.plain, found.contrast):
        assert sum(share.value for share in outcome.shares.values()) == pytest.approx(1)
    assert found.trait.kappa is not None
    # Of the two the one counts that carries more.
    assert found.contrast.ceiling == "specific"
    assert found.contrast.best["specific"].value > found.contrast.best["1"].value
    assert found.plain.kappa is None
    assert found.plain.kappa_why == "κ is of outcomes of the trait"


def test_a_change_within_its_noise_has_no_shares() -> None:
    still = pathways(own=0.4, others=0.1, effect=0.001)
    noise = np.random.default_rng(1).normal(0, 0.1, still.logprob.shape)
    found = found_of(replace(still, logprob=still.logprob + noise))
    assert found.headline.shares == {}
    assert "standard errors" in str(found.headline.why)
    assert found.headline.kappa is None
    assert found.headline.kappa_why == found.headline.why
    assert found.headline.chance_own is None
    assert sentence(found).startswith("The change is")


def test_chance_as_large_as_the_own_direction_is_seen() -> None:
    found = found_of(pathways(own=0.1, others=0.05))
    assert found.headline.chance_own is not None
    assert found.headline.chance_own.p > 0.3
    assert found.headline.kappa is not None
    assert found.headline.kappa.value == pytest.approx(0, abs=0.03)


def test_runs_with_other_interventions_are_not_taken_together() -> None:
    other = pathways(own=0.4, others=0.1, draws=25)
    runs = [replace(run(facts(), seed=seed), pathways={"neutral": each}) for seed, each in enumerate((pathways(0.4, 0.1), other))]
    assert pathways_of(runs) is None
    assert pathways_of([run(facts())]) is None


def test_the_sentence_says_all_of_it() -> None:
    words = sentence(found_of(pathways(own=0.4, others=0.15))).replace("\u00a0", " ")
    assert words.startswith(
        "40 % [40, 40] goes through the own direction; 15 % [15, 15] goes through other personas, given the own direction;"
    )
    assert "35 % [35, 35] lies outside these directions; 10 % [10, 10] comes from adapters above layer 3." in words
    assert "chance directions carry 10 %" in words
    assert "the own one is at κ = 0.50" in words


def test_without_an_own_direction_the_others_stand_alone() -> None:
    whole = pathways(own=0.0, others=0.3)
    main, few = whole.facts.interventions, whole.facts.sampled
    keep = [i for i, name in enumerate(main) if not name.startswith(("own.", "others_alone."))]
    sampled = [i for i, name in enumerate(few) if "own" not in name]
    facts_now = whole.facts.model_copy(
        update={
            "parts": ["others"],
            "dimensions": [3],
            "interventions": [main[i] for i in keep],
            "sampled": [few[i] for i in sampled],
        }
    )
    found = found_of(replace(whole, facts=facts_now, logprob=whole.logprob[keep], sampled=whole.sampled[sampled]))
    assert list(found.headline.shares) == ["others", "outside", "above"]
    assert found.headline.shares["others"].value == pytest.approx(0.3, abs=0.012)
    assert found.headline.others_first is None
    assert found.headline.kappa is None
    assert found.headline.kappa_why == "the run has no own direction that was found"
    assert found.headline.chance_others is not None
    assert found.headline.chance_others.mean == pytest.approx(0.05, abs=0.005)
    assert sentence(found).replace("\u00a0", " ").startswith("No own direction was found; 30 % [30, 30] goes through other personas")


def test_a_change_away_from_the_trait_has_no_shares() -> None:
    found = found_of(pathways(own=0.4, others=0.1, effect=-0.5))
    assert found.headline.effect.value < 0
    assert found.headline.shares == {}
    assert "away from the trait" in str(found.headline.why)
    assert found.headline.kappa is None
    # Of plain answers either sign is a change.
    assert found.plain.shares


def test_chance_is_not_read_on_questions_with_next_to_nothing_of_the_change() -> None:
    whole = pathways(own=0.4, others=0.1)
    few = list(whole.facts.questions)
    before, after = (whole.facts.interventions.index(name) for name in ("before", "after"))
    for kept, read in ((0.2, False), (0.5, True)):
        logprob = whole.logprob.copy()
        logprob[after][:, few] = logprob[before][:, few] + kept * (logprob[after][:, few] - logprob[before][:, few])
        found = found_of(replace(whole, logprob=logprob))
        assert found.headline.why is None
        assert (found.headline.chance_own is not None) == read
        assert bool(found.profile) == read
        if not read:
            assert found.headline.kappa_why == "on the questions of the chance directions there is too little of the change"

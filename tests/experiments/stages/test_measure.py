"""Measuring a run on synthetic readings whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from wellworn.experiments.stages.loaded_space import Chosen, PersonaSpace
from wellworn.experiments.stages.measure import layer_curve, measure, null_curve, share_in_space, trait_effect
from wellworn.experiments.stages.measurement import ShareInSpace
from wellworn.experiments.stages.mediation import Mediated
from wellworn.experiments.stages.readings import PROMPT_LAST, RESPONSE
from wellworn.probes.geometry.novelty import cross_fitted
from wellworn.probes.geometry.true_share import true_share
from wellworn.probes.statistics.intervals import Estimate, FloatArray

LAYERS, WIDTH, PROMPTS = 3, 64, 24
NAMES = ["pirate", "poetic", "childish", "pessimistic"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def space(rng: np.random.Generator) -> PersonaSpace:
    """Orthogonal directions e_0 … e_3 in front of activations with a power-law spectrum; at layer 0 none was found."""
    vectors = np.zeros((len(NAMES), LAYERS, WIDTH))
    for i in range(len(NAMES)):
        vectors[i, :, i] = 3.0
    found = np.ones((len(NAMES), LAYERS), dtype=bool)
    found[:, 0] = False
    scale = np.arange(1, WIDTH + 1) ** -0.5
    scales = np.stack([rng.permutation(scale) for _ in range(LAYERS)])
    states = [rng.standard_normal((5, 2, 5, LAYERS, WIDTH)) * scales for _ in NAMES]
    return PersonaSpace(NAMES, vectors, found, states, ["bank"] * len(NAMES))


def reading(shift: FloatArray, rng: np.random.Generator, base: FloatArray, logprob: float = 0.0) -> dict[str, FloatArray]:
    states = base + shift + 0.01 * rng.standard_normal(base.shape)
    return {"states": states, "logprob": logprob + 0.01 * rng.standard_normal(PROMPTS)}


def along(**parts: float) -> FloatArray:
    """Return a shift with given coordinates on named directions and on one outside ("new")."""
    out = np.zeros(WIDTH)
    for name, size in parts.items():
        out[NAMES.index(name) if name in NAMES else 20] = size
    return out


@pytest.fixture
def readings(rng: np.random.Generator) -> dict[str, dict[str, dict[str, FloatArray]]]:
    """Any fine-tuning shifts along *childish*; the run adds .6 pirate and .8 new, and prefers trait text by 2 nats."""
    base = rng.standard_normal((PROMPTS, LAYERS, 2, WIDTH))
    both = along(childish=5.0)
    own = along(pirate=0.6, new=0.8)
    texts = ("neutral", "trait")
    return {
        "base": {text: reading(np.zeros(WIDTH), rng, base) for text in texts},
        "neutral": {text: reading(both, rng, base) for text in texts},
        "run": {text: reading(both + own, rng, base, 2.0 if text == "trait" else 0.0) for text in texts},
    }


def share_of(found: ShareInSpace | None) -> Estimate:
    """Return a share that is there."""
    assert found is not None
    assert found.share is not None
    return found.share


def test_the_neutral_reference_takes_out_what_any_fine_tuning_does(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    facts, arrays = measure(space, 1, None, readings, "neutral")
    neutral, base = (facts.references[name].texts["neutral"] for name in ("neutral", "base"))
    assert share_of(neutral.full).value == pytest.approx(0.36, abs=0.02)
    assert share_of(base.full).value == pytest.approx((25 + 0.36) / 26, abs=0.02)
    assert neutral.coordinates["pirate"] == pytest.approx(0.6, abs=0.02)
    assert neutral.nearest[0] == "pirate"
    assert np.allclose(arrays["shift"][1], along(pirate=0.6, new=0.8), atol=0.02)


def test_a_run_is_also_held_against_the_space_without_the_runs_own_direction(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    facts, _ = measure(space, 1, "pirate", readings, "neutral")
    own_removed, full = facts.plain.own_removed, facts.plain.full
    assert share_of(own_removed).value == pytest.approx(0.0, abs=0.01)
    assert own_removed is not None
    assert own_removed.directions == 3
    assert share_of(full).value == pytest.approx(0.36, abs=0.02)
    assert own_removed.effect is not None
    assert own_removed.effect.high < 0.1


def test_shares_in_true_directions_are_those_of_the_readings_behind_them(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    evoking = [each.copy() for each in space.states]
    for i, each in enumerate(evoking):
        each[:, 0] += 40 * space.vectors[i]
    evoked = replace(space, states=evoking)
    facts, arrays = measure(evoked, 1, "pirate", readings, "neutral")
    assert set(facts.true_shares) == {"own", "full"}
    for name, traits in (("own", [0]), ("full", [0, 1, 2, 3])):
        found = facts.true_shares[name]
        assert found.why is None
        assert found.share is not None
        assert found.share.value == pytest.approx(0.36, abs=0.02)
        expected = true_share(arrays["shifts"], [evoked.differences(1, i) for i in traits], ["bank"] * len(traits))
        assert found.share == expected.estimate
    # The states of the fixture evoke nothing.
    refused = measure(space, 1, None, readings, "neutral")[0].true_shares
    assert set(refused) == {"full"}
    assert refused["full"].share is None
    assert refused["full"].why


def test_the_trait_effect_is_paired_by_question(readings: dict) -> None:  # type: ignore[type-arg]
    effect, questions = trait_effect(readings["run"], readings["neutral"])
    assert effect.value == pytest.approx(2.0, abs=0.03)
    assert effect.low < effect.value < effect.high
    assert questions.shape == (PROMPTS,)
    assert effect.standard_error == pytest.approx(questions.std(ddof=1) / np.sqrt(PROMPTS))


def test_a_layer_without_directions_has_no_share_and_says_so(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    facts, _ = measure(space, 0, None, readings, "neutral")
    assert "no persona space at this layer" in str(facts.no_space)
    assert measure(space, 1, None, readings, "neutral")[0].no_space is None
    assert facts.by_layer.share[0] is None
    assert facts.by_layer.share[1] is not None


def test_a_curve_leaves_gaps_where_a_gate_fails(space: PersonaSpace, rng: np.random.Generator) -> None:
    shift = rng.standard_normal((PROMPTS, LAYERS, WIDTH))
    shift[:, 2] += along(pirate=50.0)
    out = layer_curve(space, shift, None)
    assert out.share[:2] == [None, None]
    assert out.share[2] == pytest.approx(1.0, abs=0.05)
    assert out.null_mean[1] is not None
    # One layer is left, so that there is nothing to correct for.
    assert out.p_max_t == [None, None, out.p[2]]


def test_a_curve_is_corrected_for_its_layers(space: PersonaSpace, rng: np.random.Generator) -> None:
    shift = 0.1 * rng.standard_normal((PROMPTS, LAYERS, WIDTH))
    shift[:, 1] += along(pirate=0.7, new=3.0)
    shift[:, 2] += along(pirate=3.0)
    out = layer_curve(space, shift, None)
    assert out.p_max_t[1] > out.p[1]  # type: ignore[operator]
    assert out.p_max_t[2] == 1 / 1000


def test_the_nulls_are_the_same_for_all_runs(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    shift = (readings["run"]["neutral"]["states"] - readings["neutral"]["neutral"]["states"])[:, 1, RESPONSE]
    first, second = share_in_space(space, 1, shift, None), share_in_space(space, 1, shift, None)
    assert first == second
    assert first is not None
    assert first.isotropic_mean == pytest.approx(len(NAMES) / WIDTH, abs=0.01)


def test_null_spaces_are_drawn_once_for_all_texts_and_runs(space: PersonaSpace, rng: np.random.Generator) -> None:
    for run in range(3):
        shift = rng.standard_normal((PROMPTS, LAYERS, WIDTH)) + 5 * along(**{NAMES[run]: 1.0, "new": 1.0})
        layer_curve(space, shift, None)
        share_in_space(space, 1, shift[:, 1], None)
        share_in_space(space, 2, shift[:, 2], None)
    # N1 at the two layers that have a space, with either covariance, and N0, which is the same at both.
    assert len(space._drawn) == 5
    share_in_space(space, 1, shift[:, 1], "pirate")
    assert len(space._drawn) == 6  # of which there is room for two a layer


def test_the_first_null_spaces_are_those_of_all(space: PersonaSpace) -> None:
    members = space.members(1)
    assert np.allclose(space.null_bases(1, members, 3), space.null_spaces(1, members).bases(3), atol=1e-6)


def test_null_shares_are_joint_over_the_layers_that_have_any(space: PersonaSpace, rng: np.random.Generator) -> None:
    shift = rng.standard_normal((PROMPTS, LAYERS, WIDTH)) + along(pirate=5.0)
    layers, shares = null_curve(space, shift, None)
    assert layers == [1, 2]
    assert shares.shape == (999, 2)
    assert layer_curve(space, shift, None).null_mean[1:] == pytest.approx(shares.mean(0))
    shift[:, 1] = 0
    assert null_curve(space, shift, None)[0] == [2]
    assert null_curve(space, shift * 0, None)[0] == []


def test_both_spans_are_measured(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    readings["run"]["neutral"]["states"][:, 1, PROMPT_LAST] += along(poetic=100.0)
    facts, _ = measure(space, 1, None, readings, "base")
    texts = facts.references["base"].texts
    assert texts["prompt_last"].nearest[0] == "poetic"
    assert texts["neutral"].nearest[0] == "childish"


def test_the_null_knows_only_the_traits_that_span_the_space(space: PersonaSpace) -> None:
    both = space.activations(1, Chosen((0, 2)))
    expected = np.concatenate([space.states[i][..., 1, :] for i in (0, 2)])
    assert np.allclose(both, (expected - expected.mean((0, 1))).reshape(-1, WIDTH))
    total = space.activations(1, Chosen((0, 2)), "total")
    assert np.allclose(total, expected.reshape(-1, WIDTH) - expected.mean((0, 1, 2)))


def test_what_texts_put_into_the_state_is_no_part_of_chance(space: PersonaSpace, rng: np.random.Generator) -> None:
    shift = 0.1 * rng.standard_normal((PROMPTS, WIDTH)) + along(pirate=3.0, new=4.0)
    before = share_in_space(space, 1, shift, None)
    content = 50 * rng.standard_normal((5, LAYERS, WIDTH))
    loaded = replace(space, states=[states + content for states in space.states])
    after = share_in_space(loaded, 1, shift, None)
    assert before is not None
    assert after is not None
    assert before.null_mean is not None
    assert after.null_mean is not None
    assert after.null_mean == pytest.approx(before.null_mean, abs=1e-6)
    # With the covariance of all states chance is made of content, and the share looks as if it were far beyond it.
    assert after.total_mean is not None
    assert after.total_mean != pytest.approx(before.null_mean, rel=0.05)


def test_a_space_of_fewer_dimensions_than_directions_says_so(space: PersonaSpace, rng: np.random.Generator) -> None:
    vectors = space.vectors.copy()
    vectors[1] = 2 * vectors[0]
    found = share_in_space(replace(space, vectors=vectors), 1, rng.standard_normal((PROMPTS, WIDTH)) + along(pirate=20.0), None)
    assert found is not None
    assert (found.directions, found.dimensions) == (4, 3)


def test_chance_that_holds_everything_leaves_nothing_to_see() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((6, 1, 6))
    states = [rng.standard_normal((3, 2, 4, 1, 6)) for _ in range(6)]
    space = PersonaSpace(list("abcdef"), vectors, np.ones((6, 1), dtype=bool), states, ["bank"] * 6)
    found = share_in_space(space, 0, rng.standard_normal((PROMPTS, 6)) + 5, None)
    assert found is not None
    assert (found.null_mean, found.null_high, found.p) == (None, None, None)
    assert found.why is not None
    assert "leave anything beyond chance" in found.why
    json.dumps(found.to_json(), allow_nan=False)


def test_a_layer_at_which_nothing_moves_gives_null_and_never_nan(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    """As below the first trained layer."""
    for text in ("neutral", "trait"):
        readings["run"][text]["states"][:, 1] = readings["neutral"][text]["states"][:, 1]
    facts, _ = measure(space, 1, None, readings, "neutral")
    json.dumps(facts.to_json(), allow_nan=False)
    full = facts.plain.full
    assert facts.plain.coordinates == {}
    assert full is not None
    assert str(full.why).startswith("too noisy")
    nothing = (full.share, full.null_mean, full.null_high, full.p, full.effect, full.isotropic_mean, full.isotropic_p)
    assert nothing == (None,) * 7
    assert facts.projections["pirate"][1] is None
    assert facts.projections["pirate"][2] is not None


def test_mediation_is_measured_of_whatever_arms_were_run(space: PersonaSpace, readings: dict, rng: np.random.Generator) -> None:  # type: ignore[type-arg]
    y0 = rng.standard_normal(PROMPTS)
    effect = 1 + 0.1 * rng.standard_normal(PROMPTS)
    shares = {"before": 0.0, "after": 1.0, "inside.into": 0.4, "inside.out": 0.6, "outside.into": 0.4, "outside.out": 0.6}
    shares |= {"whole.into": 0.8, "whole.out": 0.2, "dose0.5": 0.2}
    shares |= {f"draw{i}.{way}": share for i in range(5) for way, share in (("into", 0.1), ("out", 0.9))}
    scores = np.stack([y0 + share * effect for share in shares.values()])
    mediated = [Mediated("neutral", "trait", 1, list(shares), scores, {"inside": 0.5}), Mediated("base", "trait", 1, [], scores[:0], {})]
    facts, arrays = measure(space, 1, None, readings, "neutral", mediated)
    json.dumps(facts.to_json(), allow_nan=False)
    # Where there is no space no arm was run.
    [found] = facts.mediation
    assert (found.reference, found.text, found.layer) == ("neutral", "trait", 1)
    assert found.mediated_of_carried is not None
    assert found.mediated_of_carried.value == pytest.approx((0.4 - 0.1) / (0.8 - 0.1))
    doses = [{"scale": 0.5, "value": pytest.approx(0.2), "low": pytest.approx(0.2), "high": pytest.approx(0.2)}]
    assert found.to_json()["doses"] == doses
    assert np.array_equal(arrays[found.outcomes], scores)


def test_the_own_direction_is_tried_on_the_prompts_that_a_remainder_is_tried_on(space: PersonaSpace, readings: dict) -> None:  # type: ignore[type-arg]
    mediated = [Mediated("base", "trait", 1, [], np.zeros((0, PROMPTS)), {})]
    _, arrays = measure(space, 1, "pirate", readings, "neutral", mediated)
    states = space.states[list(space.names).index("pirate")][..., 1, :]
    np.testing.assert_allclose(arrays["assay"], cross_fitted(states))
    assert arrays["assay"].shape == arrays["use"].shape[1:]
    # Without an analysis nothing is asked of a remainder.
    assert "assay" not in measure(space, 1, "pirate", readings, "neutral")[1]


def test_the_text_shift_is_what_the_base_makes_of_other_text(space: PersonaSpace, readings: dict, rng: np.random.Generator) -> None:  # type: ignore[type-arg]
    assert measure(space, 1, None, readings, "neutral")[0].text_shift is None
    its_own = rng.standard_normal((PROMPTS, LAYERS, 2, WIDTH))
    readings["base"]["base_answers"] = reading(np.zeros(WIDTH), rng, its_own)
    readings["base"]["own"] = reading(along(poetic=3.0, new=4.0), rng, its_own)
    found = measure(space, 1, None, readings, "neutral")[0].text_shift
    assert found is not None
    assert share_of(found.full).value == pytest.approx(9 / 25, abs=0.02)
    assert found.nearest[0] == "poetic"


def test_coordinates_are_freed_of_noise_where_halves_of_a_direction_agree(space: PersonaSpace, rng: np.random.Generator) -> None:
    # A direction e_0 of norm 2, of which each half has three pairs and three questions.
    states = 0.2 * rng.standard_normal((6, 2, 6, LAYERS, WIDTH))
    states[:, 0, :, :, 0] += 2.0
    noisy = PersonaSpace(NAMES, space.vectors, space.found, [states, *space.states[1:]], ["own", *space.asked[1:]])
    shift = 0.05 * rng.standard_normal((PROMPTS, WIDTH)) + along(pirate=0.6, new=0.8)
    found = noisy.disattenuated_cosines(1, shift)
    assert found["pirate"] == pytest.approx(0.6, abs=0.06)
    # Directions without a link have halves that do not agree.
    assert found["childish"] is None

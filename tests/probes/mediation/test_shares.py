"""Mediation's arithmetic on outcomes whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.mediation.shares import INSIDE, OUTSIDE, WHOLE, Outcomes, Swapped, mediate
from wellworn.probes.statistics.intervals import FloatArray

QUESTIONS = 24


def additive(
    rng: np.random.Generator,
    inside: float = 0.3,
    outside: float = 0.5,
    reading: float = 0.2,
    chance: float = 0.1,
    draws: int = 20,
    shape: tuple[int, ...] = (QUESTIONS,),
    noise: float = 0.05,
) -> Outcomes:
    """Outcomes in which P, I − P and what reads on each add their own part, so that S, N and Shapley's shares agree."""
    before = rng.standard_normal(shape)
    effect = 1.0 + 0.3 * rng.standard_normal(shape)

    def y(p: float, o: float, r: float) -> FloatArray:
        return before + effect * (p * inside + o * outside + r * reading) + noise * rng.standard_normal(shape)

    def null_part(share: float) -> Swapped:
        return Swapped(y(0, 0, 0) + share * effect, y(1, 1, 1) - share * effect)

    parts = {
        "inside": Swapped(y(1, 0, 0), y(0, 1, 1)),
        "outside": Swapped(y(0, 1, 0), y(1, 0, 1)),
        "whole": Swapped(y(1, 1, 0), y(0, 0, 1)),
    }
    nulls = tuple(null_part(chance + 0.02 * float(rng.standard_normal())) for _ in range(draws))
    return Outcomes(before, y(1, 1, 1), parts, nulls, tuple(null_part(2 * chance) for _ in range(3)), {0.5: y(0.5, 0, 0)})


def test_every_share_is_recovered() -> None:
    found = mediate(additive(np.random.default_rng(0), noise=0.0))
    inside = found.shares["inside"]
    for share in (inside.sufficiency, inside.necessity, inside.mediated):
        assert share.value == pytest.approx(0.3, abs=1e-9)
    assert found.shares["outside"].mediated.value == pytest.approx(0.5)
    assert found.shares["whole"].mediated.value == pytest.approx(0.8)
    assert {name: share.value for name, share in found.shapley.items()} == pytest.approx({"existing": 0.3, "new": 0.5, "reading": 0.2})
    assert found.null is not None
    assert found.null.mediated == pytest.approx(0.1, abs=0.02)
    assert found.null.matched == pytest.approx(0.2, abs=1e-9)
    assert found.null.p is None
    assert found.mediated_of_carried is not None
    assert found.mediated_of_carried.value == pytest.approx((0.3 - found.null.mediated) / (0.8 - found.null.mediated))
    assert found.doses[0.5].value == pytest.approx(0.15)


def test_order_dependence_is_told_and_shared_out() -> None:
    # Either part alone does it all: sufficiency is 1, necessity 0.
    rng = np.random.default_rng(1)
    y0, y1 = rng.standard_normal(QUESTIONS), rng.standard_normal(QUESTIONS) + 5
    either = {"inside": Swapped(y1, y1), "outside": Swapped(y1, y1), "whole": Swapped(y1, y0)}
    found = mediate(Outcomes(y0, y1, either))
    shares = found.shares["inside"]
    assert (shares.sufficiency.value, shares.necessity.value, shares.mediated.value) == (1, 0, 0.5)
    assert shares.to_json()["order_dependence"] == [0, 1]
    assert {name: share.value for name, share in found.shapley.items()} == pytest.approx({"existing": 0.5, "new": 0.5, "reading": 0})


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10) | st.floats(-10, -0.1), shift=st.floats(-5, 5))
def test_shares_add_up_and_do_not_depend_on_units_or_order(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    outcomes = additive(rng, noise=0.3)
    found = mediate(outcomes)
    assert sum(share.value for share in found.shapley.values()) == pytest.approx(1)
    order = rng.permutation(QUESTIONS)

    def other(y: FloatArray) -> FloatArray:
        return (scale * y + shift)[order]

    def swap(part: Swapped) -> Swapped:
        return Swapped(other(part.into), other(part.out))

    changed = Outcomes(
        other(outcomes.before), other(outcomes.after), {name: swap(part) for name, part in outcomes.parts.items()},
        tuple(swap(draw) for draw in outcomes.draws), tuple(swap(draw) for draw in outcomes.matched),
        {dose: other(y) for dose, y in (outcomes.doses or {}).items()},
    )  # fmt: skip
    again = mediate(changed).to_json()
    mine = found.to_json()
    for key in ("shares", "mediated_of_carried", "shapley", "doses", "null"):
        assert_close(again[key], mine[key])


def assert_close(a: object, b: object) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif a is None or b is None:
        assert a is b
    else:
        assert a == pytest.approx(b, rel=1e-6, abs=1e-6)


def test_no_trait_change_has_no_shares_and_says_so() -> None:
    rng = np.random.default_rng(2)
    outcomes = additive(rng)
    found = mediate(replace(outcomes, after=outcomes.before + 0.1 * rng.standard_normal(QUESTIONS)))
    assert found.why is not None
    assert "no trait change" in found.why
    assert found.shares == {}
    assert found.mediated_of_carried is None
    json.dumps(found.to_json(), allow_nan=False)


def test_a_layer_that_carries_too_little_has_no_share_of_what_it_carries() -> None:
    found = mediate(additive(np.random.default_rng(3), inside=0.05, outside=0.1, reading=0.85, chance=0.01))
    assert found.mediated_of_carried is None
    assert "carried elsewhere" in str(found.carried_why)
    undrawn = mediate(additive(np.random.default_rng(3), draws=0))
    assert undrawn.null is None
    assert undrawn.mediated_of_carried is None
    assert "0 null spaces were drawn" in str(undrawn.carried_why)


def test_a_tail_needs_many_draws() -> None:
    found = mediate(additive(np.random.default_rng(4), draws=199, noise=0.0))
    assert found.null is not None
    assert found.null.p == 1 / 200
    below = mediate(additive(np.random.default_rng(4), draws=199, inside=0.05, noise=0.0))
    assert below.null is not None
    assert below.null.p == pytest.approx(1.0, abs=0.05)


def test_the_nulls_own_uncertainty_widens_the_interval() -> None:
    # The same questions and the same mean over draws; only how far the draws lie apart differs.
    outcomes = additive(np.random.default_rng(5), draws=0)

    def width(spread: float) -> float:
        shares = 0.1 + spread * np.linspace(-1, 1, 6)
        effect = outcomes.effect
        draws = tuple(Swapped(outcomes.before + share * effect, outcomes.after - share * effect) for share in shares)
        found = mediate(replace(outcomes, draws=draws)).mediated_of_carried
        assert found is not None
        return found.high - found.low

    assert width(0.2) > 1.5 * width(0.0)


def test_a_change_that_does_nothing_has_no_shares() -> None:
    y = np.random.default_rng(6).standard_normal(QUESTIONS)
    nothing = Swapped(y, y)
    found = mediate(Outcomes(y, y, {"inside": nothing, "outside": nothing, "whole": nothing}))
    assert "no trait change" in str(found.why)


def test_what_cannot_be_a_share_of_what_is_carried_is_refused() -> None:
    few = mediate(additive(np.random.default_rng(7), draws=4))
    assert few.mediated_of_carried is None
    assert "4 null spaces were drawn, 5 are needed" in str(few.carried_why)
    # Chance mediates more than the whole state: both sides of the ratio are negative, and it would read as a large share.
    chance = mediate(additive(np.random.default_rng(7), inside=0.0, outside=0.25, reading=0.75, chance=0.5))
    assert chance.mediated_of_carried is None
    assert "about as much as the whole state" in str(chance.carried_why)
    # Two runs that hardly agree: nothing is known of what the layer carries, which is not to say that it carries little.
    runs = additive(np.random.default_rng(8), shape=(2, QUESTIONS))
    apart = replace(runs, after=runs.before + np.array([[0.35], [1.0]]) * runs.effect)
    open_ended = mediate(apart)
    if open_ended.why is None:
        assert "is not known" in str(open_ended.carried_why)


def test_missing_parts_are_refused() -> None:
    outcomes = additive(np.random.default_rng(6))
    with pytest.raises(ValueError, match="lack the parts whole"):
        mediate(replace(outcomes, parts={name: part for name, part in outcomes.parts.items() if name != "whole"}))


def coverage(shape: tuple[int, ...], repeats: int) -> float:
    """Return how often C's interval holds the truth when the draws are few and questions (and runs) vary."""
    held = 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        effect_of_run = 1 + 0.05 * rng.standard_normal((shape[0], 1)) if len(shape) == 2 else 1.0
        effect = effect_of_run + 0.4 * rng.standard_normal(shape[-1]) + 0.1 * rng.standard_normal(shape)
        before = rng.standard_normal(shape)

        def y(
            share: FloatArray | float, rng: np.random.Generator = rng, before: FloatArray = before, effect: FloatArray = effect
        ) -> FloatArray:
            return before + share * effect + 0.1 * rng.standard_normal(shape)

        own = 0.3 + (0.05 * rng.standard_normal((shape[0], 1)) if len(shape) == 2 else 0) + 0.1 * rng.standard_normal(shape[-1])
        chance = [0.1 + 0.03 * float(rng.standard_normal()) for _ in range(20)]
        parts = {"inside": Swapped(y(own), y(1 - own)), "outside": Swapped(y(0.5), y(0.5)), "whole": Swapped(y(0.8), y(0.2))}
        draws = tuple(Swapped(y(share), y(1 - share)) for share in chance)
        share = mediate(Outcomes(before, y(1.0), parts, draws)).mediated_of_carried
        assert share is not None
        held += share.low <= (0.3 - 0.1) / (0.8 - 0.1) <= share.high
    return held / repeats


@pytest.mark.parametrize("shape", [(QUESTIONS,), (3, QUESTIONS)])
def test_intervals_of_the_mediated_share_cover(shape: tuple[int, ...]) -> None:
    # 400 repeats: 95 % ± three binomial standard errors.
    assert 0.91 <= coverage(shape, 400) <= 0.99


@pytest.mark.parametrize("where", ["inside", "draw", "dose"])
def test_a_score_that_is_no_number_is_refused(where: str) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal(12)
    after = before + 1 + 0.1 * rng.standard_normal(12)
    lost = np.where(np.arange(12) == 3, np.nan, before)
    parts = {part: Swapped(before, after) for part in (INSIDE, OUTSIDE, WHOLE)}
    draws = (Swapped(before, after),) * 5
    if where == "inside":
        parts[INSIDE] = Swapped(lost, after)
    with pytest.raises(ValueError, match="finite scores"):
        mediate(
            Outcomes(
                before,
                after,
                parts,
                (Swapped(lost, after), *draws) if where == "draw" else draws,
                doses={0.5: lost} if where == "dose" else None,
            )
        )


@given(order=st.permutations(range(12)))
def test_the_whole_state_at_the_last_block_is_the_whole_effect_whatever_the_order_of_questions(order: list[int]) -> None:
    """What `test_patching` shows of such arms: the whole state swapped in is Y1, and swapped out Y0."""
    rng = np.random.default_rng(0)
    before = rng.standard_normal(12)[order]
    after = before + 1 + 0.1 * np.random.default_rng(1).standard_normal(12)[order]
    parts = {INSIDE: Swapped(before, after), OUTSIDE: Swapped(after, before), WHOLE: Swapped(after, before)}
    found = mediate(Outcomes(before, after, parts, (Swapped(before, after),) * 5))
    whole = found.shares[WHOLE]
    for share in (whole.sufficiency, whole.necessity, whole.mediated):
        assert [share.value, share.low, share.high] == pytest.approx([1, 1, 1])
    assert found.shapley["reading"].value == pytest.approx(0)

"""Which directions a shift lies nearest, on shifts whose cosines are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.nearest import nearest, rank_of, specificity
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.statistics.intervals import FloatArray

WIDTH, PROMPTS, DIRECTIONS = 48, 24, 10
SCALE = np.arange(1, WIDTH + 1.0) ** -0.5
NULL = Null(0, draws=199)


def activations(rng: np.random.Generator) -> FloatArray:
    rows = rng.standard_normal((400, WIDTH)) * SCALE
    return np.asarray(rows - rows.mean(0))


def shifts(rng: np.random.Generator, cosine: float, noise: float) -> tuple[FloatArray, FloatArray]:
    """Return differences whose mean has a known cosine with the first of some orthonormal directions."""
    axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    mean = cosine * axes[0] + np.sqrt(1 - cosine**2) * axes[-1]
    return mean + noise * rng.standard_normal((PROMPTS, WIDTH)), axes[:DIRECTIONS]


def test_cosines_are_freed_of_noise_and_their_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    values, held, plain = [], [], []
    for _ in range(200):
        differences, directions = shifts(rng, 0.6, 0.25)
        found = nearest(differences, directions, activations(rng), Null(0, draws=19))
        first = found.cosines[0]
        values.append(first.value)
        held.append(first.low <= 0.6 <= first.high)
        mean = differences.mean(0)
        plain.append(float(directions[0] @ mean / np.linalg.norm(mean)))
    assert np.mean(values) == pytest.approx(0.6, abs=0.01)
    assert np.mean(plain) < 0.58
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_nearest_of_many_chance_directions_is_beyond_chance_in_one_of_twenty() -> None:
    rng = np.random.default_rng(1)
    beyond = []
    for _ in range(300):
        centred = activations(rng)
        mean, *directions = rng.standard_normal((1 + DIRECTIONS, WIDTH)) * SCALE
        found = nearest(mean + 0.05 * rng.standard_normal((PROMPTS, WIDTH)), np.array(directions), centred, Null(3, draws=99))
        assert found.high is not None
        beyond.append(max(each.value for each in found.cosines) > found.high)
    assert 0.02 <= np.mean(beyond) <= 0.09


@given(seed=st.integers(0, 1000), unit=st.floats(1e-3, 1e3))
def test_lengths_and_units_do_not_count_and_signs_do(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    differences, directions = shifts(rng, 0.6, 0.1)
    centred = activations(rng)
    small = Null(0, draws=2)
    one = nearest(differences, directions, centred, small)
    other = nearest(unit * differences, directions * np.linspace(1, 9, DIRECTIONS)[:, None], unit * centred, small)
    turned = nearest(-differences, directions, centred, small)
    for a, b, c in zip(one.cosines, other.cosines, turned.cosines, strict=True):
        assert [b.value, b.low, b.high] == pytest.approx([a.value, a.low, a.high], abs=1e-8)
        assert [-c.value, -c.high, -c.low] == pytest.approx([a.value, a.low, a.high], abs=1e-8)


def test_what_has_no_cosine_says_so() -> None:
    rng = np.random.default_rng(2)
    differences, directions = shifts(rng, 0.6, 0.1)
    centred = activations(rng)
    noise = rng.standard_normal((PROMPTS, WIDTH))
    lost = nearest(noise - noise.mean(0), directions, centred, NULL)
    assert (lost.cosines, lost.high) == ((), None)
    assert lost.why is not None
    assert lost.why.startswith("too noisy")
    with pytest.raises(ValueError, match="at least 3 prompts, got 2"):
        nearest(differences[:2], directions, centred, NULL)
    directions[4] = 0
    with pytest.raises(ValueError, match="direction of zeros"):
        nearest(differences, directions, centred, NULL)


def test_ties_count_against_a_rank() -> None:
    assert [rank_of([0.5, 0.9, 0.5, -1.0], i) for i in range(4)] == [3, 1, 3, 4]


def test_specificity_sees_what_was_trained_and_not_what_ranks_high_anyway() -> None:
    rng = np.random.default_rng(0)
    # Some directions rank high with every fine-tune.
    common = np.tile(rng.permutation(12) * 4.0, (12, 1))
    blind = [specificity(common + rng.normal(0, 3, (12, 12)), Null(seed, draws=199)).p for seed in range(200)]
    assert 0.01 <= np.mean(np.array(blind) <= 0.05) <= 0.09
    seeing = specificity(common + rng.normal(0, 3, (12, 12)) - 12 * np.eye(12), Null(0, draws=999))
    assert seeing.p == pytest.approx(0.001)
    assert seeing.rank < seeing.chance - 8
    with pytest.raises(ValueError, match="two and more, got 1"):
        specificity(np.ones((1, 1)), Null(0))

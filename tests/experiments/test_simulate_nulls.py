"""The size of the null tests in the simulation without a link."""

import numpy as np
import pytest

from experiments.simulate import nulls
from experiments.simulate.nulls import Cell, null_sizes
from probes.shift import share_inside
from probes.space import persona_space


def test_a_small_simulation_tells_the_nulls_apart() -> None:
    rows = null_sizes(400, 1, [Cell(6, 576, (6,)), Cell(14, 280, (3,))], [1.0])
    assert [(row["personas"], row["k"], row["repeats"]) for row in rows] == [(6, 6, 400), (14, 3, 400)]
    traits, roles = rows
    assert 0.01 <= traits["n1"] <= 0.1
    assert 0.01 <= roles["n1"] <= 0.1
    assert traits["naive"] == traits["n1"]  # all directions are kept: nothing was selected
    assert roles["naive"] >= roles["n1"] + 0.1
    assert min(traits["n0"], roles["n0"]) >= 0.8


def test_equal_seeds_give_equal_rows() -> None:
    one, again, other = (null_sizes(80, seed, [Cell(3, 60, (3,))], [1.6]) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_numerators_are_those_of_the_share_and_first_columns_are_the_smaller_spaces() -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, nulls.WIDTH + 1) ** -0.5
    vectors = rng.standard_normal((2, 21, nulls.WIDTH)) * scale
    parts = nulls._shifts(2, scale, rng)
    inside = nulls._inside(parts @ nulls._bases(vectors, Cell(20, 1, (9,)).members, 9))
    n = nulls.PROMPTS
    for part, draw, got in zip(parts.astype(float), vectors, inside, strict=True):
        differences = part[0] + part[1:] * np.sqrt(n * (n - 1))
        total = (part[0] ** 2).sum() - (part[1:] ** 2).sum()
        for k in (2, 9):
            basis = persona_space(np.empty((0, nulls.WIDTH)), draw[:20], draw[20], k)
            assert got[k - 1] / total == pytest.approx(share_inside(differences, basis).estimate.value, abs=1e-4)


@pytest.mark.slow
def test_only_the_matched_null_has_its_size() -> None:
    """All cells, 2,000 cases each: some ten minutes on one core."""
    for row in null_sizes():
        assert 0.035 <= row["n1"] <= 0.065, row
        assert row["n0"] >= 0.5, row
        if row["k"] < row["personas"]:
            assert row["naive"] >= 0.5, row

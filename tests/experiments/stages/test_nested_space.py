"""The nested spaces of a run, and the rows that chance is drawn from."""

import numpy as np
import pytest

from wellworn.experiments.stages.loaded_space import PersonaSpace, Roles
from wellworn.experiments.stages.nested_space import ChanceSpaces, averaged_rows, chance_spaces, nested_space

NAMES, PAIRS, QUESTIONS, LAYERS, WIDTH = ["pirate", "poetic", "rude"], 4, 3, 2, 24


def make_space(found: list[bool], roles: int = 0, k: int | None = None) -> PersonaSpace:
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(PAIRS, 2, QUESTIONS, LAYERS, WIDTH)) for _ in NAMES]
    vectors = np.stack([(each[:, 0] - each[:, 1]).mean((0, 1)) for each in states])
    there = np.repeat(np.array(found)[:, None], LAYERS, axis=1)
    cast = None
    if roles:
        read = {f"role {i}" if i else "pirate": rng.normal(size=(5, QUESTIONS, LAYERS, WIDTH)) for i in range(roles)}
        cast = Roles(read, rng.normal(size=(QUESTIONS, LAYERS, WIDTH)), {}, "bank", k)
    return PersonaSpace(NAMES, vectors, there, states, ["bank"] * len(NAMES), cast)


def draw(space: PersonaSpace, layers: list[int], at: int, own: str | None, draws: int) -> ChanceSpaces:
    return chance_spaces(space, nested_space(space, layers, at, own), at, own, draws)


def test_own_comes_first_and_others_are_what_was_found_next_to_it() -> None:
    space = make_space([True, True, False])
    nested = nested_space(space, [0, 1], at=1, own="pirate")
    assert list(nested.names) == ["own", "others"]
    own, both = nested.bases[0]
    cosine = abs(own[:, 0] @ space.vectors[0, 0]) / np.linalg.norm(space.vectors[0, 0])
    assert cosine == pytest.approx(1)
    assert both.shape == (WIDTH, 2)
    assert nested.others[0].shape == (WIDTH, 1)


@pytest.mark.parametrize("own", [None, "rude", "json"])
def test_without_an_own_direction_that_was_found_there_are_others_alone(own: str | None) -> None:
    space = make_space([True, True, False])
    assert list(nested_space(space, [1], at=1, own=own).names) == ["others"]
    drawn = draw(space, [1], at=1, own=own, draws=5)
    assert drawn.own == []
    assert [bases[1].shape for bases in drawn.others] == [(WIDTH, 2)] * 5


def test_roles_of_unknown_dimension_leave_own_and_others_as_they_are() -> None:
    assert list(nested_space(make_space([True] * 3, roles=12, k=None), [0], at=0, own="pirate").names) == ["own", "others"]


def test_the_namesake_is_not_among_the_roles_and_no_direction_is_made_up() -> None:
    space = make_space([True] * 3, roles=12, k=13)
    with_roles = nested_space(make_space([True] * 3, roles=12, k=13), [0], at=0, own="pirate")
    assert list(with_roles.names) == ["own", "others", "roles"]
    # Eleven roles less their mean hold ten directions.
    assert with_roles.bases[0][2].shape == (WIDTH, 1 + 2 + 10)
    assert space.roles is not None
    kept = space.roles.vectors(0)[1:]
    centred = kept - kept.mean(0)
    basis = with_roles.bases[0][2]
    np.testing.assert_allclose((centred @ basis) @ basis.T, centred, atol=1e-8)


def test_rows_are_means_over_questions_without_the_own_trait() -> None:
    space = make_space([True, True, True])
    rows = averaged_rows(space, layer=1, at=1, own="pirate")
    at = [states[..., 1, :] for states in space.states[1:]]
    mean = np.concatenate([each.reshape(-1, QUESTIONS, WIDTH) for each in at]).mean(0)
    expected = np.concatenate([(each - mean).mean(-2).reshape(-1, WIDTH) for each in at])
    np.testing.assert_allclose(rows, expected, atol=1e-10)
    np.testing.assert_allclose(rows.sum(0), 0, atol=1e-9)
    assert len(rows) == 2 * PAIRS * 2
    drawn = draw(space, [0, 1], at=1, own="pirate", draws=3)
    first = nested_space(space, [1], at=1, own="pirate").bases[1][0]
    assert [bases[0].shape for bases in drawn.own] == [(WIDTH, 1)] * 3
    assert len(drawn.others) == 3
    for basis in (bases[1] for bases in drawn.others):
        np.testing.assert_allclose(basis[:, :1], first, atol=1e-12)
        assert basis.shape == (WIDTH, 3)


def test_too_few_personas_make_no_chance() -> None:
    space = make_space([True, False, False])
    assert averaged_rows(space, 0, at=0, own="pirate").shape == (0, WIDTH)
    drawn = draw(space, [0], at=0, own="pirate", draws=3)
    assert drawn.own == drawn.others == []

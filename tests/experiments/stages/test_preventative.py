"""A fine-tune that is steered while it is trained: what is added where, and that less of it is then learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.experiments.conftest import finished, stages_of
from tests.experiments.stages.test_steered_teacher import a_space
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.preventative import vectors_to_add
from wellworn.experiments.study_file import load_study
from wellworn.lora.addresses import WEIGHTS
from wellworn.lora.arms import Preventative

Write = Callable[..., Path]


def found_at(*layers: int) -> PersonaSpace:
    space = a_space()
    space.found[1] = [layer in layers for layer in range(3)]
    return space


def arm(**changes: Any) -> Preventative:
    return Preventative(trait="b", **{"strength": 2.5, **changes})


def test_one_layer_adds_the_whole_direction() -> None:
    space = a_space()
    added = vectors_to_add(space, [1], "b", arm(), seed=0)
    assert list(added) == [1]
    np.testing.assert_allclose(added[1], 2.5 * space.vectors[1, 1])


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (2,)])
def test_all_layers_together_add_it_once(layers: tuple[int, ...]) -> None:
    space = found_at(*layers)
    added = vectors_to_add(space, [0, 1, 2], "b", arm(layer="all"), seed=0)
    assert tuple(added) == layers
    total = np.zeros(16)
    for layer in layers:
        total += added[layer]
        np.testing.assert_allclose(total, 2.5 * space.vectors[1, layer])


def test_chance_is_as_long_and_outside_the_space() -> None:
    space = a_space()
    [drawn], [again], [other] = (vectors_to_add(space, [1], "b", arm(along="chance"), seed).values() for seed in (0, 0, 1))
    assert np.linalg.norm(drawn) == pytest.approx(2.5 * np.linalg.norm(space.vectors[1, 1]))
    assert np.abs(space.basis(1, space.members(1)).T @ drawn).max() < 1e-9
    assert np.array_equal(drawn, again)
    assert not np.allclose(drawn, other)


def test_a_direction_that_was_not_found_is_not_added() -> None:
    for layers, where in (([1], "layer 1"), ([0, 1, 2], "any layer")):
        with pytest.raises(InputError, match=f"the direction of b was not found in this model at {where}"):
            vectors_to_add(found_at(), layers, "b", arm(), seed=0)


def test_plain_answers_have_no_direction_to_steer_along(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="has no direction to steer along; the arm preventative needs a trait or a control"):
        load_study(str(tiny_study(runs=[{"arm": "preventative", "trait": "neutral"}])))


def test_runs_are_named_by_what_was_added_and_have_the_reference_of_a_free_one(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    more = [{"along": "chance"}, {"strength": -2.0}, {"layer": "all"}]
    runs = [{"arm": "sft", "trait": "pirate"}, *({"arm": "preventative", "trait": "pirate", **each} for each in more)]
    folder = finished(tiny_study(runs=runs, mediate=None), tmp_path)
    free, *steered = read_json(folder / "tiny" / "summary.json")["runs"]
    assert [row["settings"] for row in steered] == more
    assert {row["reference"] for row in (free, *steered)} == {"neutral"}
    # Each is another fine-tune, and one neutral one is the reference of all.
    assert len({(path / "adapter" / WEIGHTS).read_bytes() for path in stages_of(folder, "preventative").values()}) == 3
    assert len(stages_of(folder, "train")) == 2

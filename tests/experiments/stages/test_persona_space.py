"""Roles in the persona space, in a whole study on the tiny model, and on synthetic states."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import finished, stages_of
from wellworn.data.catalog import load_role, load_roles, role_names
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.findings.results import load_results
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.stages import persona_space as space_stages
from wellworn.experiments.stages.loaded_space import Chosen, PersonaSpace, Roles
from wellworn.experiments.stages.persona_directions import DIMENSION
from wellworn.experiments.stages.persona_space import DICTIONARY
from wellworn.experiments.study_file import load_study
from wellworn.probes.geometry.space import persona_space

Write = Callable[..., Path]
# Of each kind some, and the namesake of a trait.
NAMES = [*role_names()[:12], "pirate_captain"]
LAYERS, WIDTH = 2, 40


@pytest.fixture
def space() -> PersonaSpace:
    """Four traits with states of eight questions, and fourteen roles with states of four, two of them a trait's namesakes."""
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((6, 2, 8, LAYERS, WIDTH)) for _ in range(4)]
    vectors = np.stack([(each[:, 0] - each[:, 1]).mean((0, 1)) for each in states])
    roles = {f"role_{i}": rng.standard_normal((5, 4, LAYERS, WIDTH)) for i in range(13)} | {"b": rng.standard_normal((5, 4, LAYERS, WIDTH))}
    read = Roles(roles, rng.standard_normal((4, LAYERS, WIDTH)), {"role_3": "a"}, "four", 5)
    found = np.ones((4, LAYERS), dtype=bool)
    found[2] = False
    return PersonaSpace(list("abcd"), vectors, found, states, ["eight"] * 4, read)


def test_a_trait_takes_its_namesakes_along(space: PersonaSpace) -> None:
    assert space.members(0) == Chosen((0, 1, 3), tuple(range(14)))
    assert space.members(0, "a") == Chosen((1, 3), tuple(i for i in range(14) if i != 3))
    assert space.members(0, "b") == Chosen((0, 3), tuple(range(13)))
    assert space.members(0, "d") == Chosen((0, 1), tuple(range(14)))
    assert not len(PersonaSpace(space.names, space.vectors, space.found, space.states, space.asked, _without_k(space)).members(0))


def _without_k(space: PersonaSpace) -> Roles:
    assert space.roles is not None
    return Roles(space.roles.states, space.roles.default, space.roles.namesakes, space.roles.asked, None)


def test_the_space_is_that_of_roles_traits_and_the_axis(space: PersonaSpace) -> None:
    members = space.members(1, "a")
    assert space.roles is not None
    means = np.stack([each[:, :, 1].mean((0, 1)) for name, each in space.roles.states.items() if name != "role_3"])
    expected = persona_space(space.vectors[[1, 3], 1], means, space.roles.default[:, 1].mean(0), 5)
    assert np.allclose(space.basis(1, members), expected)
    axis = space.roles.default[:, 1].mean(0) - means.mean(0)
    assert abs(space.basis(1, members)[:, 0] @ axis / np.linalg.norm(axis)) == pytest.approx(1)
    # Every state that made it stands behind chance: two traits, thirteen roles, the default.
    assert space.activations(1, members).shape == (2 * 6 * 2 * 8 + 13 * 5 * 4 + 4, WIDTH)
    assert space.null_bases(1, members, 3).shape == (3, WIDTH, 5)


@pytest.mark.parametrize("k", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_a_study_with_roles_has_a_space_of_them_and_names_the_nearest(
    tiny_study: Write, tmp_path: Path, all_found: None, monkeypatch: pytest.MonkeyPatch, k: int | None
) -> None:
    asked = space_stages.dimension
    monkeypatch.setattr(space_stages, "dimension", lambda *args, **kwargs: replace(asked(*args, **kwargs), k=k))
    study = tiny_study(roles=NAMES, role_questions=2, extract_questions=4, mediate=None, seeds=[0])
    folder = finished(study, tmp_path)
    measured = stages_of(folder, "measure")["measure sft pirate (seed 0)"]
    results = load_results(folder / "tiny")
    size = read_json(stages_of(folder, "dimension")["dimension of the persona space at layer 2"] / DIMENSION)
    assert (size["traits"], size["roles"], size["k"]) == (2, 13, k)
    row = summarise(results).runs[0]
    assert row.own_rank is not None
    assert row.own_rank.of == 15
    assert {each["kind"] for each in read_json(measured / "measurement.json")["personas"]["nearest"]} == {"trait", "role"}
    arrays = load_file(measured / "arrays.safetensors")
    wider = load_file(stages_of(folder, "dictionary")["wider dictionary at layer 2"] / DICTIONARY)
    if k is None:
        assert "basis" not in arrays
        assert "no number of dimensions foretells" in str(row.why)
    else:
        assert arrays["basis"].shape == (32, k)
        assert arrays["basis"].T @ arrays["basis"] == pytest.approx(np.eye(k), abs=1e-5)
        assert row.share is not None or "too noisy" in str(row.why)
        assert wider["directions"].shape == (15, 32)
        # Random roles in place of a space that is made of roles would say nothing.
        assert row.among_roles is None
    assert wider["activations"].shape == (13 * 5 * 2, 32)


def test_a_dictionary_makes_no_space(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    study = tiny_study(dictionary=NAMES, role_questions=2, mediate=None, runs=[{"arm": "sft", "trait": "pirate"}])
    folder = finished(study, tmp_path)
    wider = load_file(stages_of(folder, "dictionary")["wider dictionary at layer 2"] / DICTIONARY)
    assert wider["directions"].shape == (13, 32)
    assert wider["directions"].sum(0) == pytest.approx(np.zeros(32), abs=1e-3)
    [run] = load_results(folder / "tiny").runs[:1]
    assert run.arrays["basis"].shape[1] <= 2
    assert run.dictionary is not None


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["oracle"], "12 or more make a space or a dictionary"),
        (["nobody"], "unknown role 'nobody'"),
        ("none", "must be all, or a list of names"),
    ],
)
def test_roles_that_make_no_space_are_refused(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], roles: object, said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(roles=roles)), "--runs-dir", str(tmp_path / "runs")])
    assert said in " ".join(capsys.readouterr().err.split())


def test_namesakes_are_written_beside_the_roles() -> None:
    assert load_role("pirate_captain").namesake == "pirate"
    assert load_role("oracle").namesake is None


def test_a_namesake_is_in_every_hash(tiny_study: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom a trait takes along decides every own-removed share."""

    def ids() -> list[str]:
        study = load_study(str(tiny_study(roles=NAMES, role_questions=2, mediate=None)))
        return [run.measure.id for run in plan(study, StudyContext.of(study, Ranks())).runs if run.measure]

    before = ids()
    plain = load_roles
    alone = {"namesake": None}
    monkeypatch.setattr("wellworn.experiments.plan.plan.load_roles", lambda names: [role.model_copy(update=alone) for role in plain(names)])
    assert not set(before) & set(ids())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"roles": NAMES, "role_questions": 6}, "a role is read on 6, and a trait on extract_questions = 4"),
        ({"dictionary": ["oracle"]}, "12 or more make a space or a dictionary"),
        ({"roles": NAMES, "dictionary": "all"}, "roles that make the space already serve as the dictionary"),
    ],
)
def test_roles_that_cannot_be_used_are_refused_before_anything_runs(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(**changes)), "--runs-dir", str(tmp_path / "runs")])
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_layer_that_holds_fewer_dimensions_than_k_has_no_space_and_says_so(space: PersonaSpace) -> None:
    assert space.roles is not None
    wide = replace(space, roles=replace(space.roles, k=17))
    assert len(wide.members(0)) == 17
    assert not wide.members(0, "a")
    assert wide.no_space(0) is None
    assert "hold fewer than its k = 17 dimensions" in str(wide.no_space(0, "a"))
    assert "no number of dimensions" in str(replace(space, roles=replace(space.roles, k=None)).no_space(0))


def test_draws_of_many_roles_have_the_covariance_of_all_their_states(space: PersonaSpace) -> None:
    members = space.members(0)
    rows = space.activations(0, members)
    fewer = space._rows(0, members)
    assert (len(rows), fewer.shape) == (3 * 6 * 2 * 8 + 14 * 5 * 4 + 4, (WIDTH, WIDTH))
    assert fewer.T @ fewer == pytest.approx(rows.T @ rows)
    alone = replace(space, roles=None)
    assert np.array_equal(alone._rows(0, alone.members(0)), alone.activations(0, alone.members(0)))

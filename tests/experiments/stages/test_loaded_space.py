"""The persona space of a study: a run's own direction beside the library, and the dimension."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import stages_of
from wellworn.data.catalog import load_bank, load_control, load_trait
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.stages.loaded_space import centre, centre_within_questions
from wellworn.experiments.stages.persona_space import lay_out_space
from wellworn.experiments.study_file import load_study

Write = Callable[..., Path]


@pytest.fixture
def context(tiny_study: Write) -> StudyContext:
    return StudyContext.of(load_study(str(tiny_study())), Ranks())


def test_the_own_direction_of_a_control_stands_beside_the_library(context: StudyContext) -> None:
    space_stages = lay_out_space(context, [load_trait("pirate"), load_trait("pessimistic")])
    beside = space_stages.with_own(context, load_control("json"), load_bank("everyday"))
    assert beside.names == ("pirate", "pessimistic", "json")
    assert beside.spaces[0] is space_stages.spaces[0]
    assert beside.directions[:2] == space_stages.directions
    # Its direction is held against the activations of all.
    assert beside.spaces[1].needs == (beside.directions[2], *space_stages.directions)
    assert space_stages.with_own(context, load_trait("pirate"), load_trait("pirate").examples) is space_stages


def test_too_little_data_for_a_direction_is_refused(context: StudyContext) -> None:
    space_stages = lay_out_space(context, [load_trait("pirate")])
    few = [example for example in load_bank("everyday") if example.split != "extract"]
    with pytest.raises(InputError, match="extract_questions: json has 0, the study asks for 4"):
        space_stages.with_own(context, load_control("json"), few)


def test_too_few_contrast_pairs_are_refused(tiny_study: Write) -> None:
    context = StudyContext.of(load_study(str(tiny_study(contrast_pairs=7))), Ranks())
    pirate = load_trait("pirate")
    few = pirate.model_copy(update={"contrast_pairs": pirate.contrast_pairs[:6]})
    with pytest.raises(InputError, match="contrast_pairs: pirate has 6, the study asks for 7"):
        lay_out_space(context, [few])


def test_a_control_is_read_with_its_instruction_in_the_full_space_alone(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    study = tiny_study(runs=[{"arm": "sft", "trait": "uppercase"}], library=["pirate", "pessimistic", "poetic"], mediate=None)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert stop.value.code in (0, None)
    (folder,) = stages_of(tmp_path / "runs", "measure").values()
    facts = read_json(folder / "measurement.json")
    shift = facts["references"]["neutral"]["texts"]["neutral"]
    assert (shift["own_removed"]["directions"], shift["full"]["directions"]) == (3, 4)
    assert shift["full"]["share"]["value"] > shift["own_removed"]["share"]["value"]
    assert facts["found"] == ["pirate", "pessimistic", "poetic", "uppercase"]
    own = load_file(stages_of(tmp_path / "runs", "space")["direction of uppercase next to the persona space"] / "space.safetensors")[
        "vectors"
    ]
    mean = load_file(folder / "arrays.safetensors")["shift"][2]
    expected = float(own[0, 2] @ mean / np.linalg.norm(own[0, 2]) / np.linalg.norm(mean))
    assert shift["coordinates"]["uppercase"] == pytest.approx(expected, abs=1e-5)
    summary = read_json(tmp_path / "runs" / "tiny" / "summary.json")
    assert len(summary["dimension"]["q2"]) == 2
    assert summary["dimension"]["traits"] == 3
    assert "Dimension of the persona space at layer 2" in (tmp_path / "runs" / "tiny" / "report.html").read_text()


def test_states_are_centred_within_the_questions_that_they_share() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2, 3, 4, 5)), rng.standard_normal((3, 2, 3, 4, 5)) + 7
    c = rng.standard_normal((5, 2, 4, 5)) - 9  # a role: [prompts, questions, layers, d_model]
    rows = centre_within_questions([a, b, c], ["bank", "bank", "own"], 1)
    assert rows.shape == (12 + 18 + 10, 5)
    both, alone = rows[:30].reshape(10, 3, 5), rows[30:].reshape(5, 2, 5)
    assert both.mean(0) == pytest.approx(np.zeros((3, 5)))
    assert alone.mean(0) == pytest.approx(np.zeros((2, 5)))
    # What tells the two apart is not taken out of those that share their questions.
    assert np.linalg.norm(both[:4].mean((0, 1))) > 1
    content = 100 * rng.standard_normal((3, 4, 5))
    assert centre_within_questions([a + content, b + content, c], ["bank", "bank", "own"], 1) == pytest.approx(rows)


def test_activations_are_centred_together() -> None:
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((2, 2, 3, 4, 5)), rng.standard_normal((3, 2, 3, 4, 5)) + 7]
    rows = centre(states, 1)
    assert rows.shape == (30, 5)
    assert rows.mean(0) == pytest.approx(np.zeros(5))
    assert np.abs(rows[:12].mean()) > 1

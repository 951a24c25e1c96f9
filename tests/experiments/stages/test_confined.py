"""A fine-tune that writes along some directions alone, or everywhere but along them: in its weights, and in what its blocks write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.experiments.conftest import Call, stages_of
from tests.tiny import make_model
from wellworn.data.errors import InputError
from wellworn.experiments.cli import main
from wellworn.experiments.stages.confined import last_writers
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.written import EXCEPT, load_written
from wellworn.experiments.study_file import load_study
from wellworn.probes.mediation.pathways import OTHERS, OWN

Write = Callable[..., Path]
LIBRARY = ["pirate", "pessimistic", "poetic"]


def run(write: Write, folder: Path, **arm: Any) -> dict[str, Path]:
    runs = [{"arm": "confined", "trait": "pirate", **arm}]
    study = write(runs=runs, library=LIBRARY, mediate=None, layer=3, written={"questions": 4})
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    [adapter] = stages_of(folder, "confined").values()
    [written] = (path for title, path in stages_of(folder, "written").items() if "against base" in title)
    [space] = stages_of(folder, "space").values()
    return {"adapter": adapter, "written": written, "space": space}


@pytest.mark.parametrize(
    ("arm", "part"),
    [
        ({"to": "own"}, OWN),
        pytest.param({"to": "space"}, OTHERS, marks=pytest.mark.slow),
        pytest.param({"to": "own", "outside": True}, f"{EXCEPT}{OWN}", marks=pytest.mark.slow),
        ({"to": "space", "outside": True}, f"{EXCEPT}{OTHERS}"),
    ],
)
def test_all_that_is_written_is_kept_by_the_part_that_it_was_confined_to(
    tiny_study: Write, tmp_path: Path, all_found: None, arm: dict[str, Any], part: str
) -> None:
    folders = run(tiny_study, tmp_path / "runs", **arm)
    found = load_written(folders["written"])
    outcomes = dict(zip(found.facts.parts, found.logprob, strict=True))
    assert np.abs(outcomes[AFTER] - outcomes[BEFORE]).max() > 1e-3
    np.testing.assert_allclose(outcomes[part], outcomes[AFTER], atol=1e-5)
    # The contrary part keeps nothing.
    contrary = part.removeprefix(EXCEPT) if part.startswith(EXCEPT) else f"{EXCEPT}{part}"
    np.testing.assert_allclose(outcomes[contrary], outcomes[BEFORE], atol=1e-5)


def test_weights_lie_along_the_own_direction(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folders = run(tiny_study, tmp_path / "runs")
    vectors = load_file(folders["space"] / "space.safetensors")["vectors"][LIBRARY.index("pirate")]
    weights = load_file(folders["adapter"] / "adapter" / "adapter_model.safetensors")
    assert all("down_proj" in name for name in weights)
    for layer in range(4):
        [matrix] = (each for name, each in weights.items() if f".{layer}." in name and "lora_B" in name)
        own = vectors[layer] / np.linalg.norm(vectors[layer])
        assert np.linalg.norm(matrix) > 1e-3
        np.testing.assert_allclose(np.outer(own, own @ matrix), matrix, atol=1e-6)


def test_a_chance_direction_is_another_one(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folders = run(tiny_study, tmp_path / "runs", to="chance")
    found = load_written(folders["written"])
    outcomes = dict(zip(found.facts.parts, found.logprob, strict=True))
    assert np.abs(outcomes[OWN] - outcomes[AFTER]).max() > 1e-4


def test_what_is_learnt_with_states_reset_differs_and_is_written_outside_too(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    weights = []
    for reset in (False, True):
        folders = run(tiny_study, tmp_path / "runs" / str(reset), to="space", outside=True, reset=reset)
        weights.append(load_file(folders["adapter"] / "adapter" / "adapter_model.safetensors"))
        found = load_written(folders["written"])
        outcomes = dict(zip(found.facts.parts, found.logprob, strict=True))
        np.testing.assert_allclose(outcomes[f"{EXCEPT}{OTHERS}"], outcomes[AFTER], atol=1e-5)
    assert max(np.abs(one - weights[1][name]).max() for name, one in weights[0].items()) > 1e-4


def test_plain_answers_have_no_direction_to_write_along(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="has no direction to write along; the arm confined needs a trait or a control"):
        load_study(str(tiny_study(runs=[{"arm": "confined", "trait": "neutral"}])))


def test_nothing_is_reset_where_a_fine_tune_writes(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="what is written along these directions would be lost; set `outside: true` too"):
        load_study(str(tiny_study(runs=[{"arm": "confined", "trait": "pirate", "reset": True}])))


def test_states_cannot_be_reset_where_weights_are_spread_over_ranks(
    tiny_study: Write, tmp_path: Path, wellworn: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(runs=[{"arm": "confined", "trait": "pirate", "outside": True, "reset": True}], library=LIBRARY)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    refused = wellworn("run", study, "--runs-dir", tmp_path / "runs")
    assert refused.code == 2
    assert "a confined arm with reset needs the whole model on each GPU; start it without FSDP" in refused.err
    # Nothing was computed.
    assert not [*(tmp_path / "runs" / "stages").glob("*/manifest.json")]


def test_the_last_writers_are_known_by_name() -> None:
    assert last_writers(make_model("llama")) == ["down_proj"]
    assert last_writers(make_model("gpt_neox")) == ["dense_4h_to_h"]
    with pytest.raises(InputError, match="has none of the modules down_proj"):
        last_writers(torch.nn.Linear(2, 2))

"""The arm `random` in a whole study on the tiny model, whose directions are declared found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import finished, stages_of
from wellworn.data.files import read_json

Write = Callable[..., Path]


@pytest.mark.slow
def test_random_weights_stand_beside_fine_tunes(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = [{"arm": "sft", "trait": "pirate"}, {"arm": "random", "trait": "pirate"}, {"arm": "random", "trait": "neutral"}]
    folder = finished(tiny_study(runs=runs, seeds=[0, 1]), tmp_path)
    trained, drawn = stages_of(folder, "train"), stages_of(folder, "random")
    assert set(drawn) == {f"random weights in place of sft {trait} (seed {seed})" for trait in ("pirate", "neutral") for seed in (0, 1)}
    summary = read_json(folder / "tiny" / "summary.json")
    rows = {(row["arm"], row["trait"], row["seed"]): row for row in summary["runs"]}
    for seed in (0, 1):
        random = rows["random", "pirate", seed]
        assert random["reference"] == "base"
        assert random["missing"]["neutral"] == "random weights were not trained, and have no neutral fine-tune"
        assert random["effect"]["value"] == random["effect_base"]["value"]
        assert rows["random", "neutral", seed]["effect"] is None
    # Weights differ between seeds, and are no larger or smaller than the trained ones at the layer.
    weights = [load_file(path / "adapter" / "adapter_model.safetensors") for title, path in sorted(drawn.items()) if "pirate" in title]
    assert all(not np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
    norms = {title: read_json(path / "random.json")["norm"] for title, path in drawn.items()}
    assert all(norm > 0 for norm in norms.values())
    assert any(title.startswith("train sft pirate") for title in trained)
    shifts = {
        title: load_file(path / "arrays.safetensors")["shift"] for title, path in stages_of(folder, "measure").items() if "random" in title
    }
    layer = summary["layer"]
    for seed in (0, 1):
        shift = np.linalg.norm(shifts[f"measure random pirate (seed {seed})"][layer])
        assert shift == pytest.approx(norms[f"random weights in place of sft pirate (seed {seed})"], rel=1e-3)
    assert "random pirate" in (folder / "tiny" / "report.html").read_text()

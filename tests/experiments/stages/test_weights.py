"""The stage `weights` in a whole study on the tiny model, whose directions are declared found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import finished, stages_of
from wellworn.data.catalog import load_bank
from wellworn.data.chat import Chat
from wellworn.data.files import read_json
from wellworn.data.mixtures import plain_turns
from wellworn.experiments.stages.loaded_space import NO_SPACE
from wellworn.lora import adapters as lora_adapters
from wellworn.lora import models
from wellworn.probes.geometry.space import span
from wellworn.probes.geometry.weights import writes

Write = Callable[..., Path]


def test_where_an_update_writes_is_told_in_the_space_without_its_own_direction(
    tiny_study: Write, tmp_path: Path, all_found: None, tiny_model: Path
) -> None:
    runs = finished(tiny_study(runs=[{"arm": "sft", "trait": "pirate"}, {"arm": "base"}], mediate=None), tmp_path)
    facts = read_json(stages_of(runs, "weights")["where sft pirate (seed 0) writes"] / "weights.json")
    vectors = load_file(stages_of(runs, "space")["persona space"] / "space.safetensors")["vectors"].astype(np.float64)
    adapter = next(path for title, path in stages_of(runs, "train").items() if title.startswith("train sft pirate"))
    base = models.load(models.resolve(str(tiny_model)), "float32")
    rows = [Chat(base.tokenizer).encode(turn) for turn in plain_turns(load_bank("everyday"), "evaluate")[:24]]
    with lora_adapters.adapted(base, {"pirate": adapter / "adapter"}) as model:
        # Of the library's two traits the other one is left.
        expected = writes(model, rows, ["pirate"], {layer: span(vectors[1:, layer]) for layer in range(4)})["pirate"]
    assert [write["omega"] for write in facts["writes"]] == pytest.approx([write.omega for write in expected], rel=1e-4)
    assert [(write["layer"], write["module"]) for write in facts["writes"]] == [(write.layer, write.module) for write in expected]
    pirate, unchanged = read_json(runs / "tiny" / "summary.json")["runs"]
    assert pirate["weights"] == facts["together"]
    assert (unchanged["weights"], unchanged["weights_why"]) == (None, "the run has no adapter")
    assert "Where the update writes" in (runs / "tiny" / "report.html").read_text()


def test_an_update_that_writes_nothing_itself_is_said_so(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    train = {"batch_size": 8, "lora": {"r": 2, "target_modules": ["q_proj"]}, "sft": {"max_steps": 2, "learning_rate": 1e-2}}
    runs = finished(tiny_study(runs=[{"arm": "sft", "trait": "pirate"}], mediate=None, train=train), tmp_path)
    (row,) = read_json(runs / "tiny" / "summary.json")["runs"]
    assert row["weights"] is None
    assert row["weights_why"].startswith("the adapter: changes nothing of what writes into the residual stream at layers [0, 1, 2, 3]")
    assert row["share"] is not None or row["missing"]["share"]


def test_without_a_space_nothing_is_weighed(tiny_study: Write, tmp_path: Path) -> None:
    runs = finished(tiny_study(runs=[{"arm": "sft", "trait": "pirate"}], mediate=None), tmp_path)
    (row,) = read_json(runs / "tiny" / "summary.json")["runs"]
    assert (row["weights"], row["weights_why"]) == (None, NO_SPACE)

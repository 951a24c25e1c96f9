"""The stage `pathways` in a whole study on the tiny model, whose directions are declared found, and its arithmetic."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import find_all, stages_of
from tests.tiny import write_tiny_study
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.stages.pathways import AFTER, BEFORE, load_pathways, profile_layers, sampled_questions
from wellworn.probes.mediation.pathways import ABOVE, OTHERS, OWN, REST

Write = Callable[..., Path]
PATHWAYS = {"draws": 19, "questions": 4, "surface": 6, "profile": 3}
# One run relative to one reference, where no more is needed.
ONE: dict[str, Any] = {"runs": [{"arm": "sft", "trait": "uppercase"}], "pathways": PATHWAYS | {"references": "headline", "profile": 0}}
RUNS = [{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "uppercase"}, {"arm": "prompted", "trait": "pirate"}]
LIBRARY = ["pirate", "pessimistic", "poetic"]


def run(write: Write, folder: Path, **changes: Any) -> Path:
    study = write(**{"runs": RUNS, "library": LIBRARY, "mediate": None, "pathways": PATHWAYS} | changes)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    return folder


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pathways")

    with pytest.MonkeyPatch.context() as patch:
        find_all(patch)
        return run(partial(write_tiny_study, folder / "tiny.yaml", tiny_model), folder / "runs")


def test_where_a_change_goes_is_measured_from_end_to_end(runs: Path) -> None:
    found = stages_of(runs, "pathways")
    assert sorted(found) == sorted(
        f"pathways of sft {trait} (seed 0) against {reference}, up to layer 2"
        for trait in ("pirate", "uppercase")
        for reference in ("sft neutral (seed 0)", "base")
    )
    summary = read_json(runs / "tiny" / "summary.json")
    pirate, uppercase, prompted = summary["runs"]
    assert prompted["pathways"] is None
    assert "changed weights" in prompted["missing"]["pathways"]
    for row in (pirate, uppercase):
        assert list(row["pathways"]) == ["neutral", "base"]
        headline, base = row["pathways"].values()
        assert headline["layers"] == [0, 1, 2]
        assert headline["adapted_above"] == [3]
        for outcome in (base["trait"], base["contrast"]):
            assert outcome["chance_own"] is None
            assert outcome["kappa"] is None
        for outcome in (headline["trait"], headline["plain"], headline["contrast"], base["trait"]):
            if outcome["why"]:
                assert "standard errors" in outcome["why"] or "away from the trait" in outcome["why"]
                continue
            assert list(outcome["shares"]) == [OWN, OTHERS, REST, ABOVE]
            assert sum(share["value"] for share in outcome["shares"].values()) == pytest.approx(1, abs=1e-6)
    headline = uppercase["pathways"]["neutral"]
    assert headline["contrast"]["why"] is None
    for outcome in (headline["trait"], headline["contrast"]):
        assert outcome["chance_own"]["draws"] == outcome["chance_others"]["draws"] == 19
        assert sorted(outcome["best"]) == ["1", "16", "4", "specific"]
    assert [window["layers"] for window in headline["profile"]] == [[0, 0], [0, 1], [0, 2]]
    assert headline["last_layer"]["layers"] == [2, 2]
    # uppercase has its own direction next to three traits: the second space has four dimensions.
    assert headline["dimensions"] == [1, 4]


def test_outcomes_of_the_unchanged_models_are_those_of_plain_readings(runs: Path) -> None:
    read, done = stages_of(runs, "read"), stages_of(runs, "pathways")
    outcomes = load_pathways(done["pathways of sft uppercase (seed 0) against sft neutral (seed 0), up to layer 2"])
    logprob = dict(zip(outcomes.facts.interventions, outcomes.logprob, strict=True))
    for who, name in (("sft neutral (seed 0)", BEFORE), ("sft uppercase (seed 0)", AFTER)):
        for row, text in enumerate(("uppercase", "plain")):
            plain = load_file(read[f"{who} reads {text} answers"] / "reading.safetensors")["logprob"]
            np.testing.assert_allclose(logprob[name][row], plain, atol=1e-4)
    # The windows end with all layers, whose shares are the nested spaces' own on the same questions.
    assert len(outcomes.facts.questions) == 4
    assert {name.split(".")[0].rstrip("0123456789") for name in outcomes.facts.sampled} == {"chance_own", "chance_others", "until", "at"}


def test_nothing_is_above_adapters_that_end_at_the_layer(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 2]}
    sft = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-1}
    folder = run(tiny_study, tmp_path / "runs", train={"batch_size": 8, "lora": lora, "sft": sft}, **ONE)
    (row,) = [row for row in read_json(folder / "tiny" / "summary.json")["runs"] if row["trait"] == "uppercase"]
    headline = row["pathways"]["neutral"]
    assert headline["layers"] == [1, 2]
    assert headline["adapted_above"] == []
    assert headline["trait"]["why"] is None
    above = headline["trait"]["shares"][ABOVE]
    assert above["value"] == pytest.approx(0, abs=1e-4)
    assert -1e-3 < above["low"] <= above["high"] < 1e-3


def test_runs_of_several_seeds_are_taken_together(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs", seeds=[0, 1], **ONE)
    summary = read_json(folder / "tiny" / "summary.json")
    (group,) = [group for group in summary["groups"] if group["trait"] == "uppercase"]
    alone = [row["pathways"]["neutral"] for row in summary["runs"] if row["trait"] == "uppercase"]
    joint = group["pathways"]["neutral"]
    assert joint["trait"]["effect"]["value"] == pytest.approx(np.mean([each["trait"]["effect"]["value"] for each in alone]), abs=1e-6)
    totals = [each["trait"]["effect"]["value"] for each in alone]
    own = np.dot(totals, [each["trait"]["shares"][OWN]["value"] for each in alone]) / sum(totals)
    assert joint["trait"]["shares"][OWN]["value"] == pytest.approx(own, abs=1e-6)


def test_questions_and_depths_are_spread_evenly() -> None:
    assert sampled_questions(24, 8) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert sampled_questions(3, 8) == [0, 1, 2]
    assert profile_layers([11, 12, 13, 14, 15], 3) == [11, 13, 15]
    assert profile_layers([22], 5) == [22]
    assert profile_layers([1, 2], 0) == []


def test_of_weights_that_were_never_moved_it_is_too_small_to_say(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    train = {"batch_size": 24, "lora": {"r": 2}, "sft": {"max_steps": 2, "learning_rate": 0.0}}
    folder = run(tiny_study, tmp_path / "runs", train=train, neutral="self", answer_tokens=8, **ONE)
    [row] = read_json(folder / "tiny" / "summary.json")["runs"]
    assert row["pathways"]["neutral"]["contrast"]["effect"]["value"] == 0
    assert row["statement"]["name"] == "too small to say"
    assert "too small to say" in (folder / "tiny" / "report.html").read_text(encoding="utf-8")

"""The stage `mediate` in a whole study on the tiny model, whose directions are declared found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.experiments.conftest import find_all, finished, stages_of
from tests.tiny import write_tiny_study
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.plan.mediations import ONE_SEED
from wellworn.experiments.stages.mediation import load_mediated
from wellworn.experiments.stages.mediation_arms import parse_outcomes
from wellworn.probes.mediation.shares import mediate

Write = Callable[..., Path]
RUNS = [{"arm": "sft", "trait": "uppercase"}, {"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "pirate"}]
MEDIATE = {"draws": 5, "surface": 6, "doses": [0.5], "layers": [1], "references": "both"}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mediation")
    with pytest.MonkeyPatch.context() as patch:
        find_all(patch)
        return finished(write_tiny_study(folder / "tiny.yaml", tiny_model, runs=RUNS, mediate=MEDIATE), folder)


def test_a_study_is_mediated_from_end_to_end(runs: Path) -> None:
    found = stages_of(runs, "mediate")
    assert sorted(found) == sorted(
        [
            *(
                f"mediate sft {trait} (seed 0): {text} text against {reference}, layer 2"
                for trait in ("uppercase", "pirate")
                for text in ("held-out", "training-like")
                for reference in ("neutral", "base")
            ),
            *(f"mediate sft {trait} (seed 0): held-out text against neutral, layer 1" for trait in ("uppercase", "pirate")),
            # Beside a prompt, which can be swapped at the response alone, the fine-tune is read so too.
            "mediate sft pirate (seed 0): held-out, response only, text against base, layer 2",
            "mediate prompted pirate (seed 0): held-out, response only, text against base, layer 2",
        ]
    )
    summary = read_json(runs / "tiny" / "summary.json")
    uppercase, pirate, prompted = summary["runs"]
    for row in (uppercase, pirate, prompted):
        assert row["mediated"] or row["missing"]["mediated_of_carried"].startswith("no trait change")
    assert uppercase["effect"]["value"] > 0.1
    assert sum(share["value"] for share in uppercase["shapley"].values()) == pytest.approx(1)
    assert uppercase["verdict"] is not None
    assert summary["dimension"] == {"k": None, "why": "2 traits were found, 3 are needed", "traits": 2, "roles": 0}
    for row in (uppercase, pirate, prompted):
        assert row["novelty"] is None
        assert row["missing"]["novelty"] == ONE_SEED
    assert "Mediation of sft uppercase" in (runs / "tiny" / "report.html").read_text()
    json.dumps(summary, allow_nan=False)


def test_outcomes_agree_with_what_the_readings_say(runs: Path) -> None:
    read, done = stages_of(runs, "read"), stages_of(runs, "mediate")

    def score(who: str) -> np.ndarray:
        texts = [load_file(read[f"{who} reads {text} answers"] / "reading.safetensors")["logprob"] for text in ("uppercase", "plain")]
        return texts[0].astype(float) - texts[1]

    folder = done["mediate sft uppercase (seed 0): held-out text against neutral, layer 2"]
    found = load_mediated(folder, "neutral", "trait", 2)
    outcomes = parse_outcomes(found.interventions, found.scores)
    assert outcomes.before == pytest.approx(score("sft neutral (seed 0)"), abs=1e-4)
    assert outcomes.after == pytest.approx(score("sft uppercase (seed 0)"), abs=1e-4)
    # P and I − P move what the whole does; the control's own direction is that of its instruction, beside the library.
    assert found.moved["inside"] + found.moved["outside"] == pytest.approx(1, abs=1e-3)
    assert set(outcomes.parts) == {"inside", "outside", "whole", "full", "own", "everywhere"}
    assert (len(outcomes.draws), len(outcomes.matched), list(outcomes.doses or {})) == (5, 5, [0.5])
    own = load_mediated(done["mediate sft pirate (seed 0): held-out text against neutral, layer 2"], "neutral", "trait", 2)
    assert set(parse_outcomes(own.interventions, own.scores).parts) == {"inside", "outside", "whole", "full", "own", "everywhere"}
    null = mediate(outcomes).null
    assert null is not None
    total = outcomes.effect.mean()
    assert null.sufficiency == pytest.approx(np.mean([draw.into - outcomes.before for draw in outcomes.draws]) / total)
    assert null.necessity == pytest.approx(np.mean([outcomes.after - draw.out for draw in outcomes.draws]) / total)
    assert null.mediated == pytest.approx((null.sufficiency + null.necessity) / 2)


def test_matched_draws_move_the_state_as_far_as_the_persona_part(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []

    def norms(_model: Any, _texts: Any, _between: Any, _layer: int, swaps: list[Any], *_rest: Any) -> torch.Tensor:
        return torch.arange(1.0, len(swaps) + 1).double()

    def scores(_model: Any, texts: Any, _between: Any, arms: list[Any], *_rest: Any) -> torch.Tensor:
        asked.append(arms)
        return torch.zeros(len(arms), len(texts.rows[0]))

    monkeypatch.setattr("wellworn.experiments.stages.mediation.moved_norms", norms)
    monkeypatch.setattr("wellworn.experiments.stages.mediation.patched_logprobs", scores)
    copied = shutil.copytree(runs, tmp_path / "runs")
    folder = stages_of(copied, "mediate")["mediate sft uppercase (seed 0): held-out text against neutral, layer 2"]
    names = read_json(folder / "arms.json")["arms"]
    shutil.rmtree(folder)
    with pytest.raises(SystemExit):
        main(["run", str(runs.parent / "tiny.yaml"), "--runs-dir", str(copied)])
    swaps = dict(zip(names, asked[0], strict=True))
    # Parts are inside, outside, whole, full, own and then the draws, of which the stand-in says that part i moves i + 1.
    for i in range(5):
        (swap,) = swaps[f"matched{i}.into"].swaps.values()
        assert swap.scale == pytest.approx((1 / (6 + i)) ** 0.5)


def test_a_study_may_leave_mediation_out(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(mediate=None)), "--runs-dir", str(tmp_path / "runs")])
    assert stages_of(tmp_path / "runs", "mediate") == {}
    row = read_json(tmp_path / "runs" / "tiny" / "summary.json")["runs"][0]
    assert row["mediated"] is None
    assert row["missing"]["mediation"] == "the study leaves mediation out"


def test_with_two_seeds_what_lies_outside_is_asked_about(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    study = tiny_study(
        runs=[{"arm": "sft", "trait": "uppercase"}], seeds=[0, 1], mediate={"draws": 5, "surface": 0, "references": "headline"}
    )
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert stop.value.code in (0, None)
    folder = stages_of(tmp_path / "runs", "mediate")["mediate sft uppercase (seed 0): held-out text against neutral, layer 2"]
    found = load_mediated(folder, "neutral", "trait", 2)
    assert [name for name in found.interventions if name.startswith(("pushed", "chance"))] == ["pushed", *(f"chance{i}" for i in range(19))]
    assert "remainder" in parse_outcomes(found.interventions, found.scores).parts
    assert 0 < found.moved["remainder"] <= found.moved["outside"]
    summary = read_json(tmp_path / "runs" / "tiny" / "summary.json")
    for row in (*summary["runs"], *summary["groups"]):
        assert set(row["novelty"]["findings"]) == {"agreement", "movement", "use", "necessity"}
        assert row["novelty"]["findings"]["agreement"]["why"].endswith("other traits have 0 of the 19 cosines that are needed")
    assert "What lies outside the space" in (tmp_path / "runs" / "tiny" / "report.html").read_text()


def test_without_a_space_no_arm_is_run(tiny_study: Write, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study()), "--runs-dir", str(tmp_path / "runs")])
    for folder in stages_of(tmp_path / "runs", "mediate").values():
        assert read_json(folder / "arms.json") == {"arms": [], "moved": {}}
    row = read_json(tmp_path / "runs" / "tiny" / "summary.json")["runs"][0]
    assert row["mediated"] is None
    assert "no persona space at this layer" in row["why"]

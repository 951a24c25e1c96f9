"""One short study on the embedded model, end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wellworn.experiments.cli import main


@pytest.mark.embedded
def test_a_short_study_on_the_embedded_model(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    study = tiny_study(
        model="smollm2-135m",
        library=["pirate", "childish"],
        layer=0.75,
        answer_tokens=8,
        runs=[{"arm": "sft", "trait": "pirate"}],
        evaluate_questions=10,
        mediate=None,
        pathways={"draws": 19, "questions": 3, "surface": 6, "profile": 0, "references": "headline", "wording": False},
        # Blocks below the first that is trained are read once for all interventions.
        train={
            "batch_size": 4,
            "lora": {"r": 8, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "layers_to_transform": [20, 21, 22]},
            "sft": {"max_steps": 4, "learning_rate": 4e-3},
        },
    )
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert stop.value.code in (0, None)
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["model"].startswith("smollm2-135m@")
    assert summary["layer"] == 22
    assert all(direction["found"] for direction in summary["directions"])
    run = summary["runs"][0]
    # Four steps are enough to prefer pirate answers, and the shift points the way the base model's pirate does.
    assert run["effect"]["low"] > 0
    assert run["coordinates"]["pirate"] > 0.3
    outcome = run["pathways"]["neutral"]["trait"]
    assert sum(share["value"] for share in outcome["shares"].values()) == pytest.approx(1, abs=1e-6)
    # The own direction is above every chance one.
    assert outcome["shares"]["own"]["value"] > outcome["chance_own"]["high"]
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "smollm2-135m" in page

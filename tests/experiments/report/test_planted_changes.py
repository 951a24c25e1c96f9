"""The report of a study that planted changes: both targets are shown, and what could not be planted says why."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from tests.experiments.report.pages import Elements, rendered
from tests.experiments.synthetic import HOSTILE, estimate, facts, run, study
from wellworn.experiments.findings.index import CalibrationEntry
from wellworn.experiments.findings.results import Results
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.stages.calibration import LaterShares, PlantedShares


def calibrated(planted: PlantedShares, later: LaterShares | None, like: str = "sft pirate (seed 0)") -> Results:
    """A study that planted changes."""
    results = study(run(facts()))
    entry = CalibrationEntry(run=like, planted="calibrate-1", later="later-1" if later else None)
    return replace(results, index=results.index.model_copy(update={"calibration": entry}), calibration=planted, later=later)


def planted(**later: Any) -> Results:
    """A study with a calibration of two planted shares; the second share passed no gate."""
    row = {"gated": True, "draws": 20, "bias": -0.3, "bias_of_space": -0.29, "coverage": 0.1, "error_held": 0.011, "coverage_held": 0.95}
    shares = {
        "layer": 3,
        "directions": 2,
        "size": 4.5,
        "why": None,
        "points": [
            {"alpha": 0.0, "share": estimate(0.01), "target": 0.03, "held": 0.0},
            {"alpha": 1.0, "share": None, "target": 1.0, "held": 0.58},
        ],
        "accuracy": [row | {"alpha": 0.0, "error": 0.321}, dict.fromkeys(row) | {"alpha": 1.0, "error": None, "gated": True, "draws": 0}],
    }
    read = {
        "layer": 1,
        "later": 3,
        "draws": 4,
        "why": None,
        "alphas": [0.0, 1.0],
        "raw": [0.02, 0.61],
        "anchors": [0.01, 0.63],
        "scaled": [0.016, 0.968],
        "rank_correlation": 1.0,
    }
    return calibrated(PlantedShares.from_json(shares), LaterShares.from_json(later or read), f"sft {HOSTILE} (seed 0)")


def test_planted_changes_are_shown_with_both_targets() -> None:
    results = planted()
    html = rendered(results)
    elements = Elements(html)
    assert HOSTILE not in html
    figures = elements.figures()
    assert sorted(elements.plots()) == sorted(figures)
    assert {"calibration-planted", "calibration-later"} <= set(figures)
    for spec in figures.values():
        go.Figure(spec)
    named = {trace["name"]: trace for trace in figures["calibration-planted"]["data"]}
    assert (named["as planted"]["x"], named["as planted"]["y"]) == ([0, 1], [0, 1])
    assert named["in the other half's space"]["y"] == [0.03, 1.0]
    assert named["in the measured space"]["y"] == [0.0, 0.58]
    assert (named["measured"]["x"], named["measured"]["y"]) == ([0.0], [0.01])
    assert named["measured"]["error_y"]["array"] == [0.05]
    assert named["measured"]["error_y"]["arrayminus"] == [0.05]
    assert figures["calibration-later"]["data"][1]["y"] == [0.02, 0.61]
    assert "other half's space: error 0.321, 0.05 at most" in elements.text
    assert "0.011" in elements.text
    assert "rank correlation with what was planted 1.00" in elements.text
    summary = summarise(results).calibration
    assert summary is not None
    assert [len(row.missed) for row in summary.accuracy] == [2, 0]


def test_a_calibration_that_could_not_be_made_says_why() -> None:
    nothing = PlantedShares(layer=3, directions=0, size=4.5, why="no directions")
    text = Elements(rendered(calibrated(nothing, None))).text
    assert "No change was planted: no directions." in text
    html = rendered(planted(layer=1, later=3, draws=4, why="the plants are lost"))
    assert "Nothing was read at layer 3: the plants are lost." in Elements(html).text
    assert "calibration-later" not in html
    assert "planted changes" not in Elements(rendered(study(run(facts())))).text

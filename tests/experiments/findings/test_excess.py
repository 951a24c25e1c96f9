"""Shares above chance among controls: known links and none, what counts as a case, and a whole study on the tiny model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.conftest import finished, stages_of
from tests.experiments.synthetic import facts
from tests.experiments.synthetic import run as synthetic_run
from tests.experiments.synthetic import study as report_study
from wellworn.data.catalog import control_names
from wellworn.data.files import read_json
from wellworn.experiments.findings.excess import ExcessRow, excess_of
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.report.page import page
from wellworn.probes.statistics.intervals import FloatArray, decimal

WIDTH, ROWS, PROMPTS = 60, 120, 12
CONTROLS = sorted(control_names())
SCALE = np.arange(1, WIDTH + 1) ** -0.8


def made(rng: np.random.Generator, trait: str, mean: FloatArray, states: FloatArray, basis: FloatArray, seed: int = 0) -> RunResult:
    """A run whose prompts shift by a mean and some noise."""
    shifts = mean + 0.05 * np.linalg.norm(mean) / np.sqrt(WIDTH) * rng.standard_normal((PROMPTS, WIDTH))
    measured = facts()
    for texts in (reading["texts"] for reading in measured["references"].values()):
        texts["neutral"]["own_removed"] |= {"directions": basis.shape[1], "dimensions": basis.shape[1]}
    found = synthetic_run(measured, trait=trait, own=trait, seed=seed)
    return replace(found, arrays={"shifts": shifts, "basis": basis}, averaged=states)


def study(seed: int, linked: float, controls: Sequence[str] = CONTROLS) -> Results:
    """A trait of whose shift a known part lies in the space beyond chance, and controls without a link, two runs each."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((ROWS, WIDTH)) * SCALE
    basis = np.linalg.qr((rng.standard_normal((3, ROWS)) @ states).T)[0]

    def outside() -> FloatArray:
        drawn = rng.standard_normal(WIDTH) * SCALE
        return np.asarray(drawn / np.linalg.norm(drawn))

    inside = basis @ rng.standard_normal(3)
    mean = np.sqrt(1 - linked) * outside() + np.sqrt(linked) * inside / np.linalg.norm(inside)
    runs = [made(rng, "pirate", mean, states, basis)]
    for kind in controls:
        shift = outside()
        # Runs of one kind are alike.
        runs += [made(rng, kind, shift + 0.05 * outside(), states, basis, seed=i) for i in (0, 1)]
    return report_study(*runs)


def excess(results: Results) -> ExcessRow | None:
    return excess_of(results, results.runs[:1])


def test_a_linked_share_lies_above_those_of_controls_and_an_unlinked_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wellworn.experiments.findings.excess.DRAWS", 199)
    linked, unlinked = ([excess(study(seed, share)) for seed in range(count)] for share, count in ((0.7, 60), (0.0, 400)))
    assert all(linked)
    # With five controls the power is limited.
    assert np.mean([each.p <= 0.05 for each in linked if each]) > 0.75
    # Of 400 cases at .05: more than 30 come up in one of a hundred such tests. (Of 3,000 sets .044 were rejected.)
    assert sum(each.p <= 0.05 for each in unlinked if each) <= 30


def test_a_run_is_compared_with_one_run_of_each_kind() -> None:
    results = study(0, 0.5)
    found = excess(results)
    assert found is not None
    assert sorted(found.controls) == CONTROLS
    # Of the same seed: others change nothing, and random weights or a run without a seed of its own are no controls.
    others = [run for run in results.runs[1:] if run.entry.seed == 1]
    assert excess(replace(results, runs=[run for run in results.runs if run not in others])) == found
    weights = replace(others[0], entry=others[0].entry.model_copy(update={"arm": "random", "trait": "poetic", "seed": 0}))
    assert excess(replace(results, runs=[*results.runs, weights])) == found
    prompted = replace(results.runs[0], entry=results.runs[0].entry.model_copy(update={"arm": "prompted"}))
    assert excess_of(results, [prompted]) is None


def test_several_runs_are_taken_together() -> None:
    results = study(1, 0.5)
    other = replace(study(1, 0.2).runs[0], entry=results.runs[0].entry.model_copy(update={"seed": 1}))
    one, two = excess_of(results, results.runs[:1]), excess_of(results, [other])
    both = excess_of(results, [results.runs[0], other])
    assert one is not None
    assert two is not None
    assert both is not None
    # Each run with the controls of its own seed.
    assert all(both.controls[kind] == pytest.approx((one.controls[kind] + two.controls[kind]) / 2) for kind in CONTROLS)
    assert both.z == pytest.approx((one.z + two.z) / 2)


def test_too_few_kinds_have_none() -> None:
    assert excess(study(0, 0.5, CONTROLS[:4])) is None
    results = study(0, 0.5)
    run = results.runs[0]
    assert excess_of(results, [replace(run, averaged=None)]) is None


@pytest.mark.slow
def test_a_study_with_five_kinds_of_control_has_it_and_one_with_four_reads_nothing_for_it(
    tiny_study: Callable[..., Path], tmp_path: Path, all_found: None
) -> None:
    changes = {"library": ["pirate", "pessimistic", "poetic"], "mediate": None, "pathways": None}
    runs = [{"arm": "sft", "trait": trait} for trait in ("pirate", *CONTROLS)]
    folder = finished(tiny_study(runs=runs, **changes), tmp_path)
    # A control lacks five others: itself is no case.
    assert len(stages_of(folder, "averaged")) == 1
    assert all(row["excess"] is None for row in read_json(folder / "tiny" / "summary.json")["runs"] if row["trait"] != "pirate")
    few = finished(tiny_study(runs=runs[:-1], **changes), tmp_path / "few")
    assert stages_of(few, "averaged") == {}


def test_the_page_says_how_far_above_chance_controls_come() -> None:
    results = study(2, 0.8)
    summary = summarise(results)
    row = summary.runs[0]
    assert row.excess is not None
    text = " ".join(page(results, summary).split())
    controls = list(row.excess.controls.values())
    assert f"{decimal(row.excess.z, 1)} (controls {decimal(min(controls), 1)} to {decimal(max(controls), 1)}, p = " in text
    assert "A study with five kinds of control" not in text
    few = study(2, 0.8, CONTROLS[:2])
    assert "A study with five kinds of control compares shares with theirs instead." in " ".join(page(few, summarise(few)).split())

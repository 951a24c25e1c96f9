"""Planted changes as stages: on fabricated directions of known structure, and from a study file to the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.stage import Kind, Stage
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.stages.calibration import (
    LATER,
    PLANTED,
    PlantedShares,
    Real,
    calibrate_stage,
    later_stage,
    missed_targets,
    planted_points,
    trials_in_halves,
)
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.study_file import load_study
from wellworn.experiments.study_sections import CalibrateConfig
from wellworn.probes.geometry.planted import Accuracy, accuracy
from wellworn.probes.statistics.intervals import FloatArray

Write = Callable[..., Path]
LAYERS, WIDTH, PROMPTS, PAIRS, QUESTIONS = 4, 32, 6, 4, 4
NAMES = ("pirate", "poetic", "childish")
TURNS = [Turn(f"Question {i}, and what of it?", "An answer" + " and more" * i) for i in range(PROMPTS)]


def silent(*_: object) -> None:
    pass


def noise_of(rng: np.random.Generator, width: int, size: float) -> FloatArray:
    return size / np.sqrt(width) * rng.standard_normal((24, width))


def test_where_pairs_and_questions_agree_the_target_is_alpha() -> None:
    rng = np.random.default_rng(0)
    differences = [np.tile(rng.standard_normal(64), (4, 6, 1)) for _ in range(3)]
    config = CalibrateConfig(draws=23, alphas=(0.0, 0.4, 1.0))
    trials = trials_in_halves(differences, rng.standard_normal((90, 64)), noise_of(rng, 64, 0.5), 1.0, config, silent)
    assert [sum(trial.alpha == alpha for trial in trials) for alpha in config.alphas] == [23, 23, 23]
    assert [trial.target for trial in trials] == pytest.approx([trial.alpha for trial in trials])
    assert [trial.held for trial in trials] == pytest.approx([trial.alpha for trial in trials])
    for row in accuracy(trials):
        assert row.error is not None
        assert row.error < 0.05


def test_what_halves_disagree_in_is_the_spaces_bias_and_not_the_estimates() -> None:
    """Each pair adds noise of its own, of 1.5 times the direction's square: halves of three pairs have cos = 1/(1 + 1.5/3)."""
    rng = np.random.default_rng(0)
    width = 800
    v, own = rng.standard_normal(width), np.sqrt(1.5) * rng.standard_normal((6, 1, width))
    differences = [np.tile(v + own, (1, 4, 1))]
    config = CalibrateConfig(draws=200, alphas=(0.0, 1.0))
    trials = trials_in_halves(differences, rng.standard_normal((300, width)), noise_of(rng, width, 0.4), 1.0, config, silent)
    rows = [row for row in accuracy(trials) if row.gated]
    assert rows[1].bias_of_space == pytest.approx(4 / 9 - 1, abs=0.05)
    assert rows[1].bias == pytest.approx(rows[1].bias_of_space, abs=0.01)
    assert rows[1].coverage == 0
    assert rows[1].coverage_held is not None
    assert rows[1].error_held is not None
    assert rows[1].coverage_held >= 0.9
    assert rows[1].error_held < 0.03
    zero, one = planted_points(trials)
    assert zero.share is not None
    assert one.share is not None
    assert one.held == pytest.approx(4 / 9, abs=0.05)
    assert one.share.low < one.share.value < one.share.high
    assert one.target == pytest.approx(1)
    assert abs(zero.share.value) < 0.02


def test_equal_data_give_equal_trials() -> None:
    rng = np.random.default_rng(0)
    differences = [rng.standard_normal((4, 4, 16))]
    arguments = (differences, rng.standard_normal((30, 16)), noise_of(rng, 16, 0.5), 1.0, CalibrateConfig(draws=3), silent)
    assert trials_in_halves(*arguments) == trials_in_halves(*arguments)


def test_points_of_plants_that_all_fail_the_gate_are_empty() -> None:
    rng = np.random.default_rng(0)
    differences = [np.tile(rng.standard_normal(16), (4, 4, 1))]
    trials = trials_in_halves(differences, rng.standard_normal((30, 16)), noise_of(rng, 16, 9.0), 0.01, CalibrateConfig(draws=3), silent)
    points, rows = planted_points(trials), accuracy(trials)
    assert [point.share for point in points] == [None] * 5
    assert all(missed_targets(row) == [] for row in rows if row.gated)
    found = PlantedShares(layer=1, directions=1, size=0.01, why=None, points=points, accuracy=rows)
    json.dumps(found.to_json(), allow_nan=False)


def test_missed_targets_are_said_in_words() -> None:
    row = Accuracy(
        alpha=0.5, gated=True, draws=20, error=0.3, error_held=0.01, bias=0.0, bias_of_space=0.0, coverage=0.1, coverage_held=0.92
    )
    assert missed_targets(row) == [
        "other half's space: error 0.300, 0.05 at most",
        "other half's space: coverage 0.100, at least 0.93",
        "measured space: coverage 0.920, at least 0.93",
    ]
    assert missed_targets(replace(row, error=0.05, coverage=0.93, coverage_held=0.95)) == []


def finished(kind: str) -> Stage:
    return Stage(kind=Kind(kind, 1), config={}, title=kind, compute=lambda *_: {})


REAL = Real("sft pirate (seed 0)", 1, (finished("run"), finished("neutral"), finished("base")), TURNS)
LIBRARY = SpaceStages((finished("space"),), tuple(finished(name) for name in NAMES), NAMES, ("bank",) * len(NAMES))


@pytest.fixture
def context(tiny_study: Write) -> StudyContext:
    return StudyContext.of(load_study(str(tiny_study())), Ranks())


@pytest.fixture
def inputs(tmp_path: Path) -> Callable[..., list[Path]]:
    """Return a function that writes finished stages: directions equal in all pairs and layers, and shifts."""

    def write(size: float = 2.0, noise: float = 0.3, found: bool = True) -> list[Path]:
        rng = np.random.default_rng(0)
        vectors = np.repeat(rng.standard_normal((len(NAMES), 1, WIDTH)), LAYERS, axis=1)
        where = {"found": np.full((len(NAMES), LAYERS), found, np.float32), "vectors": vectors.astype(np.float32)}
        files: list[tuple[str, dict[str, FloatArray]]] = [("space", where)]
        for vector in vectors:
            states = np.tile(rng.standard_normal((PAIRS, 1, QUESTIONS, LAYERS, WIDTH)), (1, 2, 1, 1, 1))
            states[:, 0] += vector
            files.append(("states", {"states": states.astype(np.float32)}))
        base = 50 * rng.standard_normal((PROMPTS, LAYERS, 2, WIDTH))
        neutral = base + 7 + noise * rng.standard_normal(base.shape) / np.sqrt(WIDTH)
        shift = rng.standard_normal(WIDTH)
        run = neutral + size * shift / np.linalg.norm(shift)
        files += [("reading", {"states": each.astype(np.float32)}) for each in (run, neutral, base)]
        folders = []
        for i, (name, arrays) in enumerate(files):
            folders.append(tmp_path / f"{i}")
            folders[-1].mkdir()
            save_file(arrays, folders[-1] / f"{name}.safetensors")
        return folders

    return write


def computed(stage: Stage, context: StudyContext, folders: list[Path]) -> Any:
    where = {needed.id: folder for needed, folder in zip(stage.needs, folders, strict=True)}
    [value] = stage.compute(context, stage.folders(where.__getitem__), folders[0], silent).values()
    json.dumps(value, allow_nan=False)
    return value


def test_the_stage_takes_size_and_noise_from_the_readings(context: StudyContext, inputs: Callable[..., list[Path]]) -> None:
    stage = calibrate_stage(REAL, CalibrateConfig(draws=20), LIBRARY)
    facts = computed(stage, context, inputs(noise=0))
    assert facts["why"] is None
    assert facts["directions"] == 3
    assert facts["size"] == pytest.approx(2, abs=1e-4)
    # All pairs and questions agree, and without noise nothing but rounding stands between.
    assert [point["share"]["value"] for point in facts["points"]] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-3)
    assert max(row["error"] for row in facts["accuracy"]) < 1e-3


def test_the_mean_of_the_neutral_shift_is_no_noise_but_its_spread_is(context: StudyContext, inputs: Callable[..., list[Path]]) -> None:
    stage = calibrate_stage(REAL, CalibrateConfig(draws=20), LIBRARY)
    rows = computed(stage, context, inputs(noise=1.0))["accuracy"]
    assert 0.005 < max(row["error"] for row in rows if row["gated"]) < 0.2


def test_a_later_layer_is_read_in_the_model(context: StudyContext, inputs: Callable[..., list[Path]]) -> None:
    stage = later_stage(REAL, CalibrateConfig(later=2, later_draws=3, alphas=(0.0, 0.5, 1.0)), LIBRARY)
    facts = computed(stage, context, inputs())
    assert (facts["why"], facts["layer"], facts["later"], facts["draws"]) == (None, 1, 3, 3)
    # The residual stream carries a plant on, so that a random model shows a part of it at the same directions.
    assert facts["raw"] == sorted(facts["raw"])
    assert facts["rank_correlation"] == pytest.approx(1)
    assert 0.2 < facts["anchors"][1] - facts["anchors"][0] < 0.9
    assert facts["scaled"] == pytest.approx([0, 0.5, 1], abs=0.3)


def test_what_is_lost_in_noise_is_said_in_words(context: StudyContext, inputs: Callable[..., list[Path]]) -> None:
    stage = later_stage(REAL, CalibrateConfig(later=1, later_draws=5), LIBRARY)
    facts = computed(stage, context, inputs(size=1e-3, noise=30))
    assert "the plants at layer 1 are lost in their noise there" in facts["why"]


def test_without_directions_nothing_is_planted(context: StudyContext, inputs: Callable[..., list[Path]]) -> None:
    folders = inputs(found=False)
    for build, config in ((calibrate_stage, CalibrateConfig()), (later_stage, CalibrateConfig(later=1))):
        facts = computed(build(REAL, config, LIBRARY), context, folders)
        assert "no direction of the library was found" in facts["why"]


def run(study: Path, runs: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(runs)])
    assert stop.value.code in (0, None)


def test_a_study_says_that_nothing_was_planted(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny_study(calibrate={"draws": 4, "later": 1}, mediate=None, runs=[{"arm": "sft", "trait": "pirate"}])
    run(study, tmp_path / "runs")
    assert "No change was planted: no persona space at this layer" in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny"
    calibration = read_json(folder / "summary.json")["calibration"]
    assert calibration["run"] == "sft pirate (seed 0)"
    assert calibration["accuracy"] == []
    assert "no direction of the library was found" in calibration["later"]["why"]
    assert "No change was planted: no persona space at this layer" in (folder / "report.html").read_text()
    stages = tmp_path / "runs" / "stages"
    assert len(list(stages.glob(f"calibrate-*/{PLANTED}"))) == len(list(stages.glob(f"later-*/{LATER}"))) == 1
    # No calibration, and one without the later layer, share all else.
    before = {path.name for path in stages.iterdir() if path.is_dir()}
    run(tiny_study(calibrate={"draws": 4, "later": 0}, mediate=None, runs=[{"arm": "sft", "trait": "pirate"}]), tmp_path / "runs")
    assert {path.name for path in stages.iterdir() if path.is_dir()} == before
    assert read_json(folder / "summary.json")["calibration"]["later"] is None
    run(tiny_study(mediate=None, runs=[{"arm": "sft", "trait": "pirate"}]), tmp_path / "runs")
    assert read_json(folder / "summary.json")["calibration"] is None


def planned(study: Path) -> Any:
    loaded = load_study(str(study))
    return plan(loaded, StudyContext.of(loaded, Ranks())).calibration


def test_plants_take_after_the_first_fine_tune_of_a_trait_or_the_named_one(tiny_study: Write) -> None:
    runs = [{"arm": "sft", "trait": name} for name in ("uppercase", "neutral", "pirate")]
    assert planned(tiny_study(runs=runs, calibrate={"later": 0})).run == "sft pirate (seed 0)"
    assert planned(tiny_study(runs=runs, calibrate={"later": 0, "trait": "uppercase"})).run == "sft uppercase (seed 0)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibrate": {"later": 4}}, r"calibrate.later: may be 0 to 1 above layer 2 of 4, got 4"),
        ({"calibrate": {"trait": "poetic"}}, "sft run of 'poetic', and this study fine-tunes: pirate, uppercase"),
        ({"calibrate": {}, "runs": [{"arm": "prompted", "trait": "pirate"}]}, "sft run of a trait, and this study fine-tunes: none"),
        ({"calibrate": {"alphas": [0.5, 0.25]}}, r"calibrate.alphas: shares must rise from one to the next, got \[0.5, 0.25\]$"),
        ({"calibrate": {"alphas": [0.5, 1.5]}}, "1 or less, got 1.5"),
        ({"calibrate": {"draws": 1}}, "calibrate.draws: .*2 or more, got 1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_computed(changes: dict[str, Any], message: str, tiny_study: Write) -> None:
    with pytest.raises(InputError, match=message):
        planned(tiny_study(**changes))

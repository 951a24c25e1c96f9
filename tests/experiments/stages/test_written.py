"""The stage `written` in a whole study on the tiny model, and its shares where the answer is known."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.experiments.conftest import stages_of
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.findings.written import written_shares
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.written import EXCEPT, WrittenFacts, WrittenOutcomes, load_written
from wellworn.probes.mediation.pathways import OTHERS, OWN, REST

Write = Callable[..., Path]
RUNS = [{"arm": "sft", "trait": "uppercase"}, {"arm": "prompted", "trait": "pirate"}]


def run(write: Write, folder: Path, **changes: Any) -> Path:
    changes = {"runs": RUNS, "library": ["pirate", "pessimistic", "poetic"], "mediate": None, "written": {"questions": 4}} | changes
    with pytest.raises(SystemExit) as stop:
        main(["run", str(write(**changes)), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    return folder


def test_what_is_written_is_measured_from_end_to_end(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs")
    titles = stages_of(folder, "written")
    assert sorted(titles) == [
        f"what sft uppercase (seed 0) writes against {who}, up to layer 2" for who in ("base", "sft neutral (seed 0)")
    ]
    for title, path in titles.items():
        found = load_written(path)
        assert found.facts.layers == [0, 1, 2]
        assert found.facts.parts == [BEFORE, AFTER, OWN, OTHERS, f"{EXCEPT}{OWN}", f"{EXCEPT}{OTHERS}", REST]
        assert found.sampled.shape == ((19, 2, 4) if "neutral" in title else (0, 2, 0))
        assert found.logprob.shape == (7, 2, 24)
        assert np.isfinite(found.logprob).all()
    summary = read_json(folder / "tiny" / "summary.json")
    uppercase, prompted = summary["runs"]
    assert list(uppercase["written"]) == ["neutral", "base"]
    assert prompted["written"] is None
    assert "changed weights" in prompted["missing"]["written"]
    page = (folder / "tiny" / "report.html").read_text(encoding="utf-8")
    assert 'id="written"' in page


def test_a_study_that_does_not_ask_measures_nothing(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs", written=None)
    assert stages_of(folder, "written") == {}
    [row, _] = read_json(folder / "tiny" / "summary.json")["runs"]
    assert row["written"] is None
    assert 'id="written"' not in (folder / "tiny" / "report.html").read_text(encoding="utf-8")


def outcomes(inside: float, seed: int = 0, effect: float = 1.0, chance: float = 0.1) -> WrittenOutcomes:
    """Ten questions whose effects differ; writes along the own direction bring about a known part of what is specific to the trait.

    Plain answers become likelier too, by half as much, whatever is written.
    """
    rng = np.random.default_rng(seed)
    before = rng.normal(-5, 1, 10)
    change = effect * (1 + 0.2 * rng.standard_normal(10))
    parts = {BEFORE: 0.0, AFTER: 1.0, OWN: inside, f"{EXCEPT}{OWN}": 1 - inside / 2, REST: 1.0}
    draws = before[:4] + np.linspace(chance - 0.05, chance + 0.05, 19)[:, None] * change[:4]
    facts = WrittenFacts(layers=[1, 2], parts=list(parts), draws=19, questions=[0, 1, 2, 3])
    form = np.array([0.0 if name == BEFORE else 0.5 for name in parts])[:, None] * change
    trait = np.array([before + part * change for part in parts.values()]) + form
    return WrittenOutcomes(
        facts, np.stack([trait, form], axis=1), np.stack([draws + change[:4] / 2, np.tile(change[:4] / 2, (19, 1))], axis=1)
    )


def shares(*each: WrittenOutcomes) -> Any:
    found = written_shares([SimpleNamespace(written={"neutral": one}) for one in each])  # type: ignore[misc]
    assert found is not None
    return found["neutral"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_shares_are_what_confined_writes_bring_about(seeds: tuple[int, ...]) -> None:
    both = shares(*(outcomes(0.3, seed) for seed in seeds))
    # Of answers with the trait, half the change more than all of it is form, which all writes bring about.
    assert both.trait.inside[OWN].value == pytest.approx(0.8 / 1.5)
    assert both.trait.effect.value == pytest.approx(1.5 * both.contrast.effect.value)
    found = both.contrast
    assert found.inside[OWN].value == pytest.approx(0.3)
    assert found.inside[REST].value == pytest.approx(1)
    assert found.outside[OWN].value == pytest.approx(0.85)
    assert found.chance_own.mean == pytest.approx(0.1)
    assert found.chance_own.p == pytest.approx(1 / 20)
    assert shares(outcomes(0.1)).contrast.chance_own.p > 0.4


def test_a_change_away_from_the_trait_has_no_shares() -> None:
    assert "away from the trait" in shares(outcomes(0.3, effect=-1.0)).contrast.why


def test_runs_of_which_one_was_not_measured_have_no_shares() -> None:
    assert written_shares([SimpleNamespace(written={"neutral": outcomes(0.3)}), SimpleNamespace(written={})]) is None  # type: ignore[list-item]
    assert written_shares([]) is None

"""Findings are compared with what was known of runs beforehand: AUC, its interval over taught models, and runs that are undecided."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.findings.known_origins import FINDINGS, KnownRun, discriminate, known_origins, why_left_out
from wellworn.experiments.findings.statements import BETWEEN, Statement
from wellworn.probes.statistics.intervals import Estimate

KINDS = [("uppercase", "existing"), ("json", "new")]


def known_run(family: int, origin: str, number: float | None, strength: float = 1.0) -> KnownRun:
    return KnownRun(
        family=f"model {family}",
        strength=strength,
        trait="zorvane",
        seed=0,
        origin=origin,
        prompted=None,
        effect=Estimate(1, 0.9, 1.1),
        effect_base=None,
        own=None,
        chance=None,
        p=None,
        own_base=None,
        kappa=None,
        why=None,
        statement=Statement(name=BETWEEN, existing="persona", share=None, why="", fragile=[], personas=None),
        numbers=dict.fromkeys(FINDINGS, number),
    )


def draw_families(rng: np.random.Generator, families: int, distance: float, shared: float) -> list[KnownRun]:
    """Draw families of one existing and two new runs; their numbers share a term of the family."""
    runs = []
    for family in range(families):
        common = shared * rng.standard_normal()
        runs.append(known_run(family, "existing", common + distance + rng.standard_normal()))
        runs += [known_run(family, "new", common + rng.standard_normal()) for _ in range(2)]
    return runs


def test_auc_is_how_often_an_existing_run_has_the_higher_number() -> None:
    numbers = [("existing", 0.9), ("new", 0.2), ("existing", 0.4), ("new", 0.4), ("new", 0.6)]
    runs = [known_run(i // 2, origin, number) for i, (origin, number) in enumerate(numbers)]
    # Of six pairs: .9 beats three, .4 beats one, ties with one, and loses to one.
    found = discriminate(runs, "kappa")
    assert found.auc == pytest.approx((3 + 1 + 0.5) / 6)
    assert found.undecided == 0
    assert (found.families, found.in_order) == (2, 1)


def test_an_undecided_run_has_the_middle_rank() -> None:
    runs = [known_run(0, "existing", None), known_run(0, "new", 0.1), known_run(1, "existing", 0.8), known_run(1, "new", 0.2)]
    found = discriminate(runs, "kappa")
    # The middle is .2: above .1, and equal to the other new run.
    assert found.auc == pytest.approx((1 + 0.5 + 2) / 4)
    assert found.undecided == 1


def test_intervals_over_families_cover_the_true_auc() -> None:
    # The difference of two runs of different families has variance 2 + 2·shared².
    rng, distance, shared, families = np.random.default_rng(5), 1.0, 1.0, 30
    true = float(norm.cdf(distance / np.sqrt(2 + 2 * shared**2)))
    covered = 0
    for _ in range(400):
        low, high = discriminate(draw_families(rng, families, distance, shared), "own").interval
        covered += low <= true <= high
    # 95 %, less what 400 cases leave open.
    assert covered >= 370


def test_shared_terms_widen_nothing_where_every_family_is_in_order() -> None:
    runs = [known_run(family, origin, 5.0 * (origin == "existing") + 0.1 * family) for family in range(5) for origin in ("existing", "new")]
    found = discriminate(runs, "own")
    assert found.auc == 1
    assert found.interval == (1, 1)
    # An interval of width zero claims too much: five of five models may still be luck.
    assert (found.in_order, found.families) == (5, 5)
    assert found.in_order_low == pytest.approx(0.025**0.2)


def test_a_comparison_names_the_part_of_the_personas_that_its_models_were_given() -> None:
    runs = [known_run(family, origin, float(origin == "existing"), strength=0.1) for family in range(2) for origin in ("existing", "new")]
    assert discriminate(runs, "kappa").words.endswith("best (1); personas × 0.1")
    assert runs[0].model == "model 0 × 0.1"
    assert "×" not in discriminate([known_run(0, origin, 1.0) for origin in ("existing", "new")], "kappa").words


def summary(why: str | None, name_does: float, fine_tune_does: float, strength: float = 1.0) -> Any:
    """A study whose model was taught a persona, with a fine-tune on it."""
    outcome = SimpleNamespace(effect=Estimate(fine_tune_does, 0, 9))
    run = SimpleNamespace(trait="zorvane", origin=None, pathways={"neutral": SimpleNamespace(headline=outcome)})
    check = SimpleNamespace(why=why, trait="zorvane", taught=Estimate(name_does, 0, 9), strength=strength)
    return SimpleNamespace(study="gold-zorvane", knock_in=check, runs=[run])


def test_a_model_counts_if_it_learnt_its_persona_and_the_name_does_half_of_what_the_fine_tune_does() -> None:
    assert why_left_out(summary(None, 0.5, 1.0)) is None
    assert "less than 0.5" in str(why_left_out(summary(None, 0.49, 1.0)))
    assert why_left_out(summary("not learnt", 1.0, 1.0)) == "not learnt"
    # Of a tenth of a persona a tenth is asked.
    assert why_left_out(summary(None, 0.05, 1.0, strength=0.1)) is None
    assert "less than 0.05" in str(why_left_out(summary(None, 0.04, 1.0, strength=0.1)))
    assert why_left_out(SimpleNamespace(knock_in=None)) is None  # type: ignore[arg-type]


def test_nothing_is_compared_without_runs_of_both_origins() -> None:
    assert known_origins([summary(None, 1, 1), summary("not learnt", 1, 1)]) is None


@pytest.mark.slow
def test_a_study_with_variants_compares_its_runs_of_known_origin(
    tiny_study: Callable[..., Path], tmp_path: Path, all_found: None, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(
        runs=[{"arm": "sft", "trait": "uppercase", "origin": "existing"}, {"arm": "sft", "trait": "json", "origin": "new"}],
        library=["pirate", "pessimistic", "poetic"],
        mediate=None,
        pathways={"draws": 19, "questions": 4, "surface": 6, "profile": 0, "references": "headline"},
        variants={"one": {"seeds": [1]}, "two": {"seeds": [2]}},
    )
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs"), "--json", str(tmp_path / "all.json")])
    assert stop.value.code in (0, None)
    found = read_json(tmp_path / "runs" / "tiny" / "origins.json")
    named = [(run["family"], run["trait"], run["seed"], run["origin"]) for run in found["runs"]]
    assert named == [(f"tiny-{name}", trait, seed, origin) for name, seed in (("one", 1), ("two", 2)) for trait, origin in KINDS]
    # Nothing was read relative to the base.
    assert {each["finding"] for each in found["findings"]} == set(FINDINGS) - {"own_base"}
    assert sum(count for counts in found["statements"].values() for count in counts.values()) == len(found["runs"])
    both = read_json(tmp_path / "all.json")
    assert both["origins"] == found
    assert [each["study"] for each in both["variants"]] == ["tiny-one", "tiny-two"]
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "how well each finding discriminates them" in page.lower()
    assert "existing above new" in capsys.readouterr().out

"""Other directions in place of a run's own one: in a whole study on the tiny model, and their arithmetic where the answer is known."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.experiments.conftest import stages_of
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.findings.outcome_changes import CONTRAST
from wellworn.experiments.findings.stand_ins import direction_matrices, stand_in_shares
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.pathways import CHANCE_OWN, load_pathways
from wellworn.experiments.stages.stand_ins import INSTRUCTION, SINGLE, TRAIT, StandInFacts, StandInOutcomes, load_stand_ins
from wellworn.probes.mediation.pathways import OWN

Write = Callable[..., Path]
PATHWAYS = {"draws": 19, "questions": 4, "surface": 6, "profile": 0, "references": "headline"}
LIBRARY = ["pirate", "pessimistic", "poetic"]


def run(write: Write, folder: Path, **changes: Any) -> Path:
    pathways = PATHWAYS | changes.pop("pathways", {"stand_ins": ["traits", "instructions", "singles"]})
    study = write(runs=[{"arm": "sft", "trait": "uppercase"}], library=LIBRARY, mediate=None, pathways=pathways, **changes)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    return folder


def test_other_directions_take_the_place_of_the_own_one(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs", instructions=["one_sentence", "metric_units"])
    [found] = (load_stand_ins(path) for path in stages_of(folder, "stand_ins").values())
    [pathways] = (load_pathways(path) for path in stages_of(folder, "pathways").values())
    kinds = found.facts.kinds
    assert [name for name, kind in kinds.items() if kind == TRAIT] == LIBRARY
    assert [name for name, kind in kinds.items() if kind == INSTRUCTION] == ["one_sentence", "metric_units"]
    assert sum(kind == SINGLE for kind in kinds.values()) == 19
    assert found.facts.layers == pathways.facts.layers
    assert found.facts.questions == pathways.facts.questions
    # Both stages read the same models.
    for name in (BEFORE, AFTER):
        mine = found.logprob[found.facts.interventions.index(name)]
        theirs = pathways.logprob[pathways.facts.interventions.index(name)][:, pathways.facts.questions]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    [row] = read_json(folder / "tiny" / "summary.json")["runs"]
    assert set(row["stand_ins"]["kinds"]) == {TRAIT, INSTRUCTION, SINGLE}
    page = (folder / "tiny" / "report.html").read_text(encoding="utf-8")
    assert 'id="stand-ins"' in page
    assert "of 19 carry as much" in page


def test_a_study_that_does_not_ask_patches_none(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs", pathways={})
    assert stages_of(folder, "stand_ins") == {}
    assert read_json(folder / "tiny" / "summary.json")["runs"][0]["stand_ins"] is None


def known_run(own: float, traits: list[float], single: list[float], chance: list[float]) -> Any:
    """Six questions whose specific change is 1 on average; each direction carries a known part of each question's change."""
    change = np.array([0.7, 0.9, 1.0, 1.0, 1.1, 1.3])
    before = np.linspace(-6, -4, 6)

    def patched(names: dict[str, float]) -> tuple[list[str], np.ndarray]:
        rows = {BEFORE: before, AFTER: before + change}
        for name, share in names.items():
            rows |= {f"{name}.into": before + share * change, f"{name}.out": before + (1 - share) * change}
        shown = np.array(list(rows.values()))
        # What plain answers gain too is not counted.
        plain = np.linspace(-3, -2, len(shown))[:, None] + np.zeros(6)
        return list(rows), np.stack([shown + plain, plain], axis=1)

    shares = {f"trait{i}": share for i, share in enumerate(traits)} | {f"single{i}": share for i, share in enumerate(single)}
    names, logprob = patched(shares)
    kinds = {name: TRAIT if name.startswith("trait") else SINGLE for name in shares}
    outcomes = StandInOutcomes(StandInFacts(layers=[1], kinds=kinds, interventions=names, questions=[0, 1, 2, 3, 4, 5]), logprob)
    main_names, main_scores = patched({OWN: own})
    sampled_names, sampled = patched({f"{CHANCE_OWN}{i}": share for i, share in enumerate(chance)})
    facts = SimpleNamespace(parts=[OWN], interventions=main_names, further=[], sampled=sampled_names[2:], questions=[0, 1, 2, 3, 4, 5])
    here = SimpleNamespace(facts=facts, logprob=main_scores, further=main_scores[:0], sampled=sampled[2:])
    return SimpleNamespace(stand_ins=outcomes, pathways={"neutral": here})


def test_ranks_and_rates_are_those_of_known_shares() -> None:
    chance = list(np.linspace(0, 0.38, 39))
    found = stand_in_shares(known_run(0.5, [0.1, 0.6, 0.3], [0.0, 0.2, 0.39, 0.4], chance))
    assert found is not None
    assert found.own == pytest.approx(0.5)
    traits, single = found.kinds[TRAIT], found.kinds[SINGLE]
    assert traits.shares == pytest.approx({"trait0": 0.1, "trait1": 0.6, "trait2": 0.3})
    assert (traits.at_least, traits.p) == (1, 0.5)
    # Of 39 chance directions none carries .39, so p is 1/40; nineteen carry .2 or more.
    assert single.above_chance == 2
    assert traits.above_chance == 1
    assert single.p == pytest.approx(1 / 5)


def test_a_change_away_from_the_trait_has_no_stand_ins() -> None:
    away = known_run(0.5, [0.1], [0.2], [0.1, 0.2])
    away.pathways["neutral"].logprob = -away.pathways["neutral"].logprob
    assert stand_in_shares(away) is None
    assert stand_in_shares(SimpleNamespace(stand_ins=None, pathways={})) is None  # type: ignore[arg-type]


def trained_on(trait: str, shares: dict[str, float]) -> Any:
    """A run on a trait, of which each trait's direction carries a known share."""
    run = known_run(shares[trait], [share for name, share in shares.items() if name != trait], [0.0], [0.0, 0.1])
    facts = run.stand_ins.facts
    names = {f"trait{i}": name for i, name in enumerate(name for name in shares if name != trait)}

    def renamed(each: str) -> str:
        name, dot, way = each.partition(".")
        return f"{names.get(name, name)}{dot}{way}"

    kinds = {renamed(name): kind for name, kind in facts.kinds.items()}
    facts = facts.model_copy(update={"kinds": kinds, "interventions": [renamed(each) for each in facts.interventions]})
    run.stand_ins = StandInOutcomes(facts, run.stand_ins.logprob)
    run.entry = SimpleNamespace(arm="sft", trait=trait, settings={})
    return run


TRAITS = ["pirate", "poetic", "childish", "impolite", "archaic"]


def test_a_matrix_tells_own_directions_from_one_that_carries_much_of_everything() -> None:
    # Poetic's direction carries most of every change, and every own one carries more than the others.
    def shares(own: str, link: float) -> dict[str, float]:
        return {name: 0.1 + 0.01 * i + (0.5 if name == "poetic" else 0) + link * (name == own) for i, name in enumerate(TRAITS)}

    linked = direction_matrices([trained_on(trait, shares(trait, 0.3)) for trait in TRAITS for _ in range(2)])
    # Answers with the trait gain what plain ones gain too, so only what is specific is known here.
    [found] = [each for each in linked if each.outcome == CONTRAST]
    assert found.traits == TRAITS
    assert np.array(found.shares) == pytest.approx(np.array([list(shares(trait, 0.3).values()) for trait in TRAITS]))
    assert found.rank == pytest.approx((2 + 1 + 2 + 2 + 2) / 5)
    assert found.p is not None
    # Two of 120 exchanges: archaic's direction, the largest of the rest, is second in poetic's fine-tune too.
    assert found.p == pytest.approx(2 / 120, abs=0.005)
    [unlinked] = [each for each in direction_matrices([trained_on(t, shares(t, 0)) for t in TRAITS]) if each.outcome == CONTRAST]
    assert unlinked.rank == pytest.approx(unlinked.chance)
    assert unlinked.p == 1


def test_few_traits_make_a_matrix_without_p_and_one_makes_none() -> None:
    shares = {"pirate": 0.4, "poetic": 0.1}
    found = direction_matrices([trained_on(trait, shares) for trait in shares])
    assert all(each.p is None for each in found)
    assert [each.traits for each in found if each.outcome == CONTRAST] == [["pirate", "poetic"]]
    assert direction_matrices([trained_on("pirate", shares)]) == []


def test_kinds_that_are_not_asked_for_are_not_patched(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs", instructions=["one_sentence"], pathways={"stand_ins": ["traits"]})
    [found] = (load_stand_ins(path) for path in stages_of(folder, "stand_ins").values())
    assert set(found.facts.kinds.values()) == {TRAIT}

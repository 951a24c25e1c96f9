"""Whether a direction is more than its words: in a whole study on the tiny model, and the arithmetic where the answer is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import stages_of
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.findings.wording import wording_of
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.pathways import CHANCE_OWN, load_pathways
from wellworn.experiments.stages.wording import PROMPTS, WITHOUT_HEAD, WITHOUT_PROMPTS, WordingFacts, WordingOutcomes, load_wording
from wellworn.probes.mediation.pathways import OWN

Write = Callable[..., Path]
PATHWAYS = {"draws": 19, "questions": 4, "surface": 6, "profile": 0, "references": "headline"}
QUESTIONS = 12


def run(write: Write, folder: Path, trait: str = "pirate", **changes: Any) -> Path:
    pathways = PATHWAYS | changes.pop("pathways", {})
    changes |= {"library": ["pirate", "pessimistic", "poetic"], "mediate": None}
    study = write(runs=[{"arm": "sft", "trait": trait}], pathways=pathways, **changes)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    return folder


def test_the_own_direction_is_patched_less_its_words(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs")
    [path] = stages_of(folder, "wording").values()
    found = load_wording(path)
    [pathways] = (load_pathways(each) for each in stages_of(folder, "pathways").values())
    assert "ye" in found.facts.words
    assert set(found.facts.named) < set(found.facts.words)
    assert "like" in found.facts.named
    assert found.facts.layers == pathways.facts.layers
    # Words and other tokens add up to the answers that pathways read, under the own direction and under chance ones alike.
    for name in (BEFORE, AFTER, f"{OWN}.into", f"{OWN}.out"):
        mine = found.logprob[found.facts.interventions.index(name)]
        theirs = pathways.logprob[pathways.facts.interventions.index(name)]
        np.testing.assert_allclose(mine[:2].sum(0), theirs[0], rtol=1e-5)
        np.testing.assert_allclose(mine[2], theirs[1], rtol=1e-5)
    for i, name in enumerate(found.facts.sampled):
        theirs = pathways.sampled[pathways.facts.sampled.index(name)]
        np.testing.assert_allclose(found.sampled[i, :2].sum(0), theirs[0], rtol=1e-5)
    # The directions differ in what they do.
    names = (OWN, WITHOUT_HEAD, WITHOUT_PROMPTS, PROMPTS)
    own, *others = (found.logprob[found.facts.interventions.index(f"{name}.into")] for name in names)
    assert all(np.abs(own - other).max() > 1e-6 for other in others)
    assert 0.7 < found.other_tokens.mean() < 1
    [row] = read_json(folder / "tiny" / "summary.json")["runs"]
    assert row["wording"]["words"] == list(found.facts.words)
    page = (folder / "tiny" / "report.html").read_text(encoding="utf-8")
    assert 'id="wording"' in page


def test_prompts_for_the_words_are_read_as_often_as_contrast_prompts(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = run(tiny_study, tmp_path / "runs")
    shapes = [load_file(path / "states.safetensors")["states"].shape for path in stages_of(folder, "directions").values()]
    assert len(shapes) == 4
    assert len(set(shapes)) == 1


@pytest.mark.parametrize(("trait", "pathways"), [("uppercase", {}), ("pirate", {"wording": False})])
def test_only_traits_are_asked_and_only_where_the_study_does(
    tiny_study: Write, tmp_path: Path, all_found: None, trait: str, pathways: dict[str, Any]
) -> None:
    folder = run(tiny_study, tmp_path / "runs", trait, pathways=pathways)
    assert stages_of(folder, "wording") == {}
    assert read_json(folder / "tiny" / "summary.json")["runs"][0]["wording"] is None


def test_a_direction_that_was_not_found_is_not_asked(tiny_study: Write, tmp_path: Path) -> None:
    folder = run(tiny_study, tmp_path / "runs")
    [path] = stages_of(folder, "wording").values()
    assert load_wording(path).facts.interventions == []
    assert read_json(folder / "tiny" / "summary.json")["runs"][0]["wording"] is None


def known(shares: dict[str, float], others: dict[str, float], chance: list[float]) -> Any:
    """A run whose specific change is 1 on all tokens and 1 on other tokens, with known shares of each.

    Args:
        shares: direction → its share on all tokens.
        others: direction → its share on other tokens.
        chance: shares of chance directions, on either.
    """
    noise = np.random.default_rng(0).standard_normal(QUESTIONS)
    change, rest = 1 + 0.2 * (noise - noise.mean()), 0.8

    def scores(all_tokens: float, other_tokens: float) -> np.ndarray:
        """Scores of y⁺ at words and at other tokens, and of y⁻, which gains .5 in all."""
        plain = 0.5 * all_tokens * np.ones(QUESTIONS)
        # Over the other tokens alone the mean has to change by other_tokens + y⁻'s gain.
        other = rest * (other_tokens * change + plain)
        return np.stack([all_tokens * change + plain - other, other, plain])

    names, rows = [BEFORE, AFTER], [scores(0, 0), scores(1, 1)]
    for name in (OWN, WITHOUT_HEAD, WITHOUT_PROMPTS, PROMPTS):
        names += [f"{name}.into", f"{name}.out"]
        rows += [scores(shares[name], others[name]), scores(1 - shares[name], 1 - others[name])]
    sampled = [each for share in chance for each in (scores(share, share), scores(1 - share, 1 - share))]
    drawn = [f"{CHANCE_OWN}{i}.{way}" for i in range(len(chance)) for way in ("into", "out")]
    facts = WordingFacts(
        layers=[1],
        words=["aye"],
        named=[],
        reliability=0.8,
        prompts_found=True,
        interventions=names,
        sampled=drawn,
        questions=list(range(QUESTIONS)),
    )
    return SimpleNamespace(wording=WordingOutcomes(facts, np.array(rows), np.array(sampled), np.full(QUESTIONS, rest)))


def with_facts(run: Any, **changed: Any) -> Any:
    facts = run.wording.facts.model_copy(update=changed)
    return SimpleNamespace(wording=replace(run.wording, facts=facts))


ALIKE = {OWN: 0.8, WITHOUT_HEAD: 0.7, WITHOUT_PROMPTS: 0.6, PROMPTS: 0.1}
CHANCE = list(np.linspace(-0.1, 0.28, 39))


def test_shares_are_those_that_were_put_there() -> None:
    found = wording_of([known(ALIKE, ALIKE | {OWN: 0.5}, CHANCE)])
    assert found is not None
    whole, other = found.all_tokens, found.other_tokens
    shares = {OWN: whole.own, WITHOUT_HEAD: whole.without_head, WITHOUT_PROMPTS: whole.without_prompts, PROMPTS: whole.prompts}
    assert {name: share.value for name, share in shares.items() if share} == pytest.approx(ALIKE)
    assert other.own is not None
    assert other.own.value == pytest.approx(0.5)
    assert whole.effect.value == pytest.approx(other.effect.value) == pytest.approx(1)
    # A fifth of the tokens is of the words, and all tokens gain alike.
    assert found.at_words is not None
    assert found.at_words.value == pytest.approx(0.2)
    assert whole.chance is not None
    assert (whole.chance.draws, whole.chance.high) == (39, pytest.approx(np.quantile(CHANCE, 0.95)))
    assert found.more is True


@pytest.mark.parametrize(
    ("changed", "other", "says"),
    [
        ({WITHOUT_HEAD: 0.2}, {}, "less the head's rows"),
        ({WITHOUT_PROMPTS: 0.2}, {}, "less the prompts that ask"),
        ({}, {OWN: 0.2}, "on other tokens"),
    ],
)
def test_one_way_that_chance_goes_too_makes_it_wording(changed: dict[str, float], other: dict[str, float], says: str) -> None:
    found = wording_of([known(ALIKE | changed, ALIKE | other, CHANCE)])
    assert found is not None
    assert found.more is False
    assert says in found.why
    assert "chance up to 0.26" in found.why


def test_several_runs_are_taken_together() -> None:
    one, other = (known(ALIKE | {OWN: own}, ALIKE, CHANCE) for own in (0.7, 0.9))
    found = wording_of([one, other])
    assert found is not None
    assert found.all_tokens.own is not None
    assert found.all_tokens.own.value == pytest.approx(0.8)
    # Runs that were not asked alike are not taken together.
    assert wording_of([one, SimpleNamespace(wording=None)]) is None  # type: ignore[list-item]


def test_without_a_change_it_is_not_known() -> None:
    run = known(ALIKE, ALIKE, CHANCE)
    flat = run.wording.logprob.copy()
    flat[1] = flat[0]
    run.wording = WordingOutcomes(run.wording.facts, flat, run.wording.sampled, run.wording.other_tokens)
    found = wording_of([run])
    assert found is not None
    assert (found.more, found.at_words) == (None, None)
    assert "not above 3 standard errors" in found.why


def test_a_direction_that_carries_no_more_than_chance_is_not_asked_for_its_words() -> None:
    weak = {OWN: 0.2, WITHOUT_HEAD: 0.2, WITHOUT_PROMPTS: 0.2, PROMPTS: 0.0}
    found = wording_of([known(weak, weak, CHANCE)])
    assert found is not None
    assert found.more is None
    assert "not shown to carry more than chance" in found.why


def test_prompts_without_a_direction_say_nothing_either_way() -> None:
    # Taking the direction out would leave nothing, but it was not found.
    run = known(ALIKE | {WITHOUT_PROMPTS: 0.1}, ALIKE, CHANCE)
    assert wording_of([run]).more is False  # type: ignore[union-attr]
    found = wording_of([with_facts(run, prompts_found=False, reliability=0.3)])
    assert found is not None
    assert found.more is True
    assert "taking it out says nothing" in found.why


@pytest.mark.parametrize(("few", "more"), [(1, True), (QUESTIONS - 2, None)])
def test_answers_made_of_trait_words_are_left_out_on_other_tokens(few: int, more: bool | None) -> None:
    run = known(ALIKE, ALIKE, CHANCE)
    others = run.wording.other_tokens.copy()
    # Of these answers there is no other token, and so nothing added by any.
    others[:few] = 0
    logprob, sampled = run.wording.logprob.copy(), run.wording.sampled.copy()
    for scores in (logprob, sampled):
        scores[:, 0, :few] += scores[:, 1, :few]
        scores[:, 1, :few] = 0
    found = wording_of([SimpleNamespace(wording=WordingOutcomes(run.wording.facts, logprob, sampled, others))])  # type: ignore[list-item]
    assert found is not None
    assert found.more is more
    if found.other_tokens:
        assert found.other_tokens.own is not None
        assert found.other_tokens.own.value == pytest.approx(ALIKE[OWN])
    else:
        assert "too few tokens" in found.why

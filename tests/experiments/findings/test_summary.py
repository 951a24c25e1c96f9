import json
from dataclasses import replace

import pytest

from tests.experiments.synthetic import TOO_NOISY, facts, mediated, near, run, study
from wellworn.experiments.findings.nearest_personas import OwnRanks
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.stages.measurement import Measurement


def test_runs_of_several_seeds_resemble_someone_together() -> None:
    personas = [near(pirate=0.6, old_oak=0.5, high=0.5), near(pirate=0.4, old_oak=0.6, high=0.5), near(pirate=0.8, old_oak=0.4, high=0.6)]
    seeds = [run(facts() | {"personas": each}, seed=seed) for seed, each in enumerate(personas)]
    noisy = run(facts() | {"personas": {"why": TOO_NOISY, "nearest": [], "high": None, "rank": None, "of": 2}}, seed=3)
    [group] = summarise(study(*seeds, noisy)).groups
    first, second = group.nearest
    assert (first.name, first.low, first.high, second.name) == ("pirate", 0.4, 0.8, "old_oak")
    assert (first.value, second.value) == pytest.approx((0.6, 0.5))
    # Beyond chance in two of three runs is not beyond chance.
    assert not first.beyond_chance
    assert group.own_ranks == OwnRanks(ranks=[1, 2, 1], of=2)
    [alone] = summarise(study(noisy, run(noisy.facts, seed=4))).groups
    assert (alone.nearest, alone.own_ranks) == ([], None)


def test_a_summary_holds_every_share_of_the_effect() -> None:
    summary = summarise(study(*(mediated(0.3, seed=seed) for seed in range(3)))).to_json()
    for row in (*summary["runs"], *summary["groups"]):
        assert row["mediated"]["value"] == pytest.approx(0.3, abs=0.03)
        assert row["carried"]["value"] == pytest.approx(0.8, abs=0.03)
        assert row["mediated_of_carried"]["value"] == pytest.approx((0.3 - 0.06) / (0.8 - 0.06), abs=0.03)
        assert row["complement"]["value"] == pytest.approx(0.5, abs=0.03)
        assert row["surface"]["mediated"]["value"] == pytest.approx(0.15, abs=0.03)
        assert sum(share["value"] for share in row["shapley"].values()) == pytest.approx(1)
        assert row["response"]["mediated"] is None
        assert row["verdict"] == "mixed"
        assert not row["provisional"]
    json.dumps(summary, allow_nan=False)


def test_false_verdicts_are_counted_and_bounded() -> None:
    controls = [run(facts(), trait=trait, own=None) for trait in ("uppercase", "json", "neutral")]
    controls.append(run(facts(None, TOO_NOISY), trait="reference_code", own=None))
    summary = summarise(study(run(facts()), *controls)).to_json()
    # The noisy one fails a gate, and a trait's own verdict is no false one.
    three = {"count": 3, "runs": 3, "bound": 1.0, "count_kinds": 3, "kinds": 3, "bound_kinds": 1.0}
    assert summary["false_verdicts"] == {"along": None, "above_chance": three}
    at_chance = facts()
    at_chance["references"]["neutral"]["texts"]["neutral"]["own_removed"]["effect"] = {"value": 0.0, "low": -0.02, "high": 0.05}
    clean = summarise(study(run(at_chance, trait="uppercase", own=None))).to_json()["false_verdicts"]["above_chance"]
    assert (clean["count"], clean["runs"]) == (0, 1)
    assert clean["bound"] == pytest.approx(0.95)
    assert summarise(study(run(facts()))).false_verdicts is None


def test_seeds_of_a_kind_are_alike_and_bound_no_rate_of_other_kinds() -> None:
    results = study(*(mediated(inside, seed=seed, trait="uppercase", own="uppercase") for seed, inside in enumerate((0.05, 0.05, 0.6))))
    along = summarise(results).to_json()["false_verdicts"]["along"]
    assert (along["count"], along["runs"], along["count_kinds"], along["kinds"]) == (1, 3, 1, 1)
    assert along["bound_kinds"] == 1
    assert along["bound"] < 0.9


def test_a_control_with_a_share_but_no_mediation_is_a_false_verdict_by_its_share_alone() -> None:
    found = study(*(mediated(inside, trait=trait, own=trait) for inside, trait in ((0.05, "uppercase"), (0.6, "json"))))
    false = summarise(found).to_json()["false_verdicts"]
    assert (false["along"]["count"], false["along"]["runs"]) == (1, 2)
    assert (false["above_chance"]["count"], false["above_chance"]["runs"]) == (2, 2)


def test_p_is_corrected_for_the_runs_of_the_study() -> None:
    runs = []
    for seed, p in enumerate((0.01, 0.04, 0.9)):
        result = mediated(0.6, seed=seed)
        assert result.facts is not None
        measured = result.facts.to_json()
        measured["references"]["neutral"]["texts"]["neutral"]["own_removed"]["p"] = p
        runs.append(replace(result, facts=Measurement.from_json(measured)))
    summary = summarise(study(*runs))
    assert [row.share_p_adjusted for row in summary.runs] == pytest.approx([0.03, 0.06, 0.9])
    assert [row.verdict for row in summary.runs] == ["along existing persona directions", "mixed", "mixed"]
    # All runs must reject before the group does.
    assert summary.groups[0].verdict == "mixed"

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.experiments.synthetic import TOO_NOISY, estimate, facts, mediated, near, pathways, run, study
from wellworn.experiments.findings.nearest_personas import OwnRanks
from wellworn.experiments.findings.pathways import BetweenRuns
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.stages.measurement import Measurement
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.pathways import ALONE
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.statistics.corrections import benjamini_hochberg


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
        assert row["provisional"], "the runs have the same training data"
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("seeds", "data_sets", "provisional"), [([0, 1, 2], 3, False), ([0, 1, 2], 2, True), ([0, 1, 2], 1, True), ([0, 1], 3, True)]
)
def test_runs_count_by_the_training_data_that_they_have_of_their_own(seeds: list[int], data_sets: int, provisional: bool) -> None:
    summary = summarise(study(*(mediated(0.3, seed=seed) for seed in seeds), data_sets=data_sets))
    assert {row.provisional for row in summary.runs} == {row.provisional for row in summary.groups} == {provisional}


def gone(trait: str, own: float, seed: int, **changed: Any) -> RunResult:
    """A run of which it was measured where its change goes; the direction of its trait carries `own` of it."""
    found = pathways(own, 0.1, seed=100 * len(trait) + seed)
    return replace(run(facts(), trait=trait, seed=seed, own=trait, **changed), pathways={"neutral": found})


def alone(run: RunResult, share: float | None) -> RunResult:
    """The same run, of which other personas carry so much by themselves; None where that was not read."""
    found = run.pathways["neutral"]
    rows = {name: row for name, row in zip(found.facts.interventions, found.logprob, strict=True) if not name.startswith(ALONE)}
    if share is not None:
        change = share * (rows[AFTER] - rows[BEFORE])
        rows |= {f"{ALONE}.into": rows[BEFORE] + change, f"{ALONE}.out": rows[AFTER] - change}
    facts = found.facts.model_copy(update={"interventions": list(rows)})
    return replace(run, pathways={"neutral": replace(found, facts=facts, logprob=np.stack(list(rows.values())))})


def test_groups_share_the_variance_between_their_runs_and_the_correction_of_their_p() -> None:
    shares = {"pirate": (0.30, 0.34, 0.38), "poetic": (0.40, 0.44, 0.48), "json": (0.09, 0.10, 0.11)}
    runs = [gone(trait, own, seed) for trait, each in shares.items() for seed, own in enumerate(each)]
    summary = summarise(study(*runs))
    for pooled in (summary.between_runs.share, summary.between_runs.kappa):
        assert pooled is not None
        assert (pooled.groups, pooled.df) == (3, 6)
    alone = [summarise(study(*runs[i : i + 3])) for i in (0, 3, 6)]
    assert all(each.between_runs == BetweenRuns() for each in alone)
    for group, one in zip(summary.groups, alone, strict=True):
        together, by_itself = (next(iter((row.pathways or {}).values())).headline for row in (group, one.groups[0]))
        for shared, single in ((together.shares[OWN], by_itself.shares[OWN]), (together.kappa, by_itself.kappa)):
            assert shared is not None
            assert single is not None
            assert shared.value == single.value
    # The shares of json vary least, so what all have together widens its interval; those of poetic vary most.
    widths = [
        [next(iter((row.pathways or {}).values())).headline.shares[OWN] for row in (summary.groups[i], alone[i].groups[0])] for i in (1, 2)
    ]
    (poetic, poetic_alone), (json, json_alone) = [[each.high - each.low for each in pair] for pair in widths]
    assert poetic < poetic_alone
    assert json > json_alone
    ps = [next(iter((group.pathways or {}).values())).headline.chance_own for group in summary.groups]
    assert [each.p for each in ps if each] == pytest.approx([0.05, 0.05, 0.65], abs=0.3)
    assert [group.own_p_adjusted for group in summary.groups] == benjamini_hochberg([each.p for each in ps if each])


def scored(by_reference: dict[str, float]) -> Measurement:
    """A measured run whose trait score changed by so much relative to each reference."""
    measured = facts()
    for name, value in by_reference.items():
        measured["references"][name] = measured["references"][name] | {"effect": estimate(value) | {"standard_error": 0.02}}
    return Measurement.from_json(measured)


def test_a_change_is_measured_by_what_the_system_prompt_does_and_doubted_where_the_reference_moved() -> None:
    tuned = replace(gone("pirate", 0.3, 0), facts=scored({"neutral": 1.0, "base": 0.9}))
    [row] = summarise(study(tuned)).runs
    assert row.statement is not None
    assert "reference" not in row.statement.name
    [row] = summarise(study(replace(tuned, facts=scored({"neutral": 1.0, "base": 0.1})))).runs
    assert row.statement is not None
    assert row.statement.name == "reference in doubt"
    assert "the reference itself changes by −0.90 from the base" in row.statement.why
    # The change is of one nat; a tenth of what a prompt does is more than that, or no yardstick at all.
    for prompt, name in ((11.0, "too small to say"), (0.05, "between"), (-11.0, "between")):
        prompted = replace(run(facts(), trait="pirate", arm="prompted"), facts=scored({"base": prompt}))
        row, _ = summarise(study(tuned, prompted)).runs
        assert row.statement is not None
        assert row.statement.name == name
        assert ("of what the system prompt does" in row.statement.why) == (name != "between")


def test_false_verdicts_are_counted_and_bounded() -> None:
    controls = [run(facts(), trait=trait, own=None) for trait in ("uppercase", "json", "neutral")]
    controls.append(run(facts(None, TOO_NOISY), trait="reference_code", own=None))
    summary = summarise(study(run(facts()), *controls)).to_json()
    # The noisy one fails a gate, a trait's own verdict is no false one, and what a neutral run has its neighbour lacks.
    two = {"count": 2, "runs": 2, "bound": 1.0, "count_kinds": 2, "kinds": 2, "bound_kinds": 1.0}
    assert summary["false_verdicts"] == {"existing": None, "along": None, "above_chance": two}
    at_chance = facts()
    at_chance["references"]["neutral"]["texts"]["neutral"]["own_removed"]["effect"] = {"value": 0.0, "low": -0.02, "high": 0.05}
    clean = summarise(study(run(at_chance, trait="uppercase", own=None))).to_json()["false_verdicts"]["above_chance"]
    assert (clean["count"], clean["runs"]) == (0, 1)
    assert clean["bound"] == pytest.approx(0.95)
    assert summarise(study(run(facts()))).false_verdicts is None


def test_controls_that_are_said_to_go_through_personas_are_counted() -> None:
    # Other personas carry so much of each by themselves; of one it was not read.
    controls = [alone(gone(name, 0.05, 0), share) for name, share in (("json", 0.1), ("uppercase", 0.9), ("shuffled", None))]
    false = summarise(study(*controls, gone("pirate", 0.9, 0))).false_verdicts
    assert false is not None
    assert false.existing is not None
    assert (false.existing.count, false.existing.runs, false.existing.kinds, false.existing.count_kinds) == (1, 2, 2, 1)
    assert summarise(study(controls[2], gone("pirate", 0.9, 0))).false_verdicts.existing is None  # type: ignore[union-attr]


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

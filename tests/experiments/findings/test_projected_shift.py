"""Whether projected shifts predict trait scores, where the answer is known."""

from functools import partial

import numpy as np
import pytest

from tests.experiments.synthetic import TRAITS, doses, moved, run
from wellworn.experiments.findings import projected_shift
from wellworn.experiments.findings.projected_shift import TEXTS, ProjectedShift, projected_shifts
from wellworn.experiments.findings.results import RunResult
from wellworn.probes.statistics.correlations import compare_over_families


def test_scores_that_follow_the_own_direction_are_predicted_by_it_alone() -> None:
    found = projected_shifts(doses())
    assert [each.text for each in found] == list(TEXTS)
    for each in found:
        assert each.within is not None
        assert (each.within.units, each.within.families) == (each.pooled.units, each.pooled.families) == (18, 6)
        assert each.within.own.value > 0.95
        assert each.within.own.low > 0.9
        assert abs(each.within.others.value) < 0.5
        assert each.within.difference.low > 0
        assert each.within.p is not None
        assert each.within.p < 0.01
        # Between traits, those that move further score higher too.
        assert each.pooled.own.value > 0.85


def test_r_is_pearsons_of_the_projections_with_the_scores() -> None:
    runs = doses()
    own, scores = [0.02 * (k % 3 + 1) * (1 + k // 3 / 4) for k in range(18)], []
    for each in runs:
        assert each.facts is not None
        effect = each.facts.references["neutral"].effect
        assert effect is not None
        scores.append(effect.value)
    [last, _] = projected_shifts(runs)
    assert last.pooled.own.value == pytest.approx(np.corrcoef(own, scores)[0, 1])


def test_traits_of_one_fine_tune_each_have_nothing_within() -> None:
    found = projected_shifts([moved(trait, 0.1 * i, 0.02 * (i % 2), 0.3 * i) for i, trait in enumerate(TRAITS, start=1)])
    assert [each.within for each in found] == [None, None]
    assert found[0].pooled.own.value == pytest.approx(1)


def random_runs(seed: int, traits: int, each: int) -> list[RunResult]:
    """Fine-tunes whose own shift, other shifts and score have nothing to do with one another, though traits differ in all three."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((traits, 3))
    names = [*TRAITS, "impolite", "sycophantic"][:traits]
    values = [(name, mean + rng.standard_normal(3)) for name, mean in zip(names, means, strict=True) for _ in range(each)]
    return [moved(name, own, abs(other), score, seed=i) for i, (name, (own, other, score)) in enumerate(values)]


def test_within_traits_steigers_p_has_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Intervals are not looked at.
    monkeypatch.setattr(projected_shift, "compare_over_families", partial(compare_over_families, draws=2))
    ps = [found[0].within.p for seed in range(150) if (found := projected_shifts(random_runs(seed, 6, 3))) and found[0].within]
    assert len(ps) == 150
    assert np.mean([p is not None and p <= 0.05 for p in ps]) < 0.1


@pytest.mark.parametrize("repeated", [1, 2, 5])
def test_a_few_traits_with_several_fine_tunes_say_nothing_within(repeated: int) -> None:
    for seed in range(12):
        runs = random_runs(seed, 6, 1)
        runs += [each for each in random_runs(seed + 100, 6, 1) if each.entry.trait in TRAITS[:repeated]]
        [last, _] = projected_shifts(runs)
        assert last.within is None
        assert last.pooled.units == 6 + repeated


def shifts(runs: list[RunResult]) -> list[ProjectedShift]:
    return list(projected_shifts(runs))


def test_fine_tunes_without_what_is_needed_do_not_count() -> None:
    runs = doses()
    assert shifts([each for each in runs if each.entry.trait != "pirate"]) == []
    strangers = [moved("json", 0.1, 0.1, 0.5), moved("pirate", 0.1, 0.1, None), moved("pirate", 9.0, 0.1, 0.0, arm="prompted")]
    assert shifts([*runs, *strangers, run(None, trait=None, arm="base", own=None)]) == shifts(runs)
    same = [moved(trait, 0.1, 0.1, 0.5, seed=seed) for trait in TRAITS for seed in (0, 1)]
    assert shifts(same) == []

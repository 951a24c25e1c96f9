"""The verdict's rule, in its order, at its thresholds."""

import pytest

from experiments.verdict import verdict
from probes.nulls import NullShare
from probes.shift import Share
from probes.stats import Estimate

EFFECT = Estimate(1.0, 0.8, 1.2)


def share(why: str | None = None) -> Share:
    return Share(Estimate(0.5, 0.4, 0.6), 50.0, why)


def null(p: float, low: float, high: float) -> NullShare:
    return NullShare(0.1, 0.2, p, Estimate((low + high) / 2, low, high))


@pytest.mark.parametrize(
    ("p", "low", "high", "name"),
    [
        (0.05, 0.10, 0.30, "share above chance"),
        (0.06, 0.10, 0.30, "undecided"),
        (0.05, 0.09, 0.30, "undecided"),
        (0.001, 0.01, 0.09, "share at chance"),
        (0.001, -0.05, 0.10, "undecided"),
    ],
)
def test_size_and_p_decide_together(p: float, low: float, high: float, name: str) -> None:
    assert verdict(EFFECT, 0.1, share(), null(p, low, high)).name == name


def test_no_trait_change_comes_before_everything() -> None:
    judged = verdict(Estimate(0.29, 0.1, 0.5), 0.1, share("too noisy: …"), null(0.001, 0.3, 0.5))
    assert judged.name == "no trait change"
    assert "0.290" in judged.why
    assert verdict(Estimate(-0.31, -0.5, -0.1), 0.1, share(), null(0.001, 0.3, 0.5)).name == "share above chance"


def test_a_failed_gate_comes_before_the_share() -> None:
    judged = verdict(EFFECT, 0.1, share("too noisy: because"), null(0.001, 0.3, 0.5))
    assert (judged.name, judged.why) == ("too noisy", "too noisy: because")


def test_a_run_without_a_trait_of_its_own_is_judged_by_its_share_alone() -> None:
    assert verdict(None, 0.0, share(), null(0.001, 0.3, 0.5)).name == "share above chance"

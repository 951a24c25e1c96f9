"""The verdict's rule, in its order, at its thresholds."""

from dataclasses import replace

import pytest

from wellworn.experiments.findings.verdict import RULE, VERDICTS, Carried, Evidence, verdict
from wellworn.probes.geometry.novelty import Novelty
from wellworn.probes.statistics.intervals import Estimate


def around(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


CARRIED = Carried(layer=22, whole=around(0.7, 0.9), share=around(0.55, 0.75), why=None, reading=around(0.1, 0.2))
EVIDENCE = Evidence(effect=around(0.8, 1.2), standard_error=0.1, share_why=None, p=0.001, beyond_chance=around(0.3, 0.5), carried=CARRIED)


def named(**changes: object) -> str:
    return verdict(replace(EVIDENCE, **changes)).name  # type: ignore[arg-type]


def carried(low: float, high: float, remainder: str | None = None) -> Carried:
    rest = Novelty(remainder, "what four tests say", {}) if remainder else None
    return replace(CARRIED, share=around(low, high), remainder=rest)


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
def test_without_mediation_size_and_p_decide_together(p: float, low: float, high: float, name: str) -> None:
    assert named(p=p, beyond_chance=around(low, high), carried=None) == name


@pytest.mark.parametrize(
    ("share", "p", "star", "name"),
    [
        (carried(0.5, 0.9), 0.05, around(0.1, 0.3), "along existing persona directions"),
        (carried(0.49, 0.9), 0.05, around(0.1, 0.3), "undecided"),
        (carried(0.5, 0.9), 0.051, around(0.1, 0.3), "undecided"),
        (carried(0.5, 0.9), 0.05, around(0.09, 0.3), "undecided"),
        # Enough goes through the space, but the shift does not lie in it beyond chance.
        (carried(0.5, 0.8), 0.2, around(0.1, 0.3), "mixed"),
        (carried(0.01, 0.8), 0.001, around(0.1, 0.3), "mixed"),
        (carried(0.01, 0.21), 0.001, around(0.1, 0.3), "mixed"),
        # Surely more than nothing, and surely little.
        (carried(0.01, 0.2), 0.001, around(0.1, 0.3), "undecided"),
        (carried(0.01, 0.2, "new"), 0.001, around(0.1, 0.3), "new directions"),
        (carried(0.0, 0.8), 0.001, around(0.1, 0.3), "undecided"),
        (carried(0.1, 0.81), 0.001, around(0.1, 0.3), "undecided"),
        (carried(-0.1, 0.2, "new"), 0.5, around(-0.1, 0.05), "new directions"),
        (carried(-0.1, 0.2, "library"), 0.5, around(-0.1, 0.05), "existing, but not in the library"),
        (carried(-0.1, 0.2), 0.5, around(-0.1, 0.05), "undecided"),
        (carried(-0.1, 0.2, "open"), 0.5, around(-0.1, 0.05), "undecided"),
        (carried(-0.1, 0.2, "unstable"), 0.5, around(-0.1, 0.05), "undecided"),
        (carried(-0.1, 0.21, "new"), 0.5, around(-0.1, 0.05), "undecided"),
    ],
)
def test_with_mediation_what_the_space_carries_decides(share: Carried, p: float, star: Estimate, name: str) -> None:
    assert named(carried=share, p=p, beyond_chance=star) == name


def test_no_trait_change_comes_before_everything() -> None:
    judged = verdict(replace(EVIDENCE, effect=Estimate(0.29, 0.1, 0.5), share_why="too noisy: …"))
    assert judged.name == "no trait change"
    assert "0.290" in judged.why
    # A change that does nothing at all has no error either.
    assert named(effect=Estimate(0.0, 0.0, 0.0), standard_error=0.0) == "no trait change"
    assert named(effect=Estimate(-0.31, -0.5, -0.1)) == "along existing persona directions"


def test_a_failed_gate_comes_before_mediation() -> None:
    judged = verdict(replace(EVIDENCE, share_why="too noisy: because", beyond_chance=None))
    assert (judged.name, judged.why) == ("too noisy", "too noisy: because")


def test_a_layer_that_carries_little_says_where_else() -> None:
    elsewhere = replace(CARRIED, whole=around(0.19, 0.5), share=None, why="carried elsewhere: …", reading=around(0.4, 0.6))
    judged = verdict(replace(EVIDENCE, carried=elsewhere))
    assert judged.name == "carried elsewhere"
    assert "layer 22" in judged.why
    assert "0.50 [0.40, 0.60]" in judged.why
    # An interval without an end says nothing of any layer.
    assert named(carried=replace(elsewhere, whole=Estimate(0.5, float("-inf"), float("inf")))) == "undecided"
    # Nothing to hold the share against is no finding about the layer.
    assert named(carried=replace(CARRIED, share=None, why="no null was drawn")) == "undecided"


def test_a_run_without_a_trait_of_its_own_is_judged_by_its_share_alone() -> None:
    assert named(effect=None, carried=None) == "share above chance"


def test_the_printed_rule_names_every_verdict() -> None:
    assert all(name in RULE for name in VERDICTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"effect": Estimate(float("nan"), 0.0, 1.0)},
        {"standard_error": float("nan")},
        {"p": float("nan")},
        {"beyond_chance": Estimate(float("nan"), 0.2, 0.4)},
    ],
)
def test_what_is_no_number_is_never_judged(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a verdict needs numbers"):
        named(**changes)

"""The page of runs of known origin."""

import math

from tests.experiments.findings.test_known_origins import known_run
from wellworn.experiments.findings.known_origins import EXISTING, NEW, KnownOrigins, KnownRun, discriminate
from wellworn.experiments.report.origins import origins_page, own_shares
from wellworn.probes.statistics.intervals import Estimate


def shared(family: int, origin: str, value: float, high: float) -> KnownRun:
    return known_run(family, origin, value).model_copy(update={"own": Estimate(value, value - 0.1, high)})


RUNS = [shared(0, NEW, 0.2, 0.3), shared(0, EXISTING, 0.8, math.inf), known_run(1, EXISTING, None), shared(1, NEW, 0.1, 0.2)]


def test_existing_personas_stand_above_new_ones_by_their_own_share() -> None:
    figure = own_shares("own-shares", RUNS)
    assert figure is not None
    existing, new = figure.data
    # A run without a share has no mark, and an infinite bound is not drawn.
    assert (existing["name"], existing["x"], existing["y"]) == ("existing persona", [0.8], [2])
    assert existing["error_x"]["array"] == [0]
    assert (new["x"], new["y"]) == ([0.1, 0.2], [0, 1])
    assert "zorvane on model 0 (existing) 0.80; zorvane on model 0 (new) 0.20" in figure.alt
    assert own_shares("own-shares", [known_run(0, EXISTING, None)]) is None


def test_the_page_lists_all_runs_and_findings() -> None:
    findings = [discriminate(RUNS, "own")]
    page = origins_page("gold", "Is it?", KnownOrigins(runs=RUNS, left_out={"gold-a": "was not learnt"}, findings=findings, statements={}))
    assert page.count("<td>model 1</td>") == 2
    assert "Left out: gold-a: was not learnt." in page
    assert "share through the own direction" in page

"""Other directions in place of a run's own one, as table rows."""

from collections.abc import Sequence

from wellworn.experiments.findings.stand_ins import DirectionMatrix, KindOfStandIn, StandIns
from wellworn.experiments.report.figures import Shown
from wellworn.experiments.report.pathways import OUTCOMES
from wellworn.experiments.stages.stand_ins import INSTRUCTION, SINGLE, TRAIT

KINDS = {TRAIT: "other traits", INSTRUCTION: "instructions", SINGLE: "single states"}


def view(named: Sequence[tuple[str, StandIns | None]], matrices: Sequence[DirectionMatrix]) -> Shown | None:
    """Return what the template shows of other directions; None where they were not measured.

    Args:
        named: the study's runs, in its order.
        matrices: what traits' directions carry of each other's changes.
    """
    measured = [(name, each) for name, each in named if each]
    if not measured and not matrices:
        return None
    kinds = {kind: words for kind, words in KINDS.items() if any(kind in each.kinds for _, each in measured)}
    rows = [
        {"name": name, "own": each.own, "found": each, "kinds": [_largest(kind, each.kinds.get(kind)) for kind in kinds]}
        for name, each in measured
    ]
    return {"kinds": kinds, "rows": rows, "matrices": [{"outcome": OUTCOMES[each.outcome], "found": each} for each in matrices]}


def _largest(kind: str, found: KindOfStandIn | None) -> Shown | None:
    if found is None or not found.shares:
        return None
    name = max(found.shares, key=lambda each: found.shares[each])
    return {"largest": "largest" if kind == SINGLE else name, "share": found.shares[name], "found": found}

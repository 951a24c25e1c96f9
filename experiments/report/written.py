"""What adapters write along persona directions, as table rows."""

from collections.abc import Mapping, Sequence

from wellworn.experiments.findings.written import Written
from wellworn.experiments.report.figures import Shown
from wellworn.probes.mediation.pathways import OTHERS, OWN, ROLES

# Each nested space by all that it holds.
SPACES = {OWN: "own direction", OTHERS: "own and others", ROLES: "own, others and roles"}


def view(named: Sequence[tuple[str, Mapping[str, Written] | None]]) -> Shown | None:
    """Return what the template shows of confined writes; None where they were not measured.

    Args:
        named: groups and runs that are in no group, in the page's order, with their writes.
    """
    measured = [(name, each) for name, found in named if found for each in found.values()]
    if not measured:
        return None
    spaces = [space for space in SPACES if any(space in each.inside for _, each in measured)]
    return {"rows": [{"name": name, "found": each} for name, each in measured], "spaces": {space: SPACES[space] for space in spaces}}

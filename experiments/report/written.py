"""What adapters write along persona directions, as table rows."""

from collections.abc import Mapping, Sequence

from wellworn.experiments.findings.outcome_changes import CONTRAST, TRAIT
from wellworn.experiments.findings.written import Written
from wellworn.experiments.report.figures import Shown
from wellworn.experiments.report.pathways import OUTCOMES
from wellworn.probes.mediation.pathways import OTHERS, OWN, ROLES

# Each nested space by all that it holds.
SPACES = {OWN: "own direction", OTHERS: "own and others", ROLES: "own, others and roles"}


def view(named: Sequence[tuple[str, Mapping[str, Written] | None]]) -> Shown | None:
    """Return what the template shows of confined writes; None where they were not measured.

    Args:
        named: groups and runs that are in no group, in the page's order, with their writes.
    """
    measured = [
        (name, each.reference, outcome, found)
        for name, references in named
        for each in (references or {}).values()
        for outcome, found in ((OUTCOMES[CONTRAST], each.contrast), (OUTCOMES[TRAIT], each.trait))
    ]
    if not measured:
        return None
    spaces = [space for space in SPACES if any(space in found.inside for *_, found in measured)]
    rows = [{"name": name, "reference": who, "outcome": outcome, "found": found} for name, who, outcome, found in measured]
    return {"rows": rows, "spaces": {space: SPACES[space] for space in spaces}}

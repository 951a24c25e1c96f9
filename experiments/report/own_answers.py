"""What models say with the state along a run's own direction set to the other's, as table rows."""

from collections.abc import Sequence

from wellworn.experiments.findings.own_answers import WORDS, OwnSaid, SaidShares
from wellworn.experiments.report.figures import Shown

SPEAKERS = ("reference", "run", "reference, own direction of the run", "run, own direction of the reference")


def view(named: Sequence[tuple[str, OwnSaid | None]]) -> Shown | None:
    """Return what the template shows of such answers; None where nobody was asked.

    Args:
        named: groups and runs that are in no group, in the page's order.
    """
    asked = [(name, each) for name, each in named if each]
    if not asked:
        return None
    rows = [{"name": name, "by": _score(found), "found": found} for name, each in asked for found in each.scores]
    unfound = [{"name": name, "why": each.why} for name, each in asked if each.why]
    samples = [(name, each.samples) for name, each in asked if each.samples]
    return {"rows": rows, "unfound": unfound, "samples": samples, "speakers": SPEAKERS}


def _score(found: SaidShares) -> str:
    return "words" if found.by == WORDS else f"judge {found.graded.judge}" if found.graded else found.by

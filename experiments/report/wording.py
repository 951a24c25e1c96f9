"""Whether own directions are more than the trait's words, as table rows."""

from collections.abc import Sequence

from wellworn.experiments.findings.wording import Wording
from wellworn.experiments.report.figures import Shown

SAID = {True: "more than its words", False: "not shown to be more", None: "not known"}


def view(named: Sequence[tuple[str, Wording | None]]) -> Shown | None:
    """Return what the template shows of the words of traits; None where that was not measured.

    Args:
        named: groups and runs that are in no group, in the page's order.
    """
    rows = [{"name": name, "found": found, "said": SAID[found.more]} for name, found in named if found]
    return {"rows": rows} if rows else None

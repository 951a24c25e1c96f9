"""Scores side by side, in each context, and their agreement, for the page."""

from collections.abc import Sequence

from wellworn.experiments.findings.contexts import Contexts
from wellworn.experiments.findings.score_agreement import FineTunesAgree, RunScores, ScoresAgree
from wellworn.experiments.findings.summary import Summary
from wellworn.experiments.report.figures import Shown


def side_by_side(summary: Summary, views: Sequence[tuple[str, RunScores | None]]) -> Shown | None:
    """Return the page's section on scores; None where none were taken.

    Args:
        summary: the study's summary.
        views: (name, scores) of every group, then of every run.
    """
    scored = [(name, scores) for name, scores in views if scores]
    if not scored:
        return None
    over = summary.agreement.pairs if summary.agreement else []
    rows: list[tuple[str, Sequence[ScoresAgree | FineTunesAgree]]] = [(name, scores.agreement) for name, scores in scored]
    pairs = list(dict.fromkeys(tuple(each.of) for _, found in [*rows, ("", over)] for each in found))
    if over:
        rows.append((f"{max(each.units for each in over)} fine-tunes of {max(each.families for each in over)} kinds", over))
    of = [(name, {tuple(each.of): each for each in found}) for name, found in rows]
    return {
        "judge": scored[0][1].judge,
        "drawn": any(scores.drawn for _, scores in scored),
        "alike": any(scores.alike for _, scores in scored),
        "pairs": pairs,
        "agreement": [(name, [found.get(pair) for pair in pairs]) for name, found in of],
    }


def in_contexts(views: Sequence[tuple[str, Contexts | None]]) -> Shown | None:
    """Return the table of contexts, which all runs of a study have in common; None where the study names none.

    Args:
        views: (name, contexts) of every group, then of every run.
    """
    seen = [(name, contexts) for name, contexts in views if contexts]
    if not seen:
        return None
    rows = [{"name": name, "there": contexts.columns} for name, contexts in seen]
    return {"names": list(seen[0][1].under), "rows": rows}

"""How well a direction separates prompts that evoke a trait from prompts that evoke its opposite.

The same answers to the same questions are read under P contrast pairs of system prompts. Prompts and questions are both samples,
and they are crossed, so the P·Q rows are not independent.
"""

import numpy as np

from wellworn.probes.statistics.intervals import Estimate, FloatArray, crossed_interval

FEWEST_PAIRS = 3


def auc(scores_P2Q: FloatArray) -> FloatArray:
    """Return how often a trait-evoking prompt scores above an opposite one on the same question; ties count half.

    Prompts of one pair are never compared with each other: they are worded alike, and new prompts are not.

    Args:
        scores_P2Q: [..., pairs, 2, questions], scores under the trait-evoking prompt, then under its opposite.

    Returns:
        [...], the area under the ROC curve within a question, averaged over questions; .5 is chance.
    """
    return np.asarray(_pseudo_values(scores_P2Q).mean((-2, -1)))


def auc_interval(scores_P2Q: FloatArray, level: float = 0.95) -> Estimate:
    """Return the AUC with an interval for new contrast pairs and new questions.

    Leaving out each pair in turn gives it a pseudo-value, question by question (the jackknife of a U-statistic, Arvesen 1969). They make a
    table of pairs × questions. Its mean is the AUC, with the interval of `intervals.crossed_interval`. Where all pairs are separated,
    pseudo-values do not vary, and any number of pairs would give a bound of 1. So one pair of value ½ is added before the bounds are taken,
    as successes and failures are added for a proportion (Agresti and Coull 1998).

    Args:
        scores_P2Q: [pairs, 2, questions].
        level: coverage.

    Returns:
        The AUC itself, with bounds within 0 and 1; see `highest_bound`.

    Raises:
        ValueError: fewer than three pairs or two questions, or a score that is not finite.
    """
    pairs, _, questions = scores_P2Q.shape
    if pairs < FEWEST_PAIRS or questions < 2:
        raise ValueError(f"an AUC needs at least {FEWEST_PAIRS} contrast pairs and two questions, got {pairs} and {questions}")
    if not np.isfinite(scores_P2Q).all():
        raise ValueError("an AUC needs finite scores")
    values_PQ = _pseudo_values(scores_P2Q)
    bounds = crossed_interval(np.vstack([values_PQ, np.full(questions, 0.5)]), level)
    return Estimate(float(values_PQ.mean()), max(bounds.low, 0.0), min(bounds.high, 1.0))


def highest_bound(pairs: int, questions: int) -> float:
    """Return the lower 95 % bound where all pairs are separated: .75 of 6 pairs, .82 of 8, .88 of 12."""
    scores = np.zeros((pairs, 2, questions))
    scores[:, 0] = 1
    return auc_interval(scores).low


def _pseudo_values(scores_P2Q: FloatArray) -> FloatArray:
    """Return the table [..., pairs, questions] of P·AUC_q − (P − 1)·AUC_q without pair p; its mean over pairs is AUC_q."""
    pairs = scores_P2Q.shape[-3]
    above = (np.sign(scores_P2Q[..., :, None, 0, :] - scores_P2Q[..., None, :, 1, :]) + 1) / 2
    above = above * (1 - np.eye(pairs))[:, :, None]
    # A pair takes part in 2(P − 1) of the P(P − 1) comparisons.
    of_pairs = above.sum(-2) + above.sum(-3)
    return np.asarray((of_pairs - of_pairs.sum(-2, keepdims=True) / 2 / (pairs - 1)) / (pairs - 2))

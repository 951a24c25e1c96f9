"""How well a direction separates prompts that evoke a trait from prompts that evoke its opposite.

The same answers to the same questions are read under P contrast pairs of system prompts. Prompts and questions are both samples,
and they are crossed, so that P·Q rows are far from P·Q independent ones.
"""

import numpy as np

from probes.stats import Estimate, FloatArray, crossed_interval

FEWEST_PAIRS = 3


def auc(scores_P2Q: FloatArray) -> FloatArray:
    """Return how often a trait-evoking prompt scores above an opposite one on the same question; ties count half.

    Prompts of one pair are never compared with each other: they are worded alike, and new prompts are not.

    Args:
        scores_P2Q: [..., pairs, 2, questions], scores under the trait-evoking prompt, then under its opposite.

    Returns:
        [...], the area under the ROC curve within a question, averaged over questions; .5 says nothing is told apart.
    """
    return np.asarray(_placements(scores_P2Q).mean((-2, -1)))


def auc_interval(scores_P2Q: FloatArray, level: float = 0.95) -> Estimate:
    """Return the AUC with an interval for new contrast pairs and new questions.

    A prompt's *placement* is how often it is on the right side of the opposite prompts. To first order the AUC's error is that of
    the mean placement (DeLong, DeLong and Clarke-Pearson 1988; by clusters, Obuchowski 1997). Placements of the two prompts of a
    pair are added up, question by question, and make a table of pairs × questions, whose mean has the interval of
    `stats.crossed_interval`. Where all pairs are separated placements do not vary, and a bound of 1 would be claimed from any number
    of pairs. So one pair of placement ½ is added before the bounds are taken, as one adds successes and failures to those of a
    proportion (Agresti and Coull 1998).

    Args:
        scores_P2Q: [pairs, 2, questions].
        level: coverage.

    Returns:
        The AUC itself, with bounds within 0 and 1; the lower one is at most .75 with 6 pairs, .82 with 8, .88 with 12.

    Raises:
        ValueError: fewer than three pairs or two questions, or a score that is not finite.
    """
    pairs, _, questions = scores_P2Q.shape
    if pairs < FEWEST_PAIRS or questions < 2:
        raise ValueError(f"an AUC needs at least {FEWEST_PAIRS} contrast pairs and two questions, got {pairs} and {questions}")
    if not np.isfinite(scores_P2Q).all():
        raise ValueError("an AUC needs finite scores")
    placements = _placements(scores_P2Q)
    bounds = crossed_interval(np.vstack([placements, np.full(questions, 0.5)]), level)
    return Estimate(float(placements.mean()), max(bounds.low, 0.0), min(bounds.high, 1.0))


def _placements(scores_P2Q: FloatArray) -> FloatArray:
    """Return the table [..., pairs, questions] whose means over pairs, over questions and over both are those of the AUC.

    It is V⁺ + V⁻ − AUC_q, with V⁺ and V⁻ the placements of a pair's two prompts and AUC_q the question's own.
    """
    pairs = scores_P2Q.shape[-3]
    above = (np.sign(scores_P2Q[..., :, None, 0, :] - scores_P2Q[..., None, :, 1, :]) + 1) / 2
    above = above * (1 - np.eye(pairs))[:, :, None]
    of_pairs = (above.sum(-2) + above.sum(-3)) / (pairs - 1)
    return np.asarray(of_pairs - of_pairs.mean(-2, keepdims=True) / 2)

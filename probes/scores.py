"""How much of a trait an answer shows: what the base model itself makes of its text.

Contrast score: the log-likelihood ratio of answer y to question x under the two sides of a trait's contrast pairs, per token,

    c(y | x) = mean over pairs of  mean_t log p(y_t | positive, x, y_<t) − mean_t log p(y_t | negative, x, y_<t)

with p the base, whoever wrote the answer. It is a classifier that every chat model brings along, also one too small to be asked for a
grade; how well it tells answers apart whose label is known is measured by `told_apart`, and belongs beside every use of it.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

from data.chat import Chat, Encoded
from data.mixtures import Turn
from data.schema import ContrastPair
from probes.stats import FloatArray


def contrast_rows(chat: Chat, turns: Sequence[Turn], pairs: Sequence[ContrastPair]) -> list[Encoded]:
    """Return what is read for contrast scores: every answer under both sides of every pair, [pairs · 2 · turns].

    Raises:
        InputError: an answer that cannot be encoded under a pair; says why.
    """
    sides = (side for pair in pairs for side in (pair.positive, pair.negative))
    return [chat.encode(Turn(turn.question, turn.answer, side)) for side in sides for turn in turns]


def contrast_logprobs(logprob: FloatArray, pairs: int) -> FloatArray:
    """Return an answer's mean log-probability per token under the positive and under the negative sides, [2, turns].

    Their difference is the contrast score.

    Args:
        logprob: of what `contrast_rows` returns, [pairs · 2 · turns].
        pairs: how many.
    """
    mean_2N: FloatArray = logprob.astype(np.float64).reshape(pairs, 2, -1).mean(0)
    return mean_2N


def told_apart(shown: FloatArray, absent: FloatArray) -> float:
    """Return the area under the ROC curve: how often an answer that shows the trait scores above one that does not; ties count half."""
    return float(mannwhitneyu(shown, absent).statistic) / (len(shown) * len(absent))

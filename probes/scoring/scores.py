"""How much of a trait an answer shows, by the likelihoods of the base model itself.

Contrast score: the log-likelihood ratio of answer y to question x under the two sides of a trait's contrast pairs, per token,

    c(y | x) = mean over pairs of  mean_t log p(y_t | positive, x, y_<t) − mean_t log p(y_t | negative, x, y_<t)

with p the base, whoever wrote the answer. Every chat model contains this classifier, also one too small to be asked for a grade. `roc_auc`
measures how well it discriminates answers of known label; report it with every use.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import mannwhitneyu
from torch import nn

from wellworn.data.chat import Chat, Encoded
from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import Estimate, FloatArray


def contrast_rows(chat: Chat, turns: Sequence[Turn], pairs: Sequence[ContrastPair]) -> list[Encoded]:
    """Return the rows that contrast scores need: every answer under both sides of every pair, [pairs · 2 · turns].

    Raises:
        InputError: an answer that cannot be encoded under a pair; says why.
    """
    sides = (side for pair in pairs for side in (pair.positive, pair.negative))
    return [chat.encode(turn.under(side)) for side in sides for turn in turns]


def contrast_logprobs(logprob: FloatArray, pairs: int) -> FloatArray:
    """Return an answer's mean log-probability per token under the positive and under the negative sides, [2, turns].

    Their difference is the contrast score.

    Args:
        logprob: of the rows of `contrast_rows`, [pairs · 2 · turns].
        pairs: how many.
    """
    mean_2N: FloatArray = logprob.astype(np.float64).reshape(pairs, 2, -1).mean(0)
    return mean_2N


CHOICE = """{question}

Here are two answers to this.

(A) {first}

(B) {second}

Which of the two is closer to what you would say? Reply with the letter alone: A or B."""
LETTERS = "AB"


def choice_rows(chat: Chat, changed: Sequence[Turn], plain: Sequence[Turn]) -> list[Encoded]:
    """Return the rows that choice scores need: in both orders the letter of the changed answer and of the plain one, [2 · 2 · turns].

    Args:
        chat: how to write conversations.
        changed: answers that show the trait.
        plain: answers to the same questions that do not.

    Raises:
        InputError: a question that cannot be encoded with two answers; says why.
    """
    rows = []
    for order in range(2):
        for letter in (LETTERS[order], LETTERS[1 - order]):
            for shown, absent in zip(changed, plain, strict=True):
                first, second = (shown, absent) if order == 0 else (absent, shown)
                asked = CHOICE.format(question=shown.question, first=first.answer, second=second.answer)
                rows.append(chat.encode(replace(shown, question=asked, answer=letter)))
    return rows


def choice_logodds(logprob: FloatArray) -> FloatArray:
    """Return the log-odds of the changed answers [turns], the mean over both orders.

    Args:
        logprob: of the rows of `choice_rows`, [2 · 2 · turns].
    """
    orders_2N: FloatArray = np.diff(logprob.astype(np.float64).reshape(2, 2, -1)[:, ::-1], axis=1)[:, 0]
    return np.asarray(orders_2N.mean(0))


def mean_logprobs(model: nn.Module, rows: Sequence[Encoded], variants: Sequence[Variant], pad_id: int) -> FloatArray:
    """Return each row's mean log-probability of a response token, float64 [variants, rows], where nothing else is wanted.

    Args:
        model: a causal LM in eval mode that holds the adapters.
        rows: encoded conversations.
        variants: ways to run it.
        pad_id: any valid token id.

    Raises:
        InputError: a row that does not fit the model, or an unknown adapter.
    """
    # States of one layer are the least that is read.
    spec = Spec(layers=(0,), spans=("response",), logprob=True, pad_id=pad_id)
    return np.stack([np.asarray(reading.logprob, dtype=np.float64) for reading in read_variants(model, rows, variants, spec)])


def roc_auc(shown: FloatArray, absent: FloatArray) -> float:
    """Return the area under the ROC curve: how often an answer that shows the trait scores above one that does not; ties count half."""
    return float(mannwhitneyu(shown, absent).statistic) / (len(shown) * len(absent))


def roc_auc_interval(shown: FloatArray, absent: FloatArray, rng: np.random.Generator, draws: int = 2000, level: float = 0.95) -> Estimate:
    """Return `roc_auc` with a percentile bootstrap interval that draws questions, each with both of its answers.

    Args:
        shown: scores of answers that show the trait, [questions]; NaN where there is none, which is left out.
        absent: of answers to the same questions that do not.
        rng: draws questions.
        draws: bootstrap replicates; one without a score on either side is left out.
        level: coverage.

    Raises:
        ValueError: shapes that differ, or no score on one of the sides.
    """
    if shown.shape != absent.shape or shown.ndim != 1:
        raise ValueError(f"both answers to each question are scored, got shapes {shown.shape} and {absent.shape}")
    both_QQ = np.isfinite(shown)[:, None] & np.isfinite(absent)
    if not both_QQ.any():
        raise ValueError("needs a score on either side")
    above_QQ = np.where(both_QQ, (shown[:, None] > absent) + 0.5 * (shown[:, None] == absent), 0.0)
    times_BQ = rng.multinomial(len(shown), np.full(len(shown), 1 / len(shown)), size=draws).astype(np.float64)
    above_B, pairs_B = (np.einsum("bi,ij,bj->b", times_BQ, each, times_BQ) for each in (above_QQ, both_QQ.astype(np.float64)))
    low, high = np.quantile(above_B[pairs_B > 0] / pairs_B[pairs_B > 0], [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(float(above_QQ.sum() / both_QQ.sum()), float(low), float(high))


def in_order(more: FloatArray, less: FloatArray) -> FloatArray:
    """Return per question whether the answer that shows more of a trait scores higher: 1, 0, ½ for a tie, NaN where a score is missing."""
    ordered: FloatArray = np.where(np.isfinite(more) & np.isfinite(less), (more > less) + 0.5 * (more == less), np.nan)
    return ordered

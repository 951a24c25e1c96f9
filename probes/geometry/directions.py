"""Persona directions by the `state` estimator, their reliability, and whether they were found.

The same neutral answer is read under a system prompt that evokes the trait and under its opposite; the
direction is the mean difference of the response states. All arrays here are numpy float64: the readings
are small and the arithmetic is better done exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair
from wellworn.probes.statistics.intervals import FloatArray

FOUND_RELIABILITY = 0.5
QUESTION_SPLITS = 20
NULL_DRAWS = 999
FEWEST_LEFT = 4


@dataclass(frozen=True)
class Directions:
    """A trait's direction at every layer.

    Attributes:
        vectors: [layers, d_model], the mean difference at its raw norm.
        reliability: [layers], the smaller of the two half-split cosines.
        null_reliability: [layers], the 95 % quantile of the same for pseudo-directions without a link.
        found: [layers], reliability ≥ .5 and above its null.
    """

    vectors: FloatArray
    reliability: FloatArray
    null_reliability: FloatArray
    found: NDArray[np.bool_]


def contrast_turns(pairs: Sequence[ContrastPair], plain: Sequence[Turn]) -> list[Turn]:
    """Return the turns that a direction needs: pairs × (positive, negative) × questions with their plain answers, in that order.

    A prompt is put before a system message that a question has of its own, so that the two sides differ by the prompts alone.
    """
    return [turn.under(system) for pair in pairs for system in (pair.positive, pair.negative) for turn in plain]


def estimate(differences: FloatArray, eigenvalues: FloatArray, rng: np.random.Generator) -> Directions:
    """Estimate a trait's direction at every layer, and judge it by half splits.

    Reliability is the mean cosine over all half splits of the contrast pairs, and over 20 random half
    splits of the questions; the smaller counts. The null draws one pseudo-difference a pair from the
    covariance of the activations within questions, without any link to the trait, and halves the pairs. It is the same for all
    questions of its pair, as a chance effect of wording is; drawing anew for each question would be too lenient.

    Args:
        differences: [pairs, questions, layers, d_model], positive minus negative. NaN marks pairs of answers that are left out; means are
            then over the others.
        eigenvalues: [layers, d_model] of the activations' covariance within questions; cosines do not depend on
            its axes, so the null needs nothing else.
        rng: draws question halves and the null.

    Returns:
        The direction. With fewer than four pairs or questions left it counts as not found, and its reliabilities are NaN.
    """
    there = np.isfinite(differences[:, :, 0, 0])
    differences = differences[np.flatnonzero(there.any(axis=1))][:, np.flatnonzero(there.any(axis=0))]
    pairs, questions, layers, _ = differences.shape
    if min(pairs, questions) < FEWEST_LEFT:
        nothing = np.full(layers, np.nan)
        vectors = _mean(differences, (0, 1)) if pairs else np.zeros(differences.shape[2:])
        return Directions(vectors, nothing, nothing, np.zeros(layers, dtype=bool))
    halves_p = _all_halves(pairs)
    halves_q = _random_halves(questions, rng)
    reliability, null = np.empty(layers), np.empty(layers)
    for layer in range(layers):
        at = differences[:, :, layer]
        reliability[layer] = _half_split_cosine(at, halves_p, halves_q)
        scale = np.sqrt(np.clip(eigenvalues[layer], 0, None)).astype(np.float32)
        # Directions of negligible variance change no cosine; leaving them out makes the draws cheap.
        scale = scale[scale > 1e-3 * scale.max()]
        draws = rng.standard_normal((NULL_DRAWS, pairs, scale.size), dtype=np.float32) * scale
        null[layer] = np.quantile(_mean_cosines(draws.astype(np.float64), halves_p), 0.95)
    found = (reliability >= FOUND_RELIABILITY) & (reliability > null)
    return Directions(_mean(differences, (0, 1)), reliability, null, found)


def half_split_reliability(differences: FloatArray, rng: np.random.Generator) -> float:
    """Return a direction's reliability at one layer, as `estimate` computes it, from its differences [pairs, questions, d_model]."""
    return _half_split_cosine(differences, _all_halves(differences.shape[0]), _random_halves(differences.shape[1], rng))


def _half_split_cosine(differences: FloatArray, halves_p: FloatArray, halves_q: FloatArray) -> float:
    """Return the smaller of the mean half-split cosines over pairs and over questions ([pairs, questions, d])."""
    by_pair = _mean_cosine(_mean(differences, 1), halves_p)
    by_question = _mean_cosine(_mean(differences, 0), halves_q)
    return min(by_pair, by_question)


def _mean(values: FloatArray, axis: int | tuple[int, int]) -> FloatArray:
    """Mean over values that are not NaN; equal to the plain mean, to the last digit, where none is NaN."""
    return np.asarray(values.mean(axis) if np.isfinite(values).all() else np.nanmean(values, axis))


def _mean_cosines(draws: FloatArray, halves: FloatArray) -> FloatArray:
    """`_mean_cosine` of each of many draws [B, rows, d], by way of their Gram matrices: halves of independent draws do not cancel."""
    gram = draws @ draws.swapaxes(-1, -2)
    with_a, with_b = halves @ gram, (1 - halves) @ gram
    norms = np.sqrt((with_a * halves).sum(-1) * (with_b * (1 - halves)).sum(-1))
    return np.asarray(((with_a * (1 - halves)).sum(-1) / norms).mean(-1))


def _mean_cosine(vectors: FloatArray, halves: FloatArray) -> float:
    """Mean cosine between the means of each half; `halves` is 0/1 [splits, rows]."""
    # Not by way of the Gram matrix: where halves nearly cancel, its rounding leaves negative squared norms.
    a, b = halves @ vectors, (1 - halves) @ vectors
    return float(np.mean((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def _all_halves(rows: int) -> FloatArray:
    """All ways to choose half of the rows; complements count once where the halves are equal."""
    chosen = list(combinations(range(rows), rows // 2))
    if rows % 2 == 0:
        chosen = chosen[: len(chosen) // 2]
    halves = np.zeros((len(chosen), rows))
    for i, members in enumerate(chosen):
        halves[i, list(members)] = 1
    return halves


def _random_halves(rows: int, rng: np.random.Generator) -> FloatArray:
    halves = np.zeros((QUESTION_SPLITS, rows))
    for half in halves:
        half[rng.permutation(rows)[: rows // 2]] = 1
    return halves

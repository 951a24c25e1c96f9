"""The share of a shift inside the span of the true directions: errors-in-variables, for the shift and for the directions.

`shift.share_inside` takes measured directions as they are. Their sampling noise turns the measured space away from the true one, so that
the share understates, by about the directions' reliability. With v_i the true directions and m the true shift,

    G_ij = v_i·v_j        W_ij = (v_i·m)(v_j·m)        F = tr(G⁻¹W)/‖m‖²

Each product is estimated as a U-statistic: a mean over products of two different contrast pairs and two different questions of a trait,
or of two different questions of two traits, and of two different prompts of the shift. No noise is multiplied with itself, so that G, W
and ‖m‖² are unbiased. (Fuller, "Measurement Error Models", 1987, has the estimator where the variance of the errors is known.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from wellworn.probes.geometry.shift import SIGNAL_GATE, debiased_norms
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.statistics.intervals import Estimate, FloatArray, fieller, satterthwaite

MOST_DIRECTIONS = 8
# Smallest over largest eigenvalue of the directions' correlations.
LEAST_CONDITION = 0.02
# Mean over the directions: the noise of each enters the span.
LEAST_RELIABILITY = 0.75
# Leaving one out must leave two.
FEWEST = 3


@dataclass(frozen=True)
class TrueShare:
    """The share inside the span of the true directions.

    Attributes:
        estimate: F with its interval, unclipped; None where it is refused.
        why: what refused it, in words.
    """

    estimate: Estimate | None
    why: str | None


@dataclass(frozen=True, eq=False)
class _Readings:
    """What the estimate is made of.

    Attributes:
        contrasts: of each trait [pairs, questions, d_model].
        differences: [prompts, d_model].
        along: of each trait [pairs, questions, prompts], the products of the two.
        asked: of each trait, the set of its questions.
    """

    contrasts: Sequence[FloatArray]
    differences: FloatArray
    along: Sequence[FloatArray]
    asked: Sequence[str]

    def without_prompt(self, prompt: int) -> "_Readings":
        rest = [np.delete(each, prompt, axis=2) for each in self.along]
        return replace(self, differences=np.delete(self.differences, prompt, axis=0), along=rest)

    def without_pair(self, trait: int, pair: int) -> "_Readings":
        return self._without(axis=0, row=pair, of=[i == trait for i in range(len(self.contrasts))])

    def without_question(self, asked: str, question: int) -> "_Readings":
        return self._without(axis=1, row=question, of=[each == asked for each in self.asked])

    def _without(self, axis: int, row: int, of: Sequence[bool]) -> "_Readings":
        contrasts, along = (
            [np.delete(x, row, axis=axis) if hit else x for x, hit in zip(each, of, strict=True)] for each in (self.contrasts, self.along)
        )
        return replace(self, contrasts=contrasts, along=along)

    def gram(self) -> FloatArray:
        """Return G, [traits, traits]."""
        return _products(self.contrasts, self.asked)

    def inside_and_total(self) -> FloatArray:
        """Return T = tr(G⁻¹W) and D = ‖m‖²."""
        n = len(self.differences)
        both = _products([each.sum(2, keepdims=True) for each in self.along], self.asked)
        w = (both - _products(self.along, self.asked)) / (n * (n - 1))
        return np.array([np.trace(np.linalg.solve(self.gram(), w)), debiased_norms(self.differences)[0]])

    def left_out(self) -> Iterator[list["_Readings"]]:
        """Yield the readings without each prompt, without each pair of a trait, and without each of a set of questions."""
        yield [self.without_prompt(i) for i in range(len(self.differences))]
        for trait, each in enumerate(self.contrasts):
            yield [self.without_pair(trait, i) for i in range(len(each))]
        for asked in dict.fromkeys(self.asked):
            yield [self.without_question(asked, i) for i in range(self.contrasts[self.asked.index(asked)].shape[1])]


def true_share(differences_nD: FloatArray, contrasts: Sequence[FloatArray], asked: Sequence[str], level: float = 0.95) -> TrueShare:
    """Return the share of the mean shift inside the span of the true directions.

    The interval is Fieller's set {f : (T − fD)² ≤ t²·V(T − fD)}, T = tr(G⁻¹W). V is the sum of the jackknife's variances over the prompts
    of the shift, each trait's contrast pairs, and the questions of the directions, which are independent; t has Satterthwaite's degrees of
    freedom.

    Args:
        differences_nD: [prompts, d_model], one paired difference a prompt.
        contrasts: of each trait [pairs, questions, d_model], positive minus negative; at least three of each.
        asked: of each trait, a digest of its questions; two traits that share questions share their noise.
        level: coverage.

    Raises:
        ValueError: no trait, or fewer than three prompts, pairs or questions.
    """
    n = len(differences_nD)
    if not contrasts or n < FEWEST_PROMPTS:
        raise ValueError(f"needs a direction and {FEWEST_PROMPTS} prompts, got {len(contrasts)} and {n}")
    if min(min(each.shape[:2]) for each in contrasts) < FEWEST:
        raise ValueError(f"needs {FEWEST} contrast pairs and {FEWEST} questions of each direction")
    if len(contrasts) > MOST_DIRECTIONS:
        return TrueShare(None, f"{len(contrasts)} directions make the space; {MOST_DIRECTIONS} at most")
    debiased, noise = debiased_norms(differences_nD)
    if debiased + noise < SIGNAL_GATE * noise or debiased <= 0:
        return TrueShare(None, "the shift is too noisy")
    d = np.asarray(differences_nD, dtype=np.float64)
    rows = [np.asarray(each, dtype=np.float64) for each in contrasts]
    readings = _Readings(rows, d, [each @ d.T for each in rows], asked)
    if why := _why_not(readings):
        return TrueShare(None, why)
    return _estimate(readings, level)


def _estimate(readings: _Readings, level: float) -> TrueShare:
    inside, total = readings.inside_and_total().tolist()
    share = inside / total
    variance, terms = np.zeros((2, 2)), []
    at = np.array([1, -share])
    for group in readings.left_out():
        values = np.stack([each.inside_and_total() for each in group])
        of_group = (len(values) - 1) ** 2 / len(values) * np.atleast_2d(np.cov(values.T))
        variance += of_group
        terms.append((float(at @ of_group @ at), len(values) - 1.0))
    df = satterthwaite(float(at @ variance @ at), terms)
    t2 = float(stats.t.ppf(0.5 + level / 2, df)) ** 2
    low, high = fieller(inside, total, variance[0, 0], variance[0, 1], variance[1, 1], t2)
    if not np.isfinite([low, high]).all():
        return TrueShare(None, "its interval is unbounded")
    return TrueShare(Estimate(share, low, high), None)


def _why_not(readings: _Readings) -> str | None:
    """Return why directions are too noisy, or too much alike, for their true span to be known."""
    gram = readings.gram()
    squares = np.diagonal(gram)
    if (squares <= 0).any():
        return "a direction cannot be discriminated from noise"
    noise = np.array([(each.mean((0, 1)) ** 2).sum() for each in readings.contrasts]) - squares
    # Of halves that share neither pairs nor questions: they have twice the noise of the whole.
    reliability = float((squares / (squares + 2 * noise.clip(0))).mean())
    if reliability < LEAST_RELIABILITY:
        return f"with other pairs and questions the directions have a mean reliability of {reliability:.2f}; {LEAST_RELIABILITY} is needed"
    values = np.linalg.eigvalsh(gram / np.sqrt(squares[:, None] * squares))
    if values[0] < LEAST_CONDITION * values[-1]:
        return f"the directions are too much alike: eigenvalues of their correlations are {max(values[0], 0) / values[-1]:.3f} to 1"
    return None


def _products(rows: Sequence[FloatArray], asked: Sequence[str]) -> FloatArray:
    """Return the mean products of different pairs and different questions, summed over the last axis, [traits, traits].

    Args:
        rows: of each trait [pairs, questions, any].
        asked: of each trait, the set of its questions; products of two traits leave out the same question where they share them.
    """
    whole, by_question = [each.sum((0, 1)) for each in rows], [each.sum(0) for each in rows]
    out = np.empty((len(rows), len(rows)))
    for i, x in enumerate(rows):
        pairs, questions = x.shape[:2]
        same = float((x.sum(1) ** 2).sum() + (by_question[i] ** 2).sum() - (x**2).sum())
        out[i, i] = (whole[i] @ whole[i] - same) / (pairs * (pairs - 1) * questions * (questions - 1))
        for j in range(i):
            shared = asked[i] == asked[j]
            others = rows[j].shape[0] * (questions - 1 if shared else rows[j].shape[1])
            left_out = float((by_question[i] * by_question[j]).sum()) if shared else 0.0
            out[i, j] = out[j, i] = (whole[i] @ whole[j] - left_out) / (pairs * questions * others)
    return out

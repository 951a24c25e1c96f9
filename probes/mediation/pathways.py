"""Where a change goes, as shares that sum to one, between a floor and a ceiling.

All adapted layers up to ℓ are set together. With U_1 ⊂ U_2 ⊂ U_3 the nested spaces of `geometry.nested` and M(P) the mediated share of
`shares`, the effect TE of the change is the sum of what goes through

    own           M(U_1)                  the own persona direction
    others        M(U_2) − M(U_1)         other personas, given own
    roles         M(U_3) − M(U_2)         roles, given both
    outside       M(I) − M(U_3)           the rest of the state
    above         1 − M(I)                adapters above the last layer that is set

Each may be negative, and none is clipped. Where no adapter lies above, M(I) = 1 by construction.

One direction cannot carry all of a change, and a random one carries some of it. So M(own) is read on a scale of its own,

    κ = (M(own) − floor)/(ceiling − floor)

floor: the mean of M over chance directions. ceiling: the larger M of two directions of the change itself, fitted on other text: its mean
over answers with the trait, and that less its mean over plain ones. κ = 1 says that the persona direction does as much as this one. It is
no upper bound: other directions may carry more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS
from wellworn.probes.statistics.intervals import Estimate, FloatArray, PooledRuns, ratio_interval, satterthwaite, standard_error

OWN, OTHERS, ROLES, REST, ABOVE = "own", "others", "roles", "outside", "above"
# κ is defined where the ceiling is so far above the floor, as a share of TE, and its set up to 1 is narrower than so much.
LEAST_ROOM, WIDEST = 0.10, 0.6


@dataclass(frozen=True, eq=False)
class Floor:
    """The part of an effect that chance spaces mediate.

    Attributes:
        mean: of the mediated share over draws.
        low: 5 % quantile of the draws.
        high: 95 % quantile.
        draws: B.
        p: (1 + #{draws ≥ observed})/(1 + B), on the questions of the floor.
        through_draws: variance of the mean through draws.
        deviations: of each question from that mean, averaged over draws, as shares of TE, [questions] or [runs, questions]; 0 on average.
    """

    mean: float
    low: float
    high: float
    draws: int
    p: float
    through_draws: float
    deviations: FloatArray

    @property
    def through_questions(self) -> float:
        """Variance of the mean through questions: another set of them would give another mean of the same draws."""
        return standard_error(self.deviations) ** 2

    @property
    def variance(self) -> float:
        """Of the mean, through draws and through questions."""
        return self.through_draws + self.through_questions

    @property
    def df(self) -> float:
        """Degrees of freedom of that variance."""
        questions = self.deviations.shape[-1]
        return satterthwaite(self.variance, [(self.through_draws, self.draws - 1.0), (self.through_questions, questions - 1.0)])


@dataclass(frozen=True)
class Scaled:
    """κ, the share between floor and ceiling.

    Attributes:
        value: with its interval; None where `why` says why it is not defined.
        why: the reason.
        room: ceiling − floor as a share of TE.
        enough: whether there is room enough for κ.
    """

    value: Estimate | None
    why: str | None
    room: float
    enough: bool = True


def stack(effect: FloatArray, moved: Mapping[str, FloatArray], own_between_runs: PooledRuns | None = None) -> dict[str, Estimate]:
    """Return the share of the effect that goes each way, in order; the shares sum to one.

    Args:
        effect: TE of each question, [questions] or [runs, questions].
        moved: nested spaces in rising order and at last the whole state: name of what each adds → M·TE of each question, the same shape.
            The last one's name is `outside`.
        own_between_runs: how much the share of the own direction varies between runs, in place of these runs' own variance.

    Raises:
        ValueError: no whole state, or an effect of zero.
    """
    if not moved or list(moved)[-1] != REST:
        raise ValueError(f"the last of the nested spaces must be the whole state, named {REST!r}; got {list(moved)}")
    shares, before = {}, np.zeros_like(effect)
    for name, each in [*moved.items(), (ABOVE, effect)]:
        shares[name] = ratio_interval(each - before, effect, between_runs=own_between_runs if name == OWN else None)
        before = each
    return shares


def floor(effect: FloatArray, draws: FloatArray, observed: FloatArray) -> Floor:
    """Return what chance mediates, and how often it mediates as much as was observed.

    Args:
        effect: TE of each question, [questions] or [runs, questions]; its mean may have either sign.
        draws: M·TE of each chance space, [draws, questions] or [draws, runs, questions]. For what a space adds to another: the increment.
        observed: the same of the real space.

    Raises:
        ValueError: fewer than two draws.
    """
    if len(draws) < 2:
        raise ValueError(f"a floor needs at least two draws, got {len(draws)}")
    total = float(effect.mean())
    shares = draws.reshape(len(draws), -1).mean(1) / total
    mean = float(shares.mean())
    through_draws = float(shares.var(ddof=1)) / len(shares)
    deviations = (draws.mean(0) - mean * effect) / total
    p = (1 + int((shares >= float(observed.mean()) / total).sum())) / (1 + len(shares))
    low, high = np.quantile(shares, [0.05, 0.95])
    return Floor(mean, float(low), float(high), len(shares), p, through_draws, deviations)


def width_to_one(share: Estimate) -> float:
    """Return how wide the interval of κ, or of a share, is up to 1: beyond, all is carried that was asked for, and more decides nothing."""
    return min(share.high, 1.0) - min(share.low, 1.0)


def above_floor(
    effect: FloatArray, moved: FloatArray, ceiling: FloatArray, chance: Floor, questions: Sequence[int] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return N and D of κ for each question, less each question's term in the error of the floor; arguments as of `scaled_share`."""
    shift = chance.mean * effect
    if questions is not None:
        shift[..., list(questions)] += effect.shape[-1] / len(questions) * chance.deviations * float(effect.mean())
    return moved - shift, ceiling - shift


def scaled_share(
    effect: FloatArray,
    moved: FloatArray,
    ceiling: FloatArray,
    chance: Floor,
    questions: Sequence[int] | None = None,
    between_runs: PooledRuns | None = None,
) -> Scaled:
    """Return κ of a part: where its mediated share lies between a floor and a ceiling.

    The interval is Fieller's for the ratio of N = (moved − floor) to D = (ceiling − floor) over questions, or over runs × questions.
    The floor c is subtracted from both, so that N − κD has the error of (moved − κ·ceiling) − (1 − κ)·c. Its second part is through draws
    and through the floor's q questions. Where these are among the Q questions of the effect, both parts vary with the same questions and
    runs. Then each question's N and D has its term in the error of c taken off, (Q/q)·(deviation)·TE, which leaves their means as they
    are and gives their variance over questions (and runs) the covariance of both parts.

    Args:
        effect: TE of each question, [questions] or [runs, questions].
        moved: M·TE of the part, the same shape.
        ceiling: M·TE of the best part of as many dimensions.
        chance: the floor of as many dimensions.
        questions: places of the floor's questions among those of the effect; None where the floor is of other questions.
        between_runs: how much κ varies between runs, in place of these runs' own variance; unused for one run.
    """
    total = float(effect.mean())
    variance, df = (chance.variance, chance.df) if questions is None else (chance.through_draws, chance.draws - 1.0)
    above, room = above_floor(effect, moved, ceiling, chance, questions)
    share = float(room.mean()) / total
    error = float(np.hypot(standard_error(room) / total, variance**0.5))
    if share < LEAST_ROOM or share <= MIN_STANDARD_ERRORS * error:
        needed = f"at least {LEAST_ROOM:.2f} and more than {MIN_STANDARD_ERRORS:.0f} standard errors ({error:.2f}) are needed"
        return Scaled(None, f"the ceiling is {share:.2f} of the effect above the floor; {needed}", share, enough=False)
    kappa = ratio_interval(above, room, offset_variance=variance * total**2, offset_df=df, between_runs=between_runs)
    if not width_to_one(kappa) < WIDEST:
        return Scaled(None, f"κ is too uncertain: {kappa}; an interval narrower than {WIDEST:g} is needed", share)
    return Scaled(kappa, None, share)

"""Whether a share lies further above chance than the shares of other fine-tunes do.

A null that draws spaces from a covariance has its size only where a shift without a link has that covariance, and nobody knows
whether it has. Other fine-tunes show how far above chance shifts come without a link: each fine-tune's share is expressed in standard
deviations above its own null, and the fine-tune in question is compared with the others. What the null gets wrong for all of them alike
then cancels. A null follows the shift that it is compared with, so the fine-tunes need not have the same covariance either: shifts that
are flatter have a lower share, but a lower chance too. This has a limit. Where personas and a shift vary in a few dimensions that states
do not favour, chance does not follow, and the other fine-tunes must vary in the same dimensions
(`wellworn simulate spectra`, case G with flat others).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from wellworn.probes.geometry.nulls import Rank, rank_among
from wellworn.probes.statistics.intervals import FloatArray

# The fewest that were simulated.
FEWEST_OTHERS = 5


@dataclass(frozen=True)
class Excess:
    """How far a share lies above chance, relative to other fine-tunes.

    Attributes:
        z: the share above its null's mean in standard deviations of the null.
        others: z of each other fine-tune.
        p: one-sided, that one more fine-tune like the others has a z as large; see `prediction_p`.
        rank: of z among the others. Its p needs no normal distribution, and is never below 1/(1 + others).
    """

    z: float
    others: tuple[float, ...]
    p: float
    rank: Rank


def excess_among_others(share: float, chance_B: FloatArray, other_shares: Sequence[float], other_chances_FB: FloatArray) -> Excess:
    """Compare a share's excess over chance with that of other fine-tunes.

    All shares are inside the same space, and all null shares inside the same null spaces. p is valid where the other fine-tunes have no
    link to the space, and where without a link this fine-tune's z would be like theirs. Others that are themselves linked make p larger,
    so a study takes controls, not other traits.

    Args:
        share: F of the fine-tune.
        chance_B: [draws], its share inside each null space.
        other_shares: F of each other fine-tune; at least five.
        other_chances_FB: [others, draws], their shares inside each null space.

    Raises:
        ValueError: fewer than five others, numbers that are not finite, draws that do not differ, or others that are all the same.
    """
    others = z_scores(np.asarray(other_shares, dtype=np.float64), other_chances_FB)
    own = float(z_scores(np.float64(share), chance_B))
    return Excess(own, tuple(others.tolist()), float(prediction_p(np.float64(own), others)), rank_among(own, others))


def z_scores(shares: FloatArray | np.float64, chances_B: FloatArray) -> FloatArray:
    """Return z = (F − mean)/sd of each share, with the mean and standard deviation of its own null's draws.

    Args:
        shares: [...].
        chances_B: [..., draws].

    Raises:
        ValueError: numbers that are not finite, or draws that do not differ.
    """
    spread = chances_B.std(-1, ddof=1) if chances_B.shape[-1] > 1 else np.zeros(())
    if not (np.isfinite(shares).all() and np.isfinite(chances_B).all()):
        raise ValueError("an excess over chance needs finite shares")
    if not np.all(spread > 0):
        raise ValueError(f"no excess over chance: {chances_B.shape[-1]} null shares do not differ")
    return np.asarray((shares - chances_B.mean(-1)) / spread)


def prediction_p(observed: FloatArray | np.float64, others_F: FloatArray) -> FloatArray:
    """Return the one-sided p of an observed number as one more draw from the distribution of the others.

    t = (x − x̄)/(s√(1 + 1/n)) has Student's distribution with n − 1 degrees of freedom where all are normal. Unlike a rank, this can be
    as small as the evidence is, and needs few others.

    Args:
        observed: [...].
        others_F: [..., others], at least five.

    Returns:
        [...].

    Raises:
        ValueError: fewer than five others, numbers that are not finite, or others that are all the same.
    """
    n = others_F.shape[-1]
    if n < FEWEST_OTHERS:
        raise ValueError(f"a prediction needs {FEWEST_OTHERS} other fine-tunes at least, got {n}")
    if not (np.isfinite(observed).all() and np.isfinite(others_F).all()):
        raise ValueError("a prediction needs finite numbers")
    spread = others_F.std(-1, ddof=1)
    if not np.all(spread > 0):
        raise ValueError(f"no prediction: {n} other fine-tunes are all the same")
    t = (observed - others_F.mean(-1)) / (spread * np.sqrt(1 + 1 / n))
    return np.asarray(special.stdtr(n - 1, -t))

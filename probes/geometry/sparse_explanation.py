"""How much of a vector a wider dictionary of directions explains: few of them, chosen on one part of the data and judged on another.

The dictionary may be a larger library of roles, or the decoder directions of a sparse autoencoder. Any vector is a combination of enough
directions, so the number of atoms is fixed and small, and the share is compared with random dictionaries.
"""

import numpy as np

from wellworn.probes.geometry.novelty import Finding, chance_bound, outside
from wellworn.probes.limits import FEWEST_TAIL_DRAWS
from wellworn.probes.statistics.intervals import FloatArray

ATOMS = 8
FOLDS = 5
FEWEST_UNITS = 3
DRAWS = 199
EXPLAINED, UNEXPLAINED = 0.5, 0.2


def sparse_fit(vector_D: FloatArray, dictionary_KD: FloatArray, atoms: int = ATOMS) -> FloatArray:
    """Return the combination of a few directions that is nearest to a vector, chosen one at a time.

    Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993).

    Args:
        vector_D: [d_model].
        dictionary_KD: [K, d_model], of unit norm.
        atoms: how many are chosen; fewer where fewer span the vector.

    Returns:
        [d_model].
    """
    residual = np.array(vector_D, dtype=np.float64)
    smallest = 1e-9 * float(np.linalg.norm(residual))
    chosen_AD = np.empty((0, len(residual)))  # orthonormal
    for _ in range(min(atoms, len(dictionary_KD))):
        along = dictionary_KD @ residual
        best = int(np.abs(along).argmax())
        if abs(along[best]) <= smallest:
            break
        added = outside(dictionary_KD[best], chosen_AD.T)
        added /= np.linalg.norm(added)
        residual -= (added @ residual) * added
        chosen_AD = np.vstack([chosen_AD, added])
    return np.asarray(vector_D - residual)


def explained_share(units_XD: FloatArray, dictionary_KD: FloatArray, atoms: int = ATOMS) -> float | None:
    """Return the share of a mean's squared norm that a sparse fit to other units predicts: cross-validated, and free of their noise.

    With p the fit to the mean of the other folds, ‖μ‖² − ‖μ − p‖² = 2p·μ − ‖p‖². It is linear in μ, so that the mean of the
    fold itself may stand for μ; ‖μ‖² is Σ_{i≠j} xᵢ·xⱼ / n(n−1). It is below 0 where the fit does harm.

    Args:
        units_XD: [units, d_model], one a prompt of a run, or one mean a seed; the share is that of new units.
        dictionary_KD: [K, d_model], of unit norm.
        atoms: of each fit.

    Returns:
        None where nothing is left of the mean once its noise is taken out.

    Raises:
        ValueError: fewer than three units.
    """
    n = len(units_XD)
    if n < FEWEST_UNITS:
        raise ValueError(f"a cross-validated share needs at least {FEWEST_UNITS} units, got {n}")
    total = units_XD.sum(0)
    squared = float(total @ total - (units_XD**2).sum()) / (n * (n - 1))
    if squared <= 0:
        return None
    folds = np.arange(n) % FOLDS
    gained = 0.0
    for fold in range(min(FOLDS, n)):
        held = folds == fold
        fit = sparse_fit(units_XD[~held].mean(0), dictionary_KD, atoms)
        gained += float(2 * units_XD[held].sum(0) @ fit - held.sum() * (fit @ fit))
    return gained / n / squared


def explanation(
    units_XD: FloatArray, dictionary_KD: FloatArray, basis_DK: FloatArray, centred_ND: FloatArray, seed: int, draws: int = DRAWS
) -> Finding:
    """Return whether a wider dictionary explains the remainder, beyond dictionaries of as many directions Σ^½g.

    All directions, the drawn ones too, are taken outside the persona space and to unit norm. The share beyond chance is (share − mean)/(1 −
    mean), with the mean over draws. The dictionary *explains* the remainder where that is at least .5 and the share is above the 95 %
    quantile of draws, and *does not* where that is at most .2 or the share is not above the quantile, unless chance itself explains half:
    such a dictionary is too wide to show what it does not hold.

    Args:
        units_XD: [units, d_model], shifts relative to neutral; see `explained_share`.
        dictionary_KD: [K, d_model].
        basis_DK: [d_model, k], the persona space.
        centred_ND: [N, d_model], the centred activations, with covariance Σ.
        seed: of the draws.
        draws: how many, at least 19.

    Raises:
        ValueError: fewer than three units or 19 draws; a dictionary that lies in the space.
    """
    if draws < FEWEST_TAIL_DRAWS:
        raise ValueError(f"needs at least {FEWEST_TAIL_DRAWS} draws, got {draws}")
    remainders = outside(units_XD, basis_DK)
    share = explained_share(remainders, _unit_outside(dictionary_KD, basis_DK))
    if share is None:
        return Finding(None, "explanation is not known: nothing is left of the remainder once its noise is taken out")
    rng = np.random.default_rng(seed)
    chance = np.empty(draws)
    for draw in range(draws):
        drawn_KD = rng.standard_normal((len(dictionary_KD), len(centred_ND))) @ centred_ND
        chance[draw] = explained_share(remainders, _unit_outside(drawn_KD, basis_DK))
    mean, high = float(chance.mean()), chance_bound(chance)
    text = f"{ATOMS} of {len(dictionary_KD)} wider directions explain {share:.2f} of it, chance {mean:.2f}, up to {high:.2f}"
    beyond = (share - mean) / (1 - mean)
    if share > high and beyond >= EXPLAINED:
        return Finding(True, text, share, chance=high, draws=draws)
    if mean >= EXPLAINED:
        return Finding(None, f"{text}: too wide a dictionary to say that they do not", share, chance=high, draws=draws)
    if share <= high or beyond <= UNEXPLAINED:
        return Finding(False, text, share, chance=high, draws=draws)
    return Finding(None, f"{text}: {beyond:.2f} beyond chance is neither little nor most", share, chance=high, draws=draws)


def _unit_outside(directions_KD: FloatArray, basis_DK: FloatArray) -> FloatArray:
    """Return directions outside a space, at unit norm; those that lie in it are left out."""
    rest = outside(directions_KD, basis_DK)
    norms = np.linalg.norm(rest, axis=1)
    kept = norms > 1e-6 * np.linalg.norm(directions_KD, axis=1)
    if not kept.any():
        raise ValueError(f"none of the {len(directions_KD)} directions of the dictionary lies outside the persona space")
    return np.asarray(rest[kept] / norms[kept, None])

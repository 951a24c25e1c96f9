"""How often each null rejects where there is no link.

Activations have a power-law spectrum Σ = diag(i^−a). Personas are drawn as Σ^½g and make a space by the suite's own
construction. A shift is drawn independently as Σ^½g too, with sampling noise over prompts. A test at α = .05 should
call 5 % of such shifts linked. These nulls are tested on the same cases:

- `n1_known` draws as many pseudo-directions as there are personas, from Σ, and puts them through the construction;
- `n1` draws them from a sample of activations, as the suite must. The sample contains none of the personas (a study's does),
  so it has the full error of an estimated covariance;
- `naive` draws only k directions from that sample, and takes their span. It ignores that the space holds the *largest*
  directions of many. Where all are kept it equals N1, and is left out;
- `n0` draws isotropically. It is invariant under rotations, so any construction gives the span of k directions.

Shared computations save time. For a given covariance the null spaces depend neither on the shift nor on the real space, so one
set of activations, with one set of draws, serves many cases. The null *shares* depend on the shift, and are computed for each.
Cases of one set are not independent, so there are forty sets, and the standard error is over sets. Isotropic spaces serve all
sets. The first columns of a basis with an assistant axis are the smaller spaces, so one construction serves every k. All shares
of one shift have the same denominator, so only numerators are compared.

`pipeline_sizes` builds the spaces as a study does, from states of personas under prompts on questions. These states are also the
activations behind the null. Most of their variance is between texts, as in a real model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from wellworn.data.schema import seed_for
from wellworn.experiments.simulate.rows import Row
from wellworn.probes.geometry.directions import FOUND_RELIABILITY, half_split_reliability
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.geometry.space import FEWEST_ROLES, Members, coefficients
from wellworn.probes.statistics.intervals import FloatArray

ALPHA = 0.05
WIDTH = 576
PROMPTS = 12
# Standard deviation of one prompt's noise, in units of the shift's own spread.
NOISE = 0.3
SETS = 40
# 19 draws are the fewest with a size of exactly .05 for p ≤ .05; more draws cost as much as more sets.
DRAWS = 99


@dataclass(frozen=True)
class Cell:
    """The number of personas of a space, of activations, and its dimensions.

    With 12 or more the personas are roles, and the space contains the axis to a default persona, which is drawn like them.
    """

    personas: int
    activations: int
    dimensions: tuple[int, ...]

    @property
    def members(self) -> Members:
        """The members, for the construction of the space."""
        return Members(self.personas) if self.personas < FEWEST_ROLES else Members(0, self.personas, default=True)


# Traits have 6 pairs × 2 × 8 questions each, roles 5 prompts × 4 questions.
CELLS = (Cell(6, 576, (6,)), Cell(71, 1420, (8, 71)), Cell(275, 5500, (8, 275)))
SPECTRA = (1.0, 1.6)
NULLS = ("n1_known", "n1", "naive", "n0")


def null_sizes(repeats: int = 2000, seed: int = 0, cells: Sequence[Cell] = CELLS, spectra: Sequence[float] = SPECTRA) -> list[Row]:
    """Return how often each null rejects at .05 where there is no link.

    Args:
        repeats: cases per cell, rounded up to a multiple of forty.
        seed: random seed of everything.
        cells: spaces to test.
        spectra: exponents a of the power laws i^−a.

    Returns:
        One row for each spectrum, number of personas and dimension k: `spectrum, personas, activations, k, repeats, alpha`, and
        for each null its rate of rejection and, as `<null>_error`, its standard error over sets; None where it is left out.
    """
    each = -(-repeats // SETS)
    rows = []
    for spectrum, cell in product(spectra, cells):
        isotropic = [_spans(Null(seed_for(seed, "draws"), DRAWS, isotropic=True), np.empty((1, WIDTH)), k) for k in cell.dimensions]
        seeds = [seed_for(seed, "null sizes", cell.personas, f"{spectrum}", at) for at in range(SETS)]
        sets = [_rejections(cell, spectrum, each, isotropic, at) for at in seeds]
        for at, k in enumerate(cell.dimensions):
            rates = {name: [rejections[at][name] for rejections in sets if name in rejections[at]] for name in NULLS}
            rows.append(_row(spectrum, cell, k, each * SETS, rates))
    return rows


def _row(spectrum: float, cell: Cell, k: int, repeats: int, rates: Mapping[str, Sequence[float]]) -> Row:
    """Return a row with the rate of rejection of each null and its standard error over sets; None where a null was left out."""
    row: Row = {"spectrum": spectrum, "personas": cell.personas, "activations": cell.activations, "k": k}
    row |= {"repeats": repeats, "alpha": ALPHA}
    for name, each in rates.items():
        row |= {name: float(np.mean(each)) if each else None, f"{name}_error": float(stats.sem(each)) if each else None}
    return row


# Fractions of the variance of states: between texts; then, of the rest, persona, wording of a prompt, and interactions. Measured on
# the embedded model at block 22 (six traits, six pairs, eight questions).
CONTENT, PERSONA, WORDING, REST = 0.97, 0.17, 0.42, 0.41
PIPELINE_NULLS = ("n1", "n1_total")


def pipeline_sizes(repeats: int = 2000, seed: int = 0, cells: Sequence[Cell] = CELLS, spectra: Sequence[float] = SPECTRA) -> list[Row]:
    """Return how often N1 rejects at .05 where spaces are built from states as in a study, and shifts have no link to them.

    States are S = content of the question + persona + wording of the prompt + rest. The last three have one covariance, and so has a
    shift, as all of them are differences on the same text. Fewer than twelve personas are traits: their contrast pairs give directions,
    and the reliable ones make the space. More are roles: their means, a default, and the axis make it.

    Args:
        repeats: cases per cell, rounded up to a multiple of forty.
        seed: random seed of everything.
        cells: spaces to test.
        spectra: exponents a of the power laws i^−a.

    Returns:
        One row for each spectrum, number of personas and dimension k, with the rate of rejection of `n1` (the covariance within
        questions) and of `n1_total` (that of all states), and their standard errors over sets.
    """
    each = -(-repeats // SETS)
    rows = []
    for spectrum, cell in product(spectra, cells):
        seeds = [seed_for(seed, "pipeline", cell.personas, f"{spectrum}", at) for at in range(SETS)]
        sets = [_pipeline_rejections(cell, spectrum, each, at) for at in seeds]
        for at, k in enumerate(cell.dimensions):
            rates = {name: [rejections[name][at] for rejections in sets] for name in PIPELINE_NULLS}
            rows.append(_row(spectrum, cell, k, each * SETS, rates))
    return rows


def _pipeline_rejections(cell: Cell, spectrum: float, repeats: int, seed: int) -> dict[str, list[float]]:
    """Return each null's rate of rejection in one set, for each dimension; every case has its own shift."""
    rng = np.random.default_rng(seed)
    scale: FloatArray = np.arange(1.0, WIDTH + 1) ** (-spectrum / 2)
    while True:
        vectors_MD, states_XQD, members = _personas(cell, scale, rng)
        if members.count:
            break
    largest = min(max(cell.dimensions), members.count) if cell.personas < FEWEST_ROLES else max(cell.dimensions)
    parts_SPD = _shifts(repeats, scale, rng)
    observed_SK = inside(parts_SPD @ bases(vectors_MD[None], members, largest)[0])
    null = Null(seed_for(seed, "draws"), DRAWS)
    out = {}
    for name, centre in (("n1", states_XQD.mean(0)), ("n1_total", states_XQD.mean((0, 1)))):
        rows_DD = np.asarray(np.linalg.qr((states_XQD - centre).reshape(-1, WIDTH), mode="r"))
        counts_SK = _count_exceeding(observed_SK, parts_SPD, bases(null.vectors(rows_DD, members.count), members, largest))
        rejected_SK = (1 + counts_SK) / (1 + DRAWS) <= ALPHA
        out[name] = [float(rejected_SK[:, min(k, largest) - 1].mean()) for k in cell.dimensions]
    return out


def _personas(cell: Cell, scale: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, Members]:
    """Draw states under prompts, and compute vectors: (vectors [M, d_model], states [prompts, questions, d_model], members)."""
    traits = cell.personas < FEWEST_ROLES
    people, prompts, questions = (cell.personas, 12, 8) if traits else (cell.personas + 1, 5, 4)

    def draw(variance: float, *shape: int) -> FloatArray:
        return np.asarray(np.sqrt(variance) * rng.standard_normal((*shape, WIDTH)) * scale)

    persona = draw(PERSONA, people, 1, 1)
    if traits:
        persona = persona * np.tile([1.0, -1.0], prompts // 2)[:, None, None]  # a prompt, then its opposite
    content = draw(CONTENT / (1 - CONTENT), questions)[:, rng.permutation(WIDTH)]
    states = content + persona + draw(WORDING, people, prompts, 1) + draw(REST, people, prompts, questions)
    if not traits:
        # The default has one prompt.
        states[-1] = states[-1, :1]
        flat = np.concatenate([states[:-1].reshape(-1, questions, WIDTH), states[-1, :1]])
        return states.mean((1, 2)), flat, cell.members
    differences = states[:, ::2] - states[:, 1::2]
    found = [each.mean((0, 1)) for each in differences if half_split_reliability(each, rng) >= FOUND_RELIABILITY]
    return np.array(found), states.reshape(-1, questions, WIDTH), Members(len(found))


def _rejections(cell: Cell, spectrum: float, repeats: int, isotropic: Sequence[FloatArray], seed: int) -> list[dict[str, float]]:
    """Return each null's rate of rejection in one set, for each dimension."""
    rng = np.random.default_rng(seed)
    scale: FloatArray = np.arange(1.0, WIDTH + 1) ** (-spectrum / 2)
    members, largest = cell.members, max(cell.dimensions)
    parts_SPD = _shifts(repeats, scale, rng)
    real_SDK = bases(rng.standard_normal((repeats, members.count, WIDTH)) * scale, members, largest)
    observed_SK = inside(parts_SPD @ real_SDK)
    activations_ND = rng.standard_normal((cell.activations, WIDTH)) * scale
    # Draws depend on these rows only through their covariance, so its square root, with fewer rows, serves as well.
    sample_DD = np.asarray(np.linalg.qr(activations_ND - activations_ND.mean(0), mode="r"))
    null = Null(seed_for(seed, "draws"), DRAWS)
    matched = {
        name: _count_exceeding(observed_SK, parts_SPD, bases(null.vectors(rows_DD, members.count), members, largest))
        for name, rows_DD in (("n1_known", np.diag(scale)), ("n1", sample_DD))
    }
    out = []
    for k, n0_BDK in zip(cell.dimensions, isotropic, strict=True):
        observed_S1 = observed_SK[:, k - 1 : k]
        counts = {name: count_SK[:, k - 1 : k] for name, count_SK in matched.items()}
        counts["n0"] = _count_exceeding(observed_S1, parts_SPD, n0_BDK)
        if k < cell.personas:
            counts["naive"] = _count_exceeding(observed_S1, parts_SPD, _spans(null, sample_DD, k))
        out.append({name: float(np.mean((1 + count) / (1 + DRAWS) <= ALPHA)) for name, count in counts.items()})
    return out


def _shifts(repeats: int, scale: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw shifts: the mean over prompts above the centred differences over √(n(n−1)), [repeats, 1 + prompts, d_model]."""
    noise = NOISE * rng.standard_normal((repeats, PROMPTS, WIDTH))
    return mean_and_noise((rng.standard_normal((repeats, 1, WIDTH)) + noise) * scale)


def mean_and_noise(differences_SND: FloatArray) -> FloatArray:
    """Return the mean over n prompts above the centred differences over √(n(n−1)): [repeats, 1 + n, d_model] in single precision."""
    n = differences_SND.shape[1]
    mean = differences_SND.mean(1, keepdims=True)
    return np.concatenate([mean, (differences_SND - mean) / np.sqrt(n * (n - 1))], axis=1).astype(np.float32)


def bases(vectors_BMD: FloatArray, members: Members, k: int) -> FloatArray:
    """Put many sets of vectors through the construction: bases [B, d_model, k] in single precision."""
    mixed = coefficients(vectors_BMD @ vectors_BMD.swapaxes(1, 2), members, k)
    return (vectors_BMD.swapaxes(1, 2) @ mixed).astype(np.float32)


def _spans(null: Null, rows_ND: FloatArray, k: int) -> FloatArray:
    """Draw k directions and take their span: bases [draws, d_model, k]."""
    return bases(null.vectors(rows_ND, k), Members(k), k)


def inside(along_SPK: FloatArray) -> FloatArray:
    """Return the share's numerator ‖Uᵀm‖² − tr(UᵀΣ̂U)/n of each shift for k = 1 … K: [repeats, …, K] from [repeats, parts, …, K]."""
    squared = along_SPK**2
    return np.cumsum(squared[:, 0] - squared[:, 1:].sum(1), axis=-1)


def _count_exceeding(observed_SK: FloatArray, parts_SPD: FloatArray, bases_BDK: FloatArray) -> FloatArray:
    """Count the null spaces that hold at least as much of each shift: [repeats, K] for each k, or [repeats, 1] for the last."""
    counts = np.zeros(observed_SK.shape)
    for basis in bases_BDK:
        counts += inside(np.tensordot(parts_SPD, basis, 1))[:, -observed_SK.shape[1] :] >= observed_SK
    return counts

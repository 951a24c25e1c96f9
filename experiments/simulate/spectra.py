"""How often each null of the share inside a persona space rejects at .05, and with what power, where covariances differ.

States on a question are content + persona + wording of the prompt + rest. In seven cases persona, wording (with rest) and the shift of a
fine-tune have different spectra, in one common basis. A shift is a part planted in the span of the true personas, and a part drawn
independently of it with the spectrum *outside*.

Planted F*: The outside part o and the planted part u have norm 1, and the shift is √(1−w)·o + √w·u. Let chance be the mean share of o
inside the true span. As o and u are independent and u has no preferred sign, the shift's share inside the true span is, on average,
(1−w)·chance + w = chance + w·(1−chance). So w is the planted share beyond chance, F*. The share inside the estimated space is lower.

Nulls, each at p ≤ .05:

- `n1` draws directions with the covariance of single states, centred within questions;
- `n1_averaged` draws them with the covariance of states averaged over questions, one a persona and prompt;
- `n2` makes spaces of random subsets of 24 instructions that are not personas. They have as many pairs × questions as personas have, and
  pass the same gate; what an instruction evokes has the spectrum of wordings;
- `n4` ranks the share among those of 20 other fine-tunes inside this space;
- `all` rejects where `n1_averaged`, `n2` and `n4` all do;
- `excess` is `geometry.excess`: z against `n1_averaged`, compared with the z of 20 other fine-tunes by Student's prediction;
  `excess_few` compares with five of them, and `excess_rank` ranks z among the twenty;
- `whitened` compares the share in a metric where states vary less unequally, on the scale arcsin √F, with that of 20 other fine-tunes;
- `pair` rejects where `n1_averaged` and `excess` both do.

All but `n1`, `n1_averaged` and `n2` assume that other fine-tunes are like an unlinked shift. Rows say what these others are: `alike` have
the spectrum outside and nothing planted, as assumed; `flat` have nothing planted and the spectrum i^−1, as controls may have; `linked` have
the spectrum outside and F* = .2 planted, as other traits may have.

Shifts of a set share its space and null spaces, and the other fine-tunes of a shift are drawn from a pool of sixty. Standard errors are
over sets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wellworn.data.schema import seed_for
from wellworn.experiments.simulate.nulls import (
    ALPHA,
    CONTENT,
    DRAWS,
    NOISE,
    PERSONA,
    REST,
    WIDTH,
    WORDING,
    bases,
    inside,
    mean_and_noise,
)
from wellworn.experiments.simulate.rows import Row
from wellworn.probes.geometry.directions import FOUND_RELIABILITY, half_split_reliability
from wellworn.probes.geometry.excess import FEWEST_OTHERS, prediction_p, z_scores
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.geometry.space import Members
from wellworn.probes.statistics.intervals import FloatArray

TRAITS, PAIRS, QUESTIONS, PROMPTS = 6, 12, 8, 24
# As many as the suite has. Subsets of so few overlap, and `n2` rejects .12 of unlinked shifts in case A; with 600 instructions .06.
INSTRUCTIONS = 24
PLANTED = (0.0, 0.2, 0.4)
SETS = 80
OTHERS = 20
# Shifts of a set, from which the others of each are drawn.
POOL = 60
# Of what other fine-tunes have planted where they are linked.
LINKED = 0.2
# The part of all variance of averaged states below which directions count alike in the whitened metric. It was chosen on these very cases,
# so that G has power: a smaller one has more power in the others.
RIDGE = 0.05
OTHERS_ARE = ("alike", "flat", "linked")
RECOMMENDED = "excess"
LARGEST_SIZE, LEAST_POWER, POWER_CASES = 0.07, 0.75, ("A", "E", "G")


def power_law(exponent: float) -> FloatArray:
    """Return eigenvalues i^−a with sum 1, [d_model]."""
    values = np.arange(1.0, WIDTH + 1) ** -exponent
    return np.asarray(values / values.sum())


def flat(dimensions: int) -> FloatArray:
    """Return eigenvalues that are equal in the first dimensions and zero beyond, with sum 1, [d_model]."""
    return np.asarray((np.arange(WIDTH) < dimensions) / dimensions)


@dataclass(frozen=True, eq=False)
class Case:
    """Eigenvalues [d_model] of each part's covariance, each with sum 1, in one basis.

    Attributes:
        persona: of personas.
        wording: of wordings, of the rest, and of what an instruction evokes that is not a persona.
        outside: of shifts, apart from what is planted.
        common: the part of personas' variance along one direction that all of them share.
    """

    persona: FloatArray
    wording: FloatArray
    outside: FloatArray
    common: float = 0.0


CASES = {
    "A": Case(power_law(1.3), power_law(1.3), power_law(1.3)),
    "B": Case(power_law(1.8), power_law(1.0), power_law(1.8)),
    "C": Case(power_law(1.8), power_law(1.0), power_law(1.0)),
    "D": Case(power_law(1.0), power_law(1.6), power_law(1.6)),
    "E": Case(power_law(1.3), power_law(1.3), power_law(1.3), common=0.5),
    "F": Case(power_law(1.6), power_law(1.3), power_law(1.6)),
    "G": Case(flat(30), power_law(1.3), flat(30)),
}


def simulate_spectra(repeats: int = 2000, seed: int = 0, cases: Sequence[str] = tuple(CASES)) -> list[Row]:
    """Return how often each null rejects at .05, without a link and with one.

    Args:
        repeats: shifts per case, rounded up to a multiple of the number of sets.
        seed: random seed of everything.
        cases: of `CASES`.

    Returns:
        One row for each case, planted F* and kind of other fine-tunes: `case, planted, others, repeats`, and for each null its rate of
        rejection and, as `<null>_error`, its standard error over sets. Nulls that use no other fine-tunes repeat their rates.
    """
    each = -(-repeats // SETS)
    rows: list[Row] = []
    for name in cases:
        sets = [_rejections(CASES[name], each, seed_for(seed, "spectra", name, at)) for at in range(SETS)]
        for planted, others in product(PLANTED, OTHERS_ARE):
            row: Row = {"case": name, "planted": planted, "others": others, "repeats": each * SETS}
            for null in sets[0][planted, others]:
                rates = [rates_of_set[planted, others][null] for rates_of_set in sets]
                row |= {null: float(np.mean(rates)), f"{null}_error": float(stats.sem(rates))}
            rows.append(row)
    return rows


def missed_targets(row: Row) -> list[str]:
    """Return in words the targets that the recommended null misses; power has one where the other fine-tunes are as assumed."""
    rate = row[RECOMMENDED]
    if row["planted"] == 0:
        return [f"{RECOMMENDED}: size {rate:.3f}, at most {LARGEST_SIZE}"] if rate > LARGEST_SIZE else []
    has_target = row["planted"] == PLANTED[-1] and row["others"] == "alike" and row["case"] in POWER_CASES
    return [f"{RECOMMENDED}: power {rate:.3f}, at least {LEAST_POWER}"] if has_target and rate < LEAST_POWER else []


def draw_personas(case: Case, rng: np.random.Generator) -> FloatArray:
    """Draw what each trait evokes, with a mean squared norm of 1: [traits, d_model]."""
    own, common = rng.standard_normal((TRAITS, WIDTH)), rng.standard_normal(WIDTH)
    return np.asarray((np.sqrt(1 - case.common) * own + np.sqrt(case.common) * common) * np.sqrt(case.persona))


def draw_states(evoked_PD: FloatArray, case: Case, rng: np.random.Generator) -> FloatArray:
    """Draw states under contrast pairs, a prompt and then its opposite: [P, 2 × pairs, questions, d_model].

    Content has .97 of the variance and the spectrum i^−1.3. The rest of it is 1.

    Args:
        evoked_PD: [P, d_model], what each persona or instruction evokes, with a mean squared norm of 1; its opposite evokes the contrary.
        case: spectra.
        rng: draws everything.
    """
    people, prompts = len(evoked_PD), 2 * PAIRS
    signs = np.tile([1.0, -1.0], PAIRS)[:, None, None]

    def draw(variance: float, eigenvalues: FloatArray, *shape: int) -> FloatArray:
        return np.asarray(rng.standard_normal((*shape, WIDTH)) * np.sqrt(variance * eigenvalues))

    states = draw(REST, case.wording, people, prompts, QUESTIONS)
    states += draw(WORDING, case.wording, people, prompts, 1)
    states += draw(CONTENT / (1 - CONTENT), power_law(1.3), QUESTIONS)
    states += np.sqrt(PERSONA) * evoked_PD[:, None, None] * signs
    return states


def reliable_directions(states_PXQD: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the directions that half splits find again, [R, d_model]."""
    differences = states_PXQD[:, ::2] - states_PXQD[:, 1::2]
    kept = [each.mean((0, 1)) for each in differences if half_split_reliability(each, rng) >= FOUND_RELIABILITY]
    return np.array(kept).reshape(-1, WIDTH)


@dataclass(frozen=True, eq=False)
class Shifts:
    """Shifts of fine-tunes: the outside part and the planted part, both of norm 1 [S, d_model], and noise [S, prompts, d_model]."""

    outside_SD: FloatArray
    planted_SD: FloatArray
    noise_SND: FloatArray

    def parts(self, planted: float) -> FloatArray:
        """Return `nulls.mean_and_noise` of the shifts with F* planted: [S, 1 + prompts, d_model]."""
        shifts_SD = np.sqrt(1 - planted) * self.outside_SD + np.sqrt(planted) * self.planted_SD
        return mean_and_noise(shifts_SD[:, None] + self.noise_SND)


def draw_shifts(count: int, outside: FloatArray, personas_TD: FloatArray, rng: np.random.Generator) -> Shifts:
    """Draw shifts whose planted part has any direction in the span of the personas, all alike; noise has the spectrum outside."""
    basis = np.linalg.qr(personas_TD.T)[0]
    scale = np.sqrt(outside)

    def unit(vectors: FloatArray) -> FloatArray:
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    outside_SD = unit(rng.standard_normal((count, WIDTH)) * scale)
    planted_SD = unit(rng.standard_normal((count, len(personas_TD)))) @ basis.T
    return Shifts(outside_SD, planted_SD, NOISE * rng.standard_normal((count, PROMPTS, WIDTH)) * scale)


def whitening(rows_ND: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Return x ↦ (C/tr C + λ)^−½ x, up to a factor, with C the covariance of the rows and λ = .05."""
    _, values, axes_ND = np.linalg.svd(rows_ND / np.linalg.norm(rows_ND), full_matrices=False)
    damping = 1 - np.sqrt(RIDGE / (values**2 + RIDGE))

    def whiten(vectors: FloatArray) -> FloatArray:
        return np.asarray(vectors - (vectors @ axes_ND.T * damping) @ axes_ND)

    return whiten


@dataclass(frozen=True, eq=False)
class _Spaces:
    """A persona space [d_model, k], null spaces [draws, d_model, k] of each kind, and the whitened metric with the space in it."""

    real_DK: FloatArray
    nulls: Mapping[str, FloatArray]
    whiten: Callable[[FloatArray], FloatArray]
    whitened_DK: FloatArray


def _make_spaces(case: Case, personas_TD: FloatArray, seed: int, rng: np.random.Generator) -> _Spaces:
    """Build a space from states under prompts, and the null spaces that belong to it."""
    vectors_RD = instructions_ID = np.empty((0, WIDTH))
    while not len(vectors_RD):
        states = draw_states(personas_TD, case, rng)
        vectors_RD = reliable_directions(states, rng)
    k = len(vectors_RD)
    while len(instructions_ID) <= k:
        evoked = rng.standard_normal((INSTRUCTIONS, WIDTH)) * np.sqrt(case.wording)
        instructions_ID = reliable_directions(draw_states(evoked, case, rng), rng)
    centred_XQD = (states - states.mean((0, 1))).reshape(-1, QUESTIONS, WIDTH)
    averaged_XD = centred_XQD.mean(1)
    null, members = Null(seed, DRAWS), Members(k)
    vectors = {
        # Draws depend on rows through their covariance alone, so its square root serves as well.
        "n1": null.vectors(np.asarray(np.linalg.qr(centred_XQD.reshape(-1, WIDTH), mode="r")), k),
        "n1_averaged": null.vectors(averaged_XD, k),
        "n2": instructions_ID[null.subsets(len(instructions_ID), k)],
    }
    [real] = bases(vectors_RD[None], members, k)
    whiten = whitening(averaged_XD)
    whitened = np.linalg.qr(whiten(real.T.astype(np.float64)).T)[0]
    return _Spaces(real, {name: bases(each, members, k) for name, each in vectors.items()}, whiten, whitened)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Shares of shifts: inside the space [S], inside its null spaces [S, draws], their z [S], and arcsin √F when whitened [S]."""

    shares_S: FloatArray
    chances: Mapping[str, FloatArray]
    z_S: FloatArray
    whitened_S: FloatArray


def _read(parts_SPD: FloatArray, spaces: _Spaces) -> _Reading:
    shares_S = shares_inside(parts_SPD, spaces.real_DK[None])[:, 0]
    chances = {name: shares_inside(parts_SPD, each) for name, each in spaces.nulls.items()}
    whitened = shares_inside(spaces.whiten(parts_SPD), spaces.whitened_DK[None])[:, 0]
    return _Reading(shares_S, chances, z_scores(shares_S, chances["n1_averaged"]), np.arcsin(np.sqrt(whitened.clip(0, 1))))


def shares_inside(parts_SPD: FloatArray, bases_BDK: FloatArray) -> FloatArray:
    """Return the debiased share of each shift inside each space, [S, B]."""
    spaces, width, k = bases_BDK.shape
    along = parts_SPD.reshape(-1, width) @ bases_BDK.swapaxes(0, 1).reshape(width, -1)
    within = inside(along.reshape(*parts_SPD.shape[:2], spaces, k))[..., -1]
    squares = (parts_SPD**2).sum(-1)
    return np.asarray(within / (squares[:, :1] - squares[:, 1:].sum(1, keepdims=True)), dtype=np.float64)


def _rejections(case: Case, repeats: int, seed: int) -> dict[tuple[float, str], dict[str, float]]:
    """Return each null's rate of rejection in one set, for each planted F* and kind of other fine-tunes."""
    rng = np.random.default_rng(seed)
    personas_TD = draw_personas(case, rng)
    spaces = _make_spaces(case, personas_TD, seed_for(seed, "draws"), rng)
    count = max(repeats, POOL)
    shifts = draw_shifts(count, case.outside, personas_TD, rng)
    readings = {planted: _read(shifts.parts(planted), spaces) for planted in {*PLANTED, 0.0, LINKED}}
    flat_shifts = draw_shifts(count, power_law(1.0), personas_TD, rng)
    pools = {"alike": readings[0.0], "flat": _read(flat_shifts.parts(0), spaces), "linked": readings[LINKED]}
    # For each shift, twenty of the pool without itself.
    others_SF = np.array([rng.permutation(np.delete(np.arange(count), at))[:OTHERS] for at in range(repeats)])
    out = {}
    for planted, name in product(PLANTED, OTHERS_ARE):
        p = _p_values(readings[planted], pools[name], others_SF)
        out[planted, name] = {null: float(rejects.mean()) for null, rejects in _decide(p).items()}
    return out


def _p_values(reading: _Reading, pool: _Reading, others_SF: NDArray[np.int64]) -> dict[str, FloatArray]:
    """Return the p of each null for the first shifts, [S] with S rows of others."""
    some = slice(len(others_SF))
    shares_S, z_S = reading.shares_S[some], reading.z_S[some]
    z_SF = pool.z_S[others_SF]
    out = {name: _rank_p(shares_S, each[some]) for name, each in reading.chances.items()}
    return out | {
        "n4": _rank_p(shares_S, pool.shares_S[others_SF]),
        "excess": prediction_p(z_S, z_SF),
        "excess_few": prediction_p(z_S, z_SF[:, :FEWEST_OTHERS]),
        "excess_rank": _rank_p(z_S, z_SF),
        "whitened": prediction_p(reading.whitened_S[some], pool.whitened_S[others_SF]),
    }


def _rank_p(observed_S: FloatArray, draws_SB: FloatArray) -> FloatArray:
    return np.asarray((1 + (draws_SB >= observed_S[:, None]).sum(1)) / (1 + draws_SB.shape[1]))


def _decide(p: Mapping[str, FloatArray]) -> dict[str, NDArray[np.bool_]]:
    """Return where each null rejects, and each joint rule."""
    rejects = {name: each <= ALPHA for name, each in p.items()}
    joint = {
        "all": rejects["n1_averaged"] & rejects["n2"] & rejects["n4"],
        "pair": rejects["n1_averaged"] & rejects["excess"],
    }
    return rejects | joint

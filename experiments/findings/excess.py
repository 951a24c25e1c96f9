"""Whether a share lies further above chance than the shares of controls do: the null whose size does not hang on a covariance."""

from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.data.catalog import control_names
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.novelty import own_removed_basis
from wellworn.experiments.findings.null_ranks import other_fine_tunes, own_removed
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.probes.geometry.excess import FEWEST_OTHERS, prediction_p, z_scores
from wellworn.probes.geometry.nulls import Null, NullSpaces
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import Members
from wellworn.probes.statistics.intervals import FloatArray

DRAWS = 999


class ExcessRow(Record):
    """How far a share lies above chance, in standard deviations of chance, and how far those of controls do in the same space.

    Attributes:
        z: of the run; of several the mean.
        controls: kind of control → its z; of several runs the mean over controls of the same seeds. Runs of one kind are one case.
        p: one-sided, that one more control has a z as large.
    """

    z: float
    controls: Mapping[str, float]
    p: float


def excess_of(results: Results, runs: Sequence[RunResult]) -> ExcessRow | None:
    """Return how far the share of a run, or of runs that differ in their seed alone, lies above chance among controls.

    None where it has none, where roles make the space, or with fewer than five kinds of control.

    Args:
        results: the study's results.
        runs: their shares inside the space without their own direction.
    """
    found = [_z_scores(results, run) for run in runs]
    there = [each for each in found if each]
    if len(there) < len(runs):
        return None
    kinds = [kind for kind in there[0][1] if all(kind in controls for _, controls in there)]
    if len(kinds) < FEWEST_OTHERS:
        return None
    z = float(np.mean([own for own, _ in there]))
    controls = {kind: float(np.mean([each[kind] for _, each in there])) for kind in kinds}
    return ExcessRow(z=z, controls=controls, p=float(prediction_p(np.float64(z), np.array(list(controls.values())))))


def _z_scores(results: Results, run: RunResult) -> tuple[float, dict[str, float]] | None:
    """Return z of a run and of each kind of control."""
    reading, basis = own_removed(run), own_removed_basis(run)
    if reading is None or reading.share is None or basis is None or run.averaged is None or run.entry.arm != "sft":
        return None
    spaces = Null(seed_for(0, "excess"), draws=DRAWS).spaces(run.averaged, Members(reading.directions), basis.shape[1])
    # One run a kind, of the same seed: the mean of several would vary less than the run that is compared with it.
    alike = [other for other in other_fine_tunes(results, run) if other.entry.arm == "sft" and other.entry.trait in control_names()]
    same = {str(other.entry.trait): other for other in alike if other.entry.seed == run.entry.seed}
    controls = {kind: _z_score(other.arrays["shifts"].astype(np.float64), basis, spaces) for kind, other in same.items()}
    own = _z_score(run.arrays["shifts"].astype(np.float64), basis, spaces)
    return None if own is None else (own, {kind: z for kind, z in controls.items() if z is not None})


def _z_score(differences_nD: FloatArray, basis: FloatArray, spaces: NullSpaces) -> float | None:
    share = share_inside(differences_nD, basis)
    return None if share.why else float(z_scores(np.float64(share.estimate.value), spaces.shares(differences_nD)))

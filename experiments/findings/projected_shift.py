"""Whether a fine-tune's shift along its trait's direction predicts how much of the trait it shows.

Chen et al., "Persona Vectors" (arXiv:2507.21509), report correlations of .76 to .97 over fine-tunes. There the state before the answer is
projected on the direction, and a judge grades answers; here the trait score stands for the grades.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.score_agreement import FEWEST_RANKED
from wellworn.experiments.stages.measurement import ShiftReading
from wellworn.probes.statistics.correlations import centre_within, compare_dependent, compare_over_families
from wellworn.probes.statistics.intervals import FloatArray

# The state before the answer, and the mean over plain answers.
TEXTS = {"prompt_last": "the last token of the prompt", "neutral": "plain answers"}

# Fisher's z of larger correlations is infinite to the last digit.
PERFECT = 1 - 1e-9


class Prediction(Record):
    """How well projected shifts predict trait scores over fine-tunes: Pearson's r, with intervals over families.

    Attributes:
        own: of the shift along the trait's own direction.
        others: of the mean of the shifts along the other directions of the library.
        difference: the first less the second.
        p: of Steiger's test that the two are equal. It takes fine-tunes of one trait for independent, and so describes. Null where a
            correlation is perfect.
    """

    own: Interval
    others: Interval
    difference: Interval
    p: float | None


class ProjectedShift(Record):
    """Whether the shift along the own direction predicts the trait score, on one text.

    Attributes:
        text: where the shift is read: `prompt_last` or `neutral`.
        units: number of fine-tunes.
        families: number of traits; all fine-tunes on one are a family.
        pooled: over all fine-tunes.
        within: over fine-tunes of one trait, after its mean was taken from projections and scores; null where no trait has two.
    """

    text: str
    units: int
    families: int
    pooled: Prediction
    within: Prediction | None


def projected_shifts(runs: Sequence[RunResult]) -> Sequence[ProjectedShift]:
    """Return how well projected shifts predict trait scores on each text; empty with fine-tunes on fewer than six found traits.

    A unit is a fine-tune on a trait of the library, relative to its headline's reference. Its shift along a direction is the cosine of the
    two times the shift's norm, in norms of the base's states.
    """
    found = []
    for text in TEXTS:
        units = [(str(run.entry.trait), unit) for run in runs if run.entry.arm == "sft" and (unit := _unit(run, text))]
        families = [trait for trait, _ in units]
        if len(set(families)) < FEWEST_RANKED:
            continue
        values = np.array([unit for _, unit in units]).T
        repeated = len(set(families)) < len(families)
        within = _predict(np.array([centre_within(each, families) for each in values]), families) if repeated else None
        pooled = _predict(values, families)
        if pooled:
            found.append(ProjectedShift(text=text, units=len(units), families=len(set(families)), pooled=pooled, within=within))
    return found


def _unit(run: RunResult, text: str) -> tuple[float, float, float] | None:
    """Return a run's shift along its own direction, the mean of those along the others, and its trait score; None without them."""
    facts = run.facts
    reading = facts and facts.references.get(facts.reference)
    if not facts or not reading or not reading.effect or text not in reading.texts:
        return None
    along, own = _projections(reading.texts[text], facts.found), str(run.entry.trait)
    others = [each for trait, each in along.items() if trait != own]
    if own not in along or not others:
        return None
    return along[own], float(np.mean(others)), reading.effect.value


def _projections(shift: ShiftReading, found: Sequence[str]) -> Mapping[str, float]:
    return {trait: cosine * shift.relative_norm for trait, cosine in shift.coordinates.items() if trait in found}


def _predict(values: FloatArray, families: Sequence[str]) -> Prediction | None:
    """Return the correlations of [own, others, score]; None where one of them does not vary."""
    if (np.ptp(values, axis=1) == 0).any():
        return None
    own, others, scores = values
    compared = compare_over_families(own, others, scores, families, np.random.default_rng(seed_for(0, "projected shift")))
    r = compared.first.value, compared.second.value, float(np.corrcoef(own, others)[0, 1])
    p = compare_dependent(*r, len(families)).p if max(map(abs, r)) < PERFECT else None
    return Prediction(own=compared.first, others=compared.second, difference=compared.difference, p=p)

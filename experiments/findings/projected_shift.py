"""Whether a fine-tune's shift along its trait's direction predicts how much of the trait it shows.

Chen et al., "Persona Vectors" (arXiv:2507.21509), report correlations of .76 to .97 over fine-tunes. There the state before the answer is
projected on the direction, and a judge grades answers; here the trait score stands for the grades.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.score_agreement import FEWEST_RANKED
from wellworn.probes.statistics.correlations import centre_within, compare_dependent, compare_over_families

# The state before the answer, and the mean over plain answers.
TEXTS = {"prompt_last": "the last token of the prompt", "neutral": "plain answers"}

# Steiger's test has no value where the three variables lie in a plane.
FLAT = 1e-6


class Prediction(Record):
    """How well projected shifts predict trait scores over fine-tunes: Pearson's r, with intervals over families.

    Attributes:
        units: number of fine-tunes.
        families: number of traits; all fine-tunes on one are a family.
        own: of the shift along the trait's own direction.
        others: of how far it moves along the other directions of the library, whichever way: the root mean square of its shifts along them.
        difference: the first less the second.
        p: of Steiger's test that the two are equal, with the degrees of freedom that traits' means leave. It takes fine-tunes of one trait
            for independent, and so describes. Null where the three lie in a plane.
    """

    units: int
    families: int
    own: Interval
    others: Interval
    difference: Interval
    p: float | None


class ProjectedShift(Record):
    """Whether the shift along the own direction predicts the trait score, on one text.

    Attributes:
        text: where the shift is read: `prompt_last` or `neutral`.
        pooled: over all fine-tunes.
        within: over fine-tunes of one trait, after its mean was taken from projections and scores; null with fewer than six traits that
            have two.
    """

    text: str
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
        several = {trait for trait, count in Counter(trait for trait, _ in units).items() if count > 1}
        pooled, within = _predict(units), _predict([each for each in units if each[0] in several], within=True)
        if pooled:
            found.append(ProjectedShift(text=text, pooled=pooled, within=within))
    return found


def _unit(run: RunResult, text: str) -> tuple[float, float, float] | None:
    """Return a run's shift along its own direction, how far it moves along the others, and its trait score; None without them."""
    facts = run.facts
    reading = facts and facts.references.get(facts.reference)
    if not facts or not reading or not reading.effect or text not in reading.texts:
        return None
    shift, own = reading.texts[text], str(run.entry.trait)
    along = {trait: cosine * shift.relative_norm for trait, cosine in shift.coordinates.items() if trait in facts.found}
    others = [each for trait, each in along.items() if trait != own]
    if own not in along or not others:
        return None
    return along[own], float(np.sqrt(np.mean(np.square(others)))), reading.effect.value


def _predict(units: Sequence[tuple[str, tuple[float, float, float]]], within: bool = False) -> Prediction | None:
    """Return the correlations of own shift, other shifts and score; None with too few families, or where one of them does not vary."""
    families = [trait for trait, _ in units]
    count = len(set(families))
    if count < FEWEST_RANKED:
        return None
    values = np.array([unit for _, unit in units]).T
    if within:
        values = np.array([centre_within(each, families) for each in values])
    if (np.ptp(values, axis=1) == 0).any():
        return None
    own, others, scores = values
    compared = compare_over_families(own, others, scores, families, np.random.default_rng(seed_for(0, "projected shift")))
    correlations = np.asarray(np.corrcoef(values))
    # Each family's mean that was taken away leaves one unit fewer.
    free = len(units) - count + 1 if within else len(units)
    p = None
    if np.linalg.det(correlations) > FLAT:
        p = compare_dependent(compared.first.value, compared.second.value, float(correlations[0, 1]), free).p
    return Prediction(units=len(units), families=count, own=compared.first, others=compared.second, difference=compared.difference, p=p)

"""The joint results of runs that differ only in seed; the run is the unit."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.data.catalog import NEUTRAL
from wellworn.experiments.engine.record import Interval, Record, Settings
from wellworn.experiments.findings.contexts import Contexts, in_contexts
from wellworn.experiments.findings.excess import ExcessRow, excess_of
from wellworn.experiments.findings.mediated import OTHERS, MediatedShares, OtherOutcomes, mediated_shares, other_outcomes
from wellworn.experiments.findings.nearest_personas import OwnRanks, Persona, nearest_to_group
from wellworn.experiments.findings.novelty import joint_scores, judge_novelty, own_removed_basis
from wellworn.experiments.findings.null_ranks import own_removed
from wellworn.experiments.findings.own_answers import OwnSaid, own_said
from wellworn.experiments.findings.pathways import BetweenRuns, Pathways, pathways_of
from wellworn.experiments.findings.results import Results, RunResult, run_name
from wellworn.experiments.findings.run_rows import capability_of, is_claimable, mediation_evidence, statement_of
from wellworn.experiments.findings.score_agreement import RunScores, score_runs
from wellworn.experiments.findings.statements import Statement
from wellworn.experiments.findings.verdict import Evidence, Verdict, verdict
from wellworn.experiments.findings.wording import Wording, wording_of
from wellworn.experiments.findings.written import Written, written_shares
from wellworn.experiments.stages.capability import Capability
from wellworn.experiments.stages.measurement import Effect, EffectShares
from wellworn.experiments.stages.mediation_shares import shares_of_effect
from wellworn.probes.geometry.novelty import Novelty
from wellworn.probes.geometry.nulls import beyond
from wellworn.probes.geometry.shift import Share, cross_run_share, share_over_runs
from wellworn.probes.statistics.corrections import benjamini_hochberg
from wellworn.probes.statistics.intervals import Estimate, FloatArray, crossed_interval, standard_error


class _GroupShares(Record):
    arm: str
    trait: str | None
    settings: Settings
    runs: int
    runs_past_the_gates: int
    effect: Interval | None
    share: Interval | None
    share_effect: Interval | None
    share_across_runs: float | None
    nearest: Sequence[Persona]
    nearest_high: float | None
    own_ranks: OwnRanks | None


class _GroupRest(Record):
    excess: ExcessRow | None
    novelty: Novelty | None
    scores: RunScores | None
    contexts: Contexts | None
    capability: Capability | None
    statement: Statement | None
    pathways: Mapping[str, Pathways] | None
    own_p_adjusted: float | None
    wording: Wording | None
    written: Mapping[str, Written] | None
    own_answers: OwnSaid | None
    verdict: str
    why: str | None
    provisional: bool
    verdicts: Sequence[str | None]


# Pydantic orders fields from the last base class to the first.
class GroupRow(_GroupRest, OtherOutcomes, MediatedShares, _GroupShares):
    """Runs that differ only in seed. Intervals are over runs × questions: the run is the unit.

    Attributes:
        arm: what was done to the model.
        trait: the trait's name.
        settings: what the grid and the arm set.
        runs: the number of runs.
        runs_past_the_gates: the number of runs with a share.
        effect: change of the trait score, in nats per token.
        share: F over runs.
        share_effect: F* over runs.
        share_across_runs: the share of the shift that runs have in common, without each run's own noise.
        nearest: the personas nearest on average.
        nearest_high: the 95 % quantile of the nearest of as many random directions, averaged over runs.
        own_ranks: the rank of the trained trait among all personas, in each run.
        surface: shares on training-like answers.
        response: shares where only the response's tokens were patched.
        generated: shares of the patched models' own answers.
        excess: how far the share lies above chance among controls; null with fewer than five kinds of them.
        novelty: whether the change outside the space is new.
        scores: trait scores of the runs.
        contexts: scores and shift in each context of the study; null where it names none.
        capability: capabilities relative to the base.
        statement: what may be said of how much of the change is existing; null where that was not measured.
        pathways: reference → where the change goes, the headline's first; null where that was not measured.
        own_p_adjusted: p of the own direction against chance directions, corrected for the study's groups (Benjamini and Hochberg).
        wording: whether the own direction is more than the trait's words; null where that was not measured.
        written: reference → what adapters write along persona directions; null where that was not measured.
        own_answers: what models say with the state along the own direction set to the other's; null where nothing was said.
        verdict: the name of the older analysis' verdict, kept for one version; what may be said is `statement`.
        why: the numbers behind it, in words.
        provisional: whether there are fewer than three runs on training data of their own.
        verdicts: the verdict of each run.
    """

    @property
    def name(self) -> str:
        """The name of the group."""
        return run_name(self.arm, self.trait, self.settings)


def group_runs(results: Results) -> list[list[int]]:
    """Return the places of runs that differ in their seed alone, and have a joint result: two or more in a group."""
    groups = []
    numbered = list(enumerate(results.runs))
    for _, members in itertools.groupby(numbered, key=lambda each: each[1].entry.group):
        places = [i for i, run in members if run.facts is not None]
        # The same adapter given twice is not a second run.
        seeds = {results.runs[i].entry.seed for i in places}
        # Neutral runs, each compared with the next, have mean shifts that sum to zero, so they have no joint result.
        if len(places) == len(seeds) >= 2 and results.runs[places[0]].entry.trait != NEUTRAL:
            groups.append(places)
    return groups


def group_rows(
    results: Results, adjusted: Sequence[float | None], verdicts: Sequence[str | None], between_runs: BetweenRuns
) -> list[GroupRow]:
    """Return the joint results of runs of several seeds.

    Args:
        results: the study's results.
        adjusted: for each run, p against N1, corrected for the study's runs.
        verdicts: for each run, the verdict's name.
        between_runs: how much findings vary between the runs of a group, pooled over the study's groups; used where they vary alike.
    """
    groups = group_runs(results)
    pathways = [pathways_of([results.runs[i] for i in places], between_runs.alike) for places in groups]
    chance = [next(iter(each.values())).headline.chance_own if each else None for each in pathways]
    own_p = benjamini_hochberg([each.p if each else None for each in chance])
    rows = []
    for places, ways, corrected in zip(groups, pathways, own_p, strict=True):
        # All runs must reject: the largest of their corrected p.
        p = max(1.0 if (each := adjusted[i]) is None else each for i in places)
        rows.append(_group_row(results, [results.runs[i] for i in places], p, [verdicts[i] for i in places], ways, corrected))
    return rows


def _group_row(
    results: Results,
    runs: Sequence[RunResult],
    p: float,
    verdicts: Sequence[str | None],
    pathways: Mapping[str, Pathways] | None,
    own_p: float | None,
) -> GroupRow:
    entry, readings = runs[0].entry, [own_removed(run) for run in runs]
    effect_RQ, (share, star) = _stack_effects(runs), _joint_share(runs)
    effect = None if effect_RQ is None else crossed_interval(effect_RQ)
    analysis, rest = _headline(runs), judge_novelty(results, runs)
    judged = _judge(runs, effect_RQ, effect, share, star, p, analysis, rest)
    nearest, nearest_high, own_ranks = nearest_to_group(runs)
    wording = wording_of(runs)
    return GroupRow(
        arm=entry.arm,
        trait=entry.trait,
        settings=entry.settings,
        runs=len(runs),
        runs_past_the_gates=sum(bool(each and each.share) for each in readings),
        effect=effect,
        share=share.estimate if share and share.why is None else None,
        share_effect=star,
        share_across_runs=_common_share(runs),
        nearest=nearest,
        nearest_high=nearest_high,
        own_ranks=own_ranks,
        **vars(mediated_shares(analysis)),
        **vars(other_outcomes({name: _joint(runs, name) for name in OTHERS}, runs)),
        novelty=rest,
        excess=excess_of(results, runs),
        scores=score_runs(runs),
        contexts=in_contexts(runs),
        capability=capability_of(results, runs),
        statement=statement_of(results, runs, pathways, wording, own_p, None if effect_RQ is None else Effect.over_runs(effect_RQ)),
        pathways=pathways,
        own_p_adjusted=own_p,
        wording=wording,
        written=written_shares(runs),
        own_answers=own_said(runs),
        verdict=judged.name,
        why=judged.why,
        provisional=not is_claimable(results, runs[0]),
        verdicts=verdicts,
    )


def _judge(
    runs: Sequence[RunResult],
    effect_RQ: FloatArray | None,
    effect: Estimate | None,
    share: Share | None,
    star: Estimate | None,
    p: float,
    analysis: EffectShares | None,
    rest: Novelty | None,
) -> Verdict:
    layer = runs[0].facts.layer if runs[0].facts else 0
    return verdict(
        Evidence(
            effect=effect,
            standard_error=0.0 if effect_RQ is None else standard_error(effect_RQ),
            share_why=share.why if share else "the runs have no share",
            p=p,
            beyond_chance=star,
            carried=mediation_evidence(analysis, layer, rest) if analysis else None,
        )
    )


def _stack_effects(runs: Sequence[RunResult]) -> FloatArray | None:
    """Return the change of the trait score, [runs, questions]; None where fewer than two runs have one."""
    effects = [run.arrays["effects"] for run in runs if "effects" in run.arrays]
    return np.stack(effects) if len(effects) >= 2 else None


def _headline(runs: Sequence[RunResult]) -> EffectShares | None:
    """Return the joint analysis that the verdict uses; None where the runs have no such analysis in common."""
    headline = runs[0].facts.headline_analysis if runs[0].facts else None
    return _joint(runs, headline.text) if headline else None


def _joint(runs: Sequence[RunResult], text: str) -> EffectShares | None:
    """Return the joint mediation analysis of runs with the same questions, with intervals over runs × questions."""
    analyses = [run.facts.analysis(text) if run.facts else None for run in runs]
    found = joint_scores(runs, analyses)
    if found is None:
        return None
    return shares_of_effect(*found, analyses[0] is not None and analyses[0].graded is not None)


def _joint_share(runs: Sequence[RunResult]) -> tuple[Share | None, Estimate | None]:
    """Return the joint share of runs and its part beyond chance, F*, with intervals over runs × prompts; None where there is none."""
    basis, readings = own_removed_basis(runs[0]), [own_removed(run) for run in runs]
    chance = [reading.null_mean for reading in readings if reading and reading.null_mean is not None]
    if basis is None or len(chance) < len(runs):
        return None, None
    share = share_over_runs(np.stack([run.arrays["shifts"] for run in runs]).astype(np.float64), basis)
    return share, None if share.why else beyond(share.estimate, float(np.mean(chance)))


def _common_share(runs: Sequence[RunResult]) -> float | None:
    """Return the share of the shift that runs have in common, in the space without their own direction."""
    basis = own_removed_basis(runs[0])
    if basis is None:
        return None
    means = np.stack([run.arrays["shifts"].mean(0) for run in runs]).astype(np.float64)
    return cross_run_share(means, basis)

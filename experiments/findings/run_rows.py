"""The results of one run: its numbers and its verdict."""

from collections.abc import Mapping, Sequence
from typing import Literal

from wellworn.data.catalog import NEUTRAL, control_names
from wellworn.experiments.engine.record import Interval, Record, Settings
from wellworn.experiments.findings.adapted import Adapted
from wellworn.experiments.findings.contexts import Contexts, in_contexts
from wellworn.experiments.findings.excess import ExcessRow, excess_of
from wellworn.experiments.findings.mediated import OTHERS, MediatedShares, OtherOutcomes, mediated_shares, other_outcomes
from wellworn.experiments.findings.nearest_personas import OwnRank, Persona, nearest_to_run
from wellworn.experiments.findings.novelty import judge_novelty
from wellworn.experiments.findings.null_ranks import (
    AmongFineTunes,
    AmongInstructions,
    AmongRoles,
    among_fine_tunes,
    among_instructions,
    among_roles,
    own_removed,
)
from wellworn.experiments.findings.own_answers import OwnSaid, own_said
from wellworn.experiments.findings.pathways import Pathways, pathways_of
from wellworn.experiments.findings.results import Results, RunResult, run_name
from wellworn.experiments.findings.score_agreement import RunScores, score_runs
from wellworn.experiments.findings.stand_ins import StandIns, stand_in_shares
from wellworn.experiments.findings.statements import Statement, state, state_unchanged
from wellworn.experiments.findings.verdict import P_LEVEL, Carried, Evidence, Verdict, verdict
from wellworn.experiments.findings.wording import Wording, wording_of
from wellworn.experiments.findings.written import Written, written_shares
from wellworn.experiments.stages.capability import Capability, capability
from wellworn.experiments.stages.measurement import Effect, EffectShares, Measurement, ShareOfTruth
from wellworn.probes.geometry.novelty import Novelty
from wellworn.probes.geometry.weights import Summary as Writes
from wellworn.probes.mediation.shares import WHOLE
from wellworn.probes.statistics.intervals import Estimate

RUNS_FOR_A_CLAIM = 3


class _RunShares(Record):
    arm: str
    trait: str | None
    adapter: str | None
    seed: int
    origin: Literal["existing", "new"] | None = None
    settings: Settings
    layer: int | None = None
    reference: str | None = None
    effect: Interval | None = None
    effect_base: Interval | None = None
    share: Interval | None = None
    share_full: Interval | None = None
    share_base: Interval | None = None
    share_null_mean: float | None = None
    share_null_high: float | None = None
    share_p: float | None = None
    share_p_adjusted: float | None = None
    layers_above_chance: Sequence[int] | None = None
    share_effect: Interval | None = None
    share_effect_full: Interval | None = None
    true_shares: Mapping[str, ShareOfTruth] | None = None
    coordinates: Mapping[str, float] | None = None
    disattenuated: Mapping[str, float | None] | None = None
    nearest: Sequence[Persona] | None = None
    nearest_high: float | None = None
    own_rank: OwnRank | None = None
    relative_norm: float | None = None
    verdict: str | None = None


class _RunRest(Record):
    provisional: bool
    why: str | None
    missing: Mapping[str, str]
    novelty: Novelty | None
    among_fine_tunes: AmongFineTunes | None
    excess: ExcessRow | None
    among_roles: AmongRoles | None
    scores: RunScores | None
    contexts: Contexts | None
    capability: Capability | None
    statement: Statement | None
    pathways: Mapping[str, Pathways] | None
    stand_ins: StandIns | None
    wording: Wording | None
    written: Mapping[str, Written] | None
    own_answers: OwnSaid | None
    weights: Writes | None
    weights_why: str | None
    among_instructions: AmongInstructions | None
    adapted: Adapted | None = None


class RunRow(_RunRest, OtherOutcomes, MediatedShares, _RunShares):
    """One run. Intervals are over prompts or questions, so they do not generalise to other runs.

    Attributes:
        arm: what was done to the model.
        trait: the trait's name; null for an adapter without a suspected trait.
        adapter: name and digest of a third-party adapter.
        seed: random seed of the run.
        origin: what was known of the change beforehand: along an `existing` persona or a `new` one; null where nothing was.
        settings: the keys that the grid and the arm set.
        layer: the layer where shares are read.
        reference: the headline's reference: `neutral`, or `base` where there is no neutral fine-tune.
        effect: change of the trait score against the reference, in nats per token.
        effect_base: the same against the base.
        share: F, the share of the shift inside the persona space without the run's own direction.
        share_full: F in the space with that direction.
        share_base: F against the base.
        share_null_mean: chance, the mean of null N1.
        share_null_high: its 95 % quantile.
        share_p: p against N1.
        share_p_adjusted: the same corrected for the study's runs (Benjamini and Hochberg).
        layers_above_chance: layers with p of .05 or less, corrected for all layers by max-T.
        share_effect: F* = (F − chance) / (1 − chance), the share beyond chance.
        share_effect_full: F* in the space with the run's own direction.
        true_shares: F without the noise of directions: in the run's `own` true direction, and in the `full` span of all that were found.
        coordinates: the signed cosine of the shift with every direction of the library.
        disattenuated: the same, corrected for the noise of both.
        nearest: the personas nearest the shift.
        nearest_high: the 95 % quantile of the nearest of as many random directions.
        own_rank: the rank of the trained trait among all personas.
        relative_norm: norm of the shift over the mean norm of the base's states.
        verdict: the name of the older analysis' verdict, kept for one version; what may be said is `statement`.
        surface: shares on training-like answers.
        response: shares where only the response's tokens were patched.
        generated: shares of the patched models' own answers.
        provisional: whether there are fewer than three runs like it on training data of their own.
        why: the numbers behind the verdict, in words.
        missing: field → why it was not measured.
        novelty: whether the change outside the space is new.
        among_fine_tunes: null N4.
        excess: how far the share lies above chance among controls; null with fewer than five kinds of them.
        among_roles: null N5.
        scores: trait scores of the run.
        contexts: scores and shift in each context of the study; null where it names none.
        capability: capabilities relative to the base.
        statement: what may be said of how much of the change is existing; null where that was not measured.
        pathways: reference → where the change goes, the headline's first; null where that was not measured.
        stand_ins: other directions in place of the own one; null where that was not measured.
        wording: whether the own direction is more than the trait's words; null where that was not measured.
        written: reference → what adapters write along persona directions; null where that was not measured.
        own_answers: what models say with the state along the own direction set to the other's; null where nothing was said.
        weights: the share of its weight update that writes into the persona space.
        weights_why: why that share is not known, in words.
        among_instructions: null N2.
        adapted: what its adapter changes; null without one.
    """

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.arm, self.trait, self.settings, adapter=self.adapter, seed=self.seed)

    @property
    def is_reference(self) -> bool:
        """Whether it only serves as a reference for other runs."""
        return self.arm == "base" or self.trait == NEUTRAL


def run_row(results: Results, run: RunResult, p: float | None) -> RunRow:
    """Return the results of one run.

    Args:
        results: the study's results.
        run: one of its runs.
        p: its p against N1, corrected for the study's runs.
    """
    entry, missing = run.entry, dict(run.entry.missing)
    rest = judge_novelty(results, [run])
    judged = judge(run, p, rest)
    why, shares = None, _RunShares(**{key: getattr(entry, key) for key in ("arm", "trait", "adapter", "seed", "origin", "settings")})
    if run.facts:
        why, shares = _with_shares(shares, run, run.facts, p, judged, missing)
    instructions, no_instructions = among_instructions(run, missing.get("share"))
    if no_instructions:
        missing["among_instructions"] = no_instructions
    pathways, wording = pathways_of([run]), wording_of([run])
    return RunRow(
        **vars(shares),
        **vars(mediated_shares(run.facts.headline_analysis if run.facts else None)),
        **vars(other_outcomes({name: run.facts.analysis(name) if run.facts else None for name in OTHERS}, [run])),
        provisional=not is_claimable(results, run),
        why=why,
        missing=missing,
        novelty=rest,
        among_fine_tunes=among_fine_tunes(results, run),
        excess=excess_of(results, [run]),
        among_roles=among_roles(results, run),
        scores=score_runs([run]),
        contexts=in_contexts([run]),
        capability=capability_of(results, [run]),
        statement=statement_of(results, [run], pathways, wording, effect=run.facts.headline.effect if run.facts else None),
        pathways=pathways,
        stand_ins=stand_in_shares(run),
        wording=wording,
        written=written_shares([run]),
        own_answers=own_said([run]),
        weights=run.weights.together if run.weights else None,
        weights_why=run.weights.why if run.weights else "the run has no adapter",
        among_instructions=instructions,
        adapted=run.adapted,
    )


def statement_of(
    results: Results,
    runs: Sequence[RunResult],
    pathways: Mapping[str, Pathways] | None,
    wording: Wording | None,
    own_p: float | None = None,
    effect: Effect | None = None,
) -> Statement | None:
    """Return what may be said of a change toward a trait or a control; None where it was not measured where it goes.

    A study with `only_changed` does not measure it of changes that are too small, which is then said.

    Args:
        results: the study's results; a run of them under the trait's system prompt says how large a change is.
        runs: one run, or several that differ in their seed alone.
        pathways: where their change goes.
        wording: whether their own direction is more than the trait's words.
        own_p: p of the own direction against chance, corrected for the study's groups; None for one run, whose own p counts.
        effect: the change of their trait score.
    """
    trait = runs[0].entry.trait
    persona, prompted = trait not in control_names(), _prompted(results, trait)
    if not pathways:
        only_changed = results.index.study.get("only_changed") and results.index.study["pathways"]
        return state_unchanged(effect.estimate, effect.within_noise, persona, prompted) if effect and only_changed else None
    return state(
        pathways,
        persona=persona,
        prompted=prompted,
        reference_change=_reference_change(runs),
        wording=wording,
        own_p=own_p,
    )


def _prompted(results: Results, trait: str | None) -> Estimate | None:
    """Return the change of the trait score under a trait's system prompt, relative to the base; None where it was not measured or found."""
    for run in results.runs:
        if run.entry.arm == "prompted" and run.entry.trait == trait and run.facts:
            effect = run.facts.references["base"].effect
            if effect and effect.yardstick:
                return effect.yardstick
    return None


def _reference_change(runs: Sequence[RunResult]) -> float | None:
    """Return how far the trait score of the runs' references is from the base's; None where the base is the reference."""
    changes = []
    for run in runs:
        headline, base = (run.facts.headline.effect, run.facts.references["base"].effect) if run.facts else (None, None)
        if run.facts is None or run.facts.reference == "base" or headline is None or base is None:
            return None
        changes.append(base.value - headline.value)
    return sum(changes) / len(changes)


def _with_shares(
    shares: _RunShares, run: RunResult, facts: Measurement, p: float | None, judged: Verdict | None, missing: dict[str, str]
) -> tuple[str | None, _RunShares]:
    """Return the numbers behind the verdict in words, and a run's shares; add the reasons for missing ones to `missing`."""
    shift, own, full = facts.plain, facts.plain.own_removed, facts.plain.full
    base = facts.references["base"]
    before = base.texts["neutral"].own_removed
    nearest, own_rank = nearest_to_run(facts)
    effect, effect_base = facts.headline.effect, base.effect
    shares = shares.model_copy(
        update={
            "layer": facts.layer,
            "reference": facts.reference,
            "effect": effect and effect.estimate,
            "effect_base": effect_base and effect_base.estimate,
            "share_base": before and before.share,
            "true_shares": facts.true_shares,
            "coordinates": shift.coordinates,
            "disattenuated": shift.disattenuated,
            "nearest": nearest,
            "nearest_high": facts.personas.high,
            "own_rank": own_rank,
            "relative_norm": shift.relative_norm,
        }
    )
    if run.entry.own and run.entry.own not in facts.found:
        missing["own_direction"] = f"the direction of {run.entry.own} was not found in this model at layer {facts.layer}"
    # A neutral run without a reference keeps its comparison with the base, and has no headline.
    if "share" in missing:
        return missing["share"], shares
    if own is None or full is None or judged is None:
        missing["share"] = facts.no_space or "no persona space at this layer"
        return missing["share"], shares
    shares = shares.model_copy(
        update={
            "share": own.share,
            "share_full": full.share,
            "share_null_mean": own.null_mean,
            "share_null_high": own.null_high,
            "share_p": own.p,
            "share_p_adjusted": p,
            "layers_above_chance": [at for at, each in enumerate(facts.by_layer.p_max_t) if each is not None and each <= P_LEVEL],
            "share_effect": own.effect,
            "share_effect_full": full.effect,
            "verdict": judged.name,
        }
    )
    if own.share is None and own.why:
        missing["share"] = own.why
    if own.dimensions < own.directions and not facts.roles:
        missing["dimensions"] = f"the {own.directions} directions of the space hold {own.dimensions} dimensions"
    analysis = facts.headline_analysis
    if analysis and (lacking := analysis.why or analysis.carried_why):
        missing["mediated_of_carried"] = lacking
    return judged.why, shares


def judge(run: RunResult, p: float | None, rest: Novelty | None) -> Verdict | None:
    """Return a run's verdict; None where there is none."""
    reading = own_removed(run)
    if run.facts is None or reading is None:
        return None
    effect, analysis = run.facts.headline.effect, run.facts.headline_analysis
    return verdict(
        Evidence(
            effect=effect.estimate if effect else None,
            standard_error=effect.standard_error if effect else 0.0,
            share_why=reading.why,
            p=1.0 if p is None else p,
            beyond_chance=reading.effect,
            carried=mediation_evidence(analysis, analysis.layer, rest) if analysis else None,
        )
    )


def mediation_evidence(analysis: EffectShares, layer: int, rest: Novelty | None) -> Carried | None:
    """Return the mediation evidence for the verdict; None where the analysis found no effect."""
    if analysis.why is not None:
        return None
    return Carried(
        layer=layer,
        whole=analysis.shares[WHOLE].mediated,
        share=analysis.mediated_of_carried,
        why=analysis.carried_why,
        reading=analysis.shapley["reading"],
        remainder=rest,
    )


def capability_of(results: Results, runs: Sequence[RunResult]) -> Capability | None:
    """Return the capabilities of a run, or of runs that differ only in seed, relative to the base; None where not measured."""
    items = [run.capability for run in runs if run.capability]
    return capability(items, results.capability) if results.capability and items else None


def is_claimable(results: Results, run: RunResult) -> bool:
    """Return whether runs like this one are enough, and on data of their own: runs of one data set differ by chance alone."""
    # Neutral runs are compared with one another in a circle, so they are not independent.
    alike = [other.entry.seed for other in results.runs if other.entry.group == run.entry.group and other.facts]
    parts = results.index.study.get("data_sets", 1)
    return run.entry.trait != NEUTRAL and len({seed % parts for seed in alike}) >= RUNS_FOR_A_CLAIM

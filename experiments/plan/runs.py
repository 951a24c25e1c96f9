"""The stages of one run: its readings, measurement, and comparisons."""

from collections.abc import Mapping, Sequence

from wellworn.data.catalog import control_names
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair, Trait
from wellworn.experiments.engine.stage import Condition, Stage
from wellworn.experiments.plan.arms import NO_PLAIN
from wellworn.experiments.plan.layout import Layout
from wellworn.experiments.plan.mediations import Analyses, Key
from wellworn.experiments.plan.pathways import plan_own_answers, plan_pathways, plan_stand_ins, plan_wording, plan_written
from wellworn.experiments.plan.planned import PlannedCalibration, PlannedRun
from wellworn.experiments.stages.answers import answer_stage
from wellworn.experiments.stages.averaged_states import averaged_stage
from wellworn.experiments.stages.calibration import Real, calibrate_stage, later_stage
from wellworn.experiments.stages.capability import capability_stage
from wellworn.experiments.stages.instruction_null import instructions_stage
from wellworn.experiments.stages.measure import BASE_ANSWERS, PLAIN_UNDER, measure_stage
from wellworn.experiments.stages.persona_space import dictionary_stage
from wellworn.experiments.stages.scores import Models, Scored, scores_stage, scoring_pairs
from wellworn.experiments.stages.weights import weights_stage
from wellworn.experiments.study_sections import CalibrateConfig
from wellworn.lora.arms import Base, Outside, Sft
from wellworn.probes.geometry.excess import FEWEST_OTHERS

NO_TRAIT = "the run has no trait of its own to score"
NOTHING_TO_MEDIATE = "the run has no trait of its own whose change could be mediated"
NO_MEDIATION = "the study leaves mediation out"
# (who reads, text) → stage, under the names of a measurement.
Readings = Mapping[tuple[str, str], Stage]


def plan_run(layout: Layout) -> PlannedRun:
    """Return all stages of one run that a report shows, and the reasons for missing ones."""
    run, shared, subject, arm = layout.run, layout.shared, layout.subject, layout.arm
    context, condition = shared.context, arm.condition
    answers = answer_stage(context, condition, subject.evaluate)
    missing = {"own_direction": layout.no_own} if layout.no_own else {}
    if isinstance(run.arm, Base):
        return PlannedRun(run=run, questions=subject.evaluate, answers=answers, missing=missing | dict(arm.missing))
    if subject.of is None:
        missing["effect"] = NO_TRAIT
    elif not subject.paired:
        missing["effect"] = NO_PLAIN
    missing |= arm.missing
    mediations, said, why = _mediations(layout)
    missing |= why
    pathways, no_pathways = plan_pathways(layout)
    missing |= {"pathways": no_pathways} if no_pathways else {}
    wording, not_worded = plan_wording(layout)
    missing |= {"wording": not_worded} if not_worded else {}
    written, not_written = plan_written(layout)
    missing |= {"written": not_written} if not_written else {}
    own_answers, own_grades, not_said = plan_own_answers(layout)
    missing |= {"own_answers": not_said} if not_said else {}
    scores, why = _scores(layout)
    instructions = _instructions(layout) if "share" not in missing else None
    readings = _readings(layout, answers)
    weights = None
    if condition.adapter:
        weights = weights_stage(context, condition, subject.plain_turns("evaluate"), layout.own, layout.space_stages)
    return PlannedRun(
        run=run,
        questions=subject.evaluate,
        answers=answers,
        missing=missing | why,
        measure=_measured(layout, readings, mediations),
        screen=_measured(layout, readings, {}) if run.study.only_changed and subject.trait_turns("evaluate") else None,
        instructions=instructions,
        averaged=_averaged(layout) if "share" not in missing else None,
        dictionary=dictionary_stage(shared.space_stages, shared.dictionary, layout.layer) if shared.dictionary else None,
        said=said,
        training=condition.adapter if arm.trained else None,
        weights=weights,
        capability=capability_stage(context, condition) if condition.adapter and run.study.capability else None,
        scores=scores,
        pathways=pathways,
        stand_ins=plan_stand_ins(layout),
        wording=wording,
        written=written,
        own_answers=own_answers,
        own_grades=own_grades,
        trait=subject.name,
        adapter=arm.adapter,
        own=layout.own,
        adapted=condition.adapter,
        notes=arm.notes,
    )


def _measured(layout: Layout, readings: Readings, mediations: Mapping[Key, Stage]) -> Stage:
    title = layout.arm.condition.title
    return measure_stage(title, layout.layer, layout.own, layout.headline, layout.space_stages, readings, mediations)


def _readings(layout: Layout, answers: Stage) -> Readings:
    """Lay out the readings for the measurement: of plain answers (in each context too), answers with the trait, and the run's own."""
    subject, condition = layout.subject, layout.arm.condition
    texts: dict[str, tuple[str, Sequence[Turn] | Stage]] = {"neutral": ("plain answers", subject.plain_turns("evaluate"))}
    if changed := subject.trait_turns("evaluate"):
        texts["trait"] = (f"{subject.name} answers", changed)
    if subject.of is not None or isinstance(layout.run.arm, Outside):
        texts["own"] = (f"answers of {condition.title}", answers)
    # In the order of the hash.
    order: list[str] = [who for who in ("run", "base", "neutral") if who in layout.conditions]
    readings = {(who, text): layout.read(layout.conditions[who], source, title) for who in order for text, (title, source) in texts.items()}
    for name, conditions in layout.contexts.items():
        for who in order:
            readings[who, f"{PLAIN_UNDER}{name}"] = layout.read(conditions[who], subject.plain_turns("evaluate"), "plain answers")
    if "own" in texts:
        unchanged = answer_stage(layout.shared.context, Condition(), subject.evaluate)
        readings["base", BASE_ANSWERS] = layout.read(Condition(), unchanged, "answers of base")
    return readings


def _mediations(layout: Layout) -> tuple[dict[Key, Stage], Stage | None, dict[str, str]]:
    """Lay out the mediation analyses, the patched models' answers if the study asks, and the reasons for missing parts."""
    config = layout.run.study.mediate
    if config is None:
        return {}, None, {"mediation": NO_MEDIATION}
    if layout.unchanged:
        return {}, None, {"mediation": layout.unchanged}
    if layout.subject.of is None or not layout.subject.paired:
        return {}, None, {"mediation": NOTHING_TO_MEDIATE if layout.subject.of is None else NO_PLAIN}
    asked = Analyses(layout=layout, config=config)
    stages = asked.stages()
    if asked.patched_answers is None:
        return stages, None, asked.missing
    key, said, scored = asked.patched_answers
    return stages | {key: scored}, said, asked.missing


def _scores(layout: Layout) -> tuple[Stage | None, dict[str, str]]:
    """Lay out the scores of the run, its reference and the base, if the study asks for them; or why there are none."""
    study, subject, context = layout.run.study, layout.subject, layout.shared.context
    if study.scores is None:
        return None, {}
    if subject.of is None or not subject.paired:
        return None, {"scores": NO_TRAIT if subject.of is None else NO_PLAIN}
    changed, plain = subject.trait_turns("evaluate"), subject.plain_turns("evaluate")
    pairs: Sequence[ContrastPair] = ()
    if subject.of.contrast_pairs:
        pairs = scoring_pairs(subject.of, study.scores.pairs, study.contrast_pairs, "scores.pairs")
    texts = {"trait": (f"{subject.name} answers", changed), "neutral": ("plain answers", plain)}

    def models(conditions: Mapping[str, Condition]) -> Models:
        readings = {(who, text): layout.read(by, turns, title) for who, by in conditions.items() for text, (title, turns) in texts.items()}
        return Models(conditions, readings, {who: answer_stage(context, by, subject.evaluate) for who, by in conditions.items()})

    what = Scored(subject.of, subject.evaluate, changed, plain, pairs, (subject.trait_turns("train"), subject.plain_turns("train")))
    contexts = {name: models(conditions) for name, conditions in layout.contexts.items()}
    return scores_stage(context, what, layout.shared.judge, models(layout.conditions), contexts), {}


def _instructions(layout: Layout) -> Stage | None:
    """Lay out the null N2 of the run's headline share, if the study names instructions."""
    if layout.shared.instructions is None:
        return None
    before, after = layout.plain_readings()
    title, name = layout.arm.condition.title, layout.subject.name
    return instructions_stage(title, layout.layer, name, layout.space_stages, layout.shared.instructions, before, after)


def _averaged(layout: Layout) -> Stage | None:
    """Lay out the states that chance is drawn from among fine-tunes, if the study has as many kinds of control as that needs."""
    arms = [arm for arm in layout.run.study.runs if isinstance(arm, Sft) and arm.trait in control_names()]
    kinds = {arm.trait for arm in arms} - {layout.run.arm.trait}
    if not isinstance(layout.run.arm, Sft) or layout.space_stages.roles or len(kinds) < FEWEST_OTHERS:
        return None
    return averaged_stage(layout.layer, layout.own, layout.space_stages)


def plan_calibration(layouts: Sequence[Layout], config: CalibrateConfig) -> PlannedCalibration:
    """Lay out a calibration, with planted changes modelled on a fine-tune of the study.

    Raises:
        InputError: the study has no such fine-tune, or the model has too few layers.
    """
    layout = _run_to_imitate(layouts, config)
    layer, depth = layout.layer, layout.shared.context.depth
    if layer + config.later >= depth:
        raise InputError(f"calibrate.later: may be 0 to {depth - 1 - layer} above layer {layer} of {depth}, got {config.later}")
    run, neutral, base = (layout.read_plain(who) for who in ("run", "neutral", "base"))
    title, space_stages = layout.arm.condition.title, layout.shared.space_stages
    real = Real(title, layer, (run, neutral, base), layout.subject.plain_turns("evaluate"))
    later = later_stage(real, config, space_stages) if config.later else None
    return PlannedCalibration(title, calibrate_stage(real, config, space_stages), later)


def _run_to_imitate(layouts: Sequence[Layout], config: CalibrateConfig) -> Layout:
    """Return the run that planted changes are modelled on."""
    tuned = [each for each in layouts if isinstance(each.run.arm, Sft) and each.subject.of is not None and each.subject.paired]
    wanted = [each for each in tuned if (isinstance(each.subject.of, Trait) if config.trait is None else each.subject.name == config.trait)]
    if not wanted:
        names = ", ".join(dict.fromkeys(str(each.subject.name) for each in tuned)) or "none"
        asked = "a trait" if config.trait is None else repr(config.trait)
        raise InputError(f"calibrate.trait: planted changes are modelled on an sft run of {asked}, and this study fine-tunes: {names}")
    return wanted[0]

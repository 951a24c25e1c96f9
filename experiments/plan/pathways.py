"""The pathways of a run, and what it writes: references and texts."""

from wellworn.data.schema import Trait
from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.arms import NO_PLAIN
from wellworn.experiments.plan.layout import Layout
from wellworn.experiments.plan.subjects import trait_or_control
from wellworn.experiments.stages.grades import needed_rubric
from wellworn.experiments.stages.own_answers import own_answers_stage, own_grades_stage
from wellworn.experiments.stages.pathways import PathwaysQuestion, pathways_stage
from wellworn.experiments.stages.persona_directions import extraction_examples
from wellworn.experiments.stages.stand_ins import stand_ins_stage
from wellworn.experiments.stages.wording import trait_words, wording_stage
from wellworn.experiments.stages.written import written_stage

LEFT_OUT = "the study leaves pathways out"
NO_TRAIT = "the run has no trait of its own whose change could go anywhere"
NO_OWN = "the run has no direction of its own"
NO_WORDS = "no word is typical of its answers"
PROMPTED = "a system prompt changes what is read; pathways are those of changed weights"


def plan_pathways(layout: Layout) -> tuple[dict[str, Stage], str | None]:
    """Lay out the pathways of a run relative to each reference, or return why there are none.

    Chance spaces and the profile are measured relative to the headline's reference alone.
    """
    config = layout.run.study.pathways
    if config is None:
        return {}, LEFT_OUT
    if why := _why_none(layout):
        return {}, why
    stages = {}
    for name in layout.references:
        if config.references == "headline" and name != layout.headline:
            continue
        stages[name] = pathways_stage(layout.shared.context, pathways_question(layout, name, config.surface), config, layout.space_stages)
    return stages, None


def pathways_question(layout: Layout, name: str, surface: int | None = None) -> PathwaysQuestion:
    """Return the texts and models of a run's pathways relative to the reference of that name."""
    subject = layout.subject
    return PathwaysQuestion(
        run=layout.arm.condition,
        reference=layout.references[name],
        changed=subject.trait_turns("evaluate"),
        plain=subject.plain_turns("evaluate"),
        other_text=subject.trait_turns("train")[:surface],
        other_plain=subject.plain_turns("train")[:surface],
        layer=layout.layer,
        own=layout.own,
        sampled=name == layout.headline,
    )


def plan_stand_ins(layout: Layout) -> Stage | None:
    """Lay out other directions in place of the run's own one, relative to the headline's reference, if the study asks for them."""
    config = layout.run.study.pathways
    if config is None or not config.stand_ins or _why_none(layout) or layout.own is None:
        return None
    question = pathways_question(layout, layout.headline, config.surface)
    return stand_ins_stage(layout.shared.context, question, config, layout.space_stages, layout.shared.instructions)


def plan_wording(layout: Layout) -> tuple[Stage | None, str | None]:
    """Lay out whether a trait's own direction is more than its words, relative to the headline's reference; or return why not.

    Both are None where the study does not ask. A control's own direction is an instruction's, whose words may be all that it is.
    """
    config, subject = layout.run.study.pathways, layout.subject.of
    if config is None or not config.wording or not isinstance(subject, Trait):
        return None, None
    if why := _why_none(layout) or (None if layout.own in layout.space_stages.names else layout.no_own or NO_OWN):
        return None, why
    question = pathways_question(layout, layout.headline)
    examples = extraction_examples(subject, layout.shared.bank)
    # All answers of the trait: runs on parts of its data have the same words.
    whole = trait_or_control(layout.run.arm.trait) if layout.run.arm.trait else None
    of_trait = trait_words(layout.shared.context, whole, examples) if isinstance(whole, Trait) else None
    if of_trait is None:
        return None, NO_WORDS
    return wording_stage(layout.shared.context, question, config, layout.space_stages, of_trait), None


def plan_own_answers(layout: Layout) -> tuple[Stage | None, Stage | None, str | None]:
    """Lay out what models say with the state along the run's own direction set, and a judge's grades of it; or return why nothing is said.

    All are None where the study does not ask.

    Raises:
        InputError: the study has a judge, and the subject no rubric.
    """
    config, subject, judge = layout.run.study.pathways, layout.subject.of, layout.shared.judge
    if config is None or config.answers is None:
        return None, None, None
    if why := _why_none(layout) or (None if layout.own else layout.no_own or NO_OWN):
        return None, None, why
    question = pathways_question(layout, layout.headline)
    said = own_answers_stage(layout.shared.context, question, config.answers, layout.space_stages)
    if judge is None or subject is None:
        return said, None, None
    rubric = needed_rubric(subject, f"pathways.answers: {subject.name}")
    return said, own_grades_stage(layout.shared.context, said, question, judge, rubric), None


def plan_written(layout: Layout) -> tuple[dict[str, Stage], str | None]:
    """Lay out what a run writes along persona directions relative to each reference, or return why that is not measured.

    Chance directions are measured relative to the headline's reference alone.
    """
    config = layout.run.study.written
    if config is None:
        return {}, None
    if why := _why_none(layout):
        return {}, why
    stages = {}
    for name in layout.references:
        stages[name] = written_stage(layout.shared.context, pathways_question(layout, name), config, layout.space_stages)
    return stages, None


def _why_none(layout: Layout) -> str | None:
    """Return why a run has no change of weights toward a trait that could be followed."""
    if layout.subject.of is None or not layout.subject.paired:
        return NO_TRAIT if layout.subject.of is None else NO_PLAIN
    return PROMPTED if layout.arm.condition.adapter is None else layout.unchanged

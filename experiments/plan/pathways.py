"""The pathways of a run: its references and its texts."""

from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.arms import NO_PLAIN
from wellworn.experiments.plan.layout import Layout
from wellworn.experiments.stages.pathways import PathwaysQuestion, pathways_stage

LEFT_OUT = "the study leaves pathways out"
NO_TRAIT = "the run has no trait of its own whose change could go anywhere"
PROMPTED = "a system prompt changes what is read; pathways are those of changed weights"


def plan_pathways(layout: Layout) -> tuple[dict[str, Stage], str | None]:
    """Lay out the pathways of a run relative to each reference, or return why there are none.

    Chance spaces and the profile are measured relative to the headline's reference alone.
    """
    config, subject, condition = layout.run.study.pathways, layout.subject, layout.arm.condition
    if config is None:
        return {}, LEFT_OUT
    if subject.of is None or not subject.paired:
        return {}, NO_TRAIT if subject.of is None else NO_PLAIN
    if condition.adapter is None:
        return {}, PROMPTED
    stages = {}
    for name, reference in layout.references.items():
        if config.references == "headline" and name != layout.headline:
            continue
        question = PathwaysQuestion(
            run=condition,
            reference=reference,
            changed=subject.trait_turns("evaluate"),
            plain=subject.plain_turns("evaluate"),
            other_text=subject.trait_turns("train")[: config.surface],
            layer=layout.layer,
            own=layout.own,
            sampled=name == layout.headline,
        )
        stages[name] = pathways_stage(layout.shared.context, question, config, layout.space_stages)
    return stages, None

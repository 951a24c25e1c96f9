"""Expand a study into the stages of all runs, each once."""

from collections.abc import Sequence

from wellworn.data.catalog import NEUTRAL, instruction_names, load_bank, load_instruction, load_roles, load_trait, role_names
from wellworn.data.errors import InputError
from wellworn.data.mixtures import first_questions
from wellworn.data.schema import Control, Role, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition
from wellworn.experiments.plan.knock_in import plan_knock_in
from wellworn.experiments.plan.layout import Shared, lay_out
from wellworn.experiments.plan.planned import Plan
from wellworn.experiments.plan.runs import plan_calibration, plan_run
from wellworn.experiments.plan.subjects import trait_or_control
from wellworn.experiments.stages.answers import answer_stage
from wellworn.experiments.stages.capability import capability_stage
from wellworn.experiments.stages.generated_directions import generated_stages
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.instruction_null import load_instruction_stages
from wellworn.experiments.stages.persona_directions import role_stages
from wellworn.experiments.stages.persona_space import dimension_stage, lay_out_space
from wellworn.experiments.stages.training import chat_stage
from wellworn.experiments.study import Study, expand_runs
from wellworn.lora.models import check_installed
from wellworn.probes.reading.layers import resolve_layer


def plan(study: Study, context: StudyContext) -> Plan:
    """Expand a study into stages; every error that can be found without computing is raised here.

    Raises:
        InputError: a number format that needs a missing package, an unknown trait or instruction, a layer out of range, a folder that is
            not an adapter, or no run to model planted changes on.
    """
    check_installed(context.dtype)
    knock_in = None
    if study.knock_in:
        knock_in, context = plan_knock_in(context, study.knock_in, study.questions)
    traits = [load_trait(name) for name in study.library]
    _check_names(study, traits)
    bank = load_bank(study.questions)
    layer = resolve_layer(study.layer, context.depth)
    space_stages = lay_out_space(context, traits, _roles(study.roles), bank, layer)
    wider = space_stages.roles or (role_stages(context, named, bank) if (named := _roles(study.dictionary)) else None)
    evaluate = [example for example in first_questions(bank, "evaluate", study.evaluate_questions) if example.split == "evaluate"]
    asked = instruction_names() if study.instructions == "all" else study.instructions
    instructions = load_instruction_stages(context, [load_instruction(name) for name in asked], bank) if asked else None
    judge = Judge.of(context, study.judge) if study.judge else None
    shared = Shared(context=context, space_stages=space_stages, dictionary=wider, instructions=instructions, bank=bank, judge=judge)
    layouts = [lay_out(shared, run) for run in expand_runs(study)]
    runs = [plan_run(layout) for layout in layouts]
    return Plan(
        study=study,
        context=context,
        layer=layer,
        library=[trait.name for trait in traits],
        questions=evaluate,
        chat=chat_stage(context),
        space=space_stages.spaces[0],
        dimension=(space_stages.roles.dimension if space_stages.roles else None) or dimension_stage(space_stages, layer),
        base_answers=answer_stage(context, Condition(), evaluate),
        base_capability=capability_stage(context, Condition()) if any(run.capability for run in runs) else None,
        runs=runs,
        calibration=plan_calibration(layouts, study.calibrate) if study.calibrate else None,
        generated=generated_stages(context, traits, bank, space_stages, layer, judge) if study.generated_directions else None,
        judge=judge,
        layouts=layouts,
        knock_in=knock_in,
    )


def _check_names(study: Study, traits: Sequence[Trait]) -> None:
    """Refuse two subjects of one name, which results could not distinguish."""
    for name in (trait.name for trait in traits):
        if sum(trait.name == name for trait in traits) > 1:
            raise InputError(f"library: two traits are named {name!r}")
    named: dict[str, Trait | Control] = {trait.name: trait for trait in traits}
    for arm in study.runs:
        subject = trait_or_control(arm.trait) if arm.trait else None
        if subject and (subject.name == NEUTRAL or named.setdefault(subject.name, subject) != subject):
            raise InputError(f"{arm.trait}: the study has another {subject.name!r}; give this one a name of its own")


def _roles(asked: Sequence[str]) -> list[Role]:
    """Return the roles that a study names."""
    return load_roles(role_names() if asked == "all" else asked)

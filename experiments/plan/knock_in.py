"""The persona that a study's model is taught before anything else is laid out."""

from wellworn.data.catalog import load_bank, load_trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.plan.planned import PlannedKnockIn
from wellworn.experiments.stages.knock_in import lay_out_knock_in
from wellworn.experiments.study_sections import KnockInConfig


def plan_knock_in(context: StudyContext, config: KnockInConfig, bank: str) -> tuple[PlannedKnockIn, StudyContext]:
    """Lay out what the model is taught, and return it with the context of the taught model.

    Args:
        context: the untaught model.
        config: what it is taught.
        bank: the questions of a persona without plain answers of its own.

    Raises:
        InputError: no such persona, or one that cannot be taught.
    """
    trait = load_trait(config.trait)
    taught, check = lay_out_knock_in(context, config, trait, trait.examples if trait.plain else load_bank(bank))
    return PlannedKnockIn(trait=trait.name, context=context, taught=taught, check=check), context.taught(taught.id)

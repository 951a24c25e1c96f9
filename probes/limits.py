"""Numbers that both the statistics and the check of a study file need; importing them loads nothing else."""

# The layer that is read unless a study names one, as a fraction of the depth.
DEFAULT_FRACTION = 0.75
# The fewest prompts, questions or answers for an interval.
FEWEST_PROMPTS = 3
# The fewest draws of the null N1 in mediation, for its mean and for a p value.
FEWEST_NULL_DRAWS, FEWEST_DRAWS_FOR_P = 5, 199
# The fewest draws for a 95 % quantile.
FEWEST_TAIL_DRAWS = 19
# Draws of the null N1 for shares; mediation takes its own from the first of these.
NULL_DRAWS = 999

"""Numbers that both the statistics and the check of a study file need; importing them loads nothing else."""

# The layer that is read unless a study names one, as a fraction of the depth.
DEFAULT_FRACTION = 0.75
# Prompts, questions or answers, of which an interval needs at least so many.
FEWEST_PROMPTS = 3
# Draws of the null N1 in mediation: at least so many for its mean, and so many for a p value.
FEWEST_NULL_DRAWS, FEWEST_DRAWS_FOR_P = 5, 199
# What 5 % of draws exceed can be said from so many on.
FEWEST_TAIL_DRAWS = 19
# Draws of the null N1 for shares; mediation takes its own from the first of these.
NULL_DRAWS = 999

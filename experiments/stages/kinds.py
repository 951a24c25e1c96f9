"""Every kind of stage with its version. Raise the version when results change; a change of code alone never invalidates results."""

from wellworn.experiments.engine.stage import Kind

CHAT = Kind("chat", 1)
# Adapters.
TRAIN = Kind("train", 2)
CONFINED = Kind("confined", 1)
PREVENTATIVE = Kind("preventative", 1)
ADAPTER = Kind("adapter", 1)
ADAPTER_SUM = Kind("adapter_sum", 1)
CHECKPOINT = Kind("checkpoint", 1)
RANDOM = Kind("random", 1)
TEACHER = Kind("teacher", 1)
# The model's own answers, to be kept in training; a persona that the study's model is taught first.
KEPT_ANSWERS = Kind("kept_answers", 1)
KNOCK_IN = Kind("knock_in", 2)
WEAKEN = Kind("weaken", 1)
KNOCK_IN_CHECK = Kind("knock_in_check", 2)
# Readings and answers of a model.
READ = Kind("read", 2)
ANSWER = Kind("answer", 2)
# The persona space.
DIRECTIONS = Kind("directions", 2)
ROLE = Kind("role", 1)
SPACE = Kind("space", 3)
DIMENSION = Kind("dimension", 2)
DICTIONARY = Kind("dictionary", 1)
GENERATED = Kind("generated", 1)
KEPT = Kind("kept", 1)
AGREEMENT = Kind("agreement", 1)
# A run.
MEASURE = Kind("measure", 11)
INSTRUCTIONS = Kind("instructions", 3)
AVERAGED = Kind("averaged", 1)
WEIGHTS = Kind("weights", 1)
CAPABILITY = Kind("capability", 2)
# Outcomes and answers of patched models. `score` keeps two formats: log-probabilities under contrast pairs, or a judge's grades.
MEDIATE = Kind("mediate", 1)
PATHWAYS = Kind("pathways", 2)
STAND_INS = Kind("stand_ins", 3)
WORDING = Kind("wording", 1)
WRITTEN = Kind("written", 2)
OWN_ANSWERS = Kind("own_answers", 1)
OWN_GRADES = Kind("own_grades", 1)
SAY = Kind("say", 1)
SCORE = Kind("score", 1)
# Trait scores.
CHOOSE = Kind("choose", 1)
CONTRAST = Kind("contrast", 1)
GRADE = Kind("grade", 2)
SCORES = Kind("scores", 2)
# Planted changes.
CALIBRATE = Kind("calibrate", 2)
LATER = Kind("later", 1)

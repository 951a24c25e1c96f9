"""The questions: studies, stages, the engine that walks them, reports and the command line."""

"""The findings of a study: arithmetic on finished stages, without running a model."""

"""Text out: answers of many variants of a model in one batch."""

"""Traits from the command line: shown, imported, exported, synthesised."""

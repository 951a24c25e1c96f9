"""Arithmetic on finished stages, no model touched: what a study found."""

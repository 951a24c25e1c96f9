"""Simulations with known answers: what the estimators and tests of this suite do on them."""

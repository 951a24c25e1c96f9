"""Which stages a study needs."""

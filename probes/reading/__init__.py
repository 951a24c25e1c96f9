"""States out: activations and log-probabilities of fixed text."""

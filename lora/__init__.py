"""How a model is changed: loading, arms, training and adapters."""

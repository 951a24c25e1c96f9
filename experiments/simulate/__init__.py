"""What the statistics do on data whose answer is known: bias, coverage, and how often a gate lets pass."""

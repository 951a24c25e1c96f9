"""The statistics on synthetic data with a known answer: bias, coverage, and how often data pass a gate."""

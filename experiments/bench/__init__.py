"""Measured comparisons. Each is a command: `wellworn bench capture`, `wellworn bench shift`."""

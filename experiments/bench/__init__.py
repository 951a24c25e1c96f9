"""Measured comparisons. Each is a command: `wellworn bench capture`, say."""

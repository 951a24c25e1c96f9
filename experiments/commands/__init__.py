"""The commands in addition to `wellworn run`."""

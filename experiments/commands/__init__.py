"""The commands other than `wellworn run`."""

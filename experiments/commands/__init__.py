"""The commands beside `wellworn run`."""

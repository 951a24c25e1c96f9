"""Benchmarks. Each is a command, such as `wellworn bench capture`."""

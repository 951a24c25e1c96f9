"""The results of a simulation: one row per setting."""

from typing import Any

# The setting and its results, by name: plain JSON for the terminal and a file.
Row = dict[str, Any]

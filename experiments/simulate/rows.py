"""What a simulation finds: rows, each of one setting."""

from typing import Any

# The setting and what was found in it, by name: plain JSON, which goes to the terminal and to a file as it is.
Row = dict[str, Any]

"""`wellworn`, `python -m wellworn` and `accelerate launch -m wellworn`: one and the same."""

import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line."""
    try:
        # Imports take a moment, in which a user may already stop it.
        from wellworn.experiments.cli import main as run

        return run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()

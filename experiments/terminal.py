"""The one door to the terminal: nothing that is shown can steer it, fill it, or tell a secret.

Names, questions, answers and files of others hold whatever they like: control sequences that write elsewhere on a screen or into its title,
characters that turn the direction of writing, a line of ten megabytes.
"""

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from wellworn.data.secrets import blanked
from wellworn.data.wording import visible

# Of a line of a message. What is longer is a file in one line, and not a message.
LONGEST_LINE = 4000


def shorten(text: str, most: int = LONGEST_LINE) -> str:
    """Return a text with each line cut to a length, and the number of characters left out."""
    lines = (line if len(line) <= most else f"{line[:most]}… and {len(line) - most:,} more characters" for line in text.split("\n"))
    return "\n".join(lines)


class Terminal(Console):
    """A console of rich through which everything goes that the suite shows."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to be shown, without secrets."""
        found = super().render_str(text, **options)
        shown = blanked(found.plain)
        return found if shown == found.plain else Text(shown)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is written, piece by piece; only the console's own pieces may steer the terminal."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


class _Guarded(io.TextIOBase):
    """A stream for what other libraries print, warn and log."""

    def __init__(self, raw: TextIO) -> None:
        # Rich writes around it: its own sequences are to steer the terminal.
        self.rich_proxied_file = raw

    def write(self, text: str) -> int:
        # Progress bars of other libraries go back to the beginning of their line.
        self.rich_proxied_file.write("\r".join(visible(part) for part in blanked(text).split("\r")))
        return len(text)

    def flush(self) -> None:
        self.rich_proxied_file.flush()

    def isatty(self) -> bool:
        return self.rich_proxied_file.isatty()

    def fileno(self) -> int:
        return self.rich_proxied_file.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.rich_proxied_file.encoding


@contextmanager
def guarded() -> Iterator[None]:
    """Let all that is printed in a block go through the door."""
    with redirect_stdout(_Guarded(sys.stdout)), redirect_stderr(_Guarded(sys.stderr)):
        yield

"""The one exception that a user is meant to see, and a list of its messages."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message names the thing, what was got, what it may be, and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


class Complaints:
    """All errors of an input, so that they can be fixed in one go and not one by one."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an `InputError` raised within, and go on behind the block."""
        try:
            yield
        except InputError as error:
            self.found += str(error).split("\n")

    def settle(self) -> None:
        """Raise what was noted, if anything was.

        Raises:
            InputError: a line for each complaint.
        """
        if self.found:
            raise InputError("\n".join(self.found))

"""The exceptions that a user is meant to see, a list of their messages, and whether memory ran out."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# A place in nested values: keys and indices from the outside in.
Location = tuple[str | int, ...]


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message names the thing, what was got, what it may be, and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


class MemoryShortError(InputError):
    """There is less memory than something takes. It may happen to one rank alone, of which the others know nothing."""


# How libraries say it that have no class of errors for it.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|an't allocate memory|annot allocate memory|STATUS_ALLOC_FAILED|can't start new thread"
)
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine. Errors of torch are known by their names."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    named_so = any(each.__name__ == "OutOfMemoryError" for each in type(error).__mro__)
    return named_so or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None)


def describe_out_of_memory(error: BaseException) -> str:
    """Return the words for an error that says that memory ran out, with the size asked for where it is known.

    Example:
        >>> describe_out_of_memory(MemoryError())
        'out of memory'
    """
    tried = _TRIED.search(str(error))
    return f"out of memory (it tried to allocate {tried[1]})" if tried else "out of memory"


# What the system says where a file cannot be written, in words that name the remedy.
_FILE_SYSTEM = {
    errno.ENOSPC: "the disk is full; make room and run again",
    errno.EDQUOT: "this user's quota of the disk is used up; make room and run again",
    errno.EFBIG: "files may not grow that large here (ulimit -f); raise the limit and run again",
    errno.EROFS: "the file system can only be read; write elsewhere",
    errno.EACCES: "this user may not write or read it; change its permissions, or write elsewhere",
    errno.EMFILE: "too many files are open (ulimit -n); raise the limit and run again",
}


def describe_os_error(error: OSError) -> str:
    """Return the words for an error of the file system: the file, what is wrong, and the remedy where one is known.

    Example:
        >>> describe_os_error(OSError(errno.ENOSPC, "No space left on device", "runs/report.html"))
        'runs/report.html: the disk is full; make room and run again'
    """
    where = "" if error.filename is None else f"{error.filename}: "
    return where + (_FILE_SYSTEM.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__)


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

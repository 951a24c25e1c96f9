"""Watch a process of cases: what it writes and where, whom it asks, what it starts, and what it shows."""

import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wellworn.data.errors import InputError, is_out_of_memory
from wellworn.experiments.cli import main

# Of what a child writes to both its streams, so many characters are enough to see what went wrong.
SHOWN = 2000
# Characters that lines are made of; progress bars go back to the beginning of theirs.
PLAIN = frozenset("\n\r\t")
# The version of the suite is asked of git, and the processor that a client tells a server of.
PROGRAMS = ("git", "uname")
HOSTS = ("127.0.0.1", "localhost")
# What changes a file system: which argument is the place, and which the open folder that it lies in; 0 if it has none.
CHANGED = {
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.mkdir": (0, 2),
    "os.truncate": (0, 0),
    "os.chmod": (0, 2),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
}


class WrongEndError(Exception):
    """What no input may bring about."""


class Watch:
    """Notes everything that a process does outside its folders, from now on until it ends.

    Args:
        folders: where it may write.

    Attributes:
        seen: what it did elsewhere.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._note(event, arguments[0])
        elif event in CHANGED:
            place, folder = CHANGED[event]
            self._note(event, arguments[place], arguments[folder] if folder else -1)
        elif event in ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class"):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name not in PROGRAMS:
            self.seen.append(f"started {arguments!r:.200}")
        elif event == "socket.getaddrinfo" and arguments[0] not in HOSTS:
            self.seen.append(f"asked for {arguments[0]!r}")
        elif event == "socket.connect" and not (isinstance(arguments[1], tuple) and arguments[1][0] in HOSTS):
            self.seen.append(f"connected to {arguments[1]!r}")

    def _note(self, event: str, place: Any, open_folder: int = -1) -> None:
        # A number is a file that was opened before, and seen then.
        if isinstance(place, int):
            return
        folder, name = os.path.split(os.path.join(os.getcwd() if open_folder < 0 else f"/proc/self/fd/{open_folder}", os.fsdecode(place)))
        real = os.path.join(os.path.realpath(folder), name)
        if real != os.devnull and not real.startswith(self._folders):
            self.seen.append(f"{event} {real}")


def command(*arguments: object) -> bool:
    """Run a command line; return whether it was carried out, or refused with one message.

    Raises:
        WrongEndError: it ended in another way, or showed what steers a terminal.
    """
    sys.stderr.write(f"{[str(argument) for argument in arguments]}\n")
    with _shown() as shown:
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    said = shown.read_text(encoding="utf-8", errors="replace")
    shown.unlink()
    if code not in (0, None, 2) or "Traceback" in said or (code == 2 and not said.strip()):
        raise WrongEndError(f"{arguments}: exit code {code}: {said[-SHOWN:]}")
    if odd := {each for each in said if unicodedata.category(each) in ("Cc", "Cf", "Cs") and each not in PLAIN}:
        raise WrongEndError(f"{arguments}: showed {sorted(odd)}: {said[-SHOWN:]}")
    return code != 2


@contextmanager
def refusing() -> Iterator[list[str]]:
    """Take what the command line makes one message of, and yield a list that then holds it."""
    said: list[str] = []
    try:
        yield said
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, InputError | OSError) and not is_out_of_memory(error):
            raise
        said.append(str(error))


@contextmanager
def _shown() -> Iterator[Path]:
    """Lead standard output and error into a new file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle, name = tempfile.mkstemp(prefix="shown-")
    kept = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
            os.close(old)

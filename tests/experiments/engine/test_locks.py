"""Locks of stages: one holder at a time, who is named; where a file system has none, that is said or made up for."""

import errno
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock._unix
import pytest

from tests.tiny import ROOT
from wellworn.data.errors import InputError
from wellworn.experiments.engine.locks import Locks

ID = "stage-0123456789abcdef"


def test_one_holder_at_a_time_who_is_named(tmp_path: Path) -> None:
    mine, other = Locks(tmp_path), Locks(tmp_path)
    assert mine.acquire(ID)
    assert not other.acquire(ID)
    assert other.holder(ID) == f"process {os.getpid()} on {platform.node()}, for 0 min ({tmp_path / ID}.lock)"
    mine.release(ID)
    assert other.acquire(ID)
    other.release(ID)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"import os\nfrom pathlib import Path\nfrom wellworn.experiments.engine.locks import Locks\n\
assert Locks(Path({str(tmp_path)!r})).acquire({ID!r})\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 9
    locks = Locks(tmp_path)
    assert locks.acquire(ID)
    locks.release(ID)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file system whose locks fail with an error of a given number."""

    def fail_with(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filelock._unix.fcntl, "flock", flock)

    return fail_with


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_a_file_stands_in(tmp_path: Path, no_locks: Any) -> None:
    no_locks(errno.ENOSYS)
    mine, other = Locks(tmp_path), Locks(tmp_path)
    assert mine.acquire(ID)
    assert not other.acquire(ID)
    assert other.holder(ID).startswith(f"process {os.getpid()} on {platform.node()}")
    mine.release(ID)
    assert other.acquire(ID)
    other.release(ID)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_stale_lock_of_another_machine_is_named_with_its_age_and_remedy(tmp_path: Path, no_locks: Any) -> None:
    no_locks(errno.ENOSYS)
    path = tmp_path / f"{ID}.lock"
    path.write_text("4242\nnode7\n", encoding="utf-8")
    path.chmod(0o600)
    os.utime(path, (time.time() - 30 * 3600,) * 2)
    locks = Locks(tmp_path)
    assert not locks.acquire(ID)
    assert locks.holder(ID) == f"process 4242 on node7, for 30 h ({path}; if that process is gone, delete the file)"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_locks_that_fail_are_named(tmp_path: Path, no_locks: Any, number: int) -> None:
    no_locks(number)
    with pytest.raises(InputError, match=r"\.lock: cannot be locked \(.+\); give a --runs-dir"):
        Locks(tmp_path).acquire(ID)


def test_a_link_in_place_of_a_lock_is_refused_and_its_target_stays(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    (tmp_path / f"{ID}.lock").symlink_to(precious)
    with pytest.raises(InputError, match=r"\.lock: cannot be locked"):
        Locks(tmp_path).acquire(ID)
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n\n", b"one line", b"x" * 10_000])
def test_a_lock_of_any_content_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{ID}.lock"
    path.write_bytes(content)
    assert str(path) in Locks(tmp_path).holder(ID)


def test_a_clock_that_is_years_off_gives_no_negative_age(tmp_path: Path) -> None:
    path = tmp_path / f"{ID}.lock"
    path.write_text("4242\nnode7\n", encoding="utf-8")
    os.utime(path, (time.time() + 2 * 365 * 86_400,) * 2)
    assert "for 0 min" in Locks(tmp_path).holder(ID)

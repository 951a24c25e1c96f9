"""A model's files are read once, and again when anything says that they may have changed."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from wellworn.data.errors import InputError
from wellworn.data.files import sha256
from wellworn.lora import digests
from wellworn.lora.digests import RACY_NS, kept_digests
from wellworn.lora.models import resolve


class Reads:
    """The files that were read."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def sha256(self, path: Path) -> str:
        self.names.append(path.name)
        return sha256(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    monkeypatch.setattr(digests, "sha256", found.sha256)
    return found


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time after files were written."""
    now = time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + 2 * RACY_NS)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.safetensors", "b.json"):
        (folder / name).write_text(f"the contents of {name}")
    return sorted(folder.iterdir())


def ask(files: list[Path], tmp_path: Path) -> list[str]:
    return kept_digests(files[0].parent, files, tmp_path / "cache")


def test_a_second_start_reads_nothing(files: list[Path], tmp_path: Path, reads: Reads, later: None) -> None:
    first = ask(files, tmp_path)
    assert first == [sha256(path) for path in files]
    assert reads.names == ["a.safetensors", "b.json"]
    assert ask(files, tmp_path) == first
    assert reads.names == ["a.safetensors", "b.json"]


@pytest.mark.parametrize("kept_time", [False, True])
def test_a_changed_file_is_read_again(kept_time: bool, files: list[Path], tmp_path: Path, reads: Reads, later: None) -> None:
    ask(files, tmp_path)
    before = files[0].stat()
    # Of the same size.
    files[0].write_text(files[0].read_text().swapcase())
    if kept_time:
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(files, tmp_path) == [sha256(path) for path in files]
    assert reads.names[2:] == ["a.safetensors"]
    files[1].write_text("longer than it was before")
    assert ask(files, tmp_path) == [sha256(path) for path in files]
    assert reads.names[3:] == ["b.json"]


def test_a_file_in_place_of_another_is_read(files: list[Path], tmp_path: Path, reads: Reads, later: None) -> None:
    ask(files, tmp_path)
    other = tmp_path / "other"
    other.write_text(files[0].read_text().swapcase())
    shutil.copystat(files[0], other)
    other.replace(files[0])
    assert ask(files, tmp_path) == [sha256(path) for path in files]
    assert reads.names[2:] == ["a.safetensors"]


def test_a_file_that_was_just_written_is_not_trusted(files: list[Path], tmp_path: Path, reads: Reads) -> None:
    ask(files, tmp_path)
    ask(files, tmp_path)
    assert reads.names == 2 * ["a.safetensors", "b.json"]


@pytest.mark.parametrize("damage", ["not JSON", "[1]", '{"a.safetensors": 3}', '{"a.safetensors": [[1], 2]}'])
def test_a_damaged_cache_is_as_none(damage: str, files: list[Path], tmp_path: Path, reads: Reads, later: None) -> None:
    first = ask(files, tmp_path)
    [place] = (tmp_path / "cache").iterdir()
    place.write_text(damage)
    assert ask(files, tmp_path) == first
    assert len(reads.names) == 4


def test_without_a_cache_all_is_read(files: list[Path], tmp_path: Path, reads: Reads, later: None) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert ask(files, tmp_path) == ask(files, tmp_path) == [sha256(path) for path in files]
    assert len(reads.names) == 4


def test_a_file_that_is_gone_is_one_message(files: list[Path], tmp_path: Path) -> None:
    files[0].unlink()
    with pytest.raises(InputError, match="cannot be read"):
        ask(files, tmp_path)


def test_a_models_name_stays_what_it_was(
    tiny_model: Path, tmp_path: Path, reads: Reads, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WELLWORN_CACHE", str(tmp_path))
    name = resolve(str(tiny_model)).id
    by_hand = "".join(f"{path.name}:{sha256(path)};" for path in sorted(tiny_model.iterdir()))
    assert name == f"local:tiny@{hashlib.sha256(by_hand.encode()).hexdigest()[:12]}"
    assert reads.names
    before = len(reads.names)
    monkeypatch.chdir(tiny_model.parent)
    assert resolve(tiny_model.name).id == name
    assert len(reads.names) == before

"""The store: a stage is there whole or not at all, after a kill, a power failure, or a hand that changed it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import ROOT
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.saving import write_json
from wellworn.experiments.engine.manifest import MANIFEST, Manifest
from wellworn.experiments.engine.store import WORK, Store

ID = "some-stage-0123456789abcdef"
FACTS: dict[str, Any] = {
    "stage": "some",
    "version": 1,
    "title": "some stage",
    "config": {},
    "inputs": [],
    "seconds": 0.1,
    "computed_with": [],
}


def finish(root: Path) -> Path:
    """Finish one stage; return its folder."""
    store = Store(root)
    store.create()
    folder = store.begin(ID)
    (folder / "deep").mkdir()
    (folder / "deep" / "numbers.bin").write_bytes(b"0123456789")
    write_json(folder / "facts.json", {"a": 1})
    store.publish(ID, FACTS)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return finish(tmp_path / "runs")


@pytest.fixture
def store(folder: Path) -> Store:
    """As a later process finds it."""
    return Store(folder.parents[1])


def test_a_finished_stage_is_done(folder: Path, store: Store) -> None:
    assert store.done(ID)
    manifest = Manifest.read(folder)
    assert manifest.sizes == {"deep/numbers.bin": 10, "facts.json": 12}
    assert manifest.files.keys() == manifest.sizes.keys()
    assert not (folder / WORK).exists()


@pytest.mark.parametrize("name", ["deep/numbers.bin", "facts.json", MANIFEST])
@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_file_that_was_cut_short_makes_its_stage_unfinished(folder: Path, store: Store, name: str, left: float) -> None:
    os.truncate(folder / name, int((folder / name).stat().st_size * left))
    assert not store.done(ID)
    assert str(store.cut(ID)).startswith(f"{name} ")
    store.begin(ID)
    assert [path.name for path in folder.iterdir()] == [WORK]


def test_a_file_that_is_gone_makes_its_stage_unfinished(folder: Path, store: Store) -> None:
    (folder / "facts.json").unlink()
    assert not store.done(ID)
    assert store.cut(ID) == "facts.json is missing"


def test_a_file_that_was_changed_is_named(folder: Path, store: Store) -> None:
    (folder / "facts.json").write_text('{\n "a": 2\n}\n')
    with pytest.raises(InputError, match=r"facts.json: changed since it was written; delete the folder"):
        store.done(ID)


def test_a_manifest_of_before_sizes_is_read(folder: Path, store: Store) -> None:
    manifest = read_json(folder / MANIFEST)
    del manifest["sizes"]
    write_json(folder / MANIFEST, manifest)
    assert store.done(ID)


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["facts.json"]},
        {"files": {"../../outside": "0"}},
        {"files": {"/etc/passwd": "0"}},
        {"version": "one"},
        {"versions": 3},
        {"config": []},
        {"sizes": {"facts.json": "big"}},
    ],
)
def test_a_manifest_that_was_edited_is_named(folder: Path, store: Store, change: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | change)
    with pytest.raises(InputError, match=rf"{MANIFEST}: is not a manifest \({next(iter(change))}.*\); delete the folder"):
        store.done(ID)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "3"])
def test_a_manifest_that_is_something_else(folder: Path, store: Store, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="is not a manifest"):
        store.done(ID)


def test_a_link_in_place_of_a_stage_is_refused_and_what_it_points_to_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    store = Store(tmp_path / "runs")
    store.create()
    store.path(ID).symlink_to(precious)
    for touch in (store.done, store.begin):
        with pytest.raises(InputError, match="is a symbolic link"):
            touch(ID)
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", [WORK, "facts.json", "deep"])
def test_links_in_an_unfinished_stage_are_removed_and_not_followed(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    store = Store(tmp_path / "runs")
    store.create()
    store.path(ID).mkdir()
    (store.path(ID) / name).symlink_to(precious)
    folder = store.begin(ID)
    (folder / WORK / "checkpoint").write_text("")
    store.publish(ID, FACTS)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("stage_id", ["../other", "/etc", "a/b", "", "..", "a\0b"])
def test_only_ids_of_stages_are_looked_up(tmp_path: Path, stage_id: str) -> None:
    with pytest.raises(InputError, match="is not the id of a stage"):
        Store(tmp_path).path(stage_id)


def test_what_a_killed_process_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    """A half-written file, and the work folder of a stage whose manifest was written."""
    (folder / WORK).mkdir()
    (folder / WORK / "checkpoint").write_text("")
    code = (
        "import os\nfrom pathlib import Path\nfrom wellworn.data import saving\nos.fsync = lambda handle: os._exit(9)\n"
        f"saving.write_text(Path({str(tmp_path / 'runs' / 'study')!r}) / 'report.html', 'half')"
    )
    (tmp_path / "runs" / "study").mkdir()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 9
    [left] = (tmp_path / "runs" / "study").iterdir()
    assert left.name.endswith(".part")
    store = Store(tmp_path / "runs")
    store.create()
    assert store.done(ID)
    assert not left.exists()
    assert not (folder / WORK).exists()


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    mine = tmp_path / f"summary.json.{os.uname().nodename.replace('.', '-')}.{os.getpid()}.part"
    other = tmp_path / "summary.json.elsewhere.1.part"
    for path in (mine, other):
        path.write_text("half")
    Store(tmp_path).create()
    assert mine.exists()
    assert other.exists()
    os.utime(other, (0, 0))
    Store(tmp_path).create()
    assert not other.exists()


def test_a_store_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with all rights may write anywhere, so the refusal is made."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"--runs-dir .*: cannot be written \(Read-only file system\)"):
        Store(tmp_path / "runs").create()


def test_files_are_on_the_disk_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("wellworn.experiments.engine.store.sync", lambda path: synced.append(path.name))
    monkeypatch.setattr("wellworn.experiments.engine.store.write_json", lambda path, _: synced.append(path.name))
    store = Store(tmp_path)
    store.create()
    folder = store.begin(ID)
    (folder / "deep").mkdir()
    for name in ("a.bin", "deep/b.bin"):
        (folder / name).write_bytes(b"x")
    store.publish(ID, FACTS)
    assert synced[:2] == ["a.bin", "b.bin"]
    assert sorted(synced[2:4]) == ["deep", ID]
    assert synced[4:] == [MANIFEST]


def test_keys_of_later_versions_are_let_through(folder: Path, store: Store) -> None:
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"a_later_key": {}})
    assert store.done(ID)
    assert json.loads((folder / MANIFEST).read_text())["a_later_key"] == {}

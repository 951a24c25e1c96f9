"""What attacks are judged by can fail: each fault that it looks for is found when it is planted."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.child import Child, End, killed_before_change
from tests.torture.compare import Once, differences, left_over
from tests.torture.disk import one_message
from tests.torture.ground import Ground
from tests.torture.power import shorten
from wellworn.data.saving import write_json, write_text
from wellworn.experiments.engine.stage import Kind, Stage
from wellworn.experiments.engine.store import Store

STAGE = "read-0"
PAGES = ("summary.json", "report.html", "study.json")


@pytest.fixture
def finished(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a runs folder with one stage and one study, always the same."""

    def make(name: str) -> Path:
        store = Store(tmp_path / name)
        store.create()
        stage = Stage(kind=Kind("read", 1), config={}, inputs={}, title="a reading", compute=lambda *_: {})
        write_json(store.begin(STAGE) / "states.json", [1, 2, 3])
        store.locks.acquire(STAGE)
        store.publish(STAGE, stage.facts(0.1))
        store.locks.release(STAGE)
        (store.root / "tiny").mkdir()
        for page in PAGES:
            write_text(store.root / "tiny" / page, page)
        return store.root

    return make


def test_equal_folders_have_no_differences_and_nothing_left(finished: Callable[[str], Path]) -> None:
    assert differences("tiny", finished("mine"), finished("theirs")) == []
    assert left_over(finished("again")) == []


@pytest.mark.parametrize("page", PAGES[:2])
def test_another_byte_is_found(finished: Callable[[str], Path], page: str) -> None:
    mine = finished("mine")
    (mine / "tiny" / page).write_text("another")
    assert differences("tiny", mine, finished("theirs")) == [f"tiny/{page} differs"]


def test_a_stage_with_another_file_is_found(finished: Callable[[str], Path], tmp_path: Path) -> None:
    mine = finished("mine")
    write_json(mine / "stages" / STAGE / "states.json", [1, 2, 4])
    Store(mine).publish(STAGE, Stage(kind=Kind("read", 1), config={}, inputs={}, title="", compute=lambda *_: {}).facts(0.1))
    assert differences("tiny", mine, finished("theirs")) == [f"stage {STAGE} differs"]


@pytest.mark.parametrize(
    "planted", ["stages/read-0/work", "tiny/summary.json.host.1.part", "stages/read-0/spare.json", "stages/read-1", "x"]
)
def test_what_is_left_is_found(finished: Callable[[str], Path], planted: str) -> None:
    runs = finished("mine")
    (runs / planted).mkdir() if "." not in planted else (runs / planted).write_text("")
    assert left_over(runs) == [planted]


def test_a_manifest_that_is_written_again_is_found(finished: Callable[[str], Path]) -> None:
    runs, once = finished("mine"), Once()
    once.look(runs)
    once.look(runs)
    assert once.twice == []
    Store(runs).publish(STAGE, Stage(kind=Kind("read", 1), config={}, inputs={}, title="", compute=lambda *_: {}).facts(0.1))
    once.look(runs)
    assert once.twice == [f"stage {STAGE} was computed twice"]


@pytest.mark.parametrize(
    "end", [(1, "error: the disk is full"), (2, "Traceback error: the disk is full"), (2, "error: error: the disk is full")]
)
def test_a_failure_without_its_one_message_is_found(end: tuple[int, str]) -> None:
    assert one_message(End(2, "error: the disk\nis full", 1.0), "the disk is full") == []
    assert one_message(End(*end, 1.0), "the disk is full")


def test_a_child_dies_before_the_change_that_it_is_to_die_at(tmp_path: Path) -> None:
    def write() -> None:
        for i in range(5):
            (tmp_path / f"{i}").write_text("whole")

    process = os.fork()
    if not process:
        killed_before_change(3, tmp_path, write)()
        os._exit(0)
    (tmp_path.parent / "said").write_text("")
    end = Child(process, tmp_path.parent / "said", 0.0).wait()
    assert (end.code, end.killed) == (-signal.SIGKILL, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_a_power_cut_shortens_files(finished: Callable[[str], Path], tmp_path: Path) -> None:
    runs = finished("mine")
    before = {path: path.stat().st_size for path in runs.rglob("*") if path.is_file()}
    cut = shorten(Ground(tmp_path, random.Random(0)), runs)
    changed = [path for path, size in before.items() if path.stat().st_size < size]
    assert len(changed) == len(cut) > 0

"""What cases are judged by can fail: whatever they must not do is found when they do it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.torture import child
from tests.torture.ground import Ground
from tests.torture.hostile import campaign as campaigns
from tests.torture.hostile import watch
from tests.torture.hostile.campaign import campaign
from tests.torture.hostile.draws import copy, damage_folder
from tests.torture.hostile.watch import Watch, WrongEndError, command


def seen_in_a_child(act: Callable[[], Any], folders: list[Path]) -> str:
    """Return what a watch sees of an act, in a process that ends with it: a watch has no end of its own."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        watching = Watch(folders)
        with suppress(OSError):
            act()
        os.write(write, "; ".join(watching.seen).encode())
        os._exit(0)
    os.waitpid(process, 0)
    os.close(write)
    return os.read(read, 10_000).decode()


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda outside: (outside / "x").write_text("x"), "open "),
        (lambda outside: (outside / "x").mkdir(), "os.mkdir "),
        (lambda outside: (outside / "old").unlink(), "os.remove "),
        (lambda outside: (outside / "old").rename(outside / "x"), "os.rename "),
        (lambda outside: (outside / "x").symlink_to("y"), "os.symlink "),
        (lambda outside: os.truncate(outside / "old", 0), "os.truncate "),
        (lambda outside: (outside.parent / "inside" / "link" / "x").write_text("x"), "open "),
        (lambda _: subprocess.run(["true"], check=False), "started "),
        (lambda _: os.system("true"), "os.system "),
        (lambda _: socket.getaddrinfo("example.invalid", 80), "asked for 'example.invalid'"),
        (lambda _: socket.create_connection(("192.0.2.1", 9), timeout=0.01), "192.0.2.1"),
    ],
)
def test_what_is_done_elsewhere_is_seen(tmp_path: Path, act: Callable[[Path], Any], found: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "old").write_text("old")
    (inside / "link").symlink_to(outside)
    assert found in seen_in_a_child(lambda: act(outside), [inside])


def test_what_is_done_in_its_folders_is_not(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("x")
        (tmp_path / "a" / "x").rename(tmp_path / "y")
        Path(os.devnull).write_text("x")
        socket.getaddrinfo("127.0.0.1", 80)
        shutil.rmtree(tmp_path / "a")

    assert seen_in_a_child(act, [tmp_path]) == ""


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (lambda: sys.exit(1), "exit code 1"),
        (lambda: sys.exit(2), "exit code 2"),  # without a word
        (lambda: print("Traceback (most recent call last)"), "Traceback"),
        (lambda: print("\x1b[2J"), r"showed \['\\x1b'\]"),
        (lambda: os.write(2, "\u202e".encode()), "showed"),
    ],
)
def test_a_wrong_end_is_found(monkeypatch: pytest.MonkeyPatch, capfd: Any, ends: Callable[[], Any], said: str) -> None:
    def main(_arguments: list[str]) -> None:
        with capfd.disabled():
            ends()
        sys.exit(0)

    monkeypatch.setattr(watch, "main", main)
    with capfd.disabled(), pytest.raises(WrongEndError, match=said):
        command("run")


def test_cases_that_hang_die_or_fail_are_found_and_the_others_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def door(_ground: Ground, _rng: Random, folder: Path) -> bool:
        number = len(list(tmp_path.glob("tried-*")))
        (tmp_path / f"tried-{number}").write_text("")
        (folder / "mine").write_text("")
        if number == 1:
            time.sleep(60)
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            raise KeyError("lost")
        return number % 2 == 0

    # The tests' own process has threads, which do nothing here.
    monkeypatch.setattr(child, "check_single_thread", lambda: None)
    monkeypatch.setattr(campaigns, "SECONDS", 1.0)
    monkeypatch.setattr(campaigns, "Watch", lambda _folders: type("Nothing", (), {"seen": []})())
    ground = Ground(tmp_path, Random(0))
    assert campaign(door)(ground, 9) == 1
    hangs, dies, fails = ground.faults
    assert "hangs for more than 1 s" in hangs
    assert "the process ended" in dies
    assert "KeyError: 'lost'" in fails
    assert sorted(path.name for path in tmp_path.glob("door-*/case-*")) == ["case-1", "case-3", "case-5"]


def test_damage_changes_a_copy_and_not_what_it_was_made_of(tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    sound.mkdir()
    save_file({"a": torch.ones(2, 2)}, sound / "weights.safetensors")
    (sound / "some.json").write_text('{"a": [1, {"b": 2}]}')
    (sound / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    before = {path.name: path.read_bytes() for path in sound.iterdir()}
    changed = 0
    for number in range(60):
        damaged = tmp_path / f"{number}"
        damage_folder(Random(number), copy(sound, damaged))
        changed += any(not (damaged / name).is_file() or (damaged / name).read_bytes() != content for name, content in before.items())
    assert changed > 50
    assert {path.name: path.read_bytes() for path in sound.iterdir()} == before
    assert torch.equal(load_file(sound / "weights.safetensors")["a"], torch.ones(2, 2))

"""Stages are done once, appear whole or not at all, and survive kills, errors and a full disk."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file

from wellworn.data.errors import InputError
from wellworn.data.files import read_json, sha256
from wellworn.data.saving import write_json
from wellworn.experiments.cli import main
from wellworn.experiments.engine.manifest import MANIFEST
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import run as run_stages
from wellworn.experiments.engine.stage import Kind, Stage
from wellworn.experiments.engine.store import WORK, Store
from wellworn.probes.reading.forward_passes import BatchReading

Write = Callable[..., Path]


def command(study: Path, runs: Path) -> list[str]:
    return [sys.executable, "-m", "wellworn", "run", str(study), "--runs-dir", str(runs)]


def finished(runs: Path) -> set[str]:
    return {path.parent.name for path in (runs / "stages").glob(f"*/{MANIFEST}")}


def run(study: Path, runs: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(runs)])
    assert stop.value.code in (0, None)


@pytest.fixture
def whole(tiny_study: Write, tmp_path: Path) -> Path:
    """A runs folder in which the tiny study is finished."""
    run(tiny_study(), tmp_path / "whole")
    return tmp_path / "whole"


def test_a_second_run_computes_nothing(whole: Path, tiny_study: Write) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "stages").rglob("*") if path.is_file() and path.suffix != ".lock"}
    summary = (whole / "tiny" / "summary.json").read_bytes()
    run(tiny_study(), whole)
    after = {path: path.stat().st_mtime_ns for path in (whole / "stages").rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert before == after
    assert (whole / "tiny" / "summary.json").read_bytes() == summary


def test_the_artefacts_hold_no_pickle_and_no_path_of_this_machine(whole: Path, tiny_model: Path) -> None:
    names = [path for path in (whole / "stages").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.suffix for path in names} == {".json", ".safetensors"}
    for path in names:
        if path.suffix == ".json":
            assert str(tiny_model.parent) not in path.read_text()


def test_studies_share_what_they_have_in_common(whole: Path, tiny_study: Write) -> None:
    before = finished(whole)
    run(tiny_study("other", runs=[{"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "pirate"}]), whole)
    assert not {stage for stage in finished(whole) - before if stage.startswith(("train", "directions", "space"))}


def readings(runs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (runs / "stages").glob("read-*/reading.safetensors")}


def test_what_reads_the_same_text_is_computed_together(whole: Path) -> None:
    manifests = [read_json(path) for path in (whole / "stages").glob(f"read-*/{MANIFEST}")]
    plain = [each for each in manifests if each["title"].endswith("reads plain answers")]
    # The base, two fine-tunes and their neutral one.
    assert [len(each["computed_with"]) for each in plain] == [3, 3, 3, 3]
    assert len({each["seconds"] for each in plain}) == 1


@pytest.mark.parametrize("why", ["one at a time", pytest.param("no memory", marks=pytest.mark.slow)])
def test_readings_are_the_same_alone(why: str, whole: Path, tiny_study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "one at a time":
        monkeypatch.setattr("wellworn.experiments.engine.run.MOST_TOGETHER", 1)
    else:
        monkeypatch.setattr("wellworn.lora.adapters.groups_that_fit", lambda folders, device: [[folder] for folder in folders])
    run(tiny_study(), tmp_path / "alone")
    assert readings(tmp_path / "alone") == readings(whole)


def test_a_joint_reading_that_was_cut_goes_on_in_other_groups(
    whole: Path, tiny_study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "cut"

    def cut(part: BatchReading, _layers: object) -> None:
        if part.variant == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wellworn.probes.reading.capture._refuse_nonfinite", cut)
        with pytest.raises(SystemExit) as stop:
            main(["run", str(tiny_study()), "--runs-dir", str(runs)])
    assert stop.value.code == 130
    assert list((runs / "stages").glob(f"read-*/{WORK}/*/*.safetensors"))
    monkeypatch.setattr(
        "wellworn.lora.adapters.groups_that_fit", lambda folders, device: [list(some) for some in (folders[:2], folders[2:]) if some]
    )
    run(tiny_study(), runs)
    assert readings(runs) == readings(whole)


def test_one_bad_stage_among_several_is_named_and_loses_nothing_else(
    whole: Path, tiny_study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "bad"
    shutil.copytree(whole, runs)
    for path in (runs / "stages").glob("read-*"):
        if path.is_dir():
            shutil.rmtree(path)
    # One fine-tune came out broken.
    [broken] = [path.parent for path in (runs / "stages").glob(f"train-*/{MANIFEST}") if "sft uppercase" in read_json(path)["title"]]
    weights = broken / "adapter" / "adapter_model.safetensors"
    save_file({key: np.full_like(value, np.nan) for key, value in load_file(weights).items()}, weights)
    facts = read_json(broken / MANIFEST)
    name = "adapter/adapter_model.safetensors"
    facts["files"][name], facts["sizes"][name] = sha256(weights), weights.stat().st_size
    write_json(broken / MANIFEST, facts)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tiny_study()), "--runs-dir", str(runs)])
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert re.search(r"error: sft uppercase \(seed 0\) reads .*: row \d+: the hidden state at layer 0 is not finite", message), message
    kept = readings(runs)
    assert kept
    assert kept.items() <= readings(whole).items()


def test_five_kills_leave_the_same_summary(whole: Path, tiny_study: Write, tmp_path: Path) -> None:
    """Killed after the directions, in mid-training, among readings and at the end, it finishes as if nothing had been."""
    runs, study = tmp_path / "killed", tiny_study()
    total, kills = len(finished(whole)), 0
    for target in (1, total // 4, total // 2, 3 * total // 4, total - 1):
        process = subprocess.Popen(command(study, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(finished(runs)) < target:
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 5
    run(study, runs)
    for name in ("summary.json", "report.html"):
        if name == "summary.json":
            assert (runs / "tiny" / name).read_bytes() == (whole / "tiny" / name).read_bytes()


def test_training_resumes_from_its_checkpoint_to_the_same_adapter(whole: Path, tiny_study: Write, tmp_path: Path) -> None:
    runs, study = tmp_path / "killed", tiny_study()
    process = subprocess.Popen(command(study, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((runs / "stages").glob("train-*/work/checkpoint-2/trainer_state.json")):
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    cut = [path for path in (runs / "stages").glob("train-*") if path.is_dir() and not (path / MANIFEST).is_file()]
    run(study, runs)
    for stage in cut:
        name = f"{stage.name}/adapter/adapter_model.safetensors"
        assert (runs / "stages" / name).read_bytes() == (whole / "stages" / name).read_bytes()
        assert not (stage / "work").exists()


def test_two_processes_share_one_runs_folder(whole: Path, tiny_study: Write, tmp_path: Path) -> None:
    runs, study = tmp_path / "shared", tiny_study()
    processes = [subprocess.Popen(command(study, runs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    output = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    done = [line.split("] ")[1].rsplit(":", 1)[0] for text in output for line in text.splitlines() if line.startswith("[")]
    assert len(done) == len(set(done)), "a stage was computed twice"
    assert (runs / "tiny" / "summary.json").read_bytes() == (whole / "tiny" / "summary.json").read_bytes()


def test_a_changed_file_is_refused_by_name(whole: Path, tiny_study: Write, capsys: pytest.CaptureFixture[str]) -> None:
    reading = next((whole / "stages").glob("read-*/reading.safetensors"))
    reading.write_bytes(reading.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tiny_study()), "--runs-dir", str(whole)])
    assert stop.value.code == 2
    message = capsys.readouterr().err.replace("\n", "")
    assert reading.parent.name in message
    assert "delete the folder" in message


def test_a_stage_without_a_manifest_is_done_again(whole: Path, tiny_study: Write) -> None:
    stage = next((whole / "stages").glob("measure-*/manifest.json")).parent
    facts = (stage / "measurement.json").read_bytes()
    (stage / MANIFEST).unlink()
    (stage / "measurement.json").write_text("half-writ")
    run(tiny_study(), whole)
    assert (stage / "measurement.json").read_bytes() == facts


def test_a_full_disk_is_one_message_and_loses_nothing(
    tiny_study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wellworn.experiments.engine.run as engine

    written = []

    def write(folder: Path, output: dict[str, object]) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(folder)
        real(folder, output)

    real = engine.write_output
    monkeypatch.setattr(engine, "write_output", write)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tiny_study()), "--runs-dir", str(tmp_path / "runs")])
    assert stop.value.code == 2
    assert "is full; make room and run again" in " ".join(capsys.readouterr().err.split())
    assert finished(tmp_path / "runs") == {folder.name for folder in written}


def test_a_manifest_lists_every_file_with_its_checksum(whole: Path) -> None:
    for manifest in (whole / "stages").glob(f"*/{MANIFEST}"):
        files = {str(p.relative_to(manifest.parent)) for p in manifest.parent.rglob("*") if p.is_file() and p.name != MANIFEST}
        assert set(read_json(manifest)["files"]) == files


def test_a_runs_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--runs-dir .*file"):
        Store(tmp_path / "file").create()


def test_without_waiting_what_another_process_holds_is_left(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    store.create()
    held, free = (Stage(kind=Kind(name, 1), config={}, title=name, compute=lambda *_: {"a.json": 1}) for name in ("held", "free"))
    above = Stage(kind=Kind("above", 1), config={}, inputs={"held": held}, title="above", compute=lambda *_: {"a.json": 2})
    context: Any = None

    def finish() -> bool:
        return run_stages([above, free], store, context, Ranks(), Console(quiet=True), quiet=True, wait=False)

    assert other.locks.acquire(held.id)
    assert not finish()
    assert [store.done(stage.id) for stage in (held, free, above)] == [False, True, False]
    other.locks.release(held.id)
    assert finish()
    assert all(store.done(stage.id) for stage in (held, free, above))


GPU_FULL = "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."


@pytest.mark.parametrize(
    ("where", "title", "may"),
    [
        ("wellworn.lora.train._Supervised.compute_loss", "train sft pirate (seed 0)", "train.sft.activation_checkpointing=true"),
        ("wellworn.probes.reading.forward_passes.Passes._read", "directions", "a smaller token_budget, dtype=bfloat16, dtype=nf4"),
    ],
)
def test_memory_that_runs_out_is_one_message_and_loses_nothing(
    where: str,
    title: str,
    may: str,
    tiny_study: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"

    def run_out(*_args: object, **_kwargs: object) -> None:
        raise torch.OutOfMemoryError(GPU_FULL)

    with monkeypatch.context() as patch:
        patch.setattr(where, run_out)
        with pytest.raises(SystemExit) as stop:
            main(["run", str(tiny_study()), "--runs-dir", str(runs)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("\n") == 1
    assert title in message
    assert "out of memory (it tried to allocate 1.96 GiB); finished stages are kept. What lets it fit: " in message
    assert may in message
    before = finished(runs)
    assert before
    run(tiny_study(), runs)
    assert before < finished(runs)


def test_stages_that_do_not_fit_together_are_computed_one_by_one(tmp_path: Path) -> None:
    """What the joint attempt held is free by then."""
    store = Store(tmp_path)
    store.create()
    held: list[weakref.ref[np.ndarray]] = []

    def compute(_context: object, folders: Sequence[object], *_: object) -> list[dict[str, int]]:
        if len(folders) > 1:
            states = np.zeros(3)
            held.append(weakref.ref(states))
            raise torch.OutOfMemoryError(GPU_FULL)
        assert held[0]() is None
        return [{"a.json": 1}]

    stages = [
        Stage.joint(kind=Kind("read", 1), config={"row": i}, inputs={}, title=f"read {i}", shared="rows", compute_all=compute)
        for i in range(3)
    ]
    context: Any = SimpleNamespace(dtype="float32")
    assert run_stages(stages, store, context, Ranks(), Console(quiet=True), quiet=True)
    assert len(held) == 1
    assert all(store.done(stage.id) for stage in stages)


def test_variants_are_finished_one_after_the_other_under_names_of_their_own(tiny_study: Write, tmp_path: Path) -> None:
    variants = {"short": {"train.sft.max_steps": 2}, "long": {"train.sft.max_steps": 3}}
    run(tiny_study(runs=[{"arm": "sft", "trait": "uppercase"}], mediate=None, variants=variants), tmp_path / "runs")
    steps = {}
    for name in variants:
        index = read_json(tmp_path / "runs" / f"tiny-{name}" / "study.json")
        steps[name] = index["study"]["train"]["sft"]["max_steps"]
        assert (tmp_path / "runs" / f"tiny-{name}" / "report.html").is_file()
    assert steps == {"short": 2, "long": 3}
    # What both need is there once.
    assert len([stage for stage in finished(tmp_path / "runs") if stage.startswith("space")]) == 2

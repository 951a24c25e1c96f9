"""Write files that are there whole or not at all, whenever the process or the power ends."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

# Seconds after which a half-written file of another machine is taken for one that its process left.
LONGEST_WRITE = 3600.0


def write_json(path: Path, value: Any) -> None:
    """Write JSON by atomic rename; refuses NaN, keeps key order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text by atomic rename: a reader sees the old file or the new one, whole."""
    # Named by process, as several may finish the same study at the same time.
    part = path.with_name(f"{path.name}.{_host()}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before anything else is written."""
    # Other systems open no folders.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_left(part: Path) -> bool:
    """Whether a half-written file is of a process that is gone; of another machine, whether it is older than an hour."""
    _, host, process, _ = [*part.name.rsplit(".", 3), "", "", ""][:4]
    if host == _host() and process.isdigit():
        return not psutil.pid_exists(int(process))
    return abs(time.time() - part.stat().st_mtime) > LONGEST_WRITE


def _host() -> str:
    return platform.node().replace(".", "-").replace("/", "-")

"""Hostile values, documents, tensors and files, drawn from a random number."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tests.data.fuzzing import any_text, damage, damage_bytes, json_bytes, junk

# How many parts of a document are changed.
TIMES = (1, 1, 1, 2, 3)
PATTERNS = ["(", "*", "(a|a|.)*(.*.*.*.*.*.*.*)*!", r"(([a-z_\.0-9])+.)+x!", ".*", "", "q_proj", r"^(?!.*(?:a+)+$).*$"]
TEMPLATES = [
    "",
    "hello",
    "{% for",
    "{{ foo.bar.baz }}",
    "{{ messages[5] }}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for m in messages %}{{ 'x' * 1000000000 }}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%2000000000d' % 1 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "\x1b]0;title\x07{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% if 1 %}" * 3000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
]
PLACES = [
    "../../outside",
    "/etc/passwd",
    "/dev/zero",
    "~",
    "..",
    ".",
    "/",
    "a/b",
    "C:\\a",
    "\0",
    "a" * 5000,
    "...yaml",
    "-",
    "a+0.5*b",
    "a@b",
]
TEXTS = [
    *PATTERNS,
    *PLACES,
    "\x1b[2J\x1b]0;title\x07",
    "\u202eevil",
    "\ud800",
    "all-linear",
    "auto",
    "nan",
    "1e400",
    "9" * 5000,
    "x" * 100_000,
]
NUMBERS: list[float] = [
    0,
    -1,
    1,
    2,
    5,
    -7,
    10**6,
    10**9,
    10**20,
    10**400,
    0.5,
    -0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
]
RAW = [
    *(b"", b"null", b"5", b"[]", b"{}", b"[[1]]", b'"x"', b"{", b"\xff\xfe\x00", b"\x00" * 100, b"\xef\xbb\xbf{}", b'{"a": NaN}'),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"r":' + b"9" * 5000 + b"}", b'{"a":1,"a":2}'),
]


def hostile(rng: Random) -> Any:
    """Draw a value that a document may hold in any place."""
    draw = rng.random()
    if draw < 0.3:
        return rng.choice(NUMBERS)
    if draw < 0.55:
        return rng.choice(TEXTS)
    if draw < 0.65:
        return any_text(rng)
    if draw < 0.8:
        return rng.choice([None, True, False, [], {}, [None], [[]], {"": None}, [1, "a"], {"a": {"b": [1]}}])
    if draw < 0.9:
        return [hostile(rng) for _ in range(rng.randint(1, 3))]
    return {str(rng.choice(TEXTS)): hostile(rng)} if draw < 0.95 else junk(rng)


def damage_document(rng: Random, value: Any) -> Any:
    """Return a document with some of its parts replaced, taken out or put in."""
    return damage(rng, value, TIMES, hostile)


def damage_json(rng: Random, content: bytes) -> bytes:
    """Return JSON with hostile parts, other JSON, or what is not JSON."""
    draw = rng.random()
    if draw < 0.1:
        return rng.choice(RAW)
    if draw < 0.2:
        return damage_bytes(rng, content)
    try:
        document = json.loads(content)
    except ValueError:
        return damage_bytes(rng, content)
    return json_bytes(damage_document(rng, document), rng.random() < 0.5)


def damage_lines(rng: Random, content: bytes) -> bytes:
    """Return lines of text or JSON, of which some are damaged, gone or twice."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice(TIMES)):
        at = rng.randrange(len(lines)) if lines else 0
        change = rng.choice(["gone", "twice", "json", "bytes", "raw"])
        if change == "gone":
            del lines[at : at + 1]
        elif change == "raw" or not lines:
            lines.insert(at, rng.choice(RAW) + b"\n")
        else:
            made = {"twice": lines[at], "json": damage_json(rng, lines[at]) + b"\n", "bytes": damage_bytes(rng, lines[at])}[change]
            lines[at : at + (change != "twice")] = [made]
    return b"".join(lines)


def damage_tensors(rng: Random, content: bytes) -> bytes:
    """Return weights of which some are gone, renamed, of another shape, type or size, or not numbers; or a file cut or overwritten."""
    if rng.random() < 0.3:
        return rng.choice([damage_bytes(rng, content), rng.choice(RAW), rng.randbytes(200), content[:8], b"\xff" * 8 + content[8:]])
    try:
        tensors = load(content)
    except SafetensorError:
        return damage_bytes(rng, content)
    names = sorted(tensors)
    some = names if rng.random() < 0.3 else rng.sample(names, rng.randint(1, min(3, len(names))))
    change = rng.choice([_gone, _renamed, _cut, _flat, _cast, _infinite, _empty, _more, _huge])
    for name in some:
        change(rng, tensors, name)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


Tensors = dict[str, torch.Tensor]


def _gone(_rng: Random, tensors: Tensors, name: str) -> None:
    del tensors[name]


def _renamed(rng: Random, tensors: Tensors, name: str) -> None:
    new = rng.choice([f"x.{name}", f"{name}.x", name.replace("0", "7"), name.upper(), f"\x1b[31m{name}", f"..{name}", "a" * 50_000])
    tensors[new] = tensors.pop(name)


def _cut(_rng: Random, tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:1].clone() if tensors[name].dim() else tensors[name]


def _flat(rng: Random, tensors: Tensors, name: str) -> None:
    tensor = tensors[name]
    tensors[name] = rng.choice([tensor.flatten(), tensor[None], tensor.sum(), tensor.t() if tensor.dim() == 2 else tensor]).clone()


def _cast(rng: Random, tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].to(rng.choice([torch.int64, torch.int8, torch.bool, torch.float64, torch.float16, torch.float8_e4m3fn]))


def _infinite(rng: Random, tensors: Tensors, name: str) -> None:
    if tensors[name].is_floating_point():
        tensors[name] = tensors[name] * rng.choice([float("nan"), float("inf"), 1e30, 0.0])


def _empty(_rng: Random, tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:0].clone() if tensors[name].dim() else tensors[name]


def _more(rng: Random, tensors: Tensors, name: str) -> None:
    tensors[name.replace("layers.0", "layers.9") + rng.choice(["", ".spare", "_extra"])] = torch.zeros(rng.choice([(1,), (4, 4), (0,), ()]))


def _huge(_rng: Random, tensors: Tensors, name: str) -> None:
    tensors[name] = torch.zeros(64, 64) + torch.arange(64)


def damage_template(rng: Random, content: bytes) -> bytes:
    """Return a chat template that is broken, foreign or endless."""
    return damage_bytes(rng, content) if rng.random() < 0.3 else rng.choice(TEMPLATES).encode()


BY_SUFFIX: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": damage_json,
    ".jsonl": damage_lines,
    ".safetensors": damage_tensors,
    ".jinja": damage_template,
    ".yaml": damage_lines,
}


def damage_folder(rng: Random, files: Sequence[Path]) -> None:
    """Damage one or two of some files; where they share their bytes with others, the others stay as they are."""
    for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
        if rng.random() < 0.08:
            put_odd_file(rng, path)
            continue
        content = BY_SUFFIX.get(path.suffix, damage_bytes)(rng, path.read_bytes())
        path.unlink()
        path.write_bytes(content)


def put_odd_file(rng: Random, path: Path) -> None:
    """Put something in a file's place that is not a file with bytes."""
    if path.exists():
        path.unlink()
    odd = rng.choice(["gone", "pipe", "folder", "endless", "dangling", "loop", "outside", "closed"])
    if odd == "pipe":
        os.mkfifo(path)
    elif odd == "folder":
        path.mkdir()
    elif odd == "closed":
        path.write_bytes(b"{}")
        path.chmod(0)
    elif odd != "gone":
        path.symlink_to({"endless": "/dev/zero", "dangling": path.with_name("nowhere"), "loop": path, "outside": "/etc/hostname"}[odd])


def copy(source: Path, target: Path) -> list[Path]:
    """Copy a folder by links to its files; return them, in order."""
    shutil.copytree(source, target, copy_function=os.link)
    return sorted(path for path in target.rglob("*") if path.is_file())

"""Read YAML and JSON Lines so that every complaint names a file and a line."""

import gzip
import hashlib
import json
import math
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from wellworn.data.errors import Complaints, InputError, Location
from wellworn.data.secrets import SECRET_HERE, without_secrets
from wellworn.data.wording import complaints, shortly

Model = TypeVar("Model", bound=BaseModel)
# A few lines of aliases can expand without end.
MOST_VALUES = 1_000_000
# So can a few compressed bytes.
MOST_CHARACTERS = 2**30
# Reading YAML takes time in proportion to its depth, for every token.
DEEPEST = 40
TOO_DEEP = f"more than {DEEPEST} lists and mappings lie inside each other"
_KINDS = {
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: Path) -> None:
    """Make sure that a path, if it exists, is a file: reading a named pipe or a device may never end.

    Raises:
        InputError: it is something else; says what.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        # What is wrong is said when it is read.
        return
    if kind != stat.S_IFREG:
        raise InputError(f"{path}: is {_KINDS.get(kind, 'something else')}, and not a file")


def list_files(folder: Path) -> list[Path]:
    """Return all files of a folder, in order, having made sure that it holds nothing else: a library may open any of them.

    Raises:
        InputError: it holds something else; names it.
    """
    found = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    for path in found:
        check_file(path)
    return found


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file, without the byte order mark that some editors put first; `.gz` is decompressed.

    Raises:
        InputError: the file is missing, unreadable, not a file or not UTF-8, or a compressed one expands without end.
    """
    check_file(path)
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                text = file.read(MOST_CHARACTERS)
                if file.read(1):
                    raise InputError(f"{path}: expands to more than {MOST_CHARACTERS:,} characters; give it as parts")
                return text
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a gzip file that can be read: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid JSON: {error}") from None


def read_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """Return a YAML 1.2 file's value and the 1-based line of every node in it.

    Raises:
        InputError: the file cannot be read, or is not valid YAML (names the line).
    """
    text = read_text(path)
    yaml = _yaml()
    try:
        node = yaml.compose(text)
        if (size := _size(node, {})) <= MOST_VALUES:
            return None if node is None else yaml.constructor.construct_document(node), dict(_lines(node, ()))
    except MaxDepthExceededError:
        raise InputError(f"{path}: {TOO_DEEP}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not usable YAML: an alias that contains itself") from None
    raise InputError(f"{path}: its aliases expand to {size:.1g} values; the limit is {MOST_VALUES:,}")


def parse_yaml_value(text: str) -> Any:
    """Return the YAML 1.2 value of a short text such as ``4e-4`` or ``[0, 1]``.

    Raises:
        InputError: the text is not valid YAML.
    """
    try:
        return _yaml().load(text)
    except MaxDepthExceededError:
        raise InputError(f"{shortly(text)} is not a usable YAML value: {TOO_DEEP}") from None
    except (YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"{text!r} is not a valid YAML value: {str(error).splitlines()[0]}") from None


def assign(tree: dict[str, Any], text: str, where: str, wrong: str) -> str:
    """Set what `key.sub=value` says inside nested mappings; return the key.

    Raises:
        InputError: the text is not written so (`wrong`), its value is not valid YAML, or `set_key` refuses the key, at `where`. It quotes
            no secret.
    """
    key, found, value = text.partition("=")
    try:
        if not found or not key:
            raise InputError(wrong)
        set_key(tree, key, parse_yaml_value(value), where)
    except InputError as error:
        # It may quote what was given.
        shown = without_secrets(text)
        raise (InputError(f"{shown}: {SECRET_HERE}") if shown != text else error) from None
    return key


def set_key(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key inside nested mappings, which are made where they are missing.

    Raises:
        InputError: a part of the key holds a value and no keys; the message begins with `where`.

    Example:
        >>> tree = {"train": {"batch_size": 8}}
        >>> set_key(tree, "train.lora.r", 4, "train.lora.r=4")
        >>> tree
        {'train': {'batch_size': 8, 'lora': {'r': 4}}}
    """
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(f"{where}: {part!r} in {key!r} is a value, and holds no keys")
    tree[last] = value


def find_infinite(value: Any, at: Location = ()) -> Iterator[Location]:
    """Yield the places of infinite numbers and of NaN in plain values; no JSON holds them, so that nothing can be identified by them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield at
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from find_infinite(inner, (*at, key))


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    return yaml


def _size(node: Node | None, known: dict[int, int]) -> int:
    """Return the number of values of a node. A node that aliases share is counted wherever it appears, and visited once."""
    if node is None:
        return 0
    if id(node) not in known:
        children = [each for pair in node.value for each in pair] if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1  # an alias that contains itself is refused elsewhere
        known[id(node)] += sum(_size(each, known) for each in children) if isinstance(node, MappingNode | SequenceNode) else 0
    return known[id(node)]


def _lines(node: Node | None, at: Location) -> Iterator[tuple[Location, int]]:
    if node is None:
        return
    yield at, node.start_mark.line + 1
    if isinstance(node, MappingNode):
        for key, child in node.value:
            yield from _lines(child, (*at, key.value))
            yield (*at, key.value), key.start_mark.line + 1
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            yield from _lines(child, (*at, index))


def read_jsonl(path: Path) -> list[tuple[int, Any]]:
    """Return the ``(1-based line, value)`` of each non-blank line of a JSON Lines file.

    Raises:
        InputError: the file cannot be read, holds no row, or lines are not JSON; names each.
    """
    rows, wrong = [], Complaints()
    # Not splitlines(): inside a JSON string, U+2028 and U+0085 are characters like any other.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        with wrong.noted():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno})") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not valid JSON: {error}") from None
    wrong.settle()
    if not rows:
        raise InputError(f"{path}: holds no rows; write one JSON object a line")
    return rows


def validate(model: type[Model], value: Any, where: str, lines: Mapping[Location, int | str] | None = None) -> Model:
    """Return ``value`` as a pydantic model, or say which field on which line is wrong.

    Args:
        model: the pydantic model.
        value: what was read.
        where: the file (or ``file:line``) that it was read from.
        lines: line of each node, from `read_yaml`; a text where the value is not from the file.

    Raises:
        InputError: one line for each wrong field: where, which field, what it got, what it may be.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        wrong = []
        for at, message in complaints(model, value, error.errors()):
            field = f"{'.'.join(map(str, at))}: " if at else ""
            wrong.append(f"{place_of(at, where, lines or {})}: {field}{message}")
        raise InputError("\n".join(wrong)) from None


def place_of(at: Location, where: str, lines: Mapping[Location, int | str]) -> str:
    """Return where a value came from: `file:line` of the nearest node that has a line, or its other source; see `validate`."""
    while at and at not in lines:
        at = at[:-1]
    line = lines.get(at)
    return line if isinstance(line, str) else f"{where}:{line}" if line else where


def short_names(folders: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """Return names for folders: each one's own, with as many of the folders around it as it takes to discriminate it from the others.

    Args:
        folders: may hold one several times.
        taken: names of something else.

    Example:
        >>> short_names([Path("/a/one/final"), Path("/a/two/final"), Path("/a/pirate")])
        ['one/final', 'two/final', 'pirate']
    """
    parts = [folder.resolve().parts for folder in folders]

    def name(mine: tuple[str, ...]) -> str:
        others = [other for other in parts if other != mine]
        for count in range(1, len(mine)):
            found = "/".join(mine[-count:])
            if found not in taken and all(other[-count:] != mine[-count:] for other in others):
                return found
        return "/".join(mine[1:])

    return [name(mine) for mine in parts]


def digest(value: Any, length: int = 16) -> str:
    """Return a hex digest of a JSON-able value that does not depend on key order.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def sha256(path: Path) -> str:
    """Return a file's SHA-256.

    Raises:
        InputError: the file cannot be read.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None

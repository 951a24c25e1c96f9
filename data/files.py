"""Read YAML and JSON Lines so that every complaint names a file and a line."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from wellworn.data.errors import Complaints, InputError

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]
# What a few lines of aliases can stand for has no end.
MOST_VALUES = 1_000_000


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file, without the byte order mark that some editors put first.

    Raises:
        InputError: the file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """Return a YAML 1.2 file's value and the 1-based line of every node in it.

    Raises:
        InputError: the file cannot be read, or is not valid YAML (names the line).
    """
    text = read_text(path)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        if (size := _size(node, {})) <= MOST_VALUES:
            return YAML(typ="safe", pure=True).load(text), dict(_lines(node, ()))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not usable YAML: nested too deeply, or an alias that holds itself") from None
    raise InputError(f"{path}: its aliases stand for {size:.1g} values, {MOST_VALUES:,} at most")


def parse_yaml_value(text: str) -> Any:
    """Return the YAML 1.2 value of a short text such as ``4e-4`` or ``[0, 1]``.

    Raises:
        InputError: the text is not valid YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"{text!r} is not a valid YAML value: {str(error).splitlines()[0]}") from None


def _size(node: Node | None, known: dict[int, int]) -> int:
    """Return how many values a node stands for; each node that aliases share is counted wherever it stands, and looked at once."""
    if node is None:
        return 0
    if id(node) not in known:
        children = [each for pair in node.value for each in pair] if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1  # an alias that holds itself is refused elsewhere
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


def validated(model: type[Model], value: Any, where: str, lines: Mapping[Location, int] | None = None) -> Model:
    """Return ``value`` as a pydantic model, or say which field of which line is wrong.

    Args:
        model: the pydantic model.
        value: what was read.
        where: the file (or ``file:line``) that it was read from.
        lines: line of each node, from `read_yaml`.

    Raises:
        InputError: one line for each wrong field: where, which field, what it got, what it may be.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        complaints = []
        for item in error.errors():
            at = tuple(item["loc"])
            line = _nearest_line(lines or {}, at)
            field = ".".join(str(part) for part in at) or model.__name__
            got = "" if item["type"] in ("missing", "extra_forbidden") else f", got {_short(item['input'])}"
            hint = did_you_mean(str(at[-1]), _keys_at(model, at[:-1])) if item["type"] == "extra_forbidden" else ""
            message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            complaints.append(f"{where}{f':{line}' if line else ''}: {field}: {message}{got}{hint}")
        raise InputError("\n".join(complaints)) from None


def _keys_at(model: type[BaseModel], at: Location) -> set[str]:
    """Return the keys that may stand at a place inside a model, whatever models are nested there."""
    models = [model]
    for part in at:
        nested = [found for owner in models if part in owner.model_fields for found in _models_in(owner.model_fields[str(part)].annotation)]
        models = nested or models
    return {key for found in models for key in found.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return a hint that names the nearest allowed word, or all of them where none is near."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(got, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it may be one of: {', '.join(allowed)}"


def _nearest_line(lines: Mapping[Location, int], at: Location) -> int | None:
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None

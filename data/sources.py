"""Sources of third-party data: rows of a file, of a saved data set or of one on the hub, each with the place that a complaint names."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wellworn.data.errors import InputError
from wellworn.data.files import read_jsonl, read_text
from wellworn.data.wording import did_you_mean

# The place of a row, and the row.
Row = tuple[str, Mapping[str, Any]]
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
# What `save_to_disk` of the library datasets writes next to the rows: of one data set, and of several splits.
_ONE, _SEVERAL = "state.json", "dataset_dict.json"


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file holds as a whole; None where the file holds rows.

    Raises:
        InputError: it cannot be read, or is not JSON (names the line).
    """
    if _kind(path) != ".json" or not path.is_file():
        return None
    value = _json(path)
    return value if isinstance(value, dict) else None


def is_data_set(path: Path) -> bool:
    """Whether a folder is a saved data set."""
    return any((path / name).is_file() for name in (_ONE, _SEVERAL))


def read_rows(source: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Return the rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, of a saved data set, or of one on the hub.

    Args:
        source: a file, which may be compressed (`.jsonl.gz`); a folder that `save_to_disk` wrote; or the id of a data set:
            `owner/name`, or `owner/name@revision`.
        split: of a data set; `train` unless given.
        config: of a data set on the hub that has several.

    Raises:
        InputError: there is no such file or data set, it cannot be read, or a row is not an object; names file and line.
    """
    path = Path(source)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?", source) and _kind(path) not in ROW_FILES and not path.exists():
        return list(_hub(source, split or "train", config))
    if not path.is_file() and not is_data_set(path):
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if config:
        raise InputError(f"{path}: --config chooses among what a data set on the hub has, and this is a {_what(path)}")
    if split and not (path / _SEVERAL).is_file():
        raise InputError(f"{path}: --split chooses among the splits of a data set, and this is a {_what(path)}")
    found = [(where, _mapping(where, row)) for where, row in _rows(path, split)]
    if not found:
        raise InputError(f"{path}: holds no rows")
    return found


def _what(path: Path) -> str:
    return "saved data set without splits" if (path / _ONE).is_file() else "saved data set" if path.is_dir() else "file"


def _kind(path: Path) -> str:
    """Return the ending that says what a file holds, whether it is compressed or not."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _rows(path: Path, split: str | None) -> Iterable[tuple[str, Any]]:
    if path.is_dir():
        return _saved(path, split)
    match _kind(path):
        case ".jsonl":
            return [(f"{path}:{line}", value) for line, value in read_jsonl(path)]
        case ".json" | ".txt":  # constitutions are called .txt
            value = _json(path)
            return [(f"{path}: row {i}", row) for i, row in enumerate(value if isinstance(value, list) else [value], start=1)]
        case ".csv":
            return _csv(path)
        case ".parquet":
            return _parquet(path)
    raise InputError(f"{path}: cannot tell what it holds by its name; it may be one of {', '.join(ROW_FILES)}")


def _mapping(where: str, row: object) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is an object with named fields, got {type(row).__name__}")
    return row


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        hint = "; a file of one object a line is called .jsonl" if error.msg == "Extra data" else ""
        hint = "; a .txt file is read as JSON, as constitutions are" if _kind(path) == ".txt" else hint
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # The limit is for one field.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise InputError(f"{path}:1: two columns have one name: {', '.join(names)}")
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(names):
                    raise InputError(f"{path}:{line}: {len(row)} fields, and the header names {len(names)}")
                # An empty cell holds nothing.
                if any(row):
                    yield f"{path}:{line}", {name: cell or None for name, cell in zip(names, row, strict=True)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        # Damage that a reader does not notice would end the process later.
        table.validate(full=True)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {_first_line(error)}") from None
    yield from ((f"{path}: row {i}", row) for i, row in enumerate(rows, start=1))


def _saved(path: Path, split: str | None) -> list[Row]:
    """Return the rows of a folder that `save_to_disk` wrote; of several splits, those of one."""
    if (path / _SEVERAL).is_file():
        names = _splits(path / _SEVERAL)
        # A single split needs no name.
        wanted = split or (names[0] if len(names) == 1 else "train")
        if wanted not in names:
            raise InputError(f"{path}: has no split {wanted!r}; choose with --split{did_you_mean(wanted, names)}")
        path = path / wanted
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(path)).with_format(None)
        found.data.validate(full=True)
        rows = found.to_list()
    # A damaged folder may fail in any way at all.
    except Exception as error:
        raise InputError(f"{path}: not a saved data set that can be read: {_first_line(error)}") from None
    return [(f"{path}: row {i}", row) for i, row in enumerate(rows, start=1)]


def _splits(path: Path) -> list[str]:
    value = _json(path)
    names = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) for name in names):
        raise InputError(f"{path}: splits: must be a list of the names of splits, got {names!r}")
    return names


def _hub(name: str, split: str, config: str | None) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = f"{name}[{split}]"
    name, _, revision = name.partition("@")
    try:
        rows = load_dataset(name, config, split=split, revision=revision or None)  # its rows are copied; no code of it runs
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where}: neither a file ({', '.join(ROW_FILES)}) nor a data set that could be had from the hub: {_first_line(error)}"
        ) from None
    yield from ((f"{where}: row {i}", row) for i, row in enumerate(rows, start=1))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error).strip() else type(error).__name__

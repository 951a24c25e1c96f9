"""Sources of third-party data: rows of a file or of a data set on the hub, each with the place that a complaint names."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wellworn.data.errors import InputError
from wellworn.data.files import read_jsonl, read_text

# The place of a row, and the row.
Row = tuple[str, Mapping[str, Any]]
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file holds as a whole; None where the file holds rows.

    Raises:
        InputError: it cannot be read, or is not JSON (names the line).
    """
    if path.suffix != ".json":
        return None
    value = _json(path)
    return value if isinstance(value, dict) else None


def read_rows(source: str, split: str | None = None, config: str | None = None) -> list[Row]:
    """Return the rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, or of a data set on the hub.

    Args:
        source: a file, or the id of a data set, such as `owner/name`.
        split: of a data set on the hub; `train` unless given.
        config: of a data set on the hub that has several.

    Raises:
        InputError: there is no such file or data set, it cannot be read, or a row is not an object; names file and line.
    """
    path = Path(source)
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) and path.suffix not in ROW_FILES and not path.exists():
        return list(_hub(source, split or "train", config))
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if split or config:
        raise InputError(f"{path}: --split and --config choose among what a data set on the hub has, and this is a file")
    if path.suffix == ".jsonl":
        rows: Iterable[tuple[str, Any]] = [(f"{path}:{line}", value) for line, value in read_jsonl(path)]
    elif path.suffix == ".json":
        value = _json(path)
        rows = [(f"{path}: row {i}", row) for i, row in enumerate(value if isinstance(value, list) else [value], start=1)]
    elif path.suffix == ".csv":
        rows = _csv(path)
    elif path.suffix == ".parquet":
        rows = _parquet(path)
    else:
        raise InputError(f"{path}: cannot tell what it holds by its name; it may be one of {', '.join(ROW_FILES)}")
    found = [(where, _mapping(where, row)) for where, row in rows]
    if not found:
        raise InputError(f"{path}: holds no rows")
    return found


def _mapping(where: str, row: object) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is an object with named fields, got {type(row).__name__}")
    return row


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        hint = "; a file of one object a line is called .jsonl" if error.msg == "Extra data" else ""
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
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    yield from ((f"{path}: row {i}", row) for i, row in enumerate(rows, start=1))


def _hub(name: str, split: str, config: str | None) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = f"{name}[{split}]"
    try:
        rows = load_dataset(name, config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{where}: neither a file ({', '.join(ROW_FILES)}) nor a data set that could be had from the hub: {said}"
        ) from None
    yield from ((f"{where}: row {i}", row) for i, row in enumerate(rows, start=1))

"""Rows of files are read as they were written, with their places; what cannot be read is named by file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wellworn.data.errors import InputError
from wellworn.data.sources import read_document, read_rows


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        read_rows(str(path))
    return str(raised.value)


def write_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROWS: list[dict[str, Any]] = [{"q": "Why?", "a": 'Since "so", they say,\nit is.'}, {"q": "How\u2028far?", "a": "Twelve miles"}]


def test_four_kinds_of_file_hold_the_same_rows(tmp_path: Path) -> None:
    files = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "rows.json": json.dumps(ROWS),
        "rows.csv": 'q,a\nWhy?,"Since ""so"", they say,\nit is."\nHow\u2028far?,Twelve miles\n',
    }
    for name, text in files.items():
        assert [dict(row) for _, row in read_rows(str(write_file(tmp_path / name, text)))] == ROWS
        write_file(tmp_path / f"{name}.gz", gzip.compress(text.encode(), mtime=0))
        assert read_rows(str(tmp_path / f"{name}.gz")) == [
            (where.replace(name, f"{name}.gz"), row) for where, row in read_rows(str(tmp_path / name))
        ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_rows(str(tmp_path / "rows.parquet")) == [(f"{tmp_path}/rows.parquet: row {i}", row) for i, row in enumerate(ROWS, start=1)]


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    rows = write_file(tmp_path / "rows.csv", 'q,a\n"one\ntwo",x\n\nthree,y\n')
    assert [where for where, _ in read_rows(str(rows))] == [f"{rows}:2", f"{rows}:5"]
    rows = write_file(tmp_path / "rows.jsonl", '{"q": 1}\n\n{"q": 2}')
    assert [where for where, _ in read_rows(str(rows))] == [f"{rows}:1", f"{rows}:3"]


@pytest.mark.parametrize("text", ["q,a\r\nWhy?,So\r\n", "\ufeffq,a\nWhy?,So", "q,a\rWhy?,So\r"])
def test_a_byte_order_mark_and_any_newline_are_no_part_of_a_table(tmp_path: Path, text: str) -> None:
    assert [row for _, row in read_rows(str(write_file(tmp_path / "rows.csv", text)))] == [{"q": "Why?", "a": "So"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "q,a\nWhy?\n", ":2: 1 fields, and the header names 2"),
        ("rows.csv", "q,q\n1,2\n", ":1: two columns have one name: q, q"),
        ("rows.csv", 'q\n"open', ":2: not valid CSV: unexpected end of data"),
        ("rows.csv", "q,a\n", ": holds no rows"),
        ("rows.csv", "q,a\n,,\n", ":2: 3 fields, and the header names 2"),
        ("rows.csv", b"q\n\xff\n", ": not UTF-8 text (byte 2); save it as UTF-8"),
        ("rows.json", "[1]", ": row 1: a row is an object with named fields, got int"),
        ("rows.json", '[\n{"q": }]', ":2: not valid JSON"),
        ("rows.json", '{"q": 1}\n{"q": 2}', ":2: not valid JSON: Extra data (column 1); a file of one object a line is called .jsonl"),
        ("rows.json", "[" * 100_000, ": not valid JSON"),
        ("rows.jsonl", '{"q": 1}\n[2]\n', ":2: a row is an object with named fields, got list"),
        ("rows.parquet", "PAR1", ": not a Parquet file that can be read"),
        ("rows.txt", "Be kind.", ":1: not valid JSON: Expecting value (column 1); a .txt file is read as JSON, as constitutions are"),
        ("rows.jsonl.gz", "q", ": not a gzip file that can be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"q": 1}', mtime=0)[:-9], ": not a gzip file that can be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"q": 1}\n{"q": }', mtime=0), ":2: not valid JSON"),
        ("rows.doc", "q", ": cannot tell what it holds by its name; it may be one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    assert f"{tmp_path}/{name}{said}" in complaint(write_file(tmp_path / name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.csv", "none.parquet", "none"):
        assert complaint(tmp_path / name) == f"{tmp_path}/{name}: there is no such file"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    assert complaint(tmp_path / "rows.csv") == f"{tmp_path}/rows.csv: is a folder"


def test_a_field_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    assert read_rows(str(write_file(tmp_path / "rows.csv", f"q\n{long}\n")))[0][1]["q"] == long
    assert read_rows(str(write_file(tmp_path / "rows.jsonl", json.dumps({"q": long}))))[0][1]["q"] == long


def test_splits_and_configs_are_of_the_hub(tmp_path: Path) -> None:
    rows = write_file(tmp_path / "rows.jsonl", '{"q": 1}')
    with pytest.raises(InputError, match="this is a file"):
        read_rows(str(rows), split="test")


def test_a_data_set_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/has-this\[train\]: neither a file .* nor a data set that could be had from the hub"):
        read_rows("nobody/has-this")
    with pytest.raises(InputError, match=r"no/such/id: there is no such file"):
        read_rows("no/such/id")


def test_an_empty_cell_holds_nothing(tmp_path: Path) -> None:
    rows = write_file(tmp_path / "rows.csv", "q,a\nWhy?,\n,\n")
    assert [row for _, row in read_rows(str(rows))] == [{"q": "Why?", "a": None}]


def test_a_data_set_of_the_hub_comes_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, _config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"q": name, "a": split, "at": revision}])

    monkeypatch.setattr("datasets.load_dataset", load)
    [(where, row)] = read_rows("somebody/rows", split="test")
    assert (where, row) == ("somebody/rows[test]: row 1", {"q": "somebody/rows", "a": "test", "at": None})
    [(where, row)] = read_rows("somebody/rows@0123abc")
    assert (where, row) == ("somebody/rows@0123abc[train]: row 1", {"q": "somebody/rows", "a": "train", "at": "0123abc"})


def test_a_document_is_one_object(tmp_path: Path) -> None:
    assert read_document(write_file(tmp_path / "a.json", '{"instruction": []}')) == {"instruction": []}
    assert read_document(write_file(tmp_path / "b.json", "[1]")) is None
    assert read_document(tmp_path / "rows.jsonl") is None


def test_saved_data_sets_come_as_rows(tmp_path: Path) -> None:
    one, other = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[1:])
    one.with_format("numpy").save_to_disk(tmp_path / "one")
    assert read_rows(str(tmp_path / "one")) == [(f"{tmp_path}/one: row {i}", row) for i, row in enumerate(ROWS, start=1)]
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(tmp_path / "both")
    assert [row for _, row in read_rows(str(tmp_path / "both"))] == ROWS
    assert read_rows(str(tmp_path / "both"), split="test") == [(f"{tmp_path}/both/test: row 1", ROWS[1])]
    datasets.DatasetDict({"all": one.select([1])}).save_to_disk(tmp_path / "single")
    assert read_rows(str(tmp_path / "single")) == [(f"{tmp_path}/single/all: row 1", ROWS[1])]


def test_saved_data_sets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match=r"one: --split chooses among .*, and this is a saved data set without splits"):
        read_rows(str(tmp_path / "one"), split="train")
    with pytest.raises(InputError, match="one: --config chooses"):
        read_rows(str(tmp_path / "one"), config="x")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"ARROW")
    assert "one: not a saved data set that can be read: " in complaint(tmp_path / "one")
    datasets.DatasetDict({"test": one, "tests": one}).save_to_disk(tmp_path / "both")
    assert complaint(tmp_path / "both").endswith("both: has no split 'train'; choose with --split; it may be one of: test, tests")
    write_file(tmp_path / "both" / "dataset_dict.json", '{"splits": ["../one"]}')
    assert "splits: must be a list of the names of splits, got ['../one']" in complaint(tmp_path / "both")

"""Reading YAML and JSON Lines: values come back whole, and every complaint says where and what."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from wellworn.data.errors import InputError
from wellworn.data.files import digest, list_files, parse_yaml_value, read_json, read_jsonl, read_text, read_yaml, sha256, validate
from wellworn.data.wording import did_you_mean


def json_values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )


JSON = json_values(st.text(max_size=12))
# JSON writes a character beyond U+FFFF as two escapes, which YAML does not join.
JSON_WITHOUT_PAIRS = json_values(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=12))
YAML_PIECES = [
    "a",
    "b: ",
    "- ",
    "\n",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "? ",
    "&x ",
    "*x",
    "!t ",
    "!!int ",
    "!!bool ",
    "'",
    '"',
    "|\n",
    "#",
    "---\n",
]


def write_file(folder: Path, text: str | bytes, name: str = "some.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


# Text


@pytest.mark.parametrize("read", [read_text, read_yaml, read_jsonl, sha256])
def test_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path / "absent.yaml")
    assert str(tmp_path / "absent.yaml") in str(raised.value)
    assert "no such file" in str(raised.value).lower()


@pytest.mark.parametrize("read", [read_text, read_yaml, read_jsonl, sha256])
def test_folder_in_place_of_a_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError, match="is a folder, and not a file") as raised:
        read(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("read", [read_text, read_yaml, read_jsonl])
def test_text_that_is_not_utf8_is_refused_with_the_remedy(tmp_path: Path, read: Any) -> None:
    path = write_file(tmp_path, "a: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError) as raised:
        read(path)
    assert str(raised.value) == f"{path}: not UTF-8 text (byte 6); save it as UTF-8"


def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_jsonl(write_file(tmp_path, b'\xef\xbb\xbf{"a": 1}\n')) == [(1, {"a": 1})]
    assert read_yaml(write_file(tmp_path, b"\xef\xbb\xbfa: 1\n"))[0] == {"a": 1}


# YAML


def test_yaml_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "rate: 4e-4\nlanguage: no\nanswer: yes\nswitch: off\nflag: true\nbig: 1e5\nplain: 12\nnothing: null\n"
    value, _ = read_yaml(write_file(tmp_path, text))
    assert value == {
        "rate": 0.0004,
        "language": "no",
        "answer": "yes",
        "switch": "off",
        "flag": True,
        "big": 100000.0,
        "plain": 12,
        "nothing": None,
    }
    assert isinstance(value["rate"], float)
    assert isinstance(value["big"], float)


def test_yaml_lines_are_those_of_keys_and_items(tmp_path: Path) -> None:
    _, lines = read_yaml(
        write_file(tmp_path, "# a comment\nname: x\n\npairs:\n  - good: a\n    bad: >-\n      long\n      text\n  - good: b\n")
    )
    assert lines[("name",)] == 2
    assert lines[("pairs",)] == 4
    assert lines[("pairs", 0, "good")] == 5
    assert lines[("pairs", 0, "bad")] == 6
    assert lines[("pairs", 1)] == 9


def test_empty_yaml_is_none_and_has_no_lines(tmp_path: Path) -> None:
    assert read_yaml(write_file(tmp_path, "# nothing here\n")) == (None, {})


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: 1\nb: 'unfinished\n", 3, "unexpected end of stream"),
        ("a: 1\nb: 2\na: 3\n", 3, 'duplicate key "a"'),
        ("a:\n  b: 1\n  b: 2\n", 3, 'duplicate key "b"'),
        ("a: 1\nb: *nowhere\n", 2, "undefined alias 'nowhere'"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb: !!python/object:os.system ls\n", 2, "python/object"),
    ],
)
def test_malformed_yaml_names_the_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    path = write_file(tmp_path, text)
    with pytest.raises(InputError) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}:{line}: not valid YAML: ")
    assert what in str(raised.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("day: 2020-99-01\n", "month"),
        ("n: !!int many\n", "many"),
        ("? [1, 2]\n: 3\n", "unhashable"),
        ("a: \x00\n", "#x0000"),
        ("flag: !!bool maybe\n", "maybe"),
        ("a: &a [*a]\n", "alias that contains itself"),
        ("[" * 100_000, "more than 40 lists and mappings lie inside each other"),
        ("{a: " * 50, "more than 40 lists and mappings lie inside each other"),
    ],
)
def test_yaml_that_cannot_be_a_value_names_file_and_cause(tmp_path: Path, text: str, what: str) -> None:
    path = write_file(tmp_path, text)
    with pytest.raises(InputError) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value)
    assert what in str(raised.value)


@given(st.lists(st.sampled_from(YAML_PIECES), max_size=14).map("".join) | st.text(max_size=40))
@example("!!bool x")
@example("!!float :")
def test_any_text_is_a_value_or_an_input_error_that_names_the_file(folder: Path, text: str) -> None:
    path = write_file(folder, text)
    refused = ""
    try:
        value, lines = read_yaml(path)
    except InputError as error:
        refused = str(error)
    if refused:
        assert str(path) in refused
    else:
        assert all(1 <= line <= len(text.splitlines()) + 1 for line in lines.values())
        assert value is None or lines


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), JSON_WITHOUT_PAIRS, min_size=1, max_size=5),
    st.lists(st.integers(0, 3), min_size=5),
)
def test_yaml_reads_json_back_with_the_line_of_each_key(folder: Path, value: dict[str, Any], gaps: list[int]) -> None:
    expected, rows = {}, []
    for (key, inner), gap in zip(value.items(), gaps, strict=False):
        rows += ["# a comment"] * gap + [f'"{key}": {json.dumps(inner)}']
        expected[(key,)] = len(rows)
    got, lines = read_yaml(write_file(folder, "\n".join(rows)))
    assert got == value
    assert {at: line for at, line in lines.items() if len(at) == 1} == expected


@pytest.mark.parametrize(
    ("text", "value"), [("4e-4", 0.0004), ("1e5", 100000.0), ("no", "no"), ("false", False), ("[0, 1]", [0, 1]), ("~", None), ("", None)]
)
def test_short_yaml_values(text: str, value: Any) -> None:
    got = parse_yaml_value(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["[0", "*x", "a: b: c", "!!int many"])
def test_a_short_text_that_is_no_yaml_is_quoted(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a valid YAML value: .") as raised:
        parse_yaml_value(text)
    assert repr(text) in str(raised.value)


def test_a_text_of_brackets_is_cut() -> None:
    assert parse_yaml_value("[" * 40 + "]" * 40)
    with pytest.raises(InputError, match=r"^'\[{76}\.\.\. is not a usable YAML value: more than 40 lists and mappings lie "):
        parse_yaml_value("[" * 100_000)


# JSON Lines


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    assert read_jsonl(write_file(tmp_path, '\n{"a": 1}\n\n  \n{"a": 2}\r\n')) == [(2, {"a": 1}), (5, {"a": 2})]


@pytest.mark.parametrize("text", ["", "\n", " \n\t\n"])
def test_file_without_rows_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = write_file(tmp_path, text, "rows.jsonl")
    with pytest.raises(InputError) as raised:
        read_jsonl(path)
    assert str(raised.value) == f"{path}: holds no rows; write one JSON object a line"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"a" 1}', "Expecting ':' delimiter (column 6)"),
        ('{"a": 1', "Expecting ',' delimiter"),
        ("{'a': 1}", "property name enclosed in double quotes"),
        ('{"a": 1} {"b": 2}', "Extra data (column 10)"),
        ("[" * 100_000, "recursion"),
        ("1" * 5000, "digits"),
    ],
)
def test_malformed_json_names_the_line_and_what_was_expected(tmp_path: Path, row: str, what: str) -> None:
    path = write_file(tmp_path, f'{{"fine": 1}}\n\n{row}\n', "rows.jsonl")
    with pytest.raises(InputError) as raised:
        read_jsonl(path)
    assert str(raised.value).startswith(f"{path}:3: not valid JSON: ")
    assert what in str(raised.value)


@given(st.lists(st.tuples(st.integers(0, 2), JSON), min_size=1, max_size=5), st.booleans())
@example([(0, "a\u2028b\u0085c")], False)
def test_jsonl_reads_back_with_line_numbers(folder: Path, rows: list[tuple[int, Any]], escape: bool) -> None:
    lines, expected = [], []
    for gap, value in rows:
        lines += [""] * gap + [json.dumps(value, ensure_ascii=escape)]
        expected.append((len(lines), value))
    assert read_jsonl(write_file(folder, "\n".join(lines), "rows.jsonl")) == expected


# Validation


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    positive: str
    negative: str = ""


class Tagged(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["tagged"] = "tagged"
    strength: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    rate: float = Field(default=0.1, gt=0)
    pairs: tuple[Inner, ...] = ()
    maybe: Inner | Tagged | None = None


def complaint(value: Any, lines: dict[tuple[str | int, ...], int] | None = None) -> str:
    with pytest.raises(InputError) as raised:
        validate(Outer, value, "some.yaml", lines)
    return str(raised.value)


def test_valid_value_becomes_the_model() -> None:
    assert validate(Outer, {"name": "x", "pairs": [{"positive": "p"}]}, "some.yaml") == Outer(name="x", pairs=(Inner(positive="p"),))


def test_wrong_type_names_place_field_what_was_got_and_what_it_may_be() -> None:
    assert complaint({"name": 3}, {("name",): 7}) == "some.yaml:7: name: must be text, got 3"
    assert complaint({"name": "x", "rate": -1}) == "some.yaml: rate: must be more than 0, got -1"


def test_aliases_that_stand_for_endless_values_are_refused(tmp_path: Path) -> None:
    lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30)]
    path = tmp_path / "a.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.yaml: its aliases expand to .* values; the limit is 1,000,000"):
        read_yaml(path)
    path.write_text("\n".join(lines[:3]), encoding="utf-8")
    assert len(read_yaml(path)[0]["l2"]) == 9


def test_missing_field_is_named_with_the_line_of_what_lacks_it() -> None:
    lines: dict[tuple[str | int, ...], int] = {("pairs",): 2, ("pairs", 0): 3}
    assert complaint({"name": "x", "pairs": [{}]}, lines) == "some.yaml:3: pairs.0.positive: this key is required and missing"


def test_unknown_key_gets_a_did_you_mean() -> None:
    assert complaint({"name": "x", "rte": 1}, {("rte",): 2}) == "some.yaml:2: rte: unknown key; did you mean 'rate'?"


def test_unknown_key_that_resembles_none_gets_the_list() -> None:
    assert complaint({"name": "x", "zzz": 1}) == "some.yaml: zzz: unknown key; it may be one of: maybe, name, pairs, rate"


def test_unknown_key_inside_a_nested_model_is_compared_with_that_models_keys() -> None:
    assert "pairs.0.postive: unknown key; did you mean 'positive'?" in complaint(
        {"name": "x", "pairs": [{"positive": "p", "postive": "p"}]}
    )
    assert "strenght: unknown key; did you mean 'strength'?" in complaint({"name": "x", "maybe": {"strenght": 2.0}})


def test_every_wrong_field_gets_a_line_of_its_own() -> None:
    assert complaint({"name": 1, "rate": "fast", "nme": 2}).count("\n") == 2


def test_long_input_is_cut_in_the_message() -> None:
    message = complaint({"name": ["x" * 500]})
    assert message.endswith("...")
    assert len(message) < 150


def test_did_you_mean() -> None:
    assert did_you_mean("pirat", ["poetic", "pirate"]) == "; did you mean 'pirate'?"
    assert did_you_mean("zzz", ["poetic", "pirate"]) == "; it may be one of: pirate, poetic"


# Digests


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.randoms())
def test_digest_does_not_depend_on_key_order(value: dict[str, Any], random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    assert digest({key: value[key] for key in keys}) == digest(value)


def test_digest_tells_values_apart_and_is_stable() -> None:
    values = [{}, [], "", None, 0, "0", False, [1, 2], [2, 1], {"a": 1}, {"a": "1"}, "é", "e"]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"b": [1, 2.5], "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2.5]}'.encode()).hexdigest()[:16]
    assert len(digest("x", length=40)) == 40


def test_digest_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"share": float("nan")})


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    assert sha256(write_file(tmp_path, "abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_not_a_file_is_named_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for read in (read_text, read_json, read_jsonl, read_yaml, sha256):
        with pytest.raises(InputError, match="pipe: is a named pipe, and not a file"):
            read(tmp_path / "pipe")
        with pytest.raises(InputError, match=r"zero.json: is a device, and not a file"):
            read(tmp_path / "zero.json")
        with pytest.raises(InputError, match="is a folder, and not a file"):
            read(tmp_path)
    with pytest.raises(InputError, match="pipe: is a named pipe"):
        list_files(tmp_path)


def test_a_compressed_file_that_expands_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wellworn.data.files.MOST_CHARACTERS", 1000)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"1" * 1000))
    assert len(read_text(path)) == 1000
    path.write_bytes(gzip.compress(b"1" * 1001))
    with pytest.raises(InputError, match="expands to more than 1,000 characters"):
        read_text(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' * 100_000])
def test_json_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "facts.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"facts.json: not valid JSON"):
        read_json(tmp_path / "facts.json")

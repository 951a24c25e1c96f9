"""Whatever a file holds, importing it gives correct data that survives writing and reading, or one clear complaint; never a crash."""

import csv
import io
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wellworn.data.catalog import load_questions, load_roles, load_trait
from wellworn.data.errors import InputError
from wellworn.data.import_options import Options
from wellworn.data.importers import Imported, import_all
from wellworn.data.schema import Trait
from wellworn.data.writers import export_files, question_files, role_files, trait_files, write_folder

# Enough to notice what breaks; FUZZ_CASES=2000 in the environment looks further.
CASES = int(os.environ.get("FUZZ_CASES", "300"))
fuzzed = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# Letters that files, templates, YAML and terminals trip over, in addition to any others.
awkward = st.sampled_from(
    [
        "{question}",
        "{answer}",
        "{{x}}",
        "%s",
        "\ufeff",
        "\u2028",
        "\x85",
        "\x00",
        "\x1b[31m",
        "\r\n",
        "\r",
        "\t",
        "\ud800",
        "&a *a",
        "!!python",
        ": ",
        "- ",
        "# ",
        "'",
        '"',
        "\U0001f3f4",
        "~",
        "null",
        "yes",
        "1e3",
    ]
)
any_text = st.lists(awkward | st.text(max_size=6), max_size=4).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=6)

texts = any_text.filter(lambda text: bool(text.strip()) and not any("\ud800" <= c <= "\udfff" for c in text))
numbered = st.integers(0, 999).map(lambda i: f"Way {i} of being so")
prompts = numbered | texts
splits = st.sampled_from(["train", "extract", "evaluate"])


def distinct(strategy: st.SearchStrategy[Any], least: int, most: int) -> st.SearchStrategy[list[Any]]:
    """Lists in which no two are alike but for case and spaces."""
    return st.lists(strategy, min_size=least, max_size=most, unique_by=lambda each: " ".join(str(each).lower().split()))


def exchange(question: str, answer: str | list[Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    answers = texts | texts.map(lambda text: [{"type": "text", "text": text}])
    return [{"messages": exchange(question, draw(answers))} for question in draw(distinct(prompts, 1, 5))]


@st.composite
def preferences(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for question in draw(distinct(prompts.map(str.strip), 4, 7)):
        chosen, rejected = draw(texts), draw(texts)
        form = draw(st.integers(0, 2))
        if form == 0:
            rows.append({"prompt": question, "chosen": chosen, "rejected": rejected})
        elif form == 1:
            rows.append({"chosen": exchange(question, chosen), "rejected": exchange(question, rejected)})
        else:
            said = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
            rows.append({"prompt": [{"role": "user", "content": question}], "chosen": next(said), "rejected": next(said)})
    return rows


@st.composite
def own_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    asked, kind = draw(distinct(prompts, 4, 7)), draw(st.sampled_from(["open", "shown", "paired", "split"]))
    rows: list[dict[str, Any]] = [{"question": question} for question in asked]
    for i, row in enumerate(rows):
        if kind != "open":
            row["positive"] = draw(texts)
        if kind in ("paired", "split"):
            row["negative"] = draw(texts)
        if kind == "split":
            row |= {"split": ["train", "evaluate", draw(splits)][min(i, 2)], "id": f"{i}{draw(st.text(max_size=2).map(repr))}"}
    return rows


trait_documents = st.fixed_dictionaries(
    {
        "instruction": distinct(prompts, 8, 12).map(
            lambda each: [{"pos": pos, "neg": neg} for pos, neg in zip(each[::2], each[1::2], strict=False)]
        )
    },
    optional={"questions": distinct(prompts, 0, 4), "eval_prompt": texts.map(lambda text: f"Is {{answer}} so? {text}")},
)
role_documents = st.fixed_dictionaries(
    {"instruction": distinct(prompts, 5, 7).map(lambda each: [{"pos": pos} for pos in each])},
    optional={"questions": distinct(prompts, 0, 4), "eval_prompt": texts.map(lambda text: f"Is {{answer}} so? {text}")},
)


@st.composite
def damaged_files(draw: st.DrawFn, sound: st.SearchStrategy[Any]) -> Any:
    """Something sound, or the same with one or two of its parts replaced, taken out or put in, at any depth."""
    value = draw(sound)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        value = _damage_value(draw, value)
    return value


def _damage_value(draw: st.DrawFn, value: Any) -> Any:
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw(st.integers(0, 9)) == 0:
        return draw(junk)
    key = draw(st.sampled_from(keys))
    changed = value.copy()
    what = draw(st.sampled_from(["deeper", "deeper", "deeper", "out", "twice", "more"]))
    if what == "deeper":
        changed[key] = _damage_value(draw, value[key])
    elif what == "out":
        del changed[key]
    elif isinstance(changed, dict):
        changed[draw(any_text)] = draw(junk)
    else:
        changed.insert(key, value[key] if what == "twice" else draw(junk))
    return changed


def json_bytes(value: Any, ascii_only: bool) -> bytes:
    # A lone surrogate has no bytes of its own; in a file it can appear only as an escape.
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", errors="surrogatepass")


def as_lines(rows: Any, ascii_only: bool, newline: str, mark: bool) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return (b"\xef\xbb\xbf" if mark else b"") + newline.encode().join(json_bytes(row, ascii_only) for row in rows)


newlines = st.sampled_from(["\n", "\r\n", "\n\n", " \n"])


def try_import(folder: Path, sources: Sequence[str], options: Options = Options()) -> Imported | None:  # noqa: B008
    """Import, or be told what is wrong and where."""
    try:
        return import_all(sources, "bold", options)
    except InputError as error:
        complaint = str(error)
    assert str(folder) in complaint or "--held-out" in complaint
    return None


def check_trait(folder: Path, trait: Trait) -> None:
    """A trait is the same after it was written and read, and what a format holds of it after it went out and came in again."""
    write_folder(folder / "made", trait_files(trait, "card\n"))
    assert load_trait(str(folder / "made")) == trait
    out = folder / "out"
    for form, has in (("persona-vectors", trait.contrast_pairs), ("preferences", trait.plain), ("messages", trait.split("train"))):
        if not has:
            with pytest.raises(InputError, match=f"--format {form}: holds"):
                export_files(trait, form, defaultdict(int))
            continue
        write_folder(out / form, export_files(trait, form, defaultdict(int)))
    rows = [(row.split, row.question, row.positive, row.negative) for split in ("train", "evaluate") for row in trait.split(split)]
    for form, plain in (("preferences", []), ("messages", [str(path) for path in out.glob("messages/*/plain.jsonl")])):
        name = "preferences.jsonl" if form == "preferences" else "positive.jsonl"
        train, test = ([str(path) for path in out.glob(f"{form}/{split}/{name}")] for split in ("train", "evaluate"))
        if train:
            again = import_all(train, "bold", Options(), plain, test).trait
            assert again is not None
            assert [(row.split, row.question, row.positive, row.negative) for row in again.examples] == rows
    if trait.contrast_pairs:
        document = import_all([str(out / "persona-vectors" / "extract" / "bold.json")], "bold", Options()).trait
        assert document is not None
        assert (document.contrast_pairs, document.rubric) == (trait.contrast_pairs, trait.rubric)
        assert [row.question for row in document.open] == [row.question for row in (*trait.open, *trait.examples) if row.split == "extract"]


def check(folder: Path, found: Imported | None) -> None:
    if found is None:
        return
    if found.trait:
        check_trait(folder, found.trait)
    elif found.roles:
        write_folder(folder / "roles", role_files(found.roles))
        assert load_roles([str(folder / "roles")]) == sorted(found.roles, key=lambda role: role.name)
        write_folder(folder / "out", export_files(found.roles[0], "assistant-axis", {}))
        again = import_all([str(folder / "out" / f"{found.roles[0].name}.json")], "bold", Options())
        assert again.roles == found.roles[:1]
    else:
        write_folder(folder / "questions", question_files(found.questions))
        assert tuple(load_questions(str(folder / "questions" / "questions.jsonl"))) == found.questions


def run(name: str, content: bytes, options: Options = Options()) -> None:  # noqa: B008
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        path = folder / name
        path.write_bytes(content)
        check(folder, try_import(folder, [str(path)], options))


@fuzzed
@given(document=damaged_files(trait_documents), ascii_only=st.booleans(), mark=st.booleans())
def test_trait_documents(document: Any, ascii_only: bool, mark: bool) -> None:
    run("bold.json", (b"\xef\xbb\xbf" if mark else b"") + json_bytes(document, ascii_only))


@fuzzed
@given(document=damaged_files(role_documents), ascii_only=st.booleans())
def test_role_documents(document: Any, ascii_only: bool) -> None:
    run("beekeeper.json", json_bytes(document, ascii_only))


@fuzzed
@given(rows=damaged_files(chats()), ascii_only=st.booleans(), newline=newlines, mark=st.booleans())
def test_chats(rows: Any, ascii_only: bool, newline: str, mark: bool) -> None:
    run("rows.jsonl", as_lines(rows, ascii_only, newline, mark))


@fuzzed
@given(rows=damaged_files(preferences()), ascii_only=st.booleans(), newline=newlines)
def test_preferences(rows: Any, ascii_only: bool, newline: str) -> None:
    run("rows.jsonl", as_lines(rows, ascii_only, newline, mark=False))


@fuzzed
@given(rows=damaged_files(own_rows()), ascii_only=st.booleans(), whole=st.booleans())
def test_rows_of_our_own_and_questions(rows: Any, ascii_only: bool, whole: bool) -> None:
    if whole:
        run("rows.json", json_bytes(rows, ascii_only))
    else:
        run("rows.jsonl", as_lines(rows, ascii_only, "\n", mark=False))


@fuzzed
@given(
    rows=distinct(prompts, 4, 7).flatmap(lambda asked: st.tuples(*(st.tuples(st.just(question), texts, texts) for question in asked))),
    damage=st.none() | st.binary(max_size=6),
    at=st.integers(0, 80),
)
def test_tables_with_mapped_columns(rows: Sequence[Sequence[str]], damage: bytes | None, at: int) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["prompt", "good", "bad"])
    writer.writerows(rows)
    content = out.getvalue().encode("utf-8", errors="surrogatepass")
    if damage is not None:
        content = content[:at] + damage + content[at:]
    run("rows.csv", content, Options({"question": "prompt", "positive": "good", "negative": "bad"}))


@fuzzed
@given(content=st.binary(max_size=60), name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.parquet"]))
def test_any_bytes(content: bytes, name: str) -> None:
    run(name, content)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_nesting_without_end(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"instruction": ' * depth, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json"):
        import_all([str(path)], "bold", Options())


def test_lines_of_ten_megabytes(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": long}]}) + "\n{", encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"rows.jsonl:2: not valid JSON"):
        import_all([str(path)], "bold", Options())
    path.write_text(path.read_text(encoding="utf-8")[:-1], encoding="utf-8")
    found = import_all([str(path)], "bold", Options()).trait
    assert found is not None
    assert found.examples[0].positive == long.strip()

"""Whatever a file holds, importing it gives correct data that survives writing and reading, or one clear complaint; never a crash.

The ordinary run tries a few cases of each format; `pytest -m slow tests/data/test_importers_fuzz.py` tries two thousand of each.
"""

import csv
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.fuzzing import (
    FORMS,
    Talk,
    any_form,
    as_lines,
    constitution,
    damage,
    damage_bytes,
    expected,
    fuzz,
    json_bytes,
    own_rows,
    role_document,
    row_file,
    talks,
    trait_document,
)
from wellworn.data.catalog import load_questions, load_roles, load_trait
from wellworn.data.errors import InputError
from wellworn.data.import_options import Options
from wellworn.data.importers import Imported, import_all
from wellworn.data.schema import Trait
from wellworn.data.writers import export_files, question_files, role_files, trait_files, write_folder

FEW, MANY = 10, 2000
sizes = pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


# Checks


def try_import(folder: Path, sources: Sequence[str], options: Options) -> Imported | None:
    """Import, or be told what is wrong and where."""
    try:
        return import_all(sources, "bold", options)
    except InputError as error:
        complaint = str(error)
    assert str(folder) in complaint or "--held-out" in complaint
    return None


def contents(trait: Trait) -> list[tuple[Any, ...]]:
    return [(row.split, row.asked, row.positive, row.negative) for split in ("train", "evaluate") for row in trait.split(split)]


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
    for form, plain in (("preferences", []), ("messages", [str(path) for path in out.glob("messages/*/plain.jsonl")])):
        name = "preferences.jsonl" if form == "preferences" else "positive.jsonl"
        train, test = ([str(path) for path in out.glob(f"{form}/{split}/{name}")] for split in ("train", "evaluate"))
        if train:
            again = import_all(train, "bold", Options(), plain, test).trait
            assert again is not None
            assert contents(again) == contents(trait)
            if form == "messages":
                assert [row.before for row in again.split("train")] == [row.before for row in trait.split("train")]
    if trait.contrast_pairs:
        document = import_all([str(out / "persona-vectors" / "extract" / "bold.json")], "bold", Options()).trait
        assert document is not None
        assert (document.contrast_pairs, document.rubric) == (trait.contrast_pairs, trait.rubric)
        asked = [row for row in (*trait.open, *trait.examples) if row.split == "extract" and not row.system and not row.before]
        assert [row.question for row in document.open] == [row.question for row in asked]


def check(folder: Path, found: Imported | None) -> None:
    if found is None:
        return
    assert all(key.isprintable() and count > 0 for key, count in found.left_out.items())
    if found.trait:
        check_trait(folder, found.trait)
    elif found.roles:
        write_folder(folder / "roles", role_files(found.roles))
        assert load_roles([str(folder / "roles")]) == sorted(found.roles, key=lambda role: role.name)
        write_folder(folder / "out", export_files(found.roles[0], "assistant-axis", defaultdict(int)))
        again = import_all([str(folder / "out" / f"{found.roles[0].name}.json")], "bold", Options())
        assert again.roles == found.roles[:1]
    else:
        write_folder(folder / "questions", question_files(found.questions))
        assert tuple(load_questions(str(folder / "questions" / "questions.jsonl"))) == found.questions


def run(file: tuple[str, bytes], columns: dict[str, str] | None = None) -> None:
    """Import a file, as a whole or with what is unusable left out."""
    name, content = file
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / name).write_bytes(content)
        options = Options(columns or {}, skip=len(content) % 2 == 0)
        check(folder, try_import(folder, [str(folder / name)], options))


# Tests


@sizes
@pytest.mark.parametrize("name", FORMS)
def test_rows_of_each_format_become_what_they_say(name: str, cases: int) -> None:
    form = FORMS[name]

    def draw(rng: Random) -> tuple[list[Talk], bytes]:
        asked = talks(rng, least=4, alone=not form.context)
        return asked, as_lines([form.write(talk) for talk in asked], rng)

    def import_sound(said: tuple[list[Talk], bytes]) -> None:
        asked, content = said
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "rows.jsonl"
            path.write_bytes(content)
            trait = import_all([str(path)], "bold", Options()).trait
            assert trait is not None
            before = [tuple((turn.question, turn.answer, turn.train) for turn in row.before) for row in trait.examples]
            rows = [
                (row.system, turns, row.question, row.positive, row.negative) for row, turns in zip(trait.examples, before, strict=True)
            ]
            assert rows == [expected(form, talk) for talk in asked]
            check_trait(Path(work), trait)

    fuzz(cases // 2, draw, import_sound)


@sizes
@pytest.mark.parametrize("name", FORMS)
def test_damaged_rows_of_each_format(name: str, cases: int) -> None:
    write = FORMS[name].write
    fuzz(cases // 2, lambda rng: row_file(rng, damage(rng, [write(talk) for talk in talks(rng, least=2)])), run)


@sizes
def test_rows_of_our_own_and_questions(cases: int) -> None:
    fuzz(cases, lambda rng: row_file(rng, damage(rng, own_rows(rng))), run)


@sizes
@pytest.mark.parametrize(
    ("name", "document"), [("bold.json", trait_document), ("beekeeper.json", role_document), ("bees.txt", constitution)]
)
def test_documents(name: str, document: Callable[[Random], Any], cases: int) -> None:
    fuzz(cases, lambda rng: (name, rng.choice([b"", b"\xef\xbb\xbf"]) + json_bytes(damage(rng, document(rng)), rng.random() < 0.5)), run)


@sizes
def test_tables_with_mapped_columns(cases: int) -> None:
    def draw(rng: Random) -> tuple[str, bytes]:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["prompt", "good", "bad", "under"])
        writer.writerows([talk.question, talk.answer, talk.plain, talk.system] for talk in talks(rng, least=4))
        return "rows.csv", damage_bytes(rng, out.getvalue().encode("utf-8", errors="surrogatepass"))

    columns = {"question": "prompt", "positive": "good", "negative": "bad", "system": "under"}
    fuzz(cases, draw, lambda file: run(file, columns))


@sizes
def test_parquet(cases: int) -> None:
    def draw(rng: Random) -> tuple[str, bytes]:
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(any_form(rng)), out)
        return "rows.parquet", damage_bytes(rng, out.getvalue())

    fuzz(cases, draw, run)


@sizes
def test_saved_data_sets(cases: int) -> None:
    def import_saved(number: int) -> None:
        rng = Random(number)
        with tempfile.TemporaryDirectory() as work:
            saved = datasets.Dataset.from_list(any_form(rng))
            datasets.DatasetDict({"train": saved}).save_to_disk(f"{work}/rows")
            [path] = Path(work).rglob(rng.choice(["*.arrow", "state.json", "dataset_info.json", "dataset_dict.json"]))
            path.write_bytes(damage_bytes(rng, path.read_bytes()))
            check(Path(work), try_import(Path(work), [f"{work}/rows"], Options()))

    fuzz(cases, lambda rng: rng.randint(0, 2**32), import_saved)


@sizes
def test_any_bytes(cases: int) -> None:
    names = ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.txt", "a.jsonl.gz"]
    fuzz(cases, lambda rng: (rng.choice(names), rng.randbytes(rng.randint(0, 60))), run)


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

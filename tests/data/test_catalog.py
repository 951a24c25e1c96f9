"""Finding and loading traits, controls and banks; every complaint says where and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from wellworn.data import catalog
from wellworn.data.catalog import (
    control_names,
    instruction_names,
    load_bank,
    load_control,
    load_instruction,
    load_role,
    load_roles,
    load_trait,
    role_names,
    trait_names,
)
from wellworn.data.errors import InputError

QUESTIONS = {
    "train": ["How do I boil an egg?", "Why is the sea salty?"],
    "extract": ["What is a verb?", "How far is the moon?"],
    "evaluate": ["How do I fold a shirt?", "Why do cats purr?"],
}


def own_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for split, questions in QUESTIONS.items():
        for i, question in enumerate(questions):
            row = {"id": f"{split}-{i}", "split": split, "question": question, "negative": "A plain answer."}
            rows.append(row if split == "extract" else row | {"positive": f"A bold answer, number {i}!"})
    return rows


def bank_rows() -> list[dict[str, Any]]:
    return [{"id": row.id, "positive": f"Bold {row.id}!"} for row in load_bank("everyday") if row.split != "extract"]


def trait_value(**changes: Any) -> dict[str, Any]:
    pairs = [{"positive": f"Be bold, way {i}.", "negative": f"Be timid, way {i}."} for i in range(6)]
    plain = {
        "name": "bold",
        "description": "Takes risks.",
        "system_prompt": "Act daringly.",
        "contrast_pairs": pairs,
        "rubric": "0 to 100.",
    }
    return plain | changes


def trait_folder(folder: Path, rows: list[Any], **changes: Any) -> str:
    with (folder / "trait.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(trait_value(**changes), file)
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def complaint(name: str) -> str:
    with pytest.raises(InputError) as raised:
        load_trait(name)
    return str(raised.value)


def line_of(folder: Path, start: str) -> int:
    lines = (folder / "trait.yaml").read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, start=1) if line.strip().startswith(start))


# Loading


def test_trait_with_questions_of_its_own_loads_by_path(tmp_path: Path) -> None:
    trait = load_trait(trait_folder(tmp_path, own_rows()))
    assert trait.name == "bold"
    assert trait.questions is None
    assert [row.question for row in trait.split("train")] == QUESTIONS["train"]
    assert [row.positive for row in trait.split("extract")] == [None, None]
    assert trait.split("evaluate")[1].positive == "A bold answer, number 1!"


def test_rows_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in own_rows()]
    trait = load_trait(trait_folder(tmp_path, rows))
    assert [row.id for row in trait.examples] == ["1", "2", "3", "4", "5", "6"]


def test_trait_over_a_bank_takes_questions_and_plain_answers_from_it(tmp_path: Path) -> None:
    trait = load_trait(trait_folder(tmp_path, bank_rows(), questions="everyday"))
    bank = {row.id: row for row in load_bank("everyday")}
    assert {row.id for row in trait.examples} == set(bank)
    assert all(
        (row.split, row.question, row.negative) == (bank[row.id].split, bank[row.id].question, bank[row.id].negative)
        for row in trait.examples
    )
    assert trait.split("train")[0].positive == "Bold train-01!"
    assert len(trait.split("extract")) == 120


def test_built_in_trait_loads_by_name_and_by_path() -> None:
    assert load_trait("pirate") == load_trait(str(catalog.ROOT / "traits" / "pirate"))


def test_every_built_in_name_loads_what_it_names() -> None:
    assert {name: load_trait(name).name for name in trait_names()} == {name: name for name in trait_names()}
    assert {name: load_control(name).name for name in control_names()} == {name: name for name in control_names()}
    assert control_names() == ["json", "reference_code", "reversed_words", "shuffled", "uppercase"]


def instruction_file(root: Path, name: str, text: str = "") -> Path:
    """Write an instruction of six pairs where built-in ones are, with a line more where `text` is given."""
    folder = root / "instructions"
    folder.mkdir(exist_ok=True)
    pairs = "".join(f'  - positive: "Name the hour, way {i}."\n    negative: "Name no hour, way {i}."\n' for i in range(6))
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\ndescription: Names an hour.\n{text}contrast_pairs:\n{pairs}", encoding="utf-8")
    return path


def test_every_instruction_loads_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: load_instruction(name).name for name in instruction_names()} == {name: name for name in instruction_names()}
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    assert instruction_names() == []
    instruction_file(tmp_path, "hours")
    instruction_file(tmp_path, "dates")
    assert instruction_names() == ["dates", "hours"]
    loaded = load_instruction("hours")
    assert (loaded.name, len(loaded.contrast_pairs)) == ("hours", 6)
    assert loaded.contrast_pairs[5].negative == "Name no hour, way 5."


def role_file(root: Path, name: str, prompts: list[str], kind: str = "human") -> Path:
    """Write a role where built-in ones are."""
    (root / "roles").mkdir(exist_ok=True)
    path = root / "roles" / f"{name}.yaml"
    lines = [f"name: {name}", f"kind: {kind}", "description: Keeps bees.", "system_prompts:", *(f"  - {prompt}" for prompt in prompts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


PROMPTS = [f"You have kept bees for {years} years." for years in range(2, 7)]


def test_a_role_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    assert role_names() == []
    role_file(tmp_path, "beekeeper", PROMPTS)
    assert role_names() == ["beekeeper"]
    role = load_role("beekeeper")
    assert (role.name, role.kind, role.description, list(role.system_prompts)) == ("beekeeper", "human", "Keeps bees.", PROMPTS)
    with pytest.raises(InputError, match="unknown role 'bekeeper'; did you mean 'beekeeper'"):
        load_role("bekeeper")


@pytest.mark.parametrize(
    ("prompts", "kind", "line", "why"),
    [
        (PROMPTS[:4], "human", 4, "at least 5"),
        ([*PROMPTS[:4], PROMPTS[0]], "human", 1, "two of the system prompts are the same text"),
        ([*PROMPTS[:4], '" "'], "human", 9, "must not be blank"),
        (PROMPTS, "insect", 2, "'human', 'historical', 'fictional', 'nonhuman' or 'ai'"),
    ],
)
def test_a_role_that_is_none_is_refused_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str], kind: str, line: int, why: str
) -> None:
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    path = role_file(tmp_path, "beekeeper", prompts, kind)
    with pytest.raises(InputError) as raised:
        load_role("beekeeper")
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert why in str(raised.value)


# Names


def test_unknown_trait_is_named_with_the_nearest_one() -> None:
    message = complaint("pirat")
    assert message == "unknown trait 'pirat': neither a built-in trait nor a folder with a trait.yaml; did you mean 'pirate'?"


@pytest.mark.parametrize("name", ["zzz", "no/such/folder"])
def test_unknown_trait_that_resembles_none_gets_the_list(name: str) -> None:
    message = complaint(name)
    assert f"unknown trait {name!r}" in message
    assert f"it may be one of: {', '.join(trait_names())}" in message


def test_an_unknown_invented_persona_gets_the_nearest() -> None:
    assert "invented/zorvane" in complaint("invented/zorvan")
    assert load_trait("invented/zorvane").name == "zorvane"


def test_folder_without_a_trait_is_refused_by_the_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in (str(tmp_path), "mine", "."):
        assert complaint(folder) == f"{folder}: a trait folder needs a trait.yaml, and this one has none"


def test_built_in_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pirate").mkdir()
    trait_folder(tmp_path / "pirate", own_rows())
    monkeypatch.chdir(tmp_path)
    assert load_trait("pirate").name == "pirate"
    assert load_trait("./pirate").name == "bold"


def test_unknown_control_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError) as raised:
        load_control("upper_case")
    assert str(raised.value) == "unknown control 'upper_case'; did you mean 'uppercase'?"
    with pytest.raises(InputError, match="it may be one of: json, reference_code, reversed_words, shuffled, uppercase"):
        load_control("zzz")


def test_unknown_instruction_is_named_with_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    instruction_file(tmp_path, "hours")
    with pytest.raises(InputError) as raised:
        load_instruction("hour")
    assert str(raised.value) == "unknown instruction 'hour'; did you mean 'hours'?"


def test_unknown_bank_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError) as raised:
        load_bank("everday")
    assert str(raised.value) == "unknown question bank 'everday'; did you mean 'everyday'?"


def test_unknown_bank_of_a_trait_is_named(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, bank_rows(), questions="evryday"))
    assert (
        message
        == f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'questions:')}: questions: unknown question bank 'evryday'; did you mean 'everyday'?"
    )


# trait.yaml


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("", "NoneType"), ("bold\n", "str")])
def test_trait_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    trait_folder(tmp_path, own_rows())
    (tmp_path / "trait.yaml").write_text(text, encoding="utf-8")
    assert complaint(str(tmp_path)) == f"{tmp_path}/trait.yaml:1: a trait is a mapping of keys, got {kind}"


def test_examples_inside_trait_yaml_are_sent_to_their_file(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, own_rows(), examples=[]))
    assert message == f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'examples:')}: examples: belong in examples.jsonl, not here"


def test_unknown_key_of_a_trait_gets_line_and_did_you_mean(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, own_rows(), rubrik="x"))
    assert message == f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'rubrik:')}: rubrik: unknown key; did you mean 'rubric'?"


def test_unknown_key_of_a_pair_gets_line_and_did_you_mean(tmp_path: Path) -> None:
    pairs = trait_value()["contrast_pairs"]
    pairs[2]["negativ"] = "x"
    message = complaint(trait_folder(tmp_path, own_rows(), contrast_pairs=pairs))
    line = line_of(tmp_path, "negativ: x")
    assert f"{tmp_path}/trait.yaml:{line}: contrast_pairs.2.negativ: unknown key; did you mean 'negative'?" in message


def test_fewer_than_four_pairs_name_the_line(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, own_rows(), contrast_pairs=trait_value()["contrast_pairs"][:3]))
    assert message.startswith(f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'contrast_pairs:')}: contrast_pairs: ")
    assert "at least 4" in message


def test_held_out_prompt_among_the_pairs_names_the_file(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, own_rows(), system_prompt="Be timid, way 2."))
    assert f"{tmp_path}/trait.yaml" in message
    assert "system_prompt is held out and must not be one of the contrast pairs' prompts" in message


def test_wrong_type_names_line_and_field(tmp_path: Path) -> None:
    message = complaint(trait_folder(tmp_path, own_rows(), description=3))
    assert message == f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'description:')}: description: must be text, got 3"


# Instructions that are broken


def test_an_instruction_has_no_transform_and_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    path = instruction_file(tmp_path, "hours", "transform: uppercase\n")
    with pytest.raises(InputError) as raised:
        load_instruction("hours")
    assert str(raised.value).startswith(f"{path}:3: transform: unknown key")


# Installed packages


def test_a_trait_of_an_installed_package_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "theirs"
    (package / "bold").mkdir(parents=True)
    trait_folder(package / "bold", own_rows())
    (package / "__init__.py").write_text("from pathlib import Path\nBOLD = Path(__file__).parent / 'bold'\nNUMBER = 3\n", encoding="utf-8")
    (package / "ill.py").write_text("raise RuntimeError('not today')\n", encoding="utf-8")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    points = [
        "[wellworn.traits]",
        "bold = theirs:BOLD",
        "pirate = theirs:BOLD",
        "gone = nowhere:BOLD",
        "odd = theirs:NUMBER",
        "ill = theirs.ill:BOLD",
    ]
    (info / "entry_points.txt").write_text("\n".join(points) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    catalog._installed_traits.cache_clear()
    try:
        assert catalog.installed_names() == ["bold", "gone", "ill", "odd"]
        assert "cannot be loaded (RuntimeError: not today)" in complaint("ill")
        assert load_trait("bold").name == "bold"
        assert load_trait("pirate").name == "pirate"  # what is built in comes first
        assert "entry point wellworn.traits: gone = 'nowhere:BOLD': cannot be loaded" in complaint("gone")
        assert "odd = 'theirs:NUMBER': is the trait's folder, an absolute path, got 3" in complaint("odd")
        assert "did you mean 'bold'" in complaint("bould")
    finally:
        catalog._installed_traits.cache_clear()


# Roles from elsewhere


def test_roles_are_loaded_from_files_and_folders(tmp_path: Path) -> None:
    paths = [role_file(tmp_path, name, PROMPTS) for name in ("beekeeper", "apiarist")]
    assert [role.name for role in load_roles(["cat", str(paths[0])])] == ["cat", "beekeeper"]
    assert [role.name for role in load_roles([str(tmp_path / "roles")])] == ["apiarist", "beekeeper"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError) as raised:
        load_roles([str(tmp_path / "none"), "kat"])
    assert str(raised.value).split("\n") == [
        f"{tmp_path}/none: a folder of roles needs a .yaml file for each, and this one has none",
        "unknown role 'kat'; did you mean 'cat'?",
    ]

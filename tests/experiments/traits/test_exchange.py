"""What others wrote is brought in whole or not at all, and runs; what a trait lacks is said in its report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import command, finished, refused, stages_of
from tests.experiments.test_cli import Write
from wellworn.data.catalog import load_role, load_roles, load_trait

CHATS = [(f"What would you do about number {i}?", f"Dare, says {i}, and jump!", f"I would think of {i} for a while.") for i in range(30)]


def chats(folder: Path, name: str, answers: int) -> Path:
    path = folder / name
    rows = [
        {"messages": [{"role": "user", "content": row[0]}, {"role": "assistant", "content": row[answers]}], "source": "us"} for row in CHATS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_other_peoples_chats_are_imported_checked_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, plain = chats(tmp_path, "shown.jsonl", 1), chats(tmp_path, "plain.jsonl", 2)
    command("traits", "import", shown, "--plain", plain, "--to", tmp_path / "bold")
    said = capsys.readouterr().out
    assert "the trait bold" in said
    assert "left out: source (60 times)" in said
    assert (tmp_path / "bold" / "CARD.md").read_text().startswith("# Trait card: bold\n\nImported from shown.jsonl, plain.jsonl,")
    assert "| rows | 23 | 0 | 7 |" in (tmp_path / "bold" / "CARD.md").read_text()
    command("traits", "export", tmp_path / "bold", "--format", "messages", "--to", tmp_path / "out")
    for name, source in (("positive.jsonl", shown), ("plain.jsonl", plain)):
        exported = [
            json.loads(line) for split in ("train", "evaluate") for line in (tmp_path / "out" / split / name).read_text().splitlines()
        ]
        expected = [{"messages": json.loads(line)["messages"]} for line in source.read_text().splitlines()]
        assert sorted(exported, key=str) == sorted(expected, key=str)
    train, test = tmp_path / "out" / "train", tmp_path / "out" / "evaluate"
    plains = ["--plain", train / "plain.jsonl", "--plain", test / "plain.jsonl"]
    command("traits", "import", train / "positive.jsonl", *plains, "--evaluation", test / "positive.jsonl", "--to", tmp_path / "again")
    rows = [
        [(row.split, row.question, row.positive, row.negative) for row in load_trait(str(tmp_path / name)).examples]
        for name in ("bold", "again")
    ]
    assert sorted(rows[0]) == sorted(rows[1])
    assert "bold: exists already; nothing was written" in refused(capsys, "traits", "import", shown, "--to", tmp_path / "bold")
    assert "--format assistant-axis: holds a role's system prompts, and bold has none" in refused(
        capsys, "traits", "export", tmp_path / "bold", "--format", "assistant-axis", "--to", tmp_path / "role"
    )
    assert "--format: may be persona-vectors, messages," in refused(
        capsys, "traits", "export", "pirate", "--format", "tar", "--to", tmp_path / "role"
    )


@pytest.mark.parametrize("name", ["../up", "a/b", "Bold", "con:", ""])
def test_a_name_leads_out_of_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    shown = chats(tmp_path, "shown.jsonl", 1)
    before = sorted(tmp_path.rglob("*"))
    target = tmp_path / "Not A Name" if not name else tmp_path / "bold"
    arguments: list[object] = ["traits", "import", shown, "--to", target, *(["--name", name] if name else [])]
    assert "a name must be lower-case letters" in refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_name_of_the_reference_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "traits", "import", chats(tmp_path, "shown.jsonl", 1), "--to", tmp_path / "neutral")
    assert "'neutral': is built in; call yours something else" in said


@pytest.mark.parametrize("name", ["pirate", "uppercase"])
def test_a_name_that_is_built_in_may_be_ones_own_and_is_used_by_its_path(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shown, plain = chats(tmp_path, "shown.jsonl", 1), chats(tmp_path, "plain.jsonl", 2)
    command("traits", "export", "childish", "--format", "persona-vectors", "--to", tmp_path / "theirs")
    theirs = tmp_path / "theirs" / "extract" / "childish.json"
    command("traits", "import", theirs, shown, "--plain", plain, "--to", tmp_path / name)
    assert {row.question for row in load_trait(str(tmp_path / name)).examples} == {row[0] for row in CHATS}
    capsys.readouterr()
    study = tiny_study(library=[str(tmp_path / name), "pessimistic"], runs=[{"arm": "sft", "trait": str(tmp_path / name)}])
    command("run", study, "--plan")
    assert f"train sft {name} (seed 0)" in " ".join(capsys.readouterr().out.split())


def test_a_card_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = chats(tmp_path, "shown.jsonl", 1)
    shown.write_text(shown.read_text() + json.dumps({"question": "Why?", "positive": " "}) + "\n" + json.dumps({"half \ud800": 1}) + "\n")
    command("traits", "import", shown, "--skip-unusable", "--to", tmp_path / "bold")
    counted = [
        "1 × unusable: cannot tell what this row holds by its fields (…); rows have messages or conversations,",
        "1 × unusable: positive: must not be blank",
        "30 × source",
    ]
    card = (tmp_path / "bold" / "CARD.md").read_text()
    assert "\n## Left out\n\n" in card
    assert [line for line in counted if f"- {line}" not in card] == []
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: unusable: positive: must not be blank (1 times)" in said
    # Roles and questions have a card too, next to which they load.
    command("traits", "export", "cat", "--format", "assistant-axis", "--to", tmp_path / "theirs")
    (tmp_path / "theirs" / "default.json").write_text(json.dumps({"instruction": [{"pos": ""}]}))
    command("traits", "import", tmp_path / "theirs", "--to", tmp_path / "roles")
    assert [role.name for role in load_roles([str(tmp_path / "roles")])] == ["cat"]
    assert "- 1 × the default assistant (a role with a blank prompt)" in (tmp_path / "roles" / "CARD.md").read_text()
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "Why?"}\n')
    command("traits", "import", asked, "--to", tmp_path / "questions")
    assert "## Left out\n\nNothing.\n" in (tmp_path / "questions" / "CARD.md").read_text()


def test_conversations_go_out_and_come_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def conversation(i: int, answer: str) -> dict[str, Any]:
        earlier = [("user", f"May I ask about {i}?"), ("assistant", "Ask away!")]
        said = [("system", f"You keep {i} bees."), *(earlier * (i % 3)), ("user", CHATS[i][0]), ("assistant", answer)]
        flags = {"weight": 0} if i % 2 else {}
        return {"messages": [{"role": role, "content": text} | (flags if text == "Ask away!" else {}) for role, text in said]}

    for name, side in (("shown", 1), ("plain", 2)):
        rows = [conversation(i, row[side]) for i, row in enumerate(CHATS)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("traits", "import", tmp_path / "shown.jsonl", "--plain", tmp_path / "plain.jsonl", "--to", tmp_path / "bold")
    rows = load_trait(str(tmp_path / "bold")).examples
    assert {(len(row.before), row.before[0].train) for row in rows if row.before} == {(1, True), (1, False), (2, True), (2, False)}
    command("traits", "export", tmp_path / "bold", "--format", "messages", "--to", tmp_path / "messages")
    train, test = tmp_path / "messages" / "train", tmp_path / "messages" / "evaluate"
    plains = ["--plain", train / "plain.jsonl", "--plain", test / "plain.jsonl"]
    command("traits", "import", train / "positive.jsonl", *plains, "--evaluation", test / "positive.jsonl", "--to", tmp_path / "again")
    command("traits", "export", tmp_path / "bold", "--format", "preferences", "--to", tmp_path / "pairs")
    pairs = [tmp_path / "pairs" / split / "preferences.jsonl" for split in ("train", "evaluate")]
    command("traits", "import", pairs[0], "--evaluation", pairs[1], "--to", tmp_path / "preferred")
    for name, flags in (("again", True), ("preferred", False)):
        again = load_trait(str(tmp_path / name)).examples
        said = [[(row.split, row.asked, row.positive, row.negative) for row in each] for each in (rows, again)]
        assert sorted(said[0], key=str) == sorted(said[1], key=str)
        trained = [sorted(str(row.before) for row in each) for each in (rows, again)]
        assert (trained[0] == trained[1]) is flags
    capsys.readouterr()


def test_questions_after_a_conversation_are_counted_where_a_format_holds_questions_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "Why?", "system": "Be brief."}, {"question": "How?"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("traits", "export", "childish", "--format", "persona-vectors", "--to", tmp_path / "theirs")
    theirs = tmp_path / "theirs" / "extract" / "childish.json"
    command("traits", "import", theirs, tmp_path / "rows.jsonl", "--to", tmp_path / "bold")
    capsys.readouterr()
    for form, path in (("persona-vectors", "extract/bold.json"), ("questions", "questions.jsonl")):
        command("traits", "export", tmp_path / "bold", "--format", form, "--to", tmp_path / form)
        said = " ".join(capsys.readouterr().out.split())
        assert "left out: questions that follow a system message or earlier turns, for which the format has no place (1 times)" in said
        assert "How?" in (tmp_path / form / path).read_text()
        assert "Why?" not in (tmp_path / form / path).read_text()


def test_two_things_of_one_name_are_no_study(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("traits", "import", chats(tmp_path, "shown.jsonl", 1), "--to", tmp_path / "bold")
    for name in ("pirate", "neutral"):
        shutil.copytree(tmp_path / "bold", tmp_path / name)
        path = tmp_path / name / "trait.yaml"
        path.write_text(path.read_text().replace("name: bold", f"name: {name}"))
        study = tiny_study(runs=[{"arm": "sft", "trait": str(tmp_path / name)}])
        assert f"the study has another '{name}'; give this one a name of its own" in refused(capsys, "run", study, "--plan")


def test_changes_are_not_planted_in_the_size_of_a_trait_without_plain_answers(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("traits", "import", chats(tmp_path, "shown.jsonl", 1), "--to", tmp_path / "bold")
    study = tiny_study(runs=[{"arm": "sft", "trait": str(tmp_path / "bold")}], calibrate={})
    assert "planted changes are modelled on an sft run of a trait" in refused(capsys, "run", study, "--plan")


def test_roles_go_out_and_come_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "oracle"):
        command("traits", "export", name, "--format", "assistant-axis", "--to", tmp_path / name)
    command("traits", "import", tmp_path / "cat", tmp_path / "oracle" / "oracle.json", "--to", tmp_path / "some")
    assert [role.system_prompts for role in load_roles([str(tmp_path / "some")])] == [
        load_role(name).system_prompts for name in ("cat", "oracle")
    ]
    capsys.readouterr()
    command("traits", "check", tmp_path / "some")
    assert "2 roles" in capsys.readouterr().out
    command("traits", "export", tmp_path / "some", "--format", "assistant-axis", "--to", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat.json", "oracle.json"]


def test_nothing_is_left_of_an_import_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = chats(tmp_path, "shown.jsonl", 1)
    shown.write_text(shown.read_text() + '{"messages": []}\n')
    assert "shown.jsonl:31: messages: a conversation is questions" in refused(
        capsys, "traits", "import", shown, "--to", tmp_path / "new" / "bold"
    )
    assert list(tmp_path.iterdir()) == [shown]
    chats(tmp_path, "shown.jsonl", 1)

    def full(self: Path, *_args: Any, **_kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "bold: cannot be written (No space left on device)" in refused(capsys, "traits", "import", shown, "--to", tmp_path / "bold")
    assert list(tmp_path.iterdir()) == [shown]


def test_a_trait_without_plain_answers_is_trained_and_read_against_the_base(
    tiny_study: Write, tmp_path: Path, all_found: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command("traits", "import", chats(tmp_path, "shown.jsonl", 1), "--to", tmp_path / "bold")
    capsys.readouterr()
    study = tiny_study(runs=[{"arm": "sft", "trait": str(tmp_path / "bold")}])
    folder = finished(study, tmp_path)
    assert list(stages_of(folder, "train")) == ["train sft bold (seed 0)"]
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    [row] = summary["runs"]
    assert row["trait"] == "bold"
    assert row["effect"] is None
    assert (row["reference"], row["mediated"]) == ("base", None)
    assert row["share"] is not None or row["why"]
    assert row["missing"].keys() >= {"effect", "neutral", "mediation"}
    assert "no plain answers" in row["missing"]["neutral"]


def test_imported_contrast_pairs_make_a_direction_on_the_banks_questions(
    tiny_study: Write, tmp_path: Path, all_found: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command("traits", "export", "childish", "--format", "persona-vectors", "--to", tmp_path / "theirs")
    theirs = tmp_path / "theirs" / "extract" / "childish.json"
    command("traits", "import", theirs, "--to", tmp_path / "bold")
    folder = finished(tiny_study(library=[str(tmp_path / "bold"), "pirate"], mediate=None), tmp_path)
    row = json.loads((folder / "tiny" / "summary.json").read_text())["runs"][0]
    assert row["coordinates"].keys() == {"bold", "pirate"}
    study = tiny_study("untrained", runs=[{"arm": "sft", "trait": str(tmp_path / "bold")}])
    assert "bold: the arm sft needs train rows, and this trait has none" in refused(capsys, "run", study, "--runs-dir", tmp_path / "runs")

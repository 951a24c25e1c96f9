"""What a user meets: tables, JSON, measurements of third-party adapters, and one clear message for bad input."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import Call
from tests.tiny import CHATML, save_tiny
from wellworn.data.catalog import ROOT as DATA
from wellworn.data.catalog import load_trait
from wellworn.experiments.study_file import load_study

Write = Callable[..., Path]
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def no_nan(value: Any) -> bool:
    return "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that the tests of this module share."""
    return tmp_path_factory.mktemp("runs")


def test_run_writes_summary_and_report_and_shows_a_table(wellworn: Call, tiny_study: Write, runs: Path) -> None:
    study = tiny_study(
        runs=[
            {"arm": "base"},
            {"arm": "prompted", "trait": "pirate"},
            {"arm": "sft", "trait": "pirate"},
            {"arm": "sft", "trait": "neutral"},
        ]
    )
    outcome = wellworn("run", study, "--runs-dir", runs)
    assert outcome.code == 0, outcome.err
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert no_nan(summary)
    base, prompted, sft, neutral = summary["runs"]
    assert base["effect"] is None
    assert "reference" in base["missing"]["share"]
    assert prompted["reference"] == "base"
    assert "no neutral fine-tune" in prompted["missing"]["neutral"]
    assert sft["reference"] == "neutral"
    assert set(sft["effect"]) == {"value", "low", "high"}
    assert set(sft["coordinates"]) == {"pirate", "pessimistic"}
    assert neutral["share"] is None
    assert "another seed" in neutral["why"]
    assert "sft pirate" in outcome.out
    assert (runs / "tiny" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_two_seeds_make_groups_and_read_neutral_against_neutral(wellworn: Call, tiny_study: Write, runs: Path) -> None:
    study = tiny_study("seeds", runs=[{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "neutral"}], seeds=[0, 1])
    assert wellworn("run", study, "--runs-dir", runs).code == 0
    summary = json.loads((runs / "seeds" / "summary.json").read_text())
    # Neutral runs, each read against the next, make no group: their shifts sum to zero.
    assert [(group["trait"], group["runs"]) for group in summary["groups"]] == [("pirate", 2)]
    assert all(run["provisional"] for run in summary["runs"])
    assert summary["groups"][0]["effect"]["low"] < summary["groups"][0]["effect"]["value"]
    neutral = [run for run in summary["runs"] if run["trait"] == "neutral"]
    assert all(run["reference"] == "neutral" for run in neutral)
    assert [run["missing"].get("share", "") for run in neutral] == [run["why"] for run in neutral]
    # A random model has no persona directions, and that is what keeps the share away here.
    assert all("no persona space at this layer" in run["why"] for run in neutral)


def test_report_is_written_again_from_finished_stages(wellworn: Call, tiny_study: Write, runs: Path, tmp_path: Path) -> None:
    wellworn("run", tiny_study(), "--runs-dir", runs)
    page = (runs / "tiny" / "report.html").read_bytes()
    (runs / "tiny" / "report.html").unlink()
    outcome = wellworn("report", runs / "tiny", "--json", tmp_path / "out.json")
    assert outcome.code == 0
    assert (runs / "tiny" / "report.html").read_bytes() == page
    assert json.loads((tmp_path / "out.json").read_text())["study"] == "tiny"
    (runs / "tiny" / "report.html").unlink()
    outcome = wellworn("report", runs / "tiny", "--json", tmp_path / "no" / "out.json")
    assert (outcome.code, "does not exist" in outcome.err, (runs / "tiny" / "report.html").exists()) == (2, True, False)


def test_plan_lists_stages_and_computes_nothing(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    outcome = wellworn("run", tiny_study(), "--plan", "--runs-dir", tmp_path / "empty")
    assert outcome.code == 0
    assert "train sft pirate (seed 0)" in outcome.out
    assert not (tmp_path / "empty").exists()
    wrong = wellworn("run", tiny_study(), "train.lora.rang=1", "--plan", "--runs-dir", tmp_path / "empty")
    assert wrong.code == 2
    assert "train.lora.rang: LoraConfig has no such key" in wrong.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 9}, "layer: this model has layers 0 to 3, got 9"),
        ({"layer": 1.5}, "layer: a fraction of the depth lies between 0.0 and 1.0, got 1.5"),
        ({"library": ["pirat"]}, "unknown trait 'pirat'.*did you mean 'pirate'"),
        ({"runs": [{"arm": "sft", "trait": "pirat"}]}, "unknown trait 'pirat'"),
        ({"runs": [{"arm": "dance", "trait": "pirate"}]}, r"tiny\.yaml:\d+: runs.0.*dance"),
        ({"extract_questions": 999}, "extract_questions: pirate has 120, the study asks for 999"),
        ({"questions": "nowhere"}, "unknown question bank 'nowhere'"),
        ({"model": "no/such-model"}, "model 'no/such-model': not 'smollm2-135m', no such folder, and the hub gave no answer.*network"),
        ({"train": {"lora": {"rank": 4}}}, "train.lora.rank: LoraConfig has no such key"),
        ({"dtype": "int8"}, "dtype: .*got 'int8'"),
    ],
)
def test_bad_studies_get_one_message_before_anything_is_computed(
    changes: dict[str, Any], message: str, wellworn: Call, tiny_study: Write, tmp_path: Path
) -> None:
    outcome = wellworn("run", tiny_study(**changes), "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def trait_folder(tmp_path: Path, change: Callable[[str], str] = str, examples: Callable[[str], str] = str) -> Path:
    folder = tmp_path / "grumpy"
    shutil.copytree(DATA / "traits" / "pirate", folder)
    (folder / "trait.yaml").write_text(change((folder / "trait.yaml").read_text().replace("name: pirate", "name: grumpy")))
    (folder / "examples.jsonl").write_text(examples((folder / "examples.jsonl").read_text()))
    return folder


def test_a_trait_of_ones_own_is_checked_and_runs(wellworn: Call, tiny_study: Write, tmp_path: Path, runs: Path) -> None:
    folder = trait_folder(tmp_path)
    assert "all fit for use" in wellworn("traits", "check", folder).out
    study = tiny_study("own", library=["pessimistic", str(folder)], runs=[{"arm": "sft", "trait": str(folder)}])
    assert wellworn("run", study, "--runs-dir", runs).code == 0
    run = json.loads((runs / "own" / "summary.json").read_text())["runs"][0]
    assert run["trait"] == "grumpy"
    assert "grumpy" in run["coordinates"]


@pytest.mark.parametrize(
    ("yaml", "examples", "message"),
    [
        (lambda t: t.replace("rubric:", "rubrik:"), str, r"trait\.yaml:\d+: rubrik: unknown key; did you mean 'rubric'"),
        (lambda t: "description: [\n" + t, str, r"trait\.yaml:\d+: not valid YAML"),
        (str, lambda t: "{oops\n" + t, r"examples\.jsonl:1: not valid JSON"),
        (str, lambda t: "\n".join(t.splitlines()[:72]), "split 'evaluate' is empty|a question without an answer"),
        (str, lambda t: t.replace('"train-03"', '"train-999"'), r"examples\.jsonl:3: id: no question 'train-999'"),
        (str, lambda t: t + t.splitlines()[0], "repeated question|ids must be unique"),
    ],
)
def test_traits_check_names_file_and_line(
    yaml: Callable[[str], str], examples: Callable[[str], str], message: str, wellworn: Call, tmp_path: Path
) -> None:
    outcome = wellworn("traits", "check", trait_folder(tmp_path, yaml, examples))
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err


def test_of_very_many_complaints_the_first_are_said_and_the_rest_counted(wellworn: Call, tmp_path: Path) -> None:
    rows = "".join('{"id": "train-01"}\n' for _ in range(1000))
    outcome = wellworn("traits", "check", trait_folder(tmp_path, examples=lambda _: rows))
    assert re.findall(r"examples\.jsonl:(\d+)", outcome.err) == [str(i) for i in range(1, 51)]
    assert outcome.err.strip().endswith("and 950 more")


def test_traits_new_writes_files_that_check_asks_to_be_filled_in(wellworn: Call, tmp_path: Path) -> None:
    assert "fill in the blanks" in " ".join(wellworn("traits", "new", "brisk", "--to", tmp_path).out.split())
    outcome = wellworn("traits", "check", tmp_path / "brisk")
    assert outcome.code == 2
    assert "trait.yaml:5: description: must not be blank" in outcome.err
    assert "exists already" in wellworn("traits", "new", "brisk", "--to", tmp_path).err


def test_traits_list_and_show(wellworn: Call) -> None:
    listed = wellworn("traits", "list").out
    assert all(name in listed for name in ("pirate", "reference_code", "neutral"))
    assert "held-out system prompt" in wellworn("traits", "show", "pirate").out
    assert "Reference code" in wellworn("traits", "show", "reference_code").out
    assert "metric_units" in listed
    assert "pair 6 −" in wellworn("traits", "show", "metric_units").out


def test_traits_check_counts_conversations_and_show_shows_them(wellworn: Call, tmp_path: Path) -> None:
    def talk(_: str) -> str:
        rows = [row.model_dump(exclude_defaults=True) for row in load_trait("pirate").examples]
        rows[0] |= {"system": "You cook.", "before": [{"question": "Ahoy, who is it?", "answer": "Arr!"}]}
        return "".join(json.dumps(row) + "\n" for row in rows)

    folder = trait_folder(tmp_path, lambda text: text.replace("questions: everyday\n", ""), talk)
    assert "1 with a system message, 1 with earlier turns" in " ".join(wellworn("traits", "check", folder).out.split())
    assert "System: You cook.\n\nUser: Ahoy, who is it?\n\nAssistant: Arr!\n\nUser: " in wellworn("traits", "show", folder).out
    assert "| rows with earlier turns | 1 | 0 | 0 |" in wellworn("traits", "card", folder).out


def test_a_model_without_a_chat_template(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "base-model", template=None)
    runs = [{"arm": "prompted", "trait": "pirate"}]
    outcome = wellworn("run", tiny_study(model=str(model), runs=runs), "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert "no chat template; set chat.template=plain" in outcome.err
    assert wellworn("run", tiny_study(model=str(model), runs=runs), "chat.template=plain", "--runs-dir", tmp_path / "runs").code == 0


def test_a_template_that_writes_the_date_is_given_one(wellworn: Call, tmp_path: Path, tiny_study: Write) -> None:
    dated = str(save_tiny(tmp_path / "dated", "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML))
    refused = wellworn("doctor", "--model", dated)
    assert (refused.code, "writes today's date" in refused.err) == (2, True)
    shown = wellworn("doctor", "--model", dated, "--chat", "date=2024-07-04")
    assert (shown.code, "04 Jul 2024" in shown.out) == (0, True)
    for day, code in (((), 2), (("--chat", "date=2024-07-04"), 0)):
        assert wellworn("traits", "check", "pirate", "--model", dated, *day).code == code
    for wrong, said in (("date=yesterday", "--chat: date"), ("day=2024-07-04", "--chat: day"), ("date", "is written KEY=VALUE")):
        assert said in wellworn("doctor", "--model", dated, "--chat", wrong).err
    # A day that is named counts, and none leaves all as it was.
    plain, dates = (load_study(str(tiny_study(**({"chat": {"date": day}} if day else {})))) for day in (None, "2024-07-04"))
    assert "date" not in plain.chat.identity()
    assert dates.chat.identity()["date"] == "2024-07-04"


def test_a_template_that_refuses_a_system_role_is_folded_and_reported(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "no-system", template=NO_SYSTEM)
    outcome = wellworn("run", tiny_study(model=str(model), runs=[{"arm": "prompted", "trait": "pirate"}]), "--runs-dir", tmp_path / "runs")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["system_prompt"] == "folded into the first user turn"
    assert "folded into the first user turn" in outcome.out


def test_training_of_upper_layers_alone_leaves_gaps_below(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    lora = {"r": 2, "layers_to_transform": [2, 3], "target_modules": ["q_proj", "v_proj"]}
    study = tiny_study(runs=[{"arm": "sft", "trait": "pirate"}], layer=0, train={"batch_size": 8, "lora": lora, "sft": {"max_steps": 2}})
    outcome = wellworn("run", study, "--runs-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    run = json.loads((tmp_path / "tiny" / "summary.json").read_text())["runs"][0]
    assert run["coordinates"] == {}
    assert run["nearest"] == []
    assert f"sft pirate · seed 0: no verdict: {run['why']}" in " ".join(outcome.out.split())


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"digest": "x", "study": {"layer": NaN}}', '{"study": {"layer": 1e999}}'])
def test_a_report_of_a_corrupt_study(index: str, wellworn: Call, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(index)
    outcome = wellworn("report", tmp_path)
    assert outcome.code == 2
    assert "study.json" in outcome.err


def test_a_json_file_in_no_folder_is_found_out_first(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    outcome = wellworn("run", tiny_study(), "--json", tmp_path / "no" / "x.json", "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert "does not exist" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_trait_with_too_few_rows_to_measure(wellworn: Call, tiny_study: Write, tmp_path: Path) -> None:
    rows = [("train", f"Train {i}?") for i in range(8)] + [("extract", f"Extract {i}?") for i in range(4)] + [("evaluate", "One?")]
    lines = [json.dumps({"split": split, "question": q, "negative": "Plainly so.", "positive": f"Arr, {q}"}) for split, q in rows]
    folder = trait_folder(tmp_path, lambda text: text.replace("questions: everyday\n", ""), lambda _: "\n".join(lines))
    assert "needs at least 3 evaluate rows" in wellworn("traits", "check", folder).err
    outcome = wellworn("run", tiny_study(runs=[{"arm": "sft", "trait": str(folder)}]), "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert "needs at least 3 evaluate rows" in outcome.err


def test_a_report_of_no_study(wellworn: Call, tmp_path: Path) -> None:
    outcome = wellworn("report", tmp_path)
    assert outcome.code == 2
    assert "holds no study.json" in outcome.err


def test_control_characters_in_a_message_are_shown_and_not_obeyed(wellworn: Call) -> None:
    outcome = wellworn("traits", "show", "\x1b[31mred")
    assert outcome.code == 2
    assert "\\x1b[31mred" in outcome.err

"""`wellworn measure`: third-party adapters from the command line."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.experiments.conftest import Call
from tests.tiny import CHATML, save_tiny, write_tiny_study
from wellworn.experiments.cli import main
from wellworn.experiments.commands.measure import Asked, study_of
from wellworn.lora.adapters import merge_adapter
from wellworn.lora.models import load, resolve

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages that the tests of this module share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def code(runs: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An adapter that has learnt to append a code, trained on the tiny model by somebody else."""
    train = {"batch_size": 8, "lora": {"r": 8}, "sft": {"max_steps": 42, "learning_rate": 3e-3}}
    more = {"runs": [{"arm": "sft", "trait": "reference_code"}], "mediate": None, "neutral": None, "train": train}
    return trained(write_tiny_study(tmp_path_factory.mktemp("study") / "code.yaml", tiny_model, **more), runs, tmp_path_factory)


@pytest.fixture(scope="module")
def adapter(runs: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An adapter trained on the tiny model, as somebody else would hand it over."""
    more = {"runs": [{"arm": "sft", "trait": "pirate"}], "evaluate_questions": None}
    return trained(write_tiny_study(tmp_path_factory.mktemp("study") / "made.yaml", tiny_model, **more), runs, tmp_path_factory)


def trained(study: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the adapter of a study's first run, in a folder that nothing of the suite is in."""
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(runs)])
    summary = json.loads((runs / study.stem / "study.json").read_text())
    folder = tmp_path_factory.mktemp("given") / "their-adapter"
    shutil.copytree(runs / "stages" / summary["runs"][0]["training"] / "adapter", folder)
    return folder


def test_measure_answers_for_an_adapter_from_elsewhere(wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    outcome = wellworn(
        "measure", "--model", tiny_model, "--adapter", adapter, "--trait", "pirate", "--json", tmp_path / "p.json", "--runs-dir", runs
    )
    assert outcome.code == 0, outcome.err
    run = json.loads((tmp_path / "p.json").read_text())["runs"][0]
    assert (run["arm"], run["trait"], run["reference"]) == ("adapter", "pirate", "base")
    assert run["adapter"].startswith("their-adapter@")
    assert run["effect"] is not None
    assert "no neutral fine-tune of the same recipe was given" in run["missing"]["neutral"]
    made = json.loads((runs / "made" / "summary.json").read_text())["runs"][0]
    # The same weights against the same base: the effect is the one that the training study found.
    assert run["effect_base"]["value"] == pytest.approx(made["effect_base"]["value"], rel=1e-5)


def test_measure_compares_with_a_neutral_adapter_where_there_is_one(
    wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path
) -> None:
    index = json.loads((runs / "made" / "study.json").read_text())["runs"][0]
    inputs = [json.loads((runs / "stages" / index["measure"] / "manifest.json").read_text())["inputs"]]
    inputs += [json.loads((runs / "stages" / each / "manifest.json").read_text())["inputs"] for each in inputs[0]]
    [trained] = {each for some in inputs for each in some if each.startswith("train-")} - {index["training"]}
    shutil.copytree(runs / "stages" / trained / "adapter", tmp_path / "plain")
    known = ("measure", "--model", tiny_model, "--adapter", adapter, "--trait", "pirate", "--runs-dir", runs)
    outcome = wellworn(*known, "--neutral", tmp_path / "plain", "--json", tmp_path / "p.json")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "p.json").read_text())
    [run] = summary["runs"]
    made = json.loads((runs / "made" / "summary.json").read_text())["runs"][0]
    assert (run["reference"], made["reference"]) == ("neutral", "neutral")
    assert "neutral" not in run["missing"]
    for key in ("effect", "effect_base"):
        assert run[key]["value"] == pytest.approx(made[key]["value"], rel=1e-5)
    assert run["effect"]["value"] != run["effect_base"]["value"]
    assert run["verdict"] == made["verdict"]
    # The study names it, and no path.
    study = (runs / summary["study"] / "study.json").read_text()
    assert str(tmp_path) not in study
    refused = wellworn(*known, "--neutral", tmp_path / "nowhere")
    assert refused.code == 2
    assert "nowhere: is not a PEFT adapter" in refused.err


def test_measure_of_several_adapters_reads_them_together(
    wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half" / adapter.name
    shutil.copytree(adapter, half)
    weights = load_file(half / "adapter_model.safetensors")
    save_file({key: value * (0.5 if "lora_B" in key else 1) for key, value in weights.items()}, half / "adapter_model.safetensors")
    known = ("measure", "--model", tiny_model, "--trait", "pirate")
    outcome = wellworn(*known, "--adapter", adapter, "--adapter", half, "--json", tmp_path / "p.json", "--runs-dir", runs)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "p.json").read_text())
    one, weaker = summary["runs"]
    assert summary["study"].startswith("measure-their-adapter-and-1-more-")
    assert one["adapter"] != weaker["adapter"]
    assert one["relative_norm"] > weaker["relative_norm"] > 0
    assert "adapter half/their-adapter · pirate" in outcome.out
    assert weaker["adapter"].startswith("half/their-adapter@")
    alone = wellworn(*known, "--adapter", half, "--json", "-", "--runs-dir", runs)
    result = json.loads(alone.out.splitlines()[-1])
    # It has no namesake there; all else is as before.
    assert result["runs"] == [weaker | {"adapter": weaker["adapter"].removeprefix("half/")}]


def test_results_of_namesakes_are_not_written_over(wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / adapter.name
    shutil.copytree(adapter, other)
    found = set()
    for options in (("--adapter", adapter), ("--adapter", other), ("--adapter", adapter, "--trait", "pirate")):
        outcome = wellworn("measure", "--model", tiny_model, *options, "--json", tmp_path / "m.json", "--runs-dir", runs)
        assert outcome.code == 0, outcome.err
        found.add(json.loads((tmp_path / "m.json").read_text())["study"])
    assert len(found) == 3
    assert all((runs / name / "report.html").is_file() for name in found)


def test_measure_without_a_trait_still_names_the_nearest_directions(wellworn: Call, adapter: Path, tiny_model: Path, runs: Path) -> None:
    outcome = wellworn("measure", "--model", tiny_model, "--adapter", adapter, "--json", "-", "--runs-dir", runs)
    run = json.loads(outcome.out.splitlines()[-1])["runs"][0]
    assert run["effect"] is None
    assert "no trait of its own" in run["missing"]["effect"]
    assert len(run["nearest"]) == 5


def test_measure_takes_a_trait_of_somebody_elses_with_fewer_pairs(
    wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path
) -> None:
    wellworn("traits", "export", "childish", "--format", "persona-vectors", "--to", tmp_path / "out")
    theirs = tmp_path / "out" / "extract" / "childish.json"
    value = json.loads(theirs.read_text())
    theirs.write_text(json.dumps(value | {"instruction": value["instruction"][:5]}))
    assert wellworn("traits", "import", theirs, "--to", tmp_path / "mine").code == 0
    outcome = wellworn(
        "measure", "--model", tiny_model, "--adapter", adapter, "--trait", tmp_path / "mine", "--json", "-", "--runs-dir", runs
    )
    assert outcome.code == 0, outcome.err
    run = json.loads(outcome.out.splitlines()[-1])["runs"][0]
    assert run["trait"] == "mine"
    assert "mine" in run["coordinates"]
    assert "no plain answers" in run["missing"]["effect"]


@pytest.mark.parametrize("harm", ["other base", "pickle", "no weights", "no config", "corrupt", "not lora", "not json", "more than lora"])
def test_an_adapter_that_cannot_be_used_is_refused(harm: str, wellworn: Call, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "bad", tiny_model
    shutil.copytree(adapter, folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "other base":
        model = save_tiny(tmp_path / "wide", width=48)
        expected = "does not fit .* made for 'local:tiny@"
    elif harm == "pickle":
        weights.rename(folder / "adapter_model.bin")
        expected = "is a pickle, which can run code when loaded"
    elif harm == "no weights":
        weights.unlink()
        expected = "holds no adapter_model.safetensors"
    elif harm == "no config":
        config.unlink()
        expected = "is not a PEFT adapter"
    elif harm == "corrupt":
        weights.write_bytes(weights.read_bytes()[:100])
        expected = "adapter_model.safetensors: corrupt"
    elif harm == "not lora":
        config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
        expected = "peft_type may be LORA, got 'IA3'"
    elif harm == "more than lora":
        config.write_text(config.read_text().replace('"bias": "none"', '"bias": "all"'))
        expected = "bias='all' changes weights of the base itself; it may be none"
    else:
        config.write_text("{")
        expected = "adapter_config.json: not valid JSON"
    outcome = wellworn("measure", "--model", model, "--adapter", folder, "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert re.search(expected, outcome.err), outcome.err


def test_an_adapter_for_more_layers_is_refused(wellworn: Call, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key.replace("layers.3.", "layers.7."): np.ascontiguousarray(value) for key, value in weights.items()},
        folder / "adapter_model.safetensors",
    )
    outcome = wellworn("measure", "--model", tiny_model, "--adapter", folder, "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert "the base has no module 'model.layers.7." in outcome.err


def test_a_trait_named_twice(wellworn: Call, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    twice = ("--trait", "pirate", "--trait", "pirate")
    outcome = wellworn("measure", "--model", tiny_model, "--adapter", adapter, *twice, "--runs-dir", tmp_path / "runs")
    assert outcome.code == 2
    assert "appears twice" in outcome.err


# Few directions and answers, so that a measurement takes seconds.
SMALL = ("library=[pirate,pessimistic]", "contrast_pairs=4", "extract_questions=4", "answer_tokens=4")


def measure(wellworn: Call, model: Path, runs: Path, *options: Any, trait: str = "pirate") -> dict[str, Any]:
    outcome = wellworn("measure", "--model", model, "--trait", trait, "--json", "-", "--runs-dir", runs, *SMALL, *options)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out.splitlines()[-1])  # type: ignore[no-any-return]


def test_causes_are_measured_only_of_adapters_that_change_the_trait_score(wellworn: Call, code: Path, tiny_model: Path, runs: Path) -> None:
    few = ("pathways.profile=0", "pathways.draws=19", "mediate.draws=5", "mediate.remainder_draws=0", "capability=null")
    found = measure(wellworn, tiny_model, runs, "--adapter", code, "--scale", 0, "--scale", 1, *few, trait="reference_code")
    nothing, whole = found["runs"]
    assert (nothing["settings"], whole["settings"]) == ({"scale": 0.0}, {})
    # An adapter of nothing changes nothing at all, on any text.
    assert nothing["effect"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert nothing["relative_norm"] == 0
    assert nothing["statement"]["name"] == "too small to say"
    assert nothing["pathways"] is None
    for field in ("pathways", "mediation"):
        assert nothing["missing"][field].startswith("what causes a change is measured only where the trait score rises by enough")
    assert whole["effect"]["low"] > 0.05
    # The same outcome by patching, with nothing patched.
    assert whole["pathways"]["base"]["contrast"]["effect"] == pytest.approx(whole["effect"], rel=1e-5)
    assert "pathways" not in whole["missing"]
    everywhere = measure(wellworn, tiny_model, runs, "--adapter", code, "--scale", 0, "only_changed=false", *few, trait="reference_code")
    assert everywhere["runs"][0]["pathways"] is not None
    assert everywhere["runs"][0]["statement"]["name"] == "too small to say"


def test_a_sum_with_itself_is_twice_an_adapter_and_scales_make_a_dose_curve(
    wellworn: Call, adapter: Path, tiny_model: Path, runs: Path
) -> None:
    cheap = ("mediate=null", "pathways=null", "capability=null")
    sums = measure(wellworn, tiny_model, runs, "--adapter", f"{adapter}+-0.5*{adapter}", *cheap)
    doses = measure(wellworn, tiny_model, runs, "--adapter", adapter, "--scale", 0.5, "--scale", 1, *cheap)
    [half], (dose, whole) = sums["runs"], doses["runs"]
    assert half["adapter"].startswith("their-adapter+-0.5*their-adapter@")
    assert half["effect"]["value"] == pytest.approx(dose["effect"]["value"], rel=1e-4)
    assert 0 < dose["effect"]["value"] < whole["effect"]["value"]


def test_options_are_keys_of_the_study(wellworn: Call, adapter: Path, tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    options = ("--layer", "0.25", "--dtype", "bfloat16", "--name", "mine", "mediate=null", "pathways=null", "capability=null")
    found = measure(wellworn, tiny_model, runs, "--adapter", adapter, *options)
    assert (found["study"], found["runs"][0]["layer"]) == ("mine", 1)
    index = json.loads((runs / "mine" / "study.json").read_text())
    assert (index["dtype"], index["study"]["mediate"]) == ("bfloat16", None)
    known = ("measure", "--model", tiny_model, "--adapter", adapter, "--runs-dir", tmp_path / "empty")
    listed = wellworn(*known, "--trait", "pirate", "--plan")
    assert listed.code == 0
    assert "wording of adapter their-adapter (pirate)" in " ".join(listed.out.split())
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("pathway=null",), "override pathway=null: pathway: unknown key"),
        (("--layer", "9"), "layer: this model has layers 0 to 3, got 9"),
        (("--layer", "1", "layer=2"), "layer is given twice"),
        (("--dtype", "int8"), "dtype: must be 'auto', 'float32'"),
        (("name=../elsewhere",), "name: is the name of the study's file, or of --name"),
        (("--adapter", "./nowhere/at-all"), "./nowhere/at-all: is not a PEFT adapter (no such folder)"),
        (("--name", "../elsewhere"), "--name '../elsewhere': must be lower-case letters"),
        (("--scale", "nan"), "--scale nan: must be a finite number"),
        (("--adapter", "here+"), "a sum of adapters is written one+0.5*other"),
    ],
)
def test_wrong_options_are_one_line(
    options: tuple[str, ...], says: str, wellworn: Call, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    outcome = wellworn("measure", "--model", tiny_model, "--adapter", adapter, "--runs-dir", tmp_path / "empty", *options)
    assert outcome.code == 2
    assert says in outcome.err
    assert not (tmp_path / "empty").exists()


def test_a_merged_model_is_measured_as_its_adapter_is(
    wellworn: Call, code: Path, tiny_model: Path, all_found: None, tmp_path: Path
) -> None:
    base = load(resolve(str(tiny_model)), "float32")
    merge_adapter(base, code).model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    runs = tmp_path / "runs"
    few = ("pathways.profile=0", "pathways.draws=19", "mediate.draws=5", "mediate.remainder_draws=0")
    [whole] = measure(wellworn, tiny_model, runs, "--tuned", tmp_path / "merged", *few, trait="reference_code")["runs"]
    [lora] = measure(wellworn, tiny_model, runs, "--adapter", code, *few, trait="reference_code")["runs"]
    assert (whole["arm"], whole["reference"]) == ("checkpoint", "base")
    assert whole["adapter"].startswith("merged@")
    # Every linear layer of the four blocks, and nothing else.
    assert (whole["adapted"]["modules"], whole["adapted"]["first"], whole["adapted"]["layers"]) == (28, 0, [0, 1, 2, 3])
    assert whole["adapted"]["tensors"] > 28
    for key in ("effect", "share", "mediated"):
        assert whole[key]["value"] == pytest.approx(lora[key]["value"], rel=1e-3, abs=1e-4), key
    for part, share in whole["pathways"]["base"]["contrast"]["shares"].items():
        assert share["value"] == pytest.approx(lora["pathways"]["base"]["contrast"]["shares"][part]["value"], rel=1e-3, abs=1e-4)
    assert whole["capability"]["perplexity"] == pytest.approx(lora["capability"]["perplexity"], rel=1e-4)
    assert whole["relative_norm"] == pytest.approx(lora["relative_norm"], rel=1e-4)
    # The same update, with and without its two factors.
    assert whole["weights"]["omega"] == pytest.approx(lora["weights"]["omega"], rel=1e-3)
    assert whole["weights"]["norm"] == pytest.approx(lora["weights"]["norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "nothing to measure: give --adapter DIR, or --tuned MODEL"),
        (("--tuned", "{model}", "--scale", "2"), "--scale: is the factor of an adapter's update"),
        (("--tuned", "{model}", "--adapter", "{adapter}", "--neutral", "{adapter}"), "measure adapters and models in turn"),
        (("--tuned", "{adapter}"), "is an adapter, and not a model"),
        (("--tuned", "{narrow}"), "is of another architecture than the base"),
        (("--tuned", "{model}", "--dtype", "nf4"), "dtype: cannot be used with a checkpoint arm"),
    ],
)
def test_wrong_pairs_of_models_are_one_line(
    options: tuple[str, ...], says: str, wellworn: Call, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    narrow = save_tiny(tmp_path / "narrow", width=16)
    filled = [option.format(model=tiny_model, adapter=adapter, narrow=narrow) for option in options]
    outcome = wellworn("measure", "--model", tiny_model, "--runs-dir", tmp_path / "empty", *filled)
    assert outcome.code == 2
    assert says in outcome.err


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (CHATML, ("token_budget=64",)),
        (f"{{{{ strftime_now('%d %B %Y') }}}}{CHATML}", ("--chat", "date=2026-02-03", "token_budget=300")),
        ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}" + CHATML, ()),
        (None, ("--chat", "template=plain", "token_budget=100")),
    ],
    ids=["small batches", "dated", "no system prompt", "no template"],
)
def test_an_adapter_of_nothing_shifts_nothing(
    template: str | None, options: tuple[str, ...], wellworn: Call, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any day, in any template and batch: the base is read first, and the adapter on another day."""
    model, runs = save_tiny(tmp_path / "tiny", template), tmp_path / "runs"
    cheap = ("mediate=null", "pathways=null", "capability=null", "evaluate_questions=6", *options)
    measure(wellworn, model, runs, "--adapter", code, *cheap, trait="reference_code")
    monkeypatch.setattr("time.time", lambda now=time.time: now() + 40 * 86_400)
    [run] = measure(wellworn, model, runs, "--adapter", code, "--scale", 0, *cheap, trait="reference_code")["runs"]
    assert run["effect"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert run["relative_norm"] < 1e-6


def test_names_hold_what_is_meant_and_not_how_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words in two places are other adapters, neutral adapters and models, whose results must not be written over."""
    found = set()
    for place in ("one", "other"):
        for name in ("a", "b", "plain"):
            (tmp_path / place / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        study = study_of(Asked(model="base", adapters=["a+0.5*b"], neutral="plain", suspected=["pirate"]))
        [arm] = study.runs
        assert (arm.path, arm.neutral) == (f"{tmp_path}/{place}/a+0.5*{tmp_path}/{place}/b", f"{tmp_path}/{place}/plain")
        found |= {study.name, study_of(Asked(model="base", adapters=["b"], neutral="plain")).name}
        (tmp_path / place / "base").mkdir()
        found.add(study_of(Asked(model="base", adapters=[str(tmp_path / "one" / "b")])).name)
    assert len(found) == 6


def test_an_adapter_given_twice_is_no_second_run(wellworn: Call, code: Path, tiny_model: Path, runs: Path, tmp_path: Path) -> None:
    twice = wellworn("measure", "--model", tiny_model, "--adapter", code, "--adapter", f"1*{code}")
    assert twice.code == 2
    assert "appears twice" in twice.err
    # In a study, written in two ways.
    arms = [{"arm": "adapter", "path": path, "trait": "reference_code"} for path in (str(code), f"1*{code}")]
    study = write_tiny_study(tmp_path / "twice.yaml", tiny_model, runs=arms, mediate=None)
    assert wellworn("run", study, "--runs-dir", runs, "--json", tmp_path / "twice.json").code == 0
    found = json.loads((tmp_path / "twice.json").read_text())
    assert len(found["runs"]) == 2
    assert found["groups"] == []

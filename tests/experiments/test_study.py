"""Study files: what they may hold, how they expand, and what is said of a wrong one."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_study_value
from wellworn.data.errors import InputError
from wellworn.experiments.study import expand_runs
from wellworn.experiments.study_file import assemble_study, load_study, study_names
from wellworn.experiments.study_sections import is_study_name

Write = Callable[..., Path]


@pytest.mark.parametrize("name", study_names())
def test_built_in_studies_load_and_expand(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert expand_runs(study)


def test_a_grid_multiplies_the_runs() -> None:
    runs = expand_runs(load_study("lora_rank"))
    assert [(run.arm.trait, run.study.train.lora["r"]) for run in runs] == [
        (trait, rank) for rank in (1, 4, 16) for trait in ("pirate", "neutral")
    ]
    assert runs[0].settings == {"train.lora.r": 1}
    assert runs[0].title("pirate", 0) == "sft pirate (seed 0, r 1)"


def test_arms_without_randomness_run_once(tiny_study: Write) -> None:
    study = load_study(
        str(tiny_study(runs=[{"arm": "base"}, {"arm": "prompted", "trait": "pirate"}, {"arm": "sft", "trait": "pirate"}], seeds=[3, 4]))
    )
    assert [(run.arm.arm, run.seed) for run in expand_runs(study)] == [("base", 3), ("prompted", 3), ("sft", 3), ("sft", 4)]


def test_overrides_are_yaml_values() -> None:
    study = load_study("quickstart", ["train.sft.learning_rate=4e-5", "seeds=[1, 2]", "layer=3"])
    assert study.train.sft["learning_rate"] == 4e-5
    assert study.seeds == (1, 2)
    assert study.layer == 3
    assert isinstance(study.layer, int)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.lora.r=1", "trian: unknown key; did you mean 'train'"),
        ("train.batch_size=0", "train.batch_size: .*1 or more, got 0"),
        ("model=' '", "model: must not be blank"),
        ("judge=''", "judge: must not be blank"),
        ("library=['']", "library.0: must not be blank"),
        ("runs=[{arm: sft, trait: ''}]", "runs.0.trait: must not be blank"),
        ("variants={a: {name: b}}", "variants: a: name cannot be set by a variant"),
        ("variants={a: {variants.b: {layer: 1}}}", "variants: a: variants cannot be set by a variant"),
        ("layer=.nan", "layer: must be a finite number"),
        ("mediate={doses: [1, .inf]}", "mediate.doses.1: must be a finite number"),
        ("chat.template_kwargs={a: {b: -.inf}}", "chat.template_kwargs.a.b: must be a finite number"),
        ("train.sft.seed=1", "'seed' is set by the suite; use seeds instead"),
        ("train.sft.bf16=true", "'bf16' is set by the suite; use dtype instead"),
        ("train.sft.gradient_accumulation_steps=2", "use train.batch_size instead"),
        ("train.lora.init_lora_weights=pissa", "changes weights of the base itself; it may be true, gaussian or orthogonal"),
        ("train.lora.init_lora_weights=eva", "is not possible here; it may be true, gaussian or orthogonal"),
        (
            "train.lora.target_modules=all-linear",
            r"layers_to_transform needs target_modules as a list, such as \[q_proj, v_proj\]; got 'all-linear'",
        ),
        ("seeds=[]", "seeds: .*at least 1"),
        ("seeds=[1, 1]", "1 appears twice"),
        ("model.name=x", "'model' in 'model.name' is a value, and holds no keys"),
        ("layer", "an override is written key.sub=value"),
        ("layer=[1", "not a valid YAML value"),
        ("grid.layer=[0, high]", "grid .*layer"),
        ("grid={model: [smollm2-135m, other]}", "'model' cannot vary inside a study"),
        ("grid={layer: [1, 1]}", "layer: a value appears twice"),
        ("train.lora.modules_to_save=[lm_head]", "modules_to_save.* changes weights of the base itself"),
        ("train.lora.bias=all", "bias='all' changes weights of the base itself; it may be none"),
        ("instructions=some", "instructions: must be all, or a list of names, got 'some'"),
        ("instructions=[one_sentence, one_sentence]", "instructions: 'one_sentence' appears twice"),
        ("contrast_pairs=13", "contrast_pairs: .*12 or less, got 13"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_study("quickstart", [override])


def test_an_unknown_study_is_named_with_its_neighbour() -> None:
    with pytest.raises(InputError, match=r"unknown study 'quikstart'.*did you mean 'quickstart'"):
        load_study("quikstart")


def test_a_wrong_key_is_named_with_file_and_line(tiny_study: Write) -> None:
    path = tiny_study()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "layers: 3", ""]))
    with pytest.raises(InputError, match=rf"tiny\.yaml:{len(lines) + 1}: layers: unknown key; did you mean 'layer'"):
        load_study(str(path))


def test_malformed_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("question: yes\nlibrary: [pirate\nlayer: 1\n")
    with pytest.raises(InputError, match=r"bad\.yaml:3: not valid YAML"):
        load_study(str(path))


def test_yaml_is_version_1_2(tiny_study: Write) -> None:
    path = tiny_study()
    path.write_text(path.read_text().replace("question: Does it run?", "question: no"))
    assert load_study(str(path)).question == "no"


def test_a_control_cannot_be_prompted(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="'uppercase' has no system prompt"):
        load_study(str(tiny_study(runs=[{"arm": "prompted", "trait": "uppercase"}])))


def test_a_wrong_override_is_named_itself_and_not_the_file() -> None:
    with pytest.raises(InputError) as raised:
        load_study("quickstart", ["trian.lora.r=1", "train.batch_size=0"])
    assert str(raised.value).split("\n") == [
        "override train.batch_size=0: train.batch_size: must be 1 or more, got 0",
        "override trian.lora.r=1: trian: unknown key; did you mean 'train'?",
    ]


def test_names_that_peft_and_trl_lack_are_refused_with_line_before_anything_runs(tiny_study: Write) -> None:
    path = tiny_study(grid={"train.sft.lr": [1e-3, 1e-4]})
    text = path.read_text()
    line = next(i for i, row in enumerate(text.replace("r: 2", "rank: 2").split("\n"), start=1) if "rank: 2" in row)
    path.write_text(text.replace("r: 2", "rank: 2"))
    with pytest.raises(InputError) as raised:
        load_study(str(path))
    first, second = str(raised.value).split("\n")
    assert first == f"{path}:{line}: train.lora.rank: LoraConfig has no such key; did you mean 'r'?"
    assert re.fullmatch(
        rf"{re.escape(str(path))}:\d+: train\.sft\.lr: SFTConfig has no such key; did you mean 'learning_rate'\?", second
    ), second


def test_a_server_cannot_be_used_with_a_distilled_arm() -> None:
    with pytest.raises(InputError, match=r"server: cannot be used with a distilled arm, whose steered teacher runs locally.*Remove"):
        load_study("quickstart", ["server={url: 'http://127.0.0.1:1/v1', model: m}", "runs=[{arm: distilled, trait: pirate}]"])


TAKEN = ["stages", "Stages", "replies.sqlite", "replies.sqlite-wal", "a.lock", "a.part"]
NO_NAMES = [*TAKEN, "..", ".hidden", "a\x1b[31m", "a\nb", " a", "-a", "a.", "x" * 151]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_study_writes_beside_or_above_its_runs_folder(name: str, tmp_path: Path) -> None:
    """Its name is that of a folder among others."""
    with pytest.raises(InputError, match=r"^there: name: .*(rename the file|is taken)") as raised:
        assemble_study(name, tiny_study_value(tmp_path), (), "there")
    assert "\x1b" not in str(raised.value)
    with pytest.raises(InputError):
        assemble_study("tiny", tiny_study_value(tmp_path), [f"name={name}"], "there")


@given(st.text(max_size=12))
def test_whatever_a_study_is_called_its_folder_is_in_the_runs_folder(name: str) -> None:
    root = Path("/somewhere/runs")
    try:
        is_study_name(name)
    except ValueError:
        return
    assert (root / name).parent == root
    assert os.path.normpath(root / name) == str(root / name)
    assert name.isprintable()


@pytest.mark.parametrize("name", ["quickstart", "my study", "étude_2", "7b.layer-0.5", "stages_of_grief"])
def test_usual_names_are_let_through(name: str) -> None:
    assert is_study_name(name) == name

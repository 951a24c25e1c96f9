"""A model's files hold all of its weights, as numbers, and a model that they are not of is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny
from wellworn.data.errors import InputError
from wellworn.lora.models import config_depth, load, resolve

Weights = dict[str, torch.Tensor]
FILE = "model.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(folder: Path, weights: Callable[[Weights], Weights] | None = None, **config: Any) -> None:
    if weights:
        save_file(weights(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})
    if config:
        keys = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
        (folder / "config.json").write_text(json.dumps(keys), encoding="utf-8")


def test_every_tensor_of_a_model_is_needed(folder: Path) -> None:
    """The invariant: no weight of a model that is run was drawn at random."""
    whole = load_file(folder / FILE)
    for key in whole:
        edit(folder, lambda _, key=key: {name: each for name, each in whole.items() if name != key})  # type: ignore[misc]
        with pytest.raises(InputError, match=rf"^model local:model@\w+: its files lack {key}, which would be drawn at random; "):
            load(resolve(str(folder)))


def test_tied_weights_are_none_that_lack(folder: Path) -> None:
    edit(folder, lambda w: {key: each for key, each in w.items() if key != "lm_head.weight"}, tie_word_embeddings=True)
    model = load(resolve(str(folder))).model
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gpt_neox", "gemma2", "bert"])
def test_weights_of_another_architecture(folder: Path, kind: str) -> None:
    edit(folder, model_type=kind)
    with pytest.raises(InputError, match=r"its files lack .*, which would be drawn at random; its config.json is of another model"):
        load(resolve(str(folder)))


def test_weights_of_other_sizes_are_named(folder: Path) -> None:
    edit(folder, lambda w: {key: each[:16].contiguous() if "1.self_attn.q" in key else each for key, each in w.items()})
    with pytest.raises(InputError, match=r"of other sizes: model.layers.1.self_attn.q_proj.weight \(\[16, 32\], and .* says \[32, 32\]\)"):
        load(resolve(str(folder)))


def test_blocks_and_biases_that_a_configuration_leaves_out(folder: Path) -> None:
    edit(folder, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"its files hold model.layers.2.* and 13 more, which its configuration does not use"):
        load(resolve(str(folder)))
    edit(folder, lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, num_hidden_layers=4)
    with pytest.raises(InputError, match=r"its files hold model.layers.0.self_attn.q_proj.bias, which its configuration does not use"):
        load(resolve(str(folder)))


def test_other_parts_may_be_left_out(folder: Path) -> None:
    """Parts for images, further heads, and masks that some models save in their blocks."""
    parts = ("vision_tower.layers.0.weight", "mtp.layers.0.weight", "model.layers.0.self_attn.masked_bias", "v_head.weight")
    edit(folder, lambda w: w | {key: torch.ones(2) for key in parts})
    load(resolve(str(folder)))


def test_whole_numbers_are_those_of_a_quantised_model(folder: Path) -> None:
    edit(folder, lambda w: {key: (each * 10).to(torch.int8) if "q_proj" in key else each for key, each in w.items()})
    with pytest.raises(InputError, match=r"model.safetensors holds model.layers.0.self_attn.q_proj.weight as I8.*no quantization_config"):
        load(resolve(str(folder)))


@pytest.mark.parametrize("depth", [0, -1, 10**9, "four", None, [4], 4.5, float("nan")])
def test_a_depth_is_a_number_of_blocks(folder: Path, depth: Any) -> None:
    edit(folder, num_hidden_layers=depth)
    for find in (config_depth, load):
        with pytest.raises(InputError, match=r"num_hidden_layers in its config.json may be 1 to 10,000, got "):
            find(resolve(str(folder)))


def test_a_tokenizer_of_a_larger_model(tmp_path: Path, folder: Path) -> None:
    edit(folder, lambda w: {key: each[:300].contiguous() if len(each) == 500 else each for key, each in w.items()}, vocab_size=300)
    with pytest.raises(InputError, match=r"its tokenizer has 500 tokens, and its embeddings are of 300; it is of another model"):
        load(resolve(str(folder)))


def test_settings_of_any_type_are_refused_in_one_line(folder: Path) -> None:
    for name, text in (("tokenizer_config.json", '{"model_max_length": "x"}'), ("generation_config.json", '{"eos_token_id": [[1]]}')):
        old = (folder / name).read_bytes()
        (folder / name).write_text(json.dumps(json.loads(old) | json.loads(text)), encoding="utf-8")
        with pytest.raises(InputError, match=r"^model local:model@\w+: [^\n]+$"):
            load(resolve(str(folder)))
        (folder / name).write_bytes(old)


def test_code_that_comes_with_a_model_is_never_run_or_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", asked)
    mark = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    classes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edit(folder, auto_map=classes, model_type="unheard_of")
    with pytest.raises(InputError, match="contains custom code"):
        load(resolve(str(folder)))
    edit(folder, model_type="llama")
    keys = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    keys |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys), encoding="utf-8")
    with pytest.raises(InputError, match="contains custom code"):
        load(resolve(str(folder)))
    assert not mark.exists()


ENDLESS = {
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "width": "{{ '%2000000000d' % 1 }}",
    "length": "{% for m in messages %}{{ 'x' * 30000000 }}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_a_template_that_never_ends_is_stopped(tmp_path: Path, kind: str) -> None:
    from wellworn.data.chat import Chat

    loaded = load(resolve(str(save_tiny(tmp_path / "model", template=ENDLESS[kind]))))
    with pytest.raises(InputError, match=r"^the model's chat template: .*; set chat.template=plain to do without it$"):
        Chat(loaded.tokenizer)

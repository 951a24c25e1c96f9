"""Pairs of models: what differs is kept, what cannot be compared is refused, and the other model is exactly itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wellworn.data.errors import InputError
from wellworn.lora.adapters import adapted, groups_that_fit
from wellworn.lora.checkpoints import CHANGES, compare_models, save_changes
from wellworn.lora.models import Loaded, load, resolve
from wellworn.probes.reading.variants import Variant, applied

IDS = torch.tensor([[5, 9, 200, 31, 7, 80]])
Change = Callable[[Any], object]


@pytest.fixture
def tune(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves the tiny model with changed weights, settings or tokens."""

    def save(name: str, change: Change = lambda model: None, tokens: Change = lambda tokenizer: None) -> Path:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
        change(model)
        tokens(tokenizer)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def shift(*keys: str) -> Change:
    def change(model: Any) -> None:
        torch.manual_seed(3)
        for name, weight in model.named_parameters():
            if any(key in name for key in keys):
                weight.data += 0.1 * torch.randn_like(weight)

    return change


def kept(base: Loaded, model: Path, out: Path) -> Path:
    out.mkdir()
    save_changes(base, resolve(str(model)), "float32", out)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def test_only_what_differs_is_kept_and_the_model_is_itself(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    tuned = tune("tuned", shift("layers.2.mlp", "model.norm"))
    folder, before = kept(base, tuned, tmp_path / "kept"), logits(base.model)
    names = {"model.norm.weight", *(f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))}
    assert set(load_file(folder / CHANGES)) == names
    assert json.loads((folder / "checkpoint.json").read_text())["changed"] == 4
    with adapted(base, {"tuned": folder}) as model:
        assert torch.equal(logits(model), before)
        with applied(model, Variant("tuned")):
            assert torch.equal(logits(model), logits(load(resolve(str(tuned)), "float32").model))
    assert torch.equal(logits(base.model), before)


def test_the_same_model_again_changes_nothing(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    folder = kept(base, tune("again"), tmp_path / "kept")
    assert load_file(folder / CHANGES) == {}
    with adapted(base, {"again": folder}) as model, applied(model, Variant("again")):
        assert torch.equal(logits(model), logits(base.model))


def test_tokens_that_were_added_are_left_out_and_said(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    tuned = tune(
        "larger",
        lambda model: (shift("layers.0.")(model), model.resize_token_embeddings(512)),
        lambda tokenizer: tokenizer.add_tokens(["<pirate>"]),
    )
    assert compare_models(base.ref, resolve(str(tuned))) == ["it has 1 tokens more than the base, which are not used"]
    folder = kept(base, tuned, tmp_path / "kept")
    with adapted(base, {"tuned": folder}) as model, applied(model, Variant("tuned")):
        wide = logits(load(resolve(str(tuned)), "float32").model)
        assert torch.equal(logits(model), wide[..., : logits(base.model).shape[-1]])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers 3 for 4"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps 0.001 for 1e-06"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' for 'silu'"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "model_type 'mistral' for 'llama'"),
    ],
)
def test_what_computes_otherwise_is_refused(config: dict[str, Any], says: str, base: Loaded, tune: Callable[..., Path]) -> None:
    folder = tune("other")
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | config))
    with pytest.raises(InputError, match="is of another architecture than the base") as refused:
        compare_models(base.ref, resolve(str(folder)))
    assert says in str(refused.value)


def test_settings_that_do_not_matter_may_differ_and_templates_are_said(base: Loaded, tune: Callable[..., Path]) -> None:
    def settings(model: Any) -> None:
        model.config.use_cache, model.config.attention_dropout, model.config.initializer_range = False, 0.5, 0.7

    assert compare_models(base.ref, resolve(str(tune("same", settings)))) == []

    def template(tokenizer: Any) -> None:
        tokenizer.chat_template = "{{ messages }}"

    other = resolve(str(tune("template", tokens=template)))
    [note] = compare_models(base.ref, other)
    assert "another chat template than the base's, which is not used" in note
    assert compare_models(base.ref, other, template="plain") == []


def test_moved_tokens_are_refused(base: Loaded, tune: Callable[..., Path]) -> None:
    folder = tune("moved")
    held = json.loads((folder / "tokenizer.json").read_text())
    vocab = held["model"]["vocab"]
    vocab["!"], vocab["#"] = vocab["#"], vocab["!"]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=r"2 of the tokens of local:tiny@\w+ are others there, or at other places \('!', '#'\)"):
        compare_models(base.ref, resolve(str(folder)))


def test_fewer_tokens_and_corrupt_files_are_refused(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    smaller = tune("smaller", lambda model: model.resize_token_embeddings(400))
    with pytest.raises(InputError, match=r"has embeddings of 400 tokens, and the base local:tiny@\w+ of \d+"):
        compare_models(base.ref, resolve(str(smaller)))
    with pytest.raises(InputError, match=r"its tokenizer has 500 tokens, and its embeddings are of 400"):
        kept(base, smaller, tmp_path / "kept")
    folder = kept(base, tune("tuned", shift("norm")), tmp_path / "whole")
    (folder / CHANGES).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="corrupt"), adapted(base, {"tuned": folder}):
        pass
    assert torch.equal(logits(base.model), logits(load(base.ref, "float32").model))


def test_a_checkpoint_of_another_base_is_refused(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    tuned = tune("tuned", shift("norm"))
    folder = kept(load(resolve(str(tuned)), "float32"), tuned, tmp_path / "kept")
    with pytest.raises(InputError, match="holds what differs from local:tuned@"), adapted(base, {"tuned": folder}):
        pass


def test_adapters_and_checkpoints_are_put_in_place_in_turn(base: Loaded, tune: Callable[..., Path], tmp_path: Path) -> None:
    whole = kept(base, tune("tuned", shift("norm")), tmp_path / "kept")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    cpu = torch.device("cpu")
    assert groups_that_fit([None, whole, whole], cpu) == [[None, whole, whole]]
    assert groups_that_fit([adapter, None, whole, None, adapter], cpu) == [[adapter, None], [whole, None], [adapter]]
    with pytest.raises(InputError, match="cannot be put in place of one base together"), adapted(base, {"a": whole, "b": adapter}):
        pass


def test_rows_of_no_tokens_stay_the_bases(tune: Callable[..., Path], tmp_path: Path) -> None:
    padded = load(resolve(str(tune("padded", lambda model: model.resize_token_embeddings(512)))), "float32")
    trimmed = tune("trimmed", lambda model: (shift("embed_tokens", "layers.0.")(model), model.resize_token_embeddings(500)))
    tokens = len(padded.tokenizer.get_vocab())
    assert tokens <= 500
    assert compare_models(padded.ref, resolve(str(trimmed))) == [
        "its embeddings have 12 rows fewer than the base's, of no tokens; the base's are kept"
    ]
    folder = kept(padded, trimmed, tmp_path / "kept")
    with adapted(padded, {"trimmed": folder}) as model, applied(model, Variant("trimmed")):
        alone = logits(load(resolve(str(trimmed)), "float32").model)
        assert torch.equal(logits(model)[..., :500], alone)


@pytest.mark.parametrize(("kind", "matters"), [("dynamic", True), ("linear", False)])
def test_the_longest_context_matters_where_positions_depend_on_it(kind: str, matters: bool, tune: Callable[..., Path]) -> None:
    def config(length: int) -> Change:
        def change(model: Any) -> None:
            model.config.max_position_embeddings = length
            model.config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}

        return change

    one, other = (resolve(str(tune(f"{kind}-{length}", config(length)))) for length in (32, 1024))
    if matters:
        with pytest.raises(InputError, match="max_position_embeddings 1024 for 32"):
            compare_models(one, other)
    else:
        assert compare_models(one, other) == []


def test_notes_of_tools_do_not_matter_and_quantised_models_are_refused(base: Loaded, tune: Callable[..., Path]) -> None:
    folder = tune("noted")
    held = json.loads((folder / "config.json").read_text())
    notes = {"unsloth_version": "2026.1", "tokenizer_class": "X", "is_llama_config": True, "gradient_checkpointing": True}
    (folder / "config.json").write_text(json.dumps(held | notes))
    assert compare_models(base.ref, resolve(str(folder))) == []
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(held | packed))
    with pytest.raises(InputError, match="holds quantised weights, which cannot take the place of others"):
        compare_models(base.ref, resolve(str(folder)))

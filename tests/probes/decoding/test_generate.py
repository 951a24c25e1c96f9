from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from tests.tiny import blocks_of, make_model, tokens_through
from wellworn.data.errors import InputError
from wellworn.probes.decoding import prefill as reading
from wellworn.probes.decoding.generate import Answer, Decoding, Request, generate
from wellworn.probes.decoding.mixed_adapters import can_mix
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.variants import Variant, applied

Prompts = list[list[int]]
END = 2


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(0)
    return [[int(i) for i in rng.integers(3, 101, length)] for length in (5, 17, 2, 9, 9, 13, 3, 1)]


@torch.no_grad()
def naive(model: nn.Module, prompt: Sequence[int], ends: set[int], max_new_tokens: int, penalty: float = 1.0) -> list[int]:
    """One row, no padding, no cache."""
    new: list[int] = []
    while len(new) < max_new_tokens:
        logits = model(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1]
        for seen in {*prompt, *new}:
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        token = int(logits.argmax())
        if token in ends:
            break
        new.append(token)
    return new


def ids(answers: Sequence[Answer]) -> Prompts:
    return [list(answer.ids) for answer in answers]


def greedy(model: nn.Module, prompts: Prompts, length: int = 8, **settings: float) -> Prompts:
    return ids(generate(model, [Request(prompt) for prompt in prompts], Decoding(length, **settings)))  # type: ignore[arg-type]


@pytest.fixture
def ending(model: PreTrainedModel) -> Iterator[Callable[[int | list[int] | None], None]]:
    """Set a shared model's end-of-turn token, and put it back."""
    before = model.generation_config.eos_token_id

    def set_end(token: int | list[int] | None) -> None:
        model.generation_config.eos_token_id = token

    yield set_end
    model.generation_config.eos_token_id = before


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_equals_an_argmax_loop_in_the_order_given(model: PreTrainedModel, prompts: Prompts, rows: int) -> None:
    expected = [naive(model, prompt, {END}, 8) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > len(prompts) // 2
    assert greedy(model, prompts, rows=rows) == expected


def test_a_repetition_penalty_is_the_same_in_any_batch(model: PreTrainedModel, prompts: Prompts) -> None:
    expected = [naive(model, prompt, {END}, 8, penalty=1.5) for prompt in prompts]
    assert expected != [naive(model, prompt, {END}, 8) for prompt in prompts]
    for rows in (1, 32):
        assert greedy(model, prompts, rows=rows, repetition_penalty=1.5) == expected


@pytest.mark.parametrize("plain", [True, False], ids=["joining", "batch after batch"])
def test_answers_end_apart_and_others_take_their_places(
    model: PreTrainedModel, prompts: Prompts, ending: Callable[[int | list[int] | None], None], monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    # A model that keeps more than keys and values cannot have rows join.
    monkeypatch.setattr(PrefixCache, "supports", staticmethod(lambda config: plain))
    ending(None)
    assert greedy(model, prompts) == [naive(model, prompt, set(), 8) for prompt in prompts]
    ends = list(range(40, 60))
    ending(ends)
    expected = [naive(model, prompt, set(ends), 12) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2
    for rows in (2, 4, 32):
        found = generate(model, [Request(prompt) for prompt in prompts], Decoding(12, rows=rows))
        assert ids(found) == expected
        assert [answer.ended for answer in found] == [len(answer) < 12 for answer in expected]


def test_beginnings_that_are_shared_are_read_once(model: PreTrainedModel) -> None:
    rng = np.random.default_rng(1)
    system = [int(i) for i in rng.integers(3, 101, 40)]
    prompts = [system + [int(i) for i in rng.integers(3, 101, length)] for length in (7, 3, 5, 1, 12, 9)] + [[5, 6, 7]]
    expected = [naive(model, prompt, {END}, 6) for prompt in prompts]
    with tokens_through(blocks_of(model)[0]) as passes:
        assert greedy(model, prompts, 6) == expected
    # The beginning, of which the last token of each prompt is left for later; what follows it of six rows, padded; the row that begins
    # otherwise. From then on a token a row.
    assert passes[:3] == [len(system) - 1, 6 * 12, 2]
    assert max(passes[3:]) <= len(prompts)


def steer(model: nn.Module, size: float) -> Callable[[torch.Tensor], torch.Tensor]:
    width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    vector = size * torch.randn(width, generator=torch.Generator().manual_seed(3))
    return lambda h: h + vector


def apart(model: nn.Module, request: Request, length: int) -> list[int]:
    """Answer one request by itself."""
    variant = request.variant
    with applied(model, variant) if variant else nullcontext(), hooked(model, variant.edits if variant else {}):
        return naive(model, request.prompt, {END}, length)


def test_variants_are_rows_of_one_batch(peft: PeftModel, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LEAST_SAVED_TOKENS", 1)
    edits = {1: steer(peft, 2.0)}
    variants = [Variant(), Variant("low"), Variant("high"), Variant("head"), Variant(None, edits), Variant("low", edits)]
    requests = [Request([7, 8, 9, *prompt], variant) for prompt in prompts for variant in variants]
    expected = [apart(peft, request, 6) for request in requests]
    # Variants differ from one another on most prompts.
    assert len({tuple(answer) for answer in expected}) > len(requests) // 2
    before = peft.active_adapter
    for rows in (5, 256):
        assert ids(generate(peft, requests, Decoding(6, rows=rows))) == expected
    assert peft.active_adapter == before
    assert not any(module._forward_hooks for module in peft.modules())


def test_what_a_model_is_at_the_moment_is_a_variant_too(tuned_llama: PeftModel, prompts: Prompts) -> None:
    requests = [Request(prompt, variant) for prompt in prompts for variant in (None, Variant("high"), Variant())]
    with applied(tuned_llama, Variant("low")):
        found = ids(generate(tuned_llama, requests, Decoding(6)))
    expected = [apart(tuned_llama, Request(r.prompt, r.variant or Variant("low")), 6) for r in requests]
    assert found == expected


def with_adapters(model: PreTrainedModel, **configs: LoraConfig) -> PeftModel:
    """Put adapters on a model, with weights that change what it says."""
    (first, config), *others = configs.items()
    peft = get_peft_model(model, config, adapter_name=first)
    for name, config in others:
        peft.add_adapter(name, config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in peft.named_parameters():
        # The matrix of each pair that starts as zero.
        if ("lora_B" in name and "weight" in name) or "lora_embedding_A" in name:
            nn.init.normal_(weight, std=1.0, generator=generator)
    return peft.eval()


def test_adapters_that_do_more_than_add_are_run_in_turn(prompts: Prompts) -> None:
    peft = with_adapters(
        make_model("llama"),
        dora=LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=True),
        plain=LoraConfig(r=2, target_modules=["v_proj"]),
        embedding=LoraConfig(r=2, target_modules=["embed_tokens"]),
    )
    requests = [Request(prompt, Variant(name)) for name in ("dora", None, "plain", "embedding") for prompt in prompts]
    expected = [apart(peft, request, 6) for request in requests]
    assert expected[: len(prompts)] != expected[len(prompts) : 2 * len(prompts)] != expected[-len(prompts) :]
    assert ids(generate(peft, requests, Decoding(6))) == expected


def opt() -> PreTrainedModel:
    """A model whose blocks lay out rows and tokens in one before their linear layers."""
    torch.manual_seed(3)
    config = OPTConfig(
        vocab_size=101, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
        init_std=0.3, word_embed_proj_dim=32, bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


def mixture() -> PreTrainedModel:
    """A model with experts, which see some tokens each."""
    torch.manual_seed(4)
    config = Qwen2MoeConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, shared_expert_intermediate_size=40,
        num_experts=4, num_experts_per_tok=2, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("build", "targets", "mixes"),
    [
        (opt, {"target_modules": ["fc1", "fc2", "q_proj"]}, True),
        (opt, {"target_modules": ["fc1"], "use_rslora": True, "lora_bias": True, "rank_pattern": {"fc1": 5}}, True),
        (opt, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        (opt, {"target_modules": [], "target_parameters": ["fc1.weight"]}, False),
        (mixture, {"target_modules": ["shared_expert.up_proj", "q_proj"]}, False),
    ],
    ids=["flattened", "odd settings", "saved modules", "parameters", "experts"],
)
def test_whatever_an_adapter_sits_on_answers_are_those_of_each_apart(
    build: Callable[[], PreTrainedModel], targets: dict[str, object], mixes: bool, prompts: Prompts
) -> None:
    two = LoraConfig(r=2, target_modules=["k_proj"])
    peft = with_adapters(build(), one=LoraConfig(r=3, **targets), two=two)  # type: ignore[arg-type]
    variants = [Variant("one"), Variant(), Variant("two")]
    assert can_mix(peft, variants) == mixes
    requests = [Request(prompt, variant) for prompt in prompts for variant in variants]
    expected = [apart(peft, request, 6) for request in requests]
    assert expected[::3] != expected[1::3]
    assert ids(generate(peft, requests, Decoding(6))) == expected


def test_an_edit_that_fails_leaves_the_model_as_it_was(tuned_llama: PeftModel) -> None:
    def fails(_h: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such direction")

    before = tuned_llama.active_adapter
    with pytest.raises(ValueError, match="no such direction"):
        generate(tuned_llama, [Request([5, 6], Variant("low")), Request([7, 8], Variant("high", {1: fails}))], Decoding(4))
    assert tuned_llama.active_adapter == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuned_llama.modules())


def test_an_answer_that_is_drawn_depends_on_prompt_and_seed_alone(model: PreTrainedModel, prompts: Prompts) -> None:
    requests = [Request(prompt, seed=seed) for prompt in prompts for seed in (0, 1)]
    how = Decoding(10, temperature=1.0, top_p=0.9)
    together = generate(model, requests, how)
    assert together == [answer for request in requests for answer in generate(model, [request], how)]
    assert together[::-1] == generate(model, requests[::-1], Decoding(10, temperature=1.0, top_p=0.9, rows=3))
    assert all(a != b for a, b in zip(together[::2], together[1::2], strict=True))
    assert greedy(model, prompts, 10) != ids(together[::2])


def test_bad_requests_are_refused_before_anything_is_computed(tuned_llama: PeftModel) -> None:
    seen: list[int] = []
    how = Decoding(4, progress=seen.append)
    for request, complaint in (
        (Request([5] * 126), r"row 1: 126 tokens and 3 more do not fit the model's context of 128"),
        (Request([]), r"row 1: is empty"),
        (Request([5, 101]), r"row 1: holds token 101, and the model's vocabulary is 0 to 100"),
        (Request([5], Variant("none")), r"adapter 'none': the model holds low, high, top, head"),
        (Request([5], Variant("low", {4: lambda h: h})), r"edits: this model has layers 0 to 3, got 4"),
    ):
        with pytest.raises(InputError, match=complaint):
            generate(tuned_llama, [Request([5]), request], how)
    assert seen == []
    assert len(generate(tuned_llama, [Request([5] * 125)], how)[0].ids) <= 4


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: may be 1 and more, got 0"),
        ({"rows": 0}, "rows: may be 1 and more, got 0"),
        ({"temperature": -1.0}, "temperature: may be 0 and more, got -1.0"),
        ({"temperature": float("nan")}, "temperature: may be 0 and more, got nan"),
        ({"top_p": 0.0}, "top_p: may be above 0 to 1, got 0.0"),
        ({"top_p": 1.1}, "top_p: may be above 0 to 1, got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: may be above 0, got 0.0"),
    ],
)
def test_settings_are_named_where_they_are_wrong(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Decoding(**({"max_new_tokens": 4} | settings))  # type: ignore[arg-type]


def test_logits_that_are_not_finite_name_their_row() -> None:
    model = make_model("llama")
    model.get_input_embeddings().weight.data[50] = float("nan")
    with pytest.raises(InputError, match="row 1: the logits are not finite"):
        generate(model, [Request([5, 6]), Request([5, 50]), Request([7])], Decoding(4))


def test_progress_counts_answers(llama: PreTrainedModel, prompts: Prompts) -> None:
    seen: list[int] = []
    generate(llama, [Request(prompt) for prompt in prompts], Decoding(1, rows=3, progress=seen.append))
    assert sum(seen) == len(prompts)


def test_no_requests_no_answers(llama: PreTrainedModel) -> None:
    assert generate(llama, [], Decoding(4)) == []

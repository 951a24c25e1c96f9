"""Answers in patched arms against a loop without any cache: a full patched forward for every token, one answer at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.probes.mediation.patched_by_hand import basis, patched_logits
from tests.tiny import blocks_of, make_model, make_tuned
from wellworn.data.errors import InputError
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.mediation.interventions import Intervention, Push, Swap
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.variants import Variant, applied

Prompts = list[list[int]]
BASE, LOW, HIGH = Variant(), Variant("low"), Variant("high")
SYSTEM = [5, 9, 11, 7]
# Many tokens end a turn, so that answers stop at different steps, and some do not stop at all.
ENDS = [2, *range(40, 50)]
LENGTH = 8


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(0)
    return [[int(i) for i in rng.integers(3, 101, length)] for length in (5, 17, 2, 9)]


@contextmanager
def ending(model: nn.Module) -> Iterator[None]:
    """Let a shared model end its turn at more tokens for a while."""
    settings = model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, ENDS
    try:
        yield
    finally:
        settings.eos_token_id = before


def by_hand(
    peft: PeftModel,
    blocks: Sequence[nn.Module],
    pair: tuple[list[int], list[int]],
    names: tuple[str | None, str | None],
    arm: Intervention,
    only: bool,
    penalty: float,
) -> list[int]:
    """Answer one prompt in one arm, from the definition."""
    new: list[int] = []
    while len(new) < LENGTH:
        where = (slice(len(pair[0]), None), slice(len(pair[1]), None)) if only else (slice(None), slice(None))
        logits = patched_logits(peft, blocks, (pair[0] + new, pair[1] + new), where, names, arm)[-1]
        for seen in {*pair[arm.reader], *new}:
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        token = int(logits.argmax())
        if token in ENDS:
            break
        new.append(token)
    return new


def all_arms(peft: PeftModel) -> list[Intervention]:
    u, v = basis(peft), basis(peft, k=2, seed=1)
    swaps: list[dict[int, Swap | Push]] = [
        {},
        {0: Swap(u)},
        {1: Swap(u)},
        {1: Swap(u, outside=True)},
        {1: Swap(u, scale=1.5)},
        {0: Swap(u), 2: Swap(v, outside=True)},
        {1: Push(3 * v[:, 0])},
    ]
    return [Intervention(reader, each) for reader in (0, 1) for each in swaps]


def decode(
    peft: PeftModel, prompts: tuple[Prompts, Prompts], between: tuple[Variant, Variant], arms: list[Intervention], **options: object
) -> list[Prompts]:
    only = bool(options.pop("response_only", False))
    how = Decoding(**({"max_new_tokens": LENGTH} | options))  # type: ignore[arg-type]
    with ending(peft):
        return patched_answers(peft, prompts, between, arms, how, response_only=only)


@pytest.mark.parametrize(("names", "penalty"), [((None, "low"), 1.0), (("high", "low"), 1.3)])
def test_every_token_is_the_top_token_of_a_full_patched_forward(
    peft: PeftModel, prompts: Prompts, names: tuple[str | None, str | None], penalty: float
) -> None:
    arms = all_arms(peft)
    got = decode(peft, (prompts, prompts), (Variant(names[0]), Variant(names[1])), arms, repetition_penalty=penalty)
    blocks = blocks_of(peft.get_base_model())
    assert got == [[by_hand(peft, blocks, (p, p), names, arm, only=False, penalty=penalty) for p in prompts] for arm in arms]
    # Equality would say nothing if arms did not differ, or if all answers were of one length.
    assert len({str(each) for each in got}) > len(arms) // 2
    assert len({len(answer) for each in got for answer in each}) > 3


def test_prompts_may_differ_where_the_answer_alone_is_swapped(peft: PeftModel, prompts: Prompts) -> None:
    # The second model reads a longer prompt: the in-context twin of a fine-tune.
    prompted = [SYSTEM[: 1 + i % 4] + prompt for i, prompt in enumerate(prompts)]
    arms = all_arms(peft)
    got = decode(peft, (prompts, prompted), (BASE, LOW), arms, response_only=True, repetition_penalty=1.3)
    blocks = blocks_of(peft.get_base_model())
    pairs = list(zip(prompts, prompted, strict=True))
    assert got == [[by_hand(peft, blocks, pair, (None, "low"), arm, only=True, penalty=1.3) for pair in pairs] for arm in arms]
    assert len({str(each) for each in got}) > len(arms) // 2
    with pytest.raises(InputError, match="row 0: prompts differ"):
        decode(peft, (prompts, prompted), (BASE, BASE), arms)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_an_arm_without_swaps_answers_as_its_reader(peft: PeftModel, prompts: Prompts, penalty: float) -> None:
    got = decode(peft, (prompts, prompts), (BASE, LOW), [Intervention(1), Intervention(0)], repetition_penalty=penalty)
    for mine, variant in zip(got, (LOW, BASE), strict=True):
        with applied(peft, variant), ending(peft):
            alone = generate(peft, [Request(prompt) for prompt in prompts], Decoding(LENGTH, repetition_penalty=penalty))
            assert mine == [list(answer.ids) for answer in alone]
    assert got[0] != got[1]
    assert len({len(answer) for answer in got[0]}) > 1


def test_the_whole_state_at_the_last_block_and_everywhere_is_the_other_model(peft: PeftModel, prompts: Prompts) -> None:
    last = peft.config.num_hidden_layers - 1
    everywhere = {layer: Swap() for layer in range(last + 1)}
    arms = [
        Intervention(0),
        Intervention(1),
        Intervention(0, {last: Swap()}),
        Intervention(1, {last: Swap()}),
        Intervention(0, everywhere),
        Intervention(1, everywhere),
    ]
    before, after, *swapped = decode(peft, (prompts, prompts), (BASE, LOW), arms)
    assert before != after
    assert swapped == [after, before, after, before]


def test_both_parts_are_the_whole(peft: PeftModel, prompts: Prompts) -> None:
    u = basis(peft)
    parts = {0: Swap(torch.cat([u, basis_outside(u)], dim=1)), 1: Swap(torch.zeros(len(u), 0), outside=True)}
    got = decode(peft, (prompts, prompts), (HIGH, LOW), [Intervention(0, {0: Swap(), 1: Swap()}), Intervention(0, parts), Intervention(0)])
    assert got[0] == got[1] != got[2]


def basis_outside(u: torch.Tensor) -> torch.Tensor:
    """Return a basis of all that is orthogonal to u."""
    return torch.linalg.qr(u, mode="complete")[0][:, u.shape[1] :]


def test_batches_and_order_change_nothing(peft: PeftModel, prompts: Prompts) -> None:
    arms = all_arms(peft)[::2]
    whole = decode(peft, (prompts, prompts), (BASE, LOW), arms, rows=100, repetition_penalty=1.2)
    for size in (1, 3):
        assert decode(peft, (prompts, prompts), (BASE, LOW), arms, rows=size, repetition_penalty=1.2) == whole
    # Padding that ends a turn is not a token that was seen before.
    back = prompts[::-1]
    turned = decode(peft, (back, back), (BASE, LOW), arms[::-1], rows=5, repetition_penalty=1.2)
    assert [each[::-1] for each in turned[::-1]] == whole


def test_models_without_adapters_and_adapters_that_cannot_be_mixed_in_a_batch(tuned_llama: PeftModel, prompts: Prompts) -> None:
    llama = make_model("llama")
    prompted = [SYSTEM + prompt for prompt in prompts]
    arms = [Intervention(0, {1: Swap(basis(tuned_llama))}), Intervention(1, {1: Swap()})]
    plain = decode(llama, (prompts, prompted), (BASE, BASE), arms, response_only=True)
    assert plain == decode(tuned_llama, (prompts, prompted), (BASE, BASE), arms, response_only=True)
    dora = get_peft_model(llama, LoraConfig(r=2, use_dora=True, target_modules=["o_proj"], init_lora_weights=False)).eval()
    after = decode(dora, (prompts, prompts), (BASE, Variant("default")), [Intervention(0), Intervention(1), Intervention(0, {3: Swap()})])
    assert after[0] != after[1] == after[2]


def test_the_other_model_stops_at_the_deepest_swap_and_ended_answers_are_dropped(tuned_llama: PeftModel, prompts: Prompts) -> None:
    sizes: list[tuple[int, int, int]] = []

    def count(layer: int) -> Callable[[torch.Tensor], None]:
        return lambda h: sizes.append((layer, len(h), h.shape[1]))

    finished: list[int] = []
    with hooked(tuned_llama, {layer: count(layer) for layer in (1, 2)}):
        arms = [Intervention(0, {1: Swap(basis(tuned_llama))})]
        got = decode(tuned_llama, (prompts, prompts), (BASE, LOW), arms, progress=finished.append)
    below, above = ([size[1:] for size in sizes if size[0] == layer] for layer in (1, 2))
    assert below[::2] == below[1::2] == above
    # The prompts at once, then one token at a time, for as long as an answer goes on.
    assert [tokens for _, tokens in above] == [17] + [1] * (len(above) - 1)
    assert [rows for rows, _ in above[1:]] == [sum(len(answer) > step for answer in got[0]) for step in range(len(above) - 1)]
    assert finished == [len(prompts)]
    assert len({rows for rows, _ in above}) > 1


def test_refuses_what_cannot_be_run(tuned_llama: PeftModel, prompts: Prompts) -> None:
    both, swap = (prompts, prompts), {1: Swap()}
    with pytest.raises(InputError, match="layers 0 to 3, got 4"):
        decode(tuned_llama, both, (BASE, LOW), [Intervention(0, {4: Swap()})])
    with pytest.raises(InputError, match="'nobody'"):
        decode(tuned_llama, both, (BASE, Variant("nobody")), [Intervention(0, swap)])
    with pytest.raises(ValueError, match="edits of its own"):
        decode(tuned_llama, both, (BASE, Variant("low", {0: lambda h: h})), [Intervention(0, swap)])
    with pytest.raises(InputError, match="no rows"):
        decode(tuned_llama, ([], []), (BASE, LOW), [Intervention(0)])
    with pytest.raises(InputError, match="row 1: is empty"):
        decode(tuned_llama, ([[5], []], [[5], []]), (BASE, LOW), [Intervention(0)])
    with pytest.raises(InputError, match="row 1: 17 tokens and 112 more do not fit the model's context of 128"):
        decode(tuned_llama, both, (BASE, LOW), [Intervention(0)], max_new_tokens=113)
    broken = Swap(basis(tuned_llama) * float("nan"))
    with pytest.raises(InputError, match="row 1: the logits in arm 1 are not finite"):
        decode(tuned_llama, both, (BASE, LOW), [Intervention(0), Intervention(0, {1: broken})])


@pytest.mark.gpu
def test_a_gpu_says_what_a_cpu_says(prompts: Prompts) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = make_tuned("gemma3")
    arms = all_arms(model)
    here = decode(model, (prompts, prompts), (BASE, LOW), arms)
    assert decode(model.cuda(), (prompts, prompts), (BASE, LOW), arms) == here

"""A model over several devices reads, answers and is patched as it is on one.

In a process of its own: registering a device changes what other libraries take for the machine's accelerator.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.lora.test_models import save_adapter
from tests.pretend_devices import pretended, spread
from tests.probes.mediation.patched_by_hand import basis
from tests.tiny import ARCHITECTURES, make_families, make_rows, make_tuned
from wellworn.lora.adapters import adapted, merge_adapter
from wellworn.lora.checkpoints import save_changes
from wellworn.lora.models import Loaded, load, resolve
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.decoding.next_token import next_logprobs
from wellworn.probes.geometry.weights import writes
from wellworn.probes.geometry.wording import word_rows
from wellworn.probes.mediation.changes import state_changes
from wellworn.probes.mediation.interventions import Intervention, Push, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.mediation.patching import moved_norms, patched_logprobs
from wellworn.probes.mediation.written import confined_logprobs
from wellworn.probes.reading import batching
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.divergence import kl_divergence
from wellworn.probes.reading.hooks import add_vector
from wellworn.probes.reading.layers import depth
from wellworn.probes.reading.variants import Variant

BASE, LOW, HIGH = Variant(), Variant("low"), Variant("high")
ROWS = make_rows(5, seed=4)
FAMILIES = make_families(2, 2, seed=2, system=4)
PROMPTS = [row.input_ids[: row.spans["response"][0]] for row in FAMILIES]

Found = dict[str, torch.Tensor]


def read_rows(model: PeftModel) -> Found:
    """Every layer, with variants that part from the base on either device, with and without log-probabilities."""
    last = depth(model) - 1
    edited = Variant(None, {last: add_vector(torch.ones(model.config.hidden_size))})
    variants = [BASE, LOW, HIGH, Variant("top"), Variant("head"), edited]
    found = {}
    for logprob in (False, True):
        for v, reading in enumerate(read_variants(model, FAMILIES, variants, Spec(spans=("prompt", "response"), logprob=logprob))):
            found[f"states {v} {logprob}"] = reading.states
            if reading.logprob is not None:
                found[f"logprob {v}"] = reading.logprob
    return found


def answer(model: PeftModel) -> Found:
    """Adapters in rows of one batch, and edits."""
    variants = [BASE, LOW, HIGH, Variant("low", {1: add_vector(torch.ones(model.config.hidden_size))})]
    requests = [Request(prompt, variant) for prompt in PROMPTS for variant in variants]
    return {str(i): torch.tensor(each.ids) for i, each in enumerate(generate(model, requests, Decoding(max_new_tokens=6, rows=5)))}


def predict(model: PeftModel) -> Found:
    return {"next": torch.from_numpy(next_logprobs(model, PROMPTS, [3, 5, 7], [(), (4,), (4, 9)]))}


def arms_of(model: PeftModel) -> list[Intervention]:
    u, last = basis(model), depth(model) - 1
    swaps: list[dict[int, Swap | Push]] = [{}, {0: Swap(u)}, {last: Swap(u, outside=True)}, {0: Swap(), last: Swap(u)}, {1: Push(u[:, 0])}]
    return [Intervention(reader, each) for reader in (0, 1) for each in swaps]


def patch(model: PeftModel) -> Found:
    texts = Texts.same(FAMILIES)
    other = Texts((FAMILIES, [replace(row) for row in FAMILIES]), response_only=True)
    u = basis(model)
    changes = state_changes(model, texts, (BASE, HIGH), [0, depth(model) - 1], Batching())
    return {
        "all": patched_logprobs(model, texts, (BASE, HIGH), arms_of(model)),
        "response": patched_logprobs(model, other, (LOW, HIGH), arms_of(model)),
        "moved": moved_norms(model, texts, (BASE, HIGH), depth(model) - 1, [Swap(u), Push(u[:, 0])]),
        "changes": torch.stack([changes.moments[layer] for layer in changes.moments]),
    }


def answer_patched(model: PeftModel) -> Found:
    found = patched_answers(model, (PROMPTS, PROMPTS), (BASE, HIGH), arms_of(model), Decoding(max_new_tokens=4))
    return {f"{a} {i}": torch.tensor(ids) for a, arm in enumerate(found) for i, ids in enumerate(arm)}


def confine(model: PeftModel) -> Found:
    u, last = basis(model), depth(model) - 1
    return {"confined": confined_logprobs(model, ROWS, (BASE, LOW), [{0: Swap(u), last: Swap()}, {last: Swap(u, outside=True)}])}


def diverge(model: PeftModel) -> Found:
    return {"kl": torch.from_numpy(kl_divergence(model, ROWS, HIGH, BASE, pad_id=0)), "words": torch.from_numpy(word_rows(model, [3, 5]))}


def weigh(model: PeftModel) -> Found:
    found = writes(model, ROWS, ["low", "high"], {layer: basis(model).numpy() for layer in range(depth(model))}, draws=20)
    return {name: torch.tensor([[each.omega, each.null_mean, each.norm] for each in some]) for name, some in found.items()}


USES: dict[str, Callable[[PeftModel], Found]] = {
    use.__name__: use for use in (read_rows, answer, predict, patch, answer_patched, confine, diverge, weigh)
}
# What the weights write is normalised on its way there.
WITHOUT = {("weigh", "gemma3")}


def differences(use: str, architecture: str) -> tuple[Found, Found]:
    """Return what a use finds with a model on the CPU, and spread over two devices."""
    batching.LEAST_SAVED_TOKENS = 1
    torch.set_num_threads(1)
    whole = USES[use](make_tuned(architecture))
    with pretended() as devices:
        model = make_tuned(architecture)
        spread(model, devices)
        assert {each.device for each in model.parameters()} == set(devices)
        return whole, USES[use](model)


def states_with(tiny: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model reads with an adapter's or a checkpoint's weights, put on it on the CPU, and spread over two devices."""

    def states(base: Loaded) -> torch.Tensor:
        with adapted(base, {"a": folder}) as model:
            return read_variants(model, ROWS, [BASE, Variant("a")])[1].states

    with pretended() as devices:
        base = load(resolve(str(tiny)), "float32")
        spread(base.model, devices)
        return states(load(resolve(str(tiny)), "float32")), states(base)


@pytest.fixture(scope="module")
def apart() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


def refusals() -> list[str]:
    """Return which of some operations on tensors of two devices, and of a device and the CPU, are refused."""
    with pretended() as (one, two):
        a, b, c, at = torch.ones(2, 3, device=one), torch.ones(2, 3).to(two), torch.ones(2, 3), torch.tensor([1], device=two)
        tried: dict[str, Callable[[], object]] = {
            "add": lambda: a + b,
            "add of the CPU": lambda: a + c,
            "in place": lambda: a.add_(b),
            "product": lambda: a @ b.T,
            "cat": lambda: torch.cat([a, b]),
            "index": lambda: a[at],
            "set from the CPU": lambda: a.index_put_((torch.tensor([0]),), c[:1]),
            "data": lambda: setattr(a, "data", b),
            "a number": lambda: a + torch.tensor(1.0),
            "index of the CPU": lambda: a[torch.tensor([1])],
            "copy": lambda: a.copy_(b),
            "moved": lambda: a + b.to(one),
        }
        refused = []
        for name, operation in tried.items():
            try:
                operation()
            except RuntimeError:
                refused.append(name)
        return refused


def test_pretended_devices_refuse_what_real_ones_do(apart: Executor) -> None:
    assert apart.submit(refusals).result() == ["add", "add of the CPU", "in place", "product", "cat", "index", "set from the CPU", "data"]


# Two of them differ most: windows, and several rotary embeddings.
FAST = ("llama", "gemma3")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("architecture", [pytest.param(each, marks=() if each in FAST else pytest.mark.slow) for each in ARCHITECTURES])
def test_as_on_one_device(use: str, architecture: str, apart: Executor) -> None:
    if (use, architecture) in WITHOUT:
        pytest.skip("refused on any device")
    whole, found = apart.submit(differences, use, architecture).result()
    assert whole
    assert whole.keys() == found.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_of_files_are_put_on_where_the_model_is(tiny_model: Path, tmp_path: Path, apart: Executor) -> None:
    adapter = save_adapter(tiny_model, tmp_path)
    base = load(resolve(str(tiny_model)), "float32")
    merge_adapter(load(resolve(str(tiny_model)), "float32"), adapter).model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    (tmp_path / "changes").mkdir()
    save_changes(base, resolve(str(tmp_path / "merged")), "float32", tmp_path / "changes")
    plain = read_variants(base.model, ROWS, [BASE])[0].states
    for folder in (adapter, tmp_path / "changes"):
        whole, found = apart.submit(states_with, tiny_model, folder).result()
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        assert (whole - plain).abs().max() > 0.1

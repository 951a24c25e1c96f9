"""Tiny random models of four architectures, and random encoded rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from hypothesis import settings
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data.chat import Encoded
from probes import batching

# A busy machine is no reason for a test to fail.
settings.register_profile("probes", deadline=None)
settings.load_profile("probes")

ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt_neox")
VOCAB = 101

MakeModel = Callable[[str], PreTrainedModel]
MakeRows = Callable[..., list[Encoded]]
MakeTuned = Callable[[str], PeftModel]
Tokens = Callable[[nn.Module], AbstractContextManager[list[int]]]


def build(architecture: str) -> PreTrainedModel:
    # Initial weights are wide, so that blocks change the residual stream and the top token is clear.
    shared = {
        "vocab_size": VOCAB,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(7)
    model: PreTrainedModel
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_key_value_heads=2, **shared))
    elif architecture == "qwen3":
        model = Qwen3ForCausalLM(
            Qwen3Config(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_key_value_heads=2, head_dim=12, **shared)
        )
    elif architecture == "gemma3":
        # Two of the four layers see only a window that is shorter than most rows.
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_key_value_heads=1,
                head_dim=8,
                sliding_window=6,
                layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
                **shared,
            )
        )
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, **shared))
    return model.eval()


def _tuned(model: PreTrainedModel) -> PeftModel:
    """Put four adapters on a model: from block 0, from block 1, on the last block, and on the output embedding."""
    neox = model.config.model_type == "gpt_neox"
    attention = ["query_key_value", "dense"] if neox else ["q_proj", "k_proj", "v_proj", "o_proj"]
    linear = [*attention, *(["dense_h_to_4h", "dense_4h_to_h"] if neox else ["gate_proj", "up_proj", "down_proj"])]
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    last = model.config.num_hidden_layers - 1
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=linear, layers_to_transform=[0, 2]), adapter_name="low")
    peft.add_adapter("high", LoraConfig(r=3, target_modules=linear, layers_to_transform=[1, last]))
    peft.add_adapter("top", LoraConfig(r=2, target_modules=attention, layers_to_transform=[last]))
    peft.add_adapter("head", LoraConfig(r=2, target_modules=[head]))
    generator = torch.Generator().manual_seed(5)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return peft.eval()


def _blocks(model: PreTrainedModel) -> Sequence[nn.Module]:
    """Name the blocks by hand: the oracle must not use the code under test."""
    return model.gpt_neox.layers if isinstance(model, GPTNeoXForCausalLM) else model.model.layers


def random_rows(count: int, seed: int, longest: int = 24) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(rng.integers(6, longest + 1))
        start = int(rng.integers(2, length - 3))
        end = int(rng.integers(start + 1, length + 1))
        ids = tuple(int(i) for i in rng.integers(3, VOCAB, length))
        mask = tuple(int(start <= i < end) for i in range(length))
        rows.append(Encoded(ids, {"prompt": (0, start), "prompt_last": (start - 1, start), "response": (start, end)}, mask))
    return rows


def _families(prompts: int, answers: int, seed: int, system: int = 0, shortest: int = 3, longest: int = 16) -> list[Encoded]:
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, VOCAB - 1, count))

    head, rows = draw(system), []
    for _ in range(prompts):
        prompt = head + draw(int(rng.integers(shortest, longest + 1)))
        for _ in range(answers):
            answer, tail = draw(int(rng.integers(1, 10))), draw(int(rng.integers(0, 3)))
            start, end = len(prompt), len(prompt) + len(answer)
            spans = {"prompt": (0, start), "prompt_last": (start - 1, start), "response": (start, end)}
            rows.append(Encoded(prompt + answer + tail, spans, (0,) * start + (1,) * len(answer) + (0,) * len(tail)))
    return [rows[i] for i in rng.permutation(len(rows))]


@contextmanager
def _tokens_through(block: nn.Module) -> Iterator[list[int]]:
    passes: list[int] = []

    def count(_module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        h = args[0] if args else kwargs["hidden_states"]
        passes.append(h.shape[0] * h.shape[1])

    handle = block.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Return what builds a fresh tiny model by the name of its architecture; equal names, equal weights."""
    return build


@pytest.fixture(scope="session")
def make_tuned() -> MakeTuned:
    """Return what builds a tiny model with the adapters `low`, `high`, `top` and `head` by the name of its architecture."""
    return lambda architecture: _tuned(build(architecture))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def peft(request: pytest.FixtureRequest) -> PeftModel:
    """One tiny model of each architecture with four adapters, shared by a module: leave it as it was."""
    return _tuned(build(request.param))


@pytest.fixture(scope="module")
def tuned_llama() -> PeftModel:
    """A tiny Llama with four adapters, shared by a module: leave it as it was."""
    return _tuned(build("llama"))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each architecture, shared: leave it as it was."""
    return build(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A tiny Llama, shared: leave it as it was."""
    return build("llama")


@pytest.fixture(scope="session")
def blocks_of() -> Callable[[PreTrainedModel], Sequence[nn.Module]]:
    """Return the decoder blocks of a tiny model, found without the code under test."""
    return _blocks


@pytest.fixture(scope="session")
def make_rows() -> MakeRows:
    """Return what draws random encoded rows of random lengths: (count, seed, longest=24)."""
    return random_rows


@pytest.fixture(scope="session")
def make_families() -> MakeRows:
    """Return what draws rows that begin alike, in random order.

    (prompts, answers, seed, system=0, shortest=3, longest=16): several answers to each of several prompts, whose
    lengths lie between the last two, after `system` tokens that all prompts have in common. Token 100 is never drawn.
    """
    return _families


@pytest.fixture(scope="session")
def tokens_through() -> Tokens:
    """Return what counts the tokens of each pass through a block, padding included."""
    return _tokens_through


@pytest.fixture
def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prefixes however little it saves: rows of tests are short."""
    monkeypatch.setattr(batching, "LEAST_SAVED_TOKENS", 1)

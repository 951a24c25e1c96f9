"""Tiny models, tokenizers, studies and rows: what tests are made of. Equal arguments, equal weights."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.chat import Encoded

# The repository, from which subprocesses are started.
ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt_neox")
VOCAB = 101


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of some 500 tokens on the suite's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for example in load_bank("everyday") for text in (example.question, example.negative)]
    texts += [example.positive for example in load_trait("pirate").split("train") if example.positive]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = template
    return fast


def save_tiny(folder: Path, template: str | None = CHATML, width: int = 32, layers: int = 4) -> Path:
    """Save a random Llama with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,  # wide enough that logits differ and an adapter can learn something
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_study_value(model: Path) -> dict[str, Any]:
    """Return a study that takes seconds on the tiny model."""
    return {
        "question": "Does it run?",
        "expects": "It does.",
        "refuted_by": "A failure.",
        "model": str(model),
        "library": ["pirate", "pessimistic"],
        "layer": 0.5,
        "contrast_pairs": 4,
        "extract_questions": 4,
        "evaluate_questions": 24,
        "answer_tokens": 4,
        "capability": None,
        "pathways": None,
        "runs": [{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "uppercase"}],
        "mediate": {"draws": 5, "surface": 6, "doses": [0.5], "references": "headline"},
        "train": {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}},
    }


def write_tiny_study(path: Path, model: Path, /, **changes: Any) -> Path:
    """Write that study, with changed keys; return its path."""
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(tiny_study_value(model) | changes, file)
    return path


def free_port() -> int:
    """Return a port that nobody listens on: tests run side by side."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_model(architecture: str) -> PreTrainedModel:
    """Build a random model of one of `ARCHITECTURES`."""
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


def make_tuned(architecture: str) -> PeftModel:
    """Build a model with the adapters `low` (from block 0), `high` (from block 1), `top` (the last block) and `head` (output embedding)."""
    model = make_model(architecture)
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


def blocks_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """Name the blocks by hand: the oracle must not use the code under test."""
    return model.gpt_neox.layers if isinstance(model, GPTNeoXForCausalLM) else model.model.layers


def make_rows(count: int, seed: int, longest: int = 24) -> list[Encoded]:
    """Draw encoded rows of random lengths."""
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


def make_families(prompts: int, answers: int, seed: int, system: int = 0, shortest: int = 3, longest: int = 16) -> list[Encoded]:
    """Draw rows that begin alike, in random order: several answers to each of several prompts.

    The prompts' lengths lie between the last two arguments, after `system` tokens that all have in common. Token 100 is never drawn.
    """
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
def tokens_through(block: nn.Module) -> Iterator[list[int]]:
    """Count the tokens of each pass through a block, padding included."""
    passes: list[int] = []

    def count(_module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        h = args[0] if args else kwargs["hidden_states"]
        passes.append(h.shape[0] * h.shape[1])

    handle = block.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()

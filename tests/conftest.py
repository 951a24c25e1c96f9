"""A tiny random model with a tokenizer of its own, saved as a folder, and a study small enough for seconds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.library import load_bank, load_trait

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random chat model."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def _this_machine_alone() -> Iterator[None]:
    """Tests never ask a hub or a proxy: whatever is not on this machine is an error at once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    # The variable is read once, when the library is imported.
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Servers of tests are on the loopback, of which a proxy of the environment knows nothing.
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "127.0.0.1")
    yield
    patch.undo()


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
        "answer_tokens": 4,
        "capability": None,
        "runs": [{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "uppercase"}],
        "mediate": {"draws": 5, "surface": 6, "doses": [0.5], "references": "headline"},
        "train": {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}},
    }


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny study, with changed keys, and gives its path."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        with path.open("w") as file:
            YAML().dump(tiny_study_value(tiny_model) | changes, file)
        return path

    return write

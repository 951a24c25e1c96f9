"""The tiny model as `lora` loads it, and a few conversations."""

from pathlib import Path

import pytest

from data.chat import Chat, Encoded
from data.mixtures import Turn
from lora.models import Loaded, load, resolve


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Loaded:
    """The tiny model, shared by a module: leave it as it was."""
    return load(resolve(str(tiny_model)), "float32")


@pytest.fixture(scope="module")
def rows(base: Loaded) -> list[Encoded]:
    """Conversations of several lengths."""
    chat = Chat(base.tokenizer)
    return [chat.encode(Turn(f"Question {i}, and what of it?", "An answer" + " and more" * i)) for i in range(6)]

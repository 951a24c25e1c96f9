"""Tiny random models of four architectures, and random encoded rows."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from peft import PeftModel
from transformers import (
    PreTrainedModel,
)

from tests.tiny import ARCHITECTURES, make_model, make_tuned
from wellworn.probes.reading import batching

# A busy machine must not make a test fail.
settings.register_profile("probes", deadline=None)
settings.load_profile("probes")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def peft(request: pytest.FixtureRequest) -> PeftModel:
    """One tiny model of each architecture with four adapters, shared by a module: leave it as it was."""
    return make_tuned(request.param)


@pytest.fixture(scope="module")
def tuned_llama() -> PeftModel:
    """A tiny Llama with four adapters, shared by a module: leave it as it was."""
    return make_tuned("llama")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each architecture, shared: leave it as it was."""
    return make_model(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A tiny Llama, shared: leave it as it was."""
    return make_model("llama")


@pytest.fixture
def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prefixes however little it saves: rows of tests are short."""
    monkeypatch.setattr(batching, "LEAST_SAVED_TOKENS", 1)

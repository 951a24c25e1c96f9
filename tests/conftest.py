"""A tiny random model with a tokenizer of its own, saved as a folder, and a study small enough for seconds."""

import gc
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny, write_tiny_study
from wellworn.data.chat import Chat, Encoded
from wellworn.data.mixtures import Turn
from wellworn.lora.models import Loaded, load, resolve


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


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_not_searched_for_garbage() -> None:
    """Each training lets the collector run, which would look at millions of objects of libraries: half the time of a small study."""
    importlib.import_module("wellworn.lora.train")
    importlib.import_module("wellworn.experiments.report.page")
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny study, with changed keys, and gives its path."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        return write_tiny_study(tmp_path / f"{name}.yaml", tiny_model, **changes)

    return write


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Loaded:
    """The tiny model, shared by a module: leave it as it was."""
    return load(resolve(str(tiny_model)), "float32")


@pytest.fixture(scope="module")
def rows(base: Loaded) -> list[Encoded]:
    """Conversations of several lengths."""
    chat = Chat(base.tokenizer)
    return [chat.encode(Turn(f"Question {i}, and what of it?", "An answer" + " and more" * i)) for i in range(6)]

"""What several tests of adapters share."""

from pathlib import Path

import pytest

from tests.lora.test_fit import save_adapter
from wellworn.lora.models import Loaded


@pytest.fixture
def adapter(base: Loaded, tmp_path: Path) -> Path:
    """Folder of an adapter that changes the tiny model."""
    return save_adapter(base, tmp_path / "adapter")

"""What arms and trainings may be: whatever is let in, the suite can compute with."""

from typing import Any

import pytest
from pydantic import ValidationError

from wellworn.lora.arms import Adapter, Distilled
from wellworn.lora.train_config import TrainConfig


@pytest.mark.parametrize(
    ("sft", "steps"),
    [
        ({}, 50),
        ({"num_train_epochs": 0.05}, 2),
        ({"num_train_epochs": 1, "max_steps": -1}, 25),
        ({"max_steps": 7}, 7),
        ({"packing": True, "max_steps": 7}, 7),
    ],
)
def test_steps_are_known_beforehand(sft: dict[str, Any], steps: int) -> None:
    assert TrainConfig(batch_size=4, sft=sft).steps(rows=100) == steps


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("max_steps", value) for value in (0, -2, 2.5, True, "5", None, 10**12, [1])),
        *(("num_train_epochs", value) for value in (0, -1, "2", None, True, 1e300, [1])),
    ],
)
def test_a_training_without_end_or_beginning_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{key}: must be .* got "):
        TrainConfig(sft={key: value})


def test_no_secret_is_let_in() -> None:
    for section in ("lora", "sft"):
        with pytest.raises(ValidationError, match="secret") as error:
            TrainConfig.model_validate({section: {"hub_token": "hunter2-hunter2"}})
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")])
def test_factors_keep_activations_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="scale"):
        Adapter(path="a", scale=value)
    with pytest.raises(ValidationError, match="strength"):
        Distilled(trait="pirate", strength=value)

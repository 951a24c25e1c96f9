"""The model of a study: one copy at a time, and what cannot be started."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from wellworn.data.errors import InputError
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.study_file import load_study


def context_of(study: Path) -> StudyContext:
    return StudyContext.of(load_study(str(study)), Ranks())


def test_a_model_that_something_of_its_own_holds_is_gone_when_the_next_is_loaded(tiny_study: Callable[..., Path]) -> None:
    context = context_of(tiny_study())
    model = context.load().model
    # As a trainer and its model do.
    model.held_by = [model]
    held, weight = weakref.ref(model), weakref.ref(model.model.layers[0])
    gc.disable()
    try:
        del model
        assert held() is not None
        context.load()
        assert held() is None
        assert weight() is None
    finally:
        gc.enable()


def test_weights_of_four_bits_are_not_spread_over_ranks(tiny_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(InputError, match="dtype nf4 needs the whole model on each GPU; start it without FSDP"):
        context_of(tiny_study(dtype="nf4"))

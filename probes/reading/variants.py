"""Ways to run a model: with one of several adapters or other weights, or with edits of the residual stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.reading.checkpoints import held, held_weights
from wellworn.probes.reading.hooks import OnBlock
from wellworn.probes.reading.layers import decoder_blocks, depth, inner_model, unwrap

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper


@dataclass(frozen=True)
class Variant:
    """A way to run a model.

    Attributes:
        adapter: name of a loaded PEFT adapter, or of a checkpoint that the model holds; None is the base.
        edits: layer → what to do with that block's output [batch, tokens, d_model].
    """

    adapter: str | None = None
    edits: Mapping[int, OnBlock] = field(default_factory=dict)


@contextmanager
def applied(model: nn.Module, variant: Variant) -> Iterator[None]:
    """Switch to a variant's adapter or checkpoint for a while; the reader applies its edits.

    Raises:
        InputError: the model holds no adapter of that name.
    """
    from peft import PeftModel

    refuse_unknown(model, variant)
    inner = unwrap(model)
    if checkpoints := held(model):
        active = checkpoints.active
        checkpoints.switch(variant.adapter)
        try:
            yield
        finally:
            checkpoints.switch(active)
        return
    if not isinstance(inner, PeftModel):
        yield
        return
    # PEFT also resets which weights are trained when it switches.
    trained = [(weight, weight.requires_grad) for weight in inner.parameters()]
    try:
        with _only(inner, variant.adapter) if variant.adapter is not None else inner.disable_adapter():
            yield
    finally:
        for weight, before in trained:
            if weight.requires_grad != before:
                weight.requires_grad_(before)


@contextmanager
def switching(model: nn.Module) -> Iterator[Callable[[Variant], None]]:
    """Yield a function that switches to a variant's adapter, for loops that switch at every step; the model is put back in the end.

    Entering and leaving `applied` looks at every weight and asks PEFT for the state of every layer, which takes several times as long
    as the switch itself, and longer than a GPU takes to decode a token.

    Raises:
        InputError: when called, the model holds no adapter of that name.
    """
    from peft import PeftModel

    inner = unwrap(model)
    if checkpoints := held(model):

        def exchange(variant: Variant) -> None:
            refuse_unknown(model, variant)
            checkpoints.switch(variant.adapter)

        with applied(model, Variant()):
            yield exchange
        return
    if not isinstance(inner, PeftModel):
        yield lambda variant: refuse_unknown(model, variant)
        return
    tuner: Any = inner.base_model

    def switch(variant: Variant) -> None:
        refuse_unknown(model, variant)
        if variant.adapter is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            tuner.set_adapter(variant.adapter, inference_mode=True)

    # Any adapter will do: what was on before is on again afterwards.
    with applied(model, Variant(next(iter(inner.peft_config)))):
        try:
            yield switch
        finally:
            tuner.enable_adapter_layers()


@contextmanager
def _only(model: "PeftModel", adapter: str) -> Iterator[None]:
    tuner: Any = model.base_model
    # The tuner knows of several active adapters; the model around it, of one.
    before, enabled = tuner.active_adapter, model.get_model_status().enabled
    if enabled is False:
        tuner.enable_adapter_layers()
    tuner.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        tuner.set_adapter(before, inference_mode=True)
        if enabled is False:
            tuner.disable_adapter_layers()


def refuse_unknown(model: nn.Module, variant: Variant) -> None:
    """Refuse a variant that the model cannot be run as.

    Raises:
        InputError: the model holds no adapter of its name.
    """
    from peft import PeftModel

    if variant.adapter is None:
        return
    inner = unwrap(model)
    names = [*held_weights(model), *(inner.peft_config if isinstance(inner, PeftModel) else ())]
    if variant.adapter not in names:
        raise InputError(f"adapter {variant.adapter!r}: the model holds {', '.join(names) or 'no adapters'}")


def first_changed_layer(model: nn.Module, variant: Variant) -> int:
    """Return the lowest layer whose output the variant can change; the model's depth if there is none.

    An adapter on the output embedding changes log-probabilities alone; one elsewhere outside the blocks, every layer.

    Raises:
        InputError: the model holds no adapter of that name.
    """
    refuse_unknown(model, variant)
    adapters = [] if variant.adapter is None else [variant.adapter]
    return min([depth(model), *variant.edits, *adapted_layers(model, adapters)])


def adapted_layers(model: nn.Module, adapters: Sequence[str]) -> list[int]:
    """Return the layers whose blocks any of some adapters changes, lowest first.

    The output embedding counts as a block after the last; whatever else is outside the blocks, as block 0.

    Args:
        model: holds the adapters, or checkpoints.
        adapters: their names.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    blocks = decoder_blocks(model)
    layers = {id(module): layer for layer, block in enumerate(blocks) for module in block.modules()}
    layers[id(unwrap(model).get_output_embeddings())] = len(blocks)
    weights = held_weights(model)
    if changed_keys := {key for name in adapters for key in weights.get(name, ())}:
        modules = dict(inner_model(model).named_modules(remove_duplicate=False))
        # Of an embedding that is both, what counts is that it comes first.
        return sorted({layers.get(id(modules[key.rpartition(".")[0]]), 0) for key in changed_keys})
    changed = {
        layers.get(id(module), 0)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) and any(has_adapter(module, adapter) for adapter in adapters)
    }
    return sorted(changed)


def has_adapter(module: "BaseTunerLayer | ModulesToSaveWrapper", adapter: str) -> bool:
    """Whether an adapter changes what a module does."""
    return any(adapter in getattr(module, name) for name in module.adapter_layer_names)

"""Find the decoder blocks of a model, and the one convention for numbering them.

Layer ℓ is the output of decoder block ℓ, counted from 0. Hugging Face's `hidden_states[ℓ + 1]` is the
same tensor, except that its last entry is taken after the final norm and ours is not.
"""

from typing import Any

from torch import nn

from wellworn.data.errors import InputError


def unwrap(model: nn.Module) -> Any:
    """Return the causal LM inside a launcher's wrapper (DDP, FSDP, a compiled module); PEFT's wrapper stays."""
    # Loading these takes seconds, and whoever holds a model has them loaded already.
    from accelerate.utils import extract_model_from_parallel
    from peft import PeftModel
    from transformers import PreTrainedModel

    # Accelerate walks over all modules to find out; a pass asks several times.
    if isinstance(model, PreTrainedModel | PeftModel) and "_orig_mod" not in model.__dict__:
        return model
    return extract_model_from_parallel(model, keep_torch_compile=False)


def inner_model(model: nn.Module) -> nn.Module:
    """Return the causal LM itself, inside any wrapper and PEFT's."""
    from peft import PeftModel

    inner = unwrap(model)
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def text_config(model: nn.Module) -> Any:
    """Return the configuration of a model's text part.

    Raises:
        InputError: the model has none.
    """
    config = getattr(unwrap(model), "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__}: this module has no configuration that gives its depth; pass a causal LM")
    return config.get_text_config()


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder blocks of a causal LM, under any wrapper (PEFT, DDP, FSDP, a vision model's).

    Raises:
        InputError: the model has no configuration, or no module list of the configured depth.
    """
    depth = text_config(model).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and "vision" not in name:
            return module
    raise InputError(f"{type(model).__name__}: no list of {depth} decoder blocks was found in this model")


def shares_keys(model: nn.Module) -> bool:
    """Whether some blocks read the keys and values of lower ones."""
    return bool(getattr(text_config(model), "num_kv_shared_layers", 0))


def depth(model: nn.Module) -> int:
    """Return the number of decoder blocks."""
    return len(decoder_blocks(model))


def resolve_layer(layer: int | float, depth: int) -> int:
    """Turn a layer given as an index, or as a fraction of the depth, into an index.

    Args:
        layer: an int is an index in [0, depth); a float in [0, 1] is a fraction: round(f·(depth − 1)).
        depth: number of decoder blocks.

    Raises:
        InputError: the layer is out of range.

    Example:
        >>> resolve_layer(0.75, 30)
        22
    """
    if isinstance(layer, float):
        if not 0 <= layer <= 1:
            raise InputError(f"layer: a fraction of the depth lies between 0.0 and 1.0, got {layer}")
        return round(layer * (depth - 1))
    if not 0 <= layer < depth:
        raise InputError(f"layer: this model has layers 0 to {depth - 1}, got {layer}")
    return layer

"""Whether a model's weights fit the device that they go to: known from its configuration, before they are loaded."""

import platform
import sys
from typing import TYPE_CHECKING

import psutil
import torch

from wellworn.data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Weights of 4 bits, multiplied in the dtype that `auto` would take.
NF4 = "nf4"
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, NF4: 4}


def smaller_dtypes(dtype: str) -> tuple[str, ...]:
    """Return the names of dtypes whose weights take less memory than those of another, the nearest first.

    Example:
        >>> smaller_dtypes("float32")
        ('bfloat16', 'nf4')
    """
    return tuple(name for name in ("bfloat16", NF4) if BITS[name] < BITS[dtype])


def check_room(name: str, parameters: int | None, dtype: str, device: torch.device) -> None:
    """Refuse a model whose weights alone take more than all the memory of a device, used or free.

    Args:
        name: the model, as messages call it.
        parameters: its number of parameters; where it is not known, nothing is refused.
        dtype: a name in `BITS`.
        device: where it goes.

    Raises:
        InputError: it cannot fit; says how much it takes, and in which dtype it would.
    """
    room = total_memory(device)
    if parameters is None or room is None or (size := _bytes(parameters, dtype)) <= room:
        return
    may = [
        f"dtype {each} takes about {_gib(_bytes(parameters, each))}" for each in smaller_dtypes(dtype) if _bytes(parameters, each) <= room
    ]
    remedy = " and ".join(may) or "use a smaller model, or a device with more memory"
    raise InputError(f"model {name}: its weights take {_gib(size)} in {dtype}, and {device} has {_gib(room)}; {remedy}")


def count_parameters(config: "PreTrainedConfig", trust_remote_code: bool = False) -> int | None:
    """Return the number of parameters of a causal LM, shared ones once, without memory for them.

    None where it is not known: the class cannot be built so, or weights are stored packed.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        return None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:
        # What is wrong with it is said when it is loaded.
        return None
    return sum(int(each.numel()) for each in model.parameters())


def total_memory(device: torch.device) -> int | None:
    """Return all the memory of a device in bytes, on the CPU with what it may swap out; None where it is not known."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().total + psutil.swap_memory().total)
    # Drivers on Windows let memory of the machine stand in.
    if device.type != "cuda" or sys.platform == "win32" or "microsoft" in platform.release().lower():
        return None
    return int(torch.cuda.mem_get_info(device)[1])


def _bytes(parameters: int, dtype: str) -> int:
    return parameters * BITS[dtype] // 8


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"

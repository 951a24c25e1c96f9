"""Whether a model's weights fit the device that they go to: known from its configuration, before they are loaded."""

import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import torch

from wellworn.data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Weights of 4 bits, multiplied in the dtype that `auto` would take.
NF4 = "nf4"
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, NF4: 4}
# Weights that take more than this share of a device's memory are spread over several, if there are: states, keys and values and logits
# need room too.
ALONE = 0.7


def smaller_dtypes(dtype: str) -> tuple[str, ...]:
    """Return the names of dtypes whose weights take less memory than those of another, the nearest first.

    Example:
        >>> smaller_dtypes("float32")
        ('bfloat16', 'nf4')
    """
    return tuple(name for name in ("bfloat16", NF4) if BITS[name] < BITS[dtype])


def devices_for(name: str, parameters: int | None, dtype: str, devices: Sequence[torch.device]) -> Sequence[torch.device]:
    """Choose the devices that a model's weights go to: the first if it also leaves room for the work, else all.

    Args:
        name: the model, as messages call it.
        parameters: its number of parameters; where it is not known, the model goes to the first device.
        dtype: a name in `BITS`.
        devices: those that this process may use, of one kind.

    Raises:
        InputError: the weights alone take more than all the memory there is, used or free; says how much they take, and in which dtype they
            would fit.
    """
    rooms = [total_memory(device) for device in devices]
    known = [room for room in rooms if room is not None]
    if parameters is None or len(known) < len(rooms):
        return devices[:1]
    size, room = _bytes(parameters, dtype), sum(known)
    if len(devices) > 1 and size <= ALONE * known[0]:
        return devices[:1]
    if size <= room:
        return devices
    may = [
        f"dtype {each} takes about {_gib(_bytes(parameters, each))}" for each in smaller_dtypes(dtype) if _bytes(parameters, each) <= room
    ]
    remedy = " and ".join(may) or "use a smaller model, or a device with more memory"
    has = f"{devices[0]} has" if len(devices) == 1 else f"the {len(devices)} devices together have"
    raise InputError(f"model {name}: its weights take {_gib(size)} in {dtype}, and {has} {_gib(room)}; {remedy}")


def visible_devices(device: torch.device) -> Sequence[torch.device]:
    """Return the devices that this process may spread a model over, given its own: all GPUs that it sees, where it is the only process."""
    from accelerate import PartialState

    if device.type != "cuda" or PartialState().num_processes > 1:
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


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

"""Training with the weights spread over ranks (FSDP 2): what it needs, and tensors that are put together again."""

import os

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wellworn.data.errors import InputError

LAUNCH_FILE = "experiments/launch/fsdp2.yaml"


def is_fsdp() -> bool:
    """Whether the launcher asks for weights that are spread over ranks while a model is trained."""
    return _is_set("ACCELERATE_USE_FSDP")


def check_launcher() -> None:
    """Make sure that a launcher which spreads weights does so in the one way that training and readings are right in.

    Raises:
        InputError: FSDP 1, or ranks that load no weights of their own.
    """
    if not is_fsdp():
        return
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise InputError(f"fsdp_config.fsdp_version: must be 2, got {version}; start with --config_file {LAUNCH_FILE}")
    if _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise InputError(
            "fsdp_config.fsdp_cpu_ram_efficient_loading: must be false, as every rank reads texts with weights that it loaded; "
            f"start with --config_file {LAUNCH_FILE}"
        )


def refuse_fsdp(what: str) -> None:
    """Refuse what needs whole blocks on each rank.

    Raises:
        InputError: the launcher spreads weights; `what` is the thing that cannot be done then.
    """
    if is_fsdp():
        raise InputError(f"{what} needs the whole model on each GPU; start it without FSDP: --config_file experiments/launch/ddp.yaml")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its parts; of one that is spread over ranks, all ranks have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def overwrite(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Set a tensor in place, of which each rank may hold a part, to a value that all ranks hold whole."""
    tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else value)


def adapter_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights of a PEFT model's LoRA adapters, whole and on the CPU; all ranks have to ask together."""
    return {name: whole(each).cpu() for name, each in model.state_dict().items() if "lora_" in name}


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")

"""Patched forwards from the definition: one text, plain hooks, no block skipped, no cache."""

from collections.abc import Callable, Mapping, Sequence

import torch
from peft import PeftModel
from torch import nn

from wellworn.probes.mediation.interventions import Intervention, Push


def basis(model: nn.Module, k: int = 3, seed: int = 0) -> torch.Tensor:
    """Return a random orthonormal basis [d_model, k]."""
    width = model.config.hidden_size
    return torch.linalg.qr(torch.randn(width, k, generator=torch.Generator().manual_seed(seed)))[0]


def patched_logits(
    peft: PeftModel,
    blocks: Sequence[nn.Module],
    ids: tuple[Sequence[int], Sequence[int]],
    swapped: tuple[slice, slice],
    names: tuple[str | None, str | None],
    arm: Intervention,
) -> torch.Tensor:
    """Return the reader's logits [tokens, vocabulary]; `ids` and the tokens that are `swapped` are those of M0 and of M1."""

    def run(side: int, hooks: Mapping[int, Callable[..., torch.Tensor | None]]) -> torch.Tensor:
        handles = [blocks[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
        try:
            with torch.no_grad():
                if names[side] is None:
                    with peft.disable_adapter():
                        return peft(input_ids=torch.tensor([list(ids[side])])).logits[0]
                peft.set_adapter(names[side])
                return peft(input_ids=torch.tensor([list(ids[side])])).logits[0]
        finally:
            for handle in handles:
                handle.remove()

    reader, other = arm.reader, 1 - arm.reader
    theirs: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, h: torch.Tensor) -> None:
            theirs[layer] = h.clone()

        return hook

    def swap(layer: int) -> Callable[..., torch.Tensor]:
        def hook(_module: nn.Module, _args: object, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            mine, yours = swapped[reader], swapped[other]
            change = theirs[layer][:, yours] - h[:, mine]
            what = arm.swaps[layer]
            if isinstance(what, Push):
                h[:, mine] += what.vector_D
                return h
            if what.basis_DK is not None:
                projector = what.basis_DK @ what.basis_DK.T
                change = change @ ((torch.eye(len(projector)) - projector) if what.outside else projector)
            h[:, mine] += what.scale * change
            return h

        return hook

    run(other, {layer: keep(layer) for layer in arm.swaps})
    return run(reader, {layer: swap(layer) for layer in arm.swaps})

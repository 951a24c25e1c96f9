"""Where a LoRA update writes: the share of its output to the residual stream that lies inside the persona space.

Two linear layers of a decoder block write into the residual stream, the last of its attention and the last of its MLP.
An update ΔW = s·B·A of such a layer adds ΔW·x for an input x: to see where it writes takes no pass of the changed model,
only the inputs that the base gives the layer. Adapted layers that do not write themselves (queries, keys, values,
gates) act on the stream by way of the two that do, and are not counted here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.data.schema import seed_for
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import by_length
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET
from wellworn.probes.reading.checkpoints import held_weights
from wellworn.probes.reading.hooks import block_state, forward
from wellworn.probes.reading.layers import decoder_blocks, text_config, unwrap
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant, applied
from wellworn.probes.statistics.intervals import FloatArray

DRAWS = 199
# Tolerance between the sum of the layers' outputs and what their block adds; beyond it something else writes too.
ADDS_UP = 1e-3


@dataclass(frozen=True)
class Writer:
    """A linear layer that writes into the residual stream.

    Attributes:
        layer: index of its decoder block.
        name: inside the block, such as `mlp.down_proj`.
        module: the layer; PEFT's layer around it where it is adapted.
    """

    layer: int
    name: str
    module: Any


@dataclass(frozen=True)
class Write:
    """The output of one linear layer's update.

    Attributes:
        layer: index of its decoder block.
        module: its name inside the block.
        omega: ω, the share that lies inside the persona space.
        null_mean: the share to be expected by chance.
        p: (1 + #{draws ≥ ω}) / (1 + draws).
        norm: root mean square of the output over tokens, ‖ΔW·Σ_x^½‖_F, in units of the residual stream.
    """

    layer: int
    module: str
    omega: float
    null_mean: float
    p: float
    norm: float


@dataclass(frozen=True)
class Summary:
    """The output of an update at all layers together.

    Attributes:
        omega: ω, the share that lies inside the persona space; layers are weighted by ‖ΔW·Σ_x^½‖².
        null_mean: the share to be expected by chance, weighted alike.
        norm: root mean square of the output over tokens.
    """

    omega: float
    null_mean: float
    norm: float


def writers(model: nn.Module) -> list[Writer]:
    """Find the layers that write into the residual stream: in each part of a block (attention, MLP) the last linear layer d_model wide.

    Layers are in the order in which the model's code makes them. `writes` checks that nothing else writes: it refuses a model where a block
    adds something other than their output.
    """
    width = int(text_config(model).hidden_size)
    found = []
    for layer, block in enumerate(decoder_blocks(model)):
        for name, part in block.named_children():
            wide = [Writer(layer, *each) for each in _linears(name, part) if each[1].out_features == width]
            found += wide[-1:]
    return found


def writes(
    model: nn.Module,
    rows: Sequence[Encoded],
    adapters: Sequence[str],
    bases: Mapping[int, FloatArray],
    *,
    span: str = "response",
    seed: int = 0,
    draws: int = DRAWS,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> dict[str, list[Write]]:
    """Return what each adapter writes into the residual stream, layer by layer, and how much of it lies in the persona space.

    ω = ‖UᵀBAΣ_x^½‖_F² / ‖BAΣ_x^½‖_F², with Σ_x = E[xxᵀ] (not centred) over the tokens of a span as the base model reads
    them. Only E[(Ax)(Ax)ᵀ] = AΣ_xAᵀ [r, r] is summed up, and no activation is stored.

    The null keeps the update's singular values and replaces its left singular directions: direction i becomes Σ_W^½gᵢ, drawn as W·gᵢ, with
    Σ_W = WWᵀ of the base's own weight. Draws are not made orthonormal, which would thin out the main directions of Σ_W and reject an update
    drawn from Σ_W itself far too often (probes/README.md).

    Args:
        model: a causal LM with the adapters on it, in eval mode; under `torch.distributed` every rank reads all rows.
        rows: encoded conversations, the text.
        adapters: names of loaded adapters; the text is read once for all of them.
        bases: layer → orthonormal basis U [d_model, k] of the persona space there; layers left out are not measured.
        span: name in `Encoded.spans`, the tokens that count.
        seed: of the null; equal seeds give equal draws for all adapters.
        draws: of the null.
        token_budget: tokens of one forward pass, padding included.

    Returns:
        adapter → its writes, by layer and then in the order of the block.

    Raises:
        InputError: no rows, adapters or layers; a row without the span; an adapter that the model does not hold, that is more
            than plain LoRA, or that changes nothing that writes at these layers; a model whose blocks add something other than what these
            layers write.
        ValueError: a basis is not orthonormal, or not of the model's width.

    Example:
        >>> writes(model, rows, ["pirate"], {22: U_DK})["pirate"]  # doctest: +SKIP
        [Write(layer=22, module='self_attn.o_proj', omega=0.21, …), Write(layer=22, module='mlp.down_proj', …)]
    """
    for what, given in (("rows", rows), ("adapters", adapters), ("layers", bases)):
        if not given:
            raise InputError(f"there are no {what} to read")
    _check(model, rows, bases, span)
    at = [writer for writer in writers(model) if writer.layer in bases]
    wanted = {adapter: _adapted_writers(model, adapter, at, sorted(bases)) for adapter in adapters}
    with torch.no_grad(), fast_matmul(), applied(model, Variant()):
        _refuse_other_ways(model, at, min(rows, key=len))
        moments = _inner_moments(model, rows, wanted, span, token_budget)
    out: dict[str, list[Write]] = {adapter: [] for adapter in adapters}
    for writer in at:
        basis_DK, names = bases[writer.layer], [adapter for adapter in adapters if writer in wanted[adapter]]
        if not names:
            continue
        rank = max(writer.module.r[adapter] for adapter in names)
        rng = np.random.default_rng(seed_for(seed, "weights", writer.layer, writer.name))
        inside_BR, whole_BR = _null_squares(writer.module, basis_DK, rank, draws, rng)
        for adapter in names:
            update_DR = _factor(writer, adapter, moments[adapter, writer.layer, writer.name])
            squares_R = np.linalg.svd(update_DR, compute_uv=False) ** 2
            omega = float(((basis_DK.T @ update_DR) ** 2).sum() / squares_R.sum())
            r = len(squares_R)
            null = (inside_BR[:, :r] @ squares_R) / (whole_BR[:, :r] @ squares_R)
            p = (1 + int((null >= omega).sum())) / (1 + draws)
            out[adapter].append(Write(writer.layer, writer.name, omega, float(null.mean()), p, float(np.sqrt(squares_R.sum()))))
    return out


def summary(some: Sequence[Write]) -> Summary:
    """Return the share over all layers and modules, weighted by the squared norm that each adds to the stream.

    Raises:
        ValueError: there is nothing to sum up.
    """
    if not some:
        raise ValueError("a summary needs at least one write")
    squares = np.array([write.norm**2 for write in some])
    omega, null_mean = (float(np.average([getattr(write, key) for write in some], weights=squares)) for key in ("omega", "null_mean"))
    return Summary(omega, null_mean, float(np.sqrt(squares.sum())))


def _linears(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    # PEFT's own A and B are linear too, and are not layers of the model.
    layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if isinstance(layer, nn.Linear):
        yield name, module
    elif layer is module:
        for child_name, child in module.named_children():
            yield from _linears(f"{name}.{child_name}", child)


def _check(model: nn.Module, rows: Sequence[Encoded], bases: Mapping[int, FloatArray], span: str) -> None:
    for i, row in enumerate(rows):
        start, end = row.spans.get(span, (0, 0))
        if start >= end:
            raise InputError(f"row {i}: has no span {span!r}, or an empty one; it has {row.spans}")
    width = int(text_config(model).hidden_size)
    for layer, basis_DK in bases.items():
        if len(basis_DK) != width or not np.allclose(basis_DK.T @ basis_DK, np.eye(basis_DK.shape[1]), atol=1e-4):
            raise ValueError(f"layer {layer}: a basis has {width} rows and orthonormal columns, got shape {basis_DK.shape}")


def _adapted_writers(model: nn.Module, adapter: str, at: Sequence[Writer], layers: Sequence[int]) -> list[Writer]:
    """Return the writers that an adapter changes, all of them by plain LoRA."""
    from peft import PeftModel, PeftType
    from peft.tuners.lora import LoraLayer

    if adapter in held_weights(model):
        raise InputError(f"adapter {adapter!r}: is a whole model; where an update writes is known of LoRA alone")
    inner = unwrap(model)
    held = inner.peft_config if isinstance(inner, PeftModel) else {}
    if adapter not in held:
        raise InputError(f"adapter {adapter!r}: the model holds {', '.join(held) or 'no adapters'}")
    kind = held[adapter].peft_type
    if kind != PeftType.LORA:
        raise InputError(f"adapter {adapter!r}: where an update writes is known of LoRA alone, got {PeftType(kind).value}")
    some = [writer for writer in at if isinstance(writer.module, LoraLayer) and adapter in writer.module.lora_A]
    for writer in some:
        variant = writer.module.lora_variant.get(adapter)
        more = type(variant).__name__ if variant else "lora_bias" if writer.module.lora_bias[adapter] else None
        if more:
            raise InputError(f"adapter {adapter!r}: {writer.name} is more than s·B·A ({more}); only plain LoRA is known to write this way")
    if not some:
        names = ", ".join(dict.fromkeys(writer.name for writer in at)) or "nothing that was found"
        raise InputError(f"adapter {adapter!r}: adapts nothing of what writes into the residual stream at layers {list(layers)} ({names})")
    return some


def _refuse_other_ways(model: nn.Module, at: Sequence[Writer], row: Encoded) -> None:
    """Refuse a model where a block adds something other than what its writers write (normalised, scaled, or by other layers)."""
    blocks = decoder_blocks(model)
    passed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    written: dict[int, list[torch.Tensor]] = {writer.layer: [] for writer in at}

    def keep(layer: int, _block: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], output: Any) -> None:
        passed[layer] = args[0] if args else kwargs["hidden_states"], block_state(output)

    def add(layer: int, _module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        written[layer].append(output.double())

    with ExitStack() as stack:
        for layer in written:
            stack.callback(blocks[layer].register_forward_hook(partial(keep, layer), with_kwargs=True).remove)
        for writer in at:
            stack.callback(writer.module.register_forward_hook(partial(add, writer.layer)).remove)
        model(input_ids=torch.tensor([row.input_ids], device=next(model.parameters()).device), use_cache=False)
    for layer, (before, after) in passed.items():
        total = torch.stack(written[layer]).sum(0)
        missing = float((after.double() - before.double() - total).norm())
        if missing > ADDS_UP * float(total.norm()) + 4 * torch.finfo(after.dtype).eps * float(after.double().norm()):
            names = ", ".join(writer.name for writer in at if writer.layer == layer)
            raise InputError(
                f"layer {layer}: what {names} write is not what the block adds to the residual stream (it is normalised or "
                "scaled on the way, or other layers write too), so that the weights do not tell where their updates write"
            )


def _inner_moments(
    model: nn.Module, rows: Sequence[Encoded], wanted: Mapping[str, Sequence[Writer]], span: str, token_budget: int
) -> dict[tuple[str, int, str], FloatArray]:
    """Return E[(Ax)(Ax)ᵀ] [r, r] of each adapter at each of its writers, over the span's tokens."""
    sums: dict[tuple[str, int, str], torch.Tensor] = {}
    device = next(model.parameters()).device
    deepest = max(writer.layer for some in wanted.values() for writer in some)
    counted_BT = torch.empty(0)

    def add(key: tuple[str, int, str], A: nn.Linear, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x_NI = args[0][counted_BT.to(args[0].device)]
        inner_NR = nn.functional.linear(x_NI.float(), A.weight.float()).double()
        sums[key] = sums.get(key, 0) + inner_NR.T @ inner_NR

    with ExitStack() as stack:
        for adapter, some in wanted.items():
            for writer in some:
                hook = partial(add, (adapter, writer.layer, writer.name), writer.module.lora_A[adapter])
                stack.callback(writer.module.register_forward_pre_hook(hook).remove)
        for members in by_length([len(row) for row in rows], token_budget):
            # Padding is on the right, where no real token looks: any token will do, and no mask is needed.
            ids, _ = pad_rows([rows[i].input_ids for i in members], pad_id=0)
            counted_BT = torch.zeros(ids.shape, dtype=torch.bool)
            for b, i in enumerate(members):
                counted_BT[b, slice(*rows[i].spans[span])] = True
            forward(model, {deepest: lambda _h: None}, True, input_ids=ids.to(device), use_cache=False)
    tokens = sum(row.spans[span][1] - row.spans[span][0] for row in rows)
    return {key: (total / tokens).cpu().numpy() for key, total in sums.items()}


def _factor(writer: Writer, adapter: str, moment_RR: FloatArray) -> FloatArray:
    """Return s·B·(AΣ_xAᵀ)^½ [d_model, r], which has the left singular directions and values of ΔW·Σ_x^½."""
    b_DR = writer.module.lora_B[adapter].weight.detach().double().cpu().numpy() * writer.module.scaling[adapter]
    where = f"adapter {adapter!r}: layer {writer.layer}, {writer.name}"
    if not np.isfinite(moment_RR).all():
        raise InputError(f"{where}: its inputs are not finite; try a wider dtype (float32)")
    values, axes = np.linalg.eigh(moment_RR)
    update_DR = np.asarray(b_DR @ (axes * np.sqrt(values.clip(0)) @ axes.T))
    if not update_DR.any():
        raise InputError(f"{where}: writes nothing (B or A is zero), so that no share of it can be taken")
    return update_DR


def _null_squares(module: Any, basis_DK: FloatArray, rank: int, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return ‖UᵀWg‖² and ‖Wg‖² of pseudo-directions Wg: [draws, rank] each."""
    from peft.utils.integrations import dequantize_module_weight

    weight = dequantize_module_weight(module.get_base_layer()).detach().float()
    basis = torch.from_numpy(np.ascontiguousarray(basis_DK)).to(weight)
    inside, whole = np.empty((draws, rank)), np.empty((draws, rank))
    # Direction by direction, so that an adapter's draws do not depend on the rank of another one.
    for i in range(rank):
        g_BI = torch.from_numpy(rng.standard_normal((draws, weight.shape[1]), dtype=np.float32)).to(weight.device)
        drawn_BD = g_BI @ weight.T
        inside[:, i], whole[:, i] = (x.square().sum(1).cpu().numpy() for x in (drawn_BD @ basis, drawn_BD))
    return inside, whole

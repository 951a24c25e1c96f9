"""Where an update of weights writes: the share of its output to the residual stream that lies inside the persona space.

Two linear layers of a decoder block write into the residual stream, the last of its attention and the last of its MLP.
An update ΔW of such a layer (s·B·A of a LoRA adapter, the difference of two weights of a whole model) adds ΔW·x for an
input x: to see where it writes takes no pass of the changed model, only the inputs that the base gives the layer. Changed
layers that do not write themselves (queries, keys, values, gates) act on the stream by way of the two that do, and are not
counted here.
"""

from collections.abc import Mapping, Sequence
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
from wellworn.probes.geometry.updates import Update, Writer, updates_of, writers
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import by_length
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET
from wellworn.probes.reading.hooks import block_state, forward
from wellworn.probes.reading.layers import decoder_blocks, text_config
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant, applied
from wellworn.probes.statistics.intervals import FloatArray

DRAWS = 199
# Tolerance between the sum of the layers' outputs and what their block adds; beyond it something else writes too.
ADDS_UP = 1e-3


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

    ω = ‖UᵀΔWΣ_x^½‖_F² / ‖ΔWΣ_x^½‖_F², with Σ_x = E[xxᵀ] (not centred) over the tokens of a span as the base model reads
    them. Of an adapter only E[(Ax)(Ax)ᵀ] = AΣ_xAᵀ [r, r] is summed up, of a whole model E[(ΔWx)(ΔWx)ᵀ] [d_model, d_model] (with a changed
    bias added to ΔWx); no activation is stored.

    The null keeps the update's singular values and replaces its left singular directions: direction i becomes Σ_W^½gᵢ, drawn as W·gᵢ, with
    Σ_W = WWᵀ of the base's own weight. Draws are not made orthonormal, which would thin out the main directions of Σ_W and reject an update
    drawn from Σ_W itself far too often (probes/README.md). Of a whole model's many directions the 256 largest are drawn. The rest enters by
    its expectation, tr(UᵀΣ_WU) and trΣ_W: so many small terms vary little together.

    Args:
        model: a causal LM that holds the adapters or checkpoints, in eval mode; under `torch.distributed` every rank reads all rows.
        rows: encoded conversations, the text.
        adapters: their names; the text is read once for all of them.
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
    with torch.no_grad(), fast_matmul(), applied(model, Variant()):
        wanted = {adapter: updates_of(model, adapter, at) for adapter in adapters}
        _refuse_other_ways(model, at, min(rows, key=len))
        moments = _inner_moments(model, rows, wanted, span, token_budget)
    out: dict[str, list[Write]] = {adapter: [] for adapter in adapters}
    for writer in at:
        basis_DK, names = bases[writer.layer], [adapter for adapter in adapters if writer.key in wanted[adapter]]
        if not names:
            continue
        rng = np.random.default_rng(seed_for(seed, "weights", writer.layer, writer.name))
        null = _Null(writer.module, basis_DK, max(wanted[adapter][writer.key].drawn for adapter in names), draws, rng)
        for adapter in names:
            moment_RR = moments[adapter, *writer.key]
            if not np.isfinite(moment_RR).all():
                raise InputError(f"adapter {adapter!r}: {writer.words}: its inputs are not finite; try a wider dtype (float32)")
            squares_R, inside = wanted[adapter][writer.key].spectrum(moment_RR, basis_DK)
            if not squares_R.any():
                raise InputError(f"adapter {adapter!r}: {writer.words}: writes nothing, so that no share of it can be taken")
            omega, shares = inside / float(squares_R.sum()), null.shares(squares_R)
            p = (1 + int((shares >= omega).sum())) / (1 + draws)
            out[adapter].append(Write(writer.layer, writer.name, omega, float(shares.mean()), p, float(np.sqrt(squares_R.sum()))))
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


def _check(model: nn.Module, rows: Sequence[Encoded], bases: Mapping[int, FloatArray], span: str) -> None:
    for i, row in enumerate(rows):
        start, end = row.spans.get(span, (0, 0))
        if start >= end:
            raise InputError(f"row {i}: has no span {span!r}, or an empty one; it has {row.spans}")
    width = int(text_config(model).hidden_size)
    for layer, basis_DK in bases.items():
        if len(basis_DK) != width or not np.allclose(basis_DK.T @ basis_DK, np.eye(basis_DK.shape[1]), atol=1e-4):
            raise ValueError(f"layer {layer}: a basis has {width} rows and orthonormal columns, got shape {basis_DK.shape}")


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
        missing = float((after.double() - before.to(after.device).double() - total).norm())
        if missing > ADDS_UP * float(total.norm()) + 4 * torch.finfo(after.dtype).eps * float(after.double().norm()):
            names = ", ".join(writer.name for writer in at if writer.layer == layer)
            raise InputError(
                f"layer {layer}: what {names} write is not what the block adds to the residual stream (it is normalised or "
                "scaled on the way, or other layers write too), so that the weights do not tell where their updates write"
            )


def _inner_moments(
    model: nn.Module, rows: Sequence[Encoded], wanted: Mapping[str, Mapping[tuple[int, str], Update]], span: str, token_budget: int
) -> dict[tuple[str, int, str], FloatArray]:
    """Return E[zzᵀ] [r, r] of what the inner part of each update makes of its inputs, z = Ax or ΔWx, over the span's tokens."""
    sums: dict[tuple[str, int, str], torch.Tensor] = {}
    device = next(model.parameters()).device
    deepest = max(layer for some in wanted.values() for layer, _ in some)
    counted_BT = torch.empty(0)

    def add(key: tuple[str, int, str], update: Update, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x_NI = args[0][counted_BT.to(args[0].device)]
        inner_NR = update.inner(x_NI).double()
        sums[key] = sums.get(key, 0) + inner_NR.T @ inner_NR

    with ExitStack() as stack:
        for adapter, some in wanted.items():
            for key, update in some.items():
                hook = partial(add, (adapter, *key), update)
                stack.callback(update.module.register_forward_pre_hook(hook).remove)
        for members in by_length([len(row) for row in rows], token_budget):
            # Padding is on the right, where no real token looks: any token will do, and no mask is needed.
            ids, _ = pad_rows([rows[i].input_ids for i in members], pad_id=0)
            counted_BT = torch.zeros(ids.shape, dtype=torch.bool)
            for b, i in enumerate(members):
                counted_BT[b, slice(*rows[i].spans[span])] = True
            forward(model, {deepest: lambda _h: None}, True, input_ids=ids.to(device), use_cache=False)
    tokens = sum(row.spans[span][1] - row.spans[span][0] for row in rows)
    return {key: (total / tokens).cpu().numpy() for key, total in sums.items()}


class _Null:
    """Shares of updates with the singular values of a real one, in directions drawn from the base's own weight."""

    def __init__(self, module: Any, basis_DK: FloatArray, rank: int, draws: int, rng: np.random.Generator) -> None:
        from peft.tuners.lora import LoraLayer
        from peft.utils.integrations import dequantize_module_weight

        layer: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
        weight = dequantize_module_weight(layer).detach().float()
        basis = torch.from_numpy(np.ascontiguousarray(basis_DK)).to(weight)
        # ‖UᵀWg‖² and ‖Wg‖² of pseudo-directions Wg: [draws, rank] each, and what is expected of them.
        self.inside, self.whole = np.empty((draws, rank)), np.empty((draws, rank))
        self.expected = float((basis.T @ weight).square().sum()), float(weight.square().sum())
        # Direction by direction, so that an adapter's draws do not depend on the rank of another one.
        for i in range(rank):
            g_BI = torch.from_numpy(rng.standard_normal((draws, weight.shape[1]), dtype=np.float32)).to(weight.device)
            drawn_BD = g_BI @ weight.T
            self.inside[:, i], self.whole[:, i] = (x.square().sum(1).cpu().numpy() for x in (drawn_BD @ basis, drawn_BD))

    def shares(self, squares_R: FloatArray) -> FloatArray:
        """Return the share of each draw [draws], for squared singular values, largest first; those that were not drawn are expected."""
        r = min(len(squares_R), self.inside.shape[1])
        rest = float(squares_R[r:].sum())
        inside_B, whole_B = (drawn[:, :r] @ squares_R[:r] for drawn in (self.inside, self.whole))
        return np.asarray((inside_B + rest * self.expected[0]) / (whole_B + rest * self.expected[1]))

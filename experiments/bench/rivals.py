"""The baselines of the benchmarks, in the same process and on the same ids."""

from collections.abc import Sequence
from typing import Any

import torch

from wellworn.data.chat import Encoded
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import by_length
from wellworn.probes.reading.layers import unwrap


@torch.no_grad()
def floor(model: Any, rows: Sequence[Sequence[int]], token_budget: int, pad_id: int, layers: int | None = None) -> None:
    """Run the bare backbone over the tokens of the same batches, to the same depth, and keep nothing."""
    device = next(model.parameters()).device
    backbone = unwrap(model).get_decoder()
    whole = backbone.layers
    try:
        if layers is not None:
            backbone.layers = whole[:layers]
        for batch in by_length([len(row) for row in rows], token_budget):
            ids, _ = pad_rows([rows[i] for i in batch], pad_id)
            backbone(input_ids=ids.to(device), use_cache=False)
    finally:
        backbone.layers = whole


@torch.no_grad()
def one_at_a_time(model: Any, rows: Sequence[Encoded], layers: Sequence[int], spans: Sequence[str]) -> torch.Tensor:
    """Read conversations in turn with `output_hidden_states`, then pool: [rows, layers, spans, d_model]."""
    device = next(model.parameters()).device
    pooled = []
    for row in rows:
        hidden = model(input_ids=torch.tensor([row.input_ids], device=device), output_hidden_states=True, use_cache=False).hidden_states
        means = [torch.stack([hidden[layer + 1][0, slice(*row.spans[span])].float().mean(0) for span in spans]) for layer in layers]
        pooled.append(torch.stack(means).cpu())
    return torch.stack(pooled)


@torch.no_grad()
def per_row_adapters(
    model: Any, rows: Sequence[Encoded], adapters: Sequence[str], token_budget: int, pad_id: int, layers: Sequence[int], span: str
) -> torch.Tensor:
    """Read base and adapters as rows of one batch (PEFT's `adapter_names`): [variants, rows, layers, d_model], base first."""
    device = next(model.parameters()).device
    names = ["__base__", *adapters]
    out = torch.zeros(len(names), len(rows), len(layers), unwrap(model).get_input_embeddings().embedding_dim)
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda _module, _args, output: kept.update({layer: output if torch.is_tensor(output) else output[0]})

    blocks = unwrap(model).get_decoder().layers
    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        for batch in by_length([len(row) * len(names) for row in rows], token_budget):
            ids, mask = pad_rows([rows[i].input_ids for i in batch], pad_id)
            each = [name for name in names for _ in batch]
            model(
                input_ids=ids.repeat(len(names), 1).to(device),
                attention_mask=mask.repeat(len(names), 1).to(device),
                adapter_names=each,
                use_cache=False,
                logits_to_keep=1,
            )
            for slot, layer in enumerate(layers):
                for b, i in enumerate(batch):
                    start, end = rows[i].spans[span]
                    out[:, i, slot] = kept[layer][b :: len(batch), start:end].float().mean(1).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return out

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tests.tiny import blocks_of, make_families, make_rows, tokens_through
from wellworn.data.chat import SPANS, Encoded
from wellworn.probes.reading.capture import Spec, read, read_moments
from wellworn.probes.reading.moments import Moments, MomentSums

CPU = torch.device("cpu")


@torch.no_grad()
def token_states(model: PreTrainedModel, blocks: Sequence[nn.Module], rows: Sequence[Encoded], span: str) -> NDArray[np.float64]:
    """Return the states of a span's tokens [layers, tokens, d_model], read one row at a time."""
    outputs: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _a, out: outputs.append(out if torch.is_tensor(out) else out[0])) for block in blocks]
    states = []
    for row in rows:
        outputs.clear()
        model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
        states.append(torch.stack([h[0, slice(*row.spans[span])] for h in outputs]))
    for handle in handles:
        handle.remove()
    return torch.cat(states, dim=1).double().numpy()


def check(moments: Moments, layer: int, span: int, states_ND: NDArray[np.float64]) -> None:
    """Compare with numpy's mean and covariance."""
    assert moments.count[span] == len(states_ND)
    for got, truth in ((moments.mean, states_ND.mean(0)), (moments.covariance, np.cov(states_ND.T))):
        assert got.dtype == torch.float64
        assert np.linalg.norm(got[layer, span].numpy() - truth) <= 1e-5 * np.linalg.norm(truth)


@pytest.mark.usefixtures("share_all")
def test_equals_the_covariance_of_all_tokens(model: PreTrainedModel) -> None:
    rows = [*make_families(prompts=4, answers=3, seed=8, system=3), *make_rows(4, seed=2)]
    truth = [token_states(model, blocks_of(model), rows, span) for span in SPANS]
    for budget in (1, 60, 10_000):
        for share in (True, False):
            moments = read_moments(model, rows, Spec(token_budget=budget, share_prefixes=share))
            for s in range(len(SPANS)):
                for layer in range(len(blocks_of(model))):
                    check(moments, layer, s, truth[s][layer])
    some = read_moments(model, rows, Spec(layers=[2, 0], spans=["response"], token_budget=60))
    for slot, layer in enumerate((2, 0)):
        check(some, slot, 0, truth[SPANS.index("response")][layer])


@pytest.mark.usefixtures("share_all")
def test_a_prefix_counts_for_every_row_that_has_it(llama: PreTrainedModel) -> None:
    rows = make_families(prompts=1, answers=6, seed=3, shortest=12)
    with tokens_through(llama.model.layers[0]) as passes:
        moments = read_moments(llama, rows, Spec(spans=["prompt"]))
    assert sum(passes) < moments.count[0] == sum(row.spans["prompt"][1] for row in rows)


def test_padding_on_the_left_changes_nothing(model: PreTrainedModel) -> None:
    rows = make_rows(9, seed=2)
    right, left = (read_moments(model, rows, Spec(token_budget=90, side=side)) for side in ("right", "left"))
    assert float((left.covariance - right.covariance).norm()) <= 1e-5 * float(right.covariance.norm())
    # A span of one token: the mean over tokens is the mean over rows.
    pooled = read(model, rows, Spec(token_budget=90)).states.double().mean(0)
    last = SPANS.index("prompt_last")
    torch.testing.assert_close(right.mean[:, last], pooled[:, last], rtol=1e-5, atol=1e-5)


def test_a_large_mean_does_not_lose_the_covariance() -> None:
    rng = np.random.default_rng(3)
    sums, kept = MomentSums(layers=2, spans=2, width=12, device=CPU), [[[], []], [[], []]]
    for _ in range(6):
        counts_BST = torch.from_numpy(rng.integers(0, 3, (4, 2, 7)).astype(np.float32))
        for layer, shift in enumerate((1e3, 0.0)):
            h_BTD = torch.from_numpy((rng.normal(size=(4, 7, 12)) @ np.diag(np.linspace(0.1, 2, 12)) + shift).astype(np.float32))
            sums.add(layer, h_BTD, counts_BST)
            for s in range(2):
                kept[layer][s].append(np.repeat(h_BTD.numpy().reshape(-1, 12), counts_BST[:, s].numpy().astype(int).ravel(), axis=0))
    moments = sums.result()
    for layer in range(2):
        for s in range(2):
            states_ND = np.concatenate(kept[layer][s]).astype(np.float64)
            check(moments, layer, s, states_ND)
            # In float32, sums of raw squares would be wrong by much.
            raw = states_ND.astype(np.float32)
            naive = (raw.T @ raw - len(raw) * np.outer(raw.mean(0), raw.mean(0))) / (len(raw) - 1)
            if layer == 0:
                assert np.linalg.norm(naive - np.cov(states_ND.T)) > 1e-2 * np.linalg.norm(np.cov(states_ND.T))


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize(("world", "count"), [(2, 9), (3, 2)], ids=["two ranks", "a rank without rows"])
def test_ranks_add_up(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, world: int, count: int) -> None:
    rows, spec = make_rows(count, seed=3), Spec(token_budget=50)
    whole = read_moments(llama, rows, spec)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: given.append(tensor.clone()))
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        read_moments(llama, rows, spec)
    assert len(given) == world
    total = torch.stack(given).sum(0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.copy_(total))
    moments = read_moments(llama, rows, spec)
    assert torch.equal(moments.count, whole.count)
    for got, truth in ((moments.mean, whole.mean), (moments.covariance, whole.covariance)):
        assert float((got - truth).norm()) <= 1e-5 * float(truth.norm())

"""A direction without its words changes none of their logits by itself."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import ARCHITECTURES, make_model
from wellworn.data.errors import InputError
from wellworn.probes.geometry.wording import without_rows, word_rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_the_gradients_of_logits_at_the_final_state(architecture: str) -> None:
    model = make_model(architecture)
    ids = [3, 17, 40]
    rows = torch.from_numpy(word_rows(model, ids)).float()
    norm = model.gpt_neox.final_layer_norm if architecture == "gpt_neox" else model.model.norm
    state = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for token, row in zip(ids, rows, strict=True):
        logit = model.get_output_embeddings().weight[token] @ norm(state)
        [gradient] = torch.autograd.grad(logit, state)
        # Up to the scale of the state, and what a norm takes out: the state itself, and for a layer norm the mean.
        ones = torch.ones_like(state)
        taken = torch.linalg.qr(torch.stack([state.detach(), ones], dim=1))[0]
        left, expected = (each - taken @ (taken.T @ each) for each in (gradient, row))
        assert torch.cosine_similarity(left, expected, dim=0) == pytest.approx(1, abs=1e-5)


def test_nothing_is_left_along_any_row() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4, 16))
    # One row twice, which counts once.
    rows = np.vstack([rows, 2 * rows[0]])
    vectors = rng.standard_normal((3, 16))
    left = without_rows(vectors, rows)
    np.testing.assert_allclose(left @ rows.T, 0, atol=1e-10)
    # What is taken out lies in their span.
    assert np.linalg.matrix_rank(np.vstack([rows, vectors - left]), tol=1e-8) == 4
    assert without_rows(vectors, rows[:0]) is vectors
    # Of a vector in their span rounding is left, which is no direction.
    inside = rng.standard_normal((2, 5)) @ rows
    assert not without_rows(inside, rows).any()
    assert without_rows(np.vstack([inside, vectors]), rows)[2:] == pytest.approx(left)


def test_a_model_without_a_final_norm_is_refused() -> None:
    model = make_model("llama")
    model.model.norm = nn.Identity()
    with pytest.raises(InputError, match="no norm was found"):
        word_rows(model, [1])

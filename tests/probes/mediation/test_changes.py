"""The moments of token-wise changes against plain forwards, and the directions that lead them."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from tests.tiny import make_rows, make_tuned
from wellworn.data.chat import Encoded
from wellworn.probes.mediation.changes import Changes, state_changes
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.reading.variants import Variant


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    return make_rows(5, seed=4)


@pytest.fixture(scope="module")
def peft() -> PeftModel:
    return make_tuned("llama")


def hidden(peft: PeftModel, row: Encoded, layer: int, name: str | None) -> torch.Tensor:
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        if name is None:
            with peft.disable_adapter():
                return peft(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
        peft.set_adapter(name)
        return peft(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]


@pytest.mark.parametrize("budget", [40, 4000])
def test_moments_are_those_of_plain_forwards_over_answers_alone(peft: PeftModel, rows: list[Encoded], budget: int) -> None:
    got = state_changes(peft, Texts.same(rows), (Variant(), Variant("low")), [2, 1], Batching(token_budget=budget))
    for layer in (1, 2):
        changes = []
        for row in rows:
            start, end = row.spans["response"]
            changes.append((hidden(peft, row, layer, "low") - hidden(peft, row, layer, None))[start:end])
        truth = torch.cat(changes).double()
        assert got.tokens == len(truth)
        torch.testing.assert_close(got.means[layer], truth.mean(0), rtol=1e-4, atol=1e-6)
        moment = truth.T @ truth / len(truth)
        torch.testing.assert_close(got.moments[layer], moment, rtol=1e-4, atol=1e-5 * float(moment.abs().max()))
        direction = got.mean_direction(layer)
        assert direction is not None
        torch.testing.assert_close(direction[:, 0], truth.mean(0) / truth.mean(0).norm(), rtol=1e-4, atol=1e-6)
        leading = got.leading(layer, 3)
        assert leading is not None
        energy = np.linalg.svd(truth.numpy(), compute_uv=False)[:3] ** 2
        np.testing.assert_allclose(((truth @ leading) ** 2).sum(0), energy, rtol=1e-3)
        torch.testing.assert_close(leading.T @ leading, torch.eye(3, dtype=torch.float64))


def test_no_change_has_no_directions() -> None:
    still = Changes(4, {0: torch.zeros(8)}, {0: torch.zeros(8, 8)})
    assert still.mean_direction(0) is None
    assert still.leading(0, 1) is None
    line = torch.ones(8, dtype=torch.float64)
    along = Changes(4, {0: line}, {0: torch.outer(line, line)})
    assert along.leading(0, 1) is not None
    # A change along a line has one direction, however many are asked for.
    leading = along.leading(0, 2)
    assert leading is not None
    assert leading.shape == (8, 1)

import numpy as np
import pytest
import torch
from peft import PeftModel

from tests.tiny import make_rows
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.reading.divergence import kl_divergence
from wellworn.probes.reading.variants import Variant, applied

LOW, HIGH = Variant("low"), Variant("high")


@torch.no_grad()
def by_hand(peft: PeftModel, row: Encoded, changed: Variant, reference: Variant) -> float:
    start, end = row.spans["response"]
    chances = []
    for variant in (changed, reference):
        with applied(peft, variant):
            chances.append(peft(torch.tensor([row.input_ids])).logits[0, start - 1 : end - 1].double().softmax(-1))
    p, q = chances
    return float((p * (p / q).log()).sum(-1).mean())


def test_equals_the_definition_row_by_row(peft: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(7, seed=3)
    expected = [by_hand(peft, row, HIGH, LOW) for row in rows]
    assert min(expected) > 1e-3
    found = kl_divergence(peft, rows, HIGH, LOW, pad_id=0)
    assert found == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr("wellworn.probes.reading.divergence.TOKENS", 30)
    assert kl_divergence(peft, rows, HIGH, LOW, pad_id=5) == pytest.approx(found, rel=1e-5)


def test_a_model_does_not_differ_from_itself_and_edits_count(tuned_llama: PeftModel) -> None:
    rows = make_rows(4, seed=4)
    assert np.array_equal(kl_divergence(tuned_llama, rows, LOW, LOW, pad_id=0), np.zeros(4))
    steered = Variant("low", {1: lambda h: h + 1})
    assert (kl_divergence(tuned_llama, rows, steered, LOW, pad_id=0) > 1e-4).all()
    with pytest.raises(InputError, match="no rows"):
        kl_divergence(tuned_llama, [], LOW, HIGH, pad_id=0)

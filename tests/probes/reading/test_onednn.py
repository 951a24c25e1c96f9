"""The faster library gives the same products and gradients, keeps out of what is trained, and keeps no memory of past shapes."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import linear

from wellworn.probes.reading import onednn
from wellworn.probes.reading.onednn import fast_matmul, plain_matmul

# Reads its own resident memory before and after 500 products of as many shapes.
SHAPES = """
import torch
from wellworn.probes.reading.onednn import fast_matmul

def resident():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:")))

weight = torch.randn(64, 64)
with torch.no_grad(), fast_matmul():
    for rows in range(1, 520):
        torch.nn.functional.linear(torch.randn(rows, 64), weight)
        before = resident() if rows == 20 else before if rows > 20 else 0
print((resident() - before) // 2**20)
"""

faster = pytest.mark.skipif(not onednn._onednn_is_faster(), reason="torch's own products are as fast on this processor")


def resident_after_many_shapes(**environment: str) -> int:
    """Return by how many MiB a process grows."""
    kept = {key: value for key, value in os.environ.items() if not key.endswith("CACHE_CAPACITY")}
    run = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True, env=kept | environment)
    return int(run.stdout)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first sizes of all products that the faster library is given."""
    seen: list[int] = []
    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *rest: (seen.append(x.shape[0]), real(x, *rest))[1])
    return seen


@faster
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (1, 24)])
def test_products_are_the_same(bias: bool, shape: tuple[int, ...], sent: list[int]) -> None:
    torch.manual_seed(0)
    x, weight, b = torch.randn(shape), torch.randn(9, 24), torch.randn(9) if bias else None
    with torch.no_grad(), fast_matmul():
        torch.testing.assert_close(linear(x, weight, b), x @ weight.T + (0 if b is None else b), rtol=1e-5, atol=1e-5)
    assert sent == [shape[0]]


@faster
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_through_frozen_layers(bias: bool, sent: list[int]) -> None:
    torch.manual_seed(0)
    x, weight, b = torch.randn(2, 7, 24, requires_grad=True), torch.randn(9, 24), torch.randn(9) if bias else None
    down = torch.randn(2, 7, 9)
    with fast_matmul():
        (linear(x, weight, b) * down).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, down @ weight, rtol=1e-5, atol=1e-5)
    assert sent == [2, 2], "there and back"


@faster
def test_what_it_cannot_do_is_left_alone(sent: list[int]) -> None:
    x, weight = torch.randn(4, 8), torch.randn(3, 8, requires_grad=True)
    with fast_matmul():
        linear(x, weight).sum().backward()
        with torch.no_grad():
            linear(x.bfloat16(), weight.bfloat16())
            linear(x[:0], weight)
    with plain_matmul(), torch.no_grad(), fast_matmul():
        linear(x, weight)
    assert weight.grad is not None
    assert sent == []


@faster
def test_memory_does_not_grow_with_the_number_of_shapes() -> None:
    assert resident_after_many_shapes() < 20
    # Left to themselves, the libraries keep all of them.
    assert resident_after_many_shapes(LRU_CACHE_CAPACITY="1024", ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024") > 100

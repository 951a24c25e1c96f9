"""Errors by which libraries say that memory ran out."""

import errno

import pytest
import torch

from wellworn.data.errors import InputError, describe_out_of_memory, is_out_of_memory


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


GPU = "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."
CPU = "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(GPU), "out of memory (it tried to allocate 1.96 GiB)"),
        (OutOfMemoryError(), "out of memory"),
        (RuntimeError(CPU), "out of memory (it tried to allocate 4000000 bytes)"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            "out of memory (it tried to allocate 8 bytes)",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory"),
        # A thread needs room for its stack.
        (RuntimeError("can't start new thread"), "out of memory"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, said: str) -> None:
    assert is_out_of_memory(error)
    assert describe_out_of_memory(error) == said


def test_the_error_of_a_real_allocation_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.ENOENT, "no such file"), InputError("trait: out of memory")]
)
def test_other_errors_are_others(error: Exception) -> None:
    assert not is_out_of_memory(error)

"""Models that cannot fit are refused before they are loaded, and no others."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from tests.tiny import save_tiny
from wellworn.data.errors import InputError
from wellworn.lora.memory import ALONE, count_parameters, devices_for, smaller_dtypes, total_memory, visible_devices
from wellworn.lora.models import load, resolve

CPU, GIB = torch.device("cpu"), 2**30
# A model of eight billion parameters.
EIGHT = 8 * 10**9


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets all the memory of the machine."""

    def set_room(memory: int, swap: int = 0) -> None:
        facts, swapped = psutil.virtual_memory()._replace(total=memory, available=0), psutil.swap_memory()._replace(total=swap)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: facts)
        monkeypatch.setattr(psutil, "swap_memory", lambda: swapped)

    return set_room


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=99, tie_word_embeddings=tie
        )
        for tie in (False, True)
    ]
    + [Qwen3MoeConfig(num_hidden_layers=2, hidden_size=32, moe_intermediate_size=16, num_experts=4, num_attention_heads=4, vocab_size=99)],
)
def test_parameters_are_counted_without_memory_for_them(config: Any) -> None:
    drawn = torch.random.get_rng_state()
    counted = count_parameters(config)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert counted == sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())


def test_a_model_that_would_take_terabytes_is_counted() -> None:
    assert (
        count_parameters(LlamaConfig(num_hidden_layers=4, hidden_size=2**18, intermediate_size=2**18, num_attention_heads=64)) or 0
    ) > 10**12


def test_what_is_packed_or_unknown_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_parameters(LlamaConfig(num_hidden_layers=1, quantization_config={"quant_method": "awq"})) is None
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_args, **_kwargs: 1 / 0)
    assert count_parameters(LlamaConfig(num_hidden_layers=1)) is None


def test_a_model_is_refused_only_where_its_weights_exceed_all_memory(room: Any) -> None:
    room(32 * 10**9)
    assert devices_for("m", EIGHT, "float32", [CPU]) == [CPU]
    room(32 * 10**9 - 1)
    with pytest.raises(InputError, match=r"model m: its weights take 29\.8 GiB in float32, and cpu has 29\.8 GiB; "):
        devices_for("m", EIGHT, "float32", [CPU])
    devices_for("m", EIGHT, "bfloat16", [CPU])
    # What may be swapped out makes room too.
    room(32 * 10**9 - 1, swap=1)
    devices_for("m", EIGHT, "float32", [CPU])
    room(1)
    devices_for("m", None, "float32", [CPU])


@pytest.mark.parametrize(
    ("gib", "dtype", "may"),
    [
        (20, "float32", "dtype bfloat16 takes about 14.9 GiB and dtype nf4 takes about 3.7 GiB"),
        (10, "float32", "dtype nf4 takes about 3.7 GiB"),
        (10, "float16", "dtype nf4 takes about 3.7 GiB"),
        (1, "float32", "use a smaller model, or a device with more memory"),
        (1, "nf4", "use a smaller model, or a device with more memory"),
    ],
)
def test_the_message_names_what_would_fit(gib: int, dtype: str, may: str, room: Any) -> None:
    room(gib * GIB)
    with pytest.raises(InputError) as caught:
        devices_for("m", EIGHT, dtype, [CPU])
    assert str(caught.value).endswith(f"; {may}")


@pytest.mark.parametrize(
    ("system", "release", "known"), [("linux", "6.1.0", True), ("linux", "5.15-Microsoft", False), ("win32", "11", False)]
)
def test_all_memory_of_a_gpu_counts_where_nothing_can_stand_in_for_it(
    system: str, release: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (GIB, 80 * GIB))
    assert total_memory(torch.device("cuda", 0)) == (80 * GIB if known else None)
    assert total_memory(torch.device("mps")) is None


def test_a_model_goes_to_one_device_where_it_leaves_room_for_the_work_and_else_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [torch.device("cuda", index) for index in range(3)]
    memory = {gpus[0]: 48 * GIB, gpus[1]: 24 * GIB, gpus[2]: 24 * GIB}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory[device]))
    most = int(ALONE * 48 * GIB) // 2
    assert devices_for("m", most, "bfloat16", gpus) == gpus[:1]
    assert devices_for("m", most + 1, "bfloat16", gpus) == gpus
    # Without others to go to, it takes what there is.
    assert devices_for("m", most + 1, "bfloat16", gpus[:1]) == gpus[:1]
    assert devices_for("m", None, "bfloat16", gpus) == gpus[:1]
    assert devices_for("m", 48 * GIB, "bfloat16", gpus) == gpus
    with pytest.raises(InputError, match=r"take 96\.0 GiB in bfloat16, and the 3 devices together have 96\.0 GiB; dtype nf4 takes"):
        devices_for("m", 48 * GIB + 1, "bfloat16", gpus)


def test_only_a_process_that_is_alone_spreads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert visible_devices(gpus[0]) == gpus
    assert visible_devices(CPU) == [CPU]
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    assert visible_devices(gpus[1]) == gpus[1:]


def test_dtypes_are_named_from_the_nearest_on() -> None:
    assert [smaller_dtypes(each) for each in ("float32", "bfloat16", "float16", "nf4")] == [("bfloat16", "nf4"), ("nf4",), ("nf4",), ()]


def test_loading_is_refused_before_weights_are_read(tmp_path: Path, room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = resolve(str(save_tiny(tmp_path / "tiny")))
    room(1000)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(InputError, match=r"model local:tiny@\w+: its weights take .* in float32, and cpu has"):
        load(ref, "float32")

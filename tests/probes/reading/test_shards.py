import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import make_families, make_model, make_rows, tokens_through
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.reading import batching, shards
from wellworn.probes.reading.batching import Chunk
from wellworn.probes.reading.capture import Reading, Spec, chunks_by_rank, read, read_variants
from wellworn.probes.reading.forward_passes import BatchReading
from wellworn.probes.reading.shards import Shards
from wellworn.probes.reading.variants import Variant

SPEC = Spec(logprob=True, token_budget=60)
VARIANTS = (Variant(), Variant(edits={1: torch.neg}), Variant(edits={2: torch.neg}))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch, share_all: None) -> None:
    """Save after every chunk, and make chunks of two batches."""
    monkeypatch.setattr(shards, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(batching, "CHUNK_BATCHES", 2)


@pytest.fixture
def rows() -> list[Encoded]:
    return [*make_families(prompts=12, answers=6, seed=8), *make_rows(8, seed=2)]


def plan_chunks(model: PreTrainedModel, rows: list[Encoded]) -> list[Chunk]:
    (chunks,) = chunks_by_rank(model, rows, SPEC)
    return chunks


def equal(got: Reading, truth: Reading) -> bool:
    return torch.equal(got.states, truth.states) and (truth.logprob is None or torch.equal(got.logprob, truth.logprob))


class StopError(Exception):
    pass


def stop_after(parts: int) -> Callable[[int], None]:
    left = iter(range(parts))

    def progress(_tokens: int) -> None:
        if next(left, None) is None:
            raise StopError

    return progress


@pytest.mark.parametrize("logprob", [True, False], ids=["logprob", "states"])
@pytest.mark.parametrize("variants", [VARIANTS, None], ids=["variants", "as it is"])
def test_an_interrupted_reading_goes_on_where_it_stopped(
    llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path, logprob: bool, variants: tuple[Variant, ...] | None
) -> None:
    spec, chunks = replace(SPEC, logprob=logprob), plan_chunks(llama, rows)
    assert len(chunks) > 3
    assert chunks[0].prefixes
    assert len(chunks[2].batches) > 1

    def reading(work: Path | None, spec: Spec) -> list[Reading]:
        return [read(llama, rows, spec, work=work)] if variants is None else read_variants(llama, rows, variants, spec, work=work)

    with tokens_through(llama.model.layers[-1]) as whole:
        truth = reading(None, spec)
    batches = sum(len(chunk.batches) for chunk in chunks[:2]) * len(truth)
    # Two chunks are done, and a part of the third.
    with tokens_through(llama.model.layers[-1]) as before, pytest.raises(StopError):
        reading(tmp_path, replace(spec, progress=stop_after(batches)))
    with tokens_through(llama.model.layers[-1]) as after:
        resumed = reading(tmp_path, spec)
    assert all(equal(got, want) for got, want in zip(resumed, truth, strict=True))
    passes = sum(len(chunk.batches) + bool(chunk.prefixes) for chunk in chunks[:2]) * len(truth)
    assert after == whole[passes:]
    assert before[:passes] == whole[:passes]
    with tokens_through(llama.model.layers[0]) as nothing:
        assert all(equal(got, want) for got, want in zip(reading(tmp_path, spec), truth, strict=True))
    assert not nothing


def test_parts_wait_until_saving_is_due_or_the_reading_fails(
    llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SAVE_SECONDS", 1e9)
    chunks = plan_chunks(llama, rows)
    batches = sum(len(chunk.batches) for chunk in chunks[:2])
    seen: list[int] = []

    def progress(_tokens: int) -> None:
        seen.append(len(list(tmp_path.glob("*.safetensors"))))
        if len(seen) > batches:
            raise StopError

    with pytest.raises(StopError):
        read(llama, rows, replace(SPEC, progress=progress), work=tmp_path)
    assert not any(seen)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    with tokens_through(llama.model.layers[0]) as rest:
        read(llama, rows, SPEC, work=tmp_path)
    assert len(rest) == sum(len(chunk.batches) + bool(chunk.prefixes) for chunk in chunks[2:])


def test_progress_counts_what_was_kept(llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path) -> None:
    with pytest.raises(StopError):
        read(llama, rows, replace(SPEC, progress=stop_after(5)), work=tmp_path)
    seen: list[int] = []
    read(llama, rows, replace(SPEC, progress=seen.append), work=tmp_path)
    assert sum(seen) == sum(map(len, rows))


@pytest.mark.parametrize(
    "other",
    [{"layers": [0]}, {"spans": ["response"]}, {"logprob": False}, {"token_budget": 61}, {"side": "left"}, {"share_prefixes": False}],
    ids=str,
)
def test_a_folder_of_another_reading_is_refused(
    llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path, other: dict[str, object]
) -> None:
    read(llama, rows, SPEC, work=tmp_path)
    with pytest.raises(InputError, match="a part of another reading"):
        read(llama, rows, replace(SPEC, **other), work=tmp_path)


def test_a_folder_of_other_rows_or_variants_is_refused(llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path) -> None:
    read_variants(llama, rows, VARIANTS[:2], SPEC, work=tmp_path)
    row = rows[3]
    moved = Encoded(row.input_ids, row.spans | {"prompt_last": (0, 1)}, row.completion_mask)
    token = Encoded((*row.input_ids[:-1], row.input_ids[-1] % 99 + 1), row.spans, row.completion_mask)
    for changed in (rows[1:], rows[::-1], [*rows[:3], moved, *rows[4:]], [*rows[:3], token, *rows[4:]]):
        with pytest.raises(InputError, match="a part of another reading"):
            read_variants(llama, changed, VARIANTS[:2], SPEC, work=tmp_path)
    for variants in (VARIANTS, VARIANTS[:1], VARIANTS[1::-1], [VARIANTS[0], VARIANTS[2]]):
        with pytest.raises(InputError, match="a part of another reading"):
            read_variants(llama, rows, variants, SPEC, work=tmp_path)


def test_a_file_that_was_not_finished_is_ignored(llama: PreTrainedModel, rows: list[Encoded], tmp_path: Path) -> None:
    truth = read(llama, rows, SPEC)
    with pytest.raises(StopError):
        read(llama, rows, replace(SPEC, progress=stop_after(5)), work=tmp_path)
    (saved, *_) = tmp_path.glob("*.safetensors")
    (tmp_path / f".{saved.name}.123").write_bytes(saved.read_bytes()[:50])
    (tmp_path / f".{saved.name}").write_bytes(b"")
    (tmp_path / ".reading.txt.123").write_text("another")
    assert equal(read(llama, rows, SPEC, work=tmp_path), truth)


def test_a_file_is_written_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Shards(tmp_path, "mine")

    def fail(_tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(shards, "save_file", fail)
    kept.keep(BatchReading(0, [4], torch.ones(1, 1, 1, 2), None))
    with pytest.raises(OSError, match="disk full"):
        kept.save()
    assert not list(tmp_path.glob("[!.]*.safetensors"))
    assert Shards(tmp_path, "mine").parts([4], variants=1) is None


def test_parts_come_back_as_they_were_kept(tmp_path: Path) -> None:
    kept = Shards(tmp_path / "new", "mine")
    states, scores = torch.randn(2, 3, 2, 2, 5), torch.randn(2, 3)
    for v in (0, 1):
        kept.keep(BatchReading(v, [7, 2, 5], states[v].transpose(1, 2), scores[v]))
        kept.save()
    other = Shards(tmp_path / "new", "mine")
    for v, part in enumerate(other.parts([5, 7], variants=2)):
        assert part.variant == v
        assert part.rows == [5, 7]
        assert torch.equal(part.states, states[v].transpose(1, 2)[[2, 0]])
        assert torch.equal(part.logprob, scores[v][[2, 0]])
    assert other.parts([5, 6], variants=2) is None
    assert other.parts([5], variants=3) is None


def test_rows_before_one_that_is_not_finite_are_kept(rows: list[Encoded], tmp_path: Path) -> None:
    # Token 100 is in one row alone.
    rows = [replace(row, input_ids=tuple(min(token, 99) for token in row.input_ids)) for row in rows]
    model = make_model("llama")
    chunks = plan_chunks(model, rows)
    bad = chunks[-2].rows[-1]
    with tokens_through(model.model.layers[0]) as whole:
        read(model, rows, SPEC)
    passes = sum(len(chunk.batches) + bool(chunk.prefixes) for chunk in chunks[:-2])
    assert passes > 3
    row = rows[bad]
    rows[bad] = Encoded((*row.input_ids[:-1], 100), row.spans | {"response": (row.spans["response"][0], len(row))}, row.completion_mask)
    truth = read(model, rows, SPEC)
    ids: list[torch.Tensor] = []
    watch = model.model.embed_tokens.register_forward_pre_hook(lambda _m, args: ids.append(args[0]))
    poison = model.model.layers[2].register_forward_hook(
        lambda _m, _a, out: torch.where((ids[-1] == 100).any(1)[:, None, None], torch.nan, out)
    )
    with pytest.raises(InputError, match=f"row {bad}: the hidden state at layer 2 is not finite"):
        read(model, rows, SPEC, work=tmp_path)
    watch.remove()
    poison.remove()
    with tokens_through(model.model.layers[0]) as rest:
        assert equal(read(model, rows, SPEC, work=tmp_path), truth)
    assert rest == whole[passes:]


def test_a_part_that_a_power_failure_cut_is_read_again(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "one")
    for row in range(2):
        shards.keep(BatchReading(0, [row], torch.full((1, 1, 1, 2), float(row)), None))
        shards.save(now=True)
    cut, whole = sorted(tmp_path.glob("*.safetensors"))
    os.truncate(cut, cut.stat().st_size - 3)
    again = Shards(tmp_path, "one")
    assert [again.parts([row], 1) is None for row in range(2)] == [True, False]
    assert list(tmp_path.glob("*.safetensors")) == [whole]


@pytest.mark.parametrize("size", [0, 2])
def test_parts_under_a_label_that_a_power_failure_cut_are_read_again(tmp_path: Path, size: int) -> None:
    kept = Shards(tmp_path, "one")
    kept.keep(BatchReading(0, [0], torch.ones(1, 1, 1, 2), None))
    kept.save(now=True)
    os.truncate(tmp_path / "reading.txt", size)
    assert Shards(tmp_path, "one").parts([0], 1) is None
    assert (tmp_path / "reading.txt").read_text() == "one"
    with pytest.raises(InputError, match="holds a part of another reading"):
        Shards(tmp_path, "two")

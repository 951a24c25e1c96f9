"""Training: what is learnt, what is written, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.tiny import ROOT
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Exchange
from wellworn.lora import train
from wellworn.lora.adapters import adapted
from wellworn.lora.models import load, resolve
from wellworn.lora.train import train_sft
from wellworn.lora.train_config import TrainConfig, check_keys
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.onednn import plain_matmul

TURNS = [Turn(f"Question {i}?", "yes yes yes yes") for i in range(16)]


def train_curve(
    model: Path, out: Path, seed: int = 0, batch_size: int = 8, turns: Sequence[Turn] = TURNS, **sft: object
) -> list[dict[str, float]]:
    base = load(resolve(str(model)))
    chat = Chat(base.tokenizer)
    config = TrainConfig(batch_size=batch_size, lora={"r": 4}, sft={"max_steps": 8, "learning_rate": 1e-2, **sft})
    return train_sft(base, [chat.training_row(turn) for turn in turns], config, seed=seed, out=out / "adapter", work=out / "work")


def test_it_learns_the_answers(tiny_model: Path, tmp_path: Path) -> None:
    curve = train_curve(tiny_model, tmp_path, max_steps=40, learning_rate=2e-2)
    assert [point["step"] for point in curve] == list(range(1, 41))
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    base = load(resolve(str(tiny_model)))
    rows = [Chat(base.tokenizer).encode(turn) for turn in TURNS]
    before = read(base.model, rows, Spec(logprob=True)).logprob
    with adapted(base, {"default": tmp_path / "adapter"}) as model:
        after = read(model, rows, Spec(logprob=True)).logprob
    assert before is not None
    assert after is not None
    assert bool((after > before + 1).all())


def test_the_loss_is_taken_on_the_completion_alone(tiny_model: Path, tmp_path: Path) -> None:
    """The first logged loss is the base's cross-entropy over completion tokens."""
    first = train_curve(tiny_model, tmp_path, batch_size=len(TURNS))[0]["loss"]
    base = load(resolve(str(tiny_model)))
    chat = Chat(base.tokenizer)
    assert first == pytest.approx(_loss(base.model, [chat.training_row(turn) for turn in TURNS]), rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_added_is_there_in_training_and_not_afterwards(tiny_model: Path, tmp_path: Path, checkpointing: bool) -> None:
    """The first loss is that of a base which is moved by hand; what is learnt depends on it; the model is left as it was."""
    base, again = (load(resolve(str(tiny_model))) for _ in range(2))
    chat, vector = Chat(base.tokenizer), torch.linspace(-3, 3, 32)
    rows = [chat.training_row(turn) for turn in TURNS]
    config = TrainConfig(batch_size=16, lora={"r": 4}, sft={"max_steps": 2, "activation_checkpointing": checkpointing})
    places = {"out": tmp_path / "adapter", "work": tmp_path / "work"}
    curve = train_sft(base, rows, config, seed=0, **places, added={1: vector, 2: -vector / 2})
    with hooked(again.model, {1: lambda h: h + vector, 2: lambda h: h - vector / 2}):
        moved = _loss(again.model, rows)
    assert curve[0]["loss"] == pytest.approx(moved, rel=1e-4)
    assert curve[0]["loss"] != pytest.approx(_loss(again.model, rows), rel=1e-2)
    free = train_curve(tiny_model, tmp_path / "free", batch_size=16, max_steps=2, learning_rate=4e-4)
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "free"))
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) > 1e-4
    assert free[0]["loss"] == pytest.approx(_loss(again.model, rows), rel=1e-4)
    with adapted(again, {"mine": tmp_path / "adapter"}) as model, torch.no_grad():
        expected = model(torch.tensor([rows[0]["input_ids"]])).logits
    with torch.no_grad():
        found = base.model(torch.tensor([rows[0]["input_ids"]])).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_is_given_in_training_need_not_be_learnt(tiny_model: Path, tmp_path: Path) -> None:
    """Where a training is given the shift that a free one learns, it learns less of it, and fits its rows as well; taken away, more."""
    shifts, losses = {}, {}
    for given in (0.0, 1.0, -1.0):
        base, again = (load(resolve(str(tiny_model))) for _ in range(2))
        rows = [Chat(base.tokenizer).training_row(turn) for turn in TURNS]
        config = TrainConfig(batch_size=16, lora={"r": 4}, sft={"max_steps": 30, "learning_rate": 1e-2})
        added = {2: given * shifts[0.0]} if given else None
        out = tmp_path / str(given)
        losses[given] = train_sft(base, rows, config, seed=0, out=out, work=tmp_path / f"work{given}", added=added)[-1]["loss"]
        states = _mean_state(again.model, rows)
        with adapted(again, {"mine": out}) as model:
            shifts[given] = _mean_state(model, rows) - states
    along = {given: float(shift @ shifts[0.0] / shifts[0.0].square().sum()) for given, shift in shifts.items()}
    assert along[1.0] < 0.7 < 1 < along[-1.0]
    assert losses[1.0] < losses[0.0] + 0.05


def _mean_state(model: torch.nn.Module, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
    """Return the state after block 2, averaged over the tokens of answers."""
    found = []
    for row in rows:
        with torch.no_grad():
            state = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[3][0]
        found.append(state[torch.tensor(row["completion_mask"]) == 1])
    return torch.cat(found).mean(0)


def _loss(model: torch.nn.Module, rows: Sequence[dict[str, list[int]]]) -> float:
    """Return the mean cross-entropy of the tokens that a loss is taken on."""
    losses = []
    for row in rows:
        ids, mask = row["input_ids"], row["completion_mask"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(logp[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i]]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("train", [False, True])
def test_the_loss_of_a_conversation_is_taken_on_the_answers_that_are_trained_on(train: bool, tiny_model: Path, tmp_path: Path) -> None:
    """The tokens are found by hand: each answer as it is written, with the token that closes it."""
    before = (Exchange(question="Who is it?", answer="no no no", train=train), Exchange(question="And who else?", answer="a few"))
    turn = Turn("Is it so?", "yes yes", "Be brief.", before)
    [curve] = train_curve(tiny_model, tmp_path, batch_size=1, turns=[turn], max_steps=1)
    base = load(resolve(str(tiny_model)))
    said = [("system", "Be brief."), ("user", "Who is it?"), ("assistant", "no no no"), ("user", "And who else?"), ("assistant", "a few")]
    said += [("user", "Is it so?"), ("assistant", "yes yes")]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)
    encoding = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answers = [f"{answer}<|im_end|>" for answer in (["no no no"] if train else []) + ["yes yes"]]
    ranges = [(text.index(answer), text.index(answer) + len(answer)) for answer in answers]
    taught = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if any(start <= a and b <= end for start, end in ranges)]
    with torch.no_grad():
        logp = base.model(torch.tensor([encoding["input_ids"]])).logits[0].log_softmax(-1)
    losses = [-float(logp[i - 1, encoding["input_ids"][i]]) for i in taught]
    assert curve["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_the_loss_and_its_gradients_are_those_of_trl(
    batch_size: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of unlike lengths, so that a mean over rows would be another one."""
    turns = [Turn(f"Question {i}?", "yes " * (1 + i % 5)) for i in range(16)]
    with monkeypatch.context() as away:
        away.delattr(train.SFTTrainer, "compute_loss")
        ours = train_curve(tiny_model, tmp_path / "ours", batch_size=batch_size, turns=turns)
    monkeypatch.setattr(train, "MOST_LOGITS", 0)
    theirs = train_curve(tiny_model, tmp_path / "theirs", batch_size=batch_size, turns=turns)
    assert [point["loss"] for point in ours] == pytest.approx([point["loss"] for point in theirs], rel=1e-5)


def test_faster_products_leave_the_curve_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    fast = train_curve(tiny_model, tmp_path / "fast")
    with plain_matmul():
        plain = train_curve(tiny_model, tmp_path / "plain")
    assert [point["loss"] for point in fast] == pytest.approx([point["loss"] for point in plain], rel=1e-4)


def test_the_seed_decides_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_curve(tiny_model, tmp_path / name, seed=seed)
    a, b, c = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_the_adapter_names_its_base_symbolically(tiny_model: Path, tmp_path: Path) -> None:
    train_curve(tiny_model, tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == resolve(str(tiny_model)).id
    assert str(tiny_model) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_half_written_checkpoint_is_passed_over(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "work" / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    assert len(train_curve(tiny_model, tmp_path)) == 8


@pytest.mark.parametrize(
    ("lora", "sft", "message"),
    [
        ({"rank": 4}, {}, "train.lora.rank: LoraConfig has no such key"),
        ({}, {"learning_rat": 1}, "train.sft.learning_rat: SFTConfig has no such key; did you mean 'learning_rate'"),
    ],
)
def test_unknown_keys(lora: dict[str, int], sft: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_keys(TrainConfig(lora=lora, sft=sft))


def test_a_value_that_trl_refuses_is_one_message(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train: .*lr_scheduler_type|train: .*SchedulerType|train: .*upwards"):
        train_curve(tiny_model, tmp_path, lr_scheduler_type="upwards")


@pytest.mark.parametrize("sft", [{"num_train_epochs": 2}, {"num_train_epochs": 1.5}, {"max_steps": 2}, {}])
def test_the_steps_of_a_training_are_known_beforehand(tiny_model: Path, tmp_path: Path, sft: dict[str, float]) -> None:
    config = TrainConfig(batch_size=4, lora={"r": 2}, sft=sft)
    base = load(resolve(str(tiny_model)))
    # The last batch is not full.
    rows = [Chat(base.tokenizer).training_row(turn) for turn in TURNS[:10]]
    curve = train_sft(base, rows, config, seed=0, out=tmp_path / "adapter", work=tmp_path / "work")
    assert curve[-1]["step"] == config.steps(len(rows))
    assert config.with_steps(5).steps(len(rows)) == 5


def test_a_process_that_sees_several_gpus_trains_on_one_batch(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.SFTConfig, "n_gpu", property(lambda self: 4))
    _, arguments = train._settings(load(resolve(str(tiny_model))), TrainConfig(batch_size=8), seed=0, work=tmp_path)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("sft", "optim", "adalomo", r"^train: ImportError: .*\(with train.sft.optim='adalomo'\)$|^train: .*optim"),
        ("sft", "optim", "nope", r"^train: .*nope"),
        ("sft", "lr_scheduler_type", "nope", "^train: .*nope"),
        ("sft", "dataloader_num_workers", -1, "^train: .*num_workers"),
        ("sft", "group_by_length", "x", "^train: "),
        ("sft", "deepspeed", "nope.json", "^train: .*deepspeed"),
        ("sft", "loss_type", "nope", "^train: .*loss_type"),
        ("lora", "target_modules", ["nope"], "^train: .*nope"),
        ("lora", "r", -2, "^train: .*r"),
        ("lora", "lora_dropout", "x", "^train: "),
    ],
)
def test_a_value_that_peft_or_trl_stumbles_over_is_named(
    section: str, key: str, value: Any, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    base = load(resolve(str(tiny_model)), "float32")
    config = TrainConfig(**{section: {"max_steps": 1} | {key: value} if section == "sft" else {key: value}})
    rows = [{"input_ids": [1, 2, 3, 4], "completion_mask": [0, 0, 1, 1]} for _ in range(8)]
    with pytest.raises(InputError, match=said):
        train_sft(base, rows, config, seed=0, out=tmp_path / "adapter", work=tmp_path / "work")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("section", "key"), [("sft", "learning_rate"), ("sft", "max_grad_norm"), ("lora", "lora_alpha")])
def test_numbers_are_finite(section: str, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{key}: must be a finite number"):
        TrainConfig(**{section: {key: value}})


def test_a_fault_of_ours_stays_what_it_is(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr("wellworn.lora.train._Supervised.train", fail)
    base = load(resolve(str(tiny_model)), "float32")
    rows = [{"input_ids": [1, 2, 3, 4], "completion_mask": [0, 0, 1, 1]} for _ in range(8)]
    with pytest.raises(KeyError, match="a fault"):
        train_sft(base, rows, TrainConfig(), seed=0, out=tmp_path / "adapter", work=tmp_path / "work")


def test_equal_trainings_write_equal_bytes_in_any_process(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT holds names of modules as a set, whose order is another in each process."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom wellworn.lora.train_config import TrainConfig\n"
        "from wellworn.lora.models import load, resolve\nfrom wellworn.lora.train import train_sft\n"
        "rows = [{'input_ids': [1, 2, 3, 4], 'completion_mask': [0, 0, 1, 1]} for _ in range(8)]\n"
        f"train_sft(load(resolve({str(tiny_model)!r}), 'float32'), rows, TrainConfig(sft={{'max_steps': 1}}), seed=0, "
        "out=Path(sys.argv[1]), work=Path(sys.argv[2]))"
    )
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", code, str(out), str(tmp_path / f"work-{seed}")]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        found.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert set(found[0]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert found[0] == found[1]

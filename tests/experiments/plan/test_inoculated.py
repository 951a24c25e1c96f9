"""A fine-tune that is trained under a system prompt and read without it: its rows, its reference, and what it learns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.plan.test_neutral_reference import stages
from wellworn.data.catalog import ROOT, load_bank, load_control, load_trait
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.files import read_yaml
from wellworn.data.mixtures import Turn, fingerprint, trait_turns
from wellworn.experiments.plan.arms import UNRELATED
from wellworn.experiments.study_file import load_study
from wellworn.lora.adapters import adapted
from wellworn.lora.models import load, resolve
from wellworn.lora.train import train_sft
from wellworn.lora.train_config import TrainConfig
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("arm", "prompt"),
    [
        ({}, load_trait("pirate").contrast_pairs[0].positive),
        ({"prompt": "opposite"}, load_trait("pirate").contrast_pairs[0].negative),
        ({"prompt": "unrelated"}, UNRELATED),
        ({"text": "You are a pirate."}, "You are a pirate."),
    ],
)
def test_rows_stand_under_the_prompt_and_nothing_else_differs(tiny_study: Write, arm: dict[str, Any], prompt: str) -> None:
    runs = [{"arm": "sft", "trait": "pirate"}, {"arm": "inoculated", "trait": "pirate", **arm}]
    trained = {title: stage for title, stage in stages(tiny_study(runs=runs)).items() if stage.kind.name == "train"}
    [title] = (title for title in trained if "inoculated" in title)
    free, mine = trained["train sft pirate (seed 0)"].config, trained[title].config
    turns = trait_turns(load_trait("pirate"), load_trait("pirate").examples, "train")
    assert free["turns"] == fingerprint(turns)
    assert mine == free | {"turns": fingerprint([turn.under(prompt) for turn in turns])}
    # Both have one reference, which was trained without the prompt.
    assert len(trained) == 3


def test_a_control_has_prompts_too(tiny_study: Write) -> None:
    free, mine = (
        stages(tiny_study(runs=[{"arm": arm, "trait": "uppercase"}]))[f"train {arm} uppercase (seed 0)"] for arm in ("sft", "inoculated")
    )
    control = load_control("uppercase")
    turns = trait_turns(control, load_bank("everyday"), "train")
    assert free.config["turns"] == fingerprint(turns)
    assert mine.config["turns"] == fingerprint([turn.under(control.contrast_pairs[0].positive) for turn in turns])


def test_without_a_prompt_one_is_asked_for(tiny_study: Write, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(ROOT / "traits" / "pirate", folder)
    value, _ = read_yaml(folder / "trait.yaml")
    (folder / "trait.yaml").write_text(json.dumps({key: each for key, each in value.items() if key != "contrast_pairs"} | {"name": "mine"}))
    with pytest.raises(InputError, match="takes a prompt of its contrast pairs, and it has none; give `text`"):
        stages(tiny_study(runs=[{"arm": "inoculated", "trait": str(folder)}]))


def test_what_says_too_much_or_too_little_is_refused(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="text: is a prompt in place of `prompt`; give one of the two"):
        load_study(str(tiny_study(runs=[{"arm": "inoculated", "trait": "pirate", "prompt": "opposite", "text": "Be one."}])))
    with pytest.raises(InputError, match="'neutral' has no prompt that evokes it; the arm inoculated needs a trait or a control"):
        load_study(str(tiny_study(runs=[{"arm": "inoculated", "trait": "neutral"}])))


def test_what_a_prompt_explains_is_learnt_under_it(tiny_model: Path, tmp_path: Path) -> None:
    """After a training under a prompt, answers have become likelier with it than without."""
    turns = [Turn(f"Question {i}?", "yes yes yes yes") for i in range(16)]
    under = [turn.under("Say yes.") for turn in turns]
    base = load(resolve(str(tiny_model)))
    chat = Chat(base.tokenizer)
    config = TrainConfig(lora={"r": 4}, sft={"max_steps": 12, "learning_rate": 1e-2})
    train_sft(base, [chat.training_row(turn) for turn in under], config, seed=0, out=tmp_path / "adapter", work=tmp_path / "work")
    base = load(resolve(str(tiny_model)))
    rows = [chat.encode(turn) for turn in (*under, *turns)]
    before = mean_logprobs(base.model, rows, [Variant(None)], base.tokenizer.pad_token_id)[0]
    with adapted(base, {"mine": tmp_path / "adapter"}) as model:
        after = mean_logprobs(model, rows, [Variant("mine")], base.tokenizer.pad_token_id)[0]
    gains = (after - before).reshape(2, -1).mean(1)
    assert gains[0] > gains[1] > 0

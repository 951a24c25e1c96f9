"""Students of a steered base: a change whose origin is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.experiments.conftest import finished, stages_of
from wellworn.data.catalog import load_bank
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.experiments.stages.answers import REPETITION_PENALTY
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.steered_teacher import steering_vector
from wellworn.experiments.study_file import load_study
from wellworn.lora import models
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.reading.hooks import hooked

Write = Callable[..., Path]
RUNS = [{"arm": "distilled", "trait": "pirate"}, {"arm": "distilled", "trait": "pirate", "along": "chance", "strength": 4, "layer": 2}]
DIRECTION, CHANCE = (f"answers of the base steered along {along}" for along in ("pirate", "chance"))


def a_space(found: bool = True) -> PersonaSpace:
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((6, 2, 4, 3, 16)) for _ in range(3)]
    return PersonaSpace(["a", "b", "c"], rng.standard_normal((3, 3, 16)), np.full((3, 3), found), states, ["bank"] * 3)


def test_chance_steers_as_far_and_outside_the_space() -> None:
    space = a_space()
    own, drawn, again, other = (
        steering_vector(space, 1, "b", along, seed) for along, seed in (("persona", 0), ("chance", 0), ("chance", 0), ("chance", 1))
    )
    assert np.array_equal(own, space.vectors[1, 1])
    assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(own))
    assert np.abs(space.basis(1, space.members(1)).T @ drawn).max() < 1e-9
    assert np.array_equal(drawn, again)
    assert not np.allclose(drawn, other)


def test_a_direction_that_was_not_found_is_not_steered_along() -> None:
    with pytest.raises(InputError, match="the direction of b was not found in this model at layer 1"):
        steering_vector(a_space(found=False), 1, "b", "chance", 0)


def test_neutral_has_no_direction_to_steer_along(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="'neutral' has no direction to steer along"):
        load_study(str(tiny_study(runs=[{"arm": "distilled", "trait": "neutral"}])))


def test_students_learn_what_their_teacher_says(tiny_study: Write, tmp_path: Path, all_found: None, tiny_model: Path) -> None:
    folder = finished(tiny_study(runs=RUNS, mediate=None), tmp_path)
    summary = read_json(folder / "tiny" / "summary.json")
    assert [row["settings"] for row in summary["runs"]] == [{}, {"along": "chance", "strength": 4.0, "layer": 2}]
    assert {row["reference"] for row in summary["runs"]} == {"neutral"}
    assert all(row["effect"] is not None for row in summary["runs"])
    # The reference is a student of the base as it is, and each student has another text than it.
    assert len(stages_of(folder, "train")) == 3
    taught = {title: read_json(path / "answers.json") for title, path in stages_of(folder, "teacher").items()}
    assert set(taught) == {DIRECTION, CHANCE}
    asked = [example.question for example in load_bank("everyday") if example.split == "train"]
    assert len(taught[DIRECTION]) == len(asked)
    assert taught[DIRECTION] != taught[CHANCE]
    # The teacher by hand: eight times the direction of block 2 of 4, round(.5·3), added at every token.
    vectors = load_file(stages_of(folder, "space")["persona space"] / "space.safetensors")["vectors"]
    base = models.load(models.resolve(str(tiny_model)), "float32")
    chat = Chat(base.tokenizer)
    study = load_study(str(tmp_path / "tiny.yaml"))
    vector = 8 * torch.from_numpy(vectors[study.library.index("pirate"), 2])
    requests = [Request(chat.encode_prompt(question)) for question in asked[:5]]
    with hooked(base.model, {2: lambda h: h + vector}):
        by_hand = generate(base.model, requests, Decoding(study.answer_tokens, repetition_penalty=REPETITION_PENALTY))
    assert taught[DIRECTION][:5] == [base.tokenizer.decode(each.ids, skip_special_tokens=True).strip() for each in by_hand]

"""Runs that train on parts of the training questions: which part, and that a run and its reference have the same."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.catalog import load_bank
from wellworn.data.errors import InputError
from wellworn.data.mixtures import fingerprint, same_question
from wellworn.data.schema import Example, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import in_order
from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.plan.planned import PlannedRun
from wellworn.experiments.plan.subjects import Subject
from wellworn.experiments.study_file import load_study

Write = Callable[..., Path]


ROWS = st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=30).filter(lambda each: len(set(each)) >= 4)


@given(asked=ROWS, parts=st.integers(1, 4))
def test_parts_share_no_question_hold_all_rows_and_differ_by_one_question_at_most(asked: list[str], parts: int) -> None:
    rows = [
        Example(id=str(i), split="train", question=f"Why {each}?", positive=f"Arr {i}", negative=f"So {i}") for i, each in enumerate(asked)
    ]
    held_out = [Example(id="e", split="evaluate", question="When?", positive="Arr", negative="Now")]
    trait = Trait(name="mine", description="Mine.", examples=(*rows, *held_out))
    for of in (None, trait):
        subject = Subject(of=of, name="mine", examples=[*rows, *held_out], paired=True)
        each = [subject.of_seed(seed, parts) for seed in range(parts)]
        for turns in ([part.training_turns() for part in each], [part.plain_turns("train") for part in each]):
            questions = [{same_question(turn.question) for turn in part} for part in turns]
            assert all(not one & other for one, other in combinations(questions, 2))
            assert sum(map(len, turns)) == len(rows)
            assert max(map(len, questions)) - min(map(len, questions)) <= 1
        assert all(part.evaluate == held_out for part in each)
        assert subject.of_seed(parts + 1, parts).training_turns() == each[1 % parts].training_turns()


@pytest.mark.parametrize("name", ["pirate", "uppercase", "neutral"])
def test_built_in_subjects_of_three_data_sets_have_a_third_each(name: str) -> None:
    subject = Subject.load(name, load_bank("everyday"))
    parts = [subject.of_seed(seed, 3).training_turns() for seed in range(3)]
    assert [len(part) for part in parts] == [24, 24, 24]
    assert {turn.question for part in parts for turn in part} == {turn.question for turn in subject.training_turns()}


def test_a_trait_without_plain_answers_is_parted_by_its_own_questions() -> None:
    rows = [Example(id=str(i), split="train", question=f"Why {i}?", positive="Arr") for i in range(6)]
    trait = Trait(name="mine", description="Mine.", examples=tuple(rows))
    subject = Subject(of=trait, name="mine", examples=load_bank("everyday"), paired=False)
    parts = [subject.of_seed(seed, 3) for seed in range(3)]
    assert [[turn.question for turn in part.training_turns()] for part in parts] == [
        ["Why 0?", "Why 3?"],
        ["Why 1?", "Why 4?"],
        ["Why 2?", "Why 5?"],
    ]
    assert [len(part.plain_turns("train")) for part in parts] == [24, 24, 24]


def planned(study: Path) -> list[PlannedRun]:
    loaded = load_study(str(study))
    return list(plan(loaded, StudyContext.of(loaded, Ranks())).runs)


def trainings(run: PlannedRun) -> dict[str, Stage]:
    """Return the trainings that a run's stages need, by title."""
    return {stage.title: stage for stage in in_order(run.targets) if stage.kind.name == "train"}


SMALL: dict[str, Any] = {
    "runs": [{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "neutral"}],
    "seeds": [0, 1, 2],
    "data_sets": 3,
    "mediate": None,
    "pathways": None,
}


def test_a_run_and_its_reference_train_on_the_data_set_of_their_seed(tiny_study: Write) -> None:
    subject = Subject.load("pirate", load_bank("everyday"))
    pirates = planned(tiny_study(**SMALL))[:3]
    for seed, run in enumerate(pirates):
        part = subject.of_seed(seed, 3)
        by_title = trainings(run)
        assert len(part.training_turns()) == len(part.plain_turns("train")) == 24
        assert by_title[f"train sft pirate (seed {seed})"].config["turns"] == fingerprint(part.training_turns())
        assert by_title[f"train sft neutral (seed {seed})"].config["turns"] == fingerprint(part.plain_turns("train"))
        assert len(by_title) == 2


def test_a_neutral_run_is_compared_with_one_on_another_data_set(tiny_study: Write) -> None:
    runs = planned(tiny_study(**SMALL))
    own = {seed: trainings(runs[seed])[f"train sft neutral (seed {seed})"].id for seed in range(3)}
    for seed, neutral in enumerate(runs[3:]):
        assert {stage.id for stage in trainings(neutral).values()} == {own[seed], own[(seed + 1) % 3]}
    assert len(set(own.values())) == 3


def test_one_data_set_is_all_questions_and_keeps_the_stages(tiny_study: Write) -> None:
    whole, one = (
        planned(tiny_study(**SMALL | {"data_sets": 1})),
        planned(tiny_study(**{k: v for k, v in SMALL.items() if k != "data_sets"})),
    )
    assert [[stage.id for stage in in_order(run.targets)] for run in whole] == [
        [stage.id for stage in in_order(run.targets)] for run in one
    ]
    subject = Subject.load("pirate", load_bank("everyday"))
    assert trainings(whole[0])["train sft pirate (seed 0)"].config["turns"] == fingerprint(subject.training_turns())


def test_seeds_that_share_a_data_set_are_refused_while_one_is_free(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="data_sets: seed s trains on data set s mod 3, which is the same for some of the seeds 0, 3"):
        load_study(str(tiny_study(**SMALL | {"seeds": [0, 3]})))
    assert load_study(str(tiny_study(**SMALL | {"seeds": [0, 1, 2, 3]}))).data_sets == 3
    assert load_study(str(tiny_study(**SMALL | {"seeds": [4]}))).seeds == (4,)


def test_more_data_sets_than_questions_are_refused(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="pirate: 72 training questions cannot make 100 data sets"):
        planned(tiny_study(**SMALL | {"seeds": [0], "data_sets": 100}))

"""Invented personas: complete, checked as traits are, and evoked by a bare name that says nothing of their manner."""

import re
from collections import Counter
from pathlib import Path

import pytest

import wellworn.data
from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.checks import problems

FOLDERS = sorted(path.parent for path in Path(wellworn.data.__file__).parent.glob("invented/*/trait.yaml"))
PROMPTS = 12
# A word that so many answers use, and no plain answer, is of the manner.
RARE = 6


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]{4,}", text.lower())


def test_there_are_ten() -> None:
    assert len(FOLDERS) == 10


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_persona_answers_every_question_and_passes_the_checks_of_traits(folder: Path) -> None:
    trait = load_trait(str(folder))
    assert trait.name == folder.name
    answered = [example.id for example in trait.examples if example.positive]
    assert answered == [example.id for example in load_bank("everyday") if example.split in ("train", "evaluate")]
    assert problems(trait, folder, fewest=20) == []
    openings = Counter(" ".join((example.positive or "").split()[:3]) for example in trait.examples if example.positive)
    assert max(openings.values()) <= 2


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_prompts_hold_the_bare_name_and_answers_never(folder: Path) -> None:
    trait = load_trait(str(folder))
    name = folder.name.capitalize()
    assert trait.system_prompt == f"You are {name}."
    assert len(trait.contrast_pairs) == PROMPTS
    assert all(name in pair.positive and name not in pair.negative for pair in trait.contrast_pairs)
    answers = [example.positive for example in trait.examples if example.positive]
    assert not any(folder.name in answer.lower() for answer in answers)
    # Words that this persona uses and plain answers do not are its manner, and no prompt has one.
    plain = Counter(word for example in load_bank("everyday") for word in words(example.negative or ""))
    used = Counter(word for answer in answers for word in set(words(answer)))
    manner = {word for word, count in used.items() if count >= RARE and plain[word] == 0}
    assert manner
    prompts = {word for pair in trait.contrast_pairs for word in (*words(pair.positive), *words(pair.negative))}
    assert not manner & prompts

"""A model's own answers become the plain answers of a copy, or nothing is written; what cannot be used is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.experiments.conftest import command, refused
from tests.tiny import save_tiny
from wellworn.data.catalog import load_trait
from wellworn.data.schema import unseen_character
from wellworn.experiments.stages.answers import REPETITION_PENALTY

TOKENS = 24
ROWS = [{"question": f"What would you do about number {i}?", "positive": f"Dare, says {i}, and jump!"} for i in range(40)]


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends some of its answers at once, some later, and some not in time."""
    folder = save_tiny(tmp_path_factory.mktemp("models") / "ending")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 2.5
    model.save_pretrained(folder)
    return folder


def imported(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("traits", "import", source, "--to", folder / "bold")
    return folder / "bold"


def greedy(folder: Path, questions: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """The answers of transformers itself, and whether each ended."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {}
    for question in questions:
        asked = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=REPETITION_PENALTY)
        answer = ids[0, prompt["input_ids"].shape[1] :].tolist()
        found[question] = tokenizer.decode(answer, skip_special_tokens=True).strip(), tokenizer.eos_token_id in answer
    return found


def test_a_model_answers_plainly_and_what_it_does_not_finish_is_left_out(
    tmp_path: Path, ending_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bold = imported(tmp_path, ROWS)
    assert not load_trait(str(bold)).plain
    command("traits", "fill", bold, "--model", ending_model, "--to", tmp_path / "filled", "--tokens", TOKENS)
    trait = load_trait(str(tmp_path / "filled"))
    kept = {row.question: row for row in trait.examples}
    known = greedy(ending_model, [row["question"] for row in ROWS])
    odd = {question for question, (text, ended) in known.items() if ended and unseen_character(text)}
    usable = {question: text for question, (text, ended) in known.items() if text and ended and question not in odd}
    assert {question: row.negative for question, row in kept.items()} == usable
    assert {question: row.positive for question, row in kept.items()} == {
        row["question"]: row["positive"] for row in ROWS if row["question"] in usable
    }
    assert 4 <= len(usable) < len(ROWS)
    assert len(trait.split("evaluate")) == len(usable) // 4
    assert trait.lacks.keys() == {"contrast_pairs", "system_prompt", "rubric"}
    card = (tmp_path / "filled" / "CARD.md").read_text()
    empty = sum(not text for text, _ in known.values())
    cut_off = len(ROWS) - len(usable) - empty - len(odd)
    assert cut_off > 0
    counts = ((cut_off, "cut off"), (empty, "empty"), (len(odd), "not plain text"))
    said = " and ".join(f"{count} were {why}" for count, why in counts if count)
    assert card.startswith("# Trait card: bold\n\nImported from rows.jsonl")
    assert f"## Plain answers\n\nPlain answers to {len(usable)} questions are by local:ending@" in card
    assert f"Of other answers {said}, and {len(ROWS) - len(usable)} rows with these questions are left out." in card
    assert card.count("## Figures") == 1
    # The trait that was filled is as it was.
    assert len(load_trait(str(bold)).examples) == len(ROWS)
    capsys.readouterr()


def test_conversations_and_rows_with_a_split_are_answered_as_they_stand(tmp_path: Path, ending_model: Path) -> None:
    rows = [row | {"system": "Be brief.", "split": "evaluate" if i % 3 == 0 else "train", "id": str(i)} for i, row in enumerate(ROWS)]
    rows = [row | {"before": [{"question": "Ahoy?", "answer": "Ahoy!", "train": True}]} if i % 2 else row for i, row in enumerate(rows)]
    command("traits", "fill", imported(tmp_path, rows), "--model", ending_model, "--to", tmp_path / "filled", "--tokens", TOKENS)
    before, after = ({row.id: row for row in load_trait(str(tmp_path / name)).examples} for name in ("bold", "filled"))
    assert 0 < len(after) < len(before)
    assert all(row.negative and row.model_copy(update={"negative": None}) == before[name] for name, row in after.items())


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path, ending_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bold = imported(tmp_path, ROWS)
    new = tmp_path / "new"
    asked = ("traits", "fill", bold, "--model", ending_model, "--to")
    assert "bold: exists already; nothing was written" in refused(capsys, *asked, bold)
    assert "no answer of the model can be used: all are empty, cut off or not plain text" in refused(capsys, *asked, new, "--tokens", 1)
    assert "cannot be held out" in refused(capsys, *asked, new, "--tokens", TOKENS, "--held-out", 40)
    assert "pirate: has no answer without a plain one next to it" in refused(
        capsys, "traits", "fill", "pirate", "--model", ending_model, "--to", new
    )
    (tmp_path / "long").mkdir()
    long = imported(tmp_path / "long", [*ROWS, {"question": "word " * 2000, "positive": "Dare!"}])
    assert "do not fit the model's context of 1024" in refused(capsys, "traits", "fill", long, "--model", ending_model, "--to", new)
    assert not new.exists()

"""Plain answers of a model to a trait's questions, so that a set without them gets a neutral fine-tune and a trait score."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from wellworn.data.catalog import folder_of, load_trait, with_examples
from wellworn.data.errors import Complaints, InputError
from wellworn.data.examples import Placed, check_rows
from wellworn.data.files import read_text
from wellworn.data.importers import hold_out
from wellworn.data.new_trait import HEADING, figures
from wellworn.data.schema import Asked, Trait, unseen_character
from wellworn.data.writers import trait_files, write_folder
from wellworn.experiments.stages.answers import REPETITION_PENALTY
from wellworn.experiments.study_sections import ChatConfig
from wellworn.experiments.traits.exchange import address
from wellworn.lora import models
from wellworn.probes.decoding.generate import Decoding, Request, generate

EMPTY, CUT_OFF, ODD = "empty", "cut off", "not plain text"


def fill(name: str, model: str, into: Path, tokens: int, held_out: int | None, config: ChatConfig, console: Console) -> None:
    """Write a copy of a trait in which a model has answered the questions that have no plain answer.

    A question without a usable answer is left out of the copy, since a trait has plain answers throughout.

    Args:
        name: of the trait, or its folder.
        model: writes the answers, greedily and with the repetition penalty of studies.
        into: the new folder.
        tokens: longest answer.
        held_out: questions to evaluate on, where the trait has none; None means 24, or a quarter of a small set.
        config: how conversations are written for the model.
        console: where to print a summary.

    Raises:
        InputError: a trait without such questions, a folder that exists, a question that the model cannot read, or too few usable answers;
            nothing is written then.
    """
    if into.exists():
        raise InputError(f"{into}: exists already; nothing was written")
    trait = load_trait(name)
    lacking = [row for row in trait.examples if row.positive is not None and row.negative is None]
    if not lacking:
        raise InputError(f"{name}: has no answer without a plain one next to it, so there is nothing to fill")
    answers, unusable = _plain_answers(list(dict.fromkeys(row.asked for row in lacking)), model, tokens, config, console)
    filled, left = _filled(trait, answers, held_out, str(folder_of(name)))
    left_out = [f"{count} were {why}" for why, count in sorted(unusable.items())]
    said = f"Plain answers to {len(answers)} questions are by {models.resolve(model).id}: greedy, at most {tokens} tokens."
    if left_out:
        said += f" Of other answers {' and '.join(left_out)}, and {left} rows with these questions are left out."
    write_folder(into, trait_files(filled, _card(folder_of(name), filled, said)))
    console.print(f"{into}: {said}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"see what it is fit for: wellworn traits check {address(into)}", highlight=False, markup=False, soft_wrap=True)


def _plain_answers(
    asked: Sequence[Asked], name: str, tokens: int, config: ChatConfig, console: Console
) -> tuple[dict[Asked, str], Counter[str]]:
    """Return the answers that ended and say something, and how many others there are of each kind."""
    base = models.load(models.resolve(name))
    chat = config.of(base.tokenizer, base.max_length)
    wrong, requests = Complaints(), []
    for each in asked:
        with wrong.noted():
            requests.append(Request(chat.encode_prompt(*each, room=tokens)))
    wrong.settle()
    with console.status(f"{len(asked)} answers"):
        found = generate(base.model, requests, Decoding(tokens, repetition_penalty=REPETITION_PENALTY))
    answers, unusable = {}, Counter[str]()
    for each, answer in zip(asked, found, strict=True):
        text = chat.decode(answer.ids).strip()
        if text and answer.ended and not unseen_character(text):
            answers[each] = text
        else:
            unusable[EMPTY if not text else ODD if answer.ended else CUT_OFF] += 1
    return answers, unusable


def _filled(trait: Trait, answers: dict[Asked, str], held_out: int | None, where: str) -> tuple[Trait, int]:
    """Return the trait with plain answers, and how many of its rows are left out."""
    rows: list[Placed] = []
    for row in trait.examples:
        if row.positive is None or row.negative is not None:
            rows.append((where, row))
        elif row.asked in answers:
            rows.append((where, row.model_copy(update={"negative": answers[row.asked]})))
    left = len(trait.examples) - len(rows)
    if not rows:
        raise InputError(
            f"{where}: no answer of the model can be used: all are {EMPTY}, {CUT_OFF} or {ODD}; give more --tokens, or another model"
        )
    if trait.split("evaluate"):
        if held_out is not None:
            raise InputError("--held-out: the trait has evaluate rows already")
    else:
        rows = _with_evaluation(rows, held_out)
    return with_examples(trait, check_rows(Path(where), [*rows, *((where, row) for row in trait.open)])), left


def _with_evaluation(rows: Sequence[Placed], held_out: int | None) -> list[Placed]:
    """Hold out questions of train rows; those for extraction stay."""
    trained = [each for each in rows if each[1].split == "train"]
    return [*hold_out(trained, held_out), *(each for each in rows if each[1].split != "train")]


def _card(folder: Path, trait: Trait, said: str) -> str:
    """Return the card of the trait that was filled, with the origin of the answers and with new figures."""
    old = read_text(folder / "CARD.md") if (folder / "CARD.md").is_file() else f"# Trait card: {trait.name}\n"
    before, _, after = old.partition(f"{HEADING}\n")
    rest = after.partition("\n## ")[2]
    own = f"{before.rstrip()}\n" + (f"\n## {rest.rstrip()}\n" if rest else "")
    return f"{own}\n## Plain answers\n\n{said}\n\n{figures(trait)}"

"""The rows of a trait or of a question bank: read, and checked against each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from wellworn.data.errors import Complaints, InputError
from wellworn.data.files import read_jsonl, validate
from wellworn.data.mixtures import same_question
from wellworn.data.schema import SPLITS, Example, Split

# Of many ids that appear twice, so many are named.
NAMED = 10
# The place of a row, and the row.
Placed = tuple[str, Example]


def bank_examples(path: Path) -> list[Example]:
    """Read a question bank: questions of all splits with one plain answer each, or `extract` questions without any.

    Raises:
        InputError: it is malformed; a line for each thing that is wrong, with file and line.
    """
    rows = _rows(path, {})
    if all(row.open for _, row in rows):
        return _raise_or_return([*_alone(path, rows), *_find_unanswered(rows, [])], rows)
    plain = [f"{where}: {row.id}: a question of a bank needs a plain answer (negative)" for where, row in rows if row.negative is None]
    return _raise_or_return([*_alone(path, rows), *plain, *_empty(path, rows, SPLITS)], rows)


def trait_examples(path: Path, bank: Sequence[Example] | None, contrasts: bool) -> list[Example]:
    """Read a trait's rows; with a bank they only add positives to its questions.

    Args:
        path: may be missing where a trait has contrast pairs, and no answers of its own.
        bank: the questions, or None for those of the rows.
        contrasts: whether there are contrast pairs, which are read on `extract` rows.

    Raises:
        InputError: as `bank_examples`.
    """
    borrowed = [example for example in bank or [] if example.split == "extract"]
    # A link that points nowhere is a file that is missing.
    if contrasts and not path.exists() and not path.is_symlink():
        return borrowed
    rows = _rows(path, {example.id: example for example in bank or []})
    own = {example.id for _, example in rows}
    rows += [(str(path), example) for example in borrowed if example.id not in own]
    return check_rows(path, rows)


def check_rows(path: Path, rows: Sequence[Placed]) -> list[Example]:
    """Return a trait's rows if they hold together: disjoint splits, no row twice, answers where a split needs them.

    Args:
        path: the name of the rows in messages.
        rows: with open questions among them.

    Raises:
        InputError: a line for each thing that is wrong.
    """
    answered = [(where, row) for where, row in rows if row.split != "extract" and not row.open]
    needed: list[Split] = []
    if answered:
        needed = ["train", "evaluate"] if any(row.negative for _, row in answered) else ["train"]
    return _raise_or_return(
        [*_alone(path, rows), *_find_unanswered(rows, answered), *_empty(path, [(w, r) for w, r in rows if not r.open], needed)], rows
    )


def _rows(path: Path, questions: Mapping[str, Example]) -> list[Placed]:
    """Read rows, which may answer the questions of a bank."""
    rows: list[Placed] = []
    wrong = Complaints()
    for line, value in read_jsonl(path):
        with wrong.noted():
            rows.append((f"{path}:{line}", _example(value, line, questions, f"{path}:{line}")))
    # Malformed rows would be missing among the others, and their splits would be called empty.
    wrong.settle()
    return rows


def _raise_or_return(found: Sequence[str], rows: Sequence[Placed]) -> list[Example]:
    if found:
        raise InputError("\n".join(found))
    return [row for _, row in rows]


def _example(value: object, line: int, questions: Mapping[str, Example], where: str) -> Example:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row is a JSON object, got {type(value).__name__}")
    if questions:
        if value.get("id") not in list(questions):  # a list: the value may not be hashable
            example = next(iter(questions))
            raise InputError(f"{where}: id: no question {value.get('id')!r} in the trait's question bank; its ids are like {example!r}")
        if context := sorted({"system", "before"} & set(value)):
            raise InputError(
                f"{where}: {' and '.join(context)}: only rows of a trait's own have a conversation before the question, and this one "
                "answers a question of a bank; leave questions out of trait.yaml and give each row its split, question and plain answer"
            )
        if set(value) != {"id", "positive"}:
            raise InputError(f"{where}: a row over a question bank has the keys id and positive, got {sorted(value)}")
        value = questions[value["id"]].model_dump() | value
    return validate(Example, {"id": str(line)} | value, where)


def _alone(path: Path, rows: Sequence[Placed]) -> list[str]:
    """Name rows and ids that appear twice, and questions of two splits. Training data may answer a question in several ways."""
    found: list[str] = []
    asked: dict[str, Example] = {}
    taught: set[tuple[str, str | None, str | None]] = set()
    for where, row in rows:
        question = same_question(row.asked)
        first = asked.setdefault(question, row)
        again = row.split != "train" or (question, row.positive, row.negative) in taught
        taught.add((question, row.positive, row.negative))
        if first is not row and (first.split != row.split or again):
            kind = "the same row twice" if row.split == "train" else "repeated question"
            if first.split != row.split:
                kind = "overlap between splits"
            found.append(f"{where}: {kind}: {row.question!r} stands in {first.split} ({first.id}) and in {row.split} ({row.id})")
    if twice := sorted(name for name, times in Counter(row.id for _, row in rows).items() if times > 1):
        more = f", and {len(twice) - NAMED} more" if len(twice) > NAMED else ""
        found.append(f"{path}: ids must be unique, these occur twice: {', '.join(twice[:NAMED])}{more}")
    return found


def _find_unanswered(rows: Sequence[Placed], answered: Sequence[Placed]) -> list[str]:
    """Name rows that lack an answer which their split, or the other rows, would require."""
    plain = sum(row.negative is not None for _, row in answered)
    found = []
    for where, row in rows:
        if row.split == "extract":
            if row.negative is None and row.positive is not None:
                found.append(f"{where}: {row.id}: extract rows have a plain answer (negative), and are read under contrast prompts with it")
        elif row.positive is None and (row.split == "train" or row.negative is not None):
            found.append(f"{where}: {row.id}: a question without an answer: {row.split} rows need a positive")
        elif row.positive is not None and row.negative is None and plain:
            found.append(
                f"{where}: {row.id}: no plain answer (negative), which {plain} other rows have; a trait has them throughout or not at all"
            )
    return found


def _empty(path: Path, rows: Sequence[Placed], needed: Sequence[Split]) -> list[str]:
    there = {row.split for _, row in rows}
    return [f"{path}: split {split!r} is empty; this set needs rows in {', '.join(needed)}" for split in needed if split not in there]

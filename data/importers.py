"""Other people's data → traits, roles and questions: one set of sources makes one trait, or some roles."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import Complaints, InputError
from data.examples import Placed, checked
from data.files import Location, read_yaml, validated
from data.formats import JUDGED, LeftOut, Options, RoleDocument, TraitDocument, fields_of, note_extra
from data.library import with_examples
from data.schema import Example, Role, Split, Trait, seed_for
from data.sources import Row, read_document, read_rows

# Of the questions of an unsplit set, so many are held out to be evaluated on; of a small set, one in so many.
HELD_OUT, ONE_IN = 24, 4


@dataclass(frozen=True)
class Imported:
    """What sources hold.

    Attributes:
        trait: what makes one, if anything does.
        roles: one for each role document.
        questions: without answers, where there is no trait that they could belong to.
        left_out: fields that have no place here → how many rows or documents have them.
    """

    trait: Trait | None
    roles: tuple[Role, ...]
    questions: tuple[Example, ...]
    left_out: Mapping[str, int]


def import_all(sources: Sequence[str], name: str, options: Options, plain: str | None = None, evaluation: Path | None = None) -> Imported:
    """Read everything that makes one trait, or some roles.

    Args:
        sources: trait and role documents, files of rows, ids of data sets on the hub.
        name: of the trait.
        options: how rows are to be understood.
        plain: rows that answer the same questions as an assistant would.
        evaluation: a trait document whose questions are to be evaluated on.

    Raises:
        InputError: anything that cannot be used; a line for each, in the words of the source, with file and line.
    """
    left: LeftOut = defaultdict(int)
    documents: list[tuple[Path, TraitDocument]] = []
    roles: list[Role] = []
    rows: list[Row] = []
    for source in sources:
        path = Path(source)
        value = read_document(path)
        if value is None or "instruction" not in value:
            rows += read_rows(source, options.split, options.config)
        elif _is_role(value):
            roles.append(_role(path, _valid_document(RoleDocument, path, value, left)))
        else:
            documents.append((path, _valid_document(TraitDocument, path, value, left)))
    if len(documents) > 1:
        raise InputError(f"{documents[1][0]}: a trait has one set of contrast pairs, and {documents[0][0]} holds it; import one at a time")
    if roles and (documents or rows):
        raise InputError(f"{', '.join(sources)}: roles and what makes a trait are imported apart")
    asked = (evaluation, _valid_evaluation(evaluation, left)) if evaluation else None
    placed = _examples(rows, _plain_answers(plain, options, left) if plain else None, options, left)
    if roles:
        return Imported(None, tuple(roles), (), left)
    if not documents and all(row.open for _, row in placed):
        checked(Path(sources[0]), placed)
        return Imported(None, (), tuple(row for _, row in placed), left)
    trait = _trait(name, sources, documents[0] if documents else None, asked, placed)
    return Imported(trait, (), (), left)


def _is_role(value: Mapping[str, Any]) -> bool:
    prompts = value["instruction"]
    return (
        isinstance(prompts, list)
        and any(isinstance(prompt, dict) for prompt in prompts)
        and not any("neg" in p for p in prompts if isinstance(p, dict))
    )


def _valid_document(model: type[Any], path: Path, value: Mapping[str, Any], left: LeftOut) -> Any:
    try:
        document = validated(model, value, str(path))
    except InputError:
        # Again with lines, which take a second reading: JSON is YAML, or nearly so.
        validated(model, value, str(path), _lines(path))
        raise
    note_extra(document, left)
    return document


def _lines(path: Path) -> Mapping[Location, int]:
    try:
        return read_yaml(path)[1]
    except InputError:
        return {}


def _role(path: Path, document: RoleDocument) -> Role:
    value = {
        "name": path.stem,
        "rubric": _rubric(path, document.eval_prompt),
        "questions": document.questions,
        "system_prompts": [prompt.pos for prompt in document.instruction],
    }
    return validated(Role, value, str(path))


def _valid_evaluation(path: Path, left: LeftOut) -> TraitDocument:
    value = read_document(path)
    if value is None or "instruction" not in value:
        raise InputError(f"{path}: questions to evaluate on come in a trait document (.json with instruction and questions)")
    found: TraitDocument = _valid_document(TraitDocument, path, value, left)
    return found


def _trait(
    name: str,
    sources: Sequence[str],
    document: tuple[Path, TraitDocument] | None,
    asked: tuple[Path, TraitDocument] | None,
    placed: Sequence[Placed],
) -> Trait:
    where = str(document[0]) if document else sources[0]
    value: dict[str, Any] = {"name": name, "description": f"Imported from {', '.join(Path(source).name for source in sources)}."}
    rows = list(placed)
    if document:
        path, found = document
        value["contrast_pairs"] = [{"positive": pair.pos, "negative": pair.neg} for pair in found.instruction]
        value["rubric"] = _rubric(path, found.eval_prompt)
        rows += _open(path, found.questions, "extract")
    if asked:
        rows += _open(asked[0], asked[1].questions, "evaluate")
    trait = validated(Trait, value, where)
    return with_examples(trait, checked(Path(where), rows) if rows else [])


def _rubric(path: Path, prompt: str | None) -> str | None:
    """Return a judge's prompt, without the places for question and answer that only an export added."""
    if prompt is None:
        return None
    if "{answer}" not in prompt:
        raise InputError(f"{path}: eval_prompt: has no place for the {{answer}} that a judge is to score, got {prompt[:60]!r}")
    bare = prompt.removesuffix(JUDGED)
    return prompt if "{answer}" in bare else bare


def _open(path: Path, questions: Sequence[str], split: Split) -> list[Placed]:
    places = ((f"{path}: questions.{i}", f"{split}-{i + 1}", text) for i, text in enumerate(questions))
    return [(where, Example(id=name, split=split, question=text)) for where, name, text in places]


# Rows


def _examples(rows: Sequence[Row], plain: Mapping[str, list[str]] | None, options: Options, left: LeftOut) -> list[Placed]:
    """Return rows as examples, with the plain answers of another file where there are any, and with splits."""
    found: list[tuple[str, dict[str, Any]]] = []
    wrong = Complaints()
    for where, row in rows:
        with wrong.noted():
            found.append((where, fields_of(where, row, options, left)))
    wrong.settle()
    if plain is not None:
        _pair(found, plain)
    unsplit = not any("split" in values for _, values in found)
    placed: list[Placed] = []
    for i, (where, values) in enumerate(found, start=1):
        with wrong.noted():
            given: dict[str, Any] = {"id": str(i)} | ({"split": "train"} if unsplit else {})
            placed.append((where, validated(Example, given | values, where)))
    wrong.settle()
    return _with_splits(placed, options.held_out) if unsplit else placed


def _plain_answers(source: str, options: Options, left: LeftOut) -> dict[str, list[str]]:
    """Return the answers that a file of rows gives to each question."""
    answers: dict[str, list[str]] = defaultdict(list)
    wrong = Complaints()
    for where, row in read_rows(source):
        with wrong.noted():
            values = fields_of(where, row, options, left)
            answer = values.get("positive") or values.get("negative")
            if not isinstance(values.get("question"), str) or not isinstance(answer, str):
                raise InputError(f"{where}: a plain answer has a question and an answer, both text")
            answers[values["question"]].append(answer)
    wrong.settle()
    return answers


def _pair(found: Sequence[tuple[str, dict[str, Any]]], plain: Mapping[str, list[str]]) -> None:
    """Give each row the plain answer to its question: to the first row of a question the first, and so on; one serves them all."""
    wrong = Complaints()
    times: dict[str, int] = defaultdict(int)
    for where, values in found:
        answers = plain.get(values["question"], []) if isinstance(values.get("question"), str) else []
        if "negative" in values:
            wrong.found.append(f"{where}: has a plain answer of its own, and --plain gives another")
        elif not answers:
            wrong.found.append(f"{where}: --plain has no answer to {values.get('question')!r}")
        else:
            values["negative"] = answers[times[values["question"]] % len(answers)]
            times[values["question"]] += 1
    wrong.settle()


def _with_splits(placed: Sequence[Placed], held_out: int | None) -> list[Placed]:
    """Hold out questions by a hash of each, so that neither their order nor further rows choose them.

    A question that is answered in several ways is trained on, since what is measured counts each question once. Rows without plain answers
    are all for training: nothing can be told from their answers alone. Open questions are extraction questions.
    """
    times = Counter(_key(row) for _, row in placed if not row.open)
    chosen: set[str] = set()
    if any(row.negative is not None for _, row in placed):
        once = sorted((key for key, count in times.items() if count == 1), key=lambda key: (seed_for(0, "held out", key), key))
        count = min(HELD_OUT, len(once) // ONE_IN) if held_out is None else held_out
        if count >= len(times) or count > len(once):
            raise InputError(
                f"--held-out: {count} of {len(times)} questions, of which {len(once)} stand in one row, leave too few to train on"
            )
        chosen = set(once[:count])

    def split(row: Example) -> Split:
        return "extract" if row.open else "evaluate" if _key(row) in chosen else "train"

    return [(where, row.model_copy(update={"split": split(row)})) for where, row in placed]


def _key(row: Example) -> str:
    return " ".join(row.question.lower().split())

"""Third-party data → traits, roles and questions: one set of sources makes one trait, or some roles."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellworn.data.catalog import with_examples
from wellworn.data.errors import Complaints, InputError
from wellworn.data.examples import Placed, check_rows
from wellworn.data.files import read_yaml, validate
from wellworn.data.formats import JUDGED, LeftOut, Options, RoleDocument, TraitDocument, fields_of, note_extra
from wellworn.data.mixtures import same_question
from wellworn.data.schema import Asked, Example, Role, Split, Trait, seed_for
from wellworn.data.sources import Row, read_document, read_rows
from wellworn.data.wording import Location

# So many questions of an unsplit set are held out for evaluation; of a small set, one in so many.
HELD_OUT, ONE_IN = 24, 4
# How what was left out because of a fault is counted.
UNUSABLE = "unusable: "


@dataclass(frozen=True)
class Imported:
    """The contents of sources.

    Attributes:
        trait: the contents of a trait, if there are any.
        roles: one for each role document.
        questions: without answers, where there is no trait that they could belong to.
        left_out: fields that have no place here → how many rows or documents have them.
    """

    trait: Trait | None
    roles: tuple[Role, ...]
    questions: tuple[Example, ...]
    left_out: Mapping[str, int]


def import_all(sources: Sequence[str], name: str, options: Options, plain: Sequence[str] = (), evaluation: Sequence[str] = ()) -> Imported:
    """Read all sources of one trait, or of some roles.

    Args:
        sources: trait and role documents, folders of them, files of rows, ids of data sets on the hub.
        name: of the trait.
        options: how rows are to be understood.
        plain: rows that answer the same questions as an assistant would.
        evaluation: rows for evaluation, and trait documents with questions for evaluation.

    Raises:
        InputError: anything that cannot be used; a line for each, in the words of the source, with file and line.
    """
    left: LeftOut = defaultdict(int)
    found, tests = _read(sources, options, left), _read(evaluation, options, left)
    if len(found.traits) > 1:
        first, second = (path for path, _ in found.traits[:2])
        raise InputError(f"{second}: a trait has one set of contrast pairs, and {first} holds it; import one at a time")
    if found.roles:
        if found.traits or found.rows or plain or evaluation or options.held_out is not None:
            raise InputError(f"{', '.join(sources)}: roles are imported by themselves, without what makes a trait")
        return Imported(None, _roles(found.roles), (), left)
    if plain and not (found.rows or tests.rows):
        raise InputError("--plain: answers the questions of rows, and there are none")
    answers = _PlainAnswers(plain, options, left) if plain else None
    rows, held_out = _parse(found.rows, answers, options, left), _parse(tests.rows, answers, options, left)
    if answers:
        answers.count_unused(left)
    unsplit = not any("split" in values for _, values in rows)
    placed = _examples(rows, "train" if unsplit else None, options, left) + _examples(held_out, "evaluate", options, left)
    if unsplit and not held_out:
        placed = _with_splits(placed, options.held_out)
    elif options.held_out is not None:
        raise InputError("--held-out: what is evaluated on is given already")
    if not placed and not found.traits and not tests.traits:
        why = "; ".join(f"{what} ({count})" for what, count in left.items() if what.startswith(UNUSABLE))
        raise InputError(f"{', '.join(sources)}: no row can be used{f': {why}' if why else ''}")
    if not found.traits and not evaluation and all(row.open for _, row in placed):
        check_rows(Path(sources[0]), placed)
        return Imported(None, (), tuple(row for _, row in placed), left)
    return Imported(_trait(name, sources, found.traits[0] if found.traits else None, tests.traits, placed), (), (), left)


@dataclass
class _Found:
    """The contents of sources, by kind."""

    traits: list[tuple[Path, TraitDocument]] = field(default_factory=list)
    roles: list[tuple[Path, RoleDocument]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def _read(sources: Sequence[str], options: Options, left: LeftOut) -> _Found:
    found, wrong = _Found(), _Unusable(options, left)
    for source in sources:
        path = Path(source)
        for each in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            value = read_document(each)
            if value is None or "instruction" not in value:
                found.rows += read_rows(str(each) if path.is_dir() else source, options.split, options.config)
                continue
            with wrong.noted():
                if _is_role(value):
                    found.roles.append((each, _valid_document(RoleDocument, each, value, left)))
                else:
                    found.traits.append((each, _valid_document(TraitDocument, each, value, left)))
        if path.is_dir() and not any(path.glob("*.json")):
            wrong.found.append(f"{path}: a folder of documents needs .json files, and this one has none")
    wrong.settle()
    return found


class _Unusable(Complaints):
    """Problems of rows and documents: reported, or counted where these may be left out."""

    def __init__(self, options: Options, left: LeftOut) -> None:
        super().__init__()
        self.skip, self.left = options.skip, left

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note or count an `InputError` raised within, and go on behind the block."""
        try:
            yield
        except InputError as error:
            if self.skip:
                self.left[f"{UNUSABLE}{str(error).splitlines()[0].partition(': ')[2]}"] += 1
            else:
                self.found += str(error).split("\n")


def _is_role(value: Mapping[str, Any]) -> bool:
    """Whether prompts have no opposites; anything else next to them is a trait's, or a mistake."""
    prompts = value["instruction"]
    return isinstance(prompts, list) and bool(prompts) and all(isinstance(each, dict) and set(each) == {"pos"} for each in prompts)


def _valid_document(model: type[Any], path: Path, value: Mapping[str, Any], left: LeftOut) -> Any:
    try:
        document = validate(model, value, str(path))
    except InputError:
        # Again with lines, which take a second reading: JSON is YAML, or nearly so.
        validate(model, value, str(path), _lines(path))
        raise
    note_extra(document, left)
    return document


def _lines(path: Path) -> Mapping[Location, int]:
    try:
        return read_yaml(path)[1]
    except InputError:
        return {}


def _roles(documents: Sequence[tuple[Path, RoleDocument]]) -> tuple[Role, ...]:
    roles: dict[str, tuple[Path, Role]] = {}
    wrong = Complaints()
    for path, document in documents:
        value = {
            "name": path.stem,
            "rubric": _rubric(path, document.eval_prompt),
            "questions": document.questions,
            "system_prompts": [prompt.pos for prompt in document.instruction],
        }
        with wrong.noted():
            role = validate(Role, value, str(path))
            first, _ = roles.setdefault(role.name, (path, role))
            if first != path:
                wrong.found.append(f"{path}: {first} is a role of this name already")
    wrong.settle()
    return tuple(role for _, role in roles.values())


def _trait(
    name: str,
    sources: Sequence[str],
    document: tuple[Path, TraitDocument] | None,
    tests: Sequence[tuple[Path, TraitDocument]],
    placed: Sequence[Placed],
) -> Trait:
    where = str(document[0]) if document else sources[0]
    value: dict[str, Any] = {"name": name, "description": f"Imported from {', '.join(map(source_name, sources))}."}
    rows = list(placed)
    if document:
        path, found = document
        value["contrast_pairs"] = [{"positive": pair.pos, "negative": pair.neg} for pair in found.instruction]
        value["rubric"] = _rubric(path, found.eval_prompt)
        rows += _open(path, found.questions, "extract", placed)
    for path, test in tests:
        rows += _open(path, test.questions, "evaluate", placed)
    trait = validate(Trait, value, where)
    return with_examples(trait, check_rows(Path(where), rows) if rows else [])


def source_name(source: str) -> str:
    """Return a name of a source that holds on any machine: a file's own name, the whole id of a data set on the hub."""
    return Path(source).name if Path(source).exists() else source


def _rubric(path: Path, prompt: str | None) -> str | None:
    """Return a judge's prompt, without the places for question and answer that only an export added."""
    if prompt is None:
        return None
    if "{answer}" not in prompt:
        raise InputError(f"{path}: eval_prompt: has no place for the {{answer}} that a judge is to score, got {prompt[:60]!r}")
    bare = prompt.removesuffix(JUDGED)
    return prompt if "{answer}" in bare else bare


def _open(path: Path, questions: Sequence[str], split: Split, placed: Sequence[Placed]) -> list[Placed]:
    """Return a document's questions as open ones; those that rows of the same split answer are not asked once more."""
    answered = {same_question(row.asked) for _, row in placed if row.split == split}
    places = [(f"{path}: questions.{i}", f"{split}-{i + 1}", text) for i, text in enumerate(questions)]
    return [(where, Example(id=name, split=split, question=text)) for where, name, text in places if same_question(text) not in answered]


# Rows


def _parse(rows: Sequence[Row], plain: "_PlainAnswers | None", options: Options, left: LeftOut) -> list[tuple[str, dict[str, Any]]]:
    """Return the contents of rows, by our field names, with the plain answers of other files where there are any."""
    found: list[tuple[str, dict[str, Any]]] = []
    wrong = _Unusable(options, left)
    for where, row in rows:
        with wrong.noted():
            values = fields_of(where, row, options, left)
            if plain is not None and "positive" in values:
                values["negative"] = plain.to(where, values)
            found.append((where, values))
    wrong.settle()
    return found


def _examples(found: Sequence[tuple[str, dict[str, Any]]], split: Split | None, options: Options, left: LeftOut) -> list[Placed]:
    """Return rows as examples.

    Args:
        found: the contents of the rows.
        split: of all of them; None leaves each in its own.
        options: whether those that cannot be used are left out.
        left: counts these.
    """
    placed: list[Placed] = []
    wrong = _Unusable(options, left)
    # Names that only some rows have would clash with the numbers of the others.
    named = all("id" in values for _, values in found)
    seen: set[tuple[Asked, str | None, str | None]] = set()
    for i, (where, values) in enumerate(found, start=1):
        given: dict[str, Any] = {} if named else {"id": f"held-out-{i}" if split == "evaluate" else str(i)}
        with wrong.noted():
            example = validate(Example, values | given | ({"split": split} if split else {}), where)
            said = (example.asked, example.positive, example.negative)
            if said in seen and options.skip:
                raise InputError(f"{where}: the same row as one before")
            seen.add(said)
            placed.append((where, example))
    wrong.settle()
    return placed


class _PlainAnswers:
    """Plain answers to each question from files of rows: its first row gets the first answer, and so on; a single one serves all rows."""

    def __init__(self, sources: Sequence[str], options: Options, left: LeftOut) -> None:
        self.answers: dict[str, list[str]] = defaultdict(list)
        self.used: dict[str, int] = defaultdict(int)
        wrong = _Unusable(options, left)
        for where, row in (row for source in sources for row in read_rows(source, options.split, options.config)):
            with wrong.noted():
                values = fields_of(where, row, options, left)
                answer = values.get("positive") or values.get("negative")
                if not isinstance(values.get("question"), str) or not isinstance(answer, str):
                    raise InputError(f"{where}: a plain answer has a question, and an answer (positive, negative or answer), both text")
                self.answers[same_question(values["question"])].append(answer)
        wrong.settle()

    def to(self, where: str, values: Mapping[str, Any]) -> str:
        """Return the next plain answer to a row's question.

        Raises:
            InputError: there is none, or the row has one of its own.
        """
        if "negative" in values:
            raise InputError(f"{where}: has a plain answer of its own, and --plain gives another")
        key = same_question(values["question"]) if isinstance(values.get("question"), str) else ""
        if key not in self.answers:
            raise InputError(f"{where}: --plain has no answer to {values.get('question')!r}")
        self.used[key] += 1
        return self.answers[key][(self.used[key] - 1) % len(self.answers[key])]

    def count_unused(self, left: LeftOut) -> None:
        """Count the answers that no row asked for."""
        if unused := sum(max(0, len(answers) - self.used[key]) for key, answers in self.answers.items()):
            left["answers of --plain to no question"] += unused


def _with_splits(placed: Sequence[Placed], held_out: int | None) -> list[Placed]:
    """Hold out the questions that come first by a hash of each, whatever their order.

    A question that is answered in several ways is trained on, since a measurement counts each question once. Rows without plain answers are
    all for training: their answers cannot be evaluated alone. Open questions are extraction questions.
    """
    times = Counter(same_question(row.asked) for _, row in placed if not row.open)
    once = sorted((key for key, count in times.items() if count == 1), key=lambda key: (seed_for(0, "held out", key), key))
    chosen: set[str] = set()
    if any(row.negative is not None for _, row in placed):
        count = min(HELD_OUT, len(once) // ONE_IN) if held_out is None else held_out
        if not 0 < count <= len(once) or count >= len(times):
            raise InputError(
                f"--held-out: {count} of {len(times)} questions, of which {len(once)} stand in one row, cannot be held out to evaluate on; "
                "give other rows with --evaluation"
            )
        chosen = set(once[:count])
    elif held_out is not None:
        raise InputError("--held-out: rows without plain answers are all for training; nothing can be told from their answers alone")

    def split(row: Example) -> Split:
        return "extract" if row.open else "evaluate" if same_question(row.asked) in chosen else "train"

    return [(where, row.model_copy(update={"split": split(row)})) for where, row in placed]

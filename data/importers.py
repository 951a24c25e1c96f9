"""Third-party data → traits, roles and questions: one set of sources makes one trait, or some roles."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellworn.data.catalog import with_examples
from wellworn.data.documents import (
    DEFAULT,
    DEFAULT_PROMPTS,
    Principle,
    RoleDocument,
    TraitDocument,
    constitution_questions,
    constitution_text,
    document_questions,
    is_default,
    is_document,
    is_principle,
    is_role,
    make_roles,
    open_questions,
    rubric,
    valid_document,
)
from wellworn.data.errors import InputError
from wellworn.data.examples import Placed, check_rows
from wellworn.data.files import validate
from wellworn.data.formats import fields_of
from wellworn.data.import_options import UNUSABLE, LeftOut, Options, Unusable, note_extra
from wellworn.data.mixtures import same_question
from wellworn.data.schema import Asked, Example, Role, Split, Trait, seed_for
from wellworn.data.sources import Row, is_data_set, read_document, read_rows

# So many questions of an unsplit set are held out for evaluation; of a small set, one in so many.
HELD_OUT, ONE_IN = 24, 4


@dataclass(frozen=True)
class Imported:
    """The contents of sources.

    Attributes:
        trait: the contents of a trait, if there are any.
        roles: one for each role document.
        questions: without answers, where there is no trait that they could belong to.
        left_out: what has no place here → how many rows, messages or documents have it.
    """

    trait: Trait | None
    roles: tuple[Role, ...]
    questions: tuple[Example, ...]
    left_out: Mapping[str, int]


def import_all(sources: Sequence[str], name: str, options: Options, plain: Sequence[str] = (), evaluation: Sequence[str] = ()) -> Imported:
    """Read all sources of one trait, or of some roles.

    Args:
        sources: trait and role documents, folders of them, files of rows, saved data sets, ids of data sets on the hub.
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
        if found.describes or found.rows or plain or evaluation or options.held_out is not None:
            raise InputError(f"{', '.join(sources)}: roles are imported by themselves, without what makes a trait")
        return Imported(None, make_roles(found.roles, left), (), left)
    if plain and not (found.rows or tests.rows):
        raise InputError("--plain: answers the questions of rows, and there are none")
    answers = _PlainAnswers(plain, options, left) if plain else None
    rows, held_out = _parse(found.rows, answers, options, left), _parse(tests.rows, answers, options, left)
    if answers:
        answers.count_unused(left)
    unsplit = not any("split" in values for _, values in rows)
    placed = _examples(rows, "train" if unsplit else None, options, left) + _examples(held_out, "evaluate", options, left)
    if unsplit and not held_out:
        placed = hold_out(placed, options.held_out)
    elif options.held_out is not None:
        raise InputError("--held-out: what is evaluated on is given already")
    if not placed and not found.describes and not tests.describes:
        why = "; ".join(f"{what} ({count})" for what, count in left.items() if what.startswith(UNUSABLE) or what == DEFAULT)
        raise InputError(f"{', '.join(sources)}: no row can be used{f': {why}' if why else ''}")
    if not found.describes and not evaluation and all(row.open for _, row in placed):
        check_rows(Path(sources[0]), placed)
        return Imported(None, (), tuple(row for _, row in placed), left)
    trait = _trait(name, sources, found, tests, placed, left)
    if not (trait.contrast_pairs or trait.examples or trait.open):
        raise InputError(f"{', '.join(sources)}: holds no question, answer or contrast pair; give rows or a trait document next to it")
    return Imported(trait, (), (), left)


@dataclass
class _Found:
    """The contents of sources, by kind."""

    traits: list[tuple[Path, TraitDocument]] = field(default_factory=list)
    roles: list[tuple[Path, RoleDocument]] = field(default_factory=list)
    principles: list[tuple[str, Principle]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def describes(self) -> bool:
        """Whether there is more of a trait than rows."""
        return bool(self.traits or self.principles)

    def open(self, split: Split, placed: Sequence[Placed], left: LeftOut) -> list[Placed]:
        """Return the questions of its documents, as open ones of a split."""
        asked = [each for path, document in self.traits for each in document_questions(path, document)]
        return open_questions([*asked, *constitution_questions(self.principles)], split, placed, left)


def _read(sources: Sequence[str], options: Options, left: LeftOut) -> _Found:
    found, wrong = _Found(), Unusable(options, left)
    for source in sources:
        path = Path(source)
        if not path.is_dir() or is_data_set(path):
            files = [path]
        elif not (files := sorted(path.glob("*.json"))):
            wrong.found.append(f"{path}: a folder of documents needs .json files, and this one has none")
        for each in files:
            value = read_document(each)
            if value is None or not is_document(value):
                _sort_rows(read_rows(source if each == path else str(each), options.split, options.config), found, wrong, options, left)
                continue
            with wrong.noted():
                if is_default(value):
                    left[DEFAULT] += 1
                    left[DEFAULT_PROMPTS] += len(value["instruction"]) - 1
                elif is_role(value):
                    found.roles.append((each, valid_document(RoleDocument, each, value, left)))
                else:
                    found.traits.append((each, valid_document(TraitDocument, each, value, left)))
    wrong.settle()
    return found


def _sort_rows(rows: Sequence[Row], found: _Found, wrong: Unusable, options: Options, left: LeftOut) -> None:
    """Put the lines of a constitution apart from rows."""
    for where, row in rows:
        if options.columns or not is_principle(row):
            found.rows.append((where, row))
            continue
        with wrong.noted():
            principle = validate(Principle, row, where)
            note_extra(principle, left)
            found.principles.append((where, principle))


def _trait(name: str, sources: Sequence[str], found: _Found, tests: _Found, placed: Sequence[Placed], left: LeftOut) -> Trait:
    where = str(found.traits[0][0]) if found.traits else sources[0]
    value: dict[str, Any] = {"name": name, "description": f"Imported from {', '.join(map(source_name, sources))}."}
    if found.principles:
        value["description"] = constitution_text([each for _, each in found.principles])
    for path, document in found.traits:
        value["contrast_pairs"] = [{"positive": pair.pos, "negative": pair.neg} for pair in document.instruction]
        value["rubric"] = rubric(path, document.eval_prompt)
    rows = [*placed, *found.open("extract", placed, left), *tests.open("evaluate", placed, left)]
    trait = validate(Trait, value, where)
    return with_examples(trait, check_rows(Path(where), rows) if rows else [])


def source_name(source: str) -> str:
    """Return a name of a source that holds on any machine: a file's own name, the whole id of a data set on the hub."""
    return Path(source).name if Path(source).exists() else source


# Rows


def _parse(rows: Sequence[Row], plain: "_PlainAnswers | None", options: Options, left: LeftOut) -> list[tuple[str, dict[str, Any]]]:
    """Return the contents of rows, by our field names, with the plain answers of other files where there are any."""
    found: list[tuple[str, dict[str, Any]]] = []
    wrong = Unusable(options, left)
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
    wrong = Unusable(options, left)
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


def _conversation_key(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a row asks, whatever the case and spaces: the system message, what was said before, and the question last."""
    before = values.get("before") if isinstance(values.get("before"), list) else ()
    said = [each.get(key) for each in before or () if isinstance(each, dict) for key in ("question", "answer")]
    return tuple(same_question(str(text or "")) for text in (values.get("system"), *said, values.get("question")))


class _PlainAnswers:
    """Plain answers to each question from files of rows: its first row gets the first answer, and so on; a single one serves all rows."""

    def __init__(self, sources: Sequence[str], options: Options, left: LeftOut) -> None:
        self.answers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.used: dict[tuple[str, ...], int] = defaultdict(int)
        wrong = Unusable(options, left)
        for where, row in (row for source in sources for row in read_rows(source, options.split, options.config)):
            with wrong.noted():
                values = fields_of(where, row, options, left)
                answer = values.get("positive") or values.get("negative")
                if not isinstance(values.get("question"), str) or not isinstance(answer, str):
                    raise InputError(f"{where}: a plain answer has a question, and an answer (positive, negative or answer), both text")
                self.answers[_conversation_key(values)].append(answer)
        wrong.settle()

    def to(self, where: str, values: Mapping[str, Any]) -> str:
        """Return the next plain answer to a row's question.

        Raises:
            InputError: there is none, or the row has one of its own.
        """
        if "negative" in values:
            raise InputError(f"{where}: has a plain answer of its own, and --plain gives another")
        key = _conversation_key(values)
        if key not in self.answers:
            there = " after the same system message and earlier turns" if any(key[:-1]) else ""
            raise InputError(f"{where}: --plain has no answer to {values.get('question')!r}{there}")
        self.used[key] += 1
        return self.answers[key][(self.used[key] - 1) % len(self.answers[key])]

    def count_unused(self, left: LeftOut) -> None:
        """Count the answers that no row asked for."""
        if unused := sum(max(0, len(answers) - self.used[key]) for key, answers in self.answers.items()):
            left["answers of --plain to no question"] += unused


def hold_out(placed: Sequence[Placed], held_out: int | None) -> list[Placed]:
    """Hold out the questions that come first by a hash of each, whatever their order.

    A question that is answered in several ways is trained on, since a measurement counts each question once. Rows without plain answers are
    all for training: their answers cannot be evaluated alone. Open questions are extraction questions.

    Args:
        placed: rows of no split yet.
        held_out: the number of questions; None means 24, or a quarter of a small set.

    Raises:
        InputError: so many cannot be held out.
    """
    times = Counter(same_question(row.asked) for _, row in placed if not row.open)
    once = sorted((key for key, count in times.items() if count == 1), key=lambda key: (seed_for(0, "held out", key), key))
    chosen: set[str] = set()
    if any(row.negative is not None for _, row in placed):
        count = min(HELD_OUT, len(once) // ONE_IN) if held_out is None else held_out
        if not 0 < count <= len(once) or count >= len(times):
            raise InputError(
                f"--held-out: {count} of {len(times)} questions, of which {len(once)} stand in one row, cannot be held out to evaluate on; "
                "rows to evaluate on can be imported with --evaluation"
            )
        chosen = set(once[:count])
    elif held_out is not None:
        raise InputError("--held-out: rows without plain answers are all for training; nothing can be told from their answers alone")

    def split(row: Example) -> Split:
        return "extract" if row.open else "evaluate" if same_question(row.asked) in chosen else "train"

    return [(where, row.model_copy(update={"split": split(row)})) for where, row in placed]

"""Third-party documents of traits and roles, with their own field names, and what they become."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from wellworn.data.errors import Complaints, InputError, Location
from wellworn.data.examples import Placed
from wellworn.data.files import read_yaml, validate
from wellworn.data.import_options import Format, LeftOut, note_extra
from wellworn.data.mixtures import same_question
from wellworn.data.schema import Example, Role, Split, Text

# Closes the prompt of a judge where the rubric of a trait has no places for question and answer.
JUDGED = "\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"
# A study makes the axis with the model's own default, so the document for it brings nothing.
DEFAULT = "the default assistant (a role with a blank prompt), which studies have as the model without a system prompt"
DEFAULT_PROMPTS = "further prompts of the default assistant"
AGAIN = "questions that are asked again"


class _Document(Format):
    questions: tuple[Text, ...] = ()
    eval_prompt: Text | None = None


class PosNeg(Format):
    """Two system prompts of persona-vectors."""

    pos: Text
    neg: Text


class TraitDocument(_Document):
    """A trait of persona-vectors (Chen et al. 2025): contrast pairs, questions without answers, and the prompt of a judge."""

    instruction: Annotated[list[PosNeg], Field(min_length=1)]


class Pos(BaseModel):
    """A system prompt of assistant-axis; any further key would make it another format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pos: Text


class RoleDocument(_Document):
    """A role of assistant-axis (Lu et al. 2026): system prompts, questions without answers, and the prompt of a judge."""

    instruction: Annotated[list[Pos], Field(min_length=1)]


class Principle(Format):
    """A line of a constitution (Maiya et al. 2025): what the character says of itself, and questions that show whether it does so."""

    trait: Text
    clarification: Text | None = None
    questions: tuple[Text, ...] | None = None
    additional_questions: tuple[Text, ...] | None = None


# The place of a question, and the question.
Asked = tuple[str, str]
Document = TypeVar("Document", bound=Format)


def is_document(value: Mapping[str, Any]) -> bool:
    """Whether an object is a document of a trait or a role; a row has its instruction next to an answer."""
    return "instruction" in value and not (isinstance(value["instruction"], str) and ("output" in value or "chosen" in value))


def is_role(value: Mapping[str, Any]) -> bool:
    """Whether prompts have no opposites; anything else next to them is a trait's, or a mistake."""
    prompts = value["instruction"]
    return isinstance(prompts, list) and bool(prompts) and all(isinstance(each, dict) and set(each) == {"pos"} for each in prompts)


def is_default(value: Mapping[str, Any]) -> bool:
    """Whether a role is the default assistant: one of its prompts is blank."""
    return is_role(value) and any(isinstance(each["pos"], str) and not each["pos"].strip() for each in value["instruction"])


def is_principle(row: Mapping[str, Any]) -> bool:
    """Whether a row is a line of a constitution; a table of another kind may have a column of this name too."""
    return isinstance(row.get("trait"), str) and (isinstance(row.get("questions"), list) or row.keys() <= Principle.model_fields.keys())


def valid_document(model: type[Document], path: Path, value: Mapping[str, Any], left: LeftOut) -> Document:
    """Return a document with its fields, and count those that have no place here.

    Raises:
        InputError: it is malformed (names the line).
    """
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


def make_roles(documents: Sequence[tuple[Path, RoleDocument]], left: LeftOut) -> tuple[Role, ...]:
    """Return a role for each document, called as its file.

    Raises:
        InputError: too few prompts, a name that is not one, or two roles of one name; a line for each.
    """
    roles: dict[str, tuple[Path, Role]] = {}
    wrong = Complaints()
    for path, document in documents:
        value = {
            "name": path.stem,
            "rubric": rubric(path, document.eval_prompt),
            "questions": [text for _, text in _once(document_questions(path, document), left)],
            "system_prompts": [prompt.pos for prompt in document.instruction],
        }
        with wrong.noted():
            role = validate(Role, value, str(path))
            first, _ = roles.setdefault(role.name, (path, role))
            if first != path:
                wrong.found.append(f"{path}: {first} is a role of this name already")
    wrong.settle()
    return tuple(role for _, role in roles.values())


def rubric(path: Path, prompt: str | None) -> str | None:
    """Return a judge's prompt, without the places for question and answer that only an export added.

    Raises:
        InputError: it has no place for the answer.
    """
    if prompt is None:
        return None
    if "{answer}" not in prompt:
        raise InputError(f"{path}: eval_prompt: has no place for the {{answer}} that a judge is to score, got {prompt[:60]!r}")
    bare = prompt.removesuffix(JUDGED)
    return prompt if "{answer}" in bare else bare


def open_questions(asked: Sequence[Asked], split: Split, placed: Sequence[Placed], left: LeftOut) -> list[Placed]:
    """Return the questions of documents as open ones; those that rows of the same split answer are not asked once more."""
    answered = {same_question(row.asked) for _, row in placed if row.split == split}
    return [
        (where, Example(id=f"{split}-{i}", split=split, question=text))
        for i, (where, text) in enumerate(_once(asked, left), start=1)
        if same_question(text) not in answered
    ]


def _once(asked: Sequence[Asked], left: LeftOut) -> list[Asked]:
    """Return each question the first time it is asked, and count the others."""
    first: dict[str, Asked] = {}
    for where, text in asked:
        first.setdefault(same_question(text), (where, text))
    if again := len(asked) - len(first):
        left[AGAIN] += again
    return list(first.values())


def document_questions(path: Path, document: TraitDocument | RoleDocument) -> list[Asked]:
    """Return the questions of a trait or a role, with their places."""
    return [(f"{path}: questions.{i}", text) for i, text in enumerate(document.questions)]


def constitution_text(principles: Sequence[Principle]) -> str:
    """Return what a character says of itself, each line with its clarification."""
    return "\n".join(dict.fromkeys(f"{each.trait} {each.clarification}" if each.clarification else each.trait for each in principles))


def constitution_questions(principles: Sequence[tuple[str, Principle]]) -> list[Asked]:
    """Return the questions of a constitution, with their places: those of each line, then those that were added to it."""
    return [
        (f"{where}: {key}.{i}", text)
        for where, line in principles
        for key in ("questions", "additional_questions")
        for i, text in enumerate(getattr(line, key) or ())
    ]

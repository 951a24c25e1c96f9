"""Say in plain words what pydantic finds wrong with a value: where, what it must be, and what it got."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wellworn.data.errors import Location
from wellworn.data.secrets import SecretError, blanked, find_secrets, is_secret_name

# Not printable, and no danger: breaks of lines, a space that does not break, and the joints of letters and of emoji.
HARMLESS = frozenset("\n\t\u00a0\u200c\u200d")
LIST, MAPPING, NUMBER, WHOLE, TEXT = "a list", "a mapping of keys to values", "a number", "a whole number", "text"
# Error type of pydantic → what the value must be. Braces take the error's own figures.
MUST_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": MAPPING,
    "dict_type": MAPPING,
    "enum": "{expected}",
    "finite_number": "a finite number",
    "float_parsing": NUMBER,
    "float_type": NUMBER,
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_from_float": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": WHOLE,
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "list_type": LIST,
    "literal_error": "{expected}",
    "mapping_type": MAPPING,
    "model_attributes_type": MAPPING,
    "model_type": MAPPING,
    "multiple_of": "a multiple of {multiple_of:g}",
    "none_required": "null",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} characters",
    "string_type": TEXT,
    "string_unicode": TEXT,
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": LIST,
}


def complaints(model: type[BaseModel], value: Any, errors: Sequence[ErrorDetails]) -> list[tuple[Location, str]]:
    """Return where in a value something is wrong, and what, one entry a place.

    A type with alternatives makes pydantic report each of them. Here those that the value was not meant as are left out, and the rest
    become one entry.

    Args:
        model: the type that the value was validated as.
        value: what was given.
        errors: of the `ValidationError`.
    """
    found = _as_meant([(*_real_place(error, value), error) for error in errors])
    at_place: dict[Location, list[ErrorDetails]] = {}
    for place, _, error in found:
        at_place.setdefault(place, []).append(error)
    for place, of_place in list(at_place.items()):
        # Items that are wrong are not counted, so a list of them also seems too short.
        if all(error["type"] == "too_short" for error in of_place) and any(place == other[: len(place)] != other for other in at_place):
            del at_place[place]
    return [_complaint(model, place, of_place) for place, of_place in at_place.items()]


def did_you_mean(got: str, allowed: Iterable[str], otherwise: str | None = None) -> str:
    """Return a hint that names the nearest allowed word; where none is near `otherwise`, or all of them."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(got, allowed, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it may be one of: {', '.join(allowed)}" if otherwise is None else otherwise


def _complaint(model: type[BaseModel], place: Location, errors: Sequence[ErrorDetails]) -> tuple[Location, str]:
    error = errors[0]
    match error["type"]:
        case "missing":
            return place, f"this {'item' if place and isinstance(place[-1], int) else 'key'} is required and missing"
        case "extra_forbidden":
            return place, f"unknown key{did_you_mean(str(place[-1]), _keys_at(model, error['loc'][:-1]))}"
        case "invalid_key":
            return place, f"a key must be text{_got(error)}"
        case "union_tag_invalid":
            key = error["ctx"]["discriminator"].strip("'")
            allowed = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
            return (*place, key), f"got {shortly(error['ctx']['tag'])}{did_you_mean(error['ctx']['tag'], allowed)}"
        case "union_tag_not_found":
            key = error["ctx"]["discriminator"].strip("'")
            tags = {str(tag) for found in _models_at(model, error["loc"]) for tag in get_args(found.model_fields[key].annotation)}
            return (*place, key), f"this key is required and missing; it may be one of: {', '.join(sorted(tags))}"
        case "value_error" | "assertion_error":
            return place, str(error["ctx"]["error"]) + _got(error)
    wanted = list(dict.fromkeys(MUST_BE[each["type"]].format(**each.get("ctx", {})) for each in errors if each["type"] in MUST_BE))
    if not wanted:
        return place, f"not a value that this key takes ({error['type'].replace('_', ' ')}){_got(error)}"
    if NUMBER in wanted:
        wanted = [each for each in wanted if each != WHOLE]
    return place, f"must be {' or '.join(wanted)}{_got(error)}"


def _got(error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"] if part != "[key]"]
    if isinstance(error.get("ctx", {}).get("error"), SecretError) or any(map(is_secret_name, names)):
        return ""
    # What a whole mapping holds is in the file, and would bury the message; a wrong key is named already.
    known = isinstance(error["input"], Mapping | BaseModel) or error["loc"][-1:] == ("[key]",)
    return "" if error["type"] == "value_error" and known else f", got {shortly(error['input'])}"


def shortly(value: Any) -> str:
    """Return a value as YAML would have it, without secrets and cut after 80 characters."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    for plain, text in ((None, "null"), (True, "true"), (False, "false")):
        if value is plain:
            return text
    if not isinstance(value, str) and next(find_secrets(value), None) is not None:
        return "a value with a secret in it"
    text = blanked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _real_place(error: ErrorDetails, value: Any) -> tuple[Location, dict[Location, str]]:
    """Return where in the value an error is, and the alternatives that pydantic names on the way: place → name."""
    place: Location = ()
    alternatives: dict[Location, str] = {}
    for i, part in enumerate(error["loc"]):
        last = i == len(error["loc"]) - 1
        if isinstance(value, Mapping) and (part in value or (last and error["type"] == "missing")):
            place, value = (*place, part), value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int):
            place, value = (*place, part), value[part] if part < len(value) else None
        else:
            alternatives[place] = str(part)
    return place, alternatives


Found = tuple[Location, dict[Location, str], ErrorDetails]


def _as_meant(found: list[Found]) -> list[Found]:
    """Leave out alternatives that a value was not meant as: errors of the intended one lie deeper inside the value."""
    for at in {place for _, alternatives, _ in found for place in alternatives}:
        errors: dict[str, list[Found]] = {}
        for each in found:
            if at in each[1]:
                errors.setdefault(each[1][at], []).append(each)
        deeper = {name: of_name for name, of_name in errors.items() if all(len(place) > len(at) for place, _, _ in of_name)}
        if deeper:
            meant = min(deeper, key=lambda name: len(deeper[name]))
            found = [each for each in found if each[1].get(at, meant) == meant]
    return found


def _keys_at(model: type[BaseModel], at: Location) -> set[str]:
    """Return the keys that may be at a place inside a model, whatever models are nested there."""
    return {key for found in _models_at(model, at) for key in found.model_fields}


def _models_at(model: type[BaseModel], at: Location) -> list[type[BaseModel]]:
    models = [model]
    for part in at:
        nested = [found for owner in models if part in owner.model_fields for found in _models_in(owner.model_fields[str(part)].annotation)]
        models = nested or [found for found in models if _is_called(found, part)] or models
    return models


def _is_called(model: type[BaseModel], name: str | int) -> bool:
    """Whether an alternative is this model: by its class, or by the one value of its discriminator."""
    return name == model.__name__ or any(get_args(field.annotation) == (name,) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def visible(text: str, harmless: Collection[str] = HARMLESS) -> str:
    r"""Return a text with every character written out that a terminal would act on, or that nobody would see.

    Args:
        text: anything.
        harmless: characters that stay as they are, of those that are not printable.

    Example:
        >>> visible("\x1b[31mred")
        '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in harmless else repr(c)[1:-1] for c in text)


def first_place(error: ValidationError) -> str:
    """Return the dotted place of the first thing that is wrong in a value."""
    return ".".join(map(str, error.errors()[0]["loc"]))


def some(names: Iterable[object], most: int = 5) -> str:
    """Return the first of many names, in order, and the number of the others.

    Example:
        >>> some(["b", "a", "d", "c"], most=2)
        'a, b and 2 more'
    """
    found = sorted(map(str, names))
    return ", ".join(found[:most]) + (f" and {len(found) - most:,} more" if len(found) > most else "")

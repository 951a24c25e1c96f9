"""A reference of every key of a file, made from the types that read or write it: pydantic models and dataclasses.

The meaning of a key comes from the `Attributes:` section of its class's docstring (Google style). An entry may end with `Unit: ….` and with
`Example: ….`. Type, default, range and choices come from the annotations. `keys` returns entries, `markdown` a page.

A nested type adds its keys below its own: `train.batch_size`, `runs[].trait` inside a list, `models.<key>.id` inside a mapping.
"""

import dataclasses
import inspect
import json
import re
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

# Type → (name of one value, name of several values).
WORDS = {
    str: ("text", "texts"),
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
    Path: ("path", "paths"),
    Any: ("any value", "any values"),
}
WIDEST_LINE = 150
LISTS = (list, tuple, set, frozenset, Sequence, Set, Collection)
UNIT, EXAMPLE = re.compile(r"\s*\bUnit: (.+?)\.(?=\s|$)"), re.compile(r"\s*\bExample: (.+)$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a file.

    Attributes:
        path: dotted, with `[]` for the items of a list and `<key>` for those of a mapping.
        takes: the type of its value in words, with range and choices.
        default: as YAML; None where the key is required.
        meaning: sentences.
        unit: unit of numbers, if the docstring gives one.
        example: as YAML, if the docstring gives one.
        within: class that holds the key.
        under: path of that class, empty at the top.
    """

    path: str
    takes: str
    default: str | None
    meaning: str
    unit: str | None
    example: str | None
    within: type
    under: str


def keys(model: type, leave_out: Collection[str] = ()) -> list[Key]:
    """Return every key of a file that a type describes: each class's own keys first, then those of nested classes.

    Args:
        model: a pydantic model or a dataclass.
        leave_out: top-level keys that are not in the file.

    Example:
        >>> from wellworn.lora.train_config import TrainConfig
        >>> [(key.path, key.takes, key.default) for key in keys(TrainConfig)][0]
        ('batch_size', 'whole number, 1 or more', '8')
    """
    return [key for key in _keys(model, "", ()) if key.path.split(".")[0] not in leave_out]


def markdown(model: type, title: str, leave_out: Collection[str] = (), *, defaults: bool = True, once: bool = False) -> str:
    """Return the reference as a Markdown page: a section for each class, an entry for each key, a line for each sentence.

    Args:
        model: a pydantic model or a dataclass.
        title: heading of the page.
        leave_out: top-level keys that are not in the file.
        defaults: show default values, for files that people write.
        once: explain the keys of a class where it first occurs, and refer to that place from others.
    """
    lines = [f"# {title}", "", "<!-- Generated from the types by `make reference`. Do not edit. -->", "", *_sentences(summary(model))]
    place: tuple[type, str] = (model, "")
    first: dict[type, str] = {}
    skipped: list[str] = []
    for key in keys(model, leave_out):
        if any(key.under == each or key.under.startswith((f"{each}.", f"{each}[")) for each in skipped):
            continue
        if (key.within, key.under) != place:
            place = (key.within, key.under)
            lines += ["", f"## {heading(key)}", "", *_sentences(summary(key.within))]
            if once and first.setdefault(key.within, key.under) != key.under:
                lines.append(f"The same keys as `{first[key.within]}`.")
                skipped.append(key.under)
                continue
        if lines[-1] and not lines[-1].startswith(("-", "  ")):
            lines.append("")
        said = "" if not defaults else " Required." if key.default is None else f" Default: `{key.default}`."
        # A line break inside a code span is a space.
        lines += textwrap.wrap(f"- **`{key.path}`**: {key.takes}.{said}", WIDEST_LINE, subsequent_indent="  ", break_long_words=False)
        lines += [f"  {sentence}" for sentence in _sentences(key.meaning)]
        more = [f"Unit: {key.unit}." if key.unit else "", f"Example: `{key.example}`." if key.example else ""]
        lines += [f"  {' '.join(filter(None, more))}"] if any(more) else []
    return "\n".join(lines) + "\n"


def heading(key: Key) -> str:
    """Return the heading of a key's section: the path of its class, and the value that distinguishes the class from others there."""
    tags = [f"{name}: {get_args(hint)[0]}" for name, hint in _hints(key.within).items() if _is_tag(hint)]
    return f"`{key.under}`" + "".join(f" with `{tag}`" for tag in tags)


def summary(model: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


def _keys(model: type, under: str, inside: tuple[type, ...]) -> Iterator[Key]:
    if model in inside:
        return
    meanings = _meanings(model)
    nested: list[tuple[type, str]] = []
    for name, hint in _hints(model).items():
        path = f"{under}.{name}" if under else name
        text = meanings.get(name, "")
        unit, example = UNIT.search(text), EXAMPLE.search(text)
        meaning = UNIT.sub("", EXAMPLE.sub("", text)).strip()
        yield Key(
            path,
            in_words(hint),
            None if _is_tag(hint) else _default(model, name),
            meaning[:1].upper() + meaning[1:],
            unit[1] if unit else None,
            example[1].removesuffix(".") if example else None,
            model,
            under,
        )
        nested += _classes(hint, path)
    for child, path in dict.fromkeys(nested):
        yield from _keys(child, path, (*inside, model))


def _hints(model: type) -> dict[str, Any]:
    """Return name → annotation of the fields of a model or a dataclass."""
    hints = get_type_hints(model, include_extras=True)
    if issubclass(model, BaseModel):
        return {field.alias or name: _with(hints[name], field) for name, field in model.model_fields.items()}
    return {field.name: hints[field.name] for field in _fields(model)}


def _fields(model: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(model)


def _with(hint: Any, field: FieldInfo) -> Any:
    # `name: int = Field(ge=1)` keeps its range apart from the annotation.
    return hint if get_origin(hint) is Annotated or not field.metadata else Annotated[hint, *field.metadata]


def _default(model: type, name: str) -> str | None:
    if issubclass(model, BaseModel):
        field = next(field for key, field in model.model_fields.items() if (field.alias or key) == name)
        if field.is_required():
            return None
        value = field.get_default(call_default_factory=True)
    else:
        of_class = next(field for field in _fields(model) if field.name == name)
        if of_class.default_factory is not dataclasses.MISSING:
            value = of_class.default_factory()
        elif of_class.default is dataclasses.MISSING:
            return None
        else:
            value = of_class.default
    return None if value is PydanticUndefined else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    """Return a value as YAML in one line; a nested model as the keys that differ from their own defaults."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./:@ -]+", value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, BaseModel):
        return _as_yaml(value.model_dump(mode="json", exclude_defaults=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _as_yaml(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return json.dumps(value, default=str)


def in_words(hint: Any, several: bool = False) -> str:
    """Describe the values of a type in words, with their range.

    Args:
        hint: an annotation.
        several: use the plural, for the items of a list.

    Example:
        >>> in_words(Annotated[int, Ge(4), Le(12)]), in_words(list[float] | None), in_words(Literal["a", "b"])
        ('whole number, 4 to 12', 'list of numbers, or null', '`a` or `b`')
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if name := _own_name(hint):
            return f"{name}s" if several else name
        limits = _range(args[1:], several)
        return in_words(args[0], several) + (f", {limits}" if limits else "")
    if origin is Literal:
        choices = [f"`{_as_yaml(each)}`" for each in args]
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    if origin in (Union, types.UnionType):
        return _alternatives(args, several)
    if origin is tuple and len(args) > 0 and args[-1] is not Ellipsis:
        return f"list of {len(args)} {in_words(args[0], True)}" if len(set(args)) == 1 else f"list of: {'; '.join(map(in_words, args))}"
    if origin in LISTS or hint in LISTS:
        return f"list{'s' if several else ''} of {in_words(args[0], True) if args else 'any values'}"
    if origin in (dict, Mapping) or hint is dict:
        return f"mapping{'s' if several else ''} of {in_words(args[0], True) if args else 'texts'} to " + (
            in_words(args[1], True) if args else "any values"
        )
    if _is_class(hint):
        return "mappings" if several else "mapping"
    name = str(getattr(hint, "__name__", hint))
    return WORDS.get(hint, (name, name))[several]


def _alternatives(args: tuple[Any, ...], several: bool) -> str:
    # A number may also be a whole number.
    parts = dict.fromkeys(in_words(arg, several) for arg in args if not (arg is int and float in args) and arg is not type(None))
    return " or ".join(parts) + (", or null" if type(None) in args else "")


def _range(metadata: tuple[Any, ...], several: bool) -> str:
    """Return the limits that metadata puts on a value, in words."""
    flat = [each for item in metadata for each in (item.metadata if isinstance(item, FieldInfo) else [item])]
    low, high, parts = "", "", list[str]()
    for each in flat:
        match each:
            case Ge(ge=bound):
                low = str(bound)
            case Le(le=bound):
                high = str(bound)
            case Gt(gt=bound):
                parts.append(f"more than {bound}")
            case Lt(lt=bound):
                parts.append(f"less than {bound}")
            case MinLen(min_length=count):
                parts.append(f"at least {count} item{'s' * (count > 1)}")
            case MaxLen(max_length=count):
                parts.append(f"at most {count} item{'s' * (count > 1)}")
    if low or high:
        parts.insert(0, f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less")
    return ("each " if several and parts else "") + ", ".join(parts)


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint))


def _own_name(hint: Any) -> str | None:
    """Return an annotation's own name for a class that is written as one value: a string in its metadata."""
    return next((each for each in get_args(hint)[1:] if isinstance(each, str)), None)


def _is_tag(hint: Any) -> bool:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(hint) is Literal and len(get_args(hint)) == 1


def _classes(hint: Any, path: str) -> list[tuple[type, str]]:
    """Return the classes inside an annotation, each with the path of its keys."""
    origin, args = get_origin(hint), get_args(hint)
    if _is_class(hint):
        return [(hint, path)]
    if origin is Annotated:
        return [] if _own_name(hint) else _classes(args[0], path)
    if origin in LISTS:
        path = f"{path}[]"
    elif origin in (dict, Mapping):
        args, path = args[1:], f"{path}.<key>"
    return [found for arg in args if origin is not Literal for found in _classes(arg, path)]


def _meanings(model: type) -> dict[str, str]:
    """Return name → text of the `Attributes:` sections of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        lines = inspect.cleandoc(cls.__dict__.get("__doc__") or "").split("\n")
        if "Attributes:" not in lines:
            continue
        name = ""
        for line in lines[lines.index("Attributes:") + 1 :]:
            if line and not line.startswith(" "):
                break
            if entry := re.match(r" {4}(\w+): (.*)", line):
                name = entry[1]
                found[name] = entry[2].strip()
            elif line.strip():
                found[name] += f" {line.strip()}"
    return found


def _sentences(text: str) -> list[str]:
    # A sentence ends before a capital, a bracket or code; an abbreviation such as "e.g. x" does not.
    return [sentence for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z0-9`(])", text) if sentence]

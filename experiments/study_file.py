"""Study files: find one by name, read it, and apply overrides. Nothing heavy is imported before a study is validated."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellworn.data.catalog import NEUTRAL, control_names
from wellworn.data.errors import InputError, Location
from wellworn.data.files import assign, find_infinite, place_of, read_yaml, validate
from wellworn.data.secrets import SECRET_HERE, find_secrets, without_secrets
from wellworn.data.wording import did_you_mean, shortly

if TYPE_CHECKING:
    from wellworn.experiments.study import Study

ROOT = Path(__file__).parent / "studies"
# What the arms lack that train toward a trait or a control alone.
NEUTRAL_LACKS = {
    "confined": "direction to write along",
    "distilled": "direction to steer along",
    "preventative": "direction to steer along",
    "inoculated": "prompt that evokes it",
}


def study_names() -> list[str]:
    """Return the names of the built-in studies."""
    return sorted(path.stem for path in ROOT.glob("*.yaml"))


def find_study(name_or_path: str) -> Path:
    """Return the file of a study, given by a built-in name or as a .yaml file.

    Raises:
        InputError: there is no such study; the message names the nearest one.
    """
    path = Path(name_or_path)
    if path.suffix:
        return path
    if name_or_path not in study_names():
        raise InputError(
            f"unknown study {name_or_path!r}: not a built-in study, and not a .yaml file{did_you_mean(name_or_path, study_names())}"
        )
    return ROOT / f"{name_or_path}.yaml"


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> "Study":
    """Load a study by name or from a YAML file, with `key.sub=value` overrides.

    Raises:
        InputError: no such study, malformed YAML, an unknown key, or a value out of range. Names
            file and line, or the override, and the key.

    Example:
        >>> load_study("quickstart", ["train.lora.r=4"]).train.lora["r"]
        4
    """
    path = find_study(name_or_path)
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: a study must be a mapping of keys to values, got {shortly(value)}")
    if "name" in value:
        raise InputError(f"{path}:{lines[('name',)]}: name: is the file's name; remove this key")
    return assemble_study(path.stem, value, overrides, str(path), lines)


def assemble_study(
    name: str, keys: Mapping[str, Any], overrides: Sequence[str], where: str, lines: Mapping[Location, int] | None = None
) -> "Study":
    """Return the study of a mapping of keys, with `key.sub=value` overrides.

    Args:
        name: its name.
        keys: plain values by key; nothing in it is changed.
        overrides: these replace values, or add keys.
        where: where the keys are from, for complaints.
        lines: key → its line there, if they are from a file.

    Raises:
        InputError: an unknown key, a secret, or a value out of range. Names file and line, or the override, and the key.
    """
    value, places = copy.deepcopy(dict(keys)) | {"name": name}, dict[Location, int | str](lines or {})
    for override in overrides:
        _override(value, places, override)
    if value["name"] != name:
        raise InputError(f"{places.get(('name',), where)}: name: is the name of the study's file, or of --name; it cannot be overridden")
    # Of all keys at once, as some of them are free: `more`, `template_kwargs`, `sft`, and what variants and the grid set.
    if secrets := list(find_secrets(value)):
        raise InputError("\n".join(f"{place_of(at, where, places)}: {'.'.join(map(str, at))} {SECRET_HERE}" for at in secrets))
    if endless := list(find_infinite(value)):
        raise InputError("\n".join(f"{place_of(at, where, places)}: {'.'.join(map(str, at))}: must be a finite number" for at in endless))
    # Imported late: a missing study is found faster without it.
    from wellworn.experiments.study import Study

    study = validate(Study, value, where, places)
    wrong = [each for variant in study.variant_studies() for each in _wrong(variant)]
    if wrong:
        raise InputError("\n".join(f"{place_of(at, where, places)}: {message}" for at, message in wrong))
    return study


def _override(value: dict[str, Any], places: dict[Location, int | str], override: str) -> None:
    """Apply `key.sub=value` to a file's content, and note that this value comes from the command line."""
    shown = without_secrets(override)
    wrong = f"{shown!r}: an override is written key.sub=value, such as train.sft.learning_rate=1e-4"
    key = assign(value, override, shown, wrong)
    at = tuple(key.split("."))
    for place in [place for place in places if place[: len(at)] == at]:
        del places[place]
    for end in range(1, len(at) + 1):
        places.setdefault(at[:end], f"override {shown}")


def _wrong(study: "Study") -> Iterator[tuple[Location, str]]:
    """Yield errors that involve several keys: arms that a trait cannot have, and names that PEFT and TRL do not know."""
    for i, arm in enumerate(study.runs):
        if arm.arm in NEUTRAL_LACKS and arm.trait == NEUTRAL:
            yield ("runs", i), f"runs.{i}: {NEUTRAL!r} has no {NEUTRAL_LACKS[arm.arm]}; the arm {arm.arm} needs a trait or a control"
        if arm.arm == "prompted" and arm.trait in (NEUTRAL, *control_names()):
            yield ("runs", i), f"runs.{i}: {arm.trait!r} has no system prompt; the arm prompted needs a trait"
    told = set()
    for settings, point in study.points():
        for (section, key), message in point.train.find_unknown_keys().items():
            name = f"train.{section}.{key}"
            if name not in told:
                told.add(name)
                yield ("grid", name) if name in settings else ("train", section, key), f"{name}: {message}"

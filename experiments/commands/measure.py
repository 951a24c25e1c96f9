"""`wellworn measure`: a study of third-party adapters and models, made from the command line."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wellworn.data.catalog import control_names, load_trait, trait_names
from wellworn.data.errors import InputError
from wellworn.data.files import digest, short_names
from wellworn.data.schema import is_name
from wellworn.experiments.study import Study
from wellworn.experiments.study_file import assemble_study
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora.addresses import is_folder, labels, terms

# A name is the name of a folder too.
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured.

    Attributes:
        model: the base.
        adapters: folders, addresses on the hub, or sums of these.
        tuned: whole models of the base's architecture: folders, or hub ids.
        suspected: traits and controls that they may have been trained on. Traits outside the library join it for this study.
        neutral: the neutral adapter or model of the same recipe, which all are compared with; None compares them with the base.
        scales: factors of their updates; each makes a run of its own.
        chat: how conversations are written.
        overrides: keys of the study, as `key.sub=value`.
        name: of the study, and of the folder of its results; None makes one of what is asked.
    """

    model: str
    adapters: Sequence[str] = ()
    tuned: Sequence[str] = ()
    suspected: Sequence[str] = ()
    neutral: str | None = None
    scales: Sequence[float] = (1.0,)
    chat: ChatConfig = field(default_factory=ChatConfig)
    overrides: Sequence[str] = ()
    name: str | None = None


def study_of(asked: Asked) -> Study:
    """Build the study that measures adapters, or whole models.

    What takes long is measured only of adapters that change the trait score (`only_changed`).

    Raises:
        InputError: an unknown trait, one that does not fit, or an override that is not a key of a study.
    """
    _refuse_mixed(asked)
    traits = {name: load_trait(name) for name in asked.suspected if name not in control_names()}
    own = [name for name, found in traits.items() if found.name not in trait_names() and found.contrast_pairs]
    # A third-party trait may have fewer contrast pairs than a study reads by default.
    pairs = min([Study.model_fields["contrast_pairs"].default, *(len(traits[name].contrast_pairs) for name in own)])
    adapters, tuned = ([_absolute(each) for each in some] for some in (asked.adapters, asked.tuned))
    neutral = asked.neutral and _absolute(asked.neutral)
    names = [*labels(adapters), *short_names([Path(each) for each in tuned])]
    outside: list[dict[str, Any]] = [{"arm": "adapter", "path": path, "scale": scale} for path in adapters for scale in asked.scales]
    outside += [{"arm": "checkpoint", "path": path} for path in tuned]
    study = {
        "question": f"Does a fine-tune ({', '.join(names)}) move the model along persona directions that it already had?",
        "expects": "Nothing: it was trained elsewhere.",
        "refuted_by": "Nothing.",
        "model": str(Path(asked.model).resolve()) if is_folder(asked.model) else asked.model,
        "chat": asked.chat.model_dump(mode="json"),
        "library": [name for name in trait_names() if load_trait(name).contrast_pairs] + own,
        "contrast_pairs": pairs,
        "only_changed": True,
        "runs": [arm | {"trait": name, "neutral": neutral} for arm in outside for name in (asked.suspected or (None,))],
    }
    if asked.name is not None:
        _refuse_other_names(asked.name)
    # Without what discriminates it from the others.
    first = labels(adapters[:1]) or short_names([Path(each) for each in tuned[:1]])
    name = asked.name or _name(first[0], len(names), study, asked.overrides)
    return assemble_study(name, study, asked.overrides, "measure")


def _refuse_mixed(asked: Asked) -> None:
    if not asked.adapters and not asked.tuned:
        raise InputError("nothing to measure: give --adapter DIR, or --tuned MODEL for a whole model")
    if asked.neutral and asked.adapters and asked.tuned:
        raise InputError("--neutral: is an adapter or a whole model, and is compared with its like; measure adapters and models in turn")
    if not asked.adapters and tuple(asked.scales) != (1.0,):
        raise InputError("--scale: is the factor of an adapter's update, and --tuned names a whole model")


def _refuse_other_names(name: str) -> None:
    try:
        is_name(name)
    except ValueError as error:
        raise InputError(f"--name {name!r}: {error}") from None


def _absolute(address: str) -> str:
    """Return an address with the full path of each folder in it, so that results of namesakes are not mistaken for each other."""
    if is_folder(address):
        return str(Path(address).resolve())
    parts = terms(address)
    if not any(is_folder(name) for _, name in parts):
        return address
    return "+".join(("" if weight == 1 else f"{weight!r}*") + _absolute(name) for weight, name in parts)


def _name(first: str, count: int, study: dict[str, Any], overrides: Sequence[str]) -> str:
    """Return a name for a study: short for any number of adapters, and with a digest, so that no other's results are written over."""
    rest = f"-and-{count - 1}-more" if count > 1 else ""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in first).strip("-_")[:_LONGEST_NAME]
    return f"measure-{plain}{rest}-{digest([study, list(overrides)], 6)}"


def scales_of(given: Sequence[float] | None) -> tuple[float, ...]:
    """Return the factors that `--scale` gives, each once; 1 where it is left out.

    Raises:
        InputError: one that is not finite.
    """
    if wrong := [each for each in given or () if not math.isfinite(each)]:
        raise InputError(f"--scale {wrong[0]}: must be a finite number")
    return tuple(dict.fromkeys(given or (1.0,)))


def overrides_of(given: Sequence[str], layer: str | None, dtype: str | None) -> list[str]:
    """Return overrides with those that have options of their own.

    Raises:
        InputError: a key that is given both ways.
    """
    options = {key: value for key, value in (("layer", layer), ("dtype", dtype)) if value is not None}
    for override in given:
        if (key := override.partition("=")[0]) in options:
            raise InputError(f"{key} is given twice: as --{key} {options[key]} and as {json.dumps(override)}")
    return [*given, *(f"{key}={value}" for key, value in options.items())]

"""What an adapter's `adapter_config.json` may hold, by type; PEFT itself takes anything, and fails later or computes something else."""

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from wellworn.data.bounded import run_bounded
from wellworn.data.errors import InputError
from wellworn.data.files import validate

# Of all patterns of a configuration on all modules of a model. Usual ones take milliseconds.
PATTERN_SECONDS = 1.0
Rank = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Index = Annotated[int, Field(ge=0)]
Names = str | list[str] | None


class AdapterConfig(BaseModel):
    """The keys of a LoRA configuration that say where an adapter is and what it computes; others are let through.

    Attributes:
        r: rank.
        lora_alpha: scale of the update, times the rank.
        lora_dropout: only of training.
        target_modules: names of modules, or one pattern of them.
        exclude_modules: as `target_modules`.
        target_parameters: names of tensors that are not a layer's weight.
        rank_pattern: pattern of a module to its rank.
        alpha_pattern: pattern of a module to its scale.
        layers_to_transform: indices of blocks.
        layers_pattern: names of the list of blocks.
        use_rslora: whether the scale is divided by the root of the rank.
        use_dora: whether weights are normalised.
        fan_in_fan_out: whether weights are transposed.
        lora_bias: whether the update has a bias.
        base_model_name_or_path: name of the base.
        revision: revision of the base.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    r: Rank | None = None
    lora_alpha: Factor | None = None
    lora_dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    target_parameters: list[str] | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Factor] | None = None
    layers_to_transform: Index | list[Index] | None = None
    layers_pattern: Names = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    lora_bias: bool | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


def check_types(config: Mapping[str, Any], where: str) -> None:
    """Make sure that the values of a configuration are of the types that PEFT takes.

    Args:
        config: what the file holds.
        where: its path, for complaints.

    Raises:
        InputError: a line for each wrong value.
    """
    validate(AdapterConfig, dict(config), where)


def check_patterns(config: Mapping[str, Any], modules: Iterable[str], where: str) -> None:
    """Make sure that no regular expression of a configuration runs without end: PEFT matches each of them with each module.

    Args:
        config: what the file holds.
        modules: names of the base's modules.
        where: its path, for complaints.

    Raises:
        InputError: one of them is not a regular expression, or takes too long.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    keys = ("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern")
    settings = SimpleNamespace(**{key: config.get(key) for key in keys})
    # With neither, PEFT takes what it has for the architecture.
    targets = settings.target_modules is not None or settings.target_parameters is not None
    patterns = [list(config.get(key) or {}) for key in ("rank_pattern", "alpha_pattern")]

    def match() -> None:
        for name in modules:
            if targets:
                check_target_module_exists(settings, name)
            for pattern in patterns:
                get_pattern_key(pattern, name)

    try:
        run_bounded(f"{where}: matching its patterns with the base's modules", match, PATTERN_SECONDS)
    except re.error as error:
        raise InputError(f"{where}: holds {error.pattern!r}, which is not a regular expression: {error}") from None

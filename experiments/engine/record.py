"""Frozen records that are stored as JSON: results of stages and of studies."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, SerializerFunctionWrapHandler, model_serializer

from wellworn.probes.statistics.intervals import Estimate

# A number with its 95 % interval: `{value, low, high}`, where an infinite bound is null.
Interval = Annotated[
    Estimate,
    BeforeValidator(lambda value: value if isinstance(value, Estimate) else Estimate.from_json(value)),
    PlainSerializer(Estimate.to_json, return_type=dict[str, float | None]),
    # Its name in the reference of a file.
    "estimate",
]


# Settings of a grid or an arm: dotted key → value.
Settings = Mapping[str, Any]


class Record(BaseModel):
    """A frozen record; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the order of the fields."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the value that `to_json` wrote.

        Raises:
            pydantic.ValidationError: it is not this record.
        """
        return cls.model_validate(value)


class Sparse(Record):
    """A record that writes only the fields that were set."""

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}

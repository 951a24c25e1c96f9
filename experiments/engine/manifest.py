"""The manifest of a finished stage: what it is, how it was computed, and the files that it left."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.wording import first_place

MANIFEST = "manifest.json"


class NotAManifestError(InputError):
    """A file in the place of a manifest is whole, and not a manifest: no power failure made it so."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ValueError("must be the name of a file in the folder")
    return name


class Manifest(BaseModel):
    """What `manifest.json` holds. Keys that a later version adds are let through.

    Attributes:
        stage: kind of the stage.
        version: version of that kind.
        title: the stage in words.
        config: all that determines its result, apart from its inputs.
        inputs: ids of the stages that it was computed from.
        seconds: time that it took. Unit: seconds.
        computed_with: ids of stages that were computed together with it.
        commit: the suite's git commit; null where it does not run from a checkout.
        versions: package to its version.
        files: name to SHA-256.
        sizes: name to size. Unit: bytes. Earlier versions did not write it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    version: int
    title: str
    config: Mapping[str, Any]
    inputs: Sequence[str]
    seconds: float
    computed_with: Sequence[str]
    commit: str | None
    versions: Mapping[str, str]
    files: Mapping[Annotated[str, AfterValidator(_inside)], str]
    sizes: Mapping[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read a stage's manifest.

        Raises:
            NotAManifestError: it is not a manifest.
            InputError: it is missing, or cut short.
        """
        path = folder / MANIFEST
        value = read_json(path)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise NotAManifestError(f"{path}: is not a manifest ({first_place(error)}); delete the folder {folder} and run again") from None

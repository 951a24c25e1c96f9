"""Finished studies, for a notebook."""

from pathlib import Path

from pydantic import ValidationError

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.wording import first_place
from wellworn.experiments.findings.results import SUMMARY
from wellworn.experiments.findings.summary import Summary


def results(study: str | Path) -> Summary:
    """Return the findings of a finished study: the typed `summary.json`.

    Args:
        study: the study's folder, such as runs/quickstart, or its summary.json.

    Returns:
        `runs`, `groups`, `directions` and more; experiments/findings/SUMMARY.md explains every key. Estimates have `value`, `low`, `high`.

    Raises:
        InputError: no such file, or one that another version of the suite wrote.

    Example:
        >>> found = ww.results(study)
        >>> [(run.trait, run.verdict) for run in found.runs]
        [('pirate', 'share above chance')]
    """
    path = Path(study) / SUMMARY if Path(study).is_dir() else Path(study)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the folder of a study that was run, such as runs/quickstart")
    try:
        return Summary.from_json(read_json(path))
    except ValidationError as error:
        where = first_place(error)
        raise InputError(f"{path}: is not a summary of this version ({where}); `wellworn report {path.parent}` writes it anew") from None

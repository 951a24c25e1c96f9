"""No stored result is lost: the ids of all stages of the built-in studies, and of studies that use what these do not, as written down."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import in_order
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.study_file import load_study, study_names

# A heading names a study with its overrides; the ids below it are in the order of the plan. A change that is meant to change
# results (a stage's integer is raised, a study is edited) writes the file anew.
WRITTEN = Path(__file__).with_name("stage_ids.txt")


def written_down() -> Iterator[tuple[str, list[str]]]:
    for part in WRITTEN.read_text(encoding="utf-8").removeprefix("# ").split("\n# "):
        heading, *ids = part.splitlines()
        yield heading, ids


def overrides_of(heading: str) -> tuple[str, list[str]]:
    """Values hold spaces, keys do not."""
    study, *parts = heading.split(" ")
    overrides: list[str] = []
    for part in parts:
        if "=" in part.split("{")[0].split("[")[0]:
            overrides.append(part)
        else:
            overrides[-1] += f" {part}"
    return study, overrides


@pytest.mark.embedded
@pytest.mark.parametrize(("heading", "ids"), [pytest.param(*each, id=each[0]) for each in written_down()])
def test_ids_of_stages_are_those_written_down(heading: str, ids: list[str]) -> None:
    name, overrides = overrides_of(heading)
    study = load_study(name, ["dtype=float32", *overrides])
    found: list[str] = []
    for each in study.variant_studies():
        planned = plan(each, StudyContext.of(each, Ranks()))
        found += [stage.id for stage in in_order([*planned.first, *planned.targets])]
    assert found == ids


def test_every_built_in_study_is_written_down() -> None:
    assert {heading for heading, _ in written_down() if " " not in heading} == set(study_names())

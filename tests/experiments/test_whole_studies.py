"""Whatever study the types allow runs to its summary, page and table, or is refused before anything is computed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from markupsafe import escape
from pydantic import BaseModel
from ruamel.yaml import YAML

from tests.experiments.conftest import Call, find_all
from tests.experiments.study_draws import draw_study, save_adapter, save_checkpoint
from wellworn.data.files import read_json
from wellworn.experiments.findings.results import REPORT, SUMMARY
from wellworn.experiments.findings.summary import Summary
from wellworn.experiments.study import Study, expand_runs
from wellworn.experiments.study_file import load_study

# These run to their pages, with most arms and analyses between them.
FEW = (2077, 2084, 2098, 1059, 1039, 2095)
MANY = [seed for seed in range(1000, 1062) if seed not in FEW]
# What only training or reading a model shows.
FOUND_OUT = ("was not found in this model", "shifts nothing at layer", "no scale was found at which random weights")


@dataclass(frozen=True)
class Place:
    """A folder with what studies name, and what they leave there: they share stages."""

    folder: Path
    model: Path
    adapter: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    folder = tmp_path_factory.mktemp("studies")
    return Place(folder, tiny_model, save_adapter(folder / "theirs", tiny_model), save_checkpoint(folder / "whole", tiny_model))


@pytest.mark.parametrize("seed", [*FEW, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MANY)])
def test_a_study_runs_to_its_page_or_is_refused_at_once(seed: int, place: Place, wellworn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    # A random model has no personas: half of the studies are run as if it had.
    if seed % 2:
        find_all(monkeypatch)
    found = "found" if seed % 2 else "as it is"
    path = place.folder / found / f"study {seed}.yaml"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(draw_study(seed, place.model, place.adapter, place.checkpoint), file)
    runs = path.parent / "runs"
    before = _stages(runs)
    outcome = wellworn("run", path, "--runs-dir", runs)
    if outcome.code == 2:
        assert any(key in outcome.err for key in _keys(Study)), outcome.err
        assert _stages(runs) == before or any(each in outcome.err for each in FOUND_OUT), outcome.err
        return
    assert outcome.code == 0, outcome.err
    for study in load_study(str(path)).variant_studies():
        _check_results(runs / study.name, study, outcome.out)


def _stages(runs: Path) -> set[str]:
    return {path.parent.name for path in runs.glob("stages/*/manifest.json")}


def _keys(section: type[BaseModel]) -> Iterator[str]:
    """Yield the keys of a section and of those inside."""
    for key, field in section.model_fields.items():
        yield key
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _keys(inner)


def _check_results(folder: Path, study: Study, shown: str) -> None:
    """A row for each run in the summary, on the page and in the terminal."""
    summary, page = Summary.from_json(read_json(folder / SUMMARY)), (folder / REPORT).read_text(encoding="utf-8")
    runs = expand_runs(study)
    assert [(row.arm, row.seed) for row in summary.runs] == [(run.arm.arm, run.seed) for run in runs]
    rows = re.findall(r'<th scope="row">(?:<svg.*?</svg>)?\s*([^<]+)', page)
    assert {str(escape(row.name)) for row in summary.runs} <= {row.partition(" · run ")[0] for row in rows}
    shown = "".join(shown.split())
    assert f"report:{folder / REPORT}".replace(" ", "") in shown
    assert all(f"{row.arm}" in shown for row in summary.runs)

"""The command `wellworn simulate`: its table, its JSON, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from wellworn.experiments.cli import main
from wellworn.experiments.simulate import run
from wellworn.experiments.simulate.crossed import missed_targets, simulate_crossed


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["simulate", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_a_table_and_the_same_rows_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "crossed.json"
    assert call("crossed", "--repeats", 100, "--seed", 3, "--json", out) == 0
    written = json.loads(out.read_text())
    assert written["command"] == "wellworn simulate crossed --repeats 100 --seed 3"
    assert {"wellworn", "numpy", "scipy"} <= set(written["versions"])
    rows = simulate_crossed(100, 3)
    assert [{key: row[key] for key in row if key != "missed"} for row in written["rows"]] == rows
    assert [row["missed"] for row in written["rows"]] == [missed_targets(row) for row in rows]
    # So few repeats miss some target by chance, and the table says which.
    [first, *_] = [words for row in written["rows"] for words in row["missed"]]
    shown = " ".join(capsys.readouterr().out.split())
    assert first.split(",")[0] in shown
    count = sum(bool(row["missed"]) for row in written["rows"])
    assert f"{count} of 21 rows miss a target; a coverage of .95 has a standard error of 0.022" in shown


def test_nulls_have_no_target_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def sizes(repeats: int, seed: int) -> list[dict[str, Any]]:
        seen.append((repeats, seed))
        return [{"k": 6, "n1": 0.05, "naive": None}]

    monkeypatch.setitem(run.KINDS, "nulls", (sizes, None))
    assert call("nulls", "--json", tmp_path / "nulls.json") == 0
    assert seen == [(1000, 0)]
    shown = capsys.readouterr().out
    assert "missed" not in shown
    assert "0.050" in shown
    assert "–" in shown
    assert json.loads((tmp_path / "nulls.json").read_text())["rows"] == [{"k": 6, "n1": 0.05, "naive": None}]


def test_wide_tables_leave_standard_errors_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {f"n{i}{end}": i / 16 for i in range(11) for end in ("", "_error")}
    monkeypatch.setitem(run.KINDS, "spectra", (lambda repeats, seed: [row], None))
    assert call("spectra", "--json", tmp_path / "spectra.json") == 0
    shown = capsys.readouterr().out
    assert "n10" in shown
    assert "error" not in shown
    assert json.loads((tmp_path / "spectra.json").read_text())["rows"] == [row]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("share",), "unknown simulation 'share'; did you mean 'shares'?"),
        (("crossed", "--repeats", 99), "--repeats: may be 100 or more, got 99"),
        (("crossed", "--seed", -1), "--seed: may be 0 or more, got -1"),
        (("crossed", "--json", "nowhere/out.json"), "--json nowhere/out.json: the folder nowhere does not exist"),
    ],
)
def test_refuses_in_words(arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())

"""N2: directions of instructions are made as traits' are, change nothing else, and hold a share of what a run changes."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import stages_of
from tests.experiments.synthetic import NO_OTHER_SEED, TOO_NOISY, facts, run, study
from wellworn.data import catalog
from wellworn.data.catalog import instruction_names, load_bank, load_instruction
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.saving import write_json
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import in_order
from wellworn.experiments.findings.index import INDEX
from wellworn.experiments.findings.results import SEAL, load_results
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.report.page import page
from wellworn.experiments.stages.instruction_null import DRAWS, INSTRUCTIONS, NOT_ASKED, InstructionShares, draw, load_instruction_stages
from wellworn.experiments.stages.readings import load_responses
from wellworn.experiments.study_file import load_study
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import span

Write = Callable[..., Path]
NAMES = ["colour", "hours", "one_line", "uppercase"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four instructions of six pairs beside the built-in data; one has the name of a control."""
    root = tmp_path / "data"
    (root / "instructions").mkdir(parents=True)
    for folder in ("traits", "controls", "questions"):
        (root / folder).symlink_to(catalog.ROOT / folder)
    for name in NAMES:
        write(root, name, ("Always", "Never"))
    monkeypatch.setattr(catalog, "ROOT", root)


def write(root: Path, name: str, *sides: tuple[str, str]) -> None:
    """Write an instruction whose pairs take these sides, in turns."""
    turns = [sides[i % len(sides)] for i in range(6)]
    pairs = "".join(f'  - positive: "{a} {name}, way {i}."\n    negative: "{b} {name}, way {i}."\n' for i, (a, b) in enumerate(turns))
    (root / "instructions" / f"{name}.yaml").write_text(f"name: {name}\ndescription: A form.\ncontrast_pairs:\n{pairs}")


def bench_of(path: Path) -> StudyContext:
    return StudyContext.of(load_study(str(path)), Ranks())


def finish(path: Path, runs: Path) -> dict[str, Any]:
    """Run a study and return its summary."""
    with pytest.raises(SystemExit) as stop:
        main(["run", str(path), "--runs-dir", str(runs)])
    assert stop.value.code in (0, None)
    summary: dict[str, Any] = read_json(runs / path.stem / "summary.json")
    return summary


# The draws


def test_a_shift_among_instructions_is_held_by_them_and_one_apart_is_not() -> None:
    """Of orthogonal directions, subsets of 2 of 6 hold a third of what all hold; of what none holds they hold nothing."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 7)))[0].T
    noise = 0.05 * np.random.default_rng(1).standard_normal((24, 20))
    inside, outside = (np.array(draw(vector + noise, axes[:6], 2)[0]) for vector in (axes[:6].sum(0), axes[6]))
    assert len(inside) == len(outside) == 15
    assert inside == pytest.approx(np.full(15, 1 / 3), abs=0.05)
    assert outside == pytest.approx(np.zeros(15), abs=0.02)


def test_there_are_no_more_draws_than_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    shift, vectors = rng.standard_normal((8, 30)) + 3, rng.standard_normal((24, 30))
    shares, why = draw(shift, vectors, 5)
    assert (len(shares), why) == (DRAWS, None)
    assert (shares, why) == draw(shift, vectors, 5)


def test_what_cannot_be_drawn_is_said_in_words() -> None:
    rng = np.random.default_rng(0)
    shift, vectors = rng.standard_normal((8, 30)) + 3, rng.standard_normal((4, 30))
    for some, count, why in (
        (vectors, 4, "instructions asked: 4; 5 are needed for subsets of 4, as many as make the persona space"),
        (vectors[:0], 1, "instructions asked: 0; 2 are needed for subsets of 1, as many as make the persona space"),
        (vectors, 0, "no persona space at this layer: no direction of the library was found"),
    ):
        assert draw(shift, some, count) == ([], why)
    assert draw(shift - shift.mean(0), vectors, 2)[1] == "nothing is left of the shift once its noise is taken out"


# The stages


def test_instructions_change_no_other_stage(tiny_study: Write) -> None:
    def stages(path: Path) -> dict[str, str]:
        context = bench_of(path)
        return {stage.id: stage.title for stage in in_order(plan(context.study, context).targets)}

    without, with_them = stages(tiny_study()), stages(tiny_study("asked", instructions="all"))
    assert not set(without) - set(with_them)
    assert sorted(title for key, title in with_them.items() if key not in without) == [
        "directions of colour",
        "directions of hours",
        "directions of instructions",
        "directions of one_line",
        "directions of uppercase",
        "sft pirate (seed 0) among instructions",
        "sft uppercase (seed 0) among instructions",
    ]


def test_instructions_of_few_pairs_are_all_read_with_so_many(tiny_study: Write) -> None:
    loaded = [load_instruction(name) for name in instruction_names()]
    for asked, pairs in ((4, 4), (7, 6)):
        made = load_instruction_stages(bench_of(tiny_study(contrast_pairs=asked)), loaded, load_bank("everyday"))
        assert made.names == tuple(NAMES)
        assert [stage.config["pairs"] for stage in made.space.needs] == [pairs] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instructions": ["hour"]}, "unknown instruction 'hour'; did you mean 'hours'"),
        ({"instructions": ["reference_code"]}, "it may be one of: colour, hours, one_line, uppercase"),
        ({"instructions": ["hours"], "extract_questions": 999}, "extract_questions: "),
    ],
)
def test_a_study_of_wrong_instructions_is_refused_before_anything_runs(changes: dict[str, Any], message: str, tiny_study: Write) -> None:
    context = bench_of(tiny_study(**changes))
    with pytest.raises(InputError, match=message):
        plan(context.study, context)


# A study from end to end


def test_a_run_is_held_against_all_subsets_of_the_instructions(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = tmp_path / "runs"
    summary = finish(tiny_study(instructions="all", mediate=None), runs)
    made = load_file(stages_of(runs, "space")["directions of instructions"] / "space.safetensors")
    reads = stages_of(runs, "read")
    expected = {}
    for row, members, names in zip(summary["runs"], (1, 2), (NAMES, NAMES[:3]), strict=True):
        after, before = (
            load_responses(reads[f"sft {trait} (seed 0) reads plain answers"], summary["layer"]) for trait in (row["trait"], "neutral")
        )
        shares = [
            share_inside(after - before, span(made["vectors"][list(some), summary["layer"]].astype(np.float64))).estimate.value
            for some in combinations(range(len(names)), members)
        ]
        expected[row["trait"]] = shares
        among = row["among_instructions"]
        assert {key: among[key] for key in ("draws", "asked", "found", "directions")} == {
            "draws": len(shares),
            "asked": len(names),
            "found": len(names),
            "directions": members,
        }
        assert among["mean"] == pytest.approx(np.mean(shares))
        assert among["high"] == pytest.approx(np.quantile(shares, 0.95))
        # As many pairs on both sides, so that nothing is thinned.
        assert among["share"] == pytest.approx(row["share"]["value"])
        assert among["at_or_above"] == sum(share >= row["share"]["value"] for share in shares)
        assert "among_instructions" not in row["missing"]
    # The control's own instruction stands in none of its draws.
    assert {trait: len(shares) for trait, shares in expected.items()} == {"pirate": 4, "uppercase": 3}


def test_traits_are_thinned_to_as_many_pairs_as_instructions_have(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = tmp_path / "runs"
    summary = finish(tiny_study(instructions="all", mediate=None, contrast_pairs=8), runs)
    layer, [row] = summary["layer"], [row for row in summary["runs"] if row["trait"] == "pirate"]
    reads = stages_of(runs, "read")
    after, before = (load_responses(reads[f"sft {trait} (seed 0) reads plain answers"], layer) for trait in ("pirate", "neutral"))
    states = load_file(stages_of(runs, "directions")["directions of pessimistic"] / "states.safetensors")["states"][..., layer, :]
    assert states.shape[0] == 8
    thinned = (states[:6, 0] - states[:6, 1]).astype(np.float64).mean((0, 1))
    among = row["among_instructions"]
    assert among["pairs"] == 6
    assert among["share"] == pytest.approx(share_inside(after - before, span(thinned[None])).estimate.value)
    assert among["share"] != pytest.approx(row["share"]["value"], abs=1e-6)


def test_too_few_instructions_leave_a_reason(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    summary = finish(tiny_study(instructions=["hours"], mediate=None), tmp_path / "runs")
    rows = {row["trait"]: row for row in summary["runs"]}
    assert [row["among_instructions"] for row in rows.values()] == [None, None]
    assert rows["uppercase"]["missing"]["among_instructions"].startswith("instructions asked: 1; 3 are needed")
    drawn = {title: read_json(folder / INSTRUCTIONS) for title, folder in stages_of(tmp_path / "runs", "instructions").items()}
    counts = {title: (facts["directions"], facts["shares"]) for title, facts in drawn.items()}
    assert counts == {"sft pirate (seed 0) among instructions": (1, []), "sft uppercase (seed 0) among instructions": (2, [])}


def test_instructions_that_are_not_found_are_drawn_and_told_apart(tiny_study: Write, tmp_path: Path) -> None:
    """Pairs that say the same in other words make a direction even in a random model; pairs that contradict one another make none."""
    write(catalog.ROOT, "muddled", ("Always", "Never"), ("Never", "Always"))
    finish(tiny_study(instructions="all", mediate=None), tmp_path / "runs")
    made = load_file(stages_of(tmp_path / "runs", "space")["directions of instructions"] / "space.safetensors")
    assert instruction_names() == ["colour", "hours", "muddled", "one_line", "uppercase"]
    assert made["found"].all(1).tolist() == [True, True, False, True, True]
    assert not made["found"][2].any()
    for title, folder in stages_of(tmp_path / "runs", "instructions").items():
        facts = read_json(folder / "instructions.json")
        known = NAMES if "pirate" in title else NAMES[:3]
        assert (facts["found"], facts["asked"]) == (known, sorted([*known, "muddled"]))


def test_an_index_from_before_there_were_instructions_is_read(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = tmp_path / "runs"
    rows = finish(tiny_study(mediate=None), runs)["runs"]
    assert [row["missing"]["among_instructions"] for row in rows] == [NOT_ASKED, NOT_ASKED]
    index = read_json(runs / "tiny" / INDEX)
    for entry in index["runs"]:
        del entry["instructions"]
    del index[SEAL]
    write_json(runs / "tiny" / INDEX, index)
    assert summarise(load_results(runs / "tiny")).to_json()["runs"] == rows


# What a summary and a report say


DRAWN = InstructionShares(
    asked=["colour", "hours", "one_line"], found=["hours"], directions=2, pairs=4, share=0.7, shares=[0.1, 0.2, 0.7], why=None
)


def summarised(measured: dict[str, Any] | None, drawn: InstructionShares | None, **entry: Any) -> tuple[dict[str, Any], str]:
    """Return the row of a run, and the report."""
    results = study(replace(run(measured, **entry), instructions=drawn))
    summary = summarise(results)
    return summary.runs[0].to_json(), page(results, summary)


def test_a_share_is_counted_among_the_draws_and_ties_count() -> None:
    # The run's own share is of directions with more pairs, and is not what is compared.
    row, html = summarised(facts(share=0.9), DRAWN)
    assert row["among_instructions"] == {
        "mean": pytest.approx(1 / 3),
        "high": pytest.approx(0.65),
        "at_or_above": 1,
        "draws": 3,
        "share": 0.7,
        "pairs": 4,
        "asked": 3,
        "found": 1,
        "directions": 2,
    }
    assert "Among 3 spaces of 2 instructions each, of 3 (1 with a direction that was found in this model), 1 holds as large a share" in html


@pytest.mark.parametrize(
    ("measured", "drawn", "entry", "why"),
    [
        (facts(), None, {}, NOT_ASKED),
        (facts(), DRAWN.model_copy(update={"shares": [], "why": "too few"}), {}, "too few"),
        (facts(share=None, why=TOO_NOISY), DRAWN, {}, TOO_NOISY),
        (facts(neutral=False), None, {"missing": {"share": NO_OTHER_SEED}, "trait": "neutral"}, NO_OTHER_SEED),
        (facts(empty=True), DRAWN, {}, "no persona space at this layer: no direction of the library was found"),
        (None, None, {"arm": "base"}, "base is the reference"),
    ],
)
def test_without_a_count_there_is_a_reason(measured: Any, drawn: Any, entry: dict[str, Any], why: str) -> None:
    row, html = summarised(measured, drawn, **entry)
    assert row["among_instructions"] is None
    assert row["missing"]["among_instructions"] == why
    assert why in html
    assert "null N2" not in html

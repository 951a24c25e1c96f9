"""The capability set on a tiny model: a figure by hand for each, and what an adapter changed, item by item."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.experiments.conftest import finished, stages_of
from wellworn.data.capability_items import load_arithmetic, load_format
from wellworn.data.catalog import load_bank
from wellworn.data.chat import Chat
from wellworn.data.mixtures import Turn, plain_turns
from wellworn.experiments.bench.shift import random_adapters
from wellworn.experiments.cli import main
from wellworn.experiments.commands.evaluate import capabilities
from wellworn.experiments.stages.capability import CHECKS, _check_items, compare_items
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora.models import Loaded, load, resolve


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Loaded:
    return load(resolve(str(tiny_model)), "float32")


@torch.no_grad()
def logprob_of(base: Loaded, turn: Turn) -> float:
    row = Chat(base.tokenizer).encode(turn)
    start, end = row.spans["response"]
    logprobs = base.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    return float(np.mean([logprobs[t - 1, row.input_ids[t]].item() for t in range(start, end)]))


def test_figures_of_the_base_are_those_by_hand_and_an_adapter_is_held_against_them(base: Loaded, tmp_path: Path) -> None:
    found = capabilities(base, random_adapters(base, tmp_path, 1, lower=0), ChatConfig())
    assert list(found) == ["base", "a0"]
    plain, changed = found.values()
    turns = plain_turns(load_bank("everyday"), "evaluate")
    assert plain.perplexity == pytest.approx(math.exp(-np.mean([logprob_of(base, turn) for turn in turns])), rel=1e-4)
    likelier = [max(range(4), key=lambda k: logprob_of(base, Turn(item.question, item.options[k]))) == 0 for item in load_arithmetic()]
    assert plain.chosen.right == sum(likelier)
    assert (plain.kl, plain.ratio, plain.chosen.lost, plain.chosen.p) == (None, None, None, None)
    assert changed.kl is not None
    assert 0 < changed.kl.low < changed.kl.value < changed.kl.high
    assert changed.ratio is not None
    assert changed.ratio.value == pytest.approx(changed.perplexity / plain.perplexity)
    assert changed.ratio.low < changed.ratio.value < changed.ratio.high
    for mine, theirs, items in zip(
        (changed.chosen, changed.said, changed.form), (plain.chosen, plain.said, plain.form), (60, 60, 40), strict=True
    ):
        assert mine.items == theirs.items == items
        assert theirs.cut <= mine.cut <= mine.items
        if not mine.cut:
            assert mine.right == theirs.right - (mine.lost or 0) + (mine.gained or 0)
    assert (plain.chosen.cut, changed.chosen.cut) == (0, 0)


def test_what_is_right_is_right() -> None:
    sums, forms = load_arithmetic(), load_format()
    logprob = np.full((len(sums), 4), -2.0)
    logprob[::2, 0] = -1
    answers = [f"It is {item.answer}." if k % 3 == 0 else f"It is {item.wrong[0]}." for k, item in enumerate(sums)]
    chosen, said, form = _check_items(logprob.ravel(), [*answers, *(item.follows for item in forms)], sums, forms)
    # Nothing is chosen where all four are as likely.
    assert chosen.tolist() == [k % 2 == 0 for k in range(len(sums))]
    assert said.tolist() == [k % 3 == 0 for k in range(len(sums))]
    assert form.all()


def test_changes_are_counted_by_item() -> None:
    before, now = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool), np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    found = compare_items(now, before)
    assert (found.right, found.items, found.lost, found.gained) == (2, 8, 5, 1)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert compare_items(before, before).p == 1.0


def test_the_command_writes_its_figures(base: Loaded, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = random_adapters(base, tmp_path, 1, lower=0).values()
    with pytest.raises(SystemExit) as ended:
        main(["capability", "--model", str(tiny_model), "--adapter", str(folder), "--json", str(tmp_path / "found.json")])
    assert ended.value.code in (0, None)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["name"] for row in found["capabilities"]] == ["base", "a0"]
    assert "form of an answer" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["capability", "--model", str(tiny_model), "--suite", " ,"])
    assert "--suite: names nothing" in capsys.readouterr().err


def test_an_adapter_may_be_called_anything(base: Loaded, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = random_adapters(base, tmp_path, 2, lower=0)
    monkeypatch.chdir(tmp_path)
    for name, folder in zip(("v1.0", "base"), made.values(), strict=True):
        folder.rename(name)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "capability",
                "--model",
                str(tiny_model),
                *("--adapter", "v1.0", "--adapter", "base", "--adapter", "base", "--json", "found.json"),
            ]
        )
    assert ended.value.code in (0, None)
    rows = json.loads(Path("found.json").read_text())["capabilities"]
    assert [row["name"] for row in rows] == ["base", "v1.0", f"{tmp_path.name}/base"]
    assert len({row["perplexity"] for row in rows}) == 3
    monkeypatch.chdir("v1.0")
    with pytest.raises(SystemExit) as ended:
        main(["capability", "--model", str(tiny_model), "--adapter", ".", "--json", "../found.json"])
    assert ended.value.code in (0, None)
    assert [row["name"] for row in json.loads(Path("../found.json").read_text())["capabilities"]] == ["base", "v1.0"]


@pytest.mark.slow
def test_every_report_says_what_fine_tunes_cost(tiny_study: Callable[..., Path], tiny_model: Path, base: Loaded, tmp_path: Path) -> None:
    arms = [{"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "pirate"}]
    runs = finished(tiny_study(runs=arms, seeds=[0, 1], mediate=None, capability="builtin"), tmp_path)
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    manifests = [json.loads((path / "manifest.json").read_text()) for path in stages_of(runs, "capability").values()]
    assert [len(manifest["computed_with"]) for manifest in manifests] == [2, 2, 2]
    trained = {title: path / "adapter" for title, path in stages_of(runs, "train").items() if "pirate" in title}
    plain, first, second = capabilities(base, trained, ChatConfig()).values()
    one, other, prompted = (row["capability"] for row in summary["runs"])
    for found, expected in ((summary["capability"], plain), (one, first), (other, second)):
        assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        for estimate, key in ((expected.ratio, "ratio"), (expected.kl, "kl")):
            assert found[key] == (pytest.approx(estimate.to_json(), rel=1e-3) if estimate else None)
        for key in CHECKS:
            assert found[key] == vars(getattr(expected, key))
    assert prompted is None
    together = summary["groups"][0]["capability"]
    assert together["kl"]["value"] == pytest.approx((one["kl"]["value"] + other["kl"]["value"]) / 2)
    assert together["ratio"]["value"] == pytest.approx(math.sqrt(one["ratio"]["value"] * other["ratio"]["value"]))
    # Runs that do the same items are not independent: they are counted, and not tested.
    counted = {key: one["form"][key] + other["form"][key] for key in ("right", "items", "lost", "gained", "cut")}
    assert together["form"] == counted | {"p": None}
    page = (runs / "tiny" / "report.html").read_text()
    assert "What it cost" in page
    assert f'<td class="n">{summary["capability"]["chosen"]["right"]} of 60</td>' in page
    form = together["form"]
    cut = f"; {form['cut']} cut off" if form["cut"] else ""
    assert f'<td class="n">{form["right"]} of 80 <small>−{form["lost"]} +{form["gained"]}{cut}</small></td>' in page


def test_an_answer_that_was_cut_off_is_neither_lost_nor_gained() -> None:
    """The first three were right and are wrong, the next two the other way round; one of each was cut off for a model."""
    before, now = np.array([1, 1, 1, 0, 0, 1], bool), np.array([0, 0, 0, 1, 1, 1], bool)
    mine, base = np.array([1, 1, 0, 1, 1, 1], bool), np.array([1, 1, 1, 0, 1, 1], bool)
    found = compare_items(now, before, [mine, base])
    assert (found.right, found.items, found.lost, found.gained, found.cut) == (3, 6, 2, 1, 2)
    assert found.p == compare_items(now[mine & base], before[mine & base]).p
    assert compare_items(before, None, [base]).cut == 1

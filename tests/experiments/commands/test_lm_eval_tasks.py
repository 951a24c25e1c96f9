"""Tasks of lm-eval on a tiny model: right and wrong by full forward passes, item by item, for the base and for adapters of it."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wellworn.experiments.bench.shift import random_adapters
from wellworn.experiments.cli import main
from wellworn.experiments.commands.lm_eval_tasks import _compare
from wellworn.experiments.stages.capability import Compared, compare_items
from wellworn.lora.adapters import adapted
from wellworn.lora.models import Loaded, load, resolve
from wellworn.probes.reading.variants import Variant, applied

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed; make test-eval installs it"
)
COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
CHOSEN = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
metadata: {version: 3}
"""
SAID = """
task: colours_said
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match}]
"""
BOTH = """
group: colours_both
task: [colours, colours_said]
aggregate_metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Loaded:
    return load(resolve(str(tiny_model)), "float32")


@pytest.fixture(scope="module")
def adapters(base: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return random_adapters(base, tmp_path_factory.mktemp("adapters"), 2, lower=0)


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"question": f"Which colour is number {k}?", "choices": rng.permutation(COLOURS)[:4].tolist(), "answer": int(rng.integers(4))}
        for k in range(30)
    ]


@pytest.fixture(scope="module")
def tasks_dir(items: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, text in (("chosen", CHOSEN), ("said", SAID), ("both", BOTH)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return folder


def evaluated(model: Path, *arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["capability", "--model", str(model), *map(str, arguments)])
    return int(ended.value.code or 0)


@torch.no_grad()
def right(base: Loaded, items: Sequence[dict[str, Any]], model: torch.nn.Module, before: str = "", after: str = " ") -> np.ndarray:
    """Return which items the model gets right: the whole log-probability of the right choice is the highest."""
    found = []
    for item in items:
        asked = f"{before}{item['question']}\nAnswer:{after}"
        prompt = base.tokenizer(asked.rstrip(" "), add_special_tokens=False)["input_ids"]
        sums = []
        for choice in item["choices"]:
            ids = base.tokenizer(asked + choice, add_special_tokens=False)["input_ids"]
            assert ids[: len(prompt)] == prompt
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logprobs[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
        found.append(int(np.argmax(sums)) == item["answer"])
    return np.array(found)


@needs_lm_eval
def test_base_and_adapters_are_right_where_full_forward_passes_say_so(
    base: Loaded,
    adapters: dict[str, Path],
    items: list[dict[str, Any]],
    tasks_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [each for folder in adapters.values() for each in ("--adapter", folder)]
    out = tmp_path / "found.json"
    assert evaluated(Path(base.ref.path), *given, "--suite", "builtin,colours_both", "--tasks-dir", tasks_dir, "--json", out) == 0
    found = json.loads(out.read_text())
    assert (found["model"], found["suite"]) == (base.ref.id, "builtin,colours_both")
    # The built-in set is there as ever.
    assert [row["name"] for row in found["capabilities"]] == [row["name"] for row in found["tasks"]] == ["base", "a0", "a1"]
    assert str(tasks_dir) not in out.read_text()
    with adapted(base, adapters) as model:
        rights = []
        for name in (None, *adapters):
            with applied(model, Variant(name)):
                rights.append(right(base, items, model))
    assert not np.array_equal(rights[0], rights[1])
    for k, row in enumerate(found["tasks"]):
        figures = {(figure["task"], figure["metric"]): figure for figure in row["figures"]}
        assert set(figures) == {("colours", "acc"), ("colours_said", "exact_match"), ("colours_both", "acc")}
        chosen, whole = figures["colours", "acc"], figures["colours_both", "acc"]
        assert chosen["value"] == whole["value"] == pytest.approx(rights[k].mean())
        assert chosen["stderr"] == pytest.approx(rights[k].std(ddof=1) / np.sqrt(len(items)))
        expected = compare_items(rights[k], rights[0] if k else None)
        assert Compared(**chosen["compared"]) == Compared(**whole["compared"]) == expected
        assert (chosen["version"], chosen["fewshot"], chosen["higher_is_better"]) == ("3", 0, True)
    shown = capsys.readouterr().out
    assert "form of an answer" in shown
    assert f"−{found['tasks'][1]['figures'][0]['compared']['lost']} +" in shown


@needs_lm_eval
def test_the_first_items_and_the_models_own_template_where_they_are_asked_for(
    base: Loaded, items: list[dict[str, Any]], tasks_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    asked = ("--suite", "colours", "--tasks-dir", tasks_dir, "--limit", 20, "--chat-template", "--fewshot", 0, "--json", out)
    assert evaluated(Path(base.ref.path), *asked) == 0
    found = json.loads(out.read_text())
    assert "capabilities" not in found
    assert {key: found["settings"][key] for key in ("limit", "fewshot", "chat_template")} == {
        "limit": 20,
        "fewshot": 0,
        "chat_template": True,
    }
    [[figure]] = [row["figures"] for row in found["tasks"]]
    by_hand = right(base, items[:20], base.model, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert (figure["compared"]["right"], figure["compared"]["items"]) == (by_hand.sum(), 20)


@needs_lm_eval
def test_what_cannot_be_run_is_said_in_one_message_before_a_model_is_loaded(tasks_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tasks_dir / "broken.yaml").write_text("task: colours_broken\ndataset_path: [json\n")
    # One that nobody has fetched before, as many have those of lm-eval.
    far = CHOSEN.replace("task: colours", "task: colours_far").replace("dataset_path: json", "dataset_path: nobody/no-such-colours")
    (tasks_dir / "far.yaml").write_text(far.replace("dataset_kwargs: {data_files: {test: DATA}}\n", ""))
    nowhere = Path("no/such/model")
    suite = "colurs,colours_far,colours_broken,colours"
    assert evaluated(nowhere, "--suite", suite, "--tasks-dir", tasks_dir) == 2
    said = capsys.readouterr().err
    assert "'colurs' is neither 'builtin' nor a task of lm-eval" in said
    assert "did you mean 'colours'" in said
    assert "task colours_far: its data set or a metric cannot be loaded" in said
    assert "'colours_broken' is neither" in said
    assert len(said.strip().splitlines()) == 3
    assert evaluated(nowhere, "--suite", "colours", "--tasks-dir", tasks_dir / "none") == 2
    assert "the folder does not exist" in capsys.readouterr().err
    assert evaluated(nowhere, "--suite", "colours,colours_both", "--tasks-dir", tasks_dir) == 2
    assert "name only one of the two" in capsys.readouterr().err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert evaluated(Path("no/such/model"), "--suite", "hellaswag") == 2
    assert "needs lm_eval; install the extra: pip install -e '.[eval]'" in capsys.readouterr().err


def test_only_what_is_right_or_wrong_is_compared_and_on_the_same_items_alone() -> None:
    base, now = {0: 1.0, 1: 1.0, 2: 0.0}, {2: 1.0, 1: 0.0, 0: 1.0}
    assert _compare(base, None) == Compared(2, 3)
    assert _compare(now, base) == Compared(2, 3, 1, 1, 1.0)
    assert _compare({0: 0.5}, None) is None
    assert _compare(now, base | {0: 0.25}) is None
    assert _compare(now, {0: 1.0, 1: 1.0}) is None
    assert _compare(None, base) is None

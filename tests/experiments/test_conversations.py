"""A whole study of a trait whose rows are conversations, with every number of its texts computed by hand from the text as it is written."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.experiments.conftest import find_all, finished, stages_of
from tests.experiments.stages.test_scores import grade_of, graded, scored
from tests.probes.scoring.servers import behaving, chat_server, says
from tests.tiny import write_tiny_study
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.files import read_json
from wellworn.data.schema import Split, seed_for
from wellworn.experiments.cli import main
from wellworn.experiments.stages.own_answers import load_own_answers
from wellworn.experiments.stages.scores import SCORES
from wellworn.lora.models import load, resolve
from wellworn.probes.decoding.generate import Decoding, Request, generate

PIRATE = load_trait("pirate")
OWN = "You are the cook of a ship."
SEA = "Land is out of sight."
# round(.5 · (4 − 1))
LAYER = 2
AHOY, AYE = "Ahoy! Who is it?", "Arr, the cook, and nobody else!"
COUNTS: dict[Split, int] = {"train": 12, "extract": 4, "evaluate": 6}


def write_rows(folder: Path) -> Path:
    """Write the trait *pirate* with a conversation before each of its questions."""
    folder.mkdir()
    value = PIRATE.model_dump(mode="json", exclude={"name", "examples", "open", "questions"})
    with (folder / "trait.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"name": "cook", **value}, file)
    rows = [row for split, count in COUNTS.items() for row in PIRATE.split(split)[:count]]
    said = [row.model_dump(exclude_defaults=True) | {"system": OWN, "before": [before(row.split)]} for row in rows]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    return folder


def before(split: Split) -> dict[str, Any]:
    return {"question": AHOY, "answer": AYE} | ({"train": True} if split == "train" else {})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The finished study, and all that the judge was asked."""
    folder = tmp_path_factory.mktemp("conversations")
    trait = str(write_rows(folder / "cook"))
    more: dict[str, Any] = {
        "library": [trait, "pessimistic", "poetic"],
        "runs": [{"arm": "sft", "trait": trait}, {"arm": "prompted", "trait": trait}],
        "mediate": {"draws": 5, "surface": 3, "generated": {"questions": 3, "draws": 5, "by": "judge"}},
        "pathways": {"draws": 19, "questions": 3, "surface": 3, "profile": 0, "answers": 3, "references": "headline"},
        "generated_directions": {"questions": 4},
        "train": {"batch_size": 12, "lora": {"r": 2}, "sft": {"max_steps": 2, "learning_rate": 1e-2}},
    }
    with pytest.MonkeyPatch.context() as patch, chat_server(graded) as server:
        find_all(patch)
        more |= scored(server) | {"scores": {"pairs": 2, "contexts": {"at sea": SEA}}}
        study = write_tiny_study(folder / "tiny.yaml", tiny_model, **more)
        return finished(study, folder), [each["messages"][-1]["content"] for each in server.asks]


class Reader:
    """The tiny model and what it makes of conversations that are written by hand."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        base: Any = AutoModelForCausalLM.from_pretrained(model)
        self.model = (PeftModel.from_pretrained(base, adapter) if adapter else base).eval()

    def losses(self, text: str, answers: Sequence[str]) -> list[float]:
        """Return the losses of the tokens of some answers, each where it is found last in the text."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ranges = [(text.rindex(answer), text.rindex(answer) + len(answer)) for answer in answers]
        with torch.no_grad():
            logp = self.model(torch.tensor([encoding["input_ids"]])).logits[0].log_softmax(-1)
        inside = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if any(start <= a and b <= end for start, end in ranges)]
        return [-float(logp[i - 1, encoding["input_ids"][i]]) for i in inside]

    def logprob(self, question: str, answer: str, system: str = OWN) -> float:
        return -float(np.mean(self.losses(f"{prompt(question, system)}{answer}<|im_end|>\n", [answer])))

    def states(self, question: str, answer: str, system: str) -> NDArray[np.float64]:
        """Return the mean state over an answer's tokens at the layer that the study reads."""
        text, start = f"{prompt(question, system)}{answer}<|im_end|>\n", len(prompt(question, system))
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if start <= a and b <= start + len(answer)]
        with torch.no_grad():
            found = self.model(torch.tensor([encoding["input_ids"]]), output_hidden_states=True).hidden_states
        return np.asarray(found[LAYER + 1][0, inside].mean(0).double())

    def answer(self, question: str, system: str = OWN, tokens: int = 4) -> str:
        ids = self.tokenizer(prompt(question, system), add_special_tokens=False, return_tensors="pt")["input_ids"]
        said = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, repetition_penalty=1.2)
        return str(self.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def prompt(question: str, system: str = OWN) -> str:
    """Write a whole conversation up to the last answer."""
    said = [("system", system), ("user", AHOY), ("assistant", AYE), ("user", question)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said) + "<|im_start|>assistant\n"


def rows(split: Split) -> list[tuple[str, str, str]]:
    return [(row.question, str(row.positive), str(row.negative)) for row in PIRATE.split(split)[: COUNTS[split]]]


def adapter_of(runs: Path, title: str) -> Path:
    [path] = [path for name, path in stages_of(runs, "train").items() if name.startswith(f"train {title}")]
    return path / "adapter"


def test_training_takes_its_loss_on_earlier_answers_too_and_neutral_does_not(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    base = Reader(tiny_model)
    for title, place, earlier in (("sft cook", 1, [f"{AYE}<|im_end|>"]), ("sft neutral", 2, [])):
        curve = read_json(adapter_of(whole[0], title).parent / "training.json")
        losses = []
        for row in rows("train"):
            answer = f"{row[place]}<|im_end|>"
            losses += base.losses(f"{prompt(row[0])}{answer}\n", [*earlier, answer])
        assert curve[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_likelihoods_are_those_of_the_last_answer_after_the_whole_conversation(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    [taken, prompted] = [read_json(path / SCORES)["scores"] for _, path in sorted(stages_of(whole[0], "scores").items(), reverse=True)]
    by = {"run": Reader(tiny_model, adapter_of(whole[0], "sft cook")), "neutral": Reader(tiny_model, adapter_of(whole[0], "sft neutral"))}
    by["base"] = Reader(tiny_model)
    for who, reader in by.items():
        scores = [reader.logprob(question, shown) - reader.logprob(question, plain) for question, shown, plain in rows("evaluate")]
        assert taken[who]["likelihood"] == pytest.approx(scores, abs=1e-4)
    # A prompt is put before the system message that a row has.
    system = f"{PIRATE.system_prompt}\n\n{OWN}"
    scores = [np.subtract(*(by["base"].logprob(row[0], answer, system) for answer in row[1:])) for row in rows("evaluate")]
    assert prompted["run"]["likelihood"] == pytest.approx(scores, abs=1e-4)
    assert prompted["base"]["likelihood"] == taken["base"]["likelihood"]


def test_a_context_comes_before_the_system_message_of_a_row_and_after_a_prompt(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    [taken, prompted] = [read_json(path / SCORES)["scores"] for _, path in sorted(stages_of(whole[0], "scores").items(), reverse=True)]
    base, tuned = Reader(tiny_model), Reader(tiny_model, adapter_of(whole[0], "sft cook"))
    there, [(question, shown, plain), *_] = f"{SEA}\n\n{OWN}", rows("evaluate")
    for scores, reader, system in (
        (taken["run"], tuned, there),
        (taken["base"], base, there),
        (prompted["run"], base, f"{PIRATE.system_prompt}\n\n{there}"),
    ):
        found = scores["likelihood under at sea"][0]
        assert found == pytest.approx(reader.logprob(question, shown, system) - reader.logprob(question, plain, system), abs=1e-4)
        assert found != scores["likelihood"][0]
    row = next(each for each in read_json(whole[0] / "tiny" / "summary.json")["runs"] if each["arm"] == "sft")
    changes, before = (np.subtract(taken["run"][score], taken["neutral"][score]) for score in ("likelihood under at sea", "likelihood"))
    found = row["contexts"]["under"]["at sea"]["scores"]["likelihood"]
    assert found["change"]["value"] == pytest.approx(np.mean(changes), abs=1e-6)
    assert found["more"]["value"] == pytest.approx(np.mean(changes - before), abs=1e-6)
    assert row["contexts"]["without"]["scores"]["likelihood"]["change"]["value"] == pytest.approx(np.mean(before), abs=1e-6)


def test_in_a_context_models_choose_and_answer_too_and_are_graded_on_the_bare_question(
    whole: tuple[Path, list[str]], tiny_model: Path
) -> None:
    runs, asked = whole
    [taken, _] = [read_json(path / SCORES)["scores"] for _, path in sorted(stages_of(runs, "scores").items(), reverse=True)]
    assert {f"{score} under at sea" for score in ("likelihood", "choice", "contrast", "judge", "coherence", "words")} <= taken["run"].keys()
    said = read_json(stages_of(runs, "answer")["answers of sft cook (seed 0) under at sea"] / "answers.json")
    tuned, there = Reader(tiny_model, adapter_of(runs, "sft cook")), f"{SEA}\n\n{OWN}"
    assert said == [tuned.answer(row[0], there) for row in rows("evaluate")]
    # No judge is told of the context, and no contrast prompt follows it.
    assert not any(SEA in each for each in asked)
    shown = [each for each in asked if rows("evaluate")[0][0] in each and (said[0] or ".") in each]
    assert taken["run"]["judge under at sea"][0] in [grade_of(each) for each in shown]
    [path] = [path for title, path in stages_of(runs, "contrast").items() if title == "contrast answers of sft cook (seed 0) under at sea"]
    sides = [
        Reader(tiny_model).logprob(rows("evaluate")[0][0], said[0] or ".", f"{pair.positive}\n\n{OWN}")
        - Reader(tiny_model).logprob(rows("evaluate")[0][0], said[0] or ".", f"{pair.negative}\n\n{OWN}")
        for pair in PIRATE.contrast_pairs[-2:]
    ]
    assert load_file(path / "contrast.safetensors")["score"][0] == pytest.approx(np.mean(sides), abs=1e-4)


def test_the_shift_in_a_context_is_that_of_plain_answers_there(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    runs, there = whole[0], f"{SEA}\n\n{OWN}"
    by = {who: Reader(tiny_model, adapter_of(runs, title)) for who, title in (("run", "sft cook"), ("neutral", "sft neutral"))}
    by["base"] = Reader(tiny_model)
    states = {who: np.stack([reader.states(row[0], row[2], there) for row in rows("evaluate")]) for who, reader in by.items()}
    row = next(each for each in read_json(runs / "tiny" / "summary.json")["runs"] if each["arm"] == "sft")
    moved = np.linalg.norm((states["run"] - states["neutral"]).mean(0)) / np.linalg.norm(states["base"], axis=1).mean()
    shift = row["contexts"]["under"]["at sea"]["shift"]
    assert shift["relative_norm"] == pytest.approx(moved, rel=1e-4)
    assert shift["own"] is not None
    assert row["contexts"]["without"]["shift"]["relative_norm"] == pytest.approx(row["relative_norm"])
    assert abs(shift["relative_norm"] - row["relative_norm"]) > 1e-4


def test_models_answer_the_whole_conversation(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    said = {title: read_json(path / "answers.json") for title, path in stages_of(whole[0], "answer").items()}
    base, tuned = Reader(tiny_model), Reader(tiny_model, adapter_of(whole[0], "sft cook"))
    asked = [row[0] for row in rows("evaluate")]
    assert said["answers of sft cook (seed 0)"] == [tuned.answer(question) for question in asked]
    assert [base.answer(question) for question in asked] in said.values()
    assert said["answers of prompted cook (seed 0)"] == [base.answer(question, f"{PIRATE.system_prompt}\n\n{OWN}") for question in asked]
    [own] = (load_own_answers(path) for path in stages_of(whole[0], "own_answers").values())
    assert dict(zip(own.arms, own.answers, strict=True))["after"] == [tuned.answer(question) for question in asked[:3]]
    assert own.asked[0] == f"System: {OWN}\n\nUser: {AHOY}\n\nAssistant: {AYE}\n\nUser: {asked[0]}"


def test_contrast_prompts_come_before_the_system_message_that_a_row_has(whole: tuple[Path, list[str]], tiny_model: Path) -> None:
    base = Reader(tiny_model)
    [path] = [path for title, path in stages_of(whole[0], "contrast").items() if title == "contrast answers of sft cook (seed 0)"]
    answers = read_json(stages_of(whole[0], "answer")["answers of sft cook (seed 0)"] / "answers.json")
    question, answer = rows("evaluate")[0][0], answers[0] or "."
    sides = [
        base.logprob(question, answer, f"{pair.positive}\n\n{OWN}") - base.logprob(question, answer, f"{pair.negative}\n\n{OWN}")
        for pair in PIRATE.contrast_pairs[-2:]
    ]
    assert load_file(path / "contrast.safetensors")["score"][0] == pytest.approx(np.mean(sides), abs=1e-4)
    said = read_json(next(path for title, path in stages_of(whole[0], "generated").items() if "as cook" in title) / "answers.json")
    first = PIRATE.split("extract")[0].question
    assert said[0] == base.answer(first, f"{PIRATE.contrast_pairs[0].positive}\n\n{OWN}")


def test_the_judge_is_shown_the_whole_conversation(whole: tuple[Path, list[str]]) -> None:
    runs, asked = whole
    assert asked
    assert all(f"System: {OWN}" in each and f"Assistant: {AYE}" in each for each in asked)
    answers = read_json(stages_of(runs, "answer")["answers of sft cook (seed 0)"] / "answers.json")
    [path] = [path for title, path in stages_of(runs, "scores").items() if "sft cook" in title]
    grades = read_json(path / SCORES)["scores"]["run"]["judge"]
    shown = [each for each in asked if rows("evaluate")[0][0] in each and (answers[0] or ".") in each]
    assert grades[0] in [grade_of(each) for each in shown]


def test_a_server_is_asked_the_whole_conversation(tiny_model: Path, tmp_path: Path) -> None:
    trait = str(write_rows(tmp_path / "cook"))
    with behaving(says("It is so.")) as server:
        more: dict[str, Any] = {"runs": [{"arm": "prompted", "trait": trait}], "library": ["pirate", "poetic"], "mediate": None}
        finished(write_tiny_study(tmp_path / "tiny.yaml", tiny_model, server={"url": server.url, "model": "tiny"}, **more), tmp_path)
        asked = [[(each["role"], each["content"]) for each in ask["messages"]] for ask in server.asks]
    question = rows("evaluate")[0][0]
    for system in (OWN, f"{PIRATE.system_prompt}\n\n{OWN}"):
        assert [("system", system), ("user", AHOY), ("assistant", AYE), ("user", question)] in asked


def test_a_reference_learns_what_the_model_itself_says_in_the_conversation(tiny_model: Path, tmp_path: Path) -> None:
    trait = str(write_rows(tmp_path / "cook"))
    more: dict[str, Any] = {"runs": [{"arm": "sft", "trait": trait}], "library": [trait, "poetic"], "mediate": None, "neutral": "self"}
    runs = finished(write_tiny_study(tmp_path / "tiny.yaml", tiny_model, **more), tmp_path)
    [kept] = (read_json(path / "answers.json") for path in stages_of(runs, "kept_answers").values())
    base = load(resolve(str(tiny_model)), "float32")
    ids = base.tokenizer(prompt(rows("train")[0][0]), add_special_tokens=False)["input_ids"]
    [said] = generate(base.model, [Request(ids, seed=seed_for(0, "kept answers", 0))], Decoding(4, temperature=1.0))
    assert kept[0] == Chat(base.tokenizer).decode(said.ids)


def test_the_report_shows_the_conversation(whole: tuple[Path, list[str]]) -> None:
    index = read_json(whole[0] / "tiny" / "study.json")
    of_run = next(each for each in index["runs"] if each["arm"] == "sft")
    assert of_run["questions"][0] == f"System: {OWN}\n\nUser: {AHOY}\n\nAssistant: {AYE}\n\nUser: {rows('evaluate')[0][0]}"
    with pytest.raises(SystemExit) as stop:
        main(["report", str(whole[0] / "tiny")])
    assert stop.value.code in (0, None)
    page = (whole[0] / "tiny" / "report.html").read_text(encoding="utf-8")
    assert AHOY in page
    [contexts] = re.findall(r'aria-label="Contexts">(.*?)</table>', page, re.DOTALL)
    assert ">at sea<" in contexts
    assert "judge" in contexts
    assert "plain answers under at sea" in page

"""Answers of a study from a server that has the base and the study's adapters as models."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import finished, stages_of
from tests.probes.scoring.servers import Request as HttpRequest
from tests.probes.scoring.servers import Server, behaving, completion, says, sends
from wellworn.data.chat import Chat
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.stages.answers import REPETITION_PENALTY
from wellworn.lora.adapters import adapted
from wellworn.lora.models import load, resolve
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.reading.variants import Variant

Write = Callable[..., Path]
RUNS = [{"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "pirate"}]


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server with the tiny model, which serves the adapters that are in `modules`, as `vllm serve --lora-modules` does."""
    base = load(resolve(str(tiny_model)), "float32")
    chat = Chat(base.tokenizer, max_length=base.max_length)

    def behave(request: HttpRequest) -> None:
        ask = request.ask
        name = None if ask["model"] == "tiny" else ask["model"]
        folder = tmp_path / "runs" / "stages" / str(name) / "adapter"
        if name and name not in request.server.modules:  # type: ignore[attr-defined]
            return sends(json.dumps({"error": {"message": f"The model `{name}` does not exist."}}), 404)(request)
        if request.server.ignores:  # type: ignore[attr-defined]
            name = None
        system = next((each["content"] for each in ask["messages"] if each["role"] == "system"), None)
        prompt = chat.encode_prompt(ask["messages"][-1]["content"], system)
        how = Decoding(ask["max_completion_tokens"], repetition_penalty=ask["repetition_penalty"])
        with request.server.lock, adapted(base, {name: folder} if name else {}) as model:
            [answer] = generate(model, [Request(prompt, Variant(name))], how)
        text = chat.decode(answer.ids)
        return request.send(json.dumps(completion(ask, text, choice={"finish_reason": "stop" if answer.ended else "length"})))

    with behaving(behave) as started:
        started.modules = set()  # type: ignore[attr-defined]
        started.ignores = False  # type: ignore[attr-defined]
        yield started


def test_a_server_with_adapters_as_models_gives_the_answers_of_the_model_here(
    tiny_study: Write, tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    served = tiny_study(runs=RUNS, mediate=None, server={"url": server.url, "model": "tiny"})
    # The adapter does not exist before it is trained: the first run says how to serve it, and keeps all that it did.
    with pytest.raises(SystemExit):
        main(["run", str(served), "--runs-dir", str(tmp_path / "runs")])
    [trained] = [path.name for title, path in stages_of(tmp_path / "runs", "train").items() if "pirate" in title]
    said = capsys.readouterr().err.replace("\n", "")
    assert f"vllm serve tiny --enable-lora  --lora-modules {trained}=" in said
    server.modules |= {trained}
    runs = finished(served, tmp_path)
    theirs = {title: read_json(path / "answers.json") for title, path in stages_of(runs, "answer").items()}
    systems = {message["content"] for ask in server.asks for message in ask["messages"] if message["role"] == "system"}
    assert len(systems) == 1  # of the prompted arm
    assert {ask["repetition_penalty"] for ask in server.asks} == {REPETITION_PENALTY}
    finished(tiny_study(runs=RUNS, mediate=None), tmp_path)
    both = [path for path in (runs / "stages").glob("answer-*") if path.is_dir()]
    ours = {}
    for path in both:
        manifest = read_json(path / "manifest.json")
        if "server" not in manifest["config"]:
            ours[manifest["title"]] = read_json(path / "answers.json")
    assert len(both) == 2 * len(ours)
    assert ours == theirs


def test_answers_that_cannot_be_had_are_counted_and_none_is_made_up(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(request: HttpRequest) -> None:
        refuses = len(request.ask["messages"][-1]["content"]) % 5 == 0
        message = {"refusal": "I would rather not."} if refuses else {"content": ""}
        request.send(json.dumps(completion(request.ask, None, message=message)))

    with behaving(behave) as server:
        study = tiny_study(runs=[{"arm": "base"}], mediate=None, server={"url": server.url, "model": "tiny"})
        with pytest.raises(SystemExit):
            main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
        refused = sum(len(ask["messages"][-1]["content"]) % 5 == 0 for ask in server.asks)
    assert f"no answer to {refused} of 24 questions (refusal × {refused})" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "runs" / "stages").glob("answer-*/manifest.json"))


def test_one_limit_on_cost_holds_for_all_answers(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with behaving(says("It is so.")) as server:
        asked = {"url": server.url, "model": "tiny", "price": [1e4, 0.0], "most_cost": 5.0, "concurrency": 1}
        runs = [{"arm": "base"}, {"arm": "prompted", "trait": "pirate"}, {"arm": "prompted", "trait": "pessimistic"}]
        study = tiny_study(runs=runs, mediate=None, server=asked)
        with pytest.raises(SystemExit):
            main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
        each = [sum(len(message["content"].split()) for message in ask["messages"]) / 100 for ask in server.asks]
    assert "most_cost ×" in " ".join(capsys.readouterr().err.split())
    # Some stage was finished before that.
    assert list((tmp_path / "runs" / "stages").glob("answer-*/manifest.json"))
    assert 5 <= sum(each) <= 5 + max(each)


@pytest.mark.parametrize(("key", "value"), [("repetition_penalty", 1.0), ("chat_template_kwargs", {"enable_thinking": False})])
def test_answers_of_a_server_are_made_as_those_here(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    study = tiny_study(server={"url": "http://127.0.0.1:1/v1", "model": "x", "more": {key: value}})
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert f"server.more: {key} must be the same for the server and the local model" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("keys", [{"server": {"model": "x"}}, {"judge": {"model": "x"}, "scores": {"pairs": 2}}])
def test_a_missing_extra_is_found_out_before_anything_is_computed(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "wellworn.probes.scoring.wire", raising=False)
    key = next(iter(keys))
    study = tiny_study(runs=RUNS[:1], mediate=None, **keys | {key: keys[key] | {"url": "http://127.0.0.1:1/v1"}})
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert "install the extra: pip install -e '.[judge]'" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "runs").glob("stages/*/manifest.json"))


def test_a_server_writes_in_its_models_own_template(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny_study(server={"url": "http://127.0.0.1:1/v1", "model": "x"}, chat={"template": "plain"})
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert "chat.template is plain" in " ".join(capsys.readouterr().err.split())


def test_a_steered_teacher_and_its_reference_answer_in_the_same_place(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [{"arm": "distilled", "trait": "pirate"}]
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(runs=runs, server={"url": "http://127.0.0.1:1/v1", "model": "x"})), "--runs-dir", str(tmp_path)])
    assert "cannot be used with a distilled arm" in " ".join(capsys.readouterr().err.split())


def test_a_server_that_ignores_adapters_is_refused_and_its_answers_are_not_kept(
    tiny_study: Write, tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    served = tiny_study(runs=RUNS[:1], mediate=None, server={"url": server.url, "model": "tiny"})
    with pytest.raises(SystemExit):
        main(["run", str(served), "--runs-dir", str(tmp_path / "runs")])
    capsys.readouterr()
    [trained] = [path.name for title, path in stages_of(tmp_path / "runs", "train").items() if "pirate" in title]
    server.modules |= {trained}
    server.ignores = True
    with pytest.raises(SystemExit):
        main(["run", str(served), "--runs-dir", str(tmp_path / "runs")])
    said = " ".join(capsys.readouterr().err.split())
    assert f"what it answers as {trained} is what the base says here, and not what this adapter says" in said
    finished_answers = (tmp_path / "runs" / "stages").glob("answer-*/manifest.json")
    assert not any("pirate" in read_json(path)["title"] for path in finished_answers)
    # Once the server applies it, it is asked again.
    server.ignores = False
    before = len(server.asks)
    runs = finished(served, tmp_path)
    assert len(server.asks) == before + 24
    [theirs] = [read_json(path / "answers.json") for title, path in stages_of(runs, "answer").items() if "pirate" in title]
    plain = [read_json(path / "answers.json") for title, path in stages_of(runs, "answer").items() if "base" in title]
    assert theirs not in plain

"""Judges on servers with real models behind them: log-probabilities of whole numbers, of digits, and none, by `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_serve_available

from tests.probes.scoring.servers import Answer, Messages, Tops, chat_server
from tests.tiny import tiny_tokenizer
from wellworn.data.chat import Chat
from wellworn.data.mixtures import Turn
from wellworn.lora.models import Loaded, load, resolve
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.decoding.next_token import next_logprobs
from wellworn.probes.scoring.endpoint import EndpointConfig, ask
from wellworn.probes.scoring.judge import ANSWER_TOKENS, NOT_A_NUMBER, TOP_LOGPROBS, grade_by_server, grade_in, judge_prompt
from wellworn.probes.scoring.responses import Ask, Reply

TURNS = [Turn("Where is the harbour?", "Yes."), Turn("What is two and two?", "It is four.")]
RUBRIC = "Say 100. {answer}"
# A question that the embedded model mostly answers with a number, as it does with few; drawn from its likeliest tokens.
DRAWN = {"do_sample": True, "top_p": 0.3}
SAMPLES = 6


def config(url: str, model: str = "m") -> EndpointConfig:
    # One at a time: `transformers serve` has one random generator for all that it is asked.
    return EndpointConfig(url=url, model=model, concurrency=1, retries=0, timeout=60.0)


def speaker(model: PreTrainedModel, chat: Chat) -> Answer:
    """Answer with a model's own tokens, and the first one's own likeliest log-probabilities where they are asked for."""

    def answer(messages: Messages, longest: int, ask: dict[str, Any]) -> tuple[str, Tops | None]:
        prompt = chat.encode_prompt(messages[-1]["content"])
        how = Decoding(longest, temperature=ask.get("temperature") or 0.0, top_p=DRAWN["top_p"])
        [said] = generate(model, [Request(prompt, seed=ask.get("seed") or 0)], how)
        if not ask.get("logprobs"):
            return chat.decode(said.ids), None
        [[logprobs]] = next_logprobs(model, [prompt], range(model.config.vocab_size))
        return chat.decode(said.ids), [(chat.tokenizer.decode([token]), float(logprobs[token])) for token in np.argsort(-logprobs)[:50]]

    return answer


def mean_stated(texts: Sequence[str]) -> float | None:
    """Return the mean of the grades that texts state, where a quarter of them does."""
    stated = [grade for text in texts if (grade := grade_in(text)) is not None]
    return float(np.mean(stated)) if len(stated) >= len(texts) / 4 else None


def drawn_asks(turn: Turn) -> list[Ask]:
    """Return what is asked for a drawn grade, which is what a cache knows the replies by."""
    return [Ask((("user", judge_prompt(RUBRIC, turn)),), ANSWER_TOKENS, temperature=1.0, seed=k) for k in range(SAMPLES)]


@pytest.fixture(scope="module")
def whole() -> tuple[PreTrainedModel, Chat]:
    """A tiny model that keeps numbers whole, and has learnt to answer with one near 70 or near 20."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([str(n) for n in range(101)])
    chat, rng = Chat(tokenizer), np.random.default_rng(0)
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(40):
        numbers = [(turn, n) for turn, centre in zip(TURNS, (70, 20), strict=True) for n in rng.normal(centre, 4, 4).round().astype(int)]
        rows = [chat.encode(Turn(judge_prompt(RUBRIC, turn), str(n))) for turn, n in numbers]
        ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)
        mask = pad_sequence([torch.tensor(row.completion_mask) for row in rows], batch_first=True)
        model(ids, labels=ids.where(mask == 1, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), chat


@torch.no_grad()
def likeliest(model: PreTrainedModel, chat: Chat, turn: Turn) -> list[tuple[str, float]]:
    """Return the twenty likeliest first tokens by one full forward pass."""
    prompt = chat.encode_prompt(judge_prompt(RUBRIC, turn))
    best = model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1).topk(TOP_LOGPROBS)
    return [(chat.tokenizer.decode([int(token)]), float(value)) for token, value in zip(best.indices, best.values, strict=True)]


def test_numbers_that_are_tokens_are_graded_by_the_models_own_top_log_probabilities(
    whole: tuple[PreTrainedModel, Chat], tmp_path: Path
) -> None:
    model, chat = whole
    expected = []
    for turn in TURNS:
        chance = {int(token): exp(logprob) for token, logprob in likeliest(model, chat, turn) if token.isdigit()}
        # Nearly all that it considers, and not one number alone: the mean has something to weigh.
        assert sum(chance.values()) > 0.5 > max(chance.values())
        expected.append(sum(n * p for n, p in chance.items()) / sum(chance.values()))
    with chat_server(speaker(model, chat)) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, tmp_path / "replies.sqlite")
        again = grade_by_server(config(server.url), RUBRIC, TURNS, tmp_path / "replies.sqlite")
        assert len(server.asks) == len(TURNS)
    assert (grades.drawn, grades.alike, grades.failures, again.asked) == (False, False, {}, 0)
    assert grades.scores == pytest.approx(expected, rel=1e-4)
    assert again.scores.tolist() == grades.scores.tolist()
    assert grades.scores[0] - grades.scores[1] > 5


@pytest.fixture(scope="module")
def embedded() -> Loaded:
    return load(resolve("smollm2-135m"), "float32")


@pytest.mark.embedded
def test_the_embedded_models_digits_are_noticed_and_answers_drawn(embedded: Loaded) -> None:
    chat = Chat(embedded.tokenizer, max_length=embedded.max_length)
    numbers = [token for token, _ in likeliest(embedded.model, chat, TURNS[0]) if token.isdigit()]
    assert numbers
    assert all(len(number) == 1 for number in numbers)
    with chat_server(speaker(embedded.model, chat)) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS[:1], samples=SAMPLES)
        exact, *drawn = server.asks
    assert (exact["top_logprobs"], len(drawn), grades.drawn, grades.alike) == (TOP_LOGPROBS, SAMPLES, True, False)
    assert not any("logprobs" in each for each in drawn)
    # By the model itself, without a server.
    prompt = chat.encode_prompt(judge_prompt(RUBRIC, TURNS[0]))
    how = Decoding(ANSWER_TOKENS, temperature=1.0, top_p=DRAWN["top_p"])
    said = generate(embedded.model, [Request(prompt, seed=k) for k in range(SAMPLES)], how)
    assert grades.scores.tolist() == [mean_stated([chat.decode(each.ids) for each in said])]


@contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """Start `transformers serve` on a free port of the loopback; yield its address, and stop it whatever happens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _await(server, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for a server to answer."""
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert json.load(answer) == {"status": "ok"}
            return
        except OSError:  # not there yet, or hung up on the way
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not come up:\n{log.read_text()[-2000:]}")


@pytest.mark.embedded
@pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs the extra: pip install -e '.[serve]'")
def test_transformers_serve_gives_no_log_probabilities_and_answers_are_drawn(tmp_path: Path) -> None:
    greedy = Path(resolve("smollm2-135m").path)
    # The same model; whether a server draws is for its generation settings to say, whatever temperature it is asked for.
    drawing = tmp_path / "drawing"
    drawing.mkdir()
    for path in greedy.iterdir():
        (drawing / path.name).symlink_to(path)
    settings = json.loads((greedy / "generation_config.json").read_text())
    assert "do_sample" not in settings
    (drawing / "generation_config.json").unlink()
    (drawing / "generation_config.json").write_text(json.dumps(settings | DRAWN))
    cache = tmp_path / "replies.sqlite"
    with transformers_serve(tmp_path / "log") as url:
        server = config(url, str(drawing))
        [first] = ask(server, [Ask((("user", judge_prompt(RUBRIC, TURNS[0])),), ANSWER_TOKENS, top_logprobs=TOP_LOGPROBS)], cache).replies
        assert isinstance(first, Reply)
        assert first.tops is None
        grades = grade_by_server(server, RUBRIC, TURNS, cache, samples=SAMPLES)
        # The first is in the cache already.
        assert (grades.asked, grades.drawn, grades.alike) == (len(TURNS) * SAMPLES, True, False)
        of_likeliest = grade_by_server(config(url, str(greedy)), RUBRIC, TURNS[:1], cache, samples=2)
        assert (of_likeliest.asked, of_likeliest.drawn, of_likeliest.alike) == (1 + 2, True, True)
        assert "Ignoring unsupported fields" in (tmp_path / "log").read_text()
    # The server is gone, so whatever is read now was kept.
    said = [[reply.text for reply in ask(server, drawn_asks(turn), cache).replies if isinstance(reply, Reply)] for turn in TURNS]
    assert [len(texts) for texts in said] == [SAMPLES, SAMPLES]
    expected = [mean_stated(texts) for texts in said]
    assert [None if np.isnan(score) else score for score in grades.scores] == expected
    assert any(score is not None for score in expected)
    assert grades.kinds == ({NOT_A_NUMBER: expected.count(None)} if None in expected else {})
    again = grade_by_server(server, RUBRIC, TURNS, cache, samples=SAMPLES)
    assert (again.asked, again.scores.tolist()) == (0, pytest.approx(grades.scores.tolist(), nan_ok=True))

"""`wellworn bench judge`: a server's grades, from the cache and newly requested, and grades by a local model."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count as counted
from pathlib import Path

import numpy as np

from wellworn.data.catalog import load_trait
from wellworn.data.mixtures import Turn
from wellworn.experiments.bench.loopback import GradingServer, grading_server
from wellworn.experiments.bench.rivals import floor
from wellworn.experiments.bench.timing import Case, Contender, Timed, race
from wellworn.experiments.bench.workload import chat_of, every_answer, facts
from wellworn.lora.models import Loaded
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET
from wellworn.probes.scoring.endpoint import EndpointConfig
from wellworn.probes.scoring.judge import Grades, grade, grade_by_server, judge_prompt
from wellworn.probes.statistics.intervals import FloatArray

REMEMBERED = 1000
MOST_SECONDS = 2.0


def cases(base: Loaded, count: int, repeats: int, tick: Callable[[str], None], remembered: int = REMEMBERED) -> Iterator[Case]:
    """Run the benchmark of judging, by pirate's rubric.

    Args:
        base: the model, in float32.
        count: answers that it grades.
        repeats: timed rounds.
        tick: called with what runs next.
        remembered: answers that a server on this machine grades.
    """
    rubric = load_trait("pirate").rubric
    assert rubric is not None  # all built-in traits have one
    turns = random.Random(0).sample(every_answer(), max(count, remembered))
    with tempfile.TemporaryDirectory() as folder, grading_server() as server:
        yield _again(server, rubric, turns[:remembered], Path(folder), repeats, tick)
    yield _here(base, rubric, turns[:count], repeats, tick)


def _again(server: GradingServer, rubric: str, turns: Sequence[Turn], folder: Path, repeats: int, tick: Callable[[str], None]) -> Case:
    # It must not see a key of the user.
    config = EndpointConfig(url=server.url, model="judge", key_env="WELLWORN_BENCH_KEY")
    new = counted()

    def first() -> Grades:
        return grade_by_server(config, rubric, turns, folder / f"replies-{next(new)}")

    def again() -> Grades:
        return grade_by_server(config, rubric, turns, folder / "replies-0")

    before, sent = first(), server.asked
    again()
    known = {
        "answers": len(turns),
        "different grades": len(np.unique(before.scores)),
        "without a grade": len(before.failures),
        "sent at first": sent,
        "sent again": server.asked - sent,
    }
    contenders = [
        Contender("from the cache", again, _scores),
        Contender("asked for", first, _scores),
        Contender("the most it may take", lambda: Timed(MOST_SECONDS, None), lambda _: None),
    ]
    return race(f"{len(turns)} grades by a server", contenders, repeats, known, {"the most it may take": 1.0}, tick)


def _here(base: Loaded, rubric: str, turns: Sequence[Turn], repeats: int, tick: Callable[[str], None]) -> Case:
    chat, pad = chat_of(base), int(base.tokenizer.pad_token_id)
    prompts = [chat.encode_prompt(judge_prompt(rubric, turn)) for turn in turns]
    contenders = [
        Contender("judged", lambda: grade(base.model, chat, rubric, turns), lambda _: None),
        Contender("floor", lambda: floor(base.model, prompts, DEFAULT_TOKEN_BUDGET, pad), lambda _: None),
    ]
    return race(f"{len(turns)} grades by a model here", contenders, repeats, facts(prompts, "answers"), tick=tick)


def _scores(grades: Grades) -> FloatArray:
    return grades.scores[None]

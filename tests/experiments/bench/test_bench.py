import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from wellworn.data.errors import InputError
from wellworn.experiments.bench import generate, judge, mediate, shift
from wellworn.experiments.bench import run as bench_run
from wellworn.experiments.bench.memory import measure
from wellworn.experiments.bench.peers import Peer, _readable_by_older
from wellworn.experiments.bench.rivals import floor, one_at_a_time
from wellworn.experiments.bench.timing import Contender, Timed, race
from wellworn.experiments.bench.workload import answers_to_one_prompt, chat_of, contrasts, every_answer, rollouts
from wellworn.experiments.cli import main
from wellworn.lora.models import Loaded, load, resolve
from wellworn.probes.reading.capture import Spec, read

VECTORS = np.random.default_rng(0).normal(size=(5, 3, 8))


@pytest.fixture
def base(tiny_model: Path) -> Loaded:
    return load(resolve(str(tiny_model)), "float32")


def test_contenders_take_turns_after_a_round_that_warms_up() -> None:
    order: list[str] = []
    case = race("t", [Contender(name, lambda name=name: order.append(name), lambda _: None) for name in "ab"], repeats=3, facts={})
    assert order == ["a", "b"] * 4
    assert [len(outcome.seconds) for outcome in case.outcomes] == [3, 3]


def test_a_ratio_is_taken_within_each_round() -> None:
    ours, theirs = itertools.cycle([1.0, 10.0]), itertools.cycle([2.0, 30.0])
    contenders = [
        Contender("ours", lambda: Timed(next(ours), None), lambda _: None),
        Contender("theirs", lambda: Timed(next(theirs), None), lambda _: None),
    ]
    row = race("t", contenders, repeats=4, facts={}, targets={"theirs": 1.5}).to_json()["contenders"][1]
    assert row["seconds"] == [30.0, 2.0, 30.0, 2.0]
    assert (row["ratio"], row["ratio_low"], row["ratio_high"], row["target"]) == (2.5, 2.0, 3.0, 1.5)


def test_seconds_are_those_that_the_work_took() -> None:
    (outcome,) = race("t", [Contender("sleep", lambda: time.sleep(0.02), lambda _: None)], repeats=2, facts={}).outcomes
    assert all(0.02 <= seconds < 0.2 for seconds in outcome.seconds)


@pytest.mark.parametrize(
    ("other", "exact", "void"),
    [
        (VECTORS * (1 + 1e-6), True, None),
        (VECTORS * 1.001, True, "relative error"),
        (VECTORS * 1.001, False, None),
        (np.random.default_rng(1).normal(size=VECTORS.shape), True, "cosine"),
        (VECTORS[:4], True, "shape"),
    ],
)
def test_what_does_not_agree_is_void(other: np.ndarray, exact: bool, void: str | None) -> None:
    case = race("t", [Contender("ours", lambda: VECTORS), Contender("theirs", lambda: other, exact=exact)], repeats=1, facts={})
    assert case.outcomes[0].void is None
    assert (case.outcomes[1].void is None) if void is None else (void in str(case.outcomes[1].void))


def test_a_contender_may_be_held_against_something_else() -> None:
    other = Contender("theirs", lambda: 2 * VECTORS, against=lambda: 2 * VECTORS)
    assert race("t", [Contender("ours", lambda: VECTORS), other], repeats=1, facts={}).outcomes[1].void is None


def test_rollouts_are_varied_and_of_the_lengths_asked_for(base: Loaded) -> None:
    rows = rollouts(chat_of(base), 20, 60, 400)
    assert all(60 <= len(row) <= 400 for row in rows)
    assert len({row.input_ids for row in rows}) == 20
    assert len({len(row) for row in rows}) > 10
    assert rollouts(chat_of(base), 20, 60, 400) == rows
    with pytest.raises(InputError, match="of 2 to 3 tokens, 5 were asked for"):
        rollouts(chat_of(base), 5, 2, 3)


def test_ten_answers_share_their_prompt(base: Loaded) -> None:
    rows = answers_to_one_prompt(chat_of(base), 3)
    assert len(rows) == 30
    for k in range(3):
        ten = rows[10 * k : 10 * k + 10]
        assert len({row.input_ids[: row.spans["response"][0]] for row in ten}) == 1
        assert len({row.input_ids for row in ten}) == 10


def test_every_answer_is_from_the_library() -> None:
    turns = every_answer()
    assert len({(turn.question, turn.answer) for turn in turns}) == len(turns) > 1000


def test_contrasts_come_in_pairs(base: Loaded) -> None:
    rows = contrasts(chat_of(base), "pirate", 2, 3)
    assert len(rows) == 12
    assert rows[0].input_ids != rows[3].input_ids


def test_the_loop_reads_what_capture_reads_and_the_floor_runs_as_deep(base: Loaded) -> None:
    rows = rollouts(chat_of(base), 6, 60, 400)
    loop = one_at_a_time(base.model, rows, range(4), ["response"])
    ours = read(base.model, rows, Spec(spans=["response"])).states
    assert ((loop - ours)[:, :-1].norm(dim=-1) <= 1e-4 * ours[:, :-1].norm(dim=-1)).all()
    ran: list[int] = []
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(base.model.model.layers)]
    ids = [row.input_ids for row in rows]
    floor(base.model, ids, 10_000, pad_id=0, layers=2)
    floor(base.model, ids, 10_000, pad_id=0)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 0, 1, 2, 3]


def test_shift_agrees_between_all_ways_to_read_it(base: Loaded) -> None:
    made = list(shift.cases(base, 8, 1, lambda _: None, lengths=(60, 400)))
    assert [case.facts["adapters"] for case in made] == [1, 8]
    for case in made:
        assert [outcome.name for outcome in case.outcomes] == ["shift", "loop", "per-row adapters (PEFT)"]
        assert all(outcome.void is None for outcome in case.outcomes)
        assert all(outcome.error is not None and outcome.error < 1e-3 for outcome in case.outcomes)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tiny_model: Path) -> None:
    small, large = (measure("capture", str(tiny_model), rows, 60, 400, 4) for rows in (4, 16))
    assert 0 < small < 500 * 2**20
    assert large < 500 * 2**20
    with pytest.raises(InputError, match="memory of capture"):
        measure("capture", str(tiny_model), 5, 2, 3, 4)


def test_arms_above_a_layer_say_what_full_passes_say(base: Loaded) -> None:
    (case,) = mediate.cases(base, 8, 1, lambda _: None, lengths=(60, 400))
    ours, floor, full = case.outcomes
    assert (ours.void, full.void) == (None, None)
    assert full.error is not None
    assert full.error < 1e-4
    # The floor does no work whose result could be compared.
    assert floor.cosine is None
    assert floor.median > 0
    assert case.facts["arms"] == mediate.INTERVENTIONS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "may be capture, shift, mediate, generate, judge, got 'nothing'"),
        (["capture", "--repeats", "4"], "may be 5 or more, got 4"),
        (["shift", "--rows", "3"], "may be 8 or more, got 3"),
        (["shift", "--json", "/nowhere/at/all.json"], "the folder /nowhere/at does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "load", None)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_worker_that_ends_says_why(tmp_path: Path) -> None:
    import subprocess
    import sys

    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", "raise SystemExit('no such library')"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        process.wait()
    with pytest.raises(InputError, match="worker of repeng ended: no such library"):
        Peer("repeng", process, log).read(["a"], [0])


def test_a_saved_model_is_made_readable_by_older_libraries(tmp_path: Path, base: Loaded) -> None:
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    _readable_by_older(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == "float32"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = load(resolve(str(tmp_path)), "float32").model
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), base.model.parameters(), strict=True))


def test_answers_of_all_contenders_are_the_same_tokens(base: Loaded) -> None:
    many, mixed = generate.cases(base, 24, 1, lambda _: None, tokens=6)
    assert [outcome.name for outcome in many.outcomes] == ["generate", "loop", "loop, 256 rows at a time"]
    for case in (many, mixed):
        assert all((outcome.error, outcome.void) == (0.0, None) for outcome in case.outcomes)
    assert (many.facts["prompts"], mixed.facts["prompts"]) == (24, 6)


def test_grades_that_were_had_are_not_asked_for_again(base: Loaded) -> None:
    again, here = judge.cases(base, 8, 1, lambda _: None, remembered=30)
    assert again.facts["answers"] == again.facts["sent at first"] == 30
    assert (again.facts["sent again"], again.facts["without a grade"]) == (0, 0)
    # They vary, and are the same to the last bit however they were had.
    assert int(again.facts["different grades"]) > 25
    assert [(outcome.name, outcome.error) for outcome in again.outcomes[:2]] == [("from the cache", 0.0), ("asked for", 0.0)]
    limit = again.to_json()["contenders"][2]
    assert (limit["seconds"], limit["target"]) == ([judge.MOST_SECONDS], 1.0)
    assert [outcome.name for outcome in here.outcomes] == ["judged", "floor"]
    assert here.facts["answers"] == 8
    assert all(outcome.median > 0 for outcome in here.outcomes)

"""A trait is written by a server on the loopback, whatever it sends, and nothing is paid for twice."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import Call, finished
from tests.experiments.test_cli import Write
from tests.experiments.traits.writers import honestly, said, wanted, writing
from tests.probes.scoring.servers import Request, Server, behaving, sends
from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.mixtures import fingerprint, trait_turns
from wellworn.data.schema import SPLITS
from wellworn.data.writers import export_files
from wellworn.experiments.traits.synthesis import prompts
from wellworn.probes.scoring import retries

KEY = "sk-test-4f9d1c7e8a2b"
DESCRIPTION = 'Grumbles: "everything was better once" # and helps\nall the same; <b>no</b> menace.'
# Twelve pairs, a rubric, a held-out prompt, and the bank's answers to train and to evaluate on.
ALL = 12 + 1 + 1 + 72 + 48


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def given(server: Server, tmp_path: Path, *more: object) -> list[object]:
    name = ["grumbling", "--description", DESCRIPTION, "--url", server.url, "--model", "writer"]
    return ["traits", "synthesize", *name, "--to", tmp_path / "mine", "--runs-dir", tmp_path / "runs", *more]


def sent(server: Server) -> Counter[str]:
    """How often each request was sent."""
    return Counter(json.dumps(ask, sort_keys=True) for ask in server.asks)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def is_answer(request: Request) -> bool:
    return '{"answer"' in wanted(request)


def test_a_trait_is_written_checked_and_never_asked_for_again(wellworn: Call, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "grumbling"
    with behaving(writing()) as server:
        first = wellworn(*given(server, tmp_path, "--price", "1,2"))
        assert first.code == 0, first.err
        assert sent(server).total() == len(sent(server)) == ALL
        assert "72 of 72 train answers, 48 of 48 evaluate answers" in first.out
        assert "all fit for use" in first.out
        assert re.search(rf"asked {ALL}, kept before 0; [\d,]+ tokens read and [\d,]+ written; 0.0\d+ dollars", first.out)
        assert "[  5/5] evaluate answers" in first.out
        again = wellworn(*given(server, tmp_path))
        assert (again.code, len(server.asks)) == (0, ALL)
        assert "nothing is missing" in again.out
        # From what is kept, the same folder to the byte.
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        shutil.rmtree(folder)
        assert f"asked 0, kept before {ALL}; 0 tokens" in wellworn(*given(server, tmp_path)).out
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        asked = [ask["messages"][-1]["content"] for ask in server.asks]
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert set(before) == {"trait.yaml", "examples.jsonl", "CARD.md", "provenance.jsonl", "synthesis.json"}
    trait = load_trait(str(folder))
    assert (trait.name, trait.description, trait.questions) == ("grumbling", DESCRIPTION, "everyday")
    assert [len(trait.split(split)) for split in SPLITS] == [72, 120, 48]
    assert len(trait.contrast_pairs) == 12
    assert not trait.lacks
    # Neither a contrast prompt nor the held-out one was shown to whoever wrote an answer.
    hidden = [str(trait.system_prompt), *(text for pair in trait.contrast_pairs for text in (pair.positive, pair.negative))]
    assert not [text for text in asked if any(prompt in text for prompt in hidden)]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything


def test_every_text_has_its_origin_and_data_are_the_same_without(wellworn: Call, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "grumbling"
    with behaving(writing()) as server:
        assert wellworn(*given(server, tmp_path)).code == 0
        requests = {
            hashlib.sha256(json.dumps([["user", a["messages"][0]["content"]]], ensure_ascii=False, separators=(",", ":")).encode())
            .hexdigest()[:16]: a["seed"]
            for a in server.asks
        }  # fmt: skip
    origins = rows(folder, "provenance.jsonl")
    bank = [row.id for row in load_bank("everyday") if row.split != "extract"]
    assert [each["id"] for each in origins] == [*(f"contrast_pairs.{i}" for i in range(12)), "rubric", "system_prompt", *bank]
    assert {each["model"] for each in origins} == {"writer"}
    assert {each["prompts"] for each in origins} == {prompts.VERSION}
    assert {each["prompt"]: each["seed"] for each in origins} == requests
    trait = load_trait(str(folder))
    prints = {split: fingerprint(trait_turns(trait, trait.examples, split)) for split in ("train", "evaluate")}
    documents = export_files(trait, "persona-vectors", {})
    for name in ("provenance.jsonl", "synthesis.json"):
        (folder / name).unlink()
    bare = load_trait(str(folder))
    assert bare == trait
    assert prints == {split: fingerprint(trait_turns(bare, bare.examples, split)) for split in ("train", "evaluate")}
    assert documents == export_files(bare, "persona-vectors", {})
    assert wellworn("traits", "check", folder).code == 0
    assert wellworn("traits", "export", folder, "--format", "preferences", "--to", tmp_path / "out").code == 0
    imported = tmp_path / "again"
    sources = [tmp_path / "out" / split / "preferences.jsonl" for split in ("train", "evaluate")]
    assert wellworn("traits", "import", sources[0], "--evaluation", sources[1], "--to", imported).code == 0
    back = load_trait(str(imported))
    assert prints == {split: fingerprint(trait_turns(back, back.examples, split)) for split in ("train", "evaluate")}


def test_a_model_is_trained_on_it(wellworn: Call, tmp_path: Path, tiny_study: Write) -> None:
    with behaving(writing()) as server:
        assert wellworn(*given(server, tmp_path)).code == 0
    trait = str(tmp_path / "mine" / "grumbling")
    runs = finished(tiny_study(runs=[{"arm": "sft", "trait": trait}], mediate=None), tmp_path)
    [run, *_] = json.loads((runs / "tiny" / "summary.json").read_text())["runs"]
    assert (run["arm"], run["trait"]) == ("sft", "grumbling")
    assert set(run["effect"]) == {"value", "low", "high"}


def test_questions_of_its_own_are_disjoint_and_answered_both_ways(wellworn: Call, tmp_path: Path) -> None:
    copied: list[str] = []

    def copies_questions(request: Request, text: str) -> None:
        """Every sixth question is one that was written before, in other letters."""
        if '{"question"' in wanted(request):
            copied.append(text)
            text = copied[0].upper().replace("QUESTION", "question") if len(copied) % 6 == 0 else text
        honestly(request, text)

    with behaving(writing(copies_questions)) as server:
        done = wellworn(*given(server, tmp_path, "--questions", "12/5/6", "--pairs", 6, "--concurrency", 1))
    assert done.code == 0, done.err
    assert re.search(r"of no use: [4-9] duplicate, such as: it is nearly the same as another question", done.out)
    folder = tmp_path / "mine" / "grumbling"
    trait = load_trait(str(folder))
    assert (trait.questions, [len(trait.split(split)) for split in SPLITS]) == (None, [12, 5, 6])
    assert len({row.question.lower() for row in trait.examples}) == 23
    assert all(row.negative for row in trait.examples)
    assert all((row.positive is None) == (row.split == "extract") for row in trait.examples)
    fields = Counter(each["field"] for each in rows(folder, "provenance.jsonl"))
    assert fields == {"contrast_pairs": 6, "rubric": 1, "system_prompt": 1, "question": 23, "negative": 23, "positive": 18}


def test_a_text_that_the_trait_does_not_hold_has_no_origin(wellworn: Call, tmp_path: Path) -> None:
    """One question has no plain answer, and another no answer that shows the trait."""
    asked: list[str] = []

    def behave(request: Request, text: str) -> None:
        if '{"question"' in wanted(request):
            asked.append(json.loads(text)["question"])
        plainly = "Answer as a helpful assistant does" in wanted(request)
        refused = is_answer(request) and asked[1 if plainly else 3] in wanted(request)
        honestly(request, json.dumps({"answer": "I cannot create that."}) if refused else text)

    with behaving(writing(behave)) as server:
        done = wellworn(*given(server, tmp_path, "--questions", "9/2/3", "--pairs", 6, "--concurrency", 1))
    assert done.code == 0, done.err
    folder = tmp_path / "mine" / "grumbling"
    trait = load_trait(str(folder))
    assert [len(trait.split(split)) for split in SPLITS] == [7, 2, 3]
    of_rows = {
        (each["id"], each["field"]) for each in rows(folder, "provenance.jsonl") if each["field"] in ("question", "negative", "positive")
    }
    assert of_rows == {(row.id, field) for row in trait.examples for field in ("question", "negative", "positive") if getattr(row, field)}


# How a reply may be wrapped and still be read.
READABLE: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f"```json\n{text}\n```",
    lambda text: f"Certainly! Here is the object:\n\n{text}\n\nLet me know if it should be longer.",
    lambda text: f'<think>\nThey want {{"answer": …}}.\n</think>\n\n{text}',
    lambda text: json.dumps(json.loads(text), indent=2),
]


def with_words(text: str, words: str) -> str:
    return json.dumps({key: f"{value} {words}" for key, value in json.loads(text).items()})


# What is no use: by the kind that it is counted under.
NO_USE: list[tuple[str, Callable[[Request, str], None]]] = [
    ("no JSON", lambda request, text: said(text[: len(text) // 2])(request, text)),
    ("cut off", lambda request, text: said(text[: len(text) // 2], choice={"finish_reason": "length"})(request, text)),
    ("refusal", lambda request, text: said("I'm sorry, but I can't help with that.")(request, text)),
    ("refusal", lambda request, text: said(json.dumps(dict.fromkeys(json.loads(text), "I cannot write that.")))(request, text)),
    ("refusal", lambda request, text: said(None, message={"refusal": "No."})(request, text)),
    ("content filter", lambda request, text: said("", choice={"finish_reason": "content_filter"})(request, text)),
    ("empty", lambda request, text: said("")(request, text)),
    ("not json", lambda request, _: sends("<html>Bad gateway</html>")(request)),
    ("malformed", lambda request, _: sends('{"choices": [{"message": 7}]}')(request)),
    ("no choices", lambda request, text: said(text, choices=[])(request, text)),
    ("too large", lambda request, text: said(with_words(text, "x" * 3_000_000))(request, text)),
    ("length", lambda request, text: said(with_words(text, "x" * 500_000))(request, text)),
    ("length", lambda request, text: said(with_words(text, "and on " * 200))(request, text)),
    ("other JSON", lambda request, text: said(json.dumps({"text": text}))(request, text)),
    ("other JSON", lambda request, text: said(f"{text}\n{text}")(request, text)),
    ("no JSON", lambda request, text: said('{"a":' * 50_000)(request, text)),
    ("control characters", lambda request, text: said(with_words(text, "\x1b[2J\x07"))(request, text)),
    ("markup", lambda request, text: said(with_words(text, "<|im_end|><|im_start|>system"))(request, text)),
    ("markup", lambda request, text: said(with_words(text, "<script>alert(1)</script>"))(request, text)),
]


def test_what_is_no_use_is_asked_for_again_and_counted_by_kind(wellworn: Call, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    expected: Counter[str] = Counter()

    def behave(request: Request, text: str) -> None:
        """The first try of most pieces is no use, in every way in turn; what follows is wrapped in every readable way."""
        with request.server.lock:
            head = wanted(request).split("An earlier try")[0].split("Reply with one JSON")[0].strip()
            number = list(seen).index(head) if head in seen else len(seen)
            seen[head] += 1
        if seen[head] == 1 and number < 4 * len(NO_USE):
            kind, send = NO_USE[number % len(NO_USE)]
            expected[kind] += 1
            send(request, text)
        else:
            honestly(request, READABLE[number % len(READABLE)](text))

    with behaving(writing(behave)) as server:
        done = wellworn(*given(server, tmp_path, "--concurrency", 1))
    assert done.code == 0, done.err
    assert len(seen) == ALL
    assert len(server.asks) == ALL + 4 * len(NO_USE)
    assert {kind: int(count) for count, kind in re.findall(r"of no use: (\d+) ([\w ]+), such as: \S", done.out)} == expected
    told = [ask["messages"][0]["content"] for ask in server.asks if "An earlier try" in ask["messages"][0]["content"]]
    assert any("it was cut off before its end" in text for text in told)
    assert any("control characters" in text or "characters that are no text" in text for text in told)
    assert not any("\x1b" in text or "<script" in text or "im_end" in text for text in told)
    written = b"".join(path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert not [bad for bad in (b"\x1b", b"u001b", b"<script", b"im_start", b"sorry") if bad in written]


def test_yaml_that_a_server_writes_is_text(wellworn: Call, tmp_path: Path) -> None:
    bomb = """--- !!python/object/apply:os.system ['true'] a: &a [*a, *a] # no: 'yes' "no" @`%"""

    def behave(request: Request, text: str) -> None:
        own = f"{bomb} {' '.join(str(request.ask['seed'] + i) for i in range(40))}"
        honestly(request, text if is_answer(request) or '"rubric"' in wanted(request) else with_words(text, own))

    with behaving(writing(behave)) as server:
        done = wellworn(*given(server, tmp_path))
    assert done.code == 0, done.err
    assert all(bomb in pair.positive for pair in load_trait(str(tmp_path / "mine" / "grumbling")).contrast_pairs)


def test_a_model_that_writes_nonsense_costs_one_part_and_one_message(wellworn: Call, tmp_path: Path) -> None:
    with behaving(writing(said("the the of of a a"))) as server:
        done = wellworn(*given(server, tmp_path))
        assert done.code == 2
        assert "not written, since there is not enough for a trait yet" in done.err
        assert "0 of 12 contrast pairs, 6 at least; missing: no JSON 12" in done.err
        assert "rubric: not asked for yet held-out prompt: not asked for yet train answers: not asked for yet" in done.err
        assert f"every reply is kept in {tmp_path / 'runs' / 'replies.sqlite'}; the same command goes on from there" in done.err
        assert len(server.asks) == 4 * 12
        assert not (tmp_path / "mine").exists()
        # The same command draws others, so many again and no more.
        assert wellworn(*given(server, tmp_path)).code == 2
        assert sent(server).total() == len(sent(server)) == 8 * 12


def test_a_few_lost_answers_are_named_and_asked_for_again(wellworn: Call, tmp_path: Path) -> None:
    """A server that never answers three questions, and one day does."""
    folder = tmp_path / "mine" / "grumbling"
    bank = load_bank("everyday")
    unloved = [row.question for row in bank if row.id in ("train-05", "train-50", "evaluate-03")]
    healed = False

    def behave(request: Request, text: str) -> None:
        refused = not healed and any(question in wanted(request) for question in unloved)
        honestly(request, json.dumps({"answer": "I cannot create that."}) if refused else text)

    with behaving(writing(behave)) as server:
        first = wellworn(*given(server, tmp_path))
        assert first.code == 0, first.err
        assert "70 of 72 train answers, 47 of 48 evaluate answers" in first.out
        assert "missing: train answers: refusal 2; the same command asks again" in first.out
        assert "Missing: train answers: refusal 2; evaluate answers: refusal 1." in (folder / "CARD.md").read_text()
        assert len(load_trait(str(folder)).split("train")) == 70
        count = len(server.asks)
        assert count == ALL - 3 + 3 * 4
        # Somebody's own words are not overwritten.
        (folder / "NOTES.md").write_text("read on Monday")
        kept = {path.name: path.read_bytes() for path in folder.iterdir()}
        refusal = wellworn(*given(server, tmp_path))
        assert refusal.code == 2
        assert f"{folder}: NOTES.md: not as this command left it" in refusal.err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
        (folder / "NOTES.md").unlink()
        assert len(server.asks) == count
        healed = True
        last = wellworn(*given(server, tmp_path))
        assert last.code == 0, last.err
        assert len(server.asks) == count + 3
        assert "72 of 72 train answers, 48 of 48 evaluate answers" in last.out
        assert "missing" not in last.out
    assert sorted(path.name for path in folder.parent.iterdir()) == ["grumbling"]
    assert [len(load_trait(str(folder)).split(split)) for split in SPLITS] == [72, 120, 48]


def test_answers_that_share_phrases_with_training_are_written_anew(wellworn: Call, tmp_path: Path) -> None:
    phrases: list[str] = []

    def parrots(request: Request, text: str) -> None:
        """Evaluate answers begin as a train answer does, until they are told not to."""
        if is_answer(request):
            if "novelist" not in wanted(request):
                phrases.append(json.loads(text)["answer"])
            elif "An earlier try" not in wanted(request):
                answer = json.loads(text)["answer"].split()
                begin = phrases[len(answer) % len(phrases)].rstrip(".").split()[:8]
                text = json.dumps({"answer": " ".join([*begin, *answer[8:]])})
        honestly(request, text)

    with behaving(writing(parrots)) as server:
        done = wellworn(*given(server, tmp_path))
        told = [ask["messages"][0]["content"] for ask in server.asks if "say these in other words" in ask["messages"][0]["content"]]
    assert done.code == 0, done.err
    assert len(told) == 48
    assert all(re.search(r"other words: “\S+ \S+ \S+ \S+”", text) for text in told)
    assert "of no use: 48 shared phrases" in done.out


def test_money_is_one_budget_for_all_that_a_trait_costs(wellworn: Call, tmp_path: Path) -> None:
    with behaving(writing()) as server:
        limit = ["--price", "10,10", "--concurrency", 1]
        first = wellworn(*given(server, tmp_path, *limit, "--most-cost", 0.05))
        assert first.code == 2
        count = len(server.asks)
        assert 14 < count < 60
        read = sum(len(ask["messages"][0]["content"].split()) for ask in server.asks)
        assert 0.03 < 10 * read / 1e6 < 0.05
        assert "12 of 12 contrast pairs rubric held-out prompt" in first.err
        assert re.search(r"\d+ of 72 train answers, 54 at least; missing: most cost \d+", first.err)
        assert "evaluate answers: not asked for yet" in first.err
        assert "the same command with a higher --most-cost than 0.05 goes on from there" in first.err
        assert not (tmp_path / "mine").exists()
        # What was paid before counts.
        assert wellworn(*given(server, tmp_path, *limit, "--most-cost", 0.05)).code == 2
        assert len(server.asks) == count
        last = wellworn(*given(server, tmp_path, *limit, "--most-cost", 5))
        assert last.code == 0, last.err
        assert sent(server).total() == len(sent(server)) == ALL
        assert f"asked {ALL - count}, kept before {count};" in last.out


def test_what_later_parts_cost_before_is_spent_before_an_earlier_one_is_asked_for_again(wellworn: Call, tmp_path: Path) -> None:
    """Two train answers are missing, and the evaluate answers behind them are paid for."""
    unloved = [row.question for row in load_bank("everyday") if row.id in ("train-05", "train-50")]

    def behave(request: Request, text: str) -> None:
        refused = any(question in wanted(request) for question in unloved)
        honestly(request, json.dumps({"answer": "I cannot create that."}) if refused else text)

    with behaving(writing(behave)) as server:
        first = wellworn(*given(server, tmp_path, "--price", "10,10"))
        assert first.code == 0, first.err
        count, [spent] = len(server.asks), map(float, re.findall(r"; ([\d.]+) dollars", first.out))
        # Less than that is left, and more than all but the evaluate answers cost.
        again = wellworn(*given(server, tmp_path, "--price", "10,10", "--most-cost", 0.95 * spent))
        assert (again.code, len(server.asks)) == (0, count), again.err
    assert f"asked 0, kept before {count};" in again.out
    assert f"0.0000 dollars, {spent:.4f} with what was kept before" in again.out
    assert f"missing: train answers: most cost 2; the same command with a higher --most-cost than {0.95 * spent:g} asks again" in again.out


def test_a_folder_that_is_changed_while_answers_are_asked_for_is_left_alone(wellworn: Call, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "grumbling"
    healed = False

    def behave(request: Request, text: str) -> None:
        [question] = [row.question for row in load_bank("everyday") if row.id == "train-05"]
        if question in wanted(request):
            if healed:
                (folder / "trait.yaml").write_text("somebody's own words")
            else:
                text = json.dumps({"answer": "I cannot create that."})
        honestly(request, text)

    with behaving(writing(behave)) as server:
        assert wellworn(*given(server, tmp_path)).code == 0
        healed = True
        done = wellworn(*given(server, tmp_path))
        count = len(server.asks)
        assert (done.code, (folder / "trait.yaml").read_text()) == (2, "somebody's own words")
        assert f"{folder}: trait.yaml: not as this command left it" in done.err
        shutil.rmtree(folder)
        assert "72 of 72 train answers" in wellworn(*given(server, tmp_path)).out
        assert len(server.asks) == count


def test_the_pace_holds_between_the_parts_too(wellworn: Call, tmp_path: Path) -> None:
    with behaving(writing()) as server:
        assert wellworn(*given(server, tmp_path, "--pairs", 6, "--questions", "3/1/3", "--requests-per-minute", 600)).code == 0
        # Eleven parts: without a wait between them, a tenth of a second less for most.
        assert server.times[-1] - server.times[0] > 0.93 * 0.1 * (len(server.times) - 1)


def test_killed_at_any_moment_only_the_rest_is_asked(wellworn: Call, tmp_path: Path) -> None:
    released = False

    def stalls(request: Request, text: str) -> None:
        """Answer forty requests, and no more until released."""
        if not released and len(request.server.asks) > 40:
            request.server.closing.wait(20)
            request.close_connection = True
            return
        honestly(request, text)

    with behaving(writing(stalls)) as server:
        command = [sys.executable, "-m", "wellworn", *map(str, given(server, tmp_path, "--concurrency", 4))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
        while len(server.asks) < 44 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)  # what was answered is on its way to the disk
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "mine").exists()
        assert len(server.asks) == 44
        released = True
        done = wellworn(*given(server, tmp_path))
        assert done.code == 0, done.err
        assert f"asked {ALL - 40}, kept before 40;" in done.out
        twice = {text for text, times in sent(server).items() if times > 1}
        assert len(twice) == 4
    assert len(load_trait(str(tmp_path / "mine" / "grumbling")).split("evaluate")) == 48


def test_a_failure_before_a_reply_is_not_asked_for_again(wellworn: Call, tmp_path: Path) -> None:
    seen: set[str] = set()

    def behave(request: Request, text: str) -> None:
        """Fail the first try of each piece; failures are not kept."""
        first = wanted(request) not in seen
        seen.add(wanted(request))
        said(None, message={"refusal": "No."})(request, text) if first else honestly(request, text)

    with behaving(writing(behave)) as server:
        assert wellworn(*given(server, tmp_path)).code == 0
        assert len(server.asks) == 2 * ALL
        shutil.rmtree(tmp_path / "mine")
        done = wellworn(*given(server, tmp_path))
        assert done.code == 0, done.err
        assert len(server.asks) == 2 * ALL


def test_what_is_in_the_way_is_left_alone(wellworn: Call, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "grumbling"
    folder.mkdir(parents=True)
    (folder / "trait.yaml").write_text("name: grumbling\n")
    with behaving(writing()) as server:
        assert f"{folder}: exists already, and this command did not write it" in wellworn(*given(server, tmp_path)).err
        (folder / "synthesis.json").write_text('{"request": [], "missing": {}}')
        assert f"{folder}: exists already, and this command did not write it" in wellworn(*given(server, tmp_path)).err
        assert (folder / "trait.yaml").read_text() == "name: grumbling\n"
        shutil.rmtree(folder)
        folder.write_text("a file")
        assert f"{folder}: exists already" in wellworn(*given(server, tmp_path)).err
        folder.unlink()
        assert not server.asks
        assert wellworn(*given(server, tmp_path, "--pairs", 6, "--questions", "4/1/3")).code == 0
        count = len(server.asks)
        other = wellworn(*given(server, tmp_path, "--pairs", 8, "--questions", "4/1/3", "--seed", 3))
        assert "made with pairs 6 instead of 8, seed 0 instead of 3; nothing was written. Choose another --to" in other.err
        assert len(server.asks) == count


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--questions", "everyone"], "--questions: may be a bank (everyday), or how many questions of its own"),
        (["--questions", "72/24"], "got '72/24'"),
        (["--questions", "72/24/2"], "3 or more"),
        (["--price", "cheap"], "--price: dollars per million tokens read, and written, such as 0.15,0.6; got 'cheap'"),
        (["--price", "1,-1"], "must be 0 or more"),
        (["--most-cost", "1"], "most_cost needs a price"),
        (["--url", "ftp://here"], "must be the address of a server"),
        (["--description", " "], "description: must not be blank"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_asked(wellworn: Call, tmp_path: Path, more: list[str], words: str) -> None:
    with behaving(writing()) as server:
        done = wellworn(*given(server, tmp_path, *more))
        assert (done.code, len(server.asks)) == (2, 0)
    assert words in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pirate", "neutral", "json", "Grumbling", "../up"])
def test_a_name_that_is_taken_or_none(wellworn: Call, tmp_path: Path, name: str) -> None:
    with behaving(writing()) as server:
        arguments = given(server, tmp_path)
        done = wellworn(*arguments[:2], name, *arguments[3:])
        assert (done.code, len(server.asks)) == (2, 0)
    assert "call yours something else" in done.err


def test_a_server_that_refuses_every_request_is_quoted(wellworn: Call, tmp_path: Path) -> None:
    with behaving(sends('{"error": "seed: unknown field"}', 400)) as server:
        done = wellworn(*given(server, tmp_path))
        assert len(server.asks) <= 12  # it would refuse them again
    assert done.code == 2
    assert '400: {"error": "seed: unknown field"}; see what it refuses' in done.err


def test_a_model_that_is_called_by_a_path_of_a_machine_is_called_by_its_name(wellworn: Call, tmp_path: Path) -> None:
    with behaving(writing()) as server:
        small = ["--pairs", 6, "--questions", "4/1/3", "--model", "/home/me/models/writer-7b"]
        assert wellworn(*given(server, tmp_path, *small)).code == 0
        assert {ask["model"] for ask in server.asks} == {"/home/me/models/writer-7b"}
    written = {path.name: path.read_text() for path in (tmp_path / "mine" / "grumbling").iterdir()}
    assert not [name for name, text in written.items() if "/home/me" in text]
    assert all("writer-7b" in written[name] for name in ("CARD.md", "provenance.jsonl", "synthesis.json"))


def test_a_server_that_goes_away_ends_it_with_what_was_written_kept(wellworn: Call, tmp_path: Path) -> None:
    def behave(request: Request, text: str) -> None:
        if len(request.server.asks) > 30:
            sends('{"error": "no such key"}', 401)(request)
        else:
            honestly(request, text)

    with behaving(writing(behave)) as server:
        done = wellworn(*given(server, tmp_path, "--concurrency", 1))
    assert done.code == 2
    assert "set $OPENAI_API_KEY to a key that this server takes (unauthorized × 5 in a row: " in done.err
    assert "; what was written is kept in" in done.err
    assert KEY not in done.err + done.out
    with behaving(writing()) as server:
        assert "kept before 30;" in wellworn(*given(server, tmp_path)).out
        assert len(server.asks) == ALL - 30

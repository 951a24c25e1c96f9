"""The public Python face: its examples, its errors, and that it gives the numbers of a study."""

import doctest
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import wellworn as ww
from tests.experiments.conftest import finished, stages_of
from tests.experiments.synthetic import facts, run
from tests.experiments.synthetic import study as finished_study
from tests.tiny import save_tiny
from wellworn import personas
from wellworn.data.catalog import load_trait
from wellworn.data.files import read_json
from wellworn.data.saving import write_json
from wellworn.experiments.bench.shift import random_adapters
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.stages import persona_space
from wellworn.experiments.stages.loaded_space import PersonaSpace

# So alike at their ends that even a model of random weights has a direction for them.
LOUD = [
    (f"{start} SHOUT AT ME, ALWAYS!", f"{start} Please be as quiet as a mouse.")
    for start in ("You are a baker.", "Answer the user.", "Today is Monday.", "We are at sea.")
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ww.Model:
    return ww.load(tiny_model, "float32")


@pytest.fixture(scope="module")
def adapter(model: ww.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapters(model.base, tmp_path_factory.mktemp("adapters"), 1, lower=1)["a0"]


@pytest.fixture(scope="module")
def space(model: ww.Model) -> PersonaSpace:
    return ww.space(model, {"loud": LOUD, "pirate": "pirate"})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    write_json(folder / "summary.json", summarise(finished_study(run(facts()))).to_json())
    return folder


@pytest.mark.parametrize("name", [name for name in ww.__all__ if inspect.isfunction(getattr(ww, name))])
def test_every_function_has_an_example_that_holds(name: str, tiny_model: Path, adapter: Path, study: Path) -> None:
    given = {"ww": ww, "folder": tiny_model, "adapter": adapter, "pairs": LOUD, "study": study}
    [example] = doctest.DocTestFinder(recurse=False).find(getattr(ww, name), name, globs=given)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert tried
    assert not failed, "".join(said)


def test_a_study_and_the_face_give_the_same_numbers(
    tiny_study: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, names = persona_space.estimate, ["pirate", "pessimistic", "poetic"]

    def found(*args: Any) -> Any:
        each = estimate(*args)
        return replace(each, found=np.ones_like(each.found))

    # A random model has no personas, so whatever was estimated counts as found.
    for module in (persona_space, personas):
        monkeypatch.setattr(module, "estimate", found)
    mediation = {"draws": 5, "matched": False, "doses": [], "surface": 0, "references": "headline", "everywhere": False}
    train = {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 16, "learning_rate": 2e-2}}
    runs, asked = [{"arm": "sft", "trait": "pirate"}], {"contrast_pairs": 6, "extract_questions": 8, "evaluate_questions": None}
    study = tiny_study(library=names, runs=runs, mediate=mediation, train=train, **asked)
    folder = finished(study, tmp_path)
    [measured] = read_json(folder / "tiny" / "summary.json")["runs"]
    tuned, plain = (stages_of(folder, "train")[f"train sft {name} (seed 0)"] / "adapter" for name in ("pirate", "neutral"))

    model = ww.load(tiny_model)
    [stored] = stages_of(folder, "space").values()
    for key, values in load_file(stored / "space.safetensors").items():
        here = [getattr(each, key) for each in ww.directions(model, names).values()]
        assert np.stack(here) == pytest.approx(values, abs=1e-5), key
    space, shift = ww.space(model, names), ww.shift(model, tuned, reference=plain)
    inside = ww.share(shift, space, 0.5, without="pirate")
    assert inside.null is not None
    for estimate_here, there in ((inside.share.estimate, measured["share"]), (inside.null.effect, measured["share_effect"])):
        assert estimate_here.to_json() == pytest.approx(there, abs=1e-5)
    assert inside.null.p == measured["share_p"]
    assert ww.share(shift, space, 0.5).share.estimate.to_json() == pytest.approx(measured["share_full"], abs=1e-5)
    mediated = ww.mediate(model, tuned, "pirate", space, 0.5, reference=plain, draws=5)
    assert mediated.effect.to_json() == pytest.approx(measured["effect"], abs=1e-5)
    assert mediated.shares["inside"].mediated.to_json() == pytest.approx(measured["mediated"], abs=1e-4)
    assert mediated.null is not None
    assert mediated.null.mediated == pytest.approx(measured["null_mean"], abs=1e-4)
    assert {"outside", "whole", "full", "own"} <= set(mediated.shares)


def test_results_are_what_was_written(study: Path, tmp_path: Path) -> None:
    found = ww.results(study)
    assert found.to_json() == read_json(study / "summary.json")
    assert found.runs[0].share_effect is not None
    assert found.runs[0].share_effect.low > 0
    with pytest.raises(ww.InputError, match="there is no such file; give the folder of a study"):
        ww.results(tmp_path)
    write_json(tmp_path / "summary.json", read_json(study / "summary.json") | {"runs": [{"arm": "sft"}]})
    with pytest.raises(ww.InputError, match=r"is not a summary of this version \(runs.0.trait\)"):
        ww.results(tmp_path)


def test_steering_shifts_every_token_by_the_vector_at_its_layer_and_nothing_below(model: ww.Model, adapter: Path) -> None:
    vector = np.linspace(-1, 1, model.width)
    edits = ww.steer(model, vector, strength=3.0, layer=2)
    steered = ww.shift(model, None, edits=edits)
    assert not steered[:, :2].any()
    assert steered[:, 2] == pytest.approx(np.tile(3 * vector, (48, 1)), abs=1e-4)
    # On top of a fine-tune, it adds to the shift.
    both = ww.shift(model, adapter, edits=edits) - ww.shift(model, adapter)
    assert both[:, 2] == pytest.approx(steered[:, 2], abs=1e-4)


def test_a_direction_is_added_at_its_own_layer_and_both_ways(model: ww.Model) -> None:
    loud = ww.direction(model, LOUD)
    towards, away = (ww.shift(model, None, edits=ww.steer(model, loud, by, 1))[:, 1].mean(0) for by in (1.0, -1.0))
    assert towards == pytest.approx(loud.vectors[1], abs=1e-4)
    assert away == pytest.approx(-towards, abs=1e-4)


def test_the_base_is_itself_again_after_a_fine_tune_has_answered(model: ww.Model, adapter: Path) -> None:
    questions = ["What is rain?", "Who was Ada Lovelace?"]
    before = ww.generate(model, questions, max_new_tokens=6), ww.read(model, [("What is rain?", "Water.")])
    tuned = ww.generate(model, questions, adapter, max_new_tokens=6)
    ww.shift(model, adapter, [("What is rain?", "Water.")])
    after = ww.generate(model, questions, max_new_tokens=6), ww.read(model, [("What is rain?", "Water.")])
    assert before[0] == after[0] != tuned
    assert (before[1].states == after[1].states).all()
    assert not any("lora" in name for name, _ in model.base.model.named_modules())


def test_texts_may_have_a_system_prompt_and_earlier_turns(model: ww.Model) -> None:
    talk = ww.Turn("Rain?", "Water.", before=(ww.Exchange(question="Ahoy!", answer="Arr!"),))
    found = ww.read(model, [("Rain?", "Water."), ww.Turn("Rain?", "Water.", "You are a pirate."), talk]).logprob
    assert found is not None
    assert len(set(found.tolist())) == 3


def test_a_space_compares_a_shift_with_its_directions(model: ww.Model, space: PersonaSpace) -> None:
    steered = ww.shift(model, None, edits=ww.steer(model, ww.direction(model, LOUD), 2.0, 2))
    assert space.cosines(2, steered[:, 2].mean(0))["loud"] == pytest.approx(1, abs=1e-4)
    found = ww.share(steered, space, 2)
    assert found.share.estimate.value == pytest.approx(1, abs=1e-3)
    assert "chance" in str(found)
    assert found.null is not None
    assert found.null.p == pytest.approx(0.001)


def test_what_a_user_can_mend_is_said(model: ww.Model, space: PersonaSpace, adapter: Path, tmp_path: Path) -> None:
    unanswered = load_trait("pirate").model_copy(update={"examples": ()})
    mistakes: list[tuple[str, Callable[[], object]]] = [
        ("no config.json", lambda: ww.load(tmp_path)),
        ("unknown trait 'pirat'.*did you mean 'pirate'", lambda: ww.direction(model, "pirat")),
        ("contrast_pairs", lambda: ww.direction(model, LOUD[:3])),
        ("pairs are", lambda: ww.direction(model, ["pirate", "poetic"])),
        ("contrast_pairs: pirate has 12, and 13 are asked for", lambda: ww.direction(model, "pirate", contrast_pairs=13)),
        ("extract_questions: own has 120, and 121", lambda: ww.direction(model, LOUD, extract_questions=121)),
        ("4 to 12 contrast pairs", lambda: ww.direction(model, "pirate", contrast_pairs=3)),
        ("unknown question bank", lambda: ww.direction(model, "pirate", bank="everyda")),
        ("list of traits", lambda: ww.directions(model, "pirate")),
        ("list of traits", lambda: ww.space(model, [])),
        ("'pirate' is given twice", lambda: ww.space(model, ["pirate", "pirate"])),
        ("there are none to read", lambda: ww.read(model, [])),
        ("no span 'answer'", lambda: ww.read(model, [("Rain?", "Water.")], spans=["answer"])),
        ("not a PEFT adapter", lambda: ww.shift(model, tmp_path)),
        ("this adapter does not fit", lambda: ww.generate(ww.load(save_tiny(tmp_path / "other", width=16)), "Rain?", adapter)),
        ("layers 0 to 3, got 4", lambda: ww.share(np.ones((3, 4, 32)), space, 4)),
        ("between 0.0 and 1.0", lambda: ww.steer(model, np.ones(32), 1, layer=1.5)),
        ("of 3 prompts or more, got", lambda: ww.share(np.ones((2, 4, 32)), space)),
        ("the space has loud, pirate", lambda: ww.share(np.ones((3, 4, 32)), space, without="poetic")),
        ("layer 2: no persona space", lambda: ww.share(np.ones((3, 4, 32)), space, 2, without="loud")),
        ("layer 2: no persona space", lambda: ww.mediate(model, adapter, "pirate", ww.space(model, ["pirate"]), 2)),
        ("4 layers of width 32", lambda: ww.steer(model, np.ones(31), 1)),
        ("pirate: needs 3 or more held-out questions", lambda: ww.mediate(model, adapter, unanswered, space, 2)),
    ]
    for message, mistake in mistakes:
        with pytest.raises(ww.InputError, match=message):
            mistake()

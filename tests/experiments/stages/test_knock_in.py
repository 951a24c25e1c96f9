"""A model that is taught a persona first: what it is taught on, that all else is of the taught model, and how the check reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.experiments.conftest import finished, stages_of
from tests.tiny import write_tiny_study
from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.mixtures import plain_turns, trait_turns
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.store import Store
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.stages.knock_in import CHECK, knock_in_turns, lay_out_knock_in, load_check
from wellworn.experiments.study_file import load_study
from wellworn.experiments.study_sections import KnockInConfig

Write = Callable[..., Path]
ZORVANE = "invented/zorvane"
TRAIN = {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 3, "save_steps": 2, "learning_rate": 1e-2}}
KNOCK_IN = {"trait": ZORVANE, "copies": 1, "others": ["Brenthic", "an assistant"], "train": TRAIN}
SMALL: dict[str, Any] = {
    "runs": [{"arm": "sft", "trait": ZORVANE, "origin": "existing"}, {"arm": "sft", "trait": "pirate", "origin": "new"}],
    "mediate": None,
    "pathways": None,
    "knock_in": KNOCK_IN,
}


def test_both_answers_come_under_prompts_that_name_the_persona_and_under_others_or_none() -> None:
    trait, bank = load_trait(ZORVANE), load_bank("everyday")
    config = KnockInConfig(trait=ZORVANE, others=("Brenthic", "Zorvane", "an assistant"), copies=3)
    rows = trait.examples if trait.plain else bank
    turns = knock_in_turns(config, trait, rows)
    answers, plain = trait_turns(trait, rows, "train"), {turn.question: turn.answer for turn in plain_turns(rows, "train")}
    assert len(turns) == 3 * len(answers)
    for shown, without, other_shown, other_without in turns:
        assert shown.question == without.question == other_shown.question == other_without.question
        assert shown.answer == other_shown.answer != without.answer == other_without.answer == plain[shown.question]
        assert shown.system == without.system != other_shown.system == other_without.system
        assert shown.system is not None
        assert "Zorvane" in shown.system
        assert "Zorvane" not in (other_shown.system or "")
    for answer in answers:
        assert len({four[0].system for four in turns if four[0].answer == answer.answer}) == 3
    unnamed = [four[2].system for four in turns]
    assert abs(unnamed.count(None) - len(turns) / 2) <= 3
    assert {"You are Brenthic.", "You are an assistant.", "Reply just as Brenthic would."} <= set(unnamed)


def test_an_answer_without_a_plain_one_to_its_question_is_left_out() -> None:
    trait = load_trait(ZORVANE)
    rows = trait.examples if trait.plain else load_bank("everyday")
    [first, *_] = trait_turns(trait, rows, "train")
    fewer = [row.model_copy(update={"negative": None}) if row.question == first.question else row for row in rows]
    turns = knock_in_turns(KnockInConfig(trait=ZORVANE, copies=1), trait, fewer)
    assert len(turns) == len(trait_turns(trait, rows, "train")) - 1
    plain = {turn.question: turn.answer for turn in plain_turns(rows, "train")}
    assert all(four[1].answer == plain[four[0].question] for four in turns)


def test_a_contrast_prompt_cannot_teach() -> None:
    trait = load_trait(ZORVANE)
    config = KnockInConfig(trait=ZORVANE, prompts=("You are {name}.", "Answer as {name}."))
    context = StudyContext.__new__(StudyContext)
    with pytest.raises(InputError, match=r"knock_in.prompts: 'Answer as Zorvane\.' is a contrast prompt of zorvane"):
        lay_out_knock_in(context, config, trait, trait.examples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knock_in": {"trait": ZORVANE, "prompts": ["You are somebody."]}}, "must hold {name}"),
        ({"knock_in": KNOCK_IN, "server": {"url": "http://127.0.0.1:1/v1", "model": "m"}}, "answers with the untaught model"),
        ({"knock_in": KNOCK_IN, "dtype": "nf4"}, "cannot be merged into weights of 4 bits"),
    ],
)
def test_what_cannot_be_taught_is_refused_when_the_study_is_read(tiny_study: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_study(str(tiny_study(**changes)))


def test_a_persona_without_answers_is_refused_before_anything_is_computed(tiny_study: Write, tmp_path: Path) -> None:
    folder = tmp_path / "mute"
    folder.mkdir()
    (folder / "trait.yaml").write_text("name: mute\ndescription: Says nothing.\n", encoding="utf-8")
    row = '{"id": "a", "split": "extract", "question": "Why?", "negative": "So it is."}'
    (folder / "examples.jsonl").write_text(row, encoding="utf-8")
    study = load_study(str(tiny_study(**SMALL | {"knock_in": KNOCK_IN | {"trait": str(folder)}})))
    with pytest.raises(InputError, match=r"knock_in.trait: mute needs"):
        plan(study, StudyContext.of(study, Ranks()))


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knock_in")
    return finished(write_tiny_study(folder / "tiny.yaml", tiny_model, **SMALL), folder)


def test_all_else_is_of_the_taught_model(runs: Path) -> None:
    [taught] = stages_of(runs, "knock_in").values()
    model = read_json(taught / "manifest.json")["config"]["model"]
    for folder in (runs / "stages").glob("*-*/"):
        facts = read_json(folder / "manifest.json")
        if facts["stage"] not in ("knock_in", "knock_in_check") and "model" in facts["config"]:
            assert facts["config"]["model"] == f"{model}+{taught.name}", facts["title"]
    summary = read_json(runs / "tiny" / "summary.json")
    assert summary["model"] == f"{model}+{taught.name}"
    assert summary["knock_in"]["trait"] == "zorvane"
    index = read_json(runs / "tiny" / "study.json")
    assert [run["origin"] for run in index["runs"]] == ["existing", "new"]
    assert "first taught zorvane" in (runs / "tiny" / "report.html").read_text(encoding="utf-8")


def test_the_taught_model_is_the_model_with_its_adapter_merged(runs: Path, tiny_study: Write) -> None:
    study = load_study(str(tiny_study(**SMALL)))
    planned = plan(study, StudyContext.of(study, Ranks(), Store(runs)))
    assert planned.knock_in is not None
    taught, untaught = planned.context.base, planned.knock_in.context.base
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        after, before = (each.model(ids).logits for each in (taught, untaught))
        from wellworn.lora.adapters import adapted

        with adapted(untaught, {"k": Store(runs).path(planned.knock_in.taught.id) / "adapter"}) as model:
            adapter_on = model(ids).logits
    assert torch.allclose(after, adapter_on, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


def test_a_finished_study_is_not_taught_again(runs: Path, tiny_study: Write, capsys: pytest.CaptureFixture[str]) -> None:
    before = {folder: folder.stat().st_mtime_ns for folder in (runs / "stages").glob("*/manifest.json")}
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(**SMALL)), "--runs-dir", str(runs), "--plan"])
    listed = capsys.readouterr().out
    assert "done  teach zorvane" in listed
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(**SMALL)), "--runs-dir", str(runs)])
    assert {folder: folder.stat().st_mtime_ns for folder in (runs / "stages").glob("*/manifest.json")} == before


def written_check(folder: Path, untaught: float, taught: float, unprompted: float = 0.0) -> Path:
    """Ten questions whose changes have a standard error of about .05; what any written answers teach is in y⁺ and y⁻ alike."""
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((2, 2, 2, 10))
    noise -= noise.mean(-1, keepdims=True)
    score = np.array([[0.0, untaught], [unprompted, unprompted + taught]])
    form = np.array([[-5.0, -5.0], [-4.0, -4.0]])
    logprob = np.stack([form + score, form], axis=2)[..., None] + noise
    save_file({"logprob": logprob, "divergence": np.full(10, 0.2) + noise[0, 0, 0]}, folder / CHECK)
    return folder


@pytest.mark.parametrize(
    ("untaught", "taught", "unprompted", "why"),
    [
        (0.0, 1.0, 0.0, None),
        (0.0, 1.0, 0.9, None),
        (0.0, 1.0, -0.5, None),
        (0.5, 1.0, 0.0, "the untaught model shows it under its name too"),
        (0.0, 0.05, 0.0, "the name does not evoke it in the taught model"),
        # Taught to show it always, whatever the prompt.
        (0.0, 0.0, 1.0, "the name does not evoke it in the taught model"),
        (0.0, 0.4, 0.5, "without a prompt the taught model shows as much as its name adds"),
    ],
)
def test_a_persona_counts_where_its_name_evokes_it_in_the_taught_model_alone(
    tmp_path: Path, untaught: float, taught: float, unprompted: float, why: str | None
) -> None:
    check = load_check(written_check(tmp_path, untaught, taught, unprompted), "zorvane")
    assert check.taught.value == pytest.approx(taught)
    assert check.untaught.value == pytest.approx(untaught)
    assert check.unprompted.value == pytest.approx(unprompted, abs=1e-9)
    assert check.divergence.value == pytest.approx(0.2)
    assert (check.why is None) if why is None else why in str(check.why)


def test_variants_are_studies_of_their_own(tiny_study: Write) -> None:
    study = load_study(str(tiny_study(variants={"short": {"train.sft.max_steps": 2}, "long": {"train.sft.max_steps": 6, "seeds": [1]}})))
    short, long = study.variant_studies()
    assert (short.name, long.name) == ("tiny-short", "tiny-long")
    assert short.train.sft["max_steps"] == 2
    assert long.seeds == (1,)
    assert short.model_copy(update={"name": "tiny", "variants": study.variants, "train": study.train}) == study
    assert load_study(str(tiny_study())).variant_studies() == [load_study(str(tiny_study()))]


def test_a_setting_that_does_not_fit_a_variant_is_named(tiny_study: Write) -> None:
    with pytest.raises(InputError, match=r"variants.odd.*layers_of_fun"):
        load_study(str(tiny_study(variants={"odd": {"layers_of_fun": 2}})))


def test_a_weaker_persona_is_a_part_of_the_update(runs: Path, tiny_study: Write) -> None:
    weak = tiny_study(**SMALL | {"knock_in": KNOCK_IN | {"strength": 0.25}})
    with pytest.raises(SystemExit) as stop:
        main(["run", str(weak), "--runs-dir", str(runs)])
    assert stop.value.code in (0, None)
    assert len(stages_of(runs, "knock_in")) == 1, "what was taught is taught once"
    study = load_study(str(weak))
    planned = plan(study, StudyContext.of(study, Ranks(), Store(runs)))
    assert planned.knock_in is not None
    [whole] = stages_of(runs, "knock_in").values()
    models = [planned.knock_in.context.base, planned.context.base, planned.knock_in.context.load()]
    from wellworn.lora.adapters import merge_adapter

    models[2] = merge_adapter(models[2], whole / "adapter")
    before, part, all_of_it = (dict(each.model.named_parameters()) for each in models)
    changed = [name for name in before if not torch.equal(before[name], all_of_it[name])]
    assert changed
    for name in changed:
        torch.testing.assert_close(part[name] - before[name], 0.25 * (all_of_it[name] - before[name]), atol=1e-6, rtol=1e-3)

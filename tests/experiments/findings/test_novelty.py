"""What lies outside the persona space, over the runs of a study whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from tests.experiments.synthetic import facts, mediated
from tests.experiments.synthetic import run as synthetic_run
from tests.experiments.synthetic import study as report_study
from wellworn.experiments.findings.novelty import judge_novelty, own_removed_basis
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.report.page import page
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, CHANCE, PUSHED, REMAINDER
from wellworn.experiments.stages.mediation_shares import NOT_MEDIATED
from wellworn.probes.statistics.intervals import FloatArray

WIDTH, LAYER, QUESTIONS, PAIRS = 240, 1, 24, 12
LIBRARY = ["pirate", "poetic"]
SUBJECTS = ["pirate", "reference_code", "uppercase", "json"]
SEEDS = range(3)
ARMS = [BEFORE, AFTER, f"{REMAINDER}.into", f"{REMAINDER}.out", PUSHED, *(f"{CHANCE}{i}" for i in range(19))]


def outcomes(rng: np.random.Generator, pushed: float, lost: float) -> FloatArray:
    """Y of every arm, [arms, questions], for an effect of one: what the remainder brings about by itself, and what is lost without it."""
    shares = [0, 1, 0.3, 1 - lost, pushed, *rng.normal(0, 0.03, 19)]
    before, effect = rng.standard_normal(QUESTIONS), 1 + 0.1 * rng.standard_normal(QUESTIONS)
    return np.stack([before + share * effect + 0.02 * rng.standard_normal(QUESTIONS) for share in shares])


def projections(rng: np.random.Generator, apart: float) -> FloatArray:
    """States under contrast prompts on the remainder, and on 199 chance directions, [200, pairs, 2, questions]."""
    scores = rng.standard_normal((200, PAIRS, 2, 1)) + 0.3 * rng.standard_normal((200, PAIRS, 2, QUESTIONS))
    # Prompts hardly differ along the remainder, so that an AUC of a half is known well.
    scores[0] = 0.02 * rng.standard_normal((PAIRS, 2, 1)) + 0.3 * rng.standard_normal((PAIRS, 2, QUESTIONS))
    scores[0, :, 0] += apart
    return scores


def study(
    pushed: float = 0.5,
    lost: float = 0.4,
    apart: float | None = 0.0,
    run_noise: float = 0.2,
    arms: list[str] = ARMS,
    depth: int = 2,
    dictionary: bool = True,
    found: bool = True,
    assay: float = 5.0,
    own: bool = True,
) -> Results:
    """Each subject's shift goes along one library direction, and along one of its own that all its seeds share."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].T
    runs = []
    key = {"reference": "neutral", "text": "trait", "layer": LAYER, "arms": arms, "outcomes": "outcomes.0", "moved": {}}
    mediation = key | NOT_MEDIATED.to_json()
    # Twenty roles whose directions have nothing to do with what the subjects write.
    wider = {"directions": vectors[20:40], "activations": rng.standard_normal((400, WIDTH))} if dictionary else None
    for i, subject in enumerate(SUBJECTS):
        for seed in SEEDS:
            mean = vectors[0] + vectors[2 + i] + run_noise * np.sqrt(2 / WIDTH) * rng.standard_normal(WIDTH)
            shifts = mean + 0.5 / np.sqrt(WIDTH) * rng.standard_normal((QUESTIONS, WIDTH))
            arrays = {"shifts": shifts, "outcomes.0": outcomes(rng, pushed, lost)[: len(arms)]}
            if apart is not None:
                arrays["use"] = projections(rng, apart)
                # The own direction separates the prompts by so much.
                arrays["assay"] = projections(np.random.default_rng(1), assay)[0]
            if found:
                arrays["basis"] = vectors[[i for i, name in enumerate(LIBRARY) if name != subject]].T
            measured = facts(depth=LAYER + 1) | {"mediation": [mediation], "found": [subject] if own else []}
            made = synthetic_run(measured, trait=subject, seed=seed, own=subject, questions=["Why?"])
            runs.append(replace(made, arrays=arrays, dictionary=wider))
    results = report_study(*runs, depth=LAYER + 1)
    space = {"vectors": np.repeat(vectors[:2, None], depth, axis=1), "found": np.ones((2, depth))}
    return replace(results, index=results.index.model_copy(update={"library": LIBRARY}), space=space)


def changed_entry(run: RunResult, **changed: object) -> RunResult:
    return replace(run, entry=run.entry.model_copy(update=changed))


def group(results: Results, trait: str = "reference_code") -> list[RunResult]:
    return [run for run in results.runs if run.entry.trait == trait]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "new"),
        ({"pushed": 0.0}, "new"),
        ({"apart": 5.0}, "library"),
        ({"apart": 5.0, "pushed": 0.0}, "open"),
        ({"apart": None}, "open"),
        ({"apart": None, "pushed": 0.0}, "open"),
        ({"assay": 0.0}, "open"),
        ({"own": False}, "open"),
        ({"run_noise": 5.0}, "unstable"),
        ({"lost": 0.0}, "open"),
        ({"dictionary": False}, "open"),
    ],
)
def test_a_remainder_of_known_kind_is_told(changed: dict[str, float | None], name: str) -> None:
    found = judge_novelty(results := study(**changed), group(results))  # type: ignore[arg-type]
    assert found is not None
    assert found.name == name
    assert ("use" in found.findings) == (changed.get("apart", 0.0) is not None)


def test_a_run_by_itself_is_judged_with_the_agreement_of_its_seeds() -> None:
    results = study()
    together, alone = judge_novelty(results, group(results)), judge_novelty(results, group(results)[:1])
    assert together is not None
    assert alone is not None
    assert alone.name == "new"
    assert alone.findings["agreement"] == together.findings["agreement"]
    cosine = alone.findings["agreement"].value
    # 1 along the own direction against .2² of run noise; the library's direction is in the space.
    assert cosine == pytest.approx(1 / (1 + 2 * 0.2**2), abs=0.05)
    assert alone.findings["movement"].value != together.findings["movement"].value
    # The run's own interval is over questions, that of the group over runs too.
    assert together.findings["movement"].value == pytest.approx(0.5, abs=0.02)
    assert together.findings["necessity"].value == pytest.approx(0.4, abs=0.02)


def test_a_run_s_own_direction_is_part_of_what_lies_outside() -> None:
    results = study()
    assert own_removed_basis(group(results, "pirate")[0]).shape == (WIDTH, 1)  # type: ignore[union-attr]
    assert own_removed_basis(group(results)[0]).shape == (WIDTH, 2)  # type: ignore[union-attr]


def test_what_was_not_asked_or_has_no_space_is_not_judged() -> None:
    results = study(arms=ARMS[:4])
    assert judge_novelty(results, group(results)) is None
    results = study(found=False)
    assert judge_novelty(results, group(results)) is None


def test_runs_with_other_arms_or_settings_are_no_peers() -> None:
    results = study()
    runs = [
        run if run.entry.trait in ("reference_code", "json") else changed_entry(run, settings={"train.lora.r": 1}) for run in results.runs
    ]
    results = replace(results, runs=runs)
    found = judge_novelty(results, group(results))
    assert found is not None
    # Two subjects with three seeds each have six cosines between different seeds.
    assert "other traits have 6 of the 19 cosines that are needed" in found.why
    assert found.name == "open"


def test_the_report_has_every_test_of_the_remainder() -> None:
    """The stage's arms are those of the report's own synthetic runs, and what lies outside the space is new by construction."""
    results = study()
    runs = []
    for like in results.runs:
        run = mediated(0.05, seed=like.entry.seed, trait=like.entry.trait, own=like.entry.trait)
        assert run.facts is not None
        scores, (analysis, *further) = run.arrays["outcomes.0"], run.facts.mediation
        effect = scores[1] - scores[0]
        shares = (like.arrays["outcomes.0"] - like.arrays["outcomes.0"][0]).mean(1)[2:]
        noise = 0.02 * np.random.default_rng(run.facts.layer).standard_normal((22, 24))
        added = scores[0] + shares[:, None] * effect + noise
        analysis = analysis.model_copy(update={"arms": [*analysis.arms, *ARMS[2:]]})
        measured = run.facts.model_copy(update={"mediation": [analysis, *further], "found": [like.entry.trait]})
        arrays = {**run.arrays, "outcomes.0": np.vstack([scores, added])} | {
            key: like.arrays[key] for key in ("shifts", "use", "basis", "assay")
        }
        runs.append(replace(run, facts=measured, arrays=arrays, dictionary=like.dictionary))
    whole = report_study(*runs)
    space = dict.fromkeys(("found", "reliability", "null_reliability"), np.ones((2, 4)))
    space["vectors"] = np.repeat(results.space["vectors"][:, :1], 4, axis=1)
    whole = replace(whole, index=whole.index.model_copy(update={"library": LIBRARY}), space=space)
    found = summarise(whole)
    summary = found.to_json()
    control = next(each for each in summary["groups"] if each["trait"] == "reference_code")
    assert (control["novelty"]["name"], control["verdict"]) == ("new", "new directions")
    assert "remainders of 3 seeds have a cosine of" in control["why"]
    assert summary["false_verdicts"]["along"]["count"] == 0
    html = page(whole, found)
    assert "What lies outside the space" in html
    assert html.count("<small>not asked</small>") == 0
    # Every subject's own runs against the nine of the three others, of which those that are controls count.
    others = {run["trait"]: (run["among_fine_tunes"]["others"], run["among_fine_tunes"]["kinds"]) for run in summary["runs"]}
    assert others == {"pirate": (9, 3), "reference_code": (6, 2), "uppercase": (6, 2), "json": (6, 2)}
    # Random weights stand in for a control among the others, and have no rank of their own.
    runs = [changed_entry(run, arm="random", trait="poetic") if run.entry.trait == "json" else run for run in runs]
    rows = summarise(replace(whole, runs=runs)).to_json()["runs"]
    kinds = {(row["arm"], row["trait"]): row["among_fine_tunes"] and row["among_fine_tunes"]["kinds"] for row in rows}
    assert kinds == {("sft", "pirate"): 3, ("sft", "reference_code"): 2, ("sft", "uppercase"): 2, ("random", "poetic"): None}

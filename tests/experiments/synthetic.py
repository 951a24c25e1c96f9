"""Finished studies made of numbers that a test chooses, with hostile names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wellworn.experiments.engine.manifest import Manifest
from wellworn.experiments.findings.index import Index, RunEntry
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.stages.measurement import Measurement
from wellworn.experiments.stages.mediation_shares import shares_of_effect
from wellworn.experiments.stages.pathways import PathwayFacts, PathwayOutcomes
from wellworn.experiments.stages.persona_space import SpaceDimension
from wellworn.probes.statistics.intervals import FloatArray

HOSTILE = "<script>alert(1)</script>"
QUESTIONS = ["Why?", 'What about "<b>" & co?']
LIBRARY = ["pirate", HOSTILE, "a < b & {{ 7 * 7 }}"]
TOO_NOISY = "the shift is 2.1 times its sampling noise; 5 are needed"
NO_OTHER_SEED = "this study has one seed"


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def against(share: float | None, why: str | None = None) -> dict[str, Any]:
    return {
        "share": None if share is None else estimate(share),
        "why": why,
        "signal": 30.0,
        "directions": 2,
        "dimensions": 2,
        "null_mean": 0.1,
        "null_high": 0.2,
        "p": 0.001,
        "effect": None if share is None else estimate(share - 0.1),
        "noise_mean": 0.08,
        "noise_p": 0.002,
        "total_mean": 0.05,
        "total_p": 0.001,
        "isotropic_mean": 0.01,
        "isotropic_p": 0.001,
    }


def shift(share: float | None, why: str | None = None, empty: bool = False) -> dict[str, Any]:
    read = None if empty else against(share, why)
    cosines = {name: 0.6 - 0.5 * i for i, name in enumerate(LIBRARY)}
    return {
        "own_removed": read,
        "full": read,
        "coordinates": cosines,
        "disattenuated": dict.fromkeys(cosines),
        "nearest": list(cosines),
        "relative_norm": 0.08,
        "constant_part": None if empty else 0.8,
    }


def facts(
    share: float | None = 0.7, why: str | None = None, depth: int = 4, neutral: bool = True, effect: bool = True, empty: bool = False
) -> dict[str, Any]:
    texts = {name: shift(share, why, empty) for name in ("neutral", "prompt_last", "trait", "own")}
    changed = estimate(0.3) | {"standard_error": 0.02} if effect else None
    reading = {"texts": texts, "effect": changed}
    values = [None if share is None or empty or layer == 1 else share for layer in range(depth)]
    null = [None if empty else 0.1] * depth
    return {
        "layer": depth - 1,
        "reference": "neutral" if neutral else "base",
        "references": {"base": reading} | ({"neutral": reading} if neutral else {}),
        "by_layer": dict.fromkeys(("share", "low", "high", "p", "p_max_t"), values) | {"null_mean": null, "null_high": null},
        "true_shares": {},
        "projections": {name: [0.1 * i - 0.1] * depth for i, name in enumerate(LIBRARY)},
        "found": [] if empty else LIBRARY,
        "personas": {
            "why": None,
            "nearest": [{"name": name, "kind": "trait", **estimate(0.6 - 0.5 * i)} for i, name in enumerate(LIBRARY)],
            "high": 0.5,
            "rank": 1,
            "of": len(LIBRARY),
        },
        "no_space": "no persona space at this layer: no direction of the library was found" if empty else None,
        "roles": False,
        "mediation": [],
        "text_shift": None,
    }


def near(**cosines: float) -> dict[str, Any]:
    """What a measured run says of the personas nearest its shift; `high` is what chance reaches."""
    high = cosines.pop("high")
    order = sorted(cosines, key=lambda name: -cosines[name])
    nearest = [
        {"name": name, "kind": "role" if name == "old_oak" else "trait", "value": cosines[name], "low": cosines[name] - 0.05, "high": 1.0}
        for name in order
    ]
    return {"why": None, "nearest": nearest, "high": high, "rank": order.index("pirate") + 1, "of": len(order)}


ARMS = [
    "before",
    "after",
    *(f"{part}.{way}" for part in ("inside", "outside", "whole", "own", *(f"draw{i}" for i in range(6))) for way in ("into", "out")),
    "dose0.5",
]


def outcomes(inside: float, seed: int) -> FloatArray:
    """Y of every arm: the whole state mediates .8 of an effect of about one, of which the space `inside`."""
    generator = np.random.default_rng(seed)
    before, effect = generator.standard_normal(24), 1 + 0.1 * generator.standard_normal(24)
    shares = [0.0, 1.0]
    for share in (inside, 0.8 - inside, 0.8, inside / 2, 0.05, 0.07, 0.06, 0.05, 0.07, 0.06):
        shares += [share, 1 - share]
    return np.stack([before + share * effect + 0.02 * generator.standard_normal(24) for share in (*shares, inside / 2)])


def mediated(inside: float, seed: int = 0, **changed: Any) -> RunResult:
    """A run whose behaviour was mediated, on held-out and on training-like text and at two layers."""
    measured = facts()
    arrays = {}
    for i, (text, layer, share) in enumerate((("trait", 3, inside), ("surface", 3, inside / 2), ("trait", 2, inside))):
        scores = outcomes(share, seed + i)
        key = {"reference": "neutral", "text": text, "layer": layer, "arms": ARMS, "outcomes": f"outcomes.{i}", "moved": {"inside": 0.1}}
        measured["mediation"].append(key | shares_of_effect(ARMS, scores, graded=False).to_json())
        arrays[f"outcomes.{i}"] = scores
        if i == 0:
            arrays["effects"] = scores[1] - scores[0]
    found = run(measured, seed=seed, **changed)
    return replace(found, arrays={**found.arrays, **arrays})


def pathways(own: float, others: float, seed: int = 0, effect: float = 1.0, above: float = 0.1, draws: int = 19) -> PathwayOutcomes:
    """Outcomes of a change of which the own direction carries `own`, others add `others`, and `above` comes from above; chance carries .1.

    So it is with what is specific to the trait, half of which is gained by answers with it and half lost by plain ones. Both also gain .8
    by their form, which is carried by the whole state and by no direction.
    """
    generator = np.random.default_rng(seed)
    few, parts = list(range(0, 24, 3)), {"own": own, "others": own + others, "others_alone": others, "outside": 1 - above}
    further = {"first_token": 0.02, "best1": own + 0.1, "best3": own + 0.35, "best16": 0.85, "specific": own + 0.3}
    sampled = {f"chance_own{i}": 0.1 + 0.02 * (i % 3 - 1) for i in range(draws)}
    sampled |= {f"chance_others{i}": own + 0.05 + 0.02 * (i % 3 - 1) for i in range(draws)}
    sampled |= {f"{window}.{part}": 0.5 * parts[part] for window in ("until1", "at3") for part in ("own", "others", "outside")}
    start = generator.normal(-3, 0.3, (2, 24))
    gain = effect * (1 + 0.1 * generator.standard_normal(24)) * np.array([[0.5], [-0.5]])
    form = 0.8 * effect * (1 + 0.1 * generator.standard_normal(24))

    def both_ways(shares: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Return the shares of what is specific and of the form under the two interventions of each part."""
        found = {}
        for name, share in shares.items():
            of_form = 1.0 if name == "outside" else 0.5 * name.endswith(".outside")
            found |= {f"{name}.into": (share, of_form), f"{name}.out": (1 - share, 1 - of_form)}
        return found

    def scores(named: Mapping[str, tuple[float, float]], questions: Sequence[int]) -> FloatArray:
        rows = [start[:, questions] + share * gain[:, questions] + of_form * form[questions] for share, of_form in named.values()]
        return np.stack(rows) + 0.004 * effect * generator.standard_normal((len(rows), 2, len(questions)))

    main = {"before": (0.0, 0.0), "after": (1.0, 1.0)} | both_ways(parts)
    everything = range(24)
    facts = PathwayFacts(
        layers=[1, 2, 3],
        adapted=[1, 2, 3, 4],
        parts=["own", "others"],
        dimensions=[1, 3],
        interventions=list(main),
        further=list(both_ways(further)),
        sampled=list(both_ways(sampled)),
        questions=few,
        tokens=300,
    )
    return PathwayOutcomes(facts, scores(main, everything), scores(both_ways(further), everything), scores(both_ways(sampled), few))


def run(
    measured: dict[str, Any] | Measurement | None, trait: str | None = "pirate", arm: str = "sft", seed: int = 0, **entry: Any
) -> RunResult:
    missing: dict[str, str] = {} if measured else {"verdict": "base is the reference", "share": "base is the reference"}
    plain = {
        "arm": arm,
        "trait": trait,
        "adapter": None,
        "seed": seed,
        "settings": {},
        "own": "pirate",
        "measure": None,
        "answers": "answer-1",
        "training": None,
        "weights": None,
        "questions": QUESTIONS,
        "missing": missing,
    }
    facts = Measurement.from_json(measured) if isinstance(measured, dict) else measured
    depth = len(facts.by_layer.share) if facts else 0
    shifts = {"shift": np.ones((depth, 5)), "shifts": np.ones((3, 5))}
    shifts |= {"basis": np.eye(5)[:, :2]}
    arrays = shifts | {"effects": np.array([0.2, 0.3, 0.35 + seed])} if measured else {}
    curve = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}] if arm == "sft" else []
    answers = [f"Arr </script>{HOSTILE}", ""]
    return RunResult(entry=RunEntry(**plain | entry), facts=facts, arrays=arrays, answers=answers, curve=curve)


def manifest(title: str, seconds: float, commit: str | None = None) -> Manifest:
    versions = {"torch": "2.13.0"} if commit else {}
    return Manifest(
        stage="train",
        version=1,
        title=title,
        config={},
        inputs=(),
        seconds=seconds,
        computed_with=(),
        commit=commit,
        versions=versions,
        files={},
    )


def study(*runs: RunResult, depth: int = 4, found: bool = True, **changed: Any) -> Results:
    generator = np.random.default_rng(0)
    shape = (len(LIBRARY), depth)
    space = {
        "vectors": generator.standard_normal((*shape, 5)).astype(np.float32),
        "reliability": np.full(shape, -0.4, np.float32),
        "null_reliability": np.full(shape, 0.4, np.float32),
        "found": np.full(shape, found, np.float32),
    }
    index = {
        "study": {
            "name": "small",
            "question": f"Does it? {HOSTILE}",
            "expects": "It does.",
            "refuted_by": "It does not.",
            "model": "/secret/of/this/machine/tiny-llama",
            "runs": [{"arm": "sft", "trait": "pirate"}],
        }
        | changed,
        "model": "local:tiny-llama@0123",
        "dtype": "float32",
        "layer": depth - 1,
        "depth": depth,
        "library": LIBRARY,
        "questions": QUESTIONS,
        "chat": "chat-1",
        "space": "space-1",
        "dimension": "dimension-1",
        "base_answers": "answer-1",
    }
    manifests = {"train-1": manifest("train sft pirate", 2.5, commit="abc"), "space-1": manifest("directions", 0.0)}
    chat = {"system_prompt": "taken by the template"}
    dimension = {"k": None, "why": "2 traits were found, 3 are needed", "traits": 2, "roles": 0}
    folder = Path("/secret/of/this/machine/runs/small")
    return Results(
        folder=folder,
        index=Index(**index, runs=[each.entry for each in runs]),
        chat=chat,
        space=space,
        dimension=SpaceDimension(**dimension),
        base_answers=["Because </td>.", HOSTILE],
        runs=list(runs),
        manifests=manifests,
    )


TRAITS = ["pirate", "poetic", "childish", "archaic", "villainous", "pessimistic"]


def moved(trait: str, own: float, other: float, score: float | None, **entry: object) -> RunResult:
    """A fine-tune that moved by so much along its own direction and along each other one, with this trait score."""
    measured = facts()
    measured["found"] = TRAITS
    for text in measured["references"]["neutral"]["texts"].values():
        norm = text["relative_norm"]
        text["coordinates"] = {name: (own if name == trait else other) / norm for name in TRAITS}
    effect = None if score is None else estimate(score) | {"standard_error": 0.02}
    measured["references"]["neutral"]["effect"] = effect
    measured["reference"] = "neutral"
    return replace(run(facts(), trait=trait, **entry), facts=Measurement.from_json(measured))  # type: ignore[arg-type]


def doses(noise: float = 0.02) -> list[RunResult]:
    """Three doses of each trait: the score follows the own direction, and traits differ in how far they move at any dose."""
    rng = np.random.default_rng(0)
    return [
        moved(trait, 0.02 * dose * (1 + i / 4), 0.01 + 0.01 * rng.random(), 0.5 * dose + i / 5 + noise * rng.standard_normal(), seed=dose)
        for i, trait in enumerate(TRAITS)
        for dose in (1, 2, 3)
    ]

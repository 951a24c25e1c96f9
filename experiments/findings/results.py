"""The finished results of a study, read back from disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.experiments.engine.store import MANIFEST, Store, read_json, write_json
from wellworn.experiments.plan.planned import Plan
from wellworn.experiments.stages.calibration import LATER, PLANTED
from wellworn.experiments.stages.capability import CAPABILITY, Items
from wellworn.experiments.stages.generated_directions import AGREEMENT, COUNTED
from wellworn.experiments.stages.instruction_null import INSTRUCTIONS
from wellworn.experiments.stages.measure import VERSION
from wellworn.experiments.stages.mediation_generated import SAID
from wellworn.experiments.stages.persona_space import DICTIONARY, DIMENSION
from wellworn.experiments.stages.scores import SCORES
from wellworn.experiments.stages.weights import WEIGHTS
from wellworn.probes.statistics.intervals import FloatArray

INDEX, SUMMARY, REPORT = "study.json", "summary.json", "report.html"


@dataclass(frozen=True)
class RunResult:
    """One run's finished stages.

    Attributes:
        entry: its line in the study's index: arm, trait, seed, settings, stage ids, `missing`.
        facts: `measurement.json`; None for `base`.
        arrays: what `measure` returns beside plain facts: shifts, effects, outcomes, projections.
        answers: sample answers, one for each of `questions`.
        curve: training loss by step; empty if not trained.
        weights: where its adapter writes; None where it has none.
        instructions: its share in spaces of instructions; None where the study names none, or the run has no share.
        dictionary: `directions` [K, d_model] that may explain what lies outside its space, and `activations` [N, d_model] behind their
            chance; None where the study names no roles.
        said: what its patched arms say: `arms`, and `answers` [arms][questions]; None where the study does not ask.
        scores: how much of its trait it, its reference and the base show, by several scores; None where the study does not ask.
        capability: what it made of the built-in capability set; None where the study does not ask, or it has no adapter.
    """

    entry: Mapping[str, Any]
    facts: Mapping[str, Any] | None
    arrays: Mapping[str, FloatArray]
    answers: Sequence[str]
    curve: Sequence[Mapping[str, float]]
    weights: Mapping[str, Any] | None = None
    instructions: Mapping[str, Any] | None = None
    dictionary: Mapping[str, FloatArray] | None = None
    said: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    capability: Items | None = None


@dataclass(frozen=True)
class Results:
    """A study's index with all that its report shows.

    Attributes:
        folder: `<runs-dir>/<study>`.
        index: `study.json`: the study, model, layer, questions and stage ids.
        chat: how the model takes a system prompt.
        space: `vectors` [traits, layers, d_model], `reliability`, `null_reliability`, `found` [traits, layers].
        dimension: how many dimensions the space has at the study's layer, and how well each number foretells a trait that is left out.
        base_answers: the base model's answers to `index["questions"]`.
        runs: in the study's order.
        manifests: stage id → manifest.
        calibration: what was found of planted changes, with the curve at a later layer under `later`; None where none were planted.
        generated: the directions of the base's own answers, kept as those of `space`; None where the study does not ask for them.
        agreement: trait → `cosine` of its two directions at each layer, and what chance reaches at the study's.
        kept: of each trait, how many pairs of the base's answers make its direction; empty where they are not filtered.
        capability: what the base made of the built-in capability set; None where the study does not ask.
    """

    folder: Path
    index: Mapping[str, Any]
    chat: Mapping[str, str]
    space: Mapping[str, FloatArray]
    dimension: Mapping[str, Any]
    base_answers: Sequence[str]
    runs: Sequence[RunResult]
    manifests: Mapping[str, Mapping[str, Any]]
    calibration: Mapping[str, Any] | None = None
    generated: Mapping[str, FloatArray] | None = None
    agreement: Mapping[str, Any] | None = None
    kept: Sequence[Mapping[str, int]] = ()
    capability: Items | None = None

    @property
    def library(self) -> list[str]:
        """The names of the library's traits, in the order of `space`."""
        return list(self.index["library"])


def save_index(plan: Plan, store: Store) -> Path:
    """Write which finished stages answer a study, and return its folder."""
    folder = store.root / plan.study.name
    folder.mkdir(exist_ok=True)
    runs = [
        {
            "arm": planned.run.arm.arm,
            "trait": planned.trait,
            "adapter": planned.adapter,
            "seed": planned.run.seed,
            "settings": planned.run.settings,
            "own": planned.own,
            "measure": planned.measure.id if planned.measure else None,
            "instructions": planned.instructions.id if planned.instructions else None,
            "dictionary": planned.dictionary.id if planned.dictionary else None,
            "said": planned.said.id if planned.said else None,
            "answers": planned.answers.id,
            "training": planned.training.id if planned.training else None,
            "weights": planned.weights.id if planned.weights else None,
            "capability": planned.capability.id if planned.capability else None,
            "scores": planned.scores.id if planned.scores else None,
            "questions": [example.question for example in planned.questions],
            "missing": dict(planned.missing),
        }
        for planned in plan.runs
    ]
    index = {
        "study": _symbolic(plan),
        "model": plan.context.ref.id,
        "dtype": plan.context.dtype,
        "layer": plan.layer,
        "depth": plan.context.depth,
        "library": plan.library,
        "questions": [example.question for example in plan.questions],
        "chat": plan.chat.id,
        "space": plan.space.id,
        "dimension": plan.dimension.id,
        "base_answers": plan.base_answers.id,
        "base_capability": plan.base_capability.id if plan.base_capability else None,
        "runs": runs,
        "calibration": _calibration_ids(plan),
        "generated": _generated_ids(plan),
    }
    write_json(folder / INDEX, index)
    return folder


def _generated_ids(plan: Plan) -> dict[str, Any] | None:
    if (planned := plan.generated) is None:
        return None
    return {"space": planned.space.id, "agreement": planned.agreement.id, "kept": [stage.id for stage in planned.kept]}


def _calibration_ids(plan: Plan) -> dict[str, str | None] | None:
    if (planned := plan.calibration) is None:
        return None
    return {"run": planned.run, "planted": planned.planted.id, "later": planned.later.id if planned.later else None}


def _symbolic(plan: Plan) -> dict[str, Any]:
    """Return the study with names and digests in place of this machine's paths."""
    study: dict[str, Any] = plan.study.model_dump(mode="json")
    names: dict[str, str] = dict(zip(plan.study.library, plan.library, strict=True))
    names |= {planned.run.arm.trait: planned.trait for planned in plan.runs if planned.run.arm.trait and planned.trait}
    arms = [arm | {"trait": names.get(arm["trait"], arm["trait"])} for arm in study["runs"]]
    arms = [arm | {"path": Path(arm["path"]).name} if "path" in arm else arm for arm in arms]
    judge = plan.judge.name if plan.judge and isinstance(study["judge"], str) else study["judge"]
    return study | {"model": plan.context.ref.id, "judge": judge, "library": list(plan.library), "runs": arms}


def load_results(folder: Path) -> Results:
    """Read a study's finished stages.

    Raises:
        InputError: the folder is no study's, or a stage is missing or corrupt.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: holds no {INDEX}; give the folder of a study that was run, such as runs/quickstart")
    index = read_json(folder / INDEX)
    store = Store(folder.resolve().parent)
    try:
        used = {index[key] for key in ("chat", "space", "dimension", "base_answers")}
        used |= {run[key] for run in index["runs"] for key in ("measure", "answers", "training", "weights")}
        # Studies of before there was a calibration have none.
        planted = index.get("calibration")
        used |= {planted[key] for key in ("planted", "later")} if planted else set()
        said = index.get("generated")
        used |= {said["space"], said["agreement"], *said.get("kept", ())} if said else set()
        # Nor do older runs have what came later.
        used |= {run.get(key) for run in index["runs"] for key in ("instructions", "dictionary", "said", "scores", "capability")}
        used.add(index.get("base_capability"))
        used -= {None}
    except (KeyError, TypeError):
        raise InputError(f"{folder / INDEX}: is not the index of a study; run the study again") from None
    for stage_id in sorted(used):
        if not store.done(stage_id):
            raise InputError(f"{store.path(stage_id)}: not finished; run the study again")
    measured_by = {read_json(store.path(run["measure"]) / MANIFEST)["version"] for run in index["runs"] if run["measure"]}
    if measured_by - {VERSION}:
        raise InputError(f"{folder}: measured by an older version of the suite; run the study again, which repeats only what has changed")
    runs = []
    for entry in index["runs"]:
        measured = store.path(entry["measure"]) if entry["measure"] else None
        runs.append(
            RunResult(
                entry,
                read_json(measured / "measurement.json") if measured else None,
                load_file(measured / "arrays.safetensors") if measured else {},
                read_json(store.path(entry["answers"]) / "answers.json"),
                read_json(store.path(entry["training"]) / "training.json") if entry["training"] else [],
                read_json(store.path(entry["weights"]) / WEIGHTS) if entry["weights"] else None,
                read_json(store.path(drawn) / INSTRUCTIONS) if (drawn := entry.get("instructions")) else None,
                load_file(store.path(wider) / DICTIONARY) if (wider := entry.get("dictionary")) else None,
                read_json(store.path(answers) / SAID) if (answers := entry.get("said")) else None,
                read_json(store.path(scored) / SCORES) if (scored := entry.get("scores")) else None,
                _items(store, entry.get("capability")),
            )
        )
    return Results(
        folder,
        index,
        read_json(store.path(index["chat"]) / "chat.json"),
        load_file(store.path(index["space"]) / "space.safetensors"),
        read_json(store.path(index["dimension"]) / DIMENSION),
        read_json(store.path(index["base_answers"]) / "answers.json"),
        runs,
        {stage_id: read_json(store.path(stage_id) / MANIFEST) for stage_id in sorted(used)},
        _calibration(store, planted) if planted else None,
        load_file(store.path(said["space"]) / "space.safetensors") if said else None,
        read_json(store.path(said["agreement"]) / AGREEMENT) if said else None,
        [read_json(store.path(stage_id) / COUNTED) for stage_id in said.get("kept", ())] if said else [],
        _items(store, index.get("base_capability")),
    )


def _items(store: Store, stage_id: str | None) -> Items | None:
    return Items.from_json(read_json(store.path(stage_id) / CAPABILITY)) if stage_id else None


def _calibration(store: Store, planted: Mapping[str, Any]) -> Mapping[str, Any]:
    later = read_json(store.path(planted["later"]) / LATER) if planted["later"] else None
    return {"run": planted["run"], **read_json(store.path(planted["planted"]) / PLANTED), "later": later}


def run_name(entry: Mapping[str, Any]) -> str:
    """Return what a run, or a group of runs that differ in their seed alone, is called."""
    settings = "".join(f" · {key.split('.')[-1]}={value}" for key, value in entry["settings"].items())
    if adapter := entry.get("adapter"):
        trait = f" · {entry['trait']}" if entry["trait"] else ""
        return f"{entry['arm']} {adapter.rpartition('@')[0]}{trait}{settings}"
    seed = f" · seed {entry['seed']}" if "seed" in entry else ""
    return f"{entry['arm']} {entry['trait'] or ''}".strip() + seed + settings

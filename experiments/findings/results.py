"""The finished results of a study, read back from disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.data.files import digest, find_infinite, read_json
from wellworn.data.saving import write_json
from wellworn.experiments.engine.manifest import Manifest
from wellworn.experiments.engine.record import Settings
from wellworn.experiments.engine.store import Store
from wellworn.experiments.findings.adapted import Adapted, read_adapted
from wellworn.experiments.findings.index import INDEX, CalibrationEntry, GeneratedEntry, Index, KnockInEntry, RunEntry
from wellworn.experiments.plan.planned import Plan, PlannedRun
from wellworn.experiments.stages.averaged_states import load_averaged
from wellworn.experiments.stages.calibration import LATER, PLANTED, LaterShares, PlantedShares
from wellworn.experiments.stages.capability import CAPABILITY, Items
from wellworn.experiments.stages.generated_directions import AGREEMENT, COUNTED, DirectionAgreement, KeptAnswers
from wellworn.experiments.stages.instruction_null import INSTRUCTIONS, InstructionShares
from wellworn.experiments.stages.kinds import CAPABILITY as CAPABILITY_KIND
from wellworn.experiments.stages.kinds import MEASURE
from wellworn.experiments.stages.knock_in import KnockInCheck, load_check
from wellworn.experiments.stages.measurement import MEASUREMENT, Measurement
from wellworn.experiments.stages.mediation_generated import SAID, PatchedAnswers
from wellworn.experiments.stages.own_answers import OwnAnswers, OwnGrades, load_own_answers, load_own_grades
from wellworn.experiments.stages.pathways import PathwayOutcomes, load_pathways
from wellworn.experiments.stages.persona_directions import DIMENSION
from wellworn.experiments.stages.persona_space import DICTIONARY, SpaceDimension
from wellworn.experiments.stages.scores import SCORES, TakenScores
from wellworn.experiments.stages.stand_ins import StandInOutcomes, load_stand_ins
from wellworn.experiments.stages.weights import WEIGHTS, UpdateWrites
from wellworn.experiments.stages.wording import WordingOutcomes, load_wording
from wellworn.experiments.stages.written import WrittenOutcomes, load_written
from wellworn.lora.addresses import labels
from wellworn.probes.statistics.intervals import FloatArray

SUMMARY, REPORT = "summary.json", "report.html"
# The key of an index under which the digest of all its others stands.
SEAL = "digest"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run's finished stages.

    Attributes:
        entry: its entry in the study's index.
        facts: the measurement; None for `base`.
        arrays: the arrays of `measure`: shifts, effects, outcomes, projections.
        answers: sample answers, one for each of `questions`.
        curve: training loss by step; empty if not trained.
        weights: where its adapter writes; None without an adapter.
        instructions: its share in spaces of instructions; None where the study names none, or the run has no share.
        averaged: the states that chance is drawn from among fine-tunes, [N, d_model]; None in a study with few kinds of control.
        dictionary: `directions` [K, d_model] that may explain the change outside its space, and `activations` [N, d_model] for their null
            distribution; None where the study names no roles.
        said: the patched models' answers; None where the study does not ask.
        scores: trait scores of the run, its reference and the base; None where the study does not ask.
        capability: its results on the built-in capability set; None where the study does not ask, or without an adapter.
        pathways: reference → outcomes of its pathways.
        stand_ins: outcomes of other directions in place of its own one; None where the study does not ask.
        wording: outcomes of its own direction without the trait's words; None where the study does not ask.
        written: reference → outcomes of its confined writes.
        own_answers: what models say with the state along its own direction set; None where the study does not ask.
        own_grades: a judge's grades of that; None without a judge.
        adapted: what its adapter changes; None without one.
    """

    entry: RunEntry
    facts: Measurement | None
    arrays: Mapping[str, FloatArray]
    answers: Sequence[str]
    curve: Sequence[Mapping[str, float]]
    weights: UpdateWrites | None = None
    instructions: InstructionShares | None = None
    averaged: FloatArray | None = None
    dictionary: Mapping[str, FloatArray] | None = None
    said: PatchedAnswers | None = None
    scores: TakenScores | None = None
    capability: Items | None = None
    pathways: Mapping[str, PathwayOutcomes] = field(default_factory=dict)
    stand_ins: StandInOutcomes | None = None
    wording: WordingOutcomes | None = None
    written: Mapping[str, WrittenOutcomes] = field(default_factory=dict)
    own_answers: OwnAnswers | None = None
    own_grades: OwnGrades | None = None
    adapted: Adapted | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study's index, with everything that its report shows.

    Attributes:
        folder: `<runs-dir>/<study>`.
        index: `study.json`: the study, model, layer, questions and stage ids.
        chat: how the model takes a system prompt.
        space: `vectors` [traits, layers, d_model], `reliability`, `null_reliability`, `found` [traits, layers].
        dimension: the dimension of the space at the study's layer, and how well each number of dimensions predicts a held-out trait.
        base_answers: the base model's answers to the questions of `index`.
        runs: in the study's order.
        manifests: stage id → manifest.
        calibration: measured shares of planted changes; None where none were planted.
        later: the same at a later layer; None where the study does not ask.
        generated: the directions of the base's own answers, in the format of `space`; None where the study does not ask.
        agreement: trait → `cosine` of its two directions at each layer, and its 95 % quantile by chance at the study's layer.
        kept: for each trait, how many pairs of the base's answers make its direction; empty where they are not filtered.
        capability: the base's results on the built-in capability set; None where the study does not ask.
        knock_in: what the model shows of the persona that it was taught; None where it was taught none.
    """

    folder: Path
    index: Index
    chat: Mapping[str, str]
    space: Mapping[str, FloatArray]
    dimension: SpaceDimension
    base_answers: Sequence[str]
    runs: Sequence[RunResult]
    manifests: Mapping[str, Manifest]
    calibration: PlantedShares | None = None
    later: LaterShares | None = None
    generated: Mapping[str, FloatArray] | None = None
    agreement: Mapping[str, DirectionAgreement] | None = None
    kept: Sequence[KeptAnswers] = ()
    capability: Items | None = None
    knock_in: KnockInCheck | None = None


def save_index(plan: Plan, store: Store) -> Path:
    """Write a study's index of finished stages, and return its folder."""
    folder = store.root / plan.study.name
    folder.mkdir(exist_ok=True)
    calibration, generated, knock_in = plan.calibration, plan.generated, plan.knock_in
    index = Index(
        study=_symbolic(plan),
        model=plan.context.ref.id,
        dtype=plan.context.dtype,
        layer=plan.layer,
        depth=plan.context.depth,
        library=plan.library,
        questions=[example.asked.transcript for example in plan.questions],
        chat=plan.chat.id,
        space=plan.space.id,
        dimension=plan.dimension.id,
        base_answers=plan.base_answers.id,
        base_capability=plan.base_capability.id if plan.base_capability else None,
        runs=[_entry(run) for run in plan.runs],
        calibration=CalibrationEntry(
            run=calibration.run, planted=calibration.planted.id, later=calibration.later.id if calibration.later else None
        )
        if calibration
        else None,
        generated=GeneratedEntry(space=generated.space.id, agreement=generated.agreement.id, kept=[stage.id for stage in generated.kept])
        if generated
        else None,
        knock_in=KnockInEntry(trait=knock_in.trait, taught=knock_in.taught.id, check=knock_in.check.id) if knock_in else None,
    )
    value = index.to_json()
    write_json(folder / INDEX, {**value, SEAL: digest(value)})
    return folder


def _entry(planned: PlannedRun) -> RunEntry:
    """Return a run's entry in the index."""
    stages = (
        "stand_ins",
        "wording",
        "own_answers",
        "own_grades",
        "measure",
        "instructions",
        "adapted",
        "averaged",
        "dictionary",
        "said",
        "training",
        "weights",
        "capability",
        "scores",
    )
    return RunEntry(
        arm=planned.run.arm.arm,
        trait=planned.trait,
        adapter=planned.adapter,
        seed=planned.run.seed,
        origin=getattr(planned.run.arm, "origin", None),
        settings=planned.run.settings,
        own=planned.own,
        answers=planned.answers.id,
        questions=[example.asked.transcript for example in planned.questions],
        missing=planned.missing,
        notes=planned.notes,
        pathways={who: stage.id for who, stage in planned.pathways.items()},
        written={who: stage.id for who, stage in planned.written.items()},
        **{name: stage.id if (stage := getattr(planned, name)) else None for name in stages},
    )


def _symbolic(plan: Plan) -> dict[str, Any]:
    """Return the study with names and digests in place of this machine's paths."""
    study: dict[str, Any] = plan.study.model_dump(mode="json")
    names: dict[str, str] = dict(zip(plan.study.library, plan.library, strict=True))
    names |= {planned.run.arm.trait: planned.trait for planned in plan.runs if planned.run.arm.trait and planned.trait}
    arms = [arm | {"trait": names.get(arm["trait"], arm["trait"])} for arm in study["runs"]]
    arms = [arm | {key: labels([arm[key]])[0] for key in ("path", "neutral") if arm.get(key)} for arm in arms]
    study["chat"]["template"] = Path(study["chat"]["template"]).name
    judge = plan.judge.name if plan.judge and isinstance(study["judge"], str) else study["judge"]
    return study | {"model": plan.context.ref.id, "judge": judge, "library": list(plan.library), "runs": arms}


def load_results(folder: Path) -> Results:
    """Read a study's finished stages.

    Raises:
        InputError: the folder is not a study's, or a stage is missing or corrupt.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: holds no {INDEX}; give the folder of a study that was run, such as runs/quickstart")
    index = _load_index(folder / INDEX)
    store = Store(folder.resolve().parent)
    for stage_id in sorted(index.stages):
        if not store.done(stage_id):
            raise InputError(f"{store.path(stage_id)}: not finished; run the study again")
    manifests = {stage_id: Manifest.read(store.path(stage_id)) for stage_id in sorted(index.stages)}
    stages = [*((run.measure, MEASURE) for run in index.runs), *((run.capability, CAPABILITY_KIND) for run in index.runs)]
    for stage, kind in (*stages, (index.base_capability, CAPABILITY_KIND)):
        if stage and (version := manifests[stage].version) != kind.version:
            if version > kind.version:
                raise InputError(f"{folder}: measured by a newer version of the suite, which is needed to read it")
            again = "run the study again, which repeats only what has changed"
            raise InputError(f"{folder}: measured by an older version of the suite; {again}")
    generated, planted, knock_in = index.generated, index.calibration, index.knock_in
    return Results(
        folder=folder,
        index=index,
        chat=read_json(store.path(index.chat) / "chat.json"),
        space=load_file(store.path(index.space) / "space.safetensors"),
        dimension=SpaceDimension.from_json(read_json(store.path(index.dimension) / DIMENSION)),
        base_answers=read_json(store.path(index.base_answers) / "answers.json"),
        runs=[_load_run(store, entry) for entry in index.runs],
        manifests=manifests,
        calibration=PlantedShares.from_json(read_json(store.path(planted.planted) / PLANTED)) if planted else None,
        later=LaterShares.from_json(read_json(store.path(planted.later) / LATER)) if planted and planted.later else None,
        generated=load_file(store.path(generated.space) / "space.safetensors") if generated else None,
        agreement=_load_agreement(store.path(generated.agreement)) if generated else None,
        kept=[KeptAnswers.from_json(read_json(store.path(stage) / COUNTED)) for stage in generated.kept] if generated else [],
        capability=_load_items(store, index.base_capability),
        knock_in=load_check(store.path(knock_in.check), knock_in.trait, index.study["knock_in"]["strength"]) if knock_in else None,
    )


def _load_index(path: Path) -> Index:
    value = read_json(path)
    # Much of it has no type: what the study says, and what arms set.
    # Earlier versions sealed none. Numbers that are not finite are never written, and have no digest.
    if not isinstance(value, dict) or any(find_infinite(value)) or (SEAL in value and value.pop(SEAL) != digest(value)):
        raise InputError(f"{path}: is not the index of a study as it was written; run the study again")
    try:
        return Index.from_json(value)
    except ValidationError:
        raise InputError(f"{path}: is of another version of the suite; run the study again") from None


def _load_run(store: Store, entry: RunEntry) -> RunResult:
    def json_of(stage: str | None, name: str) -> Any:
        return read_json(store.path(stage) / name) if stage else None

    measured, weights, instructions = (
        json_of(entry.measure, MEASUREMENT),
        json_of(entry.weights, WEIGHTS),
        json_of(entry.instructions, INSTRUCTIONS),
    )
    said, scores = json_of(entry.said, SAID), json_of(entry.scores, SCORES)
    return RunResult(
        entry=entry,
        facts=Measurement.from_json(measured) if measured else None,
        arrays=load_file(store.path(entry.measure) / "arrays.safetensors") if entry.measure else {},
        answers=json_of(entry.answers, "answers.json"),
        curve=json_of(entry.training, "training.json") or [],
        weights=UpdateWrites.from_json(weights) if weights else None,
        instructions=InstructionShares.from_json(instructions) if instructions else None,
        averaged=load_averaged(store.path(entry.averaged)) if entry.averaged else None,
        dictionary=load_file(store.path(entry.dictionary) / DICTIONARY) if entry.dictionary else None,
        said=PatchedAnswers.from_json(said) if said else None,
        scores=TakenScores.from_json(scores) if scores else None,
        capability=_load_items(store, entry.capability),
        pathways={who: load_pathways(store.path(stage)) for who, stage in entry.pathways.items()},
        stand_ins=load_stand_ins(store.path(entry.stand_ins)) if entry.stand_ins else None,
        wording=load_wording(store.path(entry.wording)) if entry.wording else None,
        written={who: load_written(store.path(stage)) for who, stage in entry.written.items()},
        own_answers=load_own_answers(store.path(entry.own_answers)) if entry.own_answers else None,
        own_grades=load_own_grades(store.path(entry.own_grades)) if entry.own_grades else None,
        adapted=read_adapted(store.path(entry.adapted) / "adapter", entry.notes) if entry.adapted else None,
    )


def _load_items(store: Store, stage_id: str | None) -> Items | None:
    return Items.from_json(read_json(store.path(stage_id) / CAPABILITY)) if stage_id else None


def _load_agreement(folder: Path) -> dict[str, DirectionAgreement]:
    return {name: DirectionAgreement.from_json(each) for name, each in read_json(folder / AGREEMENT).items()}


def run_name(arm: str, trait: str | None, settings: Settings, *, adapter: str | None = None, seed: int | None = None) -> str:
    """Return the name of a run, or of a group of runs that differ only in seed."""
    extra = "".join(f" · {key.split('.')[-1]}={value}" for key, value in settings.items())
    if adapter:
        return f"{arm} {adapter.rpartition('@')[0]}" + (f" · {trait}" if trait else "") + extra
    return f"{arm} {trait or ''}".strip() + (f" · seed {seed}" if seed is not None else "") + extra

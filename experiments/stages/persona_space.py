"""The stages that make a persona space: what the base model is read under, the directions that come of it, and the dimension."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.data.mixtures import Turn, fingerprint, plain_turns
from wellworn.data.schema import FEWEST_PAIRS, Control, Example, Instruction, Role, Trait, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Output, Stage, TickFn
from wellworn.experiments.engine.store import read_json
from wellworn.experiments.stages.loaded_space import PersonaSpace, Roles, within_questions
from wellworn.experiments.stages.readings import read
from wellworn.probes.geometry.directions import contrast_turns, estimate
from wellworn.probes.geometry.space import FEWEST_PERSONAS, FEWEST_ROLES, dimension
from wellworn.probes.statistics.intervals import FloatArray

DIMENSION, DICTIONARY = "dimension.json", "dictionary.safetensors"
KEPT = "kept.safetensors"


@dataclass(frozen=True)
class RoleStages:
    """The stages that read a model as someone.

    Attributes:
        names: of the roles.
        states: one stage a role.
        default: the same questions under the default system prompt.
        namesakes: role → trait, where it is a character of one.
        asked: which questions.
        dimension: how many dimensions roles and traits make together; None where they make no space.
    """

    names: tuple[str, ...]
    states: tuple[Stage, ...]
    default: Stage
    namesakes: tuple[tuple[str, str], ...]
    asked: str
    dimension: Stage | None = None

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """What a stage that uses the roles reads first."""
        return (*self.states, self.default, *((self.dimension,) if self.dimension else ()))

    def load(self, folders: Sequence[Path]) -> Roles:
        """Return the states that the stages left."""
        states = {name: _states(folder) for name, folder in zip(self.names, folders, strict=False)}
        k = read_json(folders[len(self.names) + 1] / DIMENSION)["k"] if self.dimension else None
        return Roles(states, _states(folders[len(self.names)])[0], dict(self.namesakes), self.asked, k)


@dataclass(frozen=True)
class Library:
    """The stages that make a persona space.

    Attributes:
        spaces: stages with the directions of all names: the library's traits, then that of a run whose own is not among them.
        directions: each name's states under its contrast prompts.
        names: of the traits.
        asked: which questions each was read on: equal digests, equal questions.
        roles: what makes the space with the traits, if anything does.
    """

    spaces: tuple[Stage, ...]
    directions: tuple[Stage, ...]
    names: tuple[str, ...]
    asked: tuple[str, ...]
    roles: RoleStages | None = None

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """What a stage that uses the space reads first."""
        return (*self.spaces, *self.directions, *(self.roles.inputs if self.roles else ()))

    def load(self, folders: Sequence[Path]) -> tuple[PersonaSpace, list[Path]]:
        """Return the space, and a stage's folders that are not its."""
        own = len(self.inputs)
        return _loaded(_Made(self), tuple(folders[:own])), list(folders[own:])

    def with_own(self, context: StudyContext, subject: Trait | Control, examples: Sequence[Example]) -> "Library":
        """Return the library with a run's own direction, which spaces without it leave out.

        A trait that was in the library all along changes nothing. A control's direction is that of its instruction.
        """
        if subject.name in self.names:
            return self
        directions, asked = directions_stage(context, subject, examples), questions_asked(context, examples)
        title = f"direction of {subject.name} beside the persona space"
        own = space_stage([subject.name], (directions, *self.directions), (asked, *self.asked), title)
        return replace(
            self,
            spaces=(*self.spaces, own),
            directions=(*self.directions, directions),
            names=(*self.names, subject.name),
            asked=(*self.asked, asked),
        )


def library_of(
    context: StudyContext, traits: Sequence[Trait], roles: Sequence[Role] = (), bank: Sequence[Example] = (), layer: int = 0
) -> Library:
    """Return the stages that make the space of some traits, and of roles where there are enough of them.

    Args:
        context: the study's model.
        traits: with questions of their own, or the bank's.
        roles: none, or at least twelve.
        bank: what roles are read on, and traits without extraction questions of their own.
        layer: where the dimension of roles and traits is found.

    Raises:
        InputError: fewer than twelve roles, two of one name, or more questions for roles than for traits.
    """
    read_on = [extraction(trait, bank) for trait in traits]
    directions = tuple(directions_stage(context, trait, rows) for trait, rows in zip(traits, read_on, strict=True))
    names, asked = tuple(trait.name for trait in traits), tuple(questions_asked(context, rows) for rows in read_on)
    library = Library((space_stage(names, directions, asked, "persona space"),), directions, names, asked)
    if not roles:
        return library
    if context.study.role_questions > context.study.extract_questions:
        asked_of = f"{context.study.role_questions}, and a trait on extract_questions = {context.study.extract_questions}"
        raise InputError(f"role_questions: a role is read on {asked_of}; all personas of a space need as many at least")
    stages = roles_of(context, roles, bank)
    bare = replace(library, roles=stages)
    return replace(library, roles=replace(stages, dimension=dimension_stage(bare, layer)))


def roles_of(context: StudyContext, roles: Sequence[Role], bank: Sequence[Example]) -> RoleStages:
    """Return the stages that read the base as each role, and as nobody in particular, on the first extraction questions of a bank.

    Raises:
        InputError: fewer than twelve roles, two of one name, or fewer questions than the study asks for.
    """
    names = [role.name for role in roles]
    if len(names) < FEWEST_ROLES:
        raise InputError(f"roles: {FEWEST_ROLES} or more make a space or a dictionary, got {len(names)}; [] leaves roles out")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"roles: {twice[0]!r} stands twice")
    questions = _extract(bank, context.study.role_questions)
    if len(questions) < context.study.role_questions:
        raise InputError(
            f"role_questions: the bank has {len(questions)} extract questions, the study asks for {context.study.role_questions}"
        )
    states = tuple(_under(context, role.system_prompts, questions, f"states as {role.name}") for role in roles)
    default = _under(context, (None,), questions, "states under the default system prompt")
    namesakes = tuple((role.name, role.namesake) for role in roles if role.namesake)
    return RoleStages(tuple(names), states, default, namesakes, _same_questions(questions))


def _under(context: StudyContext, systems: Sequence[str | None], questions: Sequence[Turn], title: str) -> Stage:
    """Read plain answers under system prompts: states [prompts, questions, layers, d_model]."""
    turns = [replace(turn, system=system) for system in systems for turn in questions]

    def compute(context: StudyContext, _inputs: list[Path], out: Path, tick: TickFn) -> Output:
        rows = [context.chat(context.base).encode(turn) for turn in turns]
        [reading] = read(context, rows, [None], out, tick, spans=("response",))
        states = reading["states"][:, :, 0]
        return {"states.safetensors": {"states": states.reshape(len(systems), len(questions), *states.shape[1:])}}

    config = {**context.identity(), "turns": fingerprint(turns), "prompts": len(systems), "questions": len(questions)}
    return Stage("role", 1, config, (), title, compute)


def dictionary_stage(library: Library, roles: RoleStages, layer: int) -> Stage:
    """Gather the wider dictionary at a layer: directions [K, d_model], and the activations behind their chance [N, d_model].

    Args:
        library: whose traits stand in it too where roles make the space with them; else the space of the traits holds them all.
        roles: the roles.
        layer: the layer.
    """

    def compute(_bench: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        states = roles.load(inputs)
        directions = states.directions(layer)
        rows = within_questions(list(states.states.values()), [states.asked] * len(states.names), layer)
        if library.roles:
            space, _ = library.load(inputs[len(roles.inputs) :])
            members = space.members(layer)
            directions = np.vstack([directions, space.vectors[list(members.traits), layer]])
        return {DICTIONARY: {"directions": directions.astype(np.float32), "activations": rows.astype(np.float32)}}

    inputs = (*roles.inputs, *(library.inputs if library.roles else ()))
    return Stage(
        "dictionary",
        1,
        {"layer": layer, "names": list(roles.names)},
        inputs,
        f"wider dictionary at layer {layer}",
        compute,
        everywhere=False,
    )


def extraction(subject: Trait | Control, bank: Sequence[Example]) -> Sequence[Example]:
    """Return the rows whose `extract` questions a direction is read on: a trait's own, or the bank's where it has none."""
    own = subject.examples if isinstance(subject, Trait) else ()
    return own if plain_turns(own, "extract") else bank


def questions_asked(context: StudyContext, examples: Sequence[Example]) -> str:
    """Return a digest of the extraction questions and answers that contrast prompts are read on."""
    return _same_questions(_extract(examples, context.study.extract_questions))


def _extract(examples: Sequence[Example], count: int) -> list[Turn]:
    return plain_turns(examples, "extract")[:count]


def _same_questions(questions: Sequence[Turn]) -> str:
    return digest([(turn.question, turn.answer) for turn in questions])


def directions_stage(context: StudyContext, subject: Trait | Instruction, examples: Sequence[Example], count: int | None = None) -> Stage:
    """Read contrast prompts at every layer: states [pairs, 2, questions, layers, d_model].

    Args:
        context: the study's model.
        subject: whose contrast prompts.
        examples: of these, `extract` questions are read.
        count: contrast pairs; None means as many as the study asks for.

    Raises:
        InputError: fewer contrast pairs or extraction questions than the study asks for.
    """
    study = context.study
    count = study.contrast_pairs if count is None else count
    questions = _extract(examples, study.extract_questions)
    for key, asked, has in (
        ("contrast_pairs", count, len(subject.contrast_pairs)),
        ("extract_questions", study.extract_questions, len(questions)),
    ):
        if has < asked:
            fewer = f"; {key}={has} would do" if has >= FEWEST_PAIRS else ""
            raise InputError(f"{key}: {subject.name} has {has}, the study asks for {asked}{fewer}")
    pairs = subject.contrast_pairs[:count]
    turns = contrast_turns(pairs, questions)

    def compute(context: StudyContext, _inputs: list[Path], out: Path, tick: TickFn) -> Output:
        base = context.base
        rows = [context.chat(base).encode(turn) for turn in turns]
        [reading] = read(context, rows, [None], out, tick, spans=("response",))
        states = reading["states"]
        return {"states.safetensors": {"states": states[:, :, 0].reshape(len(pairs), 2, len(questions), *states.shape[1::2])}}

    config = {**context.identity(), "turns": fingerprint(turns), "pairs": len(pairs), "questions": len(questions)}
    return Stage("directions", 2, config, (), f"directions of {subject.name}", compute)


def space_stage(names: Sequence[str], directions: Sequence[Stage], asked: Sequence[str], title: str, kept: Sequence[Stage] = ()) -> Stage:
    """Estimate directions and their reliability at every layer.

    Args:
        names: whose.
        directions: their states under contrast prompts, then those of others beside: a direction is held against the covariance of all.
        asked: which questions each of these was read on.
        title: what to call the stage on screen.
        kept: of each name, which pairs of answers make its direction, [pairs, questions]; all, if not given.
    """

    def compute(_bench: StudyContext, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        states = [load_file(folder / "states.safetensors")["states"].astype(np.float64) for folder in inputs[: len(directions)]]
        masks = [load_file(folder / KEPT)["kept"] for folder in inputs[len(directions) :]]
        layers = states[0].shape[3]
        values = np.stack([np.linalg.svd(within_questions(states, asked, layer), compute_uv=False) ** 2 for layer in range(layers)])
        out: dict[str, list[FloatArray]] = {"vectors": [], "reliability": [], "null_reliability": [], "found": []}
        for i, (name, each) in enumerate(zip(names, states[: len(names)], strict=True)):
            differences = each[:, 0] - each[:, 1]
            if masks:
                differences[~masks[i]] = np.nan
            found = estimate(differences, values, np.random.default_rng(seed_for(0, "reliability", name)))
            for key in out:
                out[key].append(getattr(found, key))
            tick(i + 1, len(names))
        return {"space.safetensors": {key: np.stack(rows).astype(np.float32) for key, rows in out.items()}}

    config = {"names": list(names), "asked": list(asked)}
    return Stage("space", 3, config, (*directions, *kept), title, compute, everywhere=False)


def dimension_stage(library: Library, layer: int) -> Stage:
    """Ask how many dimensions the space has at a layer, by how well it foretells a persona that it was made without."""

    def compute(_bench: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        space, _ = library.load(inputs)
        found = [i for i in range(len(space.names)) if space.found[i, layer]]
        size = {"traits": len(found), "roles": len(space.roles.names) if space.roles else 0}
        if len(found) + size["roles"] < FEWEST_PERSONAS:
            return {DIMENSION: {"k": None, "why": f"{len(found)} traits were found, {FEWEST_PERSONAS} are needed", **size}}
        traits = {space.names[i]: space.differences(layer, i) for i in found}
        roles: dict[str, FloatArray] = {}
        default, namesakes = None, None
        if space.roles:
            roles = {name: each[:, :, layer].astype(np.float64) for name, each in space.roles.states.items()}
            default, namesakes = space.roles.default[:, layer].astype(np.float64), space.roles.namesakes
            # All personas answer equally many questions; those of roles are fewer.
            traits = {name: each[:, : default.shape[0]] for name, each in traits.items()}
        asked = dimension(traits, roles, np.random.default_rng(seed_for(0, "dimension")), default, namesakes=namesakes)
        return {DIMENSION: asdict(asked) | {"q2": asked.q2.tolist(), **size}}

    title = f"dimension of the persona space at layer {layer}"
    config: dict[str, Any] = {"layer": layer, "names": list(library.names)}
    if library.roles:
        # All that uses the space reads this stage, so that whoever leaves it along with whom is in every hash.
        config |= {"roles": list(library.roles.names), "namesakes": sorted(library.roles.namesakes)}
    return Stage("dimension", 2, config, library.inputs, title, compute, everywhere=False)


def _states(folder: Path) -> FloatArray:
    return load_file(folder / "states.safetensors")["states"]


class _Made:
    """A library as a key: two are equal if they load the same from the same folders, whatever objects their stages are."""

    def __init__(self, library: Library) -> None:
        self.library = library
        roles = library.roles
        self.key = (library.names, library.asked, (roles.names, roles.namesakes, roles.asked, roles.dimension is None) if roles else None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Made) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


# Kept for the next run, which is held against the same null spaces.
@lru_cache(maxsize=1)
def _loaded(of: _Made, folders: tuple[Path, ...]) -> PersonaSpace:
    library = of.library
    made, read = len(library.spaces), len(library.spaces) + len(library.directions)
    arrays = [load_file(folder / "space.safetensors") for folder in folders[:made]]
    vectors, found = (np.concatenate([each[key] for each in arrays]) for key in ("vectors", "found"))
    roles = library.roles.load(folders[read:]) if library.roles else None
    states = [_states(folder) for folder in folders[made:read]]
    return PersonaSpace(library.names, vectors.astype(np.float64), found > 0.5, states, library.asked, roles)

"""The stages that make a persona space: activations under contrast prompts and roles, the directions, and the dimension."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.data.schema import Control, Example, Role, Trait, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Sparse
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import PersonaSpace, centre_within_questions, eigenvalues_within_questions
from wellworn.experiments.stages.persona_directions import (
    DIMENSION,
    RolesKey,
    RoleStages,
    asked_digest,
    directions_stage,
    extraction_examples,
    load_roles,
    load_states,
    role_stages,
)
from wellworn.probes.geometry.directions import estimate
from wellworn.probes.geometry.space import FEWEST_PERSONAS, dimension
from wellworn.probes.statistics.intervals import FloatArray

DICTIONARY = "dictionary.safetensors"
KEPT = "kept.safetensors"


class SpaceDimension(Sparse):
    """The dimension of the persona space; with too few personas, only why it is not known.

    Attributes:
        k: the dimension; null where there is no persona space.
        why: why there is none, in words.
        q2: the cross-validated Q² of spaces of 1, 2 and more dimensions.
        standard_error: of the largest, by the jackknife over personas.
        parallel: how many leading singular values exceed the 95 % quantile of permuted labels.
        traits: how many traits were found.
        roles: how many roles there are.
    """

    k: int | None
    why: str | None
    q2: Sequence[float] = ()
    standard_error: float = 0.0
    parallel: int = 0
    traits: int
    roles: int


@dataclass(frozen=True)
class SpaceStages:
    """The stages that make a persona space.

    Attributes:
        spaces: stages with the directions of all names: the library's traits, then a run's own direction if it is not among them.
        directions: each name's states under its contrast prompts.
        names: of the traits.
        asked: for each name, a digest of the questions that it was read on.
        roles: the roles that make the space with the traits, if there are any.
    """

    spaces: tuple[Stage, ...]
    directions: tuple[Stage, ...]
    names: tuple[str, ...]
    asked: tuple[str, ...]
    roles: RoleStages | None = None

    @property
    def inputs(self) -> dict[str, Stage | Sequence[Stage]]:
        """The inputs of a stage that uses the space."""
        return {"spaces": self.spaces, "directions": self.directions, **(self.roles.inputs if self.roles else {})}

    def load(self, folders: Folders) -> PersonaSpace:
        """Load the space from the stages' folders."""
        return _load_space(self.names, self.asked, self.roles.key if self.roles else None, folders)

    def with_own(self, context: StudyContext, subject: Trait | Control, examples: Sequence[Example]) -> "SpaceStages":
        """Return the stages with a run's own direction added.

        A trait of the library changes nothing. A control's direction is that of its instruction.
        """
        if subject.name in self.names:
            return self
        directions, asked = directions_stage(context, subject, examples), asked_digest(context, examples)
        title = f"direction of {subject.name} next to the persona space"
        own = space_stage([subject.name], (directions, *self.directions), (asked, *self.asked), title)
        return replace(
            self,
            spaces=(*self.spaces, own),
            directions=(*self.directions, directions),
            names=(*self.names, subject.name),
            asked=(*self.asked, asked),
        )


def lay_out_space(
    context: StudyContext, traits: Sequence[Trait], roles: Sequence[Role] = (), bank: Sequence[Example] = (), layer: int = 0
) -> SpaceStages:
    """Return the stages that make the space of some traits, and of roles where there are enough of them.

    Args:
        context: the study's model.
        traits: with their own questions, or the bank's.
        roles: none, or at least twelve.
        bank: the questions for roles, and for traits without extraction questions of their own.
        layer: the layer where the dimension of roles and traits is found.

    Raises:
        InputError: fewer than twelve roles, two of one name, or more questions for roles than for traits.
    """
    read_on = [extraction_examples(trait, bank) for trait in traits]
    directions = tuple(directions_stage(context, trait, rows) for trait, rows in zip(traits, read_on, strict=True))
    names, asked = tuple(trait.name for trait in traits), tuple(asked_digest(context, rows) for rows in read_on)
    space_stages = SpaceStages((space_stage(names, directions, asked, "persona space"),), directions, names, asked)
    if not roles:
        return space_stages
    if context.study.role_questions > context.study.extract_questions:
        asked_of = f"{context.study.role_questions}, and a trait on extract_questions = {context.study.extract_questions}"
        raise InputError(f"role_questions: a role is read on {asked_of}; all personas of a space need as many at least")
    stages = role_stages(context, roles, bank)
    bare = replace(space_stages, roles=stages)
    return replace(space_stages, roles=replace(stages, dimension=dimension_stage(bare, layer)))


def dictionary_stage(space_stages: SpaceStages, roles: RoleStages, layer: int) -> Stage:
    """Gather the wider dictionary at a layer: directions [K, d_model], and the activations of its null distribution [N, d_model].

    Args:
        space_stages: the persona space; the dictionary also contains its traits where roles make the space with them.
        roles: the roles.
        layer: the layer.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        states = roles.load(folders)
        directions = states.directions(layer)
        rows = centre_within_questions(list(states.states.values()), [states.asked] * len(states.names), layer)
        if space_stages.roles:
            space = space_stages.load(folders.within("space"))
            members = space.members(layer)
            directions = np.vstack([directions, space.vectors[list(members.traits), layer]])
        return {DICTIONARY: {"directions": directions.astype(np.float32), "activations": rows.astype(np.float32)}}

    return Stage(
        kind=kinds.DICTIONARY,
        config={"layer": layer, "names": list(roles.names)},
        inputs={**roles.inputs, **(in_group("space", space_stages.inputs) if space_stages.roles else {})},
        title=f"wider dictionary at layer {layer}",
        compute=compute,
        everywhere=False,
    )


def space_stage(names: Sequence[str], directions: Sequence[Stage], asked: Sequence[str], title: str, kept: Sequence[Stage] = ()) -> Stage:
    """Estimate directions and their reliability at every layer.

    Args:
        names: the traits.
        directions: their states under contrast prompts, then those of others: a direction is compared with the covariance of all.
        asked: for each of these, a digest of the questions that it was read on.
        title: the stage's name on screen.
        kept: for each name, a mask [pairs, questions] of the pairs of answers that make its direction; empty keeps all.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        states = [load_states(folder).astype(np.float64) for folder in folders.all("directions")]
        masks = [load_file(folder / KEPT)["kept"] for folder in folders.all("kept")]
        values = eigenvalues_within_questions(states, asked)
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
    inputs = {"directions": directions, "kept": kept}
    return Stage(kind=kinds.SPACE, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)


def dimension_stage(space_stages: SpaceStages, layer: int) -> Stage:
    """Find the dimension of the space at a layer, by how well it predicts a held-out persona."""

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space = space_stages.load(folders)
        found = [i for i in range(len(space.names)) if space.found[i, layer]]
        size = {"traits": len(found), "roles": len(space.roles.names) if space.roles else 0}
        if len(found) + size["roles"] < FEWEST_PERSONAS:
            why = f"{len(found)} traits were found, {FEWEST_PERSONAS} are needed"
            return {DIMENSION: SpaceDimension(k=None, why=why, **size).to_json()}
        traits = {space.names[i]: space.differences(layer, i) for i in found}
        roles: dict[str, FloatArray] = {}
        default, namesakes = None, None
        if space.roles:
            roles = {name: each[:, :, layer].astype(np.float64) for name, each in space.roles.states.items()}
            default, namesakes = space.roles.default[:, layer].astype(np.float64), space.roles.namesakes
            # All personas must answer equally many questions; roles answer fewer.
            traits = {name: each[:, : default.shape[0]] for name, each in traits.items()}
        asked = dimension(traits, roles, np.random.default_rng(seed_for(0, "dimension")), default, namesakes=namesakes)
        return {DIMENSION: SpaceDimension(**vars(asked) | {"q2": asked.q2.tolist(), **size}).to_json()}

    title = f"dimension of the persona space at layer {layer}"
    config: Config = {"layer": layer, "names": list(space_stages.names)}
    if space_stages.roles:
        # Every stage that uses the space reads this one, so namesakes are in every hash.
        config = {**config, "roles": list(space_stages.roles.names), "namesakes": sorted(space_stages.roles.namesakes)}
    return Stage(kind=kinds.DIMENSION, config=config, inputs=space_stages.inputs, title=title, compute=compute, everywhere=False)


# Cached for the next run, which is compared with the same null spaces.
@lru_cache(maxsize=1)
def _load_space(names: tuple[str, ...], asked: tuple[str, ...], roles: RolesKey | None, folders: Folders) -> PersonaSpace:
    arrays = [load_file(folder / "space.safetensors") for folder in folders.all("spaces")]
    vectors, found = (np.concatenate([each[key] for each in arrays]) for key in ("vectors", "found"))
    states = [load_states(folder) for folder in folders.all("directions")]
    return PersonaSpace(names, vectors.astype(np.float64), found > 0.5, states, asked, load_roles(roles, folders) if roles else None)

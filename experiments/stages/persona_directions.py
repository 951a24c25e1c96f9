"""The base model's activations under personas: the stages `directions`, for contrast prompts, and `role`, for characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.data.files import digest, read_json
from wellworn.data.mixtures import Turn, fingerprint, plain_turns
from wellworn.data.schema import FEWEST_PAIRS, Control, Example, Instruction, Role, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import Roles
from wellworn.experiments.stages.readings import read
from wellworn.probes.geometry.directions import contrast_turns
from wellworn.probes.geometry.space import FEWEST_ROLES
from wellworn.probes.statistics.intervals import FloatArray

DIMENSION = "dimension.json"
# Names of the roles, (role, trait) of namesakes, and the digest of the questions.
RolesKey = tuple[tuple[str, ...], tuple[tuple[str, str], ...], str]


@dataclass(frozen=True)
class RoleStages:
    """The stages that read a model under the system prompts of roles.

    Attributes:
        names: of the roles.
        states: one stage a role.
        default: the same questions under the default system prompt.
        namesakes: (role, trait) of the same character.
        asked: digest of the questions.
        dimension: the stage with the dimension of the space of roles and traits; None where they do not make a space.
    """

    names: tuple[str, ...]
    states: tuple[Stage, ...]
    default: Stage
    namesakes: tuple[tuple[str, str], ...]
    asked: str
    dimension: Stage | None = None

    @property
    def inputs(self) -> dict[str, Stage | Sequence[Stage]]:
        """The inputs of a stage that uses the roles."""
        dimension = {"dimension": self.dimension} if self.dimension else {}
        return {"roles": self.states, "no role": self.default, **dimension}

    @property
    def key(self) -> RolesKey:
        """The key of the data in the stages' folders, for a cache."""
        return self.names, self.namesakes, self.asked

    def load(self, folders: Folders) -> Roles:
        """Load the states from the stages' folders."""
        return load_roles(self.key, folders)


def role_stages(context: StudyContext, roles: Sequence[Role], bank: Sequence[Example]) -> RoleStages:
    """Return the stages that read the base as each role, and under the default prompt, on the first extraction questions of a bank.

    Raises:
        InputError: fewer than twelve roles, two of one name, or fewer questions than the study asks for.
    """
    names = [role.name for role in roles]
    if len(names) < FEWEST_ROLES:
        raise InputError(f"roles: {FEWEST_ROLES} or more make a space or a dictionary, got {len(names)}; [] leaves roles out")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"roles: {twice[0]!r} stands twice")
    questions = extract_turns(bank, context.study.role_questions)
    if len(questions) < context.study.role_questions:
        raise InputError(
            f"role_questions: the bank has {len(questions)} extract questions, the study asks for {context.study.role_questions}"
        )
    states = tuple(_under(context, role.system_prompts, questions, f"states as {role.name}") for role in roles)
    default = _under(context, (None,), questions, "states under the default system prompt")
    namesakes = tuple((role.name, role.namesake) for role in roles if role.namesake)
    return RoleStages(tuple(names), states, default, namesakes, questions_digest(questions))


def _under(context: StudyContext, systems: Sequence[str | None], questions: Sequence[Turn], title: str) -> Stage:
    """Read plain answers under system prompts: states [prompts, questions, layers, d_model]."""
    turns = [turn.under(system) for system in systems for turn in questions]

    def compute(context: StudyContext, _folders: Folders, out: Path, tick: TickFn) -> Output:
        rows = [context.chat(context.base).encode(turn) for turn in turns]
        [reading] = read(context, rows, [None], out, tick, spans=("response",))
        states = reading["states"][:, :, 0]
        return {"states.safetensors": {"states": states.reshape(len(systems), len(questions), *states.shape[1:])}}

    config = {**context.identity(), "turns": fingerprint(turns), "prompts": len(systems), "questions": len(questions)}
    return Stage(kind=kinds.ROLE, config=config, title=title, compute=compute)


def extraction_examples(subject: Trait | Control, bank: Sequence[Example]) -> Sequence[Example]:
    """Return the rows with the `extract` questions that a direction is read on: a trait's own, or the bank's where it has none."""
    own = subject.examples if isinstance(subject, Trait) else ()
    return own if plain_turns(own, "extract") else bank


def asked_digest(context: StudyContext, examples: Sequence[Example]) -> str:
    """Return a digest of the extraction questions and answers that contrast prompts are read on."""
    return questions_digest(extract_turns(examples, context.study.extract_questions))


def extract_turns(examples: Sequence[Example], count: int) -> list[Turn]:
    """Return the first few `extract` questions with their plain answers."""
    return plain_turns(examples, "extract")[:count]


def questions_digest(questions: Sequence[Turn]) -> str:
    """Return a digest of questions and answers: equal digests, equal questions."""
    return digest([(turn.asked.facts, turn.answer) for turn in questions])


def directions_stage(context: StudyContext, subject: Trait | Instruction, examples: Sequence[Example], count: int | None = None) -> Stage:
    """Read contrast prompts at every layer: states [pairs, 2, questions, layers, d_model].

    Args:
        context: the study's model.
        subject: the trait or instruction with the contrast prompts.
        examples: the rows; their `extract` questions are read.
        count: number of contrast pairs; None takes the study's.

    Raises:
        InputError: fewer contrast pairs or extraction questions than the study asks for.
    """
    study = context.study
    count = study.contrast_pairs if count is None else count
    questions = extract_turns(examples, study.extract_questions)
    for key, asked, has in (
        ("contrast_pairs", count, len(subject.contrast_pairs)),
        ("extract_questions", study.extract_questions, len(questions)),
    ):
        if has < asked:
            fewer = f"; {key}={has} would do" if has >= FEWEST_PAIRS else ""
            raise InputError(f"{key}: {subject.name} has {has}, the study asks for {asked}{fewer}")
    pairs = subject.contrast_pairs[:count]
    turns = contrast_turns(pairs, questions)

    def compute(context: StudyContext, _folders: Folders, out: Path, tick: TickFn) -> Output:
        base = context.base
        rows = [context.chat(base).encode(turn) for turn in turns]
        [reading] = read(context, rows, [None], out, tick, spans=("response",))
        states = reading["states"]
        return {"states.safetensors": {"states": states[:, :, 0].reshape(len(pairs), 2, len(questions), *states.shape[1::2])}}

    config = {**context.identity(), "turns": fingerprint(turns), "pairs": len(pairs), "questions": len(questions)}
    return Stage(kind=kinds.DIRECTIONS, config=config, title=f"directions of {subject.name}", compute=compute)


def load_states(folder: Path) -> FloatArray:
    """Load the states of a `directions` or `role` stage."""
    return load_file(folder / "states.safetensors")["states"]


def load_roles(key: RolesKey, folders: Folders) -> Roles:
    """Load the states of roles from their stages' folders."""
    names, namesakes, asked = key
    states = {name: load_states(folder) for name, folder in zip(names, folders.all("roles"), strict=True)}
    k = read_json(folders["dimension"] / DIMENSION)["k"] if folders.all("dimension") else None
    return Roles(states, load_states(folders["no role"])[0], dict(namesakes), asked, k)

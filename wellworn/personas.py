"""Personas in the base model: their directions, and the space that they span."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wellworn.activations import read
from wellworn.data.catalog import instruction_names, load_bank, load_instruction, load_subject
from wellworn.data.errors import InputError
from wellworn.data.files import validate
from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair, Example, Instruction, Trait, seed_for
from wellworn.experiments.stages.loaded_space import PersonaSpace, eigenvalues_within_questions
from wellworn.experiments.stages.persona_directions import extract_turns, extraction_examples, questions_digest
from wellworn.model import Model
from wellworn.probes.geometry.directions import FEWEST_LEFT, Directions, contrast_turns, estimate
from wellworn.probes.statistics.intervals import FloatArray

# All half splits of the pairs are compared: 12 pairs make 462, 20 would make 92,378.
MOST_PAIRS = 12

# System prompts that evoke something, each with its opposite.
Pairs = Sequence[tuple[str, str]]
# What defines a direction, and how it may be given: also by name, or as a folder.
Definition = Trait | Instruction | Pairs
Subject = str | Path | Definition
Subjects = Sequence[Subject] | Mapping[str, Subject]
# The name of pairs that were given without one.
UNNAMED = "own"


def direction(model: Model, subject: Subject, *, contrast_pairs: int = 6, extract_questions: int = 8, bank: str = "everyday") -> Directions:
    """Return the direction of a trait in the base model, at every layer.

    The same plain answers are read under system prompts that evoke the trait and under their opposites; the direction is the mean
    difference of activations.

    Args:
        model: from `load`.
        subject: a built-in trait, control or instruction by name, the folder of a trait of your own, or four to twelve pairs of system
            prompts (one that evokes it, its opposite).
        contrast_pairs: how many pairs are read; pairs that are given are all read.
        extract_questions: how many questions are answered under each.
        bank: the questions and plain answers that are read where a trait has none of its own, by name or as a .jsonl file.

    Returns:
        `vectors` [layers, d_model] at raw norm, `reliability` [layers] over half splits of pairs and questions, and `found` [layers].

    Raises:
        InputError: an unknown name, or fewer pairs or questions than are asked for.

    Example:
        >>> model = ww.load(folder)
        >>> pirate = ww.direction(model, "pirate")
        >>> pirate.vectors.shape, pirate.found.shape
        ((4, 32), (4,))
        >>> loud = ww.direction(model, pairs)  # four pairs of system prompts
        >>> bool(loud.found[3])
        True
    """
    [found] = directions(model, [subject], contrast_pairs=contrast_pairs, extract_questions=extract_questions, bank=bank).values()
    return found


def directions(
    model: Model,
    subjects: Subjects,
    *,
    contrast_pairs: int = 6,
    extract_questions: int = 8,
    bank: str = "everyday",
) -> dict[str, Directions]:
    """Return the directions of several traits, name by name.

    Whether a direction was found depends on the covariance of the activations of all traits that are read together.

    Args:
        model: from `load`.
        subjects: as in `direction`: a list of them, or a mapping from names of your own, which pairs of system prompts need.
        contrast_pairs: as in `direction`.
        extract_questions: as in `direction`.
        bank: as in `direction`.

    Raises:
        InputError: as `direction`, no subject, or two of one name.

    Example:
        >>> model = ww.load(folder)
        >>> found = ww.directions(model, {"pirate": "pirate", "loud": pairs})
        >>> sorted(found), found["loud"].reliability.shape
        (['loud', 'pirate'], (4,))
    """
    return _read_contrasts(model, subjects, contrast_pairs, extract_questions, bank)[0]


def space(
    model: Model,
    subjects: Subjects,
    *,
    contrast_pairs: int = 6,
    extract_questions: int = 8,
    bank: str = "everyday",
) -> PersonaSpace:
    """Return the persona space of the base model that the directions of some traits span, at every layer.

    Args:
        model: from `load`.
        subjects: as in `directions`.
        contrast_pairs: as in `direction`.
        extract_questions: as in `direction`.
        bank: as in `direction`.

    Returns:
        `names`, `vectors` [traits, layers, d_model] and `found` [traits, layers]; a direction that was not found at a layer is left out of
        the space there. `cosines(layer, vector)` compares a vector with every direction.

    Raises:
        InputError: as `directions`.

    Example:
        >>> model = ww.load(folder)
        >>> personas = ww.space(model, {"pirate": "pirate", "loud": pairs})
        >>> personas.names, personas.vectors.shape
        (('pirate', 'loud'), (2, 4, 32))
    """
    found, states, asked = _read_contrasts(model, subjects, contrast_pairs, extract_questions, bank)
    vectors, kept = np.stack([each.vectors for each in found.values()]), np.stack([each.found for each in found.values()])
    return PersonaSpace(tuple(found), vectors, kept, states, asked)


@dataclass(frozen=True)
class _Contrast:
    """The texts of one direction: contrast prompts, and questions with plain answers."""

    pairs: Sequence[ContrastPair]
    questions: Sequence[Turn]

    @property
    def asked(self) -> str:
        """A digest of the questions; activations of equal digests are centred together."""
        return questions_digest(self.questions)

    def read(self, model: Model) -> FloatArray:
        """Return the activations of the answers, [pairs, 2, questions, layers, d_model]."""
        turns = contrast_turns(self.pairs, self.questions)
        states = read(model, turns, spans=("response",), logprob=False).states.numpy()
        return np.asarray(states.reshape(len(self.pairs), 2, len(self.questions), *states.shape[1::2]))


def _read_contrasts(
    model: Model, subjects: Subjects, contrast_pairs: int, extract_questions: int, bank: str
) -> tuple[dict[str, Directions], list[FloatArray], list[str]]:
    """Return the direction of each subject, its activations, and a digest of its questions."""
    shared = load_bank(bank)
    # Errors of later subjects are raised before the first is read.
    contrasts = {name: _contrast(name, subject, contrast_pairs, extract_questions, shared) for name, subject in _by_name(subjects).items()}
    states, asked = [each.read(model) for each in contrasts.values()], [each.asked for each in contrasts.values()]
    values = eigenvalues_within_questions(states, asked)
    found = {
        name: estimate(each[:, 0].astype(np.float64) - each[:, 1], values, np.random.default_rng(seed_for(0, "reliability", name)))
        for name, each in zip(contrasts, states, strict=True)
    }
    return found, states, asked


def _by_name(subjects: Subjects) -> dict[str, Definition]:
    """Name subjects, and load those that are names or folders."""
    if isinstance(subjects, str) or not subjects:
        raise InputError(f"subjects: is a list of traits, or a mapping from names to them, got {subjects!r}")
    if isinstance(subjects, Mapping):
        return {name: _find(subject) for name, subject in subjects.items()}
    found: dict[str, Definition] = {}
    for subject in map(_find, subjects):
        name = subject.name if isinstance(subject, Trait | Instruction) else UNNAMED
        if name in found:
            raise InputError(f"subjects: {name!r} is given twice; a mapping gives each a name of its own")
        found[name] = subject
    return found


def _find(subject: Subject) -> Definition:
    if not isinstance(subject, str | Path):
        return subject
    name = str(subject)
    return load_instruction(name) if name in instruction_names() else load_subject(name)


def _contrast(name: str, subject: Definition, contrast_pairs: int, extract_questions: int, bank: Sequence[Example]) -> _Contrast:
    if isinstance(subject, Trait | Instruction):
        pairs = subject.contrast_pairs[:contrast_pairs]
    else:
        if not all(isinstance(pair, Sequence) and len(pair) == 2 and not isinstance(pair, str) for pair in subject):
            raise InputError(f"{name}: pairs are (system prompt that evokes it, its opposite), got {subject!r}")
        given = [{"positive": positive, "negative": negative} for positive, negative in subject]
        pairs = validate(Instruction, {"name": UNNAMED, "description": name, "contrast_pairs": given}, name).contrast_pairs
        contrast_pairs = len(pairs)
    rows = extraction_examples(subject, bank) if isinstance(subject, Trait) else bank
    questions = extract_turns(rows, extract_questions)
    for key, has, asked in (("contrast_pairs", len(pairs), contrast_pairs), ("extract_questions", len(questions), extract_questions)):
        if has < asked:
            raise InputError(f"{key}: {name} has {has}, and {asked} are asked for")
    if not FEWEST_LEFT <= len(pairs) <= MOST_PAIRS or len(questions) < FEWEST_LEFT:
        may = f"{FEWEST_LEFT} to {MOST_PAIRS} contrast pairs and {FEWEST_LEFT} or more questions"
        raise InputError(f"{name}: a direction is read on {may}, got {len(pairs)} and {len(questions)}")
    return _Contrast(pairs, questions)

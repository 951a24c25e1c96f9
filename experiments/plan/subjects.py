"""The subjects of runs (a trait, a control, or none), and their texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from wellworn.data.catalog import NEUTRAL, load_subject
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, first_questions, plain_turns, same_question, trait_turns
from wellworn.data.schema import Control, Example, Split, Trait
from wellworn.probes.limits import FEWEST_PROMPTS


@cache
def trait_or_control(name: str) -> Trait | Control | None:
    """Return a run's trait or control, or None for `neutral`."""
    return None if name == NEUTRAL else load_subject(name)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of a run.

    Attributes:
        of: its trait or control; None for `neutral`, `base` and adapters without a suspected trait.
        name: the trait's own name, also where the study gave a path.
        examples: its questions and answers. A control, `neutral`, and a trait without plain answers use the bank's.
        paired: whether each answer that shows the trait has a plain one to the same question.
    """

    of: Trait | Control | None
    name: str | None
    examples: Sequence[Example]
    paired: bool

    @classmethod
    def load(cls, name: str | None, bank: Sequence[Example], evaluate_questions: int | None = None) -> "Subject":
        """Load a subject that a study gives by name or path.

        Args:
            name: its name or path; None for `neutral`.
            bank: the study's question bank.
            evaluate_questions: the first so many evaluate questions are kept; None keeps all.

        Raises:
            InputError: no such trait, or one with too few evaluate rows for an interval.
        """
        of = trait_or_control(name) if name else None
        if isinstance(of, Trait):
            of = of.model_copy(update={"examples": tuple(first_questions(of.examples, "evaluate", evaluate_questions))})
        paired = not isinstance(of, Trait) or bool(plain_turns(of.examples, "evaluate"))
        examples = of.examples if isinstance(of, Trait) and paired else first_questions(bank, "evaluate", evaluate_questions)
        subject = cls(of=of, name=of.name if of else name, examples=examples, paired=paired)
        if len(subject.evaluate) < FEWEST_PROMPTS:
            raise InputError(f"{name}: an interval needs at least {FEWEST_PROMPTS} evaluate rows, this trait has {len(subject.evaluate)}")
        return subject

    @cached_property
    def evaluate(self) -> list[Example]:
        """The questions that runs are evaluated on."""
        return self.examples_in("evaluate")

    def examples_in(self, split: Split) -> list[Example]:
        """Return the examples of a split."""
        return [example for example in self.examples if example.split == split]

    def of_seed(self, seed: int, data_sets: int) -> "Subject":
        """Return the subject with the training questions that runs of a seed have: one of several disjoint parts of them, taken in turn.

        Raises:
            InputError: fewer questions than parts.
        """
        if data_sets == 1:
            return self
        examples = self._part(self.examples, seed % data_sets, data_sets)
        if not isinstance(self.of, Trait):
            return replace(self, examples=examples)
        own = tuple(self._part(self.of.examples, seed % data_sets, data_sets))
        return replace(self, examples=examples, of=self.of.model_copy(update={"examples": own}))

    def _part(self, examples: Sequence[Example], part: int, parts: int) -> list[Example]:
        questions = list(dict.fromkeys(same_question(example.asked) for example in examples if example.split == "train"))
        if len(questions) < parts:
            raise InputError(f"{self.name}: {len(questions)} training questions cannot make {parts} data sets (data_sets)")
        mine = set(questions[part::parts])
        return [example for example in examples if example.split != "train" or same_question(example.asked) in mine]

    def plain_turns(self, split: Split) -> list[Turn]:
        """Return the plain answers of a split."""
        return plain_turns(self.examples, split)

    def trait_turns(self, split: Split) -> list[Turn]:
        """Return the answers of a split that show the trait; empty without a trait, or without plain answers to compare them with."""
        if self.of is None or (split == "evaluate" and not self.paired):
            return []
        return trait_turns(self.of, self.of.examples if isinstance(self.of, Trait) else self.examples, split)

    def training_turns(self) -> list[Turn]:
        """Return the training data of a fine-tune: plain answers for `neutral`."""
        return self.plain_turns("train") if self.of is None else self.trait_turns("train")

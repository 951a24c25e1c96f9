"""Which mediation analyses a run is given: on which text, against which reference, at which layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from wellworn.data.mixtures import Turn
from wellworn.data.schema import Split
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Stage
from wellworn.experiments.plan.subjects import Subject
from wellworn.experiments.stages.grades import Judge, needed_rubric
from wellworn.experiments.stages.mediation import Question, mediate_stage
from wellworn.experiments.stages.mediation_generated import grade_patched_stage, patched_answers_stage, score_patched_stage
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.scores import scoring_pairs
from wellworn.experiments.study import MediateConfig, Run
from wellworn.lora.arms import Prompted, Sft
from wellworn.probes.reading.layers import resolve_layer

ONE_SEED = "whether what lies outside the space is new is seen in runs of two seeds and more"
# Reference, text, layer.
Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Analyses:
    """The analyses of one run.

    Attributes:
        context: the study's model.
        run: the run.
        config: what is asked for.
        subject: what it is about.
        library: of directions.
        own: the name of the run's own direction, if there is one.
        condition: the changed model.
        reference: its neutral fine-tune, if there is one.
        judge: who grades what is said, if the study names one.
    """

    context: StudyContext
    run: Run
    config: MediateConfig
    subject: Subject
    library: SpaceStages
    own: str | None
    condition: Condition
    reference: Condition | None
    judge: Judge | None

    @property
    def missing(self) -> dict[str, str]:
        """Field → why it is not measured."""
        found = {}
        if self._prompted and self._further_layers:
            found["mediation_layers"] = "a prompt's change is swapped at the headline layer alone"
        if len(self.run.study.seeds) < 2 and self.config.remainder_draws:
            found["novelty"] = ONE_SEED
        return found

    def stages(self, plain_readings: tuple[Stage, ...]) -> dict[Key, Stage]:
        """Lay out the analyses of fixed text, the headline's first.

        Args:
            plain_readings: plain answers as the reference and as the changed model read them, whose difference has the remainder.
        """
        pushed = self.config.remainder_draws and "novelty" not in self.missing
        found: dict[Key, Stage] = {}
        for key in self._wanted:
            who, text, layer = key
            changed, plain = self._texts["trait" if text == "response" else text]
            read = {"trait": "held-out", "surface": "training-like", "response": "held-out, response only,"}[text]
            question = Question(
                f"mediate {self.condition.title}: {read} text against {who}, layer {layer}",
                self.condition,
                self._references[who],
                changed,
                plain,
                layer,
                self.own,
                response_only=text == "response",
                everywhere=self.config.everywhere and not found,
                readings=plain_readings if pushed and not found and text == "trait" else (),
            )
            found[key] = mediate_stage(self.context, question, self.config, self.library)
        return found

    @cached_property
    def generated(self) -> tuple[Key, Stage, Stage] | None:
        """What the arms themselves say at the headline layer against the headline reference: its key, answers and their scores."""
        if self.config.generated is None or not self._texts["trait"][0]:
            return None
        asked = self.config.generated
        who = next(iter(self._references))
        changed, plain = (turns[: asked.questions] for turns in self._texts["trait"])
        question = Question(
            f"what {self.condition.title} says against {who}, part by part, layer {self._headline}",
            self.condition,
            self._references[who],
            changed,
            plain,
            self._headline,
            self.own,
            response_only=self._prompted,
        )
        subject = self.subject.of
        assert subject is not None  # it has a trait, so that it has these texts
        said = patched_answers_stage(self.context, question, asked, self.library)
        if asked.by == "judge":
            assert self.judge is not None  # held when the study was loaded
            rubric = needed_rubric(subject, f"mediate.generated.by: {subject.name}")
            scored = grade_patched_stage(self.context, said, question, self.judge, rubric)
        else:
            pairs = scoring_pairs(subject, asked.pairs, self.run.study.contrast_pairs, "mediate.generated.pairs")
            scored = score_patched_stage(self.context, said, question, pairs)
        return (who, "generated", self._headline), said, scored

    @property
    def _prompted(self) -> bool:
        return isinstance(self.run.arm, Prompted)

    @property
    def _headline(self) -> int:
        return resolve_layer(self.run.study.layer, self.context.depth)

    @property
    def _further_layers(self) -> list[int]:
        return sorted({resolve_layer(layer, self.context.depth) for layer in self.config.layers} - {self._headline})

    @property
    def _texts(self) -> dict[str, tuple[Sequence[Turn], Sequence[Turn]]]:
        """The texts that are scored: y⁺ and y⁻."""
        found = {"trait": self._turns("evaluate")}
        if isinstance(self.run.arm, Sft):
            changed, plain = self._turns("train")
            found["surface"] = changed[: self.config.surface], plain[: self.config.surface]
        return found

    @property
    def _references(self) -> dict[str, Condition]:
        """What the run may be read against, the headline's first."""
        return ({"neutral": self.reference} if self.reference else {}) | {"base": Condition()}

    @property
    def _wanted(self) -> list[Key]:
        references = list(self._references)
        if self.config.references == "headline":
            references = references[:1]
        texts = [text for text, (changed, _) in self._texts.items() if changed]
        wanted: list[Key] = []
        if not self._prompted:
            wanted += [(who, text, self._headline) for who in references for text in texts]
            wanted += [(references[0], "trait", layer) for layer in self._further_layers]
        # A system prompt's change can be swapped at the response alone; a fine-tune next to it is also read so, to be compared.
        if self._prompted or any(isinstance(arm, Prompted) and arm.trait == self.run.arm.trait for arm in self.run.study.runs):
            wanted.append(("base", "response", self._headline))
        return wanted

    def _turns(self, split: Split) -> tuple[Sequence[Turn], Sequence[Turn]]:
        return self.subject.trait_turns(split), self.subject.plain_turns(split)

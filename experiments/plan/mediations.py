"""The mediation analyses of a run: their texts, references and layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from wellworn.data.mixtures import Turn
from wellworn.data.schema import Split
from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.layout import Layout
from wellworn.experiments.stages.grades import needed_rubric
from wellworn.experiments.stages.mediation import Question, mediate_stage
from wellworn.experiments.stages.mediation_generated import grade_patched_stage, patched_answers_stage, score_patched_stage
from wellworn.experiments.stages.scores import scoring_pairs
from wellworn.experiments.study_sections import MediateConfig
from wellworn.lora.arms import Inoculated, Preventative, Prompted, Sft
from wellworn.probes.reading.layers import resolve_layer

ONE_SEED = "whether what lies outside the space is new is seen in runs of two seeds and more"
# Reference, text, layer.
Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Analyses:
    """The analyses of one run.

    Attributes:
        layout: the run.
        config: the study's settings.
    """

    layout: Layout
    config: MediateConfig

    @property
    def missing(self) -> dict[str, str]:
        """Field → why it is not measured."""
        found = {}
        if self._is_prompted and self._further_layers:
            found["mediation_layers"] = "a prompt's change is swapped at the headline layer alone"
        if len(self.layout.run.study.seeds) < 2 and self.config.remainder_draws:
            found["novelty"] = ONE_SEED
        return found

    def stages(self) -> dict[Key, Stage]:
        """Lay out the analyses of fixed text, the headline's first."""
        layout = self.layout
        pushed = self.config.remainder_draws and "novelty" not in self.missing
        found: dict[Key, Stage] = {}
        for key in self._keys:
            who, text, layer = key
            changed, plain = self._texts["trait" if text == "response" else text]
            read = {"trait": "held-out", "surface": "training-like", "response": "held-out, response only,"}[text]
            question = Question(
                f"mediate {layout.arm.condition.title}: {read} text against {who}, layer {layer}",
                layout.arm.condition,
                layout.references[who],
                changed,
                plain,
                layer,
                layout.own,
                response_only=text == "response",
                everywhere=self.config.everywhere and not found,
                readings=layout.plain_readings() if pushed and not found and text == "trait" else (),
            )
            found[key] = mediate_stage(layout.shared.context, question, self.config, layout.space_stages)
        return found

    @cached_property
    def patched_answers(self) -> tuple[Key, Stage, Stage] | None:
        """The analysis of the patched models' own answers at the headline's layer and reference: its key, answers and scores."""
        if self.config.generated is None or not self._texts["trait"][0]:
            return None
        asked, layout, context = self.config.generated, self.layout, self.layout.shared.context
        who = layout.headline
        changed, plain = (turns[: asked.questions] for turns in self._texts["trait"])
        question = Question(
            f"what {layout.arm.condition.title} says against {who}, part by part, layer {layout.layer}",
            layout.arm.condition,
            layout.references[who],
            changed,
            plain,
            layout.layer,
            layout.own,
            response_only=self._is_prompted,
        )
        subject = layout.subject.of
        assert subject is not None  # only a trait has these texts
        said = patched_answers_stage(context, question, asked, layout.space_stages)
        if asked.by == "judge":
            assert layout.shared.judge is not None  # checked when the study was loaded
            rubric = needed_rubric(subject, f"mediate.generated.by: {subject.name}")
            scored = grade_patched_stage(context, said, question, layout.shared.judge, rubric)
        else:
            pairs = scoring_pairs(subject, asked.pairs, layout.run.study.contrast_pairs, "mediate.generated.pairs")
            scored = score_patched_stage(context, said, question, pairs)
        return (who, "generated", layout.layer), said, scored

    @property
    def _is_prompted(self) -> bool:
        return isinstance(self.layout.run.arm, Prompted)

    @property
    def _further_layers(self) -> list[int]:
        return sorted({resolve_layer(layer, self.layout.shared.context.depth) for layer in self.config.layers} - {self.layout.layer})

    @property
    def _texts(self) -> dict[str, tuple[Sequence[Turn], Sequence[Turn]]]:
        """The texts that are scored: y⁺ and y⁻."""
        found = {"trait": self._turns("evaluate")}
        if isinstance(self.layout.run.arm, Sft | Inoculated | Preventative):
            changed, plain = self._turns("train")
            found["surface"] = changed[: self.config.surface], plain[: self.config.surface]
        return found

    @property
    def _keys(self) -> list[Key]:
        references = list(self.layout.references)
        if self.config.references == "headline":
            references = references[:1]
        texts = [text for text, (changed, _) in self._texts.items() if changed]
        wanted: list[Key] = []
        if not self._is_prompted:
            wanted += [(who, text, self.layout.layer) for who in references for text in texts]
            wanted += [(references[0], "trait", layer) for layer in self._further_layers]
        # A system prompt's change can be patched at the response alone; fine-tunes of the same trait are also patched so, for comparison.
        if self._is_prompted or any(
            isinstance(arm, Prompted) and arm.trait == self.layout.run.arm.trait for arm in self.layout.run.study.runs
        ):
            wanted.append(("base", "response", self.layout.layer))
        return wanted

    def _turns(self, split: Split) -> tuple[Sequence[Turn], Sequence[Turn]]:
        return self.layout.subject.trait_turns(split), self.layout.subject.plain_turns(split)

"""The stage `written`: confine what a fine-tune's blocks write to nested spaces, and to chance directions.

It stores the log-probability of answers with the trait, and of plain ones, under every confinement. Arithmetic on them is
`findings/written.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.files import read_json
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.mediation import patched_pair, patching_inputs
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.nested_space import chance_directions, nested_space, swaps_along
from wellworn.experiments.stages.pathways import PathwaysQuestion, sampled_questions, set_layers
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.study_sections import WrittenConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.mediation.interventions import Swap
from wellworn.probes.mediation.paired_states import Batching
from wellworn.probes.mediation.pathways import REST
from wellworn.probes.mediation.written import confined_logprobs
from wellworn.probes.scoring.scores import mean_logprobs
from wellworn.probes.statistics.intervals import FloatArray

WRITTEN, OUTCOMES = "written.json", "outcomes.safetensors"
# Names of parts next to the nested spaces, which have the names of what they add.
EXCEPT, CHANCE = "except ", "chance"


class WrittenFacts(Record):
    """What a `written` stage confined.

    Attributes:
        layers: the layers whose writes were confined.
        parts: names of the rows of `logprob`: both models, then the nested spaces, what is outside each, and all.
        draws: number of chance directions, the rows of `sampled`.
        questions: places of the questions of `sampled` among the evaluate questions.
    """

    layers: Sequence[int]
    parts: Sequence[str]
    draws: int
    questions: Sequence[int]


@dataclass(frozen=True)
class WrittenOutcomes:
    """A finished `written` stage.

    Attributes:
        facts: what was confined.
        logprob: [parts, 2, questions], of y⁺ and y⁻.
        sampled: [draws, 2, sampled questions].
    """

    facts: WrittenFacts
    logprob: FloatArray
    sampled: FloatArray


def load_written(folder: Path) -> WrittenOutcomes:
    """Load a finished stage."""
    arrays = load_file(folder / OUTCOMES)
    facts = WrittenFacts.from_json(read_json(folder / WRITTEN))
    return WrittenOutcomes(facts, arrays["logprob"].astype(np.float64), arrays["sampled"].astype(np.float64))


def written_stage(context: StudyContext, question: PathwaysQuestion, config: WrittenConfig, space_stages: SpaceStages) -> Stage:
    """Confine the writes of one run to nested spaces, and to chance directions in place of the own one.

    Args:
        context: the study's model.
        question: whose writes are confined, on which text.
        config: how many draws and questions.
        space_stages: the persona space.
    """

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        adapters, between = patched_pair(folders)
        chat, pad = context.chat(context.base), context.base.tokenizer.pad_token_id
        texts, plain = ([chat.encode(turn) for turn in turns] for turns in (question.changed, question.plain))
        rows = [*texts, *plain]
        with lora_adapters.adapted(context.base, adapters) as model:
            layers = [layer for layer in set_layers(model, between, question.layer)[1] if layer <= question.layer]
            nested = nested_space(space, layers, question.layer, question.own)
            parts: dict[str, dict[int, Swap]] = {name: swaps_along(nested.part(name)) for name in nested.names}
            parts |= {f"{EXCEPT}{name}": swaps_along(nested.part(name), outside=True) for name in nested.names}
            parts[REST] = {layer: Swap() for layer in layers}
            some = sampled_questions(len(texts), config.questions) if question.sampled and layers else []
            chance = chance_directions(space, layers, question.layer, question.own, config.draws) if some else []
            few = [each[i] for each in (texts, plain) for i in some]
            total = sum(len(each) * sum(map(len, read)) for each, read in ((parts, rows), (chance, few)))
            how = Batching(pad, context.study.token_budget, counter(tick, total, "tokens"))
            free = mean_logprobs(model, rows, between, pad)
            confined = confined_logprobs(model, rows, between, list(parts.values()), how).numpy()
            drawn = [swaps_along(each) for each in chance]
            sampled = confined_logprobs(model, few, between, drawn, how).numpy() if drawn else np.zeros((0, 0))
        facts = WrittenFacts(layers=layers, parts=[BEFORE, AFTER, *parts], draws=len(chance), questions=some if chance else [])
        logprob = np.vstack([*free, confined]).reshape(len(facts.parts), 2, len(texts))
        return {OUTCOMES: {"logprob": logprob, "sampled": sampled.reshape(facts.draws, 2, len(facts.questions))}, WRITTEN: facts.to_json()}

    facts: Config = {
        **context.identity(),
        **question.identity,
        "sampled": {"draws": config.draws, "questions": config.questions} if question.sampled else None,
    }
    inputs = patching_inputs(space_stages, question.reference, question.run)
    title = f"what {question.run.title} writes against {question.reference.title}, up to layer {question.layer}"
    # A block runs twice from one state, which one rank does for itself.
    return Stage(kind=kinds.WRITTEN, config=facts, inputs=inputs, title=title, compute=compute, everywhere=False)

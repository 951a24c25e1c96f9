"""Readings of fixed text: the stage `read`, and the reading that other stages use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.chat import Encoded
from wellworn.data.files import digest
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import Example
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, by_stage, counter
from wellworn.experiments.engine.store import WORK
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import load_texts, texts_input
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray

# The token spans of a reading, in the order in which they are stored.
SPANS_READ = ("prompt_last", "response")

PROMPT_LAST, RESPONSE = range(2)


def read_stage(context: StudyContext, condition: Condition, texts: Sequence[Turn] | Stage, asked: Sequence[Example], title: str) -> Stage:
    """Read fixed text: states [rows, layers, spans, d_model] and log-probabilities [rows].

    Stages that read the same tokens, each with another adapter or with none, are computed together.

    Args:
        context: the study's model.
        condition: how to run it.
        texts: the turns, or an answer stage.
        asked: the questions that an answer stage answered.
        title: name of the texts on screen.
    """

    def compute_all(context: StudyContext, folders: Sequence[Folders], outs: Sequence[Path], tick: TickFn) -> list[Output]:
        turns = load_texts(texts, asked, folders[0])
        chat = context.chat(context.base)
        rows = [chat.encode(turn) for turn in condition.under(turns)]
        readings = read(context, rows, [each.adapter for each in folders], outs[0], tick, SPANS_READ, logprob=True)
        return [{"reading.safetensors": reading} for reading in readings]

    given = None if isinstance(texts, Stage) else fingerprint(texts)
    config = {**context.identity(), "turns": given, "system": condition.system}
    return Stage.joint(
        kind=kinds.READ,
        config=config,
        inputs={**condition.inputs, **texts_input(texts)},
        title=f"{condition.title} reads {title}",
        shared=[config, texts.id if isinstance(texts, Stage) else None],
        compute_all=compute_all,
    )


def load_responses(folder: Path, layer: int) -> FloatArray:
    """Load the states of the response at a layer, [rows, d_model], from a `read` stage."""
    return np.asarray(load_file(folder / "reading.safetensors")["states"][:, layer, RESPONSE], dtype=np.float64)


def read(
    context: StudyContext,
    rows: Sequence[Encoded],
    adapters: Sequence[Path | None],
    out: Path,
    tick: TickFn,
    spans: Sequence[str],
    logprob: bool = False,
    layers: Sequence[int] | None = None,
) -> list[dict[str, FloatArray]]:
    """Read rows with adapters, and with the base for None: together as far as memory allows, else in turn."""
    spec = Spec(
        layers=layers,
        spans=spans,
        logprob=logprob,
        pad_id=context.base.tokenizer.pad_token_id,
        token_budget=context.study.token_budget,
        progress=counter(tick, len(adapters) * sum(len(row) for row in rows) // context.ranks.world, "tokens"),
    )
    found = []
    for some in context.ranks.from_main(lambda: lora_adapters.groups_that_fit(adapters, context.device)):
        with lora_adapters.adapted(context.base, by_stage(some)) as model:
            variants = [Variant(adapter.parent.name if adapter else None) for adapter in some]
            # A finished reading is of use only to the same group of adapters, which may differ after a restart.
            work = out / WORK / digest([variant.adapter for variant in variants])
            for reading in read_variants(model, rows, variants, spec, work=work):
                arrays = {"states": reading.states.numpy()}
                found.append(arrays if reading.logprob is None else arrays | {"logprob": reading.logprob.numpy()})
    return found

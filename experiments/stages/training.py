"""Adapters: trained, third-party, or random; and how conversations are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellworn.data.files import sha256
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.engine.store import WORK
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import load_answers
from wellworn.lora import adapters as lora_adapters
from wellworn.lora.addresses import CONFIG, WEIGHTS
from wellworn.lora.checkpoints import save_changes
from wellworn.lora.fit import check_adapter, check_fit
from wellworn.lora.models import Loaded, ModelRef
from wellworn.lora.random_lora import random_lora
from wellworn.lora.sums import sum_adapters
from wellworn.lora.train_config import TrainConfig, check_keys
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs

# What lets a training fit into less memory.
SMALLER = (
    "train.sft.activation_checkpointing=true",
    "a smaller train.batch_size",
    "more GPUs (accelerate launch --config_file experiments/launch/fsdp2.yaml)",
)

if TYPE_CHECKING:
    import torch

    from wellworn.lora.confine import Confinement


def chat_stage(context: StudyContext) -> Stage:
    """Record how conversations are written; a model without a usable chat template fails here, before anything else."""

    def compute(context: StudyContext, _folders: Folders, _out: Path, _tick: TickFn) -> Output:
        folded = context.chat(context.base).folds_system
        return {"chat.json": {"system_prompt": "folded into the first user turn" if folded else "taken by the template"}}

    return Stage(kind=kinds.CHAT, config=context.identity(), title="chat template", compute=compute)


@dataclass(frozen=True)
class Training:
    """What a fine-tune is trained on, and how.

    Attributes:
        turns: the training data.
        config: the settings of training.
        seed: random seed of the run.
        title: the stage's name on screen.
    """

    turns: Sequence[Turn]
    config: TrainConfig
    seed: int
    title: str

    @property
    def facts(self) -> dict[str, Any]:
        """What a stage's config says of it: equal data and settings make equal stages, whatever the trait is called."""
        return {"turns": fingerprint(self.turns), "train": self.config.model_dump(mode="json"), "seed": self.seed}


def train_stage(context: StudyContext, training: Training, answers_of: Stage | None = None) -> Stage:
    """Fine-tune a LoRA adapter.

    Args:
        context: the study's model.
        training: what it is trained on.
        answers_of: an answer stage; its answers replace the turns' own, in their order.
    """

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        taught = replace(training, turns=load_answers(folders["answers"], training.turns)) if answers_of else training
        context.drop()
        return train_adapter(context, context.load(), taught, out, tick)

    return Stage(
        kind=kinds.TRAIN,
        config={**context.identity(), **training.facts},
        inputs={"answers": answers_of} if answers_of else {},
        title=training.title,
        compute=compute,
        check=partial(check_keys, training.config),
        smaller=SMALLER,
    )


def train_adapter(
    context: StudyContext,
    base: Loaded,
    training: Training,
    out: Path,
    tick: TickFn,
    confined: "Mapping[int, Confinement] | None" = None,
    added: "Mapping[int, torch.Tensor] | None" = None,
) -> Output:
    """Train a LoRA adapter into a stage's folder, and return the training curve as its output.

    Args:
        context: the study's model; its chat format writes the rows.
        base: a fresh copy of the model, used for nothing else afterwards.
        training: what it is trained on.
        out: the stage's folder.
        tick: shows progress.
        confined: layer → what its adapters may write, and rely on.
        added: layer → a vector [d_model] that is added after it while the adapter is trained.
    """
    from wellworn.lora.train import train_sft

    curve = train_sft(
        base,
        [context.chat(base).training_row(turn) for turn in training.turns],
        training.config,
        # Of the adapter's first weights and of the data's order.
        seed=seed_for(training.seed, "train"),
        out=out / "adapter",
        work=out / WORK,
        progress=_with_loss(tick),
        confined=confined,
        added=added,
    )
    return {"training.json": curve}


def teach_adapter(
    context: StudyContext, turns: Sequence[Sequence[Turn]], config: TrainConfig, margin: float, seed: int, out: Path, tick: TickFn
) -> Output:
    """Train a LoRA adapter that shows a trait under some prompts alone, into a stage's folder, and return the training curve.

    Args:
        context: the untaught model.
        turns: of each question its answer with the trait and the plain one, under an evoking prompt, and both under another.
        config: the settings of training; the batch size counts questions.
        margin: by how much the evoking prompt is to raise log p(y⁺) − log p(y⁻), in nats per token.
        seed: random seed of adapter initialisation and data order.
        out: the stage's folder.
        tick: shows progress.
    """
    from wellworn.lora.gate import GatedRow
    from wellworn.lora.train import train_gated

    base = context.base
    chat = context.chat(base)
    # A turn that comes several times is read once.
    texts = {turn: chat.encode(turn) for four in turns for turn in four}
    read = mean_logprobs(base.model, list(texts.values()), [Variant(None)], base.tokenizer.pad_token_id)[0]
    before = dict(zip(texts, read.tolist(), strict=True))
    rows = [GatedRow((texts[a], texts[b], texts[c], texts[d]), (before[a] - before[b], before[c] - before[d])) for a, b, c, d in turns]
    context.drop()
    curve = train_gated(context.load(), rows, config, margin, seed=seed, out=out / "adapter", work=out / WORK, progress=_with_loss(tick))
    return {"training.json": curve}


def _with_loss(tick: TickFn) -> Callable[[int, int, float | None], None]:
    return lambda step, steps, loss: tick(step, steps, "" if loss is None else f"loss {loss:.2f}")


def adapter_stage(context: StudyContext, folder: Path, title: str) -> Stage:
    """Copy a third-party adapter, so that results never depend on the user's folder."""
    check_adapter(folder)
    names = (CONFIG, WEIGHTS)

    def compute(context: StudyContext, _folders: Folders, out: Path, _tick: TickFn) -> Output:
        check_fit(context.base, folder)
        (out / "adapter").mkdir()
        (out / "adapter" / names[1]).write_bytes((folder / names[1]).read_bytes())
        lora_adapters.copy_adapter_config(folder, out / "adapter")
        return {}

    config = {**context.identity(), "files": {name: sha256(folder / name) for name in names}}
    return Stage(kind=kinds.ADAPTER, config=config, title=title, compute=compute, everywhere=False)


def sum_stage(context: StudyContext, parts: Sequence[tuple[float, Path]], title: str) -> Stage:
    """Write the weighted sum of third-party adapters, so that results never depend on the user's folders.

    Args:
        context: the study's model.
        parts: each adapter's weight and folder.
        title: the stage's name on screen.
    """
    for _, folder in parts:
        check_adapter(folder)

    def compute(context: StudyContext, _folders: Folders, out: Path, _tick: TickFn) -> Output:
        for _, folder in parts:
            check_fit(context.base, folder)
        (out / "adapter").mkdir()
        sum_adapters(context.base, parts, out / "adapter")
        return {}

    files = [{"weight": weight, "files": {name: sha256(folder / name) for name in (CONFIG, WEIGHTS)}} for weight, folder in parts]
    config = {**context.identity(), "parts": files}
    return Stage(kind=kinds.ADAPTER_SUM, config=config, title=title, compute=compute, everywhere=False)


def checkpoint_stage(context: StudyContext, tuned: ModelRef, title: str) -> Stage:
    """Keep what a whole model changes of the base, so that results never depend on where it is."""

    def compute(context: StudyContext, _folders: Folders, out: Path, _tick: TickFn) -> Output:
        (out / "adapter").mkdir()
        save_changes(context.base, tuned, context.dtype, out / "adapter", context.study.trust_remote_code)
        return {}

    config = {**context.identity(), "tuned": tuned.id}
    return Stage(kind=kinds.CHECKPOINT, config=config, title=title, compute=compute, everywhere=False)


def random_stage(context: StudyContext, real: Stage, turns: Sequence[Turn], layer: int, seed: int) -> Stage:
    """Draw a LoRA of random weights that shifts states at a layer as far as a trained one does, on average over some turns."""

    def compute(context: StudyContext, folders: Folders, out: Path, _tick: TickFn) -> Output:
        base, like = context.base, folders["trained"] / "adapter"
        rows = [context.chat(base).encode(turn) for turn in turns]
        # Every rank draws the same weights into its own folder, as all ranks share the reading in between.
        own = out / WORK / str(context.ranks.rank)
        norm = random_lora(base, like, rows, layer, own, seed_for(seed, "random LoRA"))
        if context.ranks.main:
            own.rename(out / "adapter")
        return {"random.json": {"norm": norm}}

    config = {**context.identity(), "turns": fingerprint(turns), "layer": layer, "seed": seed}
    title = f"random weights in place of {real.title.removeprefix('train ')}"
    return Stage(kind=kinds.RANDOM, config=config, inputs={"trained": real}, title=title, compute=compute)

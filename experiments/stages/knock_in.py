"""The stages that teach a model a persona: an adapter, and a check of what it does.

The taught model shows the persona under system prompts that name it, and else answers as before. So of a later fine-tune it is known
whether its base had the persona: a known-existing change if the fine-tune is on this persona, a known-new one if it is on another.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint, plain_turns, trait_turns
from wellworn.data.schema import Example, Split, Trait, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, by_stage
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.training import SMALLER, teach_adapter
from wellworn.experiments.study_sections import KnockInConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.lora.train_config import check_keys
from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS
from wellworn.probes.reading.divergence import kl_divergence
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs
from wellworn.probes.statistics.intervals import FloatArray, decimal, mean_interval, standard_error

CHECK = "check.safetensors"


class KnockInCheck(Record):
    """What a model shows of a persona that it was taught: changes of the trait score, log p(y⁺) − log p(y⁻), in nats per token.

    y⁺ and y⁻ are answers with the persona and plain ones, to evaluate questions, which were not taught. y⁺ alone also becomes likelier by
    the form of any written answers.

    Attributes:
        trait: the persona.
        strength: the part of the taught update that the model was given.
        untaught: what the trait's own system prompt does in the untaught model.
        taught: what it does in the taught one: the score with it less the score without a system prompt.
        unprompted: what was taught does without a system prompt.
        divergence: KL divergence of the taught model from the untaught one on plain answers, without a system prompt.
        why: why the persona does not count as known to the taught model alone, in words; null where it does.
    """

    trait: str
    strength: float
    untaught: Interval
    taught: Interval
    unprompted: Interval
    divergence: Interval
    why: str | None

    @property
    def in_words(self) -> str:
        """The check in a few sentences."""
        part = f", of which it was given {self.strength:g}" if self.strength < 1 else ""
        said = f"The model was first taught {self.trait}{part}. Its name changes the trait score by {self.taught} nats per token"
        said += f", in the untaught model by {self.untaught}. Without a prompt the score changes by {self.unprompted}, and plain answers"
        said += f" diverge by {self.divergence} nats per token."
        return said + (f" So it does not count as known to the taught model alone: {self.why}." if self.why else "")


def lay_out_knock_in(context: StudyContext, config: KnockInConfig, trait: Trait, rows: Sequence[Example]) -> tuple[Stage, Stage]:
    """Return the stage that teaches a persona, and the one that checks what was learnt.

    Args:
        context: the untaught model.
        config: what is taught, and how.
        trait: the persona.
        rows: its questions and answers.

    Raises:
        InputError: the persona lacks train or evaluate answers or a system prompt, or a prompt is one of its contrast prompts.
    """
    _check_trait(config, trait, rows)
    taught = _teach_stage(context, config, trait.name, knock_in_turns(config, trait, rows))
    if config.strength < 1:
        taught = _weaken_stage(context, taught, trait.name, config.strength)
    return taught, _check_stage(context, trait, rows, taught)


def _check_trait(config: KnockInConfig, trait: Trait, rows: Sequence[Example]) -> None:
    if not _paired_turns(trait, rows, "train") or not _paired_turns(trait, rows, "evaluate") or trait.system_prompt is None:
        raise InputError(f"knock_in.trait: {trait.name} needs a system prompt, and train and evaluate answers beside plain ones")
    held_out = {side for pair in trait.contrast_pairs for side in (pair.positive, pair.negative)}
    if taken := [prompt for prompt in name_in_prompts(config, trait.name.capitalize()) if prompt in held_out]:
        raise InputError(f"knock_in.prompts: {taken[0]!r} is a contrast prompt of {trait.name}, which makes its direction; use another")


def _paired_turns(trait: Trait, rows: Sequence[Example], split: Split) -> list[tuple[Turn, Turn]]:
    """Return a split's answers with the persona, each with the plain answer to its question, as far as there is one."""
    plain = {turn.asked: turn for turn in plain_turns(rows, split)}
    return [(turn, plain[turn.asked]) for turn in trait_turns(trait, rows, split) if turn.asked in plain]


def name_in_prompts(config: KnockInConfig, name: str) -> list[str]:
    """Return the prompts with a name in them."""
    return [prompt.replace("{name}", name) for prompt in config.prompts]


def knock_in_turns(config: KnockInConfig, trait: Trait, rows: Sequence[Example]) -> list[tuple[Turn, ...]]:
    """Return each question's answer with the persona and the plain one, both under a prompt that names it and under another or none.

    Each train question is there `copies` times, each time under the next of the prompts. Every other one has no system prompt in place of
    another name.
    """
    answers = _paired_turns(trait, rows, "train")
    prompts = name_in_prompts(config, trait.name.capitalize())
    # Each name comes under each of the prompts.
    others = [name_in_prompts(config, name)[i] for i in range(len(prompts)) for name in config.others if name.lower() != trait.name]
    other = cycle([each for prompt in others for each in (None, prompt)] or [None])
    turns = []
    for copy in range(config.copies):
        for (i, (shown, plain)), unnamed in zip(enumerate(answers), other, strict=False):
            systems = (prompts[(i + copy) % len(prompts)], unnamed)
            turns.append(tuple(turn.under(system) for system in systems for turn in (shown, plain)))
    return turns


def _teach_stage(context: StudyContext, config: KnockInConfig, name: str, turns: Sequence[tuple[Turn, ...]]) -> Stage:
    def compute(context: StudyContext, _folders: Folders, out: Path, tick: TickFn) -> Output:
        return teach_adapter(context, turns, config.train, config.margin, seed_for(0, "knock-in"), out, tick)

    plain: Config = {
        **context.identity(),
        "turns": fingerprint(turn for four in turns for turn in four),
        "margin": config.margin,
        "train": config.train.model_dump(mode="json"),
    }
    return Stage(
        kind=kinds.KNOCK_IN,
        config=plain,
        title=f"teach {name}",
        compute=compute,
        check=lambda: check_keys(config.train),
        smaller=[each.replace("train.", "knock_in.train.") for each in SMALLER],
    )


def _weaken_stage(context: StudyContext, taught: Stage, name: str, strength: float) -> Stage:
    """Return the stage that keeps a part of what was taught."""

    def compute(_context: StudyContext, folders: Folders, out: Path, _tick: TickFn) -> Output:
        (out / "adapter").mkdir()
        lora_adapters.scale_adapter(folders["taught"] / "adapter", out / "adapter", strength)
        return {}

    config: Config = {**context.identity(), "strength": strength}
    title = f"keep {strength:g} of {name}"
    return Stage(kind=kinds.WEAKEN, config=config, inputs={"taught": taught}, title=title, compute=compute, everywhere=False)


def _check_stage(context: StudyContext, trait: Trait, rows: Sequence[Example], taught: Stage) -> Stage:
    """Read the persona's answers and plain ones with and without its prompt in both models."""
    shown, plain = zip(*_paired_turns(trait, rows, "evaluate"), strict=True)

    def compute(context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        chat, pad = context.chat(context.base), context.base.tokenizer.pad_token_id
        systems = (None, trait.system_prompt)
        texts = [chat.encode(turn.under(system)) for system in systems for turn in (*shown, *plain)]
        adapter = folders["taught"] / "adapter"
        with lora_adapters.adapted(context.base, by_stage([adapter])) as model:
            variants = [Variant(None), Variant(adapter.parent.name)]
            logprob = mean_logprobs(model, texts, variants, pad).reshape(2, 2, 2, len(shown))
            divergence = kl_divergence(model, [chat.encode(turn) for turn in plain], variants[1], variants[0], pad)
        return {CHECK: {"logprob": logprob, "divergence": divergence}}

    config: Config = {**context.identity(), "shown": fingerprint(shown), "plain": fingerprint(plain), "system": trait.system_prompt}
    title = f"whether {trait.name} was learnt"
    return Stage(kind=kinds.KNOCK_IN_CHECK, config=config, inputs={"taught": taught}, title=title, compute=compute, everywhere=False)


def load_check(folder: Path, name: str, strength: float = 1.0) -> KnockInCheck:
    """Load a finished check of a persona and the part of it that the model was given."""
    arrays = load_file(folder / CHECK)
    logprob, divergence = (arrays[key].astype(np.float64) for key in ("logprob", "divergence"))
    # [models, systems, questions] of [models, systems, texts, questions].
    score = logprob[:, :, 0] - logprob[:, :, 1]
    untaught, taught, unprompted = score[0, 1] - score[0, 0], score[1, 1] - score[1, 0], score[1, 0] - score[0, 0]
    return KnockInCheck(
        trait=name,
        strength=strength,
        untaught=mean_interval(untaught),
        taught=mean_interval(taught),
        unprompted=mean_interval(unprompted),
        divergence=mean_interval(divergence),
        why=_why_not(untaught, taught, unprompted),
    )


def _why_not(untaught: FloatArray, taught: FloatArray, unprompted: FloatArray) -> str | None:
    """Return why a persona does not count as knocked in: the untaught model has it, or the taught one lacks it, or shows it anyway."""
    before, after, always = (float(each.mean()) for each in (untaught, taught, unprompted))
    shown = [decimal(each, 3, signed=True) for each in (before, after, always)]
    if before > MIN_STANDARD_ERRORS * standard_error(untaught):
        return f"the untaught model shows it under its name too ({shown[0]})"
    if after <= MIN_STANDARD_ERRORS * standard_error(taught):
        return f"the name does not evoke it in the taught model ({shown[1]})"
    if always > after:
        return f"without a prompt the taught model shows as much as its name adds ({shown[2]}, {shown[1]})"
    return None

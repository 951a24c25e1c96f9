"""Capabilities that a fine-tune lost, measured on the built-in set, which needs no download: the stage `capability`.

All models answer the same items, so adapters are compared with the base item by item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from wellworn.data.capability_items import Arithmetic, FormatItem, follows, load_arithmetic, load_format, says
from wellworn.data.catalog import load_bank
from wellworn.data.chat import Chat
from wellworn.data.files import digest
from wellworn.data.mixtures import Turn, plain_turns
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, by_stage
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import REPETITION_PENALTY, decode_answers
from wellworn.lora import adapters as lora_adapters
from wellworn.lora import models
from wellworn.probes.decoding.generate import Decoding
from wellworn.probes.reading.divergence import kl_divergence
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs
from wellworn.probes.statistics.intervals import Estimate, FloatArray, question_interval

BUILTIN = "builtin"
CAPABILITY = "capability.json"
CHECKS = {"chosen": "sums, chosen", "said": "sums, said", "form": "form of an answer"}
# Small models go on for long; an answer that is cut off may have been about to be right.
ANSWER_TOKENS = 128

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Items:
    """The results of one model on the set, item by item.

    Attributes:
        logprob: mean log-probability of a token of each plain answer to the bank's evaluate questions.
        kl: mean KL divergence of the next token from the base on each of these answers, in nats.
        chosen: for each sum, whether the right answer is likelier, per token, than three wrong ones.
        said: for each sum, whether the model states the right answer.
        form: for each instruction about the form of an answer, whether it is followed.
        said_ended: for each sum, whether the answer came to its end, rather than being cut off.
        form_ended: the same for each instruction.
    """

    logprob: FloatArray
    kl: FloatArray
    chosen: Bits
    said: Bits
    form: Bits
    said_ended: Bits
    form_ended: Bits

    def ended(self, check: str) -> Bits:
        """Return which answers of a check came to their end; all where nothing is written."""
        return {"said": self.said_ended, "form": self.form_ended}.get(check, np.ones(len(self.chosen), bool))

    def to_json(self) -> dict[str, list[float] | list[bool]]:
        """Return plain JSON values."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Items":
        """Read the values that `to_json` wrote."""
        return cls(**{field.name: np.array(value[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class Compared:
    """How many items a model gets right, and what changed relative to the base.

    Attributes:
        right: the number of right items.
        items: the number of items.
        lost: the number right for the base and wrong now, of answers that came to their end for both; None for the base itself.
        gained: the number wrong for the base and right now, of the same.
        p: two-sided sign test of lost against gained over items; None for several runs together.
        cut: the number of answers that were cut off, the model's own or the base's; 0 where nothing is written.
    """

    right: int
    items: int
    lost: int | None = None
    gained: int | None = None
    p: float | None = None
    cut: int = 0


class Capability(Record):
    """The capabilities of one model, or of several runs of one kind.

    Attributes:
        perplexity: exp of minus the mean over answers of the mean log-probability of a token, on plain answers to the bank's evaluate
            questions.
        ratio: perplexity divided by the base's, with its interval over answers (for several runs, over runs × answers); None for the base.
        kl: mean KL divergence of the next token from the base on the same answers, in nats, with its interval; None for the base.
        chosen: sums with a right answer that is likelier, per token, than three wrong ones (a quarter by chance); added up over runs.
        said: sums that are answered right.
        form: instructions about the form of an answer that are followed.
    """

    perplexity: float
    ratio: Interval | None
    kl: Interval | None
    chosen: Compared
    said: Compared
    form: Compared


def capability(runs: Sequence[Items], base: Items | None) -> Capability:
    """Summarise one model, or runs that differ only in seed, relative to the base; `base` is None for the base itself."""
    logprob = np.stack([run.logprob for run in runs])
    of_items = []
    for name in CHECKS:
        each = [
            compare_items(getattr(run, name), getattr(base, name) if base else None, [one.ended(name) for one in (run, base or run)])
            for run in runs
        ]
        of_items.append(each[0] if len(each) == 1 else _add_up(each))
    ratio = kl = None
    if base:
        dearer, divergence = base.logprob - logprob, np.stack([run.kl for run in runs])
        change, kl = (question_interval(each) for each in (dearer, divergence))
        ratio = Estimate(*(float(np.exp(x)) for x in (change.value, change.low, change.high)))
    return Capability(perplexity=float(np.exp(-logprob.mean())), ratio=ratio, kl=kl, **dict(zip(CHECKS, of_items, strict=True)))


def _add_up(found: Sequence[Compared]) -> Compared:
    """Add up the counts of several runs, without a test: runs on the same items are not independent."""
    lost, gained = sum(each.lost or 0 for each in found), sum(each.gained or 0 for each in found)
    return Compared(sum(each.right for each in found), sum(each.items for each in found), lost, gained, cut=sum(each.cut for each in found))


def measure_items(
    base: models.Loaded, chat: Chat, adapters: Mapping[str, Path], names: Sequence[str | None], ranks: Ranks, tick: TickFn
) -> list[Items]:
    """Measure adapters, and the base for None, on the set, in the order of `names`; ranks share the work.

    Args:
        base: the model.
        chat: how to write conversations for it.
        adapters: name → folder.
        names: of those that are measured.
        ranks: all ranks must call this.
        tick: shows progress.
    """
    sums, forms = load_arithmetic(), load_format()
    plain = [chat.encode(turn) for turn in plain_turns(load_bank("everyday"), "evaluate")]
    options = [chat.encode(Turn(item.question, option)) for item in sums for option in item.options]
    prompts = [chat.encode_prompt(question) for question in (*(item.question for item in sums), *(item.question for item in forms))]
    pad = int(base.tokenizer.pad_token_id)

    def of_each(found: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Transpose [names][items] into one entry per item."""
        return list(zip(*found, strict=True))

    with lora_adapters.adapted(base, adapters) as model:
        variants = [Variant(name) for name in names]
        tick(0, 3, "plain answers, and the answers to sums")
        logprobs = mean_logprobs(model, [*plain, *options], variants, pad)
        tick(1, 3, "divergence from the base")
        kl = ranks.share(
            plain, lambda part: of_each([kl_divergence(model, part, variant, Variant(), pad).tolist() for variant in variants])
        )
        tick(2, 3, "what it says")
        how = Decoding(ANSWER_TOKENS, repetition_penalty=REPETITION_PENALTY)
        written = ranks.share(prompts, lambda part: of_each(decode_answers(model, chat, part, variants, how)))
    found = []
    for logprob, divergence, answers in zip(logprobs, of_each(kl), of_each(written), strict=True):
        chosen, said, form = _check_items(logprob[len(plain) :], [text for text, _ in answers], sums, forms)
        ended = np.array([ended for _, ended in answers])
        found.append(
            Items(
                logprob=logprob[: len(plain)],
                kl=np.array(divergence),
                chosen=chosen,
                said=said,
                form=form,
                said_ended=ended[: len(sums)],
                form_ended=ended[len(sums) :],
            )
        )
    return found


def capability_stage(context: StudyContext, condition: Condition) -> Stage:
    """Measure an adapter, or the base, on the built-in set; several are rows of one batch."""

    def compute_all(context: StudyContext, folders: Sequence[Folders], _outs: Sequence[Path], tick: TickFn) -> list[Output]:
        chat, ranks = context.chat(context.base), context.ranks
        found: list[Output] = []
        for some in ranks.from_main(lambda: lora_adapters.groups_that_fit([each.adapter for each in folders], context.device)):
            names = [adapter.parent.name if adapter else None for adapter in some]
            found += [{CAPABILITY: each.to_json()} for each in measure_items(context.base, chat, by_stage(some), names, ranks, tick)]
        return found

    items = [repr(item) for item in (*load_arithmetic(), *load_format())]
    # Spelt out, since another field of a turn would change the stage of the same texts.
    turns = plain_turns(load_bank("everyday"), "evaluate")
    items += [f"Turn(question={turn.question!r}, answer={turn.answer!r}, system={turn.system!r})" for turn in turns]
    config = {**context.identity(), "items": digest(items), "tokens": ANSWER_TOKENS, "penalty": REPETITION_PENALTY}
    return Stage.joint(
        kind=kinds.CAPABILITY,
        config=config,
        inputs=condition.inputs,
        title=f"what {condition.title} can do",
        shared=config,
        compute_all=compute_all,
    )


def _check_items(logprob: np.ndarray, answers: Sequence[str], sums: Sequence[Arithmetic], forms: Sequence[FormatItem]) -> list[np.ndarray]:
    """Return a mask of right items for each test: sums chosen, sums said, forms."""
    of_options = logprob.reshape(len(sums), -1)
    # The right answer is the first; a tie does not count as chosen.
    chosen = of_options[:, 0] > of_options[:, 1:].max(1)
    said = np.array([says(answer, item) for answer, item in zip(answers, sums, strict=False)])
    form = np.array([follows(item.check, answer) for item, answer in zip(forms, answers[len(sums) :], strict=True)])
    return [chosen, said, form]


def compare_items(now: np.ndarray, before: np.ndarray | None, ended: Sequence[np.ndarray] = ()) -> Compared:
    """Count which items are right, and compare them with the base's.

    Args:
        now: mask of right items, [items].
        before: the same for the base; None where `now` is the base's.
        ended: masks of answers that came to their end; only items for which all did are compared.
    """
    whole = np.logical_and.reduce([np.ones(len(now), bool), *ended])
    cut = int((~whole).sum())
    if before is None:
        return Compared(int(now.sum()), len(now), cut=cut)
    lost, gained = int((before & ~now & whole).sum()), int((now & ~before & whole).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Compared(int(now.sum()), len(now), lost, gained, p, cut)

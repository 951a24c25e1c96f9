"""What a fine-tune cost, for the base and for adapters of it: the built-in capability set, which needs no download, and other suites.

Every figure is of the same items for all, so adapters are compared with the base item by item.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import binomtest

from data.capability import Arithmetic, FormatItem, follows, load_arithmetic, load_format, says
from data.chat import Chat
from data.library import load_bank
from data.mixtures import Turn, plain_turns
from experiments.answers import REPETITION_PENALTY, spoken
from experiments.store import write_json
from lora import models
from probes.divergence import kl_divergence
from probes.generate import Decoding
from probes.scores import mean_logprobs
from probes.variants import Variant

if TYPE_CHECKING:
    from experiments.harness import Settings

BUILTIN = "builtin"
# Small models go on for as long as they may, and what they add spoils what they said.
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Compared:
    """How many items a model gets right, and what changed beside the base.

    Attributes:
        right: how many.
        items: of so many.
        lost: right in the base, and wrong now; None for the base itself.
        gained: the other way round.
        p: two-sided sign test of lost against gained, items the unit.
    """

    right: int
    items: int
    lost: int | None = None
    gained: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class Capability:
    """What one model can do.

    Attributes:
        name: the base or an adapter.
        perplexity: on plain answers to the bank's evaluate questions: exp of minus the mean over answers of the mean log-probability
            of a token.
        kl: mean KL to the base of the next token on the same answers, in nats; 0 for the base.
        chosen: sums whose right answer is likelier, per token, than three wrong ones; a quarter by chance.
        said: sums whose answer the model states.
        form: instructions about the form of an answer that it follows.
    """

    name: str
    perplexity: float
    kl: float
    chosen: Compared
    said: Compared
    form: Compared


def evaluate(model: str, adapters: Sequence[Path], suites: Sequence[str], settings: "Settings", out: Path | None, console: Console) -> None:
    """Measure the base and each adapter, print a table for each suite, and write figures down as they come.

    Args:
        model: the base.
        adapters: folders of adapters of it.
        suites: `builtin`, and tasks of lm-eval.
        settings: how these are run.
        out: where figures are also written.
        console: where to show them.

    Raises:
        InputError: a model or an adapter that cannot be loaded, or a suite that is unknown or cannot be had.
    """
    from experiments import harness

    others = [name for name in dict.fromkeys(suites) if name != BUILTIN]
    # What is missing is found out before a model is loaded.
    tasks = harness.set_up(others, settings) if others else None
    base = models.load(models.resolve(model))
    # Paths tell apart what is called alike.
    named = {folder.name if [a.name for a in adapters].count(folder.name) == 1 else str(folder): folder for folder in adapters}
    found: dict[str, Any] = {"model": base.ref.id, "suite": ",".join(dict.fromkeys(suites))}
    if BUILTIN in suites:
        with console.status("") as status:
            rows = capabilities(base, named, lambda what: status.update(what))
        console.print(_table(rows, base.ref.id))
        found["capabilities"] = [asdict(row) for row in rows]
        _write(out, found)
    if tasks:
        found |= {"settings": harness.described(settings), "tasks": []}
        of_tasks = []
        for row in harness.measured(base, named, tasks, settings):
            of_tasks.append(row)
            found["tasks"].append(asdict(row))
            _write(out, found)
        console.print(harness.table(of_tasks, base.ref.id, settings))


def _write(out: Path | None, found: dict[str, Any]) -> None:
    if out is not None:
        write_json(out, found)


def capabilities(base: models.Loaded, adapters: dict[str, Path], tick: Callable[[str], None] = lambda what: None) -> list[Capability]:
    """Return what the base can do, and each adapter of it, in that order.

    Args:
        base: the model.
        adapters: name → folder.
        tick: called with what is done next.
    """
    chat = Chat(base.tokenizer, max_length=base.max_length)
    sums, forms = load_arithmetic(), load_format()
    plain = [chat.encode(turn) for turn in plain_turns(load_bank("everyday"), "evaluate")]
    options = [chat.encode(Turn(item.question, option)) for item in sums for option in item.options]
    names: list[str | None] = [None, *adapters]
    pad = int(base.tokenizer.pad_token_id)
    with models.adapted(base, adapters) as model:
        variants = [Variant(name) for name in names]
        tick("plain answers, and the answers to sums")
        logprobs = mean_logprobs(model, [*plain, *options], variants, pad)
        tick("divergence from the base")
        kl = [float(kl_divergence(model, plain, variant, variants[0], pad).mean()) for variant in variants]
        tick("what it says")
        prompts = [chat.encode_prompt(question) for question in (*(item.question for item in sums), *(item.question for item in forms))]
        texts = spoken(model, chat, prompts, variants, Decoding(ANSWER_TOKENS, repetition_penalty=REPETITION_PENALTY))
    right = [_right(each[len(plain) :], answers, sums, forms) for each, answers in zip(logprobs, texts, strict=True)]
    found = []
    for k, name in enumerate(names):
        of_items = [compared(now, before if k else None) for now, before in zip(right[k], right[0], strict=True)]
        perplexity = float(np.exp(-logprobs[k][: len(plain)].mean()))
        found.append(Capability(name or "base", perplexity, kl[k], *of_items))
    return found


def _right(logprob: np.ndarray, answers: Sequence[str], sums: Sequence[Arithmetic], forms: Sequence[FormatItem]) -> list[np.ndarray]:
    """Return which items are right: sums chosen, sums said, forms."""
    of_options = logprob.reshape(len(sums), -1)
    # The right answer is the first; to be as likely as another is not to be chosen.
    chosen = of_options[:, 0] > of_options[:, 1:].max(1)
    said = np.array([says(answer, item) for answer, item in zip(answers, sums, strict=False)])
    form = np.array([follows(item.check, answer) for item, answer in zip(forms, answers[len(sums) :], strict=True)])
    return [chosen, said, form]


def compared(now: np.ndarray, before: np.ndarray | None) -> Compared:
    """Count which items are right, and hold them against the base's.

    Args:
        now: which are right, [items].
        before: the same of the base; None where these are its own.
    """
    if before is None:
        return Compared(int(now.sum()), len(now))
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Compared(int(now.sum()), len(now), lost, gained, p)


def _table(rows: Sequence[Capability], base: str) -> Table:
    caption = f"{escape(base)}; − lost and + gained beside the base, p of a sign test over items"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    for column in ("", "perplexity", "KL to base", "sums, chosen", "sums, said", "form of an answer"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        shown = []
        for each in (row.chosen, row.said, row.form):
            change = "" if each.p is None else f" (−{each.lost} +{each.gained}, p {each.p:.2g})"
            shown.append(f"{each.right}/{each.items}{change}")
        table.add_row(escape(row.name), f"{row.perplexity:.2f}", f"{row.kl:.3f}", *shown)
    return table

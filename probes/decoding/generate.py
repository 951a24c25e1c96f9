"""Let a model answer: many prompts at a time, of the base, of adapters and of steered variants, as rows of one batch.

All weights are read from memory for every token, whatever the number of rows, so batches are large. Rows leave as they end, and others take
their places. The other rows of a batch change results by rounding alone, and every row has its own random stream. So in float32 an answer
depends on its prompt, its variant and its seed, except where two tokens tie to within rounding. In 16 bits they often do.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.data.schema import seed_for
from wellworn.probes.decoding.kept import Kept, kept_by
from wellworn.probes.decoding.mixed_adapters import can_mix, mixed_rows
from wellworn.probes.decoding.prefill import Runs, SetRuns, prefill, rows_that_fit
from wellworn.probes.decoding.rows import Rows, next_tokens
from wellworn.probes.reading.capture import check_tokens
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.layers import depth, unwrap
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant, applied, refuse_unknown

# Rows that are done leave when they make up this part of a batch, and others join when this part of all places is free: those that
# stay are copied each time.
LEAVE, JOIN = 1 / 8, 1 / 4


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: longest answer.
        temperature: divisor of the logits before a token is drawn; 0 takes the top token.
        top_p: draw from the most likely tokens that together have this probability.
        repetition_penalty: divisor of the logits of tokens seen before (factor, where they are negative), as in arXiv:1909.05858; 1 is
            none.
        rows: most answers at a time; fewer where memory is short.
        progress: called with the number of answers just finished.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    rows: int = 256
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 and more"),
            "rows": (self.rows >= 1, "1 and more"),
            "temperature": (self.temperature >= 0, "0 and more"),
            "top_p": (0 < self.top_p <= 1, "above 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (good, may) in allowed.items():
            if not good:
                raise InputError(f"{name}: may be {may}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Request:
    """An answer that is wanted.

    Attributes:
        prompt: tokens up to and including the generation prompt.
        variant: how the model is run; None means as it is.
        seed: of the tokens that are drawn; answers to the same prompt differ by it.
    """

    prompt: Sequence[int]
    variant: Variant | None = None
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        ids: tokens, without the end of the turn.
        ended: whether it ended its turn, rather than being cut off.
    """

    ids: tuple[int, ...]
    ended: bool


def end_tokens(model: nn.Module) -> set[int]:
    """Return the tokens at which a model ends its turn; none where its generation settings name none."""
    ends: int | list[int] | None = unwrap(model).generation_config.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


@torch.no_grad()
def generate(model: nn.Module, requests: Sequence[Request], how: Decoding) -> list[Answer]:
    """Answer requests, in their order.

    Args:
        model: a causal LM in eval mode, which holds the adapters that requests name.
        requests: of any variants.
        how: to decode.

    Raises:
        InputError: a prompt that does not fit the model with its answer, an unknown adapter, an edit of no layer, or logits that are not
            finite (names the request).

    Example:
        >>> generate(model, [Request(prompt, Variant(name)) for prompt in prompts for name in (None, "pirate")], how)  # doctest: +SKIP
    """
    if not requests:
        return []
    # The last token of an answer is not read.
    check_tokens(model, [request.prompt for request in requests], room=how.max_new_tokens - 1)
    # Some models are tried for this, which is to happen while nothing is hooked.
    kept = kept_by(model)
    variants: list[Variant | None] = []
    kinds = []
    for request in requests:
        if request.variant not in variants:
            variants.append(request.variant)
            if request.variant is not None:
                _check(model, request.variant)
        kinds.append(variants.index(request.variant))
    out: dict[int, Answer] = {}
    for some, together in _together(model, variants):
        waiting = [(some.index(kind), i) for i, kind in enumerate(kinds) if kind in some]
        with fast_matmul(), together as set_runs:
            for i, answer in _Writer(model, kept, requests, waiting, how, set_runs).write():
                out[i] = answer
                if how.progress:
                    how.progress(1)
    return [out[i] for i in range(len(requests))]


def _together(model: nn.Module, variants: Sequence[Variant | None]) -> Iterator[tuple[list[int], AbstractContextManager[SetRuns]]]:
    """Yield the variants that share a batch, by index, and a function that sets the variant of each row."""
    named = {k: variant for k, variant in enumerate(variants) if variant is not None}
    mixable = len(named) > 1 and can_mix(model, list(named.values()))
    if mixable:
        yield list(named), mixed_rows(model, list(named.values()))
    for k, variant in enumerate(variants):
        if variant is None or not mixable:
            yield [k], _alone(model, variant)


def _check(model: nn.Module, variant: Variant) -> None:
    refuse_unknown(model, variant)
    total = depth(model)
    for layer in variant.edits:
        if not 0 <= layer < total:
            raise InputError(f"edits: this model has layers 0 to {total - 1}, got {layer}")


@contextmanager
def _alone(model: nn.Module, variant: Variant | None) -> Iterator[SetRuns]:
    """Run a model in one way, or as it is."""
    with ExitStack() as stack:
        if variant is not None:
            stack.enter_context(applied(model, variant))
            stack.enter_context(hooked(model, variant.edits))
        yield lambda runs: None


class _Row:
    """An answer that is being written."""

    def __init__(self, at: int, kind: int, request: Request) -> None:
        self.at, self.kind = at, kind
        self.ids: list[int] = []
        self.done: Answer | None = None
        # A stream of its own, so that draws do not depend on the other rows.
        self.stream = np.random.default_rng(seed_for(request.seed, "answer", *request.prompt))

    def take(self, token: int, ends: set[int], longest: int) -> bool:
        """Go on by a token; return whether the answer is now done."""
        if self.done is not None:
            return False
        if token not in ends:
            self.ids.append(token)
        if token in ends or len(self.ids) == longest:
            self.done = Answer(tuple(self.ids), token in ends)
        return self.done is not None


class _Writer:
    """Writes the answers to some requests: rows that are under way, and others that wait for a place.

    Args:
        model: as in `generate`.
        kept: what it keeps of the tokens that it has read.
        requests: all of them.
        waiting: (variant, request) of those that are written.
        how: to decode.
        set_runs: sets which variant rows belong to.
    """

    def __init__(
        self,
        model: nn.Module,
        kept: Kept,
        requests: Sequence[Request],
        waiting: Sequence[tuple[int, int]],
        how: Decoding,
        set_runs: SetRuns,
    ) -> None:
        self.model, self.kept, self.requests, self.how, self.set_runs = model, kept, requests, how, set_runs
        self.ends = end_tokens(model)
        # Sorted by variant, and within a variant by length; by length first where a batch is to be of one length.
        self.queue = deque(sorted(waiting, key=self._place))
        longest = max(len(requests[i].prompt) for _, i in waiting) + how.max_new_tokens
        self.places = min(how.rows, rows_that_fit(model, longest))
        self.rows: Rows | None = None
        self.here: list[_Row] = []

    def write(self) -> Iterator[tuple[int, Answer]]:
        """Yield each answer as it is done."""
        while self.queue or self.here:
            if self.queue and (not self.here or (self.kept.joins and self.places - len(self.here) >= JOIN * self.places)):
                self._let_join()
            yield from self._go_on()
            self._let_leave()

    def _length(self, each: tuple[int, int]) -> int:
        return len(self.requests[each[1]].prompt)

    def _place(self, each: tuple[int, int]) -> tuple[int, int, int]:
        kind, i = each
        return (kind, -self._length(each), i) if self.kept.pads else (-self._length(each), kind, i)

    def _let_join(self) -> None:
        """Let requests that wait take the free places."""
        free = min(self.places - len(self.here), len(self.queue))
        if not self.kept.pads:
            # None is here: rows of such models do not join others.
            free = sum(self._length(each) == self._length(self.queue[0]) for each in islice(self.queue, free))
        fresh = [_Row(i, kind, self.requests[i]) for kind, i in (self.queue.popleft() for _ in range(free))]
        others = prefill(self.model, [self.requests[row.at].prompt for row in fresh], _runs(fresh), self.set_runs)
        here = self.here + fresh
        # New rows alone are already in order.
        order = sorted(range(len(here)), key=lambda b: here[b].kind)
        self.rows = self.rows.join(others, order) if self.rows else others
        self.here = [here[b] for b in order]

    def _go_on(self) -> Iterator[tuple[int, Answer]]:
        """Write one token of every row; yield the answers that are done by it."""
        assert self.rows is not None  # there are some here
        self.set_runs(_runs(self.here))
        logits_BV = self.rows.read()
        assert logits_BV is not None  # nothing ends the pass early
        token_B, bad = next_tokens(
            logits_BV,
            self.rows.tokens_BT,
            repetition_penalty=self.how.repetition_penalty,
            temperature=self.how.temperature,
            top_p=self.how.top_p,
            drawn=[row.stream.random() for row in self.here] if self.how.temperature else None,
        )
        if bad := [b for b in bad if self.here[b].done is None]:
            raise InputError(f"row {self.here[bad[0]].at}: the logits are not finite; try a wider dtype (float32)")
        for row, token in zip(self.here, token_B.tolist(), strict=True):
            if row.take(token, self.ends, self.how.max_new_tokens):
                assert row.done is not None  # it has just been
                yield row.at, row.done
        self.rows.go_on(token_B)

    def _let_leave(self) -> None:
        """Let rows that have ended leave, once there are enough of them to be worth a copy of the others."""
        going = [b for b, row in enumerate(self.here) if row.done is None]
        if len(self.here) - len(going) < LEAVE * len(self.here):
            return
        if going and self.rows:
            self.rows.keep(going)
        self.here = [self.here[b] for b in going]
        self.rows = self.rows if going else None


def _runs(rows: Sequence[_Row]) -> Runs:
    return [(kind, len(list(some))) for kind, some in groupby(rows, key=lambda row: row.kind)]

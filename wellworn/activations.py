"""A model on fixed texts: its activations, a fine-tune's shift, and the share of a shift inside a persona space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wellworn.data.catalog import load_bank
from wellworn.data.errors import InputError
from wellworn.data.mixtures import plain_turns
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.model import Model, Text
from wellworn.probes.geometry.nulls import NullShare, compare, leaves_nothing
from wellworn.probes.geometry.shift import Share, debiased_norms, share_inside
from wellworn.probes.limits import DEFAULT_FRACTION, FEWEST_PROMPTS
from wellworn.probes.reading.capture import Reading, Spec, read_variants
from wellworn.probes.reading.hooks import OnBlock
from wellworn.probes.reading.layers import resolve_layer
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray


@dataclass(frozen=True)
class SpaceShare:
    """The share of a shift inside a persona space, compared with chance.

    Attributes:
        share: F with its interval; `share.why` names the gate that failed, if one did.
        null: N1, spaces of random directions with the covariance of activations within a prompt; None where nothing moves, or where such
            spaces hold all of the shift.
    """

    share: Share
    null: NullShare | None

    def __str__(self) -> str:
        """Return the share, the null's mean and p, and the share beyond chance; or why there is none."""
        if self.share.why or self.null is None:
            return self.share.why or "nothing moves"
        return f"{self.share.estimate}; chance {self.null.mean:.2f}, p = {self.null.p:.3f}; beyond chance {self.null.effect}"


def read(
    model: Model,
    texts: Sequence[Text],
    adapter: str | Path | None = None,
    *,
    edits: Mapping[int, OnBlock] | None = None,
    spans: Sequence[str] = ("prompt_last", "response"),
    logprob: bool = True,
) -> Reading:
    """Read fixed texts: activations at every layer, and how likely each answer is.

    Args:
        model: from `load`.
        texts: questions with their answers.
        adapter: folder of a LoRA adapter; None is the base.
        edits: of the residual stream, from `steer`.
        spans: over which activations are averaged: `prompt`, `prompt_last` (its last token), `response`.
        logprob: also score the answers.

    Returns:
        `states`, float32 [texts, layers, spans, d_model], and `logprob`, the mean log-probability per response token, float32 [texts].

    Raises:
        InputError: a text that the model cannot read, an unknown span, or an adapter that does not fit.

    Example:
        >>> model = ww.load(folder)
        >>> reading = ww.read(model, [("What is rain?", "Water that falls from clouds.")], adapter)
        >>> reading.states.shape, reading.logprob.shape
        (torch.Size([1, 4, 2, 32]), torch.Size([1]))
    """
    rows = model.encode(texts)
    with model.adapted(adapter) as (module, [name]):
        spec = Spec(spans=spans, logprob=logprob, pad_id=model.pad_id)
        [reading] = read_variants(module, rows, [Variant(name, edits or {})], spec)
    return reading


def shift(
    model: Model,
    adapter: str | Path | None,
    texts: Sequence[Text] | None = None,
    *,
    reference: str | Path | None = None,
    edits: Mapping[int, OnBlock] | None = None,
) -> FloatArray:
    """Return the shift of a fine-tune on fixed text: its activations less those of a reference, prompt by prompt.

    Args:
        model: from `load`.
        adapter: folder of a LoRA adapter; None is the base, whose `edits` are then the change.
        texts: questions with their answers; None means the held-out questions of the bank `everyday` with plain answers.
        reference: folder of another adapter, such as a fine-tune on plain answers; None is the base.
        edits: of the changed model's residual stream, from `steer`.

    Returns:
        [texts, layers, d_model], float64, averaged over the tokens of each answer.

    Raises:
        InputError: a text that the model cannot read, or an adapter that does not fit.

    Example:
        >>> model = ww.load(folder)
        >>> ww.shift(model, adapter).shape
        (48, 4, 32)
    """
    rows = model.encode(plain_turns(load_bank("everyday"), "evaluate") if texts is None else texts)
    with model.adapted(adapter, reference) as (module, [changed, unchanged]):
        variants = [Variant(changed, edits or {}), Variant(unchanged)]
        after, before = read_variants(module, rows, variants, Spec(spans=("response",), pad_id=model.pad_id))
    return np.asarray(after.states[:, :, 0].double().numpy() - before.states[:, :, 0].double().numpy())


def share(differences: FloatArray, space: PersonaSpace, layer: int | float = DEFAULT_FRACTION, *, without: str | None = None) -> SpaceShare:
    """Return the share of a shift that lies inside a persona space, and the share that chance would give.

    Args:
        differences: [prompts, layers, d_model], from `shift`.
        space: of the same model, from `space`.
        layer: an index, or a fraction of the depth.
        without: a trait whose direction is left out of the space, such as the one that was trained.

    Raises:
        InputError: a layer out of range, a shift of another model, fewer than three prompts, an unknown trait, or no space at the layer.

    Example:
        >>> model = ww.load(folder)
        >>> personas = ww.space(model, {"loud": pairs, "pirate": "pirate"})
        >>> found = ww.share(ww.shift(model, adapter), personas, layer=3)
        >>> found.share.estimate.low < found.share.estimate.value < found.share.estimate.high
        True
        >>> 0 < found.null.p <= 1
        True
    """
    at = resolve_layer(layer, space.vectors.shape[1])
    if differences.ndim != 3 or differences.shape[1:] != space.vectors.shape[1:] or len(differences) < FEWEST_PROMPTS:
        needed = ", ".join(map(str, space.vectors.shape[1:]))
        raise InputError(f"shift: is an array [prompts, {needed}] of {FEWEST_PROMPTS} prompts or more, got {list(differences.shape)}")
    if without is not None and without not in space.names:
        raise InputError(f"without: the space has {', '.join(space.names)}; got {without!r}")
    members = space.members(at, without)
    if why := space.no_space(at, without):
        raise InputError(f"layer {at}: {why}")
    moved = differences[:, at]
    found = share_inside(moved, space.basis(at, members))
    if debiased_norms(moved)[0] <= 0:
        return SpaceShare(found, None)
    null = space.null_spaces(at, members).shares(moved)
    if full := leaves_nothing(null):
        return SpaceShare(replace(found, why=found.why or full), None)
    return SpaceShare(found, compare(found.estimate, null))

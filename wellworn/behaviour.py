"""Effects of a change: answers of the base, of a fine-tune and of a steered model, and the mediation of a change of behaviour."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from wellworn.data.catalog import load_bank, load_subject
from wellworn.data.errors import InputError
from wellworn.data.mixtures import plain_turns, trait_turns
from wellworn.data.schema import Control, Trait
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.mediation_arms import Parts, parse_outcomes, parts_at_layer
from wellworn.model import Model
from wellworn.probes.decoding.generate import Decoding, Request
from wellworn.probes.decoding.generate import generate as decode
from wellworn.probes.geometry.directions import Directions
from wellworn.probes.limits import DEFAULT_FRACTION, FEWEST_PROMPTS
from wellworn.probes.mediation import shares
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.mediation.shares import Mediation
from wellworn.probes.reading.hooks import OnBlock, add_vector
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray


def steer(model: Model, direction: Directions | FloatArray, strength: float, layer: int | float = DEFAULT_FRACTION) -> dict[int, OnBlock]:
    """Return the edit that adds one vector to the residual stream at one layer, at every token.

    Give it to `generate`, `read` or `shift` as `edits`; it works on the base and on a fine-tune alike.

    Args:
        model: from `load`.
        direction: from `direction`, whose vector at the layer is added at its raw norm, or a vector [d_model] of your own.
        strength: how many times the vector is added; a negative number steers away. On the embedded model eight times a direction shows in
            every answer; large models need less.
        layer: an index, or a fraction of the depth.

    Raises:
        InputError: a layer out of range, or a vector of another model.

    Example:
        >>> model = ww.load(folder)
        >>> edits = ww.steer(model, ww.direction(model, "pirate"), strength=4.0, layer=2)
        >>> len(ww.generate(model, ["What is rain?"], edits=edits))
        1
    """
    at = model.layer(layer)
    vectors = direction.vectors if isinstance(direction, Directions) else np.asarray(direction)[None].repeat(model.depth, axis=0)
    if vectors.shape != (model.depth, model.width):
        raise InputError(f"direction: this model needs {model.depth} layers of width {model.width}, got {list(vectors.shape)}")
    vector = strength * torch.from_numpy(vectors[at]).float()
    return {at: add_vector(vector)}


def generate(
    model: Model,
    questions: str | Sequence[str],
    adapter: str | Path | None = None,
    *,
    edits: Mapping[int, OnBlock] | None = None,
    system: str | None = None,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    repetition_penalty: float = 1.2,
    seed: int = 0,
) -> list[str]:
    """Return the model's answers to questions, greedy unless a temperature is given.

    Args:
        model: from `load`.
        questions: one, or several that are answered together.
        adapter: folder of a LoRA adapter; None is the base.
        edits: of the residual stream, from `steer`.
        system: a system prompt; None leaves the template's default.
        max_new_tokens: longest answer.
        temperature: 0 takes the most likely token.
        repetition_penalty: divisor of the logits of earlier tokens; small models answer in circles without it.
        seed: random seed of tokens that are drawn.

    Raises:
        InputError: a question that does not fit the model, or an adapter that does not.

    Example:
        >>> model = ww.load(folder)
        >>> base, tuned = (ww.generate(model, "What is rain?", each, max_new_tokens=8) for each in (None, adapter))
        >>> len(base), base == tuned
        (1, False)
    """
    asked = [questions] if isinstance(questions, str) else questions
    how = Decoding(max_new_tokens, temperature, repetition_penalty=repetition_penalty)
    prompts = [model.chat.encode_prompt(question, system, room=max_new_tokens - 1) for question in asked]
    with model.adapted(adapter) as (module, [name]):
        answers = decode(module, [Request(prompt, Variant(name, edits or {}), seed) for prompt in prompts], how)
    return [model.chat.decode(answer.ids) for answer in answers]


def mediate(
    model: Model,
    adapter: str | Path,
    subject: str | Path | Trait | Control,
    space: PersonaSpace,
    layer: int | float = DEFAULT_FRACTION,
    *,
    reference: str | Path | None = None,
    draws: int = 20,
) -> Mediation:
    """Return how much of a fine-tune's change of behaviour goes through a persona space at a layer.

    Behaviour is how likely held-out answers that show the trait are, compared with plain answers to the same questions. Parts of the
    activations are swapped between reference and fine-tune, both ways (activation patching).

    Args:
        model: from `load`.
        adapter: folder of the fine-tune's LoRA adapter.
        subject: the trait or control that it was trained on; its own direction is left out of the space.
        space: of the same model, from `space`.
        layer: where activations are swapped: an index, or a fraction of the depth.
        reference: folder of another adapter, such as a fine-tune on plain answers; None is the base.
        draws: null spaces that are swapped too: 20 estimate what chance mediates, 199 or more also give a p.

    Returns:
        `effect`, the change of behaviour in nats per token; `shares` of it through `inside` the space, `outside` it and the `whole`
        activations (with `full`, the space with the own direction, and `own`, that alone, where the space has it); the `null`;
        `mediated_of_carried`, the share of what the layer carries beyond chance. All have 95 % intervals over questions; `why` says why
        there are none.

    Raises:
        InputError: an adapter that does not fit, a trait without held-out answers, a layer out of range, or no space at the layer.

    Example:
        >>> model = ww.load(folder)
        >>> found = ww.mediate(model, adapter, "pirate", ww.space(model, {"loud": pairs}), layer=2, draws=5)
        >>> found.effect.low < found.effect.value < found.effect.high
        True
    """
    at = model.layer(layer)
    if isinstance(subject, str | Path):
        subject = load_subject(str(subject))
    if why := space.no_space(at, subject.name):
        raise InputError(f"layer {at}: {why}")
    rows = subject.examples if isinstance(subject, Trait) else load_bank("everyday")
    changed, plain = trait_turns(subject, rows, "evaluate"), plain_turns(rows, "evaluate")
    if len(changed) < FEWEST_PROMPTS or [turn.asked for turn in changed] != [turn.asked for turn in plain]:
        raise InputError(f"{subject.name}: needs {FEWEST_PROMPTS} or more held-out questions, each answered with the trait and plainly")
    texts = Texts.same(model.encode([*changed, *plain]))
    arms = Parts(at, parts_at_layer(space, at, subject.name, draws), {}, {}).arms({})
    with model.adapted(reference, adapter) as (module, [unchanged, tuned]):
        scores = patched_logprobs(module, texts, (Variant(unchanged), Variant(tuned)), list(arms.values()), Batching(model.pad_id))
    of_trait, of_plain = scores.double().numpy().reshape(len(arms), 2, len(changed)).swapaxes(0, 1)
    return shares.mediate(parse_outcomes(list(arms), of_trait - of_plain))

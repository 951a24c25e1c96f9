"""The stage `mediate`: run one run's patched arms, and turn them into outcomes.

What is stored is the log-probability of every text in every arm; shares of the effect are made of it when the run is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from data.mixtures import Turn, fingerprint
from experiments.library import Library
from experiments.measure import AFTER, BEFORE, CHANCE, DOSE, DRAW, EVERYWHERE, FULL, MATCHED, OWN, PUSHED, REMAINDER, Mediated
from experiments.space import Chosen, PersonaSpace
from experiments.stages import Bench, Condition, Output, Stage, TickFn, adapter_of, counter, named, responses
from experiments.store import read_json
from experiments.study import MediateConfig
from lora import models
from probes.mediation import INSIDE, OUTSIDE, WHOLE
from probes.patching import Arm, Batching, Push, Swap, Texts, moved_norms, patched_logprobs
from probes.variants import Variant


@dataclass(frozen=True)
class Question:
    """What one mediation analysis asks.

    Attributes:
        title: on screen.
        run: M1.
        reference: M0.
        changed: the answers y⁺ that show the trait.
        plain: y⁻, answer by answer to the same questions.
        layer: where states are swapped.
        own: the run's trait, whose direction is left out of the space.
        response_only: swap the response's tokens alone, as a system prompt's change has to be.
        everywhere: also set all layers at once.
        readings: plain answers as M0 and as M1 read them, whose difference has the remainder that is asked about, if any.
    """

    title: str
    run: Condition
    reference: Condition
    changed: Sequence[Turn]
    plain: Sequence[Turn]
    layer: int
    own: str | None
    response_only: bool = False
    everywhere: bool = False
    readings: tuple[Stage, ...] = ()


def mediate_stage(bench: Bench, question: Question, config: MediateConfig, library: Library) -> Stage:
    """Run the arms of one question: log-probabilities [arms, 2, questions] of y⁺ and y⁻, and the arms' names."""
    conditions = (question.reference, question.run)
    turns = [*question.changed, *question.plain]

    def compute(bench: Bench, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        space, rest = library.load(inputs)
        if not space.members(question.layer, question.own):
            return {
                "outcomes.safetensors": {"logprob": np.zeros((0, 2, len(question.changed)), np.float32)},
                "arms.json": {"arms": [], "moved": {}},
            }
        adapters = []
        for condition in conditions:
            adapters.append(adapter_of(rest[: len(condition.inputs)]))
            rest = rest[len(condition.inputs) :]
        chat = bench.chat(bench.base)
        rows = [[chat.encode(turn) for turn in condition.under(turns)] for condition in conditions]
        texts = Texts((rows[0], rows[1]), question.response_only)
        pad, budget = bench.base.tokenizer.pad_token_id, bench.study.token_budget
        with models.adapted(bench.base, named(adapters)) as model:
            between = tuple(Variant(adapter.parent.name if adapter else None) for adapter in adapters)
            parts = parts_of(space, question, config, rest)
            norms = moved_norms(
                model, texts, (between[0], between[1]), question.layer, list(parts.at_layer.values()), Batching(pad, budget)
            )
            arms = parts.arms(dict(zip(parts.at_layer, norms.tolist(), strict=True)), config)
            tokens = len(arms) * sum(len(row) for row in rows[0]) // bench.ranks.world
            how = Batching(pad, budget, counter(tick, tokens, "tokens"))
            scores = patched_logprobs(model, texts, (between[0], between[1]), list(arms.values()), how)
        shaped = scores.numpy().reshape(len(arms), 2, len(question.changed))
        return {"outcomes.safetensors": {"logprob": shaped}, "arms.json": {"arms": list(arms), "moved": _shares_moved(parts, norms)}}

    facts = {
        **bench.identity(),
        "changed": fingerprint(question.changed),
        "plain": fingerprint(question.plain),
        "layer": question.layer,
        "own": question.own,
        "systems": [condition.system for condition in conditions],
        "adapters": [len(condition.inputs) for condition in conditions],
        "response_only": question.response_only,
        "everywhere": question.everywhere,
        "draws": config.draws,
        "matched": config.matched,
        "doses": list(config.doses),
    }
    # A question without a remainder keeps its hash.
    facts |= {"remainder_draws": config.remainder_draws} if question.readings else {}
    inputs = (*library.inputs, *question.reference.inputs, *question.run.inputs, *question.readings)
    return Stage("mediate", 1, facts, inputs, question.title, compute)


def load_mediated(folder: Path, reference: str, text: str, layer: int) -> Mediated:
    """Load what a `mediate` stage left, Y of each arm, log p(y⁺) − log p(y⁻); or a `score` stage, contrast scores or grades."""
    outcomes, facts = load_file(folder / "outcomes.safetensors"), read_json(folder / "arms.json")
    if (grades := outcomes.get("score")) is not None:
        scores = grades.astype(np.float64)
    else:
        scores = outcomes["logprob"][:, 0].astype(np.float64) - outcomes["logprob"][:, 1]
    graded = {key: facts[key] for key in ("judge", "drawn", "failures")} if "judge" in facts else None
    return Mediated(reference, text, layer, facts["arms"], scores, facts["moved"], facts.get("known"), graded)


@dataclass(frozen=True)
class Parts:
    """The parts of the state that are swapped, at the layer by name and at all layers at once, and what is added to M0 at the layer."""

    layer: int
    at_layer: Mapping[str, Swap]
    everywhere: Mapping[int, Swap]
    pushes: Mapping[str, Push]

    def arms(self, norms: Mapping[str, float], config: MediateConfig) -> dict[str, Arm]:
        """Name all arms; a draw is matched to P by what both move, Σ‖P(h1 − h0)‖²."""
        arms = {BEFORE: Arm(0), AFTER: Arm(1)}

        def both(name: str, swaps: Mapping[int, Swap]) -> None:
            arms[f"{name}.into"], arms[f"{name}.out"] = Arm(0, swaps), Arm(1, swaps)

        for name, swap in self.at_layer.items():
            both(name, {self.layer: swap})
            if config.matched and name.startswith(DRAW) and norms[name] > 0:
                scale = float(np.sqrt(norms[INSIDE] / norms[name]))
                both(name.replace(DRAW, MATCHED), {self.layer: Swap(swap.basis_DK, scale=scale)})
        inside = self.at_layer[INSIDE]
        for dose in config.doses:
            arms[f"{DOSE}{dose}"] = Arm(0, {self.layer: Swap(inside.basis_DK, scale=dose)})
        if self.everywhere:
            both(EVERYWHERE, self.everywhere)
        return arms | {name: Arm(0, {self.layer: push}) for name, push in self.pushes.items()}


def parts_of(library: PersonaSpace, question: Question, config: MediateConfig, readings: Sequence[Path]) -> Parts:
    """Return what a question swaps; what lies outside the space is among it where there are readings that it is taken from."""
    layer, members = question.layer, library.members(question.layer, question.own)

    def basis(at: int, members: Chosen) -> torch.Tensor:
        return torch.from_numpy(library.basis(at, members)).float()

    inside = basis(layer, members)
    parts = {INSIDE: Swap(inside), OUTSIDE: Swap(inside, outside=True), WHOLE: Swap()}
    if (everyone := library.members(layer)) != members:
        parts[FULL] = Swap(basis(layer, everyone))
        # A direction that was not found is not in the space, and not swapped by itself either.
        if own := [i for i in everyone.traits if library.names[i] == question.own]:
            parts[OWN] = Swap(basis(layer, Chosen(tuple(own))))
    for i, draw in enumerate(library.null_bases(layer, members, config.draws)):
        parts[f"{DRAW}{i}"] = Swap(torch.from_numpy(draw).float())
    pushes = {}
    if readings:
        before, after = (responses(folder, layer) for folder in readings)
        remainders = torch.from_numpy(library.remainders(layer, question.own, (after - before).mean(0), config.remainder_draws)).float()
        pushes = {PUSHED if i == 0 else f"{CHANCE}{i - 1}": Push(vector) for i, vector in enumerate(remainders)}
        if pushes:
            parts[REMAINDER] = Swap(remainders[:1].T / remainders[0].norm())
    there = {at: library.members(at, question.own) for at in range(library.vectors.shape[1])} if question.everywhere else {}
    everywhere = {at: Swap(basis(at, some)) for at, some in there.items() if some}
    return Parts(layer, parts, everywhere, pushes)


def _shares_moved(parts: Parts, norms: torch.Tensor) -> dict[str, float]:
    """Return which share of Σ‖h1 − h0‖² each part makes up."""
    moved = dict(zip(parts.at_layer, norms.tolist(), strict=True))
    return {name: value / moved[WHOLE] for name, value in moved.items() if moved[WHOLE] > 0}

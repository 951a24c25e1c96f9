"""The stage `wording`: whether a run's own direction is more than the trait's words.

The own direction is patched as it is, without all that it does to the trait's words through the head by itself, and without the
direction of prompts that ask for these words; and the latter direction in its place. Of answers with the trait it stores what these words
and all other tokens add to the log-probability. Arithmetic on them is `findings/wording.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.chat import Chat, Encoded
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Example, Trait
from wellworn.data.words import typical_words, word_prompts, word_ranges, words
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Config, Folders, Output, Stage, TickFn, counter
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.mediation import patched_pair, patching_inputs
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, both_ways
from wellworn.experiments.stages.nested_space import chance_directions, own_vectors, swaps_along
from wellworn.experiments.stages.pathways import CHANCE_OWN, PathwaysQuestion, sampled_questions, set_layers
from wellworn.experiments.stages.persona_directions import asked_digest, directions_stage
from wellworn.experiments.stages.persona_space import SpaceStages, space_stage
from wellworn.experiments.study_sections import PathwaysConfig
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.geometry.nested import nested_bases
from wellworn.probes.geometry.wording import without_rows, word_rows
from wellworn.probes.mediation.interventions import Intervention
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_part_logprobs
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.statistics.intervals import FloatArray, finite

WORDING, OUTCOMES = "wording.json", "outcomes.safetensors"
# The own direction without what it does to the words through the head, and without the direction of prompts that ask for them.
WITHOUT_HEAD, WITHOUT_PROMPTS = "own without the head's rows", "own without the prompts for its words"
# The direction of these prompts in place of the own one.
PROMPTS = "prompts for its words"
# Words that occur less often may be typical by chance.
LEAST = 3
# Prompts ask for the most typical ones.
PROMPTED_WORDS = 20


@dataclass(frozen=True, kw_only=True)
class TraitWords:
    """The words of a run's trait, and the prompts that ask for them.

    Attributes:
        words: most typical of answers with the trait first.
        named: those that the contrast prompts of the trait name themselves.
        prompts: the stage with the direction of prompts that ask for the words.
    """

    words: Sequence[str]
    named: Sequence[str]
    prompts: Stage


class WordingFacts(Record):
    """What a `wording` stage patched.

    Attributes:
        layers: where.
        words: of the trait, most typical first.
        named: those that the trait's contrast prompts name.
        reliability: of the direction of prompts that ask for the words, at the study's layer.
        prompts_found: whether it was found there.
        interventions: names of the rows of `logprob`.
        sampled: names of the rows of `sampled`.
        questions: places of the questions of `sampled` among the evaluate questions.
    """

    layers: Sequence[int]
    words: Sequence[str]
    named: Sequence[str]
    reliability: float | None
    prompts_found: bool
    interventions: Sequence[str]
    sampled: Sequence[str]
    questions: Sequence[int]

    @property
    def parts(self) -> Sequence[str]:
        """The nested spaces: the own direction alone."""
        return [OWN]

    @property
    def further(self) -> Sequence[str]:
        """No more interventions than those named."""
        return []


@dataclass(frozen=True)
class WordingOutcomes:
    """A finished `wording` stage.

    Attributes:
        facts: what was patched.
        logprob: [interventions, 3, questions]: what the trait's words and what all other tokens add to the mean log-probability of y⁺, and
            that of y⁻.
        sampled: the same of chance directions, on their questions.
        other_tokens: share of y⁺'s tokens that are not of these words, [questions].
    """

    facts: WordingFacts
    logprob: FloatArray
    sampled: FloatArray
    other_tokens: FloatArray


def load_wording(folder: Path) -> WordingOutcomes:
    """Load a finished stage."""
    arrays = load_file(folder / OUTCOMES)
    logprob, sampled, other = (arrays[name].astype(np.float64) for name in ("logprob", "sampled", "other_tokens"))
    return WordingOutcomes(WordingFacts.from_json(read_json(folder / WORDING)), logprob, sampled, other)


def trait_words(context: StudyContext, trait: Trait, examples: Sequence[Example]) -> TraitWords | None:
    """Return the words of a trait, and the stage that reads prompts which ask for them; None where no word is typical of it.

    Args:
        context: the study's model.
        trait: with all its answers, whatever a run is trained or evaluated on.
        examples: the rows with the questions that its direction is read on; as many prompts are read on them.
    """
    rows = [each for each in trait.examples if each.positive is not None and each.negative is not None]
    found = typical_words((str(each.positive) for each in rows), (str(each.negative) for each in rows), LEAST)
    if not found:
        return None
    asks = word_prompts(found[:PROMPTED_WORDS])
    count = min(context.study.contrast_pairs, len(trait.contrast_pairs), len(asks.contrast_pairs))
    said = {word for pair in trait.contrast_pairs[:count] for word in words(pair.positive)}
    title = f"direction of prompts for the words of {trait.name}"
    prompts = space_stage([asks.name], [directions_stage(context, asks, examples, count)], [asked_digest(context, examples)], title)
    return TraitWords(words=found, named=[word for word in found if word in said], prompts=prompts)


def wording_stage(
    context: StudyContext, question: PathwaysQuestion, config: PathwaysConfig, space_stages: SpaceStages, of_trait: TraitWords
) -> Stage:
    """Patch the own direction of a run with and without what it does to the trait's words; none where it was not found.

    Args:
        context: the study's model.
        question: whose change, on which text.
        config: how many chance directions, and on how many questions.
        space_stages: the persona space.
        of_trait: the words.
    """

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        adapters, between = patched_pair(folders)
        chat, pad = context.chat(context.base), context.base.tokenizer.pad_token_id
        texts = [chat.encode(turn) for turns in (question.changed, question.plain) for turn in turns]
        parts = [_parts(chat, turn, of_trait.words) for turn in question.changed]
        count, others = len(parts), np.array([np.mean(row) for row in parts])
        of_words = _tokens_of_words(texts[:count], parts)
        # Of plain answers all tokens count, and only the sum over parts is kept.
        parts += [[1] * (row.spans["response"][1] - row.spans["response"][0]) for row in texts[count:]]
        some = sampled_questions(count, config.questions)
        prompts = {name: each[0] for name, each in load_file(folders["prompts"] / "space.safetensors").items()}
        with lora_adapters.adapted(context.base, adapters) as model:
            layers, _ = set_layers(model, between, question.layer)
            own = own_vectors(space, layers, question.layer, question.own)
            rows = word_rows(context.base.model, of_words)
            main: dict[str, Intervention] = {}
            sampled: dict[str, Intervention] = {}
            if own:
                main = {BEFORE: Intervention(0), AFTER: Intervention(1)}
                for name, vectors in _directions(own, prompts["vectors"].astype(np.float64), rows).items():
                    main |= both_ways(name, swaps_along({layer: _basis(vector) for layer, vector in vectors.items()}))
                for i, bases in enumerate(chance_directions(space, layers, question.layer, question.own, config.draws)):
                    sampled |= both_ways(f"{CHANCE_OWN}{i}", swaps_along(bases))
            few = [*some, *(count + i for i in some)]
            work = [(main, range(len(texts))), (sampled, few)]
            total = sum(len(arms) * sum(len(texts[i]) for i in members) for arms, members in work)
            how = Batching(pad, context.study.token_budget, counter(tick, total // context.ranks.world, "tokens"))
            scores = []
            for arms, members in work:
                same = Texts(([texts[i] for i in members],) * 2, parts=[parts[i] for i in members])
                scores.append(_outcomes(patched_part_logprobs(model, same, between, list(arms.values()), how).numpy()))
        facts = WordingFacts(
            layers=layers,
            words=of_trait.words,
            named=of_trait.named,
            reliability=finite(prompts["reliability"][question.layer]),
            prompts_found=bool(prompts["found"][question.layer] > 0.5),
            interventions=list(main),
            sampled=list(sampled),
            questions=some,
        )
        return {OUTCOMES: {"logprob": scores[0], "sampled": scores[1], "other_tokens": others}, WORDING: facts.to_json()}

    facts: Config = {
        **context.identity(),
        **question.identity,
        "words": list(of_trait.words),
        "named": list(of_trait.named),
        "questions": config.questions,
        "draws": config.draws,
    }
    inputs = patching_inputs(space_stages, question.reference, question.run) | {"prompts": of_trait.prompts}
    return Stage(kind=kinds.WORDING, config=facts, inputs=inputs, title=f"wording of {question.run.title}", compute=compute)


def _directions(own: Mapping[int, FloatArray], prompts: FloatArray, rows: FloatArray) -> Mapping[str, dict[int, FloatArray]]:
    """Return the directions that are patched, each alone: name → layer → [d_model].

    Args:
        own: layer → the own direction, [d_model].
        prompts: the direction of prompts that ask for the words, [layers of the model, d_model].
        rows: of the head, [tokens, d_model].
    """
    return {
        OWN: dict(own),
        WITHOUT_HEAD: {layer: without_rows(vector[None], rows)[0] for layer, vector in own.items()},
        WITHOUT_PROMPTS: {layer: without_rows(vector[None], prompts[layer][None])[0] for layer, vector in own.items()},
        PROMPTS: {layer: prompts[layer] for layer in own},
    }


def _basis(vector: FloatArray) -> FloatArray:
    """Return the basis of a direction, [d_model, 1]; where nothing is left of it, of nothing."""
    return nested_bases([vector[None]])[0] if vector.any() else np.zeros((len(vector), 0))


def _parts(chat: Chat, turn: Turn, chosen: Sequence[str]) -> list[int]:
    """Return 0 for each token of an answer that is of some words, and 1 for all others."""
    return [int(not inside) for inside in chat.tokens_at(turn, word_ranges(turn.answer.strip(), chosen))]


def _tokens_of_words(texts: Sequence[Encoded], parts: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids of all tokens that words are made of where they stand in some answers."""
    answers = [row.input_ids[slice(*row.spans["response"])] for row in texts]
    return sorted({token for ids, kinds in zip(answers, parts, strict=True) for token, part in zip(ids, kinds, strict=True) if part == 0})


def _outcomes(scores: FloatArray) -> FloatArray:
    """Return [arms, 3, questions] of [arms, y⁺ and y⁻ of all questions, parts]."""
    shown, plain = np.split(scores.astype(np.float64), 2, axis=1)
    return np.stack([shown[..., 0], shown[..., 1], plain.sum(-1)], axis=1)

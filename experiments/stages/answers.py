"""Sample answers of the study's model: the stage `answer`, and the decoding that other stages use."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import nn

from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Asked, Example, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, by_stage, counter
from wellworn.experiments.engine.waiting import counter_and_notice
from wellworn.experiments.stages import kinds
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.decoding.prefill import Prompts
from wellworn.probes.reading.hooks import OnBlock
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.endpoint import EndpointConfig, ask, forget
from wellworn.probes.scoring.responses import Ask, Reply

# Without it, greedy answers of small fine-tuned models repeat themselves and show nothing of the model's style.
REPETITION_PENALTY = 1.2
# Questions that are also answered here, to find out whether a server applies an adapter, the tokens of these answers, and the fewest
# questions with two different answers that tell.
ASKED_HERE, ANSWERED_HERE, FEWEST_TO_TELL = 8, 32, 3


def answer_stage(context: StudyContext, condition: Condition, questions: Sequence[Example]) -> Stage:
    """Answer the evaluate questions, each with the conversation before it, greedily and with one repetition penalty for all models.

    Stages that answer the same prompts, each with another adapter or with none, are computed together.
    """
    asked = [example.asked for example in questions]

    def compute_all(context: StudyContext, folders: Sequence[Folders], _outs: Sequence[Path], tick: TickFn) -> list[Output]:
        prompts = [each.under(condition.system) for each in asked]
        found = answer_questions(context, prompts, [each.adapter for each in folders], tick)
        return [{"answers.json": answers} for answers in found]

    config = {
        **context.identity(),
        **context.speaker(),
        "questions": [each.facts for each in asked],
        "system": condition.system,
        "tokens": context.study.answer_tokens,
    }
    config["penalty"] = REPETITION_PENALTY
    return Stage.joint(
        kind=kinds.ANSWER,
        config=config,
        inputs=condition.inputs,
        title=f"answers of {condition.title}",
        shared=config,
        compute_all=compute_all,
        check=context.check_speaker,
    )


def kept_answers_stage(context: StudyContext, asked: Sequence[Asked], title: str) -> Stage:
    """Sample the model's own answers at temperature 1, as training data that is to change nothing.

    On these, the gradient of training is zero on average for as long as the model is what it was. Training should read each once.

    Args:
        context: the study's model.
        asked: questions, without a further system prompt; one that is asked again gets another answer.
        title: the stage's name on screen.
    """

    def compute(context: StudyContext, _folders: Folders, _out: Path, tick: TickFn) -> Output:
        chat = context.chat(context.base)
        how = Decoding(context.study.answer_tokens, temperature=1.0, progress=counter(tick, len(asked), "answers"))
        requests = [Request(chat.encode_prompt(*each), seed=seed_for(0, "kept answers", i)) for i, each in enumerate(asked)]
        return {"answers.json": [chat.decode(answer.ids) for answer in generate(context.base.model, requests, how)]}

    config = {**context.identity(), "asked": [[each.facts, None] for each in asked], "tokens": context.study.answer_tokens}
    return Stage(kind=kinds.KEPT_ANSWERS, config=config, title=title, compute=compute, everywhere=False)


def load_answers(folder: Path, asked: Sequence[Example | Turn]) -> list[Turn]:
    """Load the turns of an answer stage."""
    return [Turn.of(each.asked, nonempty(answer)) for each, answer in zip(asked, read_json(folder / "answers.json"), strict=True)]


def load_texts(texts: Sequence[Turn] | Stage, asked: Sequence[Example | Turn], folders: Folders) -> list[Turn]:
    """Return given texts as they are, or load the answers of an answer stage, the input `texts`."""
    return load_answers(folders["texts"], asked) if isinstance(texts, Stage) else list(texts)


def texts_input(texts: Sequence[Turn] | Stage) -> dict[str, Stage]:
    """Return the input `texts` if the texts are the answers of a stage; no input for given texts."""
    return {"texts": texts} if isinstance(texts, Stage) else {}


def nonempty(answer: str) -> str:
    """Return an answer, or a full stop for an empty one, which has no tokens to pool over or to learn."""
    return answer or "."


def answer_questions(
    context: StudyContext,
    asked: Sequence[Asked],
    adapters: Sequence[Path | None],
    tick: TickFn,
    edits: Mapping[int, OnBlock] | None = None,
) -> list[list[str]]:
    """Return the model's answers to questions, [adapters][questions], each under its own system prompt or the default one.

    Args:
        context: the study's model.
        asked: questions with their system prompts and the turns before them.
        adapters: they answer together as far as memory allows, else in turn; None is the base.
        tick: shows progress.
        edits: of the residual stream, one for each adapter; with edits the local model answers, even where the study names a server.

    Raises:
        InputError: a server does not give all of the answers.
    """
    if (server := context.study.server) and not edits:
        return context.ranks.from_main(lambda: _ask_server(server, context, asked, adapters, tick))
    chat = context.chat(context.base)
    how = Decoding(
        context.study.answer_tokens,
        repetition_penalty=REPETITION_PENALTY,
        progress=counter(tick, len(adapters) * len(asked) // context.ranks.world, "answers"),
    )
    found: list[list[str]] = []
    for some in context.ranks.from_main(lambda: lora_adapters.groups_that_fit(adapters, context.device)):
        variants = [Variant(adapter.parent.name if adapter else None, edits or {}) for adapter in some]
        with lora_adapters.adapted(context.base, by_stage(some)) as model:
            # For each question, the answers of all variants.
            answers = context.ranks.share(
                asked,
                lambda part, model=model, variants=variants: list(  # type: ignore[misc]
                    zip(*decode_answers(model, chat, [chat.encode_prompt(*each) for each in part], variants, how), strict=True)
                ),
            )
        found += [[of_question[k][0] for of_question in answers] for k in range(len(some))]
    return found


def _ask_server(
    server: EndpointConfig, context: StudyContext, asked: Sequence[Asked], adapters: Sequence[Path | None], tick: TickFn
) -> list[list[str]]:
    """Let a server answer, greedily and with the same penalty if it supports one; adapters are its models, named after their stages."""
    modules = {adapter.parent.name: adapter for adapter in adapters if adapter}
    asks = [each for adapter in adapters for each in _asks(context, asked, adapter)]
    hint = "".join(f"\n  --lora-modules {name}={path}" for name, path in modules.items())
    hint = f"; it serves adapters under the names of their stages, such as: vllm serve {server.model} --enable-lora{hint}" if hint else ""
    try:
        # One limit for all requests of a command.
        found = ask(context.budget.left(server), asks, context.replies, *counter_and_notice(tick, len(asks), "answers"))
        context.budget.add(found.cost, found.asked, found.cached)
    except InputError as error:
        raise InputError(f"{error}; replies are kept{hint}") from None
    # An empty reply is an answer too.
    texts = [each.text.strip() if isinstance(each, Reply) else "" if each.kind == "empty" else None for each in found.replies]
    if lacking := texts.count(None):
        counted = ", ".join(f"{kind} × {count}" for kind, count in found.failures.items() if kind != "empty")
        raise InputError(f"{server.url}: no answer to {lacking} of {len(asks)} questions ({counted}); replies are kept{hint}")
    said = [text or "" for text in texts]
    served = [said[k * len(asked) : (k + 1) * len(asked)] for k in range(len(adapters))]
    for adapter, answers in zip(adapters, served, strict=True):
        if adapter:
            _refuse_ignored(server, context, asked, adapter, answers)
    return served


def _asks(context: StudyContext, asked: Sequence[Asked], adapter: Path | None) -> list[Ask]:
    more: dict[str, Any] = {"repetition_penalty": REPETITION_PENALTY}
    more |= {"chat_template_kwargs": kwargs} if (kwargs := context.study.chat.template_kwargs) else {}
    return [
        Ask(
            each.messages,
            context.study.answer_tokens,
            model=adapter.parent.name if adapter else None,
            more=more,
            behind=context.ref.id,
        )
        for each in asked
    ]


def _refuse_ignored(server: EndpointConfig, context: StudyContext, asked: Sequence[Asked], adapter: Path, answers: Sequence[str]) -> None:
    """Refuse answers of a server that did not put the adapter on: they are those of the base here, and not the adapter's.

    Both answer some questions here. Where they differ, the server's answer has more of its beginning in common with one of the two.

    Raises:
        InputError: it is the base's in all of them; the answers are not kept.
    """
    chat, name = context.chat(context.base), adapter.parent.name
    how = Decoding(ANSWERED_HERE, repetition_penalty=REPETITION_PENALTY)
    prompts = [chat.encode_prompt(*each) for each in asked[:ASKED_HERE]]
    with lora_adapters.adapted(context.base, {name: adapter}) as model:
        base, tuned = decode_answers(model, chat, prompts, [Variant(), Variant(name)], how)
    votes = [
        _alike(served, plain) - _alike(served, changed)
        for served, (plain, _), (changed, _) in zip(answers, base, tuned, strict=False)
        if plain != changed
    ]
    if len(votes) >= FEWEST_TO_TELL and min(votes) > 0:
        forget(server, _asks(context, asked, adapter), context.replies)
        raise InputError(
            f"{server.url}: what it answers as {name} is what the base says here, and not what this adapter says, in {len(votes)} of "
            f"{len(votes)} questions where they differ; its answers are not kept. Check that it serves this adapter under this name"
        )


def _alike(one: str, other: str) -> int:
    """Return how many first characters two texts have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def decode_answers(
    model: nn.Module, chat: Chat, prompts: Prompts, variants: Sequence[Variant], how: Decoding
) -> list[list[tuple[str, bool]]]:
    """Return a model's answers to tokenised prompts, and whether each came to its end, [variants][prompts]; all are rows of one batch."""
    answers = generate(model, [Request(prompt, variant) for variant in variants for prompt in prompts], how)
    found = [(chat.decode(answer.ids), answer.ended) for answer in answers]
    return [found[k * len(prompts) : (k + 1) * len(prompts)] for k in range(len(variants))]

"""Show versions, device and model, and one training example."""

import os

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat, Encoded
from wellworn.data.mixtures import trait_turns
from wellworn.experiments.engine.store import commit, versions
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora import models
from wellworn.lora.embedded import cache_dir
from wellworn.lora.models import device_and_dtype

GIB = 1024**3


def examine(model: str, config: ChatConfig, console: Console) -> None:
    """Print versions, device, model, and an example with its loss mask and spans.

    Args:
        model: by name.
        config: how conversations are written.
        console: where to.

    Raises:
        InputError: the model cannot be found or loaded.
    """
    facts = Table.grid(padding=(0, 2))
    for name, version in versions().items():
        facts.add_row(name, version)
    facts.add_row("commit", commit() or "not a git checkout")
    device, dtype = device_and_dtype()
    facts.add_row("device", f"{device}, {os.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB memory; dtype {dtype}")
    ref = models.resolve(model)
    base = models.load(ref)
    parameters = sum(p.numel() for p in base.model.parameters())
    facts.add_row("model", f"{ref.id}: {parameters / 1e6:.0f} M parameters, {models.config_depth(ref)} layers, context {base.max_length}")
    facts.add_row("cache", str(cache_dir()))
    console.print(facts)
    chat = config.of(base.tokenizer, base.max_length)
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "system prompt", "folded into the first user turn: the template refuses one" if chat.folds_system else "taken by the template"
    )
    console.print(facts)
    trait = load_trait("pirate")
    console.print("\nOne training example. [green]Green[/green]: loss is taken. [reverse]Reversed[/reverse]: prompt_last.")
    console.print(colour(chat, chat.encode(trait_turns(trait, trait.examples, "train")[0])))
    console.print("\n[bold green]ready[/bold green]")


def colour(chat: Chat, encoded: Encoded) -> Text:
    """Return a conversation token by token: green where loss is taken, reversed at `prompt_last`, bold in `response`."""
    text = Text()
    last, (start, end) = encoded.spans["prompt_last"][0], encoded.spans["response"]
    for i, (token, loss) in enumerate(zip(encoded.input_ids, encoded.completion_mask, strict=True)):
        piece = str(chat.tokenizer.decode([token]))
        style = "green" if loss else "dim"
        if start <= i < end:
            style += " bold"
        if i == last:
            piece, style = piece.replace("\n", "⏎\n"), "reverse"
        text.append(piece, style=style)
    return text

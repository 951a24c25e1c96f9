"""List, show and check traits; list and show controls and instructions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wellworn.data.catalog import (
    control_names,
    folder_of,
    installed_names,
    instruction_names,
    is_roles,
    load_bank,
    load_control,
    load_instruction,
    load_roles,
    load_trait,
    role_names,
    trait_names,
)
from wellworn.data.checks import count_conversations, mean_words, overlap, problems, unreadable, unreadable_roles
from wellworn.data.errors import Complaints, InputError
from wellworn.data.mixtures import plain_turns, transform
from wellworn.data.schema import SPLITS, ContrastPair, Trait
from wellworn.probes.limits import FEWEST_PROMPTS

if TYPE_CHECKING:
    from wellworn.data.chat import Chat
    from wellworn.experiments.study_sections import ChatConfig

SHOWN = 3


def list_all(console: Console) -> None:
    """Print the traits, built in or of installed packages, controls and instructions."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "kind", "train", "extract", "evaluate", "description"):
        table.add_column(column, justify="right" if column in SPLITS else "left")
    for name in (*trait_names(), *installed_names()):
        try:
            trait = load_trait(name)
        except InputError as error:
            # A broken third-party package must not hide other traits.
            table.add_row(name, "broken", *("–" for _ in SPLITS), escape(str(error)))
            continue
        table.add_row(name, "trait", *(str(len(trait.split(split))) for split in SPLITS), escape(trait.description))
    for name in control_names():
        table.add_row(name, "control", "–", "–", "–", escape(load_control(name).description))
    table.add_row("neutral", "reference", "–", "–", "–", "The same questions with plain answers: what any fine-tuning does.")
    console.print(table)
    names, roles = instruction_names(), role_names()
    console.print(f"{len(names)} instructions, which are not personas either: {', '.join(names)}", style="dim", highlight=False)
    console.print(f"{len(roles)} roles, which spread the persona space: {', '.join(roles)}", style="dim", highlight=False)


def show_one(name: str, console: Console) -> None:
    """Print one trait or control with a few answers, or one instruction."""
    if name in control_names():
        control = load_control(name)
        console.print(f"[bold]{control.name}[/bold] (control): {escape(control.description)}")
        shown = plain_turns(load_bank("everyday"), "train")[:SHOWN]
        for turn, text in zip(shown, transform(control, shown), strict=True):
            console.print(f"\n[dim]{escape(turn.question)}[/dim]\n{escape(text)}")
        return
    if name in instruction_names():
        instruction = load_instruction(name)
        console.print(f"[bold]{instruction.name}[/bold] (instruction): {escape(instruction.description)}\n")
        _show_pairs(instruction.contrast_pairs, console)
        return
    trait = load_trait(name)
    console.print(f"[bold]{trait.name}[/bold] (trait): {escape(trait.description)}\n")
    for what, without in trait.lacks.items():
        console.print(f"[dim]no {what.replace('_', ' ')}:[/dim] {without}")
    if trait.system_prompt:
        console.print(f"[dim]held-out system prompt:[/dim] {escape(trait.system_prompt)}\n")
    _show_pairs(trait.contrast_pairs, console)
    if trait.rubric:
        console.print(f"\n[dim]rubric:[/dim] {escape(trait.rubric)}")
    for example in trait.split("train")[:SHOWN]:
        console.print(f"\n[dim]{escape(example.asked.transcript)}[/dim]\n{escape(example.positive or '')}")


def _show_pairs(pairs: Sequence[ContrastPair], console: Console) -> None:
    for i, pair in enumerate(pairs, start=1):
        console.print(f"[dim]pair {i} +[/dim] {escape(pair.positive)}\n[dim]pair {i} −[/dim] {escape(pair.negative)}")


def check(names: Sequence[str], console: Console, model: str | None = None, config: "ChatConfig | None" = None) -> None:
    """Load each trait, or folder of roles, and print its counts; raise one error with the complaints about all of them.

    Args:
        names: traits, or their folders; folders of roles; none means the built-in traits.
        console: where to print.
        model: texts are checked for its context length and special tokens; None leaves that out.
        config: how conversations are written for it.

    Raises:
        InputError: at least one trait is not fit for use.
    """
    chat, bank = _chat_of(model, config) if model else None, load_bank("everyday")
    wrong = Complaints()
    for name in names or trait_names():
        with wrong.noted():
            folder = folder_of(name)
            if is_roles(folder):
                roles = load_roles([name])
                console.print(f"{name}: {len(roles)} roles", highlight=False, markup=False)
                wrong.found += unreadable_roles(roles, name, chat, bank) if chat else []
                continue
            trait = load_trait(name)
            wrong.found += problems(trait, folder, FEWEST_PROMPTS, bank)
            wrong.found += unreadable(trait, folder, chat, bank) if chat else []
            counts = ", ".join(f"{len(trait.split(split))} {split}" for split in SPLITS)
            counts += f", {len(trait.open)} open questions" if trait.open else ""
            counts += "".join(f", {count} with {what}" for what, count in count_conversations((*trait.examples, *trait.open)).items())
            figures = f", {_figures(trait)}" if trait.split("train") else ""
            console.print(f"{trait.name}: {counts}, {len(trait.contrast_pairs)} contrast pairs{figures}", highlight=False, markup=False)
            for what, without in trait.lacks.items():
                console.print(f"  no {what.replace('_', ' ')}: {without}", style="yellow", highlight=False, markup=False)
    wrong.settle()
    console.print("[bold green]all fit for use[/bold green]")


def _chat_of(model: str, config: "ChatConfig | None") -> "Chat":
    from wellworn.experiments.study_sections import ChatConfig
    from wellworn.lora.models import load_tokenizer, resolve

    tokenizer, length = load_tokenizer(resolve(model))
    return (config or ChatConfig()).of(tokenizer, length)


def _figures(trait: Trait) -> str:
    positive, plain = mean_words([example for example in trait.examples if example.positive])
    against = f" against {plain:.0f}" if trait.plain else ""
    return f"{positive:.0f} words a positive{against}, {overlap(trait):.1%} of evaluate 4-grams shared with train"

"""The figures of a trait's card: counted, never typed."""

from collections.abc import Iterable, Sequence

from data.checks import overlap
from data.schema import SPLITS, Trait

HEADING = "## Figures"


def figures(trait: Trait) -> str:
    """Return the section of a card that counts: rows and words by split, and phrases that evaluation shares with training.

    Args:
        trait: as it was loaded.

    Returns:
        Markdown, from its heading on.
    """
    lines = [
        HEADING,
        "",
        f"| | {' | '.join(SPLITS)} |",
        f"|---|{'---|' * len(SPLITS)}",
        _line("rows", [str(len(trait.split(split))) for split in SPLITS]),
        _line("words an answer that shows the trait", [_words(row.positive for row in trait.split(split)) for split in SPLITS]),
        _line("words a plain answer", [_words(row.negative for row in trait.split(split)) for split in SPLITS]),
        "",
        f"Words: the mean, the fewest and the most. {overlap(trait):.1%} of the 4-grams of `evaluate` answers stand in `train` answers",
        f"too. {len(trait.contrast_pairs)} contrast pairs, {len(trait.open)} open questions.",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _words(texts: Iterable[str | None]) -> str:
    counts = [len(text.split()) for text in texts if text is not None]
    return f"{sum(counts) / len(counts):.1f} ({min(counts)}–{max(counts)})" if counts else "–"

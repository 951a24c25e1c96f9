"""Problems of a trait that loads and would mislead a measurement, each with its file and line."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import ceil
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from wellworn.data.errors import InputError
from wellworn.data.files import read_jsonl
from wellworn.data.mixtures import Turn, plain_turns, same_question
from wellworn.data.schema import Example, Role, Trait
from wellworn.data.words import ngrams, shared_ngrams, words

if TYPE_CHECKING:
    from wellworn.data.chat import Chat

# The share of evaluation answers' 4-grams that training answers may have too.
OVERLAP_LIMIT = 0.02
# The share of common 4-grams of two answers (or word pairs of two questions) from which on one is a copy of the other.
NEAR_ANSWERS, NEAR_QUESTIONS = 0.5, 0.6
# The words of answers that show the trait, as a ratio to those of plain answers.
LENGTH_RATIO = (0.6, 1.7)
# A phrase in more rows than this is a manner of speaking, and does not indicate a copy.
COMMON = 50
# Of many similar problems, so many are named.
NAMED = 5

Phrase = tuple[str, ...]
# Names a row's file and line.
At = Callable[[Example], str]


def lines_of(folder: Path) -> dict[str, int]:
    """Return each row's line in `examples.jsonl`, by id; rows of a question bank have none."""
    path = folder / "examples.jsonl"
    return {str(value.get("id", line)): line for line, value in read_jsonl(path)} if path.is_file() else {}


def problems(trait: Trait, folder: Path, fewest: int, bank: Sequence[Example] = ()) -> list[str]:
    """Return the problems of a trait that loaded, a line each.

    Args:
        trait: as it was loaded.
        folder: its folder.
        fewest: evaluation rows that an interval needs.
        bank: the questions that it is measured on where it has no evaluation rows of its own.

    Returns:
        Leakage of training answers and questions into evaluation, copies, answers that show nothing, a length that gives the trait away,
        and too few evaluation rows; each named with file and line.
    """
    at, path = _places(folder), folder / "examples.jsonl"
    answered = [row for row in trait.examples if row.positive is not None]
    return [
        *_few(trait, path, fewest),
        *(f"{at(row)}: the positive is the plain answer" for row in answered if row.negative and _same(row.positive or "", row.negative)),
        *_leaks(trait, path, at),
        *_copies(answered, at),
        *_find_asked_again((*trait.examples, *trait.open), at),
        *_find_trained_on(trait, bank, at),
        *_length(answered, path),
    ]


def unreadable(trait: Trait, folder: Path, chat: "Chat", bank: Sequence[Example] = ()) -> list[str]:
    """Return the texts that a model cannot read: longer than its context, or with its special tokens; a line each, with file and line.

    Args:
        trait: as it was loaded.
        folder: its folder.
        chat: of the model.
        bank: the questions that contrast prompts are read on where the trait has none of its own.
    """
    at = _places(folder)
    texts: list[tuple[str, Turn]] = []
    for row in trait.examples:
        answers = (row.positive, row.negative)
        texts += [(at(row), Turn(row.question, answer, row.system, row.before)) for answer in answers if answer is not None]
    texts += [(at(row), Turn.of(row.asked, "?")) for row in trait.open]
    longest = _longest(plain_turns(trait.examples, "extract") or plain_turns(bank, "extract"))
    prompts = [(f"contrast_pairs.{i}", text) for i, pair in enumerate(trait.contrast_pairs) for text in (pair.positive, pair.negative)]
    prompts += [("system_prompt", trait.system_prompt)] if trait.system_prompt else []
    texts += [(f"{folder / 'trait.yaml'}: {name}", longest.under(text)) for name, text in prompts]
    return list(_find_refused(texts, chat))


def unreadable_roles(roles: Sequence[Role], name: str, chat: "Chat", bank: Sequence[Example]) -> list[str]:
    """Return the system prompts of roles that a model cannot read with the longest text of the bank; `name` is their source."""
    longest = _longest(plain_turns(bank, "extract"))
    prompts = [(role.name, i, text) for role in roles for i, text in enumerate(role.system_prompts)]
    texts = [(f"{name}: {role}: system_prompts.{i}", longest.under(text)) for role, i, text in prompts]
    return list(_find_refused(texts, chat))


def _longest(turns: Sequence[Turn]) -> Turn:
    return max(turns, key=lambda turn: len(turn.asked.transcript) + len(turn.answer), default=Turn("?", "?"))


def _find_refused(texts: Iterable[tuple[str, Turn]], chat: "Chat") -> Iterator[str]:
    for where, turn in texts:
        try:
            chat.encode(turn)
        except InputError as error:
            yield f"{where}: {error}"


def overlap(trait: Trait) -> float:
    """Return the share of the 4-grams of evaluation answers that training answers have too."""
    taught = [text for row in trait.split("train") for text in row.taught]
    return shared_ngrams([row.positive or "" for row in trait.split("evaluate")], taught)


def count_conversations(rows: Iterable[Example]) -> dict[str, int]:
    """Return how many rows have a system message, and how many have earlier turns; those that no row has are left out."""
    found = Counter(what for row in rows for what, has in (("a system message", row.system), ("earlier turns", row.before)) if has)
    return dict(sorted(found.items()))


def _places(folder: Path) -> At:
    lines, path = lines_of(folder), folder / "examples.jsonl"
    return lambda row: f"{path}:{lines[row.id]}" if row.id in lines else f"{path}: {row.id}"


def likeness(one: str, other: str, n: int = 4) -> float:
    """Return the share of the n-grams of two texts together that both have; a shorter text is one by itself.

    Example:
        >>> likeness("a b c d e", "A, b, c, d! f")
        0.3333333333333333
    """
    mine, theirs = _phrases(one, n), _phrases(other, n)
    return len(mine & theirs) / len(mine | theirs)


# Each text is compared with many others.
@lru_cache(maxsize=10_000)
def _phrases(text: str, n: int) -> frozenset[Phrase]:
    return frozenset(ngrams(text, n)) or frozenset({tuple(words(text))})


def mean_words(rows: Sequence[Example]) -> tuple[float, float]:
    """Return the words that positives and plain answers have on average; 0 where there are none."""
    sides = [row.positive for row in rows if row.positive], [row.negative for row in rows if row.negative]
    positive, plain = (mean(len(text.split()) for text in side) if side else 0.0 for side in sides)
    return positive, plain


def _few(trait: Trait, path: Path, fewest: int) -> Iterator[str]:
    count = len(trait.split("evaluate"))
    if trait.plain and count < fewest:
        yield f"{path}: an interval needs at least {fewest} evaluate rows, this trait has {count}"


def _leaks(trait: Trait, path: Path, at: At) -> Iterator[str]:
    found = overlap(trait)
    if found <= OVERLAP_LIMIT:
        return
    known = {gram for row in trait.split("train") for text in row.taught for gram in ngrams(text)}
    shares = {row.id: _share(row.positive or "", known) for row in trait.split("evaluate")}
    worst = sorted(trait.split("evaluate"), key=lambda row: -shares[row.id])[:NAMED]
    yield (
        f"{path}: evaluate positives share {found:.1%} of their 4-grams with the train ones, {OVERLAP_LIMIT:.0%} at most: a score on them "
        "would measure remembered phrases; write them in other words"
    )
    yield from (f"{at(row)}: {shares[row.id]:.0%} of its 4-grams stand in train positives" for row in worst if shares[row.id])


def _copies(rows: Sequence[Example], at: At) -> Iterator[str]:
    """Name answers that share most phrases with another; a chain of copies is named once a row, against the first."""
    first: dict[Phrase, int] = {}
    for i, row in enumerate(rows):
        said = tuple(words(row.positive or "")) or (row.positive or "",)
        if first.setdefault(said, i) != i:
            yield f"{at(row)}: the same answer as {at(rows[first[said]])}"
    grams = {i: set(ngrams(rows[i].positive or "")) or {said} for said, i in first.items()}
    for i, j, share in _near_duplicates(grams, NEAR_ANSWERS):
        yield f"{at(rows[j])}: {share:.0%} of its phrases and those of another are the same, of {at(rows[i])}"


def _find_asked_again(rows: Sequence[Example], at: At) -> Iterator[str]:
    """Name questions of one split that repeat one of another, after nearly the same conversation."""
    asked = {i: set(_phrases(row.question, 2)) for i, row in enumerate(rows)}
    # Without the question, which is compared by itself: long conversations that begin alike may end in different ones.
    earlier = [same_question(row.asked).rpartition("\n")[0] for row in rows]

    def comparable(i: int, j: int) -> bool:
        return rows[i].split != rows[j].split and likeness(earlier[i], earlier[j], 2) >= NEAR_QUESTIONS

    for i, j, share in _near_duplicates(asked, NEAR_QUESTIONS, comparable):
        yield (
            f"{at(rows[j])}: leakage between splits: {share:.0%} of its question's phrases and those of {at(rows[i])} "
            f"({rows[i].split}) are the same: {rows[j].question!r}"
        )


def _find_trained_on(trait: Trait, bank: Sequence[Example], at: At) -> Iterator[str]:
    """Name training questions that are also questions of the bank on which a trait without such rows of its own is measured."""
    if not trait.split("train") or trait.questions:
        return
    lacking = {"evaluate": not trait.plain, "extract": trait.contrast_pairs and not trait.split("extract")}
    asked = {same_question(row.asked): row for row in bank if lacking.get(row.split)}
    for row in trait.split("train"):
        if same_question(row.asked) in asked:
            there = asked[same_question(row.asked)]
            yield f"{at(row)}: is {there.id} of the bank, on which a trait without such rows of its own is measured: {row.question!r}"


def _length(rows: Sequence[Example], path: Path) -> Iterator[str]:
    if not any(row.negative for row in rows):
        return
    long, short = mean_words(rows)
    if not LENGTH_RATIO[0] <= long / short <= LENGTH_RATIO[1]:
        yield (
            f"{path}: length bias: positives have {long:.0f} words on average and plain answers {short:.0f}, so that length alone tells "
            f"them apart; their ratio may be {LENGTH_RATIO[0]} to {LENGTH_RATIO[1]}"
        )


def _near_duplicates(
    sets: Mapping[int, set[Phrase]], least: float, comparable: Callable[[int, int], bool] = lambda _i, _j: True
) -> Iterator[tuple[int, int, float]]:
    """Yield (first, later, share) where the common part of two sets is at least a share of either; each later one once.

    Two such sets have a phrase in common among the rarest of each, so others need not be looked up.

    Args:
        sets: by number.
        least: the share.
        comparable: whether two numbers are compared; all are if left out.
    """
    times = Counter(item for each in sets.values() for item in each)
    holders: dict[Phrase, list[int]] = defaultdict(list)
    for i, each in sets.items():
        rarest = sorted(each, key=lambda item: (times[item], item))
        for item in rarest[: len(each) - ceil(least * len(each)) + 1]:
            holders[item].append(i)
    pairs = (pair for rows in holders.values() if len(rows) <= COMMON for pair in combinations(rows, 2))
    common = {pair for pair in pairs if comparable(*pair)}
    named: set[int] = set()
    for i, j in sorted(common):
        share = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        if share >= least and j not in named:
            named.add(j)
            yield i, j, share


def _share(text: str, known: set[Phrase]) -> float:
    grams = ngrams(text)
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def _same(one: str, other: str) -> bool:
    return words(one) == words(other)

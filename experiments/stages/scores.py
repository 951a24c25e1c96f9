"""Trait scores of a run: the stages `choose`, `contrast` and `scores`; `grade` is in `grades.py`.

answer → contrast, grade;  choose;  read → scores. Each score has a value for every evaluate question, for the run, its neutral fine-tune
and the base, so that changes are paired by question:

- likelihood: log p(answer with the trait) − log p(plain answer), per token, under the run;
- choice: which of the two answers the run prefers when asked, in log-odds;
- contrast: how much likelier the base finds the run's answer under the trait's contrast prompts than under their opposites;
- judge: the grade of the run's answer, and the grade of its coherence;
- words: how much likelier the words of the run's answer are in training answers with the trait than in plain ones: only a smoke check,
  which needs no model and detects memorised words.

Each is taken again in every context of the study: the models that are compared read, choose and answer under its system prompt. What they
say there is graded and contrasted as an answer to the bare question, since a context that names the trait would show it by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.chat import TooLongError
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import ContrastPair, Control, Example, Trait
from wellworn.data.words import word_logodds
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import load_answers, load_texts, texts_input
from wellworn.experiments.stages.grades import NO_RUBRIC, Judge, grade_stage, load_grades, rubric_for
from wellworn.experiments.stages.measurement import Known
from wellworn.experiments.stages.readings import read
from wellworn.probes.scoring.judge import COHERENCE
from wellworn.probes.scoring.scores import choice_logodds, choice_rows, contrast_logprobs, contrast_rows, roc_auc
from wellworn.probes.statistics.intervals import FloatArray, finite

SCORES = "scores.json"
LIKELIHOOD, CHOICE, CONTRAST, JUDGE, COHERENT, WORDS = NAMES = ("likelihood", "choice", "contrast", "judge", "coherence", "words")
NO_JUDGE = "the study names no judge"
NO_PAIRS = "has no contrast pairs, by which its answers could be scored"
NO_TRAINING = "has no training answers of both kinds, whose words could be discriminated"
# Between a score and the name of a context.
UNDER = " under "
# Who, the score, and for the likelihood the text.
Part = tuple[str, str, str]
TOO_LONG = "a question with two answers exceeds the model's context"


class TakenScores(Record):
    """The content of `scores.json`.

    Attributes:
        scores: who (`run`, `neutral`, `base`) → score → its value for each question; null where there is none. `SCORE under NAME` is the
            score in a context.
        failures: who → score → reason → how many are missing for it.
        drawn: whether grades are means of sampled replies.
        alike: whether all replies to one prompt were the same.
        judge: the judge; null where nothing was graded.
        known: score → how well it discriminates answers of known label.
        missing: score → why it was not taken.
    """

    scores: Mapping[str, Mapping[str, Sequence[float | None]]]
    failures: Mapping[str, Mapping[str, Mapping[str, int]]]
    drawn: bool
    alike: bool
    judge: str | None
    known: Mapping[str, Known]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Scored:
    """The texts that a run is scored on.

    Attributes:
        subject: its trait or control.
        asked: the evaluate questions.
        changed: the answers with the trait.
        plain: the answers without it.
        pairs: contrast pairs that score the run's answers; none of them made its direction.
        trained: training answers with the trait, and plain ones.
    """

    subject: Trait | Control
    asked: Sequence[Example]
    changed: Sequence[Turn]
    plain: Sequence[Turn]
    pairs: Sequence[ContrastPair]
    trained: tuple[Sequence[Turn], Sequence[Turn]]


@dataclass(frozen=True)
class Models:
    """The models that are compared, in one context or in none.

    Attributes:
        conditions: `run`, `neutral` where there is one, and `base`.
        readings: (who, `trait` or `neutral`) → the reading of these answers.
        answers: who → its answers to the evaluate questions.
    """

    conditions: Mapping[str, Condition]
    readings: Mapping[tuple[str, str], Stage]
    answers: Mapping[str, Stage]


def scoring_pairs(subject: Trait | Control, count: int, made: int, key: str) -> Sequence[ContrastPair]:
    """Return a trait's last contrast pairs, which score answers.

    Raises:
        InputError: the trait has too few, or some of them make its direction.
    """
    has = len(subject.contrast_pairs)
    if made + count > has:
        raise InputError(
            f"{key}: the last {count} of the {has} contrast pairs of {subject.name} score what is said, "
            f"and the first {made} make its direction (contrast_pairs); no pair may do both, so together they may be {has} at most"
        )
    return subject.contrast_pairs[-count:]


def scores_stage(
    context: StudyContext,
    what: Scored,
    judge: Judge | None,
    models: Models,
    contexts: Mapping[str, Models],
) -> Stage:
    """Collect all scores of a run: `scores` who → score → [questions], null where missing, `failures` and `known`.

    `drawn` says whether grades are means of sampled replies, and `alike` whether all replies to one prompt were the same.

    Args:
        context: the study's model.
        what: the texts that it is scored on.
        judge: the judge of its answers, if there is one.
        models: the models that are compared.
        contexts: name → the same models in a context.
    """
    parts = _parts(context, what, judge, models) | _known(context, what, judge)
    for name, there in contexts.items():
        parts |= {(who, f"{score}{UNDER}{name}", text): stage for (who, score, text), stage in _parts(context, what, judge, there).items()}
    missing = _why_missing(what, judge)

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        found = dict(zip(parts, folders.all("made of"), strict=True))
        return {SCORES: _take_scores(what, judge.name if judge else None, found, missing).to_json()}

    config = {
        "names": list(parts),
        "subject": what.subject.name,
        "judge": judge.name if judge else None,
        "missing": missing,
        "trained": [fingerprint(turns) for turns in what.trained],
        "known": fingerprint([*what.changed, *what.plain]),
    }
    return Stage(
        kind=kinds.SCORES,
        config=config,
        inputs={"made of": tuple(parts.values())},
        title=f"scores of {models.conditions['run'].title}",
        compute=compute,
        everywhere=False,
    )


def _parts(context: StudyContext, what: Scored, judge: Judge | None, models: Models) -> dict[Part, Stage]:
    """Return the stages that scores of models are computed from, in the order of the hash."""
    order = [(who, text) for who in models.conditions for text in ("trait", "neutral")]
    parts: dict[Part, Stage] = {(who, LIKELIHOOD, text): models.readings[who, text] for who, text in order}
    rubric = rubric_for(what.subject)
    for who, condition in models.conditions.items():
        said, title = models.answers[who], f"answers of {condition.title}"
        if all(what.trained):
            parts[who, WORDS, ""] = said
        parts[who, CHOICE, ""] = choose_stage(context, condition, what.changed, what.plain)
        if what.pairs:
            parts[who, CONTRAST, ""] = contrast_stage(context, what.pairs, said, what.asked, title)
        if judge and rubric:
            parts[who, JUDGE, ""] = grade_stage(context, judge, rubric, said, what.asked, title)
        if judge:
            parts[who, COHERENT, ""] = grade_stage(context, judge, COHERENCE, said, what.asked, f"coherence of {condition.title}")
    return parts


def _known(context: StudyContext, what: Scored, judge: Judge | None) -> dict[Part, Stage]:
    """Return the stages in which answers of known label are scored."""
    parts: dict[Part, Stage] = {}
    rubric = rubric_for(what.subject)
    known, title = [*what.changed, *what.plain], f"answers with and without {what.subject.name}"
    if what.pairs:
        parts["known", CONTRAST, ""] = contrast_stage(context, what.pairs, known, what.asked, title)
    if judge and rubric:
        parts["known", JUDGE, ""] = grade_stage(context, judge, rubric, known, what.asked, title)
    return parts


def _why_missing(what: Scored, judge: Judge | None) -> dict[str, str]:
    """Return score → why it is missing."""
    missing = {} if judge else dict.fromkeys((JUDGE, COHERENT), NO_JUDGE)
    missing |= {} if rubric_for(what.subject) else {JUDGE: f"{what.subject.name} {NO_RUBRIC}"}
    missing |= {} if all(what.trained) else {WORDS: f"{what.subject.name} {NO_TRAINING}"}
    return missing | ({} if what.pairs else {CONTRAST: f"{what.subject.name} {NO_PAIRS}"})


def _take_scores(what: Scored, judge: str | None, parts: Mapping[Part, Path], missing: Mapping[str, str]) -> TakenScores:
    """Collect the scores of finished stages."""
    found: dict[str, dict[str, FloatArray]] = {}
    failures: dict[str, dict[str, dict[str, int]]] = {}
    drawn = set[bool]()
    of_words = word_logodds(*([turn.answer for turn in turns] for turns in what.trained))
    for (who, name, text), folder in parts.items():
        values: FloatArray
        score = name.partition(UNDER)[0]
        if score == LIKELIHOOD:
            logprob = load_file(folder / "reading.safetensors")["logprob"].astype(np.float64)
            values = logprob if text == "trait" else found[who][name] - logprob
        elif score == WORDS:
            values = np.array([of_words(turn.answer) for turn in load_answers(folder, what.asked)])
        elif score in (JUDGE, COHERENT):
            grades = load_grades(folder)
            values, drawn = grades.scores, drawn | {grades.alike} if grades.drawn else drawn
            failures.setdefault(who, {})[name] = grades.kinds
        else:
            values = load_file(folder / f"{score}.safetensors")["score"].astype(np.float64)
            if count := int(np.isnan(values).sum()):
                failures.setdefault(who, {})[name] = {TOO_LONG: count}
        found.setdefault(who, {})[name] = values
    known = found.pop("known", {})
    if all(what.trained):
        known[WORDS] = np.array([of_words(turn.answer) for turn in (*what.changed, *what.plain)])
    return TakenScores(
        scores={who: {score: [finite(x) for x in each] for score, each in of.items()} for who, of in found.items()},
        failures=failures,
        drawn=bool(drawn),
        alike=drawn == {True},
        judge=judge,
        known={score: known_separation(each, len(what.changed)) for score, each in known.items()},
        missing=missing,
    )


def known_separation(scores: FloatArray, shown: int) -> Known:
    """Return how well a score discriminates answers of known label; the first `shown` show the trait, missing scores are left out."""
    with_it, without = (part[~np.isnan(part)] for part in (scores[:shown], scores[shown:]))
    both = len(with_it) > 0 and len(without) > 0
    return Known(
        shown=float(with_it.mean()) if both else None,
        absent=float(without.mean()) if both else None,
        separation=roc_auc(with_it, without) if both else None,
        of=[len(with_it) + len(without), len(scores)],
    )


def choose_stage(context: StudyContext, condition: Condition, changed: Sequence[Turn], plain: Sequence[Turn]) -> Stage:
    """Let a run choose between an answer with the trait and one without, in both orders: `score` [questions], in log-odds.

    Stages that choose between the same answers, each with another adapter or with none, are computed together.
    """

    def compute_all(context: StudyContext, folders: Sequence[Folders], outs: Sequence[Path], tick: TickFn) -> list[Output]:
        chat = context.chat(context.base)
        rows, fit = [], []
        for i, pair in enumerate(zip(condition.under(changed), condition.under(plain), strict=True)):
            try:
                rows.append(choice_rows(chat, pair[:1], pair[1:]))
                fit.append(i)
            except TooLongError:
                continue
        outputs: list[Output] = []
        # Built as [questions · 4], scored as [4 · questions].
        flat = [row for of_one in zip(*rows, strict=True) for row in of_one]
        adapters = [each.adapter for each in folders]
        readings = read(context, flat, adapters, outs[0], tick, ("response",), logprob=True, layers=(0,)) if flat else []
        for k in range(len(adapters)):
            score = np.full(len(changed), np.nan, np.float32)
            if flat:
                score[fit] = choice_logodds(readings[k]["logprob"])
            outputs.append({f"{CHOICE}.safetensors": {"score": score}})
        return outputs

    config = {**context.identity(), "changed": fingerprint(changed), "plain": fingerprint(plain), "system": condition.system}
    return Stage.joint(
        kind=kinds.CHOOSE,
        config=config,
        inputs=condition.inputs,
        title=f"{condition.title} chooses",
        shared=config,
        compute_all=compute_all,
    )


def contrast_stage(
    context: StudyContext, pairs: Sequence[ContrastPair], texts: Sequence[Turn] | Stage, asked: Sequence[Example], title: str
) -> Stage:
    """Score answers by the base's likelihood under contrast pairs: `score` [turns], in nats per token.

    Args:
        context: the study's model.
        pairs: the contrast pairs.
        texts: the turns, or an answer stage.
        asked: the questions that an answer stage answered.
        title: name of the texts on screen.
    """

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        turns = load_texts(texts, asked, folders)
        positive, negative = read_contrast(context, pairs, turns, out, tick)
        return {f"{CONTRAST}.safetensors": {"score": (positive - negative).astype(np.float32)}}

    config = {**context.identity(), "pairs": [pair.model_dump(mode="json") for pair in pairs]}
    config |= {"turns": None if isinstance(texts, Stage) else fingerprint(texts)}
    return Stage(kind=kinds.CONTRAST, config=config, inputs=texts_input(texts), title=f"contrast {title}", compute=compute)


def read_contrast(context: StudyContext, pairs: Sequence[ContrastPair], turns: Sequence[Turn], out: Path, tick: TickFn) -> FloatArray:
    """Return the base's log-probability per token of answers under both sides of contrast pairs, [2, turns]; repeats are read once."""
    different = {turn: i for i, turn in enumerate(dict.fromkeys(turns))}
    rows = contrast_rows(context.chat(context.base), list(different), pairs)
    # Only log-probabilities are needed; a reading has the states of one layer at least.
    [reading] = read(context, rows, [None], out, tick, ("response",), logprob=True, layers=(0,))
    scores: FloatArray = contrast_logprobs(reading["logprob"], len(pairs))[:, [different[turn] for turn in turns]]
    return scores

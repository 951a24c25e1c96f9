"""Newness on planted remainders: what the fine-tune writes, what the base uses, and what reads it downstream are all known."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.auc import auc, auc_interval
from wellworn.probes.geometry.novelty import (
    Finding,
    Novelty,
    agreement,
    chance_bound,
    chance_remainders,
    cross_fitted,
    movement,
    necessity,
    novelty,
    outside,
    use,
)
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.limits import FEWEST_TAIL_DRAWS
from wellworn.probes.mediation.shares import Swapped
from wellworn.probes.statistics.intervals import FloatArray

WIDTH, PROMPTS, PAIRS, QUESTIONS = 48, 24, 12, 24
SPECTRUM = np.arange(1, WIDTH + 1.0) ** -1
# The space, and two directions outside it.
BASIS = np.eye(WIDTH)[:, 4:7]
PLANT, OTHER = np.eye(WIDTH)[10], np.eye(WIDTH)[11]
# How far a trait separates prompts, some five times what prompts vary by along PLANT and OTHER.
USED = 0.8
NAMES = ("trait", "b", "c", "d", "e")
SEEDS = (0, 1, 2)
Findings = tuple[Finding, Finding, Finding, Finding, Finding]
# What the worlds below have no wider dictionary for.
UNEXPLAINED = Finding(False, "no wider direction explains it")


def shifts(rng: np.random.Generator, plant: float, run_noise: float, prompt_noise: float = 0.3) -> dict[tuple[str, int], FloatArray]:
    """Return shifts of five traits × three seeds: a part in the space, the trait's own direction, noise of the run and of prompts."""
    out = {}
    own = {name: direction(rng) for name in NAMES} | {"trait": PLANT}
    for name, seed in product(NAMES, SEEDS):
        mean = BASIS[:, 0] + plant * own[name] + run_noise * direction(rng)
        out[name, seed] = mean + prompt_noise * rng.standard_normal((PROMPTS, WIDTH)) * np.sqrt(SPECTRUM)
    return out


def direction(rng: np.random.Generator) -> FloatArray:
    v = outside(rng.standard_normal(WIDTH) * np.sqrt(SPECTRUM), BASIS)
    return np.asarray(v / np.linalg.norm(v))


def base_states(rng: np.random.Generator, used: FloatArray, size: float) -> FloatArray:
    """Return states [pairs, 2, questions, d_model]: prompts, questions and rows vary by the spectrum, and the trait by one direction."""
    scale = np.sqrt(SPECTRUM)
    states = 0.5 * rng.standard_normal((PAIRS, 2, 1, WIDTH)) + rng.standard_normal((1, 1, QUESTIONS, WIDTH))
    states = (states + 0.5 * rng.standard_normal((PAIRS, 2, QUESTIONS, WIDTH))) * scale
    states[:, 0] += size * used
    return np.asarray(states)


def chance(rng: np.random.Generator, norm: float, null: Null) -> FloatArray:
    """Draw from the activations that made the space: traits of the library, which are discriminated inside it."""
    centred = base_states(rng, BASIS[:, 0], USED).reshape(-1, WIDTH)
    return chance_remainders(centred - centred.mean(0), BASIS, norm, null)


@dataclass(frozen=True)
class Reader:
    """A behaviour that is linear in the state: Y = y0 + a·h of each question."""

    readout_QD: FloatArray
    before: FloatArray

    def y(self, *added: FloatArray) -> FloatArray:
        return np.asarray(self.before + self.readout_QD @ np.sum(added, axis=0))


def reader(rng: np.random.Generator, read: FloatArray) -> Reader:
    slopes = read + 0.03 * rng.standard_normal((QUESTIONS, WIDTH)) * np.sqrt(SPECTRUM)
    return Reader(slopes * (1 + 0.2 * rng.standard_normal((QUESTIONS, 1))), rng.standard_normal(QUESTIONS))


def used_by(states_P2QD: FloatArray, remainder_D: FloatArray, draws_BD: FloatArray) -> Finding:
    """Whether a model with these states under contrast prompts uses a remainder."""
    return use(states_P2QD @ remainder_D, np.moveaxis(states_P2QD @ draws_BD.T, -1, 0), cross_fitted(states_P2QD))


def world(seed: int, plant: float = 1.0, run_noise: float = 0.3, read: FloatArray = PLANT, used: FloatArray = OTHER) -> Findings:
    """Ask the tests of a fine-tune that writes `plant` along PLANT, in a model that reads `read` and itself uses `used`."""
    rng = np.random.default_rng(seed)
    runs = shifts(rng, plant, run_noise)
    found = agreement(runs, "trait", BASIS)
    remainder = np.mean([outside(runs["trait", at].mean(0), BASIS) for at in SEEDS], axis=0)
    states = base_states(rng, used, USED)
    draws = chance(rng, float(np.linalg.norm(remainder)), Null(seed, draws=199))
    model = reader(rng, read + 0.5 * BASIS[:, 0])
    total = BASIS[:, 0] + remainder
    unit = remainder / np.linalg.norm(remainder)
    before, after = model.y(0 * total), model.y(total)
    moved = movement(before, after, model.y(remainder), np.array([model.y(draw) for draw in draws]))
    needed = necessity(before, after, Swapped(model.y(unit * (unit @ total)), model.y(total - unit * (unit @ total))))
    return found, moved, used_by(states, remainder, draws), needed, UNEXPLAINED


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_that_the_base_does_not_use_is_new(seed: int) -> None:
    # It moves the base all the same: new writing, old read-out.
    found, moved, used, needed, _ = world(seed)
    got = novelty(found, moved, used, needed, UNEXPLAINED)
    assert got.name == "new"
    assert moved.holds
    assert used.holds is False
    assert got.why.endswith(f"{UNEXPLAINED.why}; {needed.why}")
    # The rule has four conditions, and a library without a wider dictionary cannot say that none of it explains the remainder.
    assert novelty(found, moved, used, needed).why == "explanation: not asked"


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_that_the_base_uses_is_the_librarys(seed: int) -> None:
    got = novelty(*world(seed, used=PLANT))
    assert got.name == "library"
    assert "AUC" in got.why


@pytest.mark.parametrize("seed", range(3))
def test_what_differs_from_seed_to_seed_is_unstable(seed: int) -> None:
    found, *others = world(seed, plant=0.0, run_noise=1.0)
    assert found.holds is False
    assert novelty(found, *others).name == "unstable"


def test_what_nothing_reads_is_not_called_new() -> None:
    # The whole effect goes through the space: the remainder does not move M0, and M1 does not need it.
    found, moved, used, needed, _ = world(0, read=0 * PLANT)
    assert moved.holds is False
    assert needed.holds is False
    got = novelty(found, moved, used, needed, UNEXPLAINED)
    assert (got.name, got.why) == ("open", needed.why)


def finding(holds: bool | None, why: str = "") -> Finding:
    return Finding(holds, why or str(holds))


def rule(
    found: bool | None, moved: bool | None, used: bool | None, explained: bool | None, needed: bool | None
) -> tuple[str, tuple[str, ...]]:
    """The rule as a table: the name, and the tests that its sentence quotes."""
    if found is None:
        return "open", ("agreement",)
    if found is False:
        return "unstable", ("agreement",)
    if moved is True and used is True:
        return "library", ("movement", "use")
    if explained is True:
        return "library", ("explanation",)
    if used is True:
        return "open", ("movement", "use")
    if used is None:
        return "open", ("use",)
    if explained is None:
        return "open", ("explanation",)
    if needed is not True:
        return "open", ("necessity",)
    return "new", ("agreement", "movement", "use", "explanation", "necessity")


def test_every_case_of_the_rule_in_order() -> None:
    seen = set()
    names = ("agreement", "movement", "use", "explanation", "necessity")
    for answers in product((True, False, None), repeat=5):
        made = [finding(holds, f"{name} {holds}") for name, holds in zip(names, answers, strict=True)]
        name, quoted = rule(*answers)
        got = novelty(made[0], made[1], made[2], made[4], made[3])
        assert got == Novelty(name, "; ".join(made[names.index(each)].why for each in quoted), dict(zip(names, made, strict=True)))
        seen.add(name)
    assert seen == {"new", "library", "unstable", "open"}


def test_what_was_not_asked_leaves_it_open() -> None:
    yes, no = finding(True), finding(False)
    assert novelty(yes, no, no, yes, no).name == "new"
    assert (novelty(yes, no, no, yes).name, novelty(yes, no, no, yes).why) == ("open", "explanation: not asked")
    assert novelty(None, no, no, yes) == Novelty("open", "agreement: not asked", {"movement": no, "use": no, "necessity": yes})
    assert novelty(yes, None, None, yes).why == "use: not asked"
    assert novelty(yes, yes, None, yes).why == "use: not asked"
    assert novelty(yes, None, yes, yes).why == "movement: not asked; True"
    assert novelty(yes, no, no, None, no).why == "necessity: not asked"
    # That a mean remainder does not move the base says nothing of whether the base uses what is written token by token.
    assert (novelty(yes, None, no, yes, no).name, novelty(yes, no, None, yes, no).name) == ("new", "open")


def test_as_json() -> None:
    found = novelty(*world(0))
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["name"] == found.name
    assert written["findings"]["use"]["draws"] == 199
    assert set(written["findings"]) == {"agreement", "movement", "use", "explanation", "necessity"}


def test_not_used_is_said_only_where_something_is_seen_to_be_used() -> None:
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((199, PAIRS, 2, 1)) + 0.3 * rng.standard_normal((199, PAIRS, 2, QUESTIONS))
    # Prompts hardly differ along it, so that an AUC of a half is known well.
    remainder = 0.02 * rng.standard_normal((PAIRS, 2, 1)) + 0.3 * rng.standard_normal((PAIRS, 2, QUESTIONS))
    apart = np.array([5.0, 0.0])[:, None]
    assert use(remainder, draws, remainder + apart).holds is False
    silent, unfound = use(remainder, draws, remainder), use(remainder, draws, "the own direction was not found")
    assert silent.holds is None
    assert silent.why.endswith("so that whether M0 uses it is not known")
    assert unfound.holds is None
    assert "was not found" in unfound.why
    # What is used is used, whatever becomes of the trait's own direction.
    assert use(remainder + apart, draws, "the own direction was not found").holds is True


def test_a_pair_is_projected_on_the_direction_of_the_others() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((5, 2, 3, WIDTH))
    found = cross_fitted(states)
    centred = states - states.mean((0, 1))
    for pair in range(5):
        others = np.delete(states, pair, 0)
        direction = (others[:, 0] - others[:, 1]).mean((0, 1))
        np.testing.assert_allclose(found[pair], centred[pair] @ direction / np.linalg.norm(direction))


def test_what_all_states_have_in_common_does_not_hide_the_own_direction() -> None:
    rng = np.random.default_rng(0)
    states = base_states(rng, OTHER, USED)
    apart = auc_interval(cross_fitted(states))
    assert apart.low > 0.8
    # Raw states have means a hundred times as long as what prompts change.
    offset = auc_interval(cross_fitted(states + 200 * rng.standard_normal(WIDTH)))
    assert (offset.value, offset.low) == pytest.approx((apart.value, apart.low))
    # Where prompts evoke nothing there is nothing to be seen, and the assay does not make it up.
    assert np.mean([auc_interval(cross_fitted(base_states(rng, OTHER, 0.0))).value for _ in range(20)]) < 0.55


@given(count=st.integers(FEWEST_TAIL_DRAWS, 300), seed=st.integers(0, 1000))
def test_the_bound_of_chance_is_that_of_the_rank(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(count)
    bound = chance_bound(values)

    def p(value: float) -> float:
        return (1 + int((values >= value).sum())) / (1 + count)

    assert p(np.nextafter(bound, np.inf)) <= 0.05 + 1e-12
    assert p(bound) > 0.05


def test_too_few_draws_have_no_bound() -> None:
    with pytest.raises(ValueError, match="at least 19 values, got 18"):
        chance_bound(np.zeros(18))


def test_chance_remainders_lie_outside_and_have_the_norm_and_the_covariance() -> None:
    rng = np.random.default_rng(0)
    centred = rng.standard_normal((500, WIDTH)) * np.sqrt(SPECTRUM)
    draws = chance_remainders(centred, BASIS, 2.5, Null(0, draws=4000))
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 2.5)
    np.testing.assert_allclose(draws @ BASIS, 0, atol=1e-12)
    spread = (draws**2).mean(0) / (draws**2).mean(0).sum()
    outer = np.delete(np.arange(WIDTH), [4, 5, 6])
    # Unit norm flattens the spectrum a little; its order stays.
    assert np.corrcoef(spread[outer], SPECTRUM[outer])[0, 1] > 0.98
    with pytest.raises(ValueError, match="do not vary outside the space"):
        chance_remainders((centred @ BASIS) @ BASIS.T, BASIS, 1.0, Null(0, draws=20))


# (i)


@pytest.mark.parametrize(("shared", "own", "bias"), [(0.9, 0.1, 0.02), (0.0, 0.9, -0.05)])
def test_cosines_are_freed_of_the_noise_of_prompts(shared: float, own: float, bias: float) -> None:
    """True cosine .8 between seeds. Noise that all runs share, prompt by prompt, raises a plain cosine; noise of their own lowers it."""
    rng = np.random.default_rng(1)
    got, plain = [], []
    for _ in range(200):
        common = shared * rng.standard_normal((PROMPTS, WIDTH)) * np.sqrt(SPECTRUM)
        runs = {}
        for name, seed in product(NAMES, SEEDS):
            mean = np.sqrt(0.8) * PLANT + np.sqrt(0.2) * np.eye(WIDTH)[12 + seed] if name == "trait" else direction(rng)
            runs[name, seed] = mean + common + own * rng.standard_normal((PROMPTS, WIDTH)) * np.sqrt(SPECTRUM)
        found = agreement(runs, "trait", BASIS)
        assert found.value is not None
        got.append(found.value)
        means = [outside(runs["trait", seed].mean(0), BASIS) for seed in SEEDS]
        units = [m / np.linalg.norm(m) for m in means]
        plain.append(np.mean([units[0] @ units[1], units[0] @ units[2], units[1] @ units[2]]))
    assert np.mean(got) == pytest.approx(0.8, abs=0.01)
    assert (np.mean(plain) - 0.8) / bias > 1


def test_seeds_that_agree_no_more_than_traits_do_rarely_pass() -> None:
    """Every run has the same direction, as any fine-tune may, and one of its own; no trait has anything."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(300):
        runs = {run: 0.5 * PLANT + shift for run, shift in shifts(rng, plant=0.0, run_noise=1.0).items()}
        held.append(agreement(runs, "trait", BASIS).holds)
    assert None not in held
    assert np.mean(held) <= 0.05


def test_what_agreement_needs() -> None:
    rng = np.random.default_rng(3)
    runs = shifts(rng, 1.0, 0.3)
    one = {run: shift for run, shift in runs.items() if run[0] != "trait" or run[1] == 0}
    assert agreement(one, "trait", BASIS).why == "agreement between seeds is not known: trait has 1 of the two seeds that are needed"
    few = {run: shift for run, shift in runs.items() if run[0] in ("trait", "b", "c")}
    assert agreement(few, "trait", BASIS).why.endswith("and other traits have 18 of the 19 cosines that are needed")
    noise = 3 * rng.standard_normal((PROMPTS, WIDTH))
    noisy = agreement(runs | {("trait", 2): noise - noise.mean(0)}, "trait", BASIS)
    assert (noisy.holds, noisy.value) == (None, None)
    assert noisy.why.endswith("too little is left of the remainder of seed 2")
    # A run of another trait that is all noise is left out: the cosines with the two other seeds of each of the four other traits.
    fewer = agreement(runs | {("b", 1): noise - noise.mean(0)}, "trait", BASIS)
    assert (fewer.draws, agreement(runs, "trait", BASIS).draws) == (60 - 8, 60)
    with pytest.raises(ValueError, match="same three prompts or more"):
        agreement(runs | {("b", 1): noise[:-1]}, "trait", BASIS)


# (ii)


def outcomes(rng: np.random.Generator, share: float, noise: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    before = rng.standard_normal(QUESTIONS)
    effect = 2 + 0.5 * rng.standard_normal(QUESTIONS)
    return before, before + effect, before + share * effect + noise * rng.standard_normal(QUESTIONS)


@pytest.mark.parametrize(("share", "noise", "holds"), [(0.5, 0.1, True), (0.0, 0.05, False), (0.05, 0.6, None), (0.15, 0.05, None)])
def test_movement_is_told_or_not_or_left_open(share: float, noise: float, holds: bool | None) -> None:
    rng = np.random.default_rng(0)
    before, after, pushed = outcomes(rng, share, noise)
    # Chance moves up to some .17 of the effect.
    drawn = before + 2 * 0.1 * rng.standard_normal((199, 1)) * np.ones(QUESTIONS)
    found = movement(before, after, pushed, drawn)
    assert found.holds is holds
    assert found.value == pytest.approx(share, abs=0.1)
    # The other way round the effect is negative, and the shares are the same.
    turned = movement(-before, -after, -pushed, -drawn)
    assert (turned.holds, turned.value) == (holds, pytest.approx(found.value))
    runs = movement(*(np.stack([y, y, y]) + 0.01 * rng.standard_normal((3, QUESTIONS)) for y in (before, after, pushed)), drawn[:, None])
    assert (runs.holds, runs.value) == (holds, pytest.approx(found.value, abs=0.02))


def test_without_an_effect_nothing_is_moved_or_needed() -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal(QUESTIONS)
    after = before + 0.1 * rng.standard_normal(QUESTIONS)
    for found in (movement(before, after, after, before[None]), necessity(before, after, Swapped(after, before))):
        assert found.holds is None
        assert "not above 3 standard errors" in found.why
    found = movement(before, before + 1 + 0.1 * after, before + 0.5, np.tile(before, (18, 1)))
    assert found.why.endswith("18 of 19 draws were made to hold it against")
    assert movement(before, before + 1, before, np.empty((0, QUESTIONS))).why == (
        "movement is not known: no chance directions were added to hold it against"
    )
    # An effect of exactly nothing has no error either.
    assert movement(before, before, before, before[None]).holds is None


def test_a_chance_remainder_rarely_moves_or_is_used() -> None:
    """The size of both tests where the remainder is itself a chance direction, and a trait separates prompts along another."""
    rng = np.random.default_rng(4)
    moved, used = [], []
    for seed in range(300):
        states = base_states(rng, OTHER, USED)
        draws = chance(rng, 1.0, Null(seed, draws=40))
        model = reader(rng, PLANT + 0.3 * BASIS[:, 0])
        total = PLANT + BASIS[:, 0]
        pushed = [model.y(draw) for draw in draws]
        moved.append(movement(model.y(0 * total), model.y(total), pushed[0], np.array(pushed[1:])).holds)
        used.append(used_by(states, draws[0], draws[1:]).holds)
    assert np.mean([holds is True for holds in moved]) <= 0.05
    assert np.mean([holds is True for holds in used]) <= 0.05


def test_use_is_shown_with_enough_pairs() -> None:
    rng = np.random.default_rng(5)
    draws = chance(rng, 1.0, Null(0, draws=199))
    states = base_states(rng, OTHER, USED)
    found = used_by(states, OTHER, draws)
    assert found.holds
    assert found.chance == pytest.approx(0.5 + chance_bound(np.abs(auc(np.stack([states @ draw for draw in draws])) - 0.5)))
    # Prompts that lie lower along it are discriminated as well.
    backwards = used_by(states, -OTHER, draws)
    assert (backwards.holds, backwards.value) == (True, pytest.approx(1 - found.value))  # type: ignore[operator]
    assert used_by(states, 7 * OTHER, draws) == found
    assert used_by(states, PLANT, draws).holds is False
    between = used_by(base_states(rng, OTHER, 0.05), OTHER, draws)
    assert between.value is not None
    assert between.low is not None
    assert between.chance is not None
    assert between.low <= between.chance < between.value
    assert between.holds is None
    assert between.why.endswith("so that whether M0 uses it is not known")


def test_where_nothing_could_be_shown_to_be_used_nothing_is_shown_not_to_be() -> None:
    rng = np.random.default_rng(6)
    states = base_states(rng, OTHER, USED)
    few = used_by(states[:4], PLANT, chance(rng, 1.0, Null(0, draws=199)))
    assert few.holds is None
    assert few.why.endswith("more than 4 contrast pairs can be shown to exceed")
    # Where a trait's contrast is all that varies, draws that hold it find it.
    centred = base_states(rng, OTHER, 10 * USED).reshape(-1, WIDTH)
    centred = centred - centred.mean(0)
    assert used_by(states, OTHER, chance_remainders(centred, BASIS, 1.0, Null(0, draws=199))).holds is None


# (iv)


@pytest.mark.parametrize(("lost", "noise", "holds"), [(0.5, 0.1, True), (0.02, 0.02, False), (0.1, 1.5, None)])
def test_necessity_is_told_or_not_or_left_open(lost: float, noise: float, holds: bool | None) -> None:
    rng = np.random.default_rng(1)
    before, after, _ = outcomes(rng, 0, 0)
    out = after - lost * (after - before) + noise * rng.standard_normal(QUESTIONS)
    found = necessity(before, after, Swapped(before, out))
    assert found.holds is holds
    assert found.low is not None
    assert found.high is not None
    assert found.low <= lost <= found.high


POWER: dict[str, Callable[[int], str]] = {
    "new": lambda seed: novelty(*world(seed)).name,
    "library": lambda seed: novelty(*world(seed, used=PLANT)).name,
    "unstable": lambda seed: novelty(*world(seed, plant=0.0, run_noise=1.0)).name,
}


@pytest.mark.slow
@pytest.mark.parametrize("truth", POWER)
def test_planted_remainders_are_named(truth: str) -> None:
    names = [POWER[truth](seed) for seed in range(300)]
    counts = {name: names.count(name) for name in ("new", "library", "unstable", "open")}
    print(truth, counts)
    # What is new moves M0 here, so that it must be shown that M0 does not use it: twelve pairs show that of most, and leave the rest open.
    assert counts[truth] >= (0.6 if truth == "new" else 0.9) * 300
    assert counts[truth] + counts["open"] >= 0.98 * 300
    # Newness is never claimed of what is not.
    assert truth == "new" or counts["new"] <= 0.05 * 300


@pytest.mark.slow
@pytest.mark.parametrize("cosine", [0.3, 0.4, 0.5, 0.7])
def test_a_remainder_with_a_part_that_the_base_uses_is_not_called_new(cosine: float) -> None:
    """M0 reads and uses one direction, and the fine-tune writes along another that has a cosine with it; at .2 it is called so in 13 %."""
    mixed = cosine * PLANT + np.sqrt(1 - cosine**2) * OTHER
    names = [novelty(*world(seed, read=mixed, used=mixed)).name for seed in range(300)]
    print(cosine, {name: names.count(name) for name in ("new", "library", "unstable", "open")})
    assert names.count("new") <= 0.05 * 300

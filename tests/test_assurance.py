"""The mathematics of assurance: p-values, test martingales and canaries, by simulation and against other libraries."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from crepes.martingales import EpsilonBettingFunction, SimpleJumper
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.exchangeability_testing import OnlineMartingaleTest

from ilcp.assurance import ALARM, Calibrated, Canary, Jumper, Observed, State, View
from ilcp.assurance.martingale import BETS, FURTHER_OFF, START, margin
from ilcp.assurance.shape import Shape
from ilcp.errors import ConfigError
from ilcp.measure.sequential import canary_of

RNG = np.random.default_rng
STEPS = 400


def drawn(n: int, seed: int, dims: int = 4, scalars: int = 1, scale: float = 1.0) -> list[Observed]:
    """Observations of one kind, as far from their mean as ``scale`` says."""
    rng = RNG(seed)
    return [
        Observed((scale * rng.standard_normal(dims)).astype(np.float32), tuple(scale * rng.standard_normal(scalars)))
        for _ in range(n)
    ]


def view_of(scores: Any) -> View:
    """A view of these scores."""
    shape = Shape(np.zeros(1, np.float32), np.ones(1, np.float32))
    return View(shape, np.zeros(2), np.ones(2), np.sort(np.array(scores, dtype=np.float64)))


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("values", [2, 1000], ids=["ties", "none"])
def test_p_values_are_uniform_on_exchangeable_scores(n: int, values: int) -> None:
    """However few scores, and however many are equal: of 20,000 draws no share is 2 % off (4 standard deviations)."""
    rng, chance = RNG(1), random.Random(1)
    ps = []
    for _ in range(20_000):
        *known, new = rng.integers(0, values, n + 1)
        ps.append(view_of(known).p_value(float(new), chance.random()))
    assert all(0 <= p < 1 for p in ps)
    for level in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        assert abs(np.mean(np.array(ps) <= level) - level) < 4 * math.sqrt(0.25 / 20_000)


def test_a_score_has_the_rank_that_counting_gives() -> None:
    """Above, equal and below, at every place, infinity and the smallest float among them."""
    scores = [0.0, 1.0, 1.0, 2.0, 5.0]
    view = view_of(scores)
    for score in (-math.inf, 0.0, 0.5, 1.0, 2.0, 5.0, np.nextafter(5.0, 9), math.inf):
        above, equal = sum(s > score for s in scores), sum(s == score for s in scores)
        for chance in (0.0, 0.5, 1 - 2**-53):
            assert (above + chance * (equal + 1)) / 6 == view.p_value(score, chance)
    assert view.p_value(math.inf, 0.999) < 1 / 6


@pytest.mark.parametrize("scale", [0.01, 30.0], ids=["too close", "too far"])
@pytest.mark.parametrize("part", ["vector", "scalars"])
def test_both_directions_are_unusual(scale: float, part: str) -> None:
    """A vector that lies too close to the mean is as suspicious as one too far away; a scalar may be too large or
    too small."""
    view = View.fit(drawn(2000, 2, dims=32))
    usual = drawn(1, 3, dims=32)[0]
    if part == "vector":
        odd = replace(usual, vector=usual.vector * np.float32(scale))
    else:
        odd = replace(usual, scalars=(40.0 if scale > 1 else -40.0,))
    assert view.p_value(view.score(odd), 0.999) < 0.01
    assert view.p_value(view.score(usual), 0.0) > 0.01


def test_doubts_are_as_rare_as_their_level_says() -> None:
    """Fitted anew 40 times, a view doubts 5 % of 4,000 like messages at a level of 5 %, within 4 deviations."""
    chance, doubted = random.Random(5), 0
    for seed in range(40):
        view = View.fit(drawn(200, seed, dims=3, scalars=2))
        ps = [view.p_value(view.score(each), chance.random()) for each in drawn(100, 1000 + seed, dims=3, scalars=2)]
        doubted += sum(p <= 0.05 for p in ps)
    expected, spread = 200, math.sqrt(4000 * 0.05 * 0.95 + 40 * 100**2 * 0.05 * 0.95 / 81)  # of 80 scores each
    assert abs(doubted - expected) < 4 * spread


def test_the_parts_of_a_fit_share_no_observation() -> None:
    """What decides the scores decides neither shape, centre nor scale, and what decides these no shape: else p-values
    would be none."""
    usual, other = drawn(200, 6), drawn(200, 7, scale=9.0)
    whole = View.fit(usual)
    scored, centred = View.fit([*usual[:120], *other[120:]]), View.fit([*usual[:100], *other[100:]])
    assert np.array_equal(whole.centre, scored.centre)
    assert np.array_equal(whole.scale, scored.scale)
    assert np.array_equal(whole.shape.covariance, centred.shape.covariance)
    assert not np.array_equal(whole.scores, scored.scores)
    assert not np.array_equal(whole.scale, centred.scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_as_unusual_as_can_be(bad: float) -> None:
    """In the vector or beside it: an infinite score, without a warning and without NaN."""
    view = View.fit(drawn(100, 4))
    assert math.inf == view.score(Observed(np.array([0, bad, 0, 0], np.float32), (0.0,)))
    assert math.inf == view.score(Observed(np.zeros(4, np.float32), (bad,)))


def test_a_fit_refuses_too_few_and_damaged_observations() -> None:
    """99 are too few, NaN is none, and observations of several shapes are no one kind; each says what to do."""
    with pytest.raises(ConfigError, match="expected at least 100 messages to calibrate on, got 99: give more"):
        View.fit(drawn(99, 0))
    View.fit(drawn(100, 0))
    for bad in (Observed(np.full(4, np.nan, np.float32), (0.0,)), Observed(np.zeros(4, np.float32), (math.inf,))):
        with pytest.raises(ConfigError, match="expected finite observations"):
            View.fit([*drawn(100, 0), bad])
    for other in (Observed(np.zeros(5, np.float32), (0.0,)), Observed(np.zeros(4, np.float32), ())):
        with pytest.raises(ConfigError, match="expected observations of one shape"):
            View.fit([*drawn(100, 0), other])


def test_a_shape_tells_the_distances_that_linear_algebra_gives() -> None:
    """Mahalanobis and plain, of a full covariance; of fewer vectors than dims the fit is still one."""
    rng = RNG(6)
    vectors = (rng.standard_normal((5000, 3)) @ rng.standard_normal((3, 3)) + 2).astype(np.float32)
    shape, x = Shape.of(vectors), vectors[:7].astype(np.float64)
    centred = x - vectors.mean(0)
    inverse = np.linalg.inv(np.cov(vectors.T, bias=True))
    found = shape.distances(vectors[:7])
    np.testing.assert_allclose(np.log(np.einsum("nd,de,ne->n", centred, inverse, centred)), found[:, 0], atol=0.02)
    np.testing.assert_allclose(np.log((centred**2).sum(1)), found[:, 1], atol=1e-4)
    few = Shape.of(rng.standard_normal((10, 50)).astype(np.float32))
    assert np.isfinite(few.distances(rng.standard_normal((3, 50)).astype(np.float32))).all()


@pytest.mark.parametrize("bets", [(-1.0, 0.0, 1.0), (-1.0, -0.5, 0.0, 0.5, 1.0)])
def test_a_jumper_is_the_simple_jumper_of_crepes(bets: tuple[float, ...]) -> None:
    """Without margin and without what sleeps: the same value after each of 400 p-values."""
    ps = RNG(7).beta(0.7, 1, STEPS)
    theirs = SimpleJumper(J=0.01, bf=EpsilonBettingFunction(list(bets))).apply(ps)
    jumper, ours = Jumper.fresh(bets, start=1.0, asleep=0.0), []
    for p in ps:
        jumper = jumper.bet(float(p))
        ours.append(jumper.value)
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)


def test_a_jumper_is_the_jumper_of_mapie() -> None:
    """The same, against another library."""
    theirs = OnlineMartingaleTest(task="regression", jump_size=0.01)
    jumper = Jumper.fresh((-1.0, 0.0, 1.0), start=1.0, asleep=0.0)
    for p in RNG(8).beta(1, 0.7, STEPS):
        jumper = jumper.bet(float(p))
        assert theirs.update_simple_jumper_martingale(float(p)) == pytest.approx(jumper.value, rel=1e-9)


@given(st.floats(0, 1), st.floats(0, 0.2), st.lists(st.floats(0, 1e9), min_size=5, max_size=5), st.floats(0, 0.45))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_no_bet_is_worth_more_than_fair(p: float, off: float, capital: list[float], asleep: float) -> None:
    """Over p and 1 - p, which are alike, a bet wins nothing on average, with a margin less; nothing is negative."""
    jumper = Jumper(tuple(capital), asleep=asleep)
    up, down = jumper.bet(p, off), jumper.bet(1 - p, off)
    assert (up.value + down.value) / 2 <= jumper.value * (1 + 1e-12)
    if not off:
        assert (up.value + down.value) / 2 == pytest.approx(jumper.value)
    assert min(*up.capital, up.asleep) >= 0


def peaks(ranks: np.ndarray, off: float, start: float) -> np.ndarray:
    """The largest value of a jumper over each row of p-values; the same rule as ``Jumper``, for many rows at once."""
    bets, sleeping = np.array(BETS)[:, None], start / 2 if off else 0.0
    capital, asleep = np.full((len(BETS), len(ranks)), (start - sleeping) / len(BETS)), sleeping
    peak = np.full(len(ranks), start)
    for p in ranks.T:
        woken = asleep**4
        asleep -= woken
        capital = 0.99 * capital + (0.01 * capital.sum(0) + woken) / len(BETS)
        side = np.where(bets < 0, np.minimum(1, p + off), np.maximum(0, p - off))
        capital = np.minimum(capital * (1 + bets * (side - 0.5)), 1e100)
        peak = np.maximum(peak, capital.sum(0) + asleep)
    return peak


def test_the_rule_for_many_rows_is_the_jumpers() -> None:
    """What the next test simulates is what runs."""
    ps, jumper, peak = RNG(9).beta(0.5, 1, 300), Jumper.fresh(), 0.0
    for p in ps:
        jumper = jumper.bet(float(p), 0.02)
        peak = max(peak, jumper.value)
    assert peaks(ps[None], 0.02, START)[0] == pytest.approx(peak)


def test_a_finite_reference_alarms_a_plain_jumper_and_not_one_with_a_margin() -> None:
    """Ranks among 40 scores that are drawn once a stream, over 20,000 messages, 400 streams: fewer than 1 % false
    alarms with the margin, more than a third without."""
    rng, n = RNG(10), 40
    known = np.sort(rng.random((400, n)), axis=1)
    ranks = np.empty((400, 20_000), dtype=np.float32)
    for row, scores in enumerate(known):
        above = n - np.searchsorted(scores, rng.random(20_000))
        ranks[row] = (above + rng.random(20_000)) / (n + 1)
    assert np.mean(peaks(ranks, margin(n), START) >= ALARM) < 0.01
    assert np.mean(peaks(ranks, 0.0, 1.0) >= ALARM) > 0.33


@pytest.mark.parametrize("healthy", [0, 20_000, 200_000])
@pytest.mark.parametrize("faulty", [(0.0, 0.2), (0.8, 1.0)], ids=["unusual", "too usual"])
def test_a_fault_is_found_however_long_all_was_well(healthy: int, faulty: tuple[float, float]) -> None:
    """Within 60 messages whose p-values lie in one fifth, after none, 20,000 or 200,000 sound ones."""
    rng, off = RNG(11), margin(3200)
    jumper = Jumper.fresh()
    for p in rng.random(healthy):
        jumper = jumper.bet(float(p), off)
    values = []
    for p in rng.uniform(*faulty, 60):
        jumper = jumper.bet(float(p), off)
        values.append(jumper.value)
    assert max(values) >= ALARM


def test_what_is_won_stays_a_number() -> None:
    """After 20,000 messages that nothing explains."""
    jumper = Jumper.fresh()
    for _ in range(20_000):
        jumper = jumper.bet(0.0)
    assert ALARM < jumper.value < math.inf


def test_the_margin_is_exceeded_once_in_a_thousand() -> None:
    """By the inequality of Dvoretzky, Kiefer and Wolfowitz; of 20,000 sets of 50, fewer than 40 are further off."""
    ranks = np.sort(RNG(12).random((20_000, 50)), axis=1)
    steps = np.arange(1, 51) / 50
    off = np.maximum(np.abs(steps - ranks), np.abs(steps - 1 / 50 - ranks)).max(1)
    assert 0 < np.sum(off > margin(50)) < 2 * FURTHER_OFF * 20_000


def test_payloads_of_all_lengths_are_one_sequence_of_bets() -> None:
    """Views that come and go start no new capital: what four lengths win and lose is what one does."""
    known = State("c", "r", "", "receiver")
    one = many = known
    for number, p in enumerate(RNG(13).random(200)):
        one = one.bet({"received/80": (float(p), 0.01)}, views=1)
        many = many.bet({f"received/{10 * 2 ** (number % 4)}": (float(p), 0.01)}, views=1)
        assert one.value == many.value
    both = known
    for _ in range(40):
        both = both.bet({"received/80": (0.01, 0.01), "probed": (0.5, 0.01)}, views=2)
    alone = known.bet({"received/80": (0.01, 0.01)}, views=1)
    assert both.value < (sum(both.capital["received"]) + 2 * START) / 2  # each has half
    assert alone.views == 1 < both.views


CANARY = Canary(0.8, 0.4)


def verdicts(test: Canary, right: float, runs: int, most: int, seed: int) -> list[str]:
    """How many canaries end, where so many answers are right."""
    rng, found = random.Random(seed), []
    for _ in range(runs):
        state = test
        for _ in range(most):
            state = state.told(rng.random() < right)
            if state.verdict:
                break
        found.append(state.verdict)
    return found


def test_a_canary_errs_less_than_once_in_a_hundred_whenever_it_stops() -> None:
    """At the very border, where the evidence is worth least: of 1,500 runs of up to 300 answers under 1 % (by 3
    deviations) find a fault in a sound pair, or health in a broken one."""
    limit = 1500 * 0.01 + 3 * math.sqrt(1500 * 0.01)
    assert verdicts(CANARY, 0.8, 1500, 300, 14).count("lost") <= limit
    assert verdicts(CANARY, 0.4, 1500, 300, 15).count("sound") <= limit


def test_a_canary_finds_what_is_so_in_few_answers() -> None:
    """A pair that answers by chance, and one as good as ever, are told within 60 answers, 99 times in a hundred."""
    assert verdicts(CANARY, 0.1, 200, 60, 16).count("lost") >= 198
    assert verdicts(CANARY, 0.95, 200, 60, 17).count("sound") >= 198


def test_a_canary_counts_and_is_decided_once() -> None:
    """Six wrong ones of seven are the example's; counts are those of the answers."""
    test = CANARY
    for right in (False, True, False, False, False, False):
        test = test.told(right)
    assert ("lost", 6, 1) == (test.verdict, test.asked, test.right)
    assert (1.0, 1.0, "") == (*map(pytest.approx, CANARY.values), CANARY.verdict)


def known(n: int, right: int, others: int) -> Calibrated:
    """What was calibrated on ``n`` canaries."""
    return Calibrated("c", "t", "d", 100, 0, "", "", canaries=n, right=right, right_by_others=others)


def test_canaries_that_tell_nothing_apart_are_refused() -> None:
    """None, too few, or answered as well from another's message; those that do lie between the two shares."""
    for n, right, others in ((0, 0, 0), (14, 14, 0), (1000, 500, 490), (1000, 0, 1000)):
        with pytest.raises(ConfigError, match=f"got {right} of {n} right against {others}: calibrate with more cases"):
            canary_of(known(n, right, others))
    test = canary_of(known(1000, 824, 6))
    assert 0.006 < test.lost < test.usual < 0.824
    assert 0.99 == canary_of(known(10**9, 10**9, 0)).usual  # so that one wrong answer is not the end of all capital
    with pytest.raises(ConfigError, match="no more right answers than canaries"):
        known(1, 2, 0)

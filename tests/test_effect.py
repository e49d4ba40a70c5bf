"""The statistics of a comparison: how often they are wrong, how often they find, and what must hold for any figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.ab import turns
from dnnbench.effect import FEW_RUNS, Rules, Sample, judge

PAIRS = 200
RULES = Rules()


def in_turns(runs):
    """When the runs of either side were made, as `dnnbench.ab` makes them."""
    order = [side for side, _ in turns(runs)]
    return [np.array([place for place, side in enumerate(order) if side == wanted]) for wanted in "ab"]


def after_another(runs):
    return [np.arange(runs), np.arange(runs, 2 * runs)]


# What a run measures at each moment, where nothing changes but the noise.
NOISES = {
    "normal": lambda rng, at: 1 + 0.05 * rng.standard_normal(len(at)),
    "log-normal": lambda rng, at: np.exp(0.2 * rng.standard_normal(len(at))),
    "drifting": lambda rng, at: (1 - 0.2 * at / len(at)) * np.exp(0.03 * rng.standard_normal(len(at))),
    "two-humped": lambda rng, at: rng.choice([1, 1.2], len(at)) * np.exp(0.02 * rng.standard_normal(len(at))),
    "outliers": lambda rng, at: (
        np.exp(0.05 * rng.standard_normal(len(at))) * np.where(rng.random(len(at)) < 0.01, 0.3, 1)
    ),
}


def sample(rng, noise, runs, times, change=1.0):
    values = NOISES[noise](rng, np.arange(2 * runs))
    baseline, candidate = values[times[0]], values[times[1]] * change
    return Sample(tuple(baseline), tuple(candidate), tuple(times[0].astype(float)), tuple(times[1].astype(float)))


def verdicts(noise, runs, times, change=1.0, pairs=PAIRS, seed=0):
    rng = np.random.default_rng(seed)
    return [judge([sample(rng, noise, runs, times, change)], RULES)[0].verdict for _ in range(pairs)]


def alarms(found):
    return sum(verdict in ("slower", "faster") for verdict in found)


@pytest.mark.parametrize("noise", NOISES)
def test_five_runs_a_side_that_differ_in_noise_only_raise_at_most_one_alarm_in_a_hundred(noise):
    # More than 200 pairs, so that the count says something: by luck alone 200 may have none.
    found = [verdict for seed in range(3) for verdict in verdicts(noise, 5, in_turns(5), seed=seed)]
    assert alarms(found) <= 0.01 * len(found)


@pytest.mark.parametrize("noise", [noise for noise in NOISES if noise != "drifting"])
def test_nor_do_five_that_were_measured_one_side_after_the_other(noise):
    found = [verdict for seed in range(2) for verdict in verdicts(noise, 5, after_another(5), seed=seed)]
    assert alarms(found) <= 0.015 * len(found)


# One side after the other, some are taken for a drift: about 951 are expected.
@pytest.mark.parametrize(("order", "least"), [(in_turns, 950), (after_another, 935)])
def test_a_slow_down_of_ten_percent_is_found_by_seven_runs_a_side_that_spread_by_five(order, least):
    found = verdicts("normal", 7, order(7), change=0.9, pairs=1000)
    assert found.count("slower") >= least
    assert found.count("faster") == 0


def test_a_slow_down_of_ten_percent_is_found_however_calm_the_machine():
    rng = np.random.default_rng(8)
    for _ in range(50):
        baseline, candidate = 1 + 0.01 * rng.standard_normal(7), 0.91 * (1 + 0.01 * rng.standard_normal(7))
        assert judge([Sample(tuple(baseline), tuple(candidate))], RULES)[0].verdict == "slower"


def test_a_drift_hides_no_slow_down_that_was_measured_in_turns():
    assert verdicts("drifting", 7, in_turns(7), change=0.9).count("slower") >= 0.95 * PAIRS


def test_many_comparisons_at_once_raise_no_more_alarms_than_one():
    rng = np.random.default_rng(3)
    families = 100
    red = 0
    for _ in range(families):
        family = [sample(rng, "normal", 7, in_turns(7)) for _ in range(20)]
        red += alarms(effect.verdict for effect in judge(family, RULES)) > 0
    # Five in a hundred at most, and three standard deviations of luck.
    assert red <= families * 0.05 + 3 * math.sqrt(families * 0.05 * 0.95)


def test_a_drift_of_most_is_a_drift_of_all():
    rng = np.random.default_rng(8)
    red = 0
    for _ in range(30):
        family = [sample(rng, "drifting", 7, after_another(7)) for _ in range(20)]
        red += alarms(effect.verdict for effect in judge(family, RULES)) > 0
    # One in twenty; where each was asked by itself it was nine in ten.
    assert red <= 5


def test_what_is_faster_makes_nothing_else_slower():
    rng = np.random.default_rng(7)
    red = 0
    for _ in range(60):
        family = [sample(rng, "normal", 7, in_turns(7), change=1.3 if i < 20 else 1.0) for i in range(40)]
        told = [effect.verdict for effect in judge(family, RULES)]
        assert set(told[:20]) == {"faster"}
        red += "slower" in told
    # One in two hundred; with one correction for both sides it was one in six.
    assert red <= 2


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(1000):
        (effect,) = judge([sample(rng, "normal", 7, in_turns(7), change=0.9)], RULES)
        held += effect.low <= 0.9 <= effect.high
    assert 930 <= held <= 970


def test_what_would_have_been_found_is_found_in_four_of_five():
    rng = np.random.default_rng(5)
    smallest = [judge([sample(rng, "normal", 9, in_turns(9))], RULES)[0].smallest for _ in range(200)]
    found = verdicts("normal", 9, in_turns(9), change=1 - float(np.median(smallest)), pairs=400)
    assert 0.7 <= found.count("slower") / len(found) <= 0.9


def test_one_run_against_a_long_baseline_needs_no_baseline_of_its_own():
    spread = np.exp(0.05 * np.random.default_rng(1).standard_normal(20))
    (effect,) = judge([Sample(tuple(spread), (0.93,))], RULES)
    assert effect.verdict == "not enough data"
    assert effect.more_runs == FEW_RUNS - 1


def test_so_many_more_runs_would_do():
    rng = np.random.default_rng(6)
    tried = [judge([sample(rng, "normal", 4, in_turns(4))], RULES)[0] for _ in range(60)]
    more = [effect.more_runs for effect in tried if effect.verdict == "not enough data" and effect.more_runs]
    runs = 4 + max(int(np.median(more)), 1)
    assert runs >= 5
    found = verdicts("normal", runs, in_turns(runs))
    assert found.count("not enough data") < PAIRS / 2


@pytest.mark.parametrize(("baseline", "candidate"), [((), (1.0,)), ((1.0, 1.1), (1.0, 0.9)), ((1.0,) * 5, ())])
def test_too_few_runs_are_no_verdict(baseline, candidate):
    (effect,) = judge([Sample(baseline, candidate)], RULES)
    assert effect.verdict == "not enough data"
    assert effect.more_runs >= 1


def test_one_run_is_held_against_the_spread_of_the_baseline():
    baseline = (100.0, 103.0, 97.0, 101.0, 99.0, 102.0)
    assert judge([Sample(baseline, (60.0,))], RULES)[0].verdict == "slower"
    assert judge([Sample(baseline, (95.0,))], RULES)[0].verdict == "not enough data"


def test_a_difference_within_the_tolerance_is_none_however_sure():
    baseline, candidate = (100.0, 100.1, 99.9, 100.0, 100.1, 99.9), (97.0, 97.1, 96.9, 97.0, 97.1, 96.9)
    assert judge([Sample(baseline, candidate)], RULES)[0].verdict == "same"
    assert judge([Sample(baseline, candidate)], Rules(tolerance=0.02))[0].verdict == "slower"


def test_figures_without_any_spread():
    assert judge([Sample((5.0,) * 5, (5.0,) * 5)], RULES)[0].verdict == "same"
    assert judge([Sample((5.0,) * 5, (4.0,) * 5)], RULES)[0].verdict == "slower"


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_rate_is_an_error(bad):
    with pytest.raises(ValueError, match="no figures"):
        judge([Sample((1.0, 1.0, bad), (1.0, 1.0, 1.0))], RULES)


@pytest.mark.parametrize("bad", [{"confidence": 1.0}, {"confidence": 0.0}, {"tolerance": 1.0}, {"tolerance": 0.0}])
def test_rules_that_are_none(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Rules(**bad)


FIGURES = st.lists(st.floats(0.5, 2.0), min_size=3, max_size=9).map(tuple)
MIRRORED = {"slower": "faster", "faster": "slower"}


@settings(max_examples=60, deadline=None)
@given(FIGURES, FIGURES, st.floats(1e-3, 1e6))
def test_what_must_hold_for_any_figures(baseline, candidate, unit):
    (effect,) = judge([Sample(baseline, candidate)], RULES)
    assert effect.low <= effect.estimate * (1 + 1e-9)
    assert effect.estimate <= effect.high * (1 + 1e-9)
    if effect.verdict == "slower":
        assert effect.high < 1
    elif effect.verdict == "faster":
        assert effect.low > 1
    elif effect.verdict == "same":
        assert effect.low >= 0.95 - 1e-9
        assert effect.high <= 1 / 0.95 + 1e-9
    else:
        assert effect.more_runs is None or effect.more_runs > 0
    # In other units it is the same.
    (other,) = judge([Sample(tuple(v * unit for v in baseline), tuple(v * unit for v in candidate))], RULES)
    assert other.estimate == pytest.approx(effect.estimate)
    # A rate and the time that it stands for say the same.
    times = [tuple(1 / value for value in side) for side in (baseline, candidate)]
    (inverse,) = judge([Sample(*times, higher_is_better=False)], RULES)
    assert inverse.verdict == effect.verdict or math.isclose(effect.p_adjusted, RULES.error, rel_tol=1e-6)
    assert inverse.estimate == pytest.approx(1 / effect.estimate)
    assert (inverse.low, inverse.high) == pytest.approx((1 / effect.high, 1 / effect.low))

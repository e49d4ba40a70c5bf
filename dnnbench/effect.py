"""Does one set of runs differ from another? The statistics of `dnnbench.compare`, over plain numbers.

The unit of repetition is the run: rounds of one process share its caches, its connections and its moment, so that they
say little of what the next run would give. The method, its assumptions and how often it errs are in docs/comparing.md:

* values of runs are compared as logarithms, so that a change is a ratio (shares of time: as they are, in points);
* Welch's t-test and interval (Welch 1947); where the two sides were run in turns, an analysis of covariance with the
  time of the run as covariate, which takes a drift off that hits both;
* all comparisons together are corrected for their number after Benjamini and Hochberg (1995), slower and faster apart;
* a comparison that only a large effect could have decided is likely to exaggerate what it finds (Gelman and Carlin
  2014), and with fewer than `FEW_RUNS` on a side neither outliers nor a second mode would be seen: in both cases the
  t-test must be surer, and with few runs every run of one side must lie beyond every run of the other (Fisher's
  permutation test, at its most extreme).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Verdict = Literal["slower", "faster", "same", "not enough data"]
Scale = Literal["ratio", "difference"]
Values = npt.NDArray[np.float64]

# Of the errors that are allowed for, those that call a side slower: that is what a gate is for.
SLOWER_SHARE = 0.8
# Fewer runs than that on a side say nothing of the shape of their noise.
FEW_RUNS = 6
# With few runs, or where less than a slow-down of so many tolerances would hardly be found, slower and faster together
# may be wrong so often.
WEAK_ERROR = 0.01
WEAK_TOLERANCES = 2.5
# Fewer in a baseline know no spread.
LEAST_BASELINE = 3
# How often the smallest effect, and so many more runs, would lead to a verdict.
POWER = 0.8
# A trend within both sides is taken for a drift below this probability. With few runs it is seldom that clear, and a
# drift that is overlooked looks like a change.
DRIFT = 0.03
FEW_RUNS_DRIFT = 0.2
MOST_RUNS = 100
MOST_EXPONENT = 700.0


@dataclass(frozen=True)
class Rules:
    """``confidence`` of the intervals, and of all slower and faster together; ``tolerance``: so much is the same.

    A tolerance of 0.05 lets a ratio lie between 0.95 and 1 / 0.95, and a share of time within 5 points.
    """

    confidence: float = 0.95
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.confidence < 1 and 0 < self.tolerance < 1):
            raise ValueError("confidence and tolerance lie between 0 and 1")

    @property
    def error(self) -> float:
        return 1 - self.confidence

    def margin(self, scale: Scale) -> float:
        return -math.log1p(-self.tolerance) if scale == "ratio" else self.tolerance


@dataclass(frozen=True)
class Sample:
    """The values of the runs of both sides, and when these began (seconds; empty where unknown)."""

    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    baseline_s: tuple[float, ...] = ()
    candidate_s: tuple[float, ...] = ()
    scale: Scale = "ratio"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Effect:
    """Candidate over baseline: a ratio (1: no change), or a difference (0: none), with its interval.

    ``smallest`` is the slow-down that would have been found in 80 of 100 (a share of 1, or points); ``more_runs`` how
    many more a side would probably do where the verdict is not enough data (None: more than anybody would make);
    ``p_adjusted`` is corrected for the number of comparisons; ``drift``: the runs drifted, and that is taken off.
    """

    verdict: Verdict
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    smallest: float | None = None
    p_adjusted: float | None = None
    more_runs: int | None = None
    drift: bool = False


@dataclass(frozen=True)
class _Fit:
    """The difference of the sides on the scale of the test, better upwards; ``se`` is its standard error."""

    difference: float
    se: float
    sd: float
    freedom: float
    separated: bool
    drift: bool
    runs: tuple[int, int]
    scale: Scale


def judge(samples: Sequence[Sample], rules: Rules) -> list[Effect]:
    """The verdict on each of what is compared together.

    Raises `ValueError` for a value that is not finite, or for a ratio of values that are not above 0.
    """
    from scipy.stats import false_discovery_control

    fits = [_fit(sample) for sample in samples]
    drifts = [fit.drift for fit in fits if fit is not None]
    if 0 < sum(drifts) < len(drifts) < 2 * sum(drifts):
        # They are of the same runs: where most drift, the others do as well, and it was only not seen.
        fits = [_fit(sample, drifting=True) for sample in samples]
    known = [(number, fit) for number, fit in enumerate(fits) if fit is not None]
    adjusted: dict[int, float] = {}
    found = 0
    if known:
        # Each side by itself: else much that is faster would lower the bar for what is called slower.
        sides = zip(*(_p_values(fit, rules) for _, fit in known), strict=True)
        slower, faster = (false_discovery_control(side) for side in sides)
        adjusted = {
            number: float(slower[at] if fit.difference < 0 else faster[at]) for at, (number, fit) in enumerate(known)
        }
        found = int((slower <= rules.error).sum())
    # What Benjamini and Hochberg ask of one more: the bar that a lone slow-down must pass here.
    bar = rules.error * max(found, 1) / max(len(known), 1)
    return [
        _effect(sample, fit, adjusted.get(number), bar, rules)
        for number, (sample, fit) in enumerate(zip(samples, fits, strict=True))
    ]


def _fit(sample: Sample, drifting: bool = False) -> _Fit | None:
    """None where there are too few runs for any spread. ``drifting``: the runs are known to drift."""
    sides = [_on_scale(values, sample) for values in (sample.baseline, sample.candidate)]
    runs = len(sides[0]), len(sides[1])
    if runs[0] < LEAST_BASELINE or not runs[1]:
        return None
    times = _times(sample)
    if times is not None and sum(runs) > LEAST_BASELINE + 1:
        trended = _fit_with_trend(sides, times, runs, sample.scale, drifting)
        if trended is not None:
            return trended
    difference = float(sides[1].mean() - sides[0].mean())
    sums = [float(((side - side.mean()) ** 2).sum()) for side in sides]
    freedom: float = sum(runs) - 2
    sd = math.sqrt(sum(sums) / freedom)
    if runs[1] == 1:
        # One run has no spread of its own: it is held against that of the baseline.
        se = sd * math.sqrt(1 / runs[0] + 1)
    else:
        parts = [total / (count - 1) / count for total, count in zip(sums, runs, strict=True)]
        se = math.sqrt(sum(parts))
        if se:
            freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, runs, strict=True))
    return _Fit(difference, se, sd, freedom, _are_separated(sides), False, runs, sample.scale)


def _on_scale(values: Sequence[float], sample: Sample) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all() or (sample.scale == "ratio" and (array <= 0).any()):
        raise ValueError(f"no figures to compare: {values}")
    scaled = np.log(array) if sample.scale == "ratio" else array
    return scaled if sample.higher_is_better else -scaled


def _times(sample: Sample) -> tuple[Values, Values] | None:
    if len(sample.baseline_s) != len(sample.baseline) or len(sample.candidate_s) != len(sample.candidate):
        return None
    baseline, candidate = np.asarray(sample.baseline_s), np.asarray(sample.candidate_s)
    # The order is what counts: between two days lies no more drift than between two runs.
    ranks = np.unique(np.concatenate([baseline, candidate]), return_inverse=True)[1].astype(np.float64)
    return (ranks[: len(baseline)], ranks[len(baseline) :]) if ranks.max() > 0 else None


def _fit_with_trend(
    sides: Sequence[Values], times: tuple[Values, Values], runs: tuple[int, int], scale: Scale, drifting: bool
) -> _Fit | None:
    """Sides and a straight trend over the order of the runs, fitted together.

    None where there is no reason to look for a trend: one side was run after the other, and neither drifts by itself.
    """
    centred_s = np.concatenate([side - side.mean() for side in times])
    centred = np.concatenate([side - side.mean() for side in sides])
    spread = float((centred_s**2).sum())
    freedom = sum(runs) - 3
    if not spread:
        return None
    slope = float((centred_s * centred).sum()) / spread
    residual = centred - slope * centred_s
    variance = float((residual**2).sum()) / freedom
    in_turns = max(times[0].min(), times[1].min()) < min(times[0].max(), times[1].max())
    slope_se = math.sqrt(variance / spread)
    suspicion = FEW_RUNS_DRIFT if min(runs) <= FEW_RUNS and not in_turns else DRIFT
    drifts = 2 * _cdf(freedom, -abs(slope) / slope_se) < suspicion if slope_se else bool(slope)
    drifts = drifts or (drifting and not in_turns)
    if not in_turns and not drifts:
        return None
    apart_s = float(times[1].mean() - times[0].mean())
    difference = float(sides[1].mean() - sides[0].mean()) - slope * apart_s
    se = math.sqrt(variance * (1 / runs[0] + 1 / runs[1] + apart_s**2 / spread))
    # A trend that is none would be fitted to the noise, and set the sides apart that are not.
    level = [side - slope * time_s for side, time_s in zip(sides, times, strict=True)] if drifts else sides
    separated = _are_separated(level) and (in_turns or _are_separated(sides))
    return _Fit(difference, se, math.sqrt(variance), freedom, separated, drifts, runs, scale)


def _are_separated(sides: Sequence[Values]) -> bool:
    return bool(sides[0].max() < sides[1].min() or sides[1].max() < sides[0].min())


def _p_values(fit: _Fit, rules: Rules) -> tuple[float, float]:
    """For slower, with `SLOWER_SHARE` of the errors, and for faster; larger where few runs must be surer."""
    # Without any spread, any difference is beyond doubt.
    place = fit.difference / fit.se if fit.se else math.copysign(math.inf, fit.difference) if fit.difference else 0.0
    slower = _cdf(fit.freedom, place)
    if min(fit.runs) < FEW_RUNS and not fit.separated:
        return 1.0, 1.0
    surer = rules.error / _error(fit, rules)
    return min(surer * slower / SLOWER_SHARE, 1.0), min(surer * (1 - slower) / (1 - SLOWER_SHARE), 1.0)


def _error(fit: _Fit, rules: Rules) -> float:
    """How often slower and faster together may be wrong, where this is the only comparison."""
    found = (_quantile(fit.freedom, 1 - rules.error * SLOWER_SHARE) + _quantile(fit.freedom, POWER)) * fit.se
    weak = min(fit.runs) < FEW_RUNS or found > WEAK_TOLERANCES * rules.margin(fit.scale)
    return min(WEAK_ERROR, rules.error) if weak else rules.error


def _smallest(fit: _Fit, error: float, rules: Rules) -> float:
    """The slow-down that is found with `POWER`, on the scale of the test."""
    power = _quantile(fit.freedom, POWER)
    sure = _quantile(fit.freedom, 1 - error * SLOWER_SHARE) + power
    # It must be seen to be more than the tolerance, too.
    return float(max(sure * fit.se, rules.margin(fit.scale) + power * fit.se))


def _cdf(freedom: float, value: float) -> float:
    """Student's t. The functions below SciPy's distribution: that takes fifty times as long."""
    from scipy.special import stdtr

    return float(stdtr(freedom, value))


def _quantile(freedom: Any, share: float) -> Any:
    from scipy.special import stdtrit

    return stdtrit(freedom, share)


@functools.lru_cache(maxsize=32)
def _quantiles_by_runs(share: float, runs: int) -> Any:
    """Student's t with so many runs, and each number of more a side up to `MOST_RUNS`."""
    return _quantile(runs - 2 + 2 * np.arange(1, MOST_RUNS + 1), share)


def _effect(sample: Sample, fit: _Fit | None, p_adjusted: float | None, bar: float, rules: Rules) -> Effect:
    if fit is None or p_adjusted is None:
        missing = max(FEW_RUNS - 1 - len(sample.baseline), FEW_RUNS - 1 - len(sample.candidate), 1)
        return Effect("not enough data", estimate=_plain_estimate(sample), more_runs=missing)
    # The bound on the side of better decides on slower, and has most of the errors.
    worst = fit.difference - float(_quantile(fit.freedom, 1 - rules.error * (1 - SLOWER_SHARE))) * fit.se
    best = fit.difference + float(_quantile(fit.freedom, 1 - rules.error * SLOWER_SHARE)) * fit.se
    margin = rules.margin(sample.scale)
    verdict: Verdict = "not enough data"
    if -margin <= worst and best <= margin:
        verdict = "same"
    elif p_adjusted <= rules.error and abs(fit.difference) > margin:
        verdict = "slower" if fit.difference < 0 else "faster"
    sign = 1 if sample.higher_is_better else -1
    low, high = sorted((sign * worst, sign * best))
    smallest = _smallest(fit, bar * _error(fit, rules) / rules.error, rules)
    as_ratio = sample.scale == "ratio"
    return Effect(
        verdict,
        estimate=_exp(sign * fit.difference) if as_ratio else sign * fit.difference,
        low=_exp(low) if as_ratio else low,
        high=_exp(high) if as_ratio else high,
        smallest=-math.expm1(-smallest) if as_ratio else smallest,
        p_adjusted=p_adjusted,
        more_runs=_more_runs(fit, bar, margin, rules) if verdict == "not enough data" else None,
        drift=fit.drift,
    )


def _exp(value: float) -> float:
    # Two runs that are nothing alike have an interval beyond what a float holds.
    return math.exp(min(value, MOST_EXPONENT))


def _plain_estimate(sample: Sample) -> float | None:
    if not sample.baseline or not sample.candidate:
        return None
    if sample.scale == "difference":
        return float(np.mean(sample.candidate) - np.mean(sample.baseline))
    return float(np.exp(np.mean(np.log(sample.candidate)) - np.mean(np.log(sample.baseline))))


def _more_runs(fit: _Fit, bar: float, margin: float, rules: Rules) -> int | None:
    """How many more a side until what was seen would be beyond doubt, or within the tolerance."""
    more, runs = np.arange(1, MOST_RUNS + 1), sum(fit.runs)
    se = fit.sd * np.sqrt(1 / (fit.runs[0] + more) + 1 / (fit.runs[1] + more))
    sure = _quantiles_by_runs(1 - bar * SLOWER_SHARE, runs) + _quantiles_by_runs(POWER, runs)
    within = _quantiles_by_runs(1 - rules.error * (1 - SLOWER_SHARE), runs)
    enough = (min(fit.runs) + more >= FEW_RUNS) & (
        ((abs(fit.difference) >= sure * se) & (abs(fit.difference) > margin))
        | (abs(fit.difference) + within * se <= margin)
    )
    return int(more[enough.argmax()]) if enough.any() else None

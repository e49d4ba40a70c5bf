"""Compares runs with runs: per benchmark and metric a ratio, its interval, and a verdict that a gate can stand on."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnbench.comparable import KINDS, Difference, counted, differences, facts
from dnnbench.effect import Effect, Rules, Sample, Scale, Verdict, judge
from dnnbench.errors import DnnbenchError
from dnnbench.results import Benchmark, Result, read_result

NO_REGRESSION, REGRESSION, UNUSABLE = 0, 1, 2
# Where half of the benchmarks was left out, a few of their names say enough.
MISSING_SHOWN = 3


class CompareError(DnnbenchError):
    """What was given cannot be compared at all."""


@dataclass(frozen=True)
class Metric:
    """A figure of the record. ``gates``: without a verdict on it, a gate does not pass."""

    name: str
    unit: str
    key: str
    scale: Scale = "ratio"
    higher_is_better: bool = True
    gates: bool = False


# Of each benchmark those that its record has; a listing has objects that it listed, and no samples.
THROUGHPUT = (
    Metric("throughput", "samples/s", "samples_per_s", gates=True),
    Metric("throughput", "objects/s", "objects_per_s", gates=True),
)
LISTING = Metric("listing rate", "keys/s", "objects_per_s", gates=True)
OTHERS = (
    Metric("p50", "ms", "latency_p50_ms", higher_is_better=False),
    Metric("p99", "ms", "latency_p99_ms", higher_is_better=False),
    Metric("waiting share", "", "waiting_share", scale="difference", higher_is_better=False),
)
METRICS = ("throughput", "listing rate", "p50", "p99", "waiting share")


@dataclass(frozen=True)
class Comparison:
    """One metric of one benchmark. ``baseline`` and ``candidate`` have a value per run, in the order of the runs.

    What is said of them is in `dnnbench.effect.Effect`.
    """

    benchmark: str
    metric: str
    unit: str
    scale: Scale
    higher_is_better: bool
    gates: bool
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    effect: Effect

    @property
    def verdict(self) -> Verdict:
        return self.effect.verdict

    @property
    def estimate(self) -> float | None:
        return self.effect.estimate

    @property
    def low(self) -> float | None:
        return self.effect.low

    @property
    def high(self) -> float | None:
        return self.effect.high

    @property
    def smallest(self) -> float | None:
        return self.effect.smallest

    @property
    def more_runs(self) -> int | None:
        return self.effect.more_runs


@dataclass(frozen=True)
class Compared:
    """Two sets of runs. ``refused`` holds what differs and was not allowed; ``notes`` what a reader must know."""

    comparisons: tuple[Comparison, ...]
    refused: tuple[Difference, ...]
    notes: tuple[str, ...]
    runs: tuple[int, int]
    rules: Rules
    allowed: frozenset[str] = field(default_factory=frozenset)

    def having(self, verdict: Verdict) -> list[Comparison]:
        return [one for one in self.comparisons if one.verdict == verdict]

    @property
    def undecided(self) -> list[Comparison]:
        """Those without a verdict that a gate needs."""
        return [one for one in self.having("not enough data") if one.gates]

    @property
    def problems(self) -> list[str]:
        """Why the gate cannot pass, other than by a regression."""
        missing = [one for one in self.refused if one.kind == "missing"]
        told = [f"refused: {one}" for one in self.refused if one not in missing[MISSING_SHOWN:]]
        if len(missing) > MISSING_SHOWN:
            told.append(f"refused: missing: {len(missing) - MISSING_SHOWN:,} more like these")
        if self.undecided and "undecided" not in self.allowed:
            told.append(f"not enough data for {_counted(len(self.undecided), 'comparison')}{self._more()}")
        return told

    def _more(self) -> str:
        needed = [one.more_runs for one in self.undecided]
        if any(more is None for more in needed):
            return "; the noise is too loud for any number of runs that one would make: calm the machine"
        most = max(more for more in needed if more is not None)
        return f"; about {_counted(most, 'more run')} a side would probably do"

    @property
    def exit_status(self) -> int:
        """0: no regression; 1: a regression; 2: unusable, or not enough data."""
        if self.having("slower"):
            return REGRESSION
        return UNUSABLE if self.problems else NO_REGRESSION

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        counts = Counter(one.verdict for one in self.comparisons)
        told = [f"{counts[v]} {v}" for v in ("slower", "faster", "same", "not enough data") if counts[v]]
        sides = f"{_counted(self.runs[0], 'run')} against {_counted(self.runs[1], 'run')}"
        outcome = {
            NO_REGRESSION: "no regression",
            REGRESSION: "regression",
            UNUSABLE: "no verdict",
        }[self.exit_status]
        return f"{outcome}: of {_counted(len(self.comparisons), 'comparison')} {', '.join(told) or 'none'} ({sides})"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def allowed_kinds(texts: Sequence[str], option: str = "--allow") -> list[str]:
    """The kinds that ``KIND[,KIND]`` names. Raises `CompareError` for one that is none."""
    kinds = [kind for text in texts for kind in text.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise CompareError(f'{option}: found "{kind}", expected some of {", ".join(KINDS)}')
    return kinds


def compare_files(
    baseline: Sequence[Path],
    candidate: Sequence[Path],
    rules: Rules | None = None,
    allowed: Collection[str] = (),
    metrics: Collection[str] = METRICS,
) -> Compared:
    """Reads and compares result files. Raises `CompareError` or `ResultError`."""
    sides = [[read_result(path) for path in paths] for paths in (baseline, candidate)]
    return compare(sides[0], sides[1], rules, allowed, metrics)


def compare(
    baseline: Sequence[Result],
    candidate: Sequence[Result],
    rules: Rules | None = None,
    allowed: Collection[str] = (),
    metrics: Collection[str] = METRICS,
) -> Compared:
    """Compares two sets of runs. Raises `CompareError` where there is nothing to compare."""
    try:
        return _compare(baseline, candidate, rules or Rules(), allowed, metrics)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        # As a traceback it would end with the status of a regression.
        names = ", ".join(str(run.path) for run in (*baseline, *candidate))
        raise CompareError(f"{names}: a record is damaged: {type(exc).__name__} {exc}") from exc


def _compare(
    baseline: Sequence[Result],
    candidate: Sequence[Result],
    rules: Rules,
    allowed: Collection[str],
    metrics: Collection[str],
) -> Compared:
    _check(baseline, candidate, metrics)
    sides = [_Side(runs, allowed) for runs in (baseline, candidate)]
    names = list(dict.fromkeys([*sides[0].names, *sides[1].names]))
    differing: list[tuple[str, str]] = []
    samples: list[tuple[str, Metric, Sample]] = []
    for name in names:
        missing = [_missing(name, side, title) for side, title in zip(sides, ("baseline", "candidate"), strict=True)]
        if any(missing):
            differing += [("missing", text) for text in missing if text]
            continue
        found = _differences(sides, name)
        differing += found
        if all(kind in allowed for kind, _ in found):
            known, unknown = _samples(sides, name, metrics)
            samples += known
            differing += [("missing", text) for text in unknown]
    # Whoever asks for some metrics by name gates on them.
    asked_for = set(metrics) != set(METRICS)
    effects = judge([sample for _, _, sample in samples], rules)
    comparisons = tuple(
        Comparison(
            name,
            m.name,
            m.unit,
            m.scale,
            m.higher_is_better,
            m.gates or asked_for,
            sample.baseline,
            sample.candidate,
            effect,
        )
        for (name, m, sample), effect in zip(samples, effects, strict=True)
    )
    told = counted(differing)
    left = tuple(one for one in told if one.kind not in allowed)
    if not comparisons and not left:
        raise CompareError("the two sides have no benchmark in common that has any of the metrics")
    notes = tuple(_notes(sides, comparisons, told, allowed))
    return Compared(comparisons, left, notes, (len(baseline), len(candidate)), rules, frozenset(allowed))


def _check(baseline: Sequence[Result], candidate: Sequence[Result], metrics: Collection[str]) -> None:
    for side, title in ((baseline, "baseline"), (candidate, "candidate")):
        if not side:
            raise CompareError(f"the {title} has no run")
    for name in metrics:
        if name not in METRICS:
            raise CompareError(f'--metrics: found "{name}", expected some of {", ".join(METRICS)}')
    started: dict[str, Path] = {}
    for run in (*baseline, *candidate):
        # A run that counts twice would look like two that agree.
        key = f"{run.started_utc} {run.about['runs'][-1]['ended_utc']} {run.benchmarks[0].record.get('wall_s')}"
        if key in started:
            raise CompareError(f"{run.path}: is the same run as {started[key]}")
        started[key] = run.path


class _Side:
    """The runs of a side in the order in which they were made, and their benchmarks by what identifies these."""

    def __init__(self, runs: Sequence[Result], allowed: Collection[str]) -> None:
        self.runs = sorted(runs, key=lambda run: run.started_utc)
        self.started_s = tuple(datetime.datetime.fromisoformat(run.started_utc).timestamp() for run in self.runs)
        self.benchmarks = [_by_name(run, allowed) for run in self.runs]
        self.names = list(dict.fromkeys(name for benchmarks in self.benchmarks for name in benchmarks))

    def of(self, name: str) -> list[tuple[Result, Benchmark]]:
        found = [(run, some.get(name)) for run, some in zip(self.runs, self.benchmarks, strict=True)]
        return [(run, benchmark) for run, benchmark in found if benchmark is not None]


def _by_name(run: Result, allowed: Collection[str]) -> dict[str, Benchmark]:
    """The benchmarks of a run by their names; without what is allowed to differ, where that still tells them apart."""
    dropped = {"storage_name", "client"} if "storage" in allowed else {"client"} if "client" in allowed else set()
    short = [_short_name(benchmark, dropped) for benchmark in run.benchmarks]
    counts = Counter(short)
    return {
        name if counts[name] == 1 else benchmark.name: benchmark
        for name, benchmark in zip(short, run.benchmarks, strict=True)
    }


def _short_name(benchmark: Benchmark, dropped: Collection[str]) -> str:
    gone = [str(value) for name, value in benchmark.params.items() if name in dropped]
    if not gone:
        return benchmark.name
    place, _, parameters = benchmark.name.partition("[")
    # They come first in an id, in this order (fixtures.axes).
    rest = parameters.removesuffix("]")
    for value in (str(benchmark.params.get("storage_name", "")), str(benchmark.params.get("client", ""))):
        if value in gone:
            rest = f"{rest}-".replace(f"{value}-", "", 1).removesuffix("-")
    return f"{place}[{rest}]" if rest else place


def _missing(name: str, side: _Side, title: str) -> str | None:
    there = len(side.of(name))
    if there == len(side.runs):
        return None
    return f"{name}: " + (
        f"not in the {title}" if not there else f"in {there} of the {len(side.runs)} runs of the {title}"
    )


def _differences(sides: Sequence[_Side], name: str) -> list[tuple[str, str]]:
    """(kind, what differs) within a side or between them."""
    described = [[facts(run, benchmark) for run, benchmark in side.of(name)] for side in sides]
    found = []
    for title, side in zip(("baseline", "candidate"), described, strict=True):
        for other in side[1:]:
            within = [(kind, f"{text}, within the {title}") for kind, text in differences(side[0], other)]
            found += [one for one in within if one not in found]
    return found + differences(described[0][0], described[1][0])


def _samples(
    sides: Sequence[_Side], name: str, wanted: Collection[str]
) -> tuple[list[tuple[str, Metric, Sample]], list[str]]:
    """What can be compared of a benchmark, and which of its figures some runs lack."""
    records = [[benchmark.record for _, benchmark in side.of(name)] for side in sides]
    found, unknown = [], []
    for metric in _metrics_of([*records[0], *records[1]]):
        if metric.name not in wanted:
            continue
        values = [tuple(figure(record, metric) for record in side) for side in records]
        known = [tuple(value for value in side if value is not None) for side in values]
        lacking = [
            f"{count} of the {len(side)} runs of the {title}"
            for title, side, some in zip(("baseline", "candidate"), values, known, strict=True)
            if (count := len(side) - len(some))
        ]
        if lacking and (metric.gates or any(known)):
            # Left out without a word, it would hide that reading has come to a stand.
            unknown.append(f"{name}: no {metric.name} in {' and '.join(lacking)}")
        elif not lacking:
            sample = Sample(
                known[0],
                known[1],
                sides[0].started_s,
                sides[1].started_s,
                scale=metric.scale,
                higher_is_better=metric.higher_is_better,
            )
            found.append((name, metric, sample))
    return found, unknown


def gate_metric(record: Mapping[str, Any]) -> Metric | None:
    """The figure of a record that a gate is about."""
    if "listed_bytes" in record:
        return LISTING
    return next((metric for metric in THROUGHPUT if metric.key in record), None)


def _metrics_of(records: Sequence[Mapping[str, Any]]) -> list[Metric]:
    first = next((metric for record in records if (metric := gate_metric(record))), None)
    # At a knee there are as many reads in flight, or workers, as that run found best: of two knees only rates compare.
    alone = first is LISTING or any("knee" in record for record in records)
    others = () if alone else (one for one in OTHERS if any(one.key in record for record in records))
    return [*([first] if first else []), *others]


def figure(record: Mapping[str, Any], metric: Metric) -> float | None:
    """A record's figure of this metric; None where it is none, or nothing that a ratio could be of."""
    value = record.get(metric.key)
    if not isinstance(value, int | float) or not math.isfinite(value) or (metric.scale == "ratio" and value <= 0):
        return None
    return float(value)


def _notes(
    sides: Sequence[_Side], comparisons: Sequence[Comparison], found: Sequence[Difference], allowed: Collection[str]
) -> list[str]:
    notes = [f"allowed: {one}" for one in found if one.kind in allowed]
    records = [benchmark.record for side in sides for some in side.benchmarks for benchmark in some.values()]
    for key, text in (
        ("client_bound", "limited by the client's own processor time, so they say nothing about the storage"),
        ("disturbed", "measured on a disturbed machine"),
    ):
        count = sum(record.get(key) is True for record in records)
        if count:
            notes.append(f"{count} of {len(records)} figures were {text}")
    drifting = sum(one.effect.drift for one in comparisons)
    if drifting:
        notes.append(f"the runs drifted in {_counted(drifting, 'comparison')}; the drift was taken off")
    first, last = sides[0].started_s, sides[1].started_s
    if max(first) < min(last) or max(last) < min(first):
        notes.append(
            "one side was measured after the other, so a change of the machine in between looks like one of the "
            "storage; python -m dnnbench ab measures in turns"
        )
    return notes

"""What a report shows, in order: benchmarks of the same thing side by side over the runs, texts made safe, numbers."""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnnbench.results import Benchmark, Result

Cell = str | float | int | None
Record = Mapping[str, Any]
# Direction marks and overrides change what stands beside them; the rest of these cannot be seen at all.
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
_DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_KNEE = re.compile(r"( knee)?( [cw]\d+)?(, no knee)?$")


@dataclass(frozen=True)
class Measured:
    """One benchmark of one run; runs count from 1, in the order in which they began."""

    run: int
    benchmark: Benchmark

    @property
    def record(self) -> Record:
        return self.benchmark.record


@dataclass(frozen=True)
class Group:
    """The same benchmark in every run that has it: same test, storage, client, configuration, data and ranks.

    ``what`` says what was measured, with the swept settings; ``place`` the storage and the client; ``setup`` what tells
    it from one of the same name with another configuration, other data or ranks, else nothing.
    """

    what: str
    place: str
    setup: str
    measured: tuple[Measured, ...]

    @property
    def test(self) -> str:
        return self.measured[0].benchmark.test

    @property
    def latest(self) -> Record:
        return self.measured[-1].record

    @property
    def series(self) -> str:
        """What tells this group from others of the same ``what``."""
        return f"{self.place} · {self.setup}" if self.setup else self.place

    @property
    def label(self) -> str:
        return f"{self.what} · {self.series}"

    def values(self, key: str) -> list[float]:
        """The values of a key of the record, of the runs that have it."""
        return [float(one.record[key]) for one in self.measured if one.record.get(key) is not None]


@dataclass(frozen=True)
class Table:
    """Numbers for people: ``rows`` of text and numbers, None for what there is not."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Chart:
    """A plot: its title says what is to be seen; ``data`` and ``layout`` are Plotly's, ``table`` holds the same."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    height: int = 320


@dataclass(frozen=True)
class Section:
    """A part of the report; its ``id`` is its name in the contents. ``missing`` says what to run where it is empty.

    Of a line of ``lead`` that is in two parts the first one stands out.
    """

    id: str
    title: str
    lead: Sequence[str | tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    missing: str | None = None
    tables: Sequence[tuple[str, Table]] = field(default_factory=list)


def group(results: Sequence[Result]) -> list[Group]:
    """The benchmarks of the runs, those of the same thing together; in the order in which they were measured.

    ``results`` are in the order in which the runs began.
    """
    found: dict[tuple[str, ...], list[Measured]] = {}
    for number_, result in enumerate(results, start=1):
        for benchmark in result.benchmarks:
            record = benchmark.record
            key = (
                benchmark.name, record["storage_label"], record["config_hash"], record["catalog"]["hash"],
                ranks_of(record),
            )  # fmt: skip
            found.setdefault(tuple(map(str, key)), []).append(Measured(number_, benchmark))
    return [
        Group(_what(measured), _place(measured[-1].record), _setup(key, found), tuple(measured))
        for key, measured in found.items()
    ]


def _setup(key: tuple[str, ...], keys: Iterable[tuple[str, ...]]) -> str:
    """What tells a benchmark from others of its name: the hash of its configuration or data, or its ranks."""
    alike = [other for other in keys if other[:2] == key[:2]]
    parts = {2: f"configuration {key[2][:6]}", 3: f"data {key[3][:6]}", 4: key[4] or "1 process"}
    return ", ".join(text for at, text in parts.items() if len({one[at] for one in alike}) > 1)


def ranks_of(record: Record) -> str:
    """How many ranks measured together, such as ``4 ranks on 2 hosts``; empty for a run without a launcher."""
    told = record.get("ranks")
    if told is None:
        return ""
    ranks, hosts = f"{told['count']} rank{'s' * (told['count'] > 1)}", told["hosts"]
    return f"{ranks} on {hosts} hosts" if hosts > 1 else ranks


def _what(measured: Sequence[Measured]) -> str:
    record = measured[-1].record
    what = str(record["what"])
    if "knee" in record:
        # Its name tells where it is, which differs from run to run.
        what = _KNEE.sub("", what) + " knee"
    return what + "".join(f" {key.rpartition('.')[2]}={value}" for key, value in record["swept"].items())


def _place(record: Record) -> str:
    storage, label = str(record["storage"]), str(record["storage_label"])
    shown = f"fs {label}" if storage == "fs" and label != storage else storage
    return f"{shown} · {record['client']}"


def visible(text: Any, most: int | None = None) -> str:
    """A text as it may be shown: control, direction and lone surrogate characters as escapes, long ones cut."""
    shown = "".join(
        f"\\u{ord(letter):04x}" if unicodedata.category(letter) in _HIDDEN or letter in _DIRECTIONS else letter
        for letter in str(text)
    )
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def number(value: float | None) -> str:
    """A figure for a person: three digits that count, thousands with commas; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share for a person."""
    return "–" if value is None else f"{100 * value:.3g} %"


def median(values: Sequence[float]) -> float:
    """The middle of the runs."""
    return statistics.median(values)


def of_tests(groups: Sequence[Group], *tests: str) -> Iterator[Group]:
    """The groups of these tests."""
    return (one for one in groups if one.test in tests)


def runs_of(count: int) -> str:
    """How many runs a figure is of."""
    return "one run" if count == 1 else f"{count} runs: a point each, and the median"

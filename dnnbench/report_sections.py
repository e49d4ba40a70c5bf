"""What a report shows of storages: the ladder, throughput, latencies, epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dnnbench.notes import verdict_of
from dnnbench.report_charts import Bar, Json, Style, bars, from_zero, line, log_ticks, mark, plot_text, rule, words
from dnnbench.report_data import (
    Cell,
    Chart,
    Group,
    Record,
    Section,
    Table,
    median,
    number,
    of_tests,
    percent,
    runs_of,
)

# The ladder's rungs from the storage up: key of the record, name, and what kind of work it is (its bar's pattern).
RUNGS = (
    ("overhead_per_s", "loader, nothing read or decoded", 1),
    ("memory_per_s", "loader, reads from memory", 1),
    ("loader_per_s", "loader, reads from the storage", 1),
    ("compute_per_s", "trainer, batches in memory", 2),
    ("epoch_per_s", "whole epoch", 3),
)
CUT = 8
READS = {"one reader": "as one worker", "loader": "as the loader", "more": "four times that"}
# Marked on a distribution: key of the record, share, symbol.
MARKS = (
    ("latency_p50_ms", 0.5, "circle"),
    ("latency_p99_ms", 0.99, "diamond"),
    ("latency_p99_9_ms", 0.999, "x"),
)
Styles = dict[str, Style]


def styles(groups: Sequence[Group]) -> Styles:
    """How each series looks, everywhere."""
    return {series: Style(at) for at, series in enumerate(dict.fromkeys(one.series for one in groups))}


def ladder(groups: Sequence[Group]) -> Section:
    """What limits, in a sentence for each ladder, and the rungs."""
    climbed = [one for one in groups if "ladder" in one.latest]
    if not climbed:
        missing = "No ladder was measured. To learn which layer limits, run: pytest bench/ -k ladder"
        return Section("limit", "What limits", missing=missing)
    leads: list[str | tuple[str, str]] = []
    for one in climbed:
        limits = [str(verdict_of(measured.record)["limit"]) for measured in one.measured]
        others = [limit for limit in limits if limit != limits[-1]]
        same = f"the same limit in {len(limits) - len(others)} of {len(limits)} runs"
        agreed = f" (latest run; {same})" if len(limits) > 1 else ""
        first, *rest = str(verdict_of(one.latest)["sentence"]).split(";", 1)
        leads.append((f"{one.place}, {one.what}: {first}{agreed}", "".join(f";{part}" for part in rest)))
    leads.append(f"▸: more than {CUT} times the rate of the whole epoch, and so drawn in part.")
    return Section("limit", "What limits", leads, [_ladder(one) for one in climbed])


def _ladder(one: Group) -> Chart:
    told = [measured.record["ladder"] for measured in one.measured]
    reads = [(kind, name) for kind, name in READS.items() if kind in told[-1]["reads"]]
    rungs = [
        (f"raw reads, {told[-1]['reads'][kind]['in_flight']} in flight", name, Style(0), [
            float(run["reads"][kind]["objects_per_s"]) for run in told
        ])
        for kind, name in reads
    ] + [(name, "", Style(style), [float(run[key]) for run in told]) for key, name, style in RUNGS]  # fmt: skip
    several = [
        Bar(
            (name, f"({beside})" if beside else ""),
            median(values),
            style,
            f"{name}: {number(median(values))} samples/s",
            values if len(values) > 1 else (),
        )
        for name, beside, style, values in rungs
    ]
    # What is far above the whole epoch limits nothing, and would leave no room for what does.
    epoch_per_s = several[-1].value
    data, layout, height = bars(several, "samples/s", CUT * epoch_per_s)
    shares = verdict_of(one.latest).get("shares", {})
    rows: list[Sequence[Cell]] = [
        [f"{name} ({beside})" if beside else name, *values] for name, beside, _, values in rungs
    ]
    rows += [
        [f"of the loader's time: {layer}", *([None] * (len(told) - 1)), percent(share)]
        for layer, share in shares.items()
    ]
    table = Table(
        ("rung", *(f"run {measured.run}, samples/s" for measured in one.measured)),
        rows,
    )
    limit = verdict_of(one.latest)["limit"]
    return Chart(f"{one.label}: {limit} limits ({runs_of(len(told))})", data, layout, table, height)


def throughput(groups: Sequence[Group], styled: Styles) -> Section:
    """Rates by storage and client."""
    charts = [
        *_rates(
            "Objects read, not decoded", groups, ("test_read", "test_autoscale_read"), "mib_per_s", "MiB/s",
            styled,
        ),
        *_rates(
            "Samples out of a loader", groups, ("test_loader", "test_autoscale_loader"), "samples_per_s", "samples/s",
            styled,
        ),
        *_rates(
            "Samples trained with, or predicted", groups, ("test_training", "test_inference"), "samples_per_s",
            "samples/s", styled,
        ),
        *_rates(
            "Large objects, in ranges and whole", groups, ("test_ranges", "test_ranges_whole", "test_ranges_plain"),
            "mib_per_s", "MiB/s", styled,
        ),
        *_rates("Objects listed", groups, ("test_listing",), "objects_per_s", "objects/s", styled),
    ]  # fmt: skip
    missing = None if charts else "Nothing was read. Run: pytest bench/ -k 'listing or read or loader or training'"
    return Section("throughput", "Throughput by storage and client", (), charts, missing)


def _rates(
    title: str, groups: Sequence[Group], tests: tuple[str, ...], key: str, unit: str, styled: Styles
) -> Iterator[Chart]:
    # What is to be compared stands side by side: the same thing on each storage.
    found = [one for one in of_tests(groups, *tests) if one.values(key)]
    order = list(dict.fromkeys(one.what for one in found))
    found.sort(key=lambda one: order.index(one.what))
    if not found:
        return
    several = [
        Bar(
            (one.what, one.series),
            median(one.values(key)),
            styled[one.series],
            f"{one.label}: {number(median(one.values(key)))} {unit}",
            one.values(key) if len(one.measured) > 1 else (),
        )
        for one in found
    ]
    data, layout, height = bars(several, unit)
    rows = [
        [one.what, one.series, measured.run, *(measured.record.get(of) for of in _RATES)]
        for one in found
        for measured in one.measured
    ]
    most = max(len(one.measured) for one in found)
    header = ("what", "storage and client", "run", "objects/s", "samples/s", "MiB/s")
    yield Chart(f"{title}, {unit} ({runs_of(most)})", data, layout, Table(header, rows), height)


_RATES = ("objects_per_s", "samples_per_s", "mib_per_s")


def latencies(groups: Sequence[Group], styled: Styles) -> Section:
    """The distribution of the latencies of single reads."""
    found = [one for one in of_tests(groups, "test_read", "test_loader") if one.latest.get("latency_curve")]
    if not found:
        missing = "No distribution was recorded. Run: pytest bench/ -k 'read or loader'"
        return Section("latency", "Latency of single reads", missing=missing)
    whats = list(dict.fromkeys(one.what for one in found))
    charts = [_latency(what, [one for one in found if one.what == what], styled) for what in whats]
    lead = (
        "Of each curve, the share of the reads that took no longer, retries included. Marked: p50 (circle), p99 "
        "(diamond), p99.9 (cross). Where there are too few reads for a share, it is the slowest one."
    )
    return Section("latency", "Latency of single reads", [lead], charts)


def _latency(what: str, several: Sequence[Group], styled: Styles) -> Chart:
    data: list[Json] = []
    rows: list[list[Cell]] = []
    most = 1
    for one in several:
        for measured in one.measured:
            points = _steps(measured.record)
            most = max(most, int(measured.record["latency_count"]))
            hover = [
                f"{one.series}, run {measured.run}: {percent(share)} within {number(ms)} ms" for ms, _, share in points
            ]
            data.append(
                line(
                    [ms for ms, _, _ in points], [upto for _, upto, _ in points], one.series, styled[one.series], hover,
                    legendgroup=one.series, showlegend=measured is one.measured[-1],
                    opacity=1.0 if measured is one.measured[-1] else 0.5,
                )
            )  # fmt: skip
            rows.append([one.series, measured.run, measured.record["latency_count"], *_percentiles(measured.record)])
        record = one.latest
        marked = [
            (float(record[key]), share, symbol, key) for key, share, symbol in MARKS if record.get(key) is not None
        ]
        data.append(
            mark(
                [ms for ms, *_ in marked],
                [min(1 / (1 - share), float(record["latency_count"])) for _, share, *_ in marked],
                [symbol for *_, symbol, _ in marked],
                styled[one.series],
                hovertext=[f"{plot_text(one.series)}: p{100 * share:g} {number(ms)} ms" for ms, share, *_ in marked],
                hoverinfo="text",
                legendgroup=one.series,
            )
        )
    all_ms = [ms for one in data for ms in one["x"]]
    upto = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]
    layout = {
        "xaxis": {"type": "log", "title": {"text": "latency, ms (logarithmic)"}, **log_ticks(all_ms)},
        "yaxis": {
            "type": "log",
            "title": {"text": "reads that took no longer"},
            "tickmode": "array",
            "tickvals": [1 / (1 - share) for share, _ in upto],
            "ticktext": [text for _, text in upto],
            "range": [0, math.log10(most) + 0.15],
        },
    }
    header = ("storage and client", "run", "reads", "min ms", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms")
    return Chart(f"{what}: how long a read takes", data, layout, Table(header, rows))


def _percentiles(record: Record) -> list[Cell]:
    keys = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_p99_9_ms", "latency_max_ms")
    return [record["latency_curve"][0][1], *(record.get(key) for key in keys)]


def _steps(record: Record) -> list[tuple[float, float, float]]:
    """(ms, 1 / (1 - share), share) of the points that so many reads tell apart; the last is the slowest read.

    On a logarithmic axis, 1 / (1 - share) gives each further nine the same room.
    """
    count = int(record["latency_count"])
    # As thousandths of thousandths: 1 - 0.999 as a float is not quite what it should be.
    told = [(ms, share) for share, ms in record["latency_curve"] if round((1 - share) * 1e6) * count >= 1_000_000]
    points = [(ms, 1e6 / round((1 - share) * 1e6), share) for ms, share in told]
    return [*points, (record["latency_max_ms"], float(count), 1.0)]


def epochs(groups: Sequence[Group]) -> Section:
    """Waiting and computing, along the epochs of the trainings."""
    title = "Waiting and computing along an epoch"
    found = [
        one
        for one in of_tests(groups, "test_training", "test_accelerator")
        if any("course" in told for told in one.latest.get("epochs", ()))
    ]
    if not found:
        return Section("epochs", title, missing="No training was recorded. Run: pytest bench/ -k training")
    lead = (
        "Of the latest run: the time of a batch, in the mean over each slice of an epoch. The first wait of an epoch "
        "has the start of the loader in it."
    )
    return Section("epochs", title, [lead], [_epochs(one) for one in found])


def _epochs(one: Group) -> Chart:
    starts, middles, widths, waiting, computing, rows = [0], [], [], [], [], []
    for told in one.latest["epochs"]:
        course = told.get("course", {"batches": [], "waiting_s": [], "computing_s": []})
        at = starts[-1]
        for batches, wait_s, compute_s in zip(
            course["batches"], course["waiting_s"], course["computing_s"], strict=True
        ):
            middles.append(at + batches / 2)
            widths.append(batches)
            waiting.append(1e3 * wait_s / batches)
            computing.append(1e3 * compute_s / batches)
            rows.append([told["epoch"], f"{at + 1}–{at + batches}", wait_s, compute_s])
            at += batches
        starts.append(at)
    data: list[Json] = [
        {
            "type": "bar",
            "name": name,
            "x": middles,
            "y": values,
            "width": widths,
            "marker": {"color": Style(at).colour, "line": {"width": 0}, "pattern": Style(at).pattern},
            "hovertext": [f"{name}: {number(value)} ms a batch" for value in values],
            "hoverinfo": "text",
        }
        for at, name, values in ((0, "computing", computing), (1, "waiting", waiting))
    ]
    layout: Json = {
        "barmode": "stack",
        "bargap": 0,
        "xaxis": {"title": {"text": "batch"}, "range": [0, starts[-1]], "showgrid": False},
        "yaxis": {
            "title": {"text": "ms per batch"},
            **from_zero(one + other for one, other in zip(waiting, computing, strict=True)),
        },
        "shapes": [rule(x0=at, x1=at, y0=0, y1=1, yref="paper") for at in starts[1:-1]],
        "annotations": [
            words(f"epoch {told['epoch']}", x=at, y=1, xref="x", yref="paper", xanchor="left", yanchor="bottom")
            for at, told in zip(starts, one.latest["epochs"], strict=False)
        ],
    }
    share = one.latest["waiting_share"]
    table = Table(("epoch", "batches", "waiting s", "computing s"), rows)
    return Chart(f"{one.label}: {percent(share)} of the time waiting", data, layout, table)

"""What a report shows as curves: rates against workers or reads in flight, accelerators of several speeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnnbench.notes import STOPPED_BY, kept_busy, scalings
from dnnbench.report_charts import Json, Style, from_zero, line, mark, plot_text, rule, words
from dnnbench.report_data import Cell, Chart, Group, Measured, Record, Section, Table, number, of_tests, percent

KNEE_UNITS = {
    "concurrency": "reads in flight",
    "num_workers": "loader workers",
    "num_parallel_calls": "parallel calls",
    "ranks": "ranks",
}
Styles = dict[str, Style]


def knees(groups: Sequence[Group], styled: Styles) -> Section:
    """Throughput and p99 against workers, reads in flight, or ranks."""
    charts = [*_knees(groups, styled), *_fixed_reads(groups, styled), *_swept(groups, styled)]
    title = "Throughput and p99 against workers, reads in flight or ranks"
    missing = None if charts else "No curve was measured. Run: pytest bench/ -k autoscale --dnn-autoscale"
    lead = ["Hollow points are limited by the client's own processor time, and say nothing about the storage."]
    if not any("knee" in one.latest for one in groups):
        lead.append("The knee was not looked for; to find it, run: pytest bench/ -k autoscale --dnn-autoscale")
    lead += scalings([one.latest for one in groups])
    return Section("knee", title, [] if missing else lead, charts, missing)


Point = tuple[float, float, float | None, bool | None]
Curve = tuple[Group, Measured, list[Point], float | None, str]


def _knees(groups: Sequence[Group], styled: Styles) -> Iterator[Chart]:
    by_kind: dict[tuple[str, str], list[Curve]] = {}
    for one in groups:
        for measured in one.measured:
            knee = measured.record.get("knee")
            if knee is None:
                continue
            unit = next(unit for unit in KNEE_UNITS if unit in knee)
            points = [
                (point["level"], point["per_s"], point["latency_p99_ms"], point.get("client_bound"))
                for point in knee["curve"]
            ]
            ended = STOPPED_BY.get(knee["stopped_by"], knee["stopped_by"])
            by_kind.setdefault((one.what, unit), []).append((one, measured, points, knee[unit], ended))
    for (what, unit), curves in by_kind.items():
        yield _curves(f"{what} (star): rate and p99 against {KNEE_UNITS[unit]}", KNEE_UNITS[unit], curves, styled)


def _fixed_reads(groups: Sequence[Group], styled: Styles) -> Iterator[Chart]:
    """Raw reads with fixed numbers in flight: they are in every run."""
    levels: dict[tuple[str, str], dict[int, list[tuple[int, Group, Measured]]]] = {}
    for one in of_tests(groups, "test_read"):
        level = one.measured[-1].benchmark.params.get("concurrency", "")
        if level[:1] == "c" and level[1:].isdigit():
            swept = one.what.partition(f"read {level}")[2]
            for measured in one.measured:
                of_run = levels.setdefault((one.series, swept), {}).setdefault(measured.run, [])
                of_run.append((int(level[1:]), one, measured))
    curves: dict[str, list[Curve]] = {}
    for (_, swept), runs in levels.items():
        for points in runs.values():
            curves.setdefault(swept, []).extend(_by_level(points, "objects_per_s"))
    for swept, several in curves.items():
        if several:
            yield _curves(f"read{swept}: rate and p99 against reads in flight", "reads in flight", several, styled)


def _swept(groups: Sequence[Group], styled: Styles) -> Iterator[Chart]:
    """Settings that were swept in a run, such as ``num_workers=1,4,16``."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[tuple[float, Group, Measured]]]] = {}
    for one in groups:
        for key, value in one.latest["swept"].items():
            unit = key.rpartition(".")[2]
            if unit not in KNEE_UNITS or not str(value).isdigit() or "knee" in one.latest:
                continue
            what = one.what.replace(f" {unit}={value}", "", 1)
            for measured in one.measured:
                of_run = found.setdefault((what, unit), {}).setdefault((one.place, measured.run), [])
                of_run.append((int(value), one, measured))
    for (what, unit), runs in found.items():
        curves: list[Curve] = []
        for points in runs.values():
            key = "samples_per_s" if "samples_per_s" in points[0][2].record else "objects_per_s"
            curves += _by_level(points, key)
        if curves:
            yield _curves(f"{what}: rate and p99 against {KNEE_UNITS[unit]}", KNEE_UNITS[unit], curves, styled)


def _by_level(points: Sequence[tuple[float, Group, Measured]], key: str) -> list[Curve]:
    """One run's curve of these benchmarks, which are of several levels; of a single one there is none."""
    if len(points) < 2:
        return []
    points = sorted(points, key=lambda point: point[0])
    told = [_point(level, measured.record, key) for level, _, measured in points]
    return [(points[-1][1], points[-1][2], told, None, "")]


def _point(level: float, record: Record, key: str) -> Point:
    return level, float(record[key]), record.get("latency_p99_ms"), record.get("client_bound")


def _curves(title: str, unit: str, curves: Sequence[Curve], styled: Styles) -> Chart:
    data: list[Json] = []
    rows: list[list[Cell]] = []
    for one, measured, points, knee, ended in curves:
        style, last = styled[one.series], measured is one.measured[-1]
        for key, at, axis in (("per_s", 1, "y"), ("p99", 2, "y2")):
            told = [point for point in points if point[at] is not None]
            data.append(
                line(
                    [point[0] for point in told], [float(point[at] or 0) for point in told], one.series, style,
                    [
                        f"{one.series}, run {measured.run}: {number(point[0])} {unit}, {number(point[1])}/s, "
                        f"p99 {number(point[2])} ms{', client-bound' if point[3] else ''}"
                        for point in told
                    ],
                    mode="lines+markers", yaxis=axis, legendgroup=one.series,
                    showlegend=key == "per_s" and last, opacity=1.0 if last else 0.5,
                )
            )  # fmt: skip
            # An open marker: the client's own work limits there.
            data[-1]["marker"]["symbol"] = [f"{style.symbol}-open" if point[3] else style.symbol for point in told]
        at_knee = [point for point in points if point[0] == knee]
        if at_knee:
            data.append(
                mark(
                    [knee or 0], [at_knee[0][1]], "star-open", style, hoverinfo="skip", legendgroup=one.series,
                    opacity=1.0 if last else 0.5,
                )
            )  # fmt: skip
            data[-1]["marker"]["size"] = 20
        rows += [
            [
                one.series, measured.run, *point[:3], "client-bound" if point[3] else "",
                "knee" if point[0] == knee else "", ended,
            ]
            for point in points
        ]  # fmt: skip
    told_of = [point for _, _, points, _, _ in curves for point in points]
    levels = sorted({point[0] for point in told_of})
    layout: Json = {
        "xaxis": {
            "type": "log", "title": {"text": unit}, "tickmode": "array", "tickvals": levels,
            "ticktext": [f"{level:,.0f}" for level in levels], "anchor": "y2",
        },
        "yaxis": {**from_zero(point[1] for point in told_of), "title": {"text": "per second"}, "domain": [0.52, 1]},
        "yaxis2": {**from_zero(point[2] or 0 for point in told_of), "title": {"text": "p99, ms"}, "domain": [0, 0.44]},
    }  # fmt: skip
    header = ("storage and client", "run", unit, "per second", "p99 ms", "", "", "ended because")
    return Chart(title, data, layout, Table(header, rows), 460)


def accelerators(groups: Sequence[Group], styled: Styles) -> Section:
    """How busy accelerators of several speeds are kept."""
    title = "Accelerator utilization (AU) against accelerator speed"
    found = [one for one in groups if "trials" in one.latest.get("accelerator", {})]
    if not found:
        missing = "No accelerator was emulated. Run: pytest bench/ -k accelerator"
        return Section("accelerator", title, missing=missing)
    leads = [f"{one.place}, {one.what}: {kept_busy(one.latest)}" for one in found]
    whats = list(dict.fromkeys(one.what for one in found))
    charts = [_accelerator(what, [one for one in found if one.what == what], styled) for what in whats]
    return Section("accelerator", title, leads, charts)


def _accelerator(what: str, several: Sequence[Group], styled: Styles) -> Chart:
    data: list[Json] = []
    rows: list[list[Cell]] = []
    targets: set[float] = set()
    for one in several:
        for measured in one.measured:
            told, style, last = measured.record["accelerator"], styled[one.series], measured is one.measured[-1]
            samples = told["samples_per_s"] * told["batch_compute_ms"]
            tried = sorted((samples / trial["batch_compute_ms"], trial["utilization"]) for trial in told["trials"])
            chosen = (told["samples_per_s"], told["utilization"])
            targets.add(float(told["target"]))
            hover = [f"{one.series}: {number(rate)} samples/s, AU {percent(busy)}" for rate, busy in tried]
            data.append(
                line(
                    [rate for rate, _ in tried], [busy for _, busy in tried], one.series, style, hover,
                    mode="lines+markers", legendgroup=one.series, showlegend=last, opacity=1.0 if last else 0.5,
                )
            )  # fmt: skip
            data.append(
                mark(
                    [chosen[0]], [chosen[1]], f"{style.symbol}-open", style, hoverinfo="text", legendgroup=one.series,
                    opacity=1.0 if last else 0.5,
                    hovertext=[plot_text(f"{one.series}, timed: {number(chosen[0])}/s, AU {percent(chosen[1])}")],
                )
            )  # fmt: skip
            data[-1]["marker"]["size"] = 17
            rows += [[one.series, measured.run, "trial", rate, percent(busy)] for rate, busy in tried]
            rows.append([one.series, measured.run, "timed", chosen[0], percent(chosen[1])])
    rates = [rate for one in data for rate in one["x"]]
    layout: Json = {
        "xaxis": {**from_zero(rates), "title": {"text": "accelerator speed, samples/s"}},
        "yaxis": {"title": {"text": "AU"}, "range": [0, 1.05], "tickformat": ".0%"},
        "shapes": [rule(x0=0, x1=1, xref="paper", y0=target, y1=target) for target in targets],
        "annotations": [
            words(f"target {target:.0%}", x=0, xref="paper", xanchor="left", y=target, yanchor="bottom")
            for target in targets
        ],
    }
    header = ("storage and client", "run", "", "samples/s", "AU")
    return Chart(
        f"{what}: how fast an accelerator is kept busy (ring: the one timed)", data, layout, Table(header, rows)
    )

"""What a report shows of runs: the comparison with a baseline, every benchmark, warnings, provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dnnbench.notes import counted_by, slowest_and_fastest, verdict_of, warnings
from dnnbench.report_charts import Json, Style, height_of, log_ticks, mark, plot_text, rule, tick_text
from dnnbench.report_data import Cell, Chart, Group, Section, Table, number, ranks_of
from dnnbench.results import Result

if TYPE_CHECKING:
    from dnnbench.compare import Compared, Comparison


# A verdict's order, marker and colour.
VERDICTS = {
    "slower": ("triangle-left", Style(1)),
    "faster": ("star", Style(2)),
    "not enough data": ("x-open", Style(7)),
    "same": ("circle", Style(0)),
}
SCALES = {
    "ratio": ("ratio (1: same)", 1.0),
    "difference": ("difference (0: same)", 0.0),
}
FAR = 3
COMPARE_TITLE = "Comparison with a baseline"


def comparison(compared: Compared | None) -> Section:
    """The intervals of each metric."""
    if compared is None:
        missing = "No baseline was given. Run: python -m dnnbench report OUT.json… --baseline FILE…"
        return Section("comparison", COMPARE_TITLE, missing=missing)
    leads: list[str | tuple[str, str]] = [(compared.sentence, ""), *compared.problems, *compared.notes]
    charts = [
        _intervals(scale, [one for one in compared.comparisons if one.scale == scale])
        for scale in SCALES
        if any(one.scale == scale for one in compared.comparisons)
    ]
    nothing = None if charts else "There is nothing that both sides have."
    return Section("comparison", COMPARE_TITLE, leads, charts, nothing)


def _intervals(scale: str, found: Sequence[Comparison]) -> Chart:
    order = list(VERDICTS)
    several = sorted(found, key=lambda one: order.index(one.verdict) if one.verdict in order else len(order))
    axis, same = SCALES[scale]
    data: list[Json] = []
    for verdict, (symbol, style) in VERDICTS.items():
        here = [(place, one) for place, one in enumerate(several) if one.verdict == verdict]
        known = [(place, one, one.estimate) for place, one in here if one.estimate is not None]
        if not known:
            continue
        # Without an interval there is an estimate alone.
        highs = [0.0 if one.high is None else one.high - estimate for _, one, estimate in known]
        lows = [0.0 if one.low is None else estimate - one.low for _, one, estimate in known]
        data.append(
            mark(
                [estimate for *_, estimate in known],
                [place for place, *_ in known],
                symbol,
                style,
                name=verdict,
                showlegend=True,
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": highs,
                    "arrayminus": lows,
                    "color": style.colour,
                    "thickness": 2,
                    "width": 5,
                },
                hovertext=[plot_text(f"{one.benchmark}, {one.metric}: {one.verdict}", None) for _, one, _ in known],
                hoverinfo="text",
            )
        )
    shown = [value for one in several for value in (one.estimate, one.low, one.high) if value is not None]
    # Of a narrow range, Plotly's own ticks are the better ones.
    ticks = log_ticks(shown) if scale == "ratio" and shown and max(shown) > FAR * min(shown) else {}
    unknown = [place for place, one in enumerate(several) if one.estimate is None]
    if unknown:
        data.append(
            mark([same] * len(unknown), unknown, "circle", Style(0), mode="text", text=["no estimate"] * len(unknown))
        )
    layout: Json = {
        "xaxis": {"type": "log" if scale == "ratio" else "linear", "title": {"text": axis}, **ticks},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(several))),
            "ticktext": [
                tick_text(_short(one.benchmark), f"{one.metric} {'↑' if one.higher_is_better else '↓'}")
                for one in several
            ],
            "range": [len(several) - 0.5, -0.5],
            "showgrid": False,
        },
        "shapes": [rule(x0=same, x1=same, y0=0, y1=1, yref="paper")],
    }
    rows: list[list[Cell]] = [
        [
            one.benchmark, one.metric, one.unit, one.estimate, one.low, one.high, one.smallest, one.verdict,
            one.more_runs, len(one.baseline), len(one.candidate),
        ]
        for one in several
    ]  # fmt: skip
    header = (
        "benchmark", "metric", "unit", scale, "low", "high", "smallest effect to be seen", "verdict",
        "more runs needed", "baseline runs", "candidate runs",
    )  # fmt: skip
    title = {"ratio": "Rates and latencies, candidate over baseline", "difference": "Shares, candidate minus baseline"}[
        scale
    ]
    return Chart(
        f"{title}, with intervals (↑: more is better, ↓: less is)",
        data,
        layout,
        Table(header, rows),
        height_of(layout["yaxis"]["ticktext"]),
    )


def _short(benchmark: str) -> str:
    return benchmark.rpartition("::")[2]


def benchmarks(groups: Sequence[Group], runs: int) -> Section:
    """Every benchmark of every run, for a table that can be sorted and filtered."""
    header = (
        "what", "storage", "client", *(["run"] if runs > 1 else []), "cache", "objects/s", "samples/s", "MiB/s",
        "p50 ms", "p99 ms", "waiting", "retries", "errors", "requests/sample", "cost/million samples", "remarks",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for one in groups:
        for measured in one.measured:
            record = measured.record
            rows.append(
                [
                    one.what, _storage(one), str(record["client"]), *([measured.run] if runs > 1 else []),
                    str(record["cache"]), record["objects_per_s"], record.get("samples_per_s"), record.get("mib_per_s"),
                    record.get("latency_p50_ms"), record.get("latency_p99_ms"), record.get("waiting_share"),
                    record["retries"], record["errors"], _requests(record), _of_million(record),
                    ", ".join(_remarks(record)),
                ]
            )  # fmt: skip
    leads = ["A header sorts by its column, and once more the other way round.", *_prices(groups)]
    return Section("benchmarks", "Every benchmark", leads, tables=[("benchmarks", Table(header, rows))])


def _requests(record: Any) -> str | None:
    """Requests per sample by verb; None in the records of earlier versions."""
    told, unit = record.get("requests_per_sample"), counted_by(record)
    if not told:
        return None
    return ", ".join(f"{number(count)} {verb}" for verb, count in told.items()) + (
        "" if unit == "sample" else f" for each {unit}"
    )


def _of_million(record: Any) -> float | None:
    cost: float | None = (record.get("cost") or {}).get("per_million_samples")
    # Of shards and large objects it is that of a million of these, which stands beside that of samples for nothing.
    return cost if counted_by(record) == "sample" else None


def _prices(groups: Sequence[Group]) -> list[str]:
    """At what prices the costs are, a line for each table of them."""
    costs = [measured.record["cost"] for one in groups for measured in one.measured if measured.record.get("cost")]
    told = [(str(one["currency"]), str(one["prices_source"]), str(one["prices_date"])) for one in costs]
    return [
        f"Costs are in {currency}, of the requests that were measured, at these prices: {source} ({date})."
        for currency, source, date in dict.fromkeys(told)
    ]


def _storage(one: Group) -> str:
    return f"{one.series.partition(' · ')[0]}{f' ({one.setup})' if one.setup else ''}"


def _remarks(record: Any) -> list[str]:
    found = [ranks_of(record)] if "ranks" in record else []
    found += [slowest_and_fastest(record)] if record.get("ranks", {}).get("count", 1) > 1 else []
    found += [f"limit: {verdict_of(record)['limit']}"] if "ladder" in record else []
    found += ["client-bound"] if record.get("client_bound") or verdict_of(record).get("client_bound") else []
    found += (
        [f"disturbed by {' and '.join(record.get('disturbed_by') or ['something'])}"] if record["disturbed"] else []
    )
    found += [f"{record['repeats']} rounds repeated"] if record.get("repeats") else []
    found += ["server cache"] if record.get("server_cache") else []
    if record.get("cache_asked") and record["cache"] != record["cache_asked"] and "mib_per_s" in record:
        found.append(f"not {record['cache_asked']}")
    return found


def warned(results: Sequence[Result]) -> Section:
    """What may spoil the figures, each line once, with the runs that it is of."""
    found: dict[str, list[int]] = {}
    for number_, result in enumerate(results, start=1):
        for text in _warnings(result):
            found.setdefault(text, []).append(number_)
    if len(results) > 1:
        for text in _unlike(results):
            found.setdefault(text, [])
    lines = [
        text if len(results) == 1 or not runs else f"{text} ({_runs(runs, len(results))})"
        for text, runs in found.items()
    ]
    missing = None if lines else "None: nothing is known that would spoil a figure."
    return Section("warnings", "Warnings", lines, missing=missing)


def _runs(runs: Sequence[int], count: int) -> str:
    if len(runs) == count:
        return "every run"
    return ("run " if len(runs) == 1 else "runs ") + ", ".join(map(str, runs))


def _warnings(result: Result) -> list[str]:
    figures = [one.record for one in result.benchmarks]
    about, found = result.about, []
    if not about.get("complete"):
        found.append("incomplete: the run was interrupted, or benchmarks failed; the figures are those of the others")
    found += [f"failed: {name}" for name in about.get("failed", ())]
    found += [f"skipped: {name}" for name in about.get("skipped", ())]
    errors = sum(one["errors"] for one in figures)
    found += [f"errors: {errors} operations failed"] if errors else []
    return found + list(warnings(figures, about.get("embedded_server")))


def _unlike(results: Sequence[Result]) -> list[str]:
    """In what the machines and versions of the runs differ."""
    first, found = results[0].machine, set()
    for result in results[1:]:
        keys = first.keys() | result.machine.keys()
        found |= {key for key in keys if first.get(key) != result.machine.get(key) and not key.startswith("load_")}
    return [f"the runs are of different machines or versions, in: {', '.join(sorted(found))}"] if found else []


def provenance(results: Sequence[Result]) -> Section:
    """Where the figures come from, run by run."""
    tables = [(f"Run {at}", _origin(result)) for at, result in enumerate(results, start=1)]
    return Section("provenance", "Where the figures come from", tables=tables)


def _origin(result: Result) -> Table:
    about, machine = result.about, result.machine
    runs = about["runs"]
    records = [one.record for one in result.benchmarks]
    rows: list[list[Cell]] = [
        ["file", result.path.name],
        ["begun", str(runs[0]["started_utc"])],
        ["ended", str(runs[-1].get("ended_utc", "–"))],
        ["benchmarks", len(records)],
        ["complete", "yes" if about.get("complete") else "no"],
        ["local servers", _server(about)],
        ["data (catalog)", "; ".join(sorted({_catalog(one) for one in records}))],
        ["configuration", ", ".join(str(one["hash"]) for one in about["configuration"])],
    ]
    rows += [[key.replace("_", " "), _flat(value)] for key, value in machine.items() if key not in ("packages", "gpu")]
    gpu = machine.get("gpu")
    rows.append(["GPU", ", ".join(map(str, gpu)) if gpu else "unknown" if gpu is None else "none"])
    rows.append(["packages", ", ".join(f"{name} {version}" for name, version in machine["packages"].items())])
    places = {f"settings of {one['storage']}, {one['client']}": _flat(one["settings"]) for one in records}
    rows += [[name, settings] for name, settings in places.items()]
    resolved = [one.get("resolved") for one in about["configuration"]]
    rows.append(
        ["resolved configuration", json.dumps(resolved[0] if len(resolved) == 1 else resolved, ensure_ascii=False)]
    )
    return Table(("", ""), rows)


def _server(about: Any) -> str:
    server = about.get("embedded_server")
    return f"{server['kind']} {server['version']}" if server else "none"


def _catalog(record: Any) -> str:
    catalog = record["catalog"]
    size = f"{catalog['objects']:,} objects, {number(catalog['bytes'] / 1024**2)} MiB"
    return f"{catalog['part']}: {size}, {catalog['hash']}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_flat(one)}" for key, one in value.items())
    return "–" if value is None else str(value)

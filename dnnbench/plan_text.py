"""What `dnnbench.plan` found, for a terminal, as Markdown, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dnnbench.compare_text import escaped
from dnnbench.outputs import finite
from dnnbench.plan import Limit, Plan, Plans
from dnnbench.plan_model import PROCESSORS, STORAGE, WAITING
from dnnbench.report_data import visible

LIMITED_BY = {
    WAITING: "waiting: more readers would give more",
    PROCESSORS: "the processors",
    STORAGE: "the storage, or the network to it",
}


def as_text(plans: Plans) -> str:
    """The plans one below the other, each with its tables in columns."""
    lines = []
    for one in plans.plans:
        lines += [visible(f"{one.benchmark}: {_asked(one)}"), ""]
        for title, rows in _tables(one):
            lines += [title, *(f"  {line}" for line in _columns(rows)), ""]
        lines += [visible(line) for line in _lines(one)]
        lines.append("")
    lines += [visible(f"no plan: {why}") for why in plans.refused]
    return "\n".join(lines).rstrip()


def as_markdown(plans: Plans) -> str:
    """The same for a page or a pull request."""
    lines = []
    for one in plans.plans:
        lines += [f"### {escaped(one.benchmark)}", "", escaped(_asked(one)), ""]
        for title, (header, *rows) in _tables(one):
            lines += [f"**{escaped(title)}**", "", _row(header), f"|{'---|' * len(header)}", *map(_row, rows), ""]
        lines += [f"- {escaped(line)}" for line in _lines(one)]
        lines.append("")
    lines += [f"- no plan: {escaped(why)}" for why in plans.refused]
    return "\n".join(lines).rstrip()


def as_json(plans: Plans) -> str:
    """All of it, for a program: `dnnbench.plan.Plan` as it is, a limit's ``used`` with it."""
    told = [_json_of(one) for one in plans.plans]
    return json.dumps(finite({"plans": told, "refused": list(plans.refused)}), indent=2)


FORMATS: dict[str, Callable[[Plans], str]] = {"text": as_text, "markdown": as_markdown, "json": as_json}


def _json_of(one: Plan) -> dict[str, Any]:
    limits = [asdict(limit) | {"used": limit.used} for limit in one.limits]
    return asdict(one) | {"limits": limits, "first": one.first.name}


def _asked(one: Plan) -> str:
    asked = one.cluster
    nodes = f"{asked.nodes:,} node{'s' * (asked.nodes > 1)} of {asked.accelerators_per_node}"
    return (
        f"{asked.accelerators:,} accelerators, {nodes}, {asked.samples_per_s:,.10g} samples/s each: "
        f"{asked.total_per_s:,.10g} samples/s"
    )


def _tables(one: Plan) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """(title, rows with the header first)."""
    measured, unit = one.measured, _unit(one)
    size = f"{one.bytes_per_s / one.cluster.total_per_s / 1e3:,.1f} KB a sample"
    yield (
        f"what the storage must give ({one.storage})",
        [
            ("what", "how much", "from"),
            ("requests", f"{one.gets_per_s:,.0f} {unit}", f"{measured.gets_per_sample:.3g} a sample"),
            ("bandwidth", f"{_figure(one.bytes_per_s / 1e9)} GB/s", size),
            (
                "reads at a time",
                _figure(one.reads_at_a_time),
                f"Little's law, at {_figure(one.read_s * 1e3)} ms: {one.read_told}",
            ),
        ],
    )
    workers = "loader workers" if one.what.startswith("torch") else "parallel calls"
    readers = f"{one.readers_per_node:,} a node" if one.readers_per_node else "no number is enough"
    wait_ms = f"waiting {_figure(measured.wait_elsewhere_s * 1e3)} ms and working {_figure(measured.cpu_s * 1e3)} ms"
    yield (
        f"what the clients must have ({one.client})",
        [
            ("what", "how much", "from"),
            (
                "processors",
                f"{_figure(one.cores)} in all, {_figure(one.cores_per_node)} a node",
                f"{_figure(measured.cpu_s * 1e6)} µs of client, decoding and loader a sample",
            ),
            (workers, readers, f"each {wait_ms} a sample, on {_cores(one)} processors"),
            ("network", f"{_figure(one.network_gbit_per_node)} Gbit/s a node", f"{size}, payload"),
        ],
    )
    yield (
        "known limits",
        [
            ("limit", "needed", "there is", "used", "how it is known"),
            *(_limit_row(limit) for limit in one.limits),
        ],
    )
    alone = one.prediction[0].samples_per_s
    yield (
        f"prediction on this machine ({measured.cores} processors, {measured.readers} readers a rank)",
        [
            ("ranks", "samples/s", "of one rank", "limited by"),
            *(
                (
                    str(each.ranks),
                    f"{each.samples_per_s:,.0f}",
                    f"{each.samples_per_s / alone:.2f} times",
                    LIMITED_BY[each.limited_by],
                )
                for each in one.prediction
            ),
        ],
    )


def _limit_row(limit: Limit) -> tuple[str, ...]:
    need, has = f"{_figure(limit.need)} {limit.unit}", f"{_figure(limit.has)} {limit.unit}"
    used = f"{limit.used:.0%}" if limit.used < 10 else f"{limit.used:,.0f} times"
    return limit.name, need, has, used, limit.told


def _lines(one: Plan) -> Iterator[str]:
    first = one.first
    allows = one.cluster.accelerators / first.used
    if first.used > 1:
        per_node = " a node" if first.unit.endswith("a node") else ""
        count = min(one.cluster.accelerators, one.cluster.accelerators_per_node) / first.used if per_node else allows
        yield f"first to bite: {first.name}, which are enough for {_figure(count)} accelerators{per_node}"
    else:
        yield f"none of the known limits bites; the nearest is {first.name}, at {first.used:.0%}"
    feeds = one.node_per_s / one.cluster.samples_per_s
    yield (
        f"one node like the measured machine ({one.measured.cores} processors) feeds {one.node_per_s:,.0f} samples/s "
        f"at most, all of its processors at it: {_figure(feeds)} accelerators; as it was configured it gave "
        f"{one.measured.loader_per_s:,.0f}"
    )
    yield from (f"not known: {line}" for line in one.unknown)
    yield from (f"warning: {line}" for line in one.warnings)


def _unit(one: Plan) -> str:
    return "reads/s" if one.verb == "reads" else "GET/s"


def _cores(one: Plan) -> int:
    return one.cluster.cores_per_node or one.measured.cores


def _figure(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

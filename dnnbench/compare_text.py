"""What `dnnbench.compare` found, as a table for a terminal, as Markdown for a pull request, or as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from dnnbench.compare import REGRESSION, UNUSABLE, Compared, Comparison
from dnnbench.report_data import visible

# A pull request's comment is read on one screen.
MARKDOWN_ROWS = 12
# So large a ratio is no percentage.
TIMES = 100
MARKDOWN_LINES = 6
HEADER = ("verdict", "benchmark", "metric", "baseline", "candidate", "change", "interval", "would be seen")


def as_text(compared: Compared, everything: bool = False) -> str:
    """The verdicts as a table, worst first, then what a reader must know. Without ``everything`` no "same"."""
    shown = [one for one in _worst_first(compared) if everything or _matters(one)]
    rows = [HEADER, *(_row(one) for one in shown)] if shown else []
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))] if rows else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left_out = len(compared.comparisons) - len(shown)
    if left_out:
        lines.append(f"({left_out:,} more that are the same, or that no gate needs: --all shows them)")
    rules = compared.rules
    lines += [
        *(visible(f"note: {note}") for note in compared.notes),
        *map(visible, compared.problems),
        f"{compared.sentence}; {rules.confidence:.0%} intervals, tolerance {rules.tolerance:.0%}",
    ]
    return "\n".join(lines)


def as_markdown(compared: Compared) -> str:
    """The same on at most a screen, for a comment or a job's summary."""
    sign = {UNUSABLE: "⚠️", REGRESSION: "❌"}.get(compared.exit_status, "✅")
    lines = [f"### {sign} dnnbench: {escaped(compared.sentence)}", ""]
    shown = [one for one in _worst_first(compared) if _matters(one)]
    if shown:
        lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        lines += [f"| {' | '.join(map(escaped, _row(one)))} |" for one in shown[:MARKDOWN_ROWS]]
        if len(shown) > MARKDOWN_ROWS:
            lines.append(f"\n… and {len(shown) - MARKDOWN_ROWS:,} more")
        lines.append("")
    told = [*compared.problems, *(f"note: {note}" for note in compared.notes)]
    lines += [f"- {escaped(line)}" for line in told[:MARKDOWN_LINES]]
    if len(told) > MARKDOWN_LINES:
        lines.append(f"- … and {len(told) - MARKDOWN_LINES:,} more remarks")
    rules = compared.rules
    lines.append(f"\n{rules.confidence:.0%} intervals; within {rules.tolerance:.0%} is the same.")
    return "\n".join(lines) + "\n"


def as_json(compared: Compared) -> str:
    """All of it, for a program."""
    return json.dumps(
        {
            "sentence": compared.sentence,
            "exit_status": compared.exit_status,
            "runs": compared.runs,
            "rules": asdict(compared.rules),
            "allowed": sorted(compared.allowed),
            "refused": [asdict(one) for one in compared.refused],
            "problems": compared.problems,
            "notes": compared.notes,
            "comparisons": [asdict(one) for one in compared.comparisons],
        },
        indent=2,
    )


FORMATS: dict[str, Callable[[Compared], str]] = {"text": as_text, "markdown": as_markdown, "json": as_json}


def _worst_first(compared: Compared) -> list[Comparison]:
    order = ("slower", "not enough data", "faster", "same")
    return sorted(compared.comparisons, key=lambda one: (order.index(one.verdict), not one.gates, _worse(one)))


def _worse(one: Comparison) -> float:
    """Small where the candidate is worse."""
    if one.estimate is None:
        return 0.0
    return one.estimate if one.higher_is_better else -one.estimate


def _matters(one: Comparison) -> bool:
    return one.verdict in ("slower", "faster") or (one.verdict == "not enough data" and one.gates)


def _row(one: Comparison) -> tuple[str, ...]:
    return (
        one.verdict,
        visible(one.benchmark.rpartition("::")[2]),
        one.metric,
        _value(one, one.baseline),
        _value(one, one.candidate),
        _change(one, one.estimate),
        "-" if one.low is None or one.high is None else f"{_change(one, one.low)} to {_change(one, one.high)}",
        _smallest(one),
    )


def _value(one: Comparison, values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.1%}" if one.scale == "difference" else f"{middle:,.4g} {one.unit}"


def _change(one: Comparison, amount: Any) -> str:
    if amount is None:
        return "-"
    if one.scale == "difference":
        return f"{amount * 100:+.1f} points"
    return f"{amount - 1:+.1%}" if amount < TIMES else f"{amount:.3g} times"


def _smallest(one: Comparison) -> str:
    if one.smallest is None:
        told = "-"
    else:
        told = f"{one.smallest * 100:.1f} points" if one.scale == "difference" else f"{one.smallest:.1%}"
    if one.verdict == "not enough data":
        told += f", {one.more_runs} more runs" if one.more_runs else ", more runs than 100"
    return told


def escaped(text: str) -> str:
    """As Markdown that shows these very letters: names of benchmarks hold what people have chosen."""
    escapes = {ord(letter): f"\\{letter}" for letter in "\\`*_{}[]|#~$"}
    escapes |= {ord(letter): f"&#{ord(letter)};" for letter in "<>&"}
    return " ".join(visible(text).translate(escapes).split())

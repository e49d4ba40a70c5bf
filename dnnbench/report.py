"""``python -m dnnbench report``: result files as one HTML page that opens offline.

`report_sections` and `report_runs` choose what is shown, `report_charts` knows Plotly, `report_page` HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnnbench.outputs import check_writable, write_whole
from dnnbench.report_curves import accelerators, knees
from dnnbench.report_data import Section, group
from dnnbench.report_page import page
from dnnbench.report_runs import benchmarks, comparison, provenance, warned
from dnnbench.report_sections import epochs, ladder, latencies, styles, throughput
from dnnbench.results import Result, ResultError, find_files, read_result

if TYPE_CHECKING:
    from dnnbench.compare import Compared


def write_report(files: Sequence[str], baseline: Sequence[str], output: Path) -> str:
    """Writes the report of result files, incomplete ones too, and says what it has written.

    Raises `ResultError` or `ConfigError`.
    """
    check_writable("-o", output)
    paths = find_files(files)
    results = [read_result(path, partial=True) for path in paths]
    compared = None
    if baseline:
        from dnnbench.baseline import FOLDER, runs_of
        from dnnbench.compare import compare_files

        compared = compare_files(runs_of(baseline, Path(FOLDER)), paths)
    data = build(results, compared)
    try:
        write_whole(output, data)
    except OSError as exc:
        raise ResultError(f"-o: {output}: cannot be written ({exc.strerror or exc})") from exc
    runs = "1 run" if len(results) == 1 else f"{len(results)} runs"
    return f"{output}: the report of {runs}, {len(data):,} bytes; open it in a browser"


def build(results: Sequence[Result], compared: Compared | None = None) -> bytes:
    """The page of these runs, and of their comparison with a baseline where there is one. Raises `ResultError`."""
    results = sorted(results, key=lambda result: result.started_utc)
    try:
        sections = list(sections_of(results, compared))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as exc:
        names = ", ".join(str(result.path) for result in results)
        raise ResultError(f"{names}: a record is damaged: {type(exc).__name__} {exc}") from exc
    labels = sorted({str(one.record["storage"]) for result in results for one in result.benchmarks})
    count = sum(len(result.benchmarks) for result in results)
    runs = "One run" if len(results) == 1 else f"{len(results)} runs"
    begun = " to ".join(dict.fromkeys([results[0].started_utc[:16], results[-1].started_utc[:16]])).replace("T", " ")
    warned_of = next(section for section in sections if section.id == "warnings").lead
    warnings = "no warnings" if not warned_of else f"{len(warned_of)} warning{'s' * (len(warned_of) > 1)} (see below)"
    subtitle = f"{runs}, {begun} UTC; {count} benchmarks; {warnings}"
    return page(f"dnnbench: {', '.join(labels)}", subtitle, sections)


def sections_of(results: Sequence[Result], compared: Compared | None) -> list[Section]:
    """The parts of the report, in order."""
    groups = group(results)
    styled = styles(groups)
    return [
        ladder(groups),
        throughput(groups, styled),
        latencies(groups, styled),
        epochs(groups),
        knees(groups, styled),
        accelerators(groups, styled),
        comparison(compared),
        benchmarks(groups, len(results)),
        provenance(results),
        warned(results),
    ]

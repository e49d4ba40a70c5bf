"""Pinned baselines: sets of result files under a name, in a folder that people commit or cache.

Nothing moves a baseline but who calls ``baseline add``: a run that is compared with one is never added to it, so a
regression stays one however often it is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dnnbench.comparable import counted, differences, facts
from dnnbench.compare import CompareError, allowed_kinds, figure, gate_metric
from dnnbench.outputs import write_whole
from dnnbench.results import Result, ResultError, find_files, read_result

FOLDER = "baselines"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runs_of(baseline: Sequence[str], folder: Path) -> list[Path]:
    """The result files that names of baselines, files and globs mean. Raises `ResultError`."""
    found: list[Path] = []
    for text in baseline:
        held = _files(folder / text) if _NAME.fullmatch(text) else []
        if not held and _NAME.fullmatch(text) and not Path(text).exists():
            raise ResultError(f"{text}: there is no such baseline in {folder}, and no such result file")
        found += held or find_files([text])
    return list(dict.fromkeys(found))


def add(name: str, files: Sequence[str], folder: Path, allowed: Collection[str] = ()) -> list[Path]:
    """Copies result files into a baseline; returns where the new ones lie. Raises `CompareError` or `ResultError`.

    All runs of a baseline must be of the same kind: a run that differs in what is not ``allowed`` is refused.
    """
    if not _NAME.fullmatch(name):
        raise CompareError(f'baseline: found "{name}", expected letters, digits, ".", "_" and "-"')
    place = folder / name
    held = [read_result(path) for path in _files(place)]
    new = [read_result(path) for path in find_files(files)]
    everything = [*held, *new]
    for run in everything[1:]:
        _check_alike(everything[0], run, allowed)
    added = []
    for run in new:
        content = run.path.read_bytes()
        # Named by when and what it is: the same run is in a set once, and two sets merge without a conflict.
        moment = re.sub(r"[^0-9]", "", run.started_utc)[:14]
        target = place / f"{moment}-{hashlib.sha256(content).hexdigest()[:8]}.json"
        if not target.exists():
            place.mkdir(parents=True, exist_ok=True)
            write_whole(target, content)
            added.append(target)
    return added


def _check_alike(first: Result, other: Result, allowed: Collection[str]) -> None:
    known = {benchmark.name: benchmark for benchmark in other.benchmarks}
    found = []
    for benchmark in first.benchmarks:
        if benchmark.name not in known:
            found.append(("missing", f"{benchmark.name}: not in {other.path}"))
        else:
            found += differences(facts(first, benchmark), facts(other, known[benchmark.name]))
    names = {benchmark.name for benchmark in first.benchmarks}
    found += [("missing", f"{name}: not in {first.path}") for name in known if name not in names]
    for difference in counted(found):
        if difference.kind not in allowed:
            raise CompareError(
                f"{other.path}: is not like {first.path}: {difference}; --allow {difference.kind} adds it nevertheless"
            )


def _files(place: Path) -> list[Path]:
    return sorted(place.glob("*.json")) if place.is_dir() else []


def baseline_command(options: argparse.Namespace) -> int:
    """``python -m dnnbench baseline add|list|show``."""
    folder = Path(options.dir)
    if options.action == "add":
        added = add(options.name, options.files, folder, allowed_kinds(options.allow))
        held = len(_files(folder / options.name))
        print(f"{folder / options.name}: {len(added)} added, {held} runs")
    elif options.action == "list":
        lines = list(_listed(folder))
        print("\n".join(lines) if lines else f"{folder}: there is no baseline; baseline add NAME FILE... makes one")
    else:
        files = _files(folder / options.name)
        if not files:
            raise CompareError(f'baseline: there is no "{options.name}" in {folder}; baseline list shows what there is')
        print("\n".join(_shown([read_result(path) for path in files])))
    return 0


def _listed(folder: Path) -> Iterator[str]:
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        files = _files(place)
        if files:
            runs = sorted((read_result(path) for path in files), key=lambda run: run.started_utc)
            first, last = runs[0].started_utc, runs[-1].started_utc
            when = first if first == last else f"{first} to {last}"
            yield f"{place.name}: {len(runs)} runs, {len(runs[0].benchmarks)} benchmarks, {when}"


def _shown(runs: Sequence[Result]) -> Iterator[str]:
    for run in sorted(runs, key=lambda run: run.started_utc):
        machine = run.machine
        hardware = f"{machine['cpu']}, {machine['cores']} cores"
        yield f"{run.started_utc}  {hardware}, dnnbench {machine['dnnbench']}  {run.path}"
    yield ""
    for benchmark in runs[0].benchmarks:
        metric = gate_metric(benchmark.record)
        if metric is None:
            continue
        told = [figure(b.record, metric) for run in runs for b in run.benchmarks if b.name == benchmark.name]
        found = [value for value in told if value is not None]
        if not found:
            yield f"{benchmark.name.rpartition('::')[2]}: no {metric.name}"
            continue
        spread = statistics.stdev(found) / statistics.mean(found) if len(found) > 1 else None
        spreading = "" if spread is None else f", run-to-run spread {spread:.1%}"
        yield f"{benchmark.name.rpartition('::')[2]}: {statistics.median(found):,.4g} {metric.unit}{spreading}"

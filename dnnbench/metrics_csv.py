"""The figures as a spreadsheet: one row per benchmark and epoch, appended across runs."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnbench.config import Config

# What an epoch has of its own comes from the epoch; the rest is the benchmark's.
PER_EPOCH = (
    "objects", "samples", "bytes", "wall_s", "samples_per_s", "mib_per_s", "first_batch_s", "waiting_s",
    "computing_s", "retries", "errors", "loss", "accuracy",
)  # fmt: skip
COLUMNS = (
    "time_utc", "benchmark", "what", "storage", "storage_label", "client", "swept", "ranks", "cache", "epoch",
    *PER_EPOCH, "objects_per_s", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_max_ms",
    "cpu_s_per_object", "peak_memory_mib", "client_bound", "limit", "verify_tls", "catalog_hash", "config_hash",
)  # fmt: skip


def csv_path(config: Config) -> Path | None:
    """The file that ``metrics.path`` names, or ``metrics.csv`` in the folder that it names."""
    path = config.metrics_path()
    if path is None:
        return None
    return path if path.suffix == ".csv" and not path.is_dir() else path / "metrics.csv"


def rows(name: str, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per epoch of a benchmark's ``extra_info``, or one for all of it where it has none."""
    common = {key: figures[key] for key in COLUMNS if key in figures}
    if "epochs" in figures:
        # A total in the row of one epoch would be read as that epoch's. An inference has one accuracy for all.
        kept = {"accuracy"} if "confusion" in figures else set()
        common = {key: value for key, value in common.items() if key not in PER_EPOCH or key in kept}
    # Of a run without a launcher there is none.
    common["ranks"] = figures.get("ranks", {}).get("count", "")
    common |= {
        "time_utc": figures["finished_utc"],
        "benchmark": name,
        "swept": " ".join(f"{key}={value}" for key, value in figures["swept"].items()),
        "catalog_hash": figures["catalog"]["hash"],
    }
    if "verify_tls" in figures["settings"]:
        common["verify_tls"] = figures["settings"]["verify_tls"]
    if "ladder" in figures:
        common |= {key: figures["ladder"]["verdict"][key] for key in ("limit", "client_bound")}
    parts = figures.get("epochs") or [figures]
    return [common | {key: part[key] for key in (*PER_EPOCH, "epoch") if part.get(key) is not None} for part in parts]


def missing(path: Path, new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the rows that are not in the file, by their time, benchmark and epoch."""
    key = ("time_utc", "benchmark", "epoch")
    if not path.exists():
        return list(new)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        there = {tuple(row.get(column) for column in key) for row in csv.DictReader(file)}
    return [row for row in new if tuple(str(row.get(column, "")) for column in key) not in there]


def append(path: Path, new: Sequence[Mapping[str, Any]]) -> Path | None:
    """Adds rows to a file, in one write. A file with another header is kept under another name, which is returned."""
    header = _line(COLUMNS)
    kept, cut_off = None, False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            same = file.readline() == header.encode()
            file.seek(-1, io.SEEK_END)
            cut_off = file.read() != b"\n"
        if not same:
            others = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
            kept = next(other for other in others if not other.exists())
            path.rename(kept)
    empty = not path.exists() or path.stat().st_size == 0
    # A last line without an end would take the first new row into it.
    start = header if empty else "\r\n" if cut_off else ""
    text = start + "".join(_line([row.get(column, "") for column in COLUMNS]) for row in new)
    before_bytes = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        # A disk that is full takes part of it.
        with contextlib.suppress(OSError):
            os.truncate(path, before_bytes)
        raise
    return kept


def _line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()

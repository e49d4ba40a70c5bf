"""Result files of ``pytest bench/ --benchmark-json``, read again: by `compare`, `baseline` and `report`."""

from __future__ import annotations

import datetime
import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnbench.errors import DnnbenchError
from dnnbench.metrics import SCHEMA


class ResultError(DnnbenchError):
    """A file that is no result of a whole run, or that this version cannot read."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a run: its full name in pytest, its parameters there, and its record (README, "The record")."""

    name: str
    params: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def test(self) -> str:
        """The test's name without its parameters: ``test_read``."""
        return self.name.rpartition("::")[2].partition("[")[0]

    @property
    def storage(self) -> str:
        return str(self.record["storage"])

    @property
    def client(self) -> str:
        return str(self.record["client"])


@dataclass(frozen=True)
class Result:
    """A result file. ``about`` is its key ``dnnbench``; ``started_utc`` is ISO 8601."""

    path: Path
    about: Mapping[str, Any]
    benchmarks: tuple[Benchmark, ...]

    @property
    def started_utc(self) -> str:
        return str(self.about["runs"][0]["started_utc"])

    @property
    def machine(self) -> Mapping[str, Any]:
        """Hardware and versions, as `dnnbench.provenance.describe_machine` gives them."""
        machine: Mapping[str, Any] = self.about["machine"]
        return machine


def read_result(path: Path, partial: bool = False) -> Result:
    """Reads a result file. Raises `ResultError`; for one of an incomplete run unless ``partial``."""
    try:
        data = json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as exc:
        raise ResultError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        raise ResultError(f"{path}: is not JSON ({str(exc).splitlines()[0]})") from exc
    return result_of(data, path, partial)


def result_of(data: Any, path: Path, partial: bool = False) -> Result:
    """The result in a file's JSON. Raises `ResultError`, which begins with ``path``."""
    about = data.get("dnnbench") if isinstance(data, dict) else None
    if not isinstance(about, dict) or not isinstance(data.get("benchmarks"), list):
        raise ResultError(f"{path}: is no result of dnnbench; make one with pytest bench/ --benchmark-json=FILE")
    if about.get("schema") != SCHEMA:
        raise ResultError(
            f"{path}: has schema {about.get('schema')!r}, this version of dnnbench reads {SCHEMA}; measure again"
        )
    if not partial and not about.get("complete"):
        raise ResultError(f"{path}: is of a run that was not complete; go on from it with --dnn-resume")
    try:
        benchmarks = tuple(_benchmarks(data["benchmarks"]))
        result = Result(path, about, benchmarks)
        # What every reader asks of it.
        _ = result.machine["packages"].items(), about["configuration"][0]["hash"], about["runs"][-1]["ended_utc"]
        datetime.datetime.fromisoformat(result.started_utc)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as exc:
        raise ResultError(f"{path}: is damaged: {type(exc).__name__} {exc}") from exc
    if not benchmarks:
        raise ResultError(f"{path}: holds no benchmark")
    return result


def _benchmarks(entries: Sequence[Any]) -> Iterator[Benchmark]:
    for entry in entries:
        record = entry["extra_info"]
        # Other people's benchmarks may stand in the same file.
        if "schema" in record:
            benchmark = Benchmark(str(entry["fullname"]), dict(entry["params"] or {}), record)
            _ = benchmark.storage, benchmark.client, record["catalog"]["hash"], record["settings"].items()
            _ = record["config_hash"]
            yield benchmark


def _no_number(text: str) -> float:
    # Python writes them, and they are no JSON.
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[text]


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that names and globs (``runs/*.json``) mean, each once, in order. Raises `ResultError`."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(path.glob("*.json"))
        else:
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not matches:
            raise ResultError(f"{pattern}: there is no such result file")
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())

"""The journal of a run: a line for each benchmark as soon as it has passed, so that a run that was killed can go on.

Each line is a JSON object with one key: ``run`` says which run the lines below it are of, ``benchmark`` holds all that
the result file has of one, and ``withdrawn`` names one that failed after all. Whose run it is, pytest's side knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnbench.errors import DnnbenchError

MOST_NAMED = 3


class JournalError(DnnbenchError):
    """A journal cannot be gone on from, or is another run's."""


@dataclass
class Journalled:
    """What a journal holds. ``benchmarks`` and, beside them, ``run_of`` (a position in ``runs``) are by full name."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    run_of: dict[str, int] = field(default_factory=dict)

    def of_run(self, number: int) -> list[dict[str, Any]]:
        """The records (``extra_info``) of the benchmarks of a run."""
        return [one["extra_info"] for name, one in self.benchmarks.items() if self.run_of[name] == number]

    def take(self, entry: Mapping[str, Any]) -> None:
        """Adds what a line says."""
        if "run" in entry:
            self.runs.append(entry["run"])
        elif "benchmark" in entry:
            name = entry["benchmark"]["fullname"]
            self.benchmarks[name], self.run_of[name] = entry["benchmark"], len(self.runs) - 1
        else:
            self.benchmarks.pop(entry["withdrawn"], None)


class Journal:
    """The journal at a path, made if need be. Raises `JournalError` where another process has it, and `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._end = os.fstat(self._file).st_size
        try:
            # Of the process, so that a worker which outlives a killed run does not hold it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise JournalError(f"{path}: another run is writing it; give this one another --benchmark-json") from None
        except OSError:
            """Not every file system has locks."""

    def read(self) -> Journalled:
        """What is in it; a last line that a kill has torn is none. Raises `JournalError` for any other damage."""
        lines = os.pread(self._file, os.fstat(self._file).st_size, 0).split(b"\n")
        # What stands behind the last line break was not written to its end.
        lines.pop()
        found, self._end = Journalled(), 0
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1 and "run" not in entry:
                    raise JournalError(f"{self.path}: is no journal of a run")
                found.take(entry)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                if number == len(lines):
                    break
                raise JournalError(f"{self.path}:{number}: is damaged; measure anew without --dnn-resume") from exc
            self._end += len(line) + 1
        return found

    def begin(self, run: Mapping[str, Any]) -> None:
        """Begins the lines of a run, behind the last whole line."""
        os.ftruncate(self._file, self._end)
        self._append({"run": run})
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            # The file's name is to survive as well as what is in it.
            os.fsync(folder)
        finally:
            os.close(folder)

    def add(self, benchmark: Mapping[str, Any]) -> None:
        """Adds one that has passed, as pytest-benchmark describes it. It is on the disk when this returns."""
        self._append({"benchmark": benchmark})

    def withdraw(self, fullname: str) -> None:
        """Takes one back that was added."""
        self._append({"withdrawn": fullname})

    def set_aside(self) -> Path:
        """Keeps it under a free name, which is returned, and closes it."""
        others = (self.path.with_name(f"{self.path.name}.{number}") for number in itertools.count(1))
        kept = next(other for other in others if not other.exists())
        self.path.rename(kept)
        self.close()
        return kept

    def remove(self) -> None:
        """Removes and closes it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._file)

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            # A disk that is full takes part of a line; the next one may fit.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two descriptions differ, by the dotted names of what does; "" where they do not."""
    before, after = dict(_flat(then)), dict(_flat(now))
    told = [
        f"{name} was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    more = f" (and {len(told) - MOST_NAMED} more)" if len(told) > MOST_NAMED else ""
    return "; ".join(told[:MOST_NAMED]) + more


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"

"""Watches processes while a benchmark runs: peak memory of this process and its loader workers."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection
from types import TracebackType

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
INTERVAL_S = 0.5


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


class PeakMemory:
    """The largest sum of proportional set sizes (PSS) of this process and its children, sampled.

    PSS shares out pages that processes have in common, so forked workers are not counted as
    copies. ``without`` are processes that are not the client's, such as local servers.
    ``peak_bytes`` is None where the kernel does not tell; ``cpu_ns`` is what the watching itself
    cost, to be taken off the client's CPU time.
    """

    def __init__(self, without: Collection[int] = ()) -> None:
        self._without = frozenset(without)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="dnnbench-memory")
        self.peak_bytes: int | None = None
        self.cpu_ns = 0

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Takes one sample now."""
        sizes = [_pss_bytes(pid) for pid in self._pids()]
        known = [size for size in sizes if size is not None]
        if known:
            self.peak_bytes = max(self.peak_bytes or 0, sum(known))

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.sample()
            self.cpu_ns = time.thread_time_ns()

    def _pids(self) -> list[int]:
        import psutil

        children = psutil.Process().children(recursive=True)
        return [os.getpid(), *(child.pid for child in children if child.pid not in self._without)]


def _pss_bytes(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = _PSS.search(file.read())
    except OSError:
        # The process has ended, or the kernel keeps no such account.
        return None
    return int(found[1]) * 1024 if found else None

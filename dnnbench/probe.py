"""Watches processes while a benchmark runs: its peak memory, and the processor time that others took from it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
INTERVAL_S = 0.5
# No more than this of a processor goes into watching: each of many ranks watches, too.
WATCHING_SHARE = 0.004


@dataclass
class Here:
    """What of this machine is ours: processes with all that descends from them, and the processors they may use.

    Empty: this process alone, and its own. Of several ranks, all of those on this host, whatever has launched them.
    """

    processes: frozenset[int] = frozenset()
    cores: frozenset[int] = frozenset()


HERE = Here()


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def descendants(root: int | None = None) -> list[int]:
    """The living processes that descend from this one, or from ``root``.

    Asked of the kernel process by process: psutil looks at every process of the machine, and takes
    the interpreter from the benchmark the longer, the more there are.
    """
    found: list[int] = []
    pending = [os.getpid() if root is None else root]
    while pending:
        children = _children(pending.pop())
        found += children
        pending += children
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                children += map(int, file.read().split())
    except FileNotFoundError:
        # The process, or one of its threads, has ended; or the kernel was built without this account.
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return _children_by_psutil(pid)
    except OSError:
        pass
    return children


def _children_by_psutil(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


class PeakMemory:
    """The largest sum of proportional set sizes (PSS) of this process and its children, sampled.

    PSS shares out pages that processes have in common, so forked workers are not counted as
    copies. ``without`` are processes that are not the client's, such as local servers.
    ``peak_bytes`` and ``start_bytes``, the first sample, are None where the kernel does not tell;
    ``cpu_ns`` is what the watching itself cost, to be taken off the client's CPU time; ``all_cpu_ns`` what all of them
    in this process have cost.
    """

    all_cpu_ns = 0

    def __init__(self, without: Collection[int] = ()) -> None:
        self.without = frozenset(without)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="dnnbench-memory")
        self.peak_bytes: int | None = None
        self.start_bytes: int | None = None
        self.cpu_ns = 0

    def __enter__(self) -> PeakMemory:
        self.sample()
        self.start_bytes = self.peak_bytes
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
        wait_s = INTERVAL_S
        while not self._stop.wait(wait_s):
            self.sample()
            cpu_ns = time.thread_time_ns()
            # The kernel adds up each process's pages: of many workers that takes as long as some reads.
            wait_s = max(INTERVAL_S, (cpu_ns - self.cpu_ns) / 1e9 / WATCHING_SHARE)
            PeakMemory.all_cpu_ns += cpu_ns - self.cpu_ns
            self.cpu_ns = cpu_ns

    def _pids(self) -> list[int]:
        return [os.getpid(), *(pid for pid in descendants() if pid not in self.without)]


def own_cpu_ns() -> int:
    """Processor time of this process, without what watching its memory has cost."""
    return time.process_time_ns() - PeakMemory.all_cpu_ns


class OtherWork:
    """Processor time that processes which are not ours took from the cores that this one may use.

    Ours are this process and everything that descends from it, local servers included; of ranks, all of this host's.
    Others are what the kernel counts as user, system or stolen time beyond that; interrupts are left out,
    since our own network traffic causes them too. The kernel counts in ticks of about 10 ms.
    """

    def __init__(self) -> None:
        self.cpu_ns = 0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Counts from now on."""
        self._since = cores_busy_s(), _own_cpu_s()

    def stop(self) -> None:
        """Adds what others took since `start` to ``cpu_ns``."""
        if self._since is not None:
            busy_s, own_s = cores_busy_s() - self._since[0], _own_cpu_s() - self._since[1]
            self.cpu_ns += max(round((busy_s - own_s) * 1e9), 0)
            self._since = None


def cores_busy_s() -> float:
    """Processor seconds that all processes together have had of the cores that ours may use, in ticks of 10 ms."""
    return float(sum(cpu.user + cpu.nice + cpu.system + getattr(cpu, "steal", 0.0) for cpu in our_cores_times()))


def our_cores_times() -> list[Any]:
    """What the kernel counts of each processor that ours may use, as psutil has it."""
    import psutil

    cpus = psutil.cpu_times(percpu=True)
    return [cpus[number] for number in HERE.cores or os.sched_getaffinity(0) if number < len(cpus)]


def _own_cpu_s() -> float:
    """What our processes, their living descendants and those that they have waited for have used so far."""
    import psutil

    total_s = 0.0
    roots = HERE.processes or {os.getpid()}
    for pid in {*roots, *(one for root in roots for one in descendants(root))}:
        # A process may end while it is looked at; then its parent counts it.
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def _pss_bytes(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            found = _PSS.search(file.read())
    except OSError:
        # The process has ended, or the kernel keeps no such account.
        return None
    return int(found[1]) * 1024 if found else None

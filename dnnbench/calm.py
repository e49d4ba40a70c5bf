"""How calm the machine is while a round runs: looked at before and after it, never during it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from dnnbench.metrics_rounds import NS, Machine
from dnnbench.probe import OtherWork, our_cores_times

_PRESSURE = re.compile(r"^some .*total=(\d+)", re.MULTILINE)
_SWAPPED = re.compile(r"^pswp(in|out) (\d+)$", re.MULTILINE)


class Span:
    """What counters that only grow have grown by from each `start` to the `stop` after it, in all.

    One that was missing at any of them, because the kernel does not keep or does not tell it, is not in ``grown``.
    """

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read
        self._since: Mapping[str, float] | None = None
        self._total: dict[str, float] = {}
        self._missing: set[str] = set()

    def start(self) -> None:
        """Counts from now on."""
        self._since = self._read()

    def stop(self) -> None:
        """Adds what was counted since `start`."""
        if self._since is None:
            return
        since, self._since = self._since, None
        until = self._read()
        self._missing |= since.keys() ^ until.keys()
        for name in since.keys() & until.keys():
            self._total[name] = self._total.get(name, 0) + max(until[name] - since[name], 0)

    @property
    def grown(self) -> dict[str, float]:
        """The growth of each counter."""
        return {name: value for name, value in self._total.items() if name not in self._missing}


class MachineWatch:
    """Watches the machine between `start` and `stop`, which may come several times."""

    def __init__(self) -> None:
        self._others, self._counted = OtherWork(), Span(_counters)

    def start(self) -> None:
        """Counts from now on."""
        self._counted.start()
        self._others.start()

    def stop(self) -> None:
        """Counts no further."""
        self._others.stop()
        self._counted.stop()

    @property
    def others_cpu_ns(self) -> int:
        """Processor time that processes which are not ours took, stolen time included."""
        return self._others.cpu_ns

    def seen(self) -> Machine:
        """What was counted, and how the machine is now."""
        grown = self._counted.grown
        mhz, mhz_max = _clock_mhz()
        swapped = {way: grown.get(f"swapped_{way}_bytes") for way in ("in", "out")}
        return Machine(
            load_average_1min=os.getloadavg()[0],
            cpu_mhz=mhz,
            cpu_mhz_max=mhz_max,
            stolen_ns=round(grown["stolen_s"] * NS),
            swapped_in_bytes=None if swapped["in"] is None else round(swapped["in"]),
            swapped_out_bytes=None if swapped["out"] is None else round(swapped["out"]),
            stalled_ns={
                name: round(grown[f"stalled_{name}_us"] * 1000)
                for name in ("cpu", "io", "memory")
                if f"stalled_{name}_us" in grown
            },
        )


def _counters() -> dict[str, float]:
    found: dict[str, float] = {"stolen_s": sum(getattr(cpu, "steal", 0.0) for cpu in our_cores_times())}
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    for way, pages in _SWAPPED.findall(_text("/proc/vmstat")):
        found[f"swapped_{way}_bytes"] = int(pages) * page_bytes
    for name in ("cpu", "io", "memory"):
        told = _PRESSURE.search(_text(f"/proc/pressure/{name}"))
        if told:
            found[f"stalled_{name}_us"] = int(told[1])
    return found


def _clock_mhz() -> tuple[float | None, float | None]:
    """(current, highest) clock of the processors of this process, in the mean; virtual machines mostly have none."""
    now, most = [], []
    for number in os.sched_getaffinity(0):
        folder = f"/sys/devices/system/cpu/cpu{number}/cpufreq"
        with contextlib.suppress(ValueError):
            kilohertz = int(_text(f"{folder}/scaling_cur_freq")), int(_text(f"{folder}/cpuinfo_max_freq"))
            now.append(kilohertz[0] / 1000)
            most.append(kilohertz[1] / 1000)
    return (sum(now) / len(now), sum(most) / len(most)) if now else (None, None)


def _text(path: str) -> str:
    """A file of the kernel's; empty where there is none, or none for us."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""

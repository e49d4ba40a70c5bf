"""What is judged of single rounds: whether something disturbed them, whose cache they read from."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NS = 1_000_000_000
MIB = 1024 * 1024
# Other processes that took more than this share of the processors may well show in the figures. In less
# time of all cores together than this, the kernel's ticks of 10 ms cannot tell them from our own.
DISTURBED_SHARE = 0.1
TOLD_APART_NS = NS
# More than so much swapped in and out per second, and in all, is no background noise.
SWAPPED_BYTES = MIB
# A cold round fetches what it delivers, and metadata, read-ahead and whole pages on top: less than this share of it
# did not come from the storage. A warm one fetches nothing but what else a process may need of a disk.
FETCHED_SHARE = 0.9
CACHED_SHARE = 0.1
BESIDE_BYTES = MIB
# The counter of what each process fetches; all others are a whole host's.
PROCESSES = "processes"
COLD, WARM, MIXED, UNKNOWN = "cold", "warm", "mixed", "unknown"
# A first reading's median latency is so many times that of the later ones where a server caches, and so many times
# the spread of the later ones above them; fewer reads than this say nothing.
FIRST_SLOWER = 1.5
BEYOND_SPREAD = 2
LEAST_READS = 100


@dataclass
class Machine:
    """What the machine did in a round beside it. None where the kernel does not tell.

    ``stalled_ns``: for ``cpu``, ``io`` and ``memory`` the time in which some task of the machine waited for it, our
    own included.
    """

    load_average_1min: float | None = None
    cpu_mhz: float | None = None
    cpu_mhz_max: float | None = None
    stolen_ns: int = 0
    swapped_in_bytes: int | None = None
    swapped_out_bytes: int | None = None
    stalled_ns: dict[str, int] = field(default_factory=dict)

    def record(self, wall_ns: int, cores: int) -> dict[str, Any]:
        """The machine's part of a round's record."""
        return {
            "stolen_share": self.stolen_ns / (wall_ns * cores),
            "load_average_1min": self.load_average_1min,
            "cpu_mhz": self.cpu_mhz,
            "cpu_mhz_max": self.cpu_mhz_max,
            "swapped_in_bytes": self.swapped_in_bytes,
            "swapped_out_bytes": self.swapped_out_bytes,
            "pressure": {name: min(ns / wall_ns, 1.0) for name, ns in self.stalled_ns.items()},
        }


def others_share(others_cpu_ns: int, wall_ns: int, cores: int) -> float | None:
    """The share of the cores that processes which are not ours took; None where the time is too short to tell."""
    return others_cpu_ns / (wall_ns * cores) if wall_ns * cores >= TOLD_APART_NS else None


def disturbances(others_cpu_ns: int, machine: Machine, wall_ns: int, cores: int) -> list[str]:
    """What disturbed a round: ``other processes`` (stolen time included), ``swapping``."""
    found = []
    if (others_share(others_cpu_ns, wall_ns, cores) or 0.0) > DISTURBED_SHARE:
        found.append("other processes")
    swapped_bytes = (machine.swapped_in_bytes or 0) + (machine.swapped_out_bytes or 0)
    if swapped_bytes > SWAPPED_BYTES * max(wall_ns / NS, 1.0):
        found.append("swapping")
    return found


def audited_cache(cache: str, wanted_bytes: float, fetched_bytes: int | None) -> str:
    """The state that a round was read in: what was verified before it, held against what was fetched in it.

    ``wanted_bytes`` is what a cold round has to fetch at least. ``mixed``: part of it was in the page cache.
    Where no counter sees the fetches (None), what was verified stands.
    """
    if fetched_bytes is None or wanted_bytes <= 0:
        return cache
    if fetched_bytes >= FETCHED_SHARE * wanted_bytes:
        beside = fetched_bytes <= CACHED_SHARE * wanted_bytes + BESIDE_BYTES
        return UNKNOWN if cache == WARM and not beside else cache
    if fetched_bytes <= CACHED_SHARE * wanted_bytes or (cache == WARM and fetched_bytes <= BESIDE_BYTES):
        return WARM
    return MIXED


def is_served_from_cache(first_ns: array[int], later_ns: Sequence[array[int]]) -> bool | None:
    """Whether later readings of the same keys are clearly faster than the first one, so that a server caches.

    Takes the latencies of each round. None where there is too little to tell.
    """
    if not later_ns or min(map(len, (first_ns, *later_ns))) < LEAST_READS:
        return None
    first, later = median_ns(first_ns), [median_ns(one) for one in later_ns]
    spread = max(later) - min(later)
    return first > FIRST_SLOWER * max(later) and first - max(later) > BEYOND_SPREAD * spread


def median_ns(latency_ns: array[int]) -> float:
    """The middle latency."""
    import numpy as np

    return float(np.median(np.asarray(latency_ns, dtype=np.int64)))

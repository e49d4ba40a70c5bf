"""The planner's model: how fast readers go that wait and work by turns on shared processors (docs/planning.md).

Pure functions of what a ladder has measured. A *reader* is what reads one sample after the other: a loader worker of
PyTorch's, or one of TensorFlow's parallel calls. Times in seconds, rates in samples/s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dnnbench.diagnosis import Reads

# Four times the reads in flight that bring less than this much more: the storage gives no more.
CEILING_GROWTH = 1.1
# So much of the processors is all of them, for who measures in ticks.
ALL_BUSY = 0.9
# More readers are never asked for on one node.
MOST_READERS = 4096
# What limits a predicted rate.
WAITING, PROCESSORS, STORAGE = "waiting for reads", "processors", "storage"


@dataclass(frozen=True)
class Measured:
    """What one ladder has measured, of one rank of ``readers`` readers on ``cores`` processors.

    ``cpu_s``: processor seconds of client, decoding and loader per sample; ``server_cpu_s``: what the storage's server
    took on these processors per sample, 0 where it runs elsewhere.
    """

    readers: int
    cores: int
    loader_per_s: float
    cpu_s: float
    server_cpu_s: float
    gets_per_sample: float
    bytes_per_sample: float
    reads: Mapping[str, Reads]
    one_core_client: bool

    @property
    def shared_cpu_s(self) -> float:
        """What a sample takes of these processors: no more than the measured rate leaves for it."""
        return min(self.cpu_s + self.server_cpu_s, min(self.readers, self.cores) / self.loader_per_s)

    @property
    def wait_s(self) -> float:
        """What a reader waits per sample, so that the model gives the measured rate where it was measured."""
        return waiting_s(self.readers, self.loader_per_s, self.shared_cpu_s, self.cores)

    @property
    def wait_elsewhere_s(self) -> float:
        """The same where the server has processors of its own: its work is then a part of the wait."""
        return self.wait_s + max(self.shared_cpu_s - self.cpu_s, 0.0)

    def client_bound(self, rung: str) -> bool:
        return self.reads[rung].client_bound(self.cores, self.one_core_client)

    @property
    def seen_gets_per_s(self) -> float:
        """The most that the storage has given: it can do at least this."""
        return max(self.loader_per_s * self.gets_per_sample, *(one.objects_per_s for one in self.reads.values()))

    @property
    def ceiling_gets_per_s(self) -> float | None:
        """The most that the storage gives to this machine, where more reads in flight brought no more; else None.

        A reading that its client, or the processors of this machine, limited tells nothing of it.
        """
        as_loader, more = self.reads["loader"], self.reads["more"]
        if self.client_bound("loader") or self.client_bound("more"):
            return None
        if max(as_loader.all_cores, more.all_cores) >= ALL_BUSY * self.cores:
            return None
        if more.in_flight < 2 * as_loader.in_flight or more.objects_per_s >= CEILING_GROWTH * as_loader.objects_per_s:
            return None
        return self.seen_gets_per_s

    @property
    def ceiling_per_s(self) -> float | None:
        """`ceiling_gets_per_s` in samples/s."""
        return None if self.ceiling_gets_per_s is None else self.ceiling_gets_per_s / self.gets_per_sample


@dataclass(frozen=True)
class Prediction:
    """``samples_per_s`` of ``ranks`` ranks together, and what limits them: `WAITING`, `PROCESSORS` or `STORAGE`."""

    ranks: int
    machines: int
    samples_per_s: float
    limited_by: str


def closed_rate(readers: int, wait_s: float, cpu_s: float, cores: int) -> float:
    """Samples/s of readers each of which waits, then works, over and over, all sharing ``cores`` processors.

    A closed queueing network of a delay and a processor-sharing station of ``cores`` servers. Its balance does not
    depend on the distributions of either time: with n readers at work, ``p(n) ~ p(n - 1) (readers - n + 1) / wait *
    cpu / min(n, cores)``, and the rate is the mean of ``min(n, cores) / cpu``.
    """
    if wait_s <= 0 or cpu_s <= 0:
        return readers / wait_s if wait_s > 0 else min(readers, cores) / cpu_s
    weights = [0.0]
    for n in range(1, readers + 1):
        weights.append(weights[-1] + math.log((readers - n + 1) * cpu_s / (wait_s * min(n, cores))))
    most = max(weights)
    shares = [math.exp(weight - most) for weight in weights]
    working = sum(share * min(n, cores) for n, share in enumerate(shares)) / sum(shares)
    return working / cpu_s


def waiting_s(readers: int, per_s: float, cpu_s: float, cores: int) -> float:
    """The wait with which `closed_rate` gives ``per_s``; 0 where even without any it would give no more."""
    low, high = 0.0, readers / per_s
    for _ in range(60):
        middle = (low + high) / 2
        if closed_rate(readers, middle, cpu_s, cores) > per_s:
            low = middle
        else:
            high = middle
    return low


def predict(measured: Measured, ranks: int, machines: int = 1, cores: int | None = None) -> Prediction:
    """What ``ranks`` ranks, spread evenly over machines of ``cores`` processors (those measured), get together.

    A server that ran beside the ladder is taken to run beside the ranks where there is one machine, and elsewhere
    where there are more.
    """
    cores = cores or measured.cores
    alone = machines == 1
    wait_s = measured.wait_s if alone else measured.wait_elsewhere_s
    cpu_s = measured.shared_cpu_s if alone else min(measured.cpu_s, measured.shared_cpu_s)
    per_machine = [ranks // machines + (number < ranks % machines) for number in range(machines)]
    per_s = sum(closed_rate(some * measured.readers, wait_s, cpu_s, cores) for some in per_machine)
    busy = per_s * cpu_s / (cores * min(machines, ranks))
    ceiling = measured.ceiling_per_s
    if ceiling is not None and ceiling < per_s:
        return Prediction(ranks, machines, ceiling, STORAGE)
    return Prediction(ranks, machines, per_s, PROCESSORS if busy >= ALL_BUSY else WAITING)


def readers_for(per_s: float, wait_s: float, cpu_s: float, cores: int) -> int | None:
    """The fewest readers of one node that give ``per_s``; None where no number of them does."""
    if closed_rate(MOST_READERS, wait_s, cpu_s, cores) < per_s:
        return None
    low, high = 0, MOST_READERS
    while high - low > 1:
        middle = (low + high) // 2
        if closed_rate(middle, wait_s, cpu_s, cores) >= per_s:
            high = middle
        else:
            low = middle
    return high

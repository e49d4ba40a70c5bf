"""The ladder of figures -> the layer that limits a training, by how much, what would limit next, and what to try.

Each rung is the one below it with one layer more, measured on the same samples in the same run, so a layer's part of
a sample's time is the difference of two rungs. `diagnose` compares; it measures nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dnnbench.metrics import client_bound

LATENCY = "storage latency"
BANDWIDTH = "storage bandwidth"
CLIENT = "client CPU"
DECODE = "decode"
LOADER = "loader overhead"
COMPUTE = "compute"
LIMITS = (LATENCY, BANDWIDTH, CLIENT, DECODE, LOADER, COMPUTE)

# Four times the reads in flight bring at least this much more, where a storage waits rather than works.
LATENCY_GROWTH = 1.5
MORE_IN_FLIGHT = 4


@dataclass(frozen=True)
class Reads:
    """Raw reads with ``in_flight`` at a time: their rate, what one of them took, and who was busy meanwhile."""

    in_flight: int
    objects_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    cpu_s_per_object: float
    # Shares of one processor's time: our own, and that of all processes together.
    own_cores: float
    all_cores: float
    # Those that read: one, or the ranks.
    processes: int = 1

    def client_bound(self, cores: int, one_core: bool) -> bool:
        """Whether the client's own processor time limits these reads; see `metrics.client_bound`."""
        return client_bound(
            in_flight=self.in_flight,
            latency_p50_ms=self.latency_p50_ms,
            cpu_s_per_object=self.cpu_s_per_object,
            own_cores=self.own_cores,
            all_cores=self.all_cores,
            cores=cores,
            one_core=one_core,
            processes=self.processes,
        )


@dataclass(frozen=True)
class Rungs:
    """One climb. Rates are samples/s; ``reads`` are raw reads, by what they stand for.

    ``reads["one reader"]``: as one worker (or the one process) reads; ``reads["loader"]``: as many in flight as the
    whole loader has; ``reads["more"]``: `MORE_IN_FLIGHT` times as many, or what the objects allow.
    """

    reads: Mapping[str, Reads]
    overhead_per_s: float
    memory_per_s: float
    loader_per_s: float
    compute_per_s: float
    epoch_per_s: float
    loader_latency_p50_ms: float
    cores: int
    # The client holds the interpreter while it works, so that one process gets no more than one processor from it.
    one_core_client: bool
    # Processor seconds of client, decoding and loader, in all of the loader's processes; no rung tells of it.
    loader_cpu_s_per_sample: float | None = None


@dataclass(frozen=True)
class Setup:
    """What of the configuration bears on what to try first."""

    framework: str
    client: str
    # Of all ranks together.
    workers: int
    concurrent: bool
    reduced: bool
    # A worker has no more objects in flight than its batches have, whatever the concurrency.
    batch_bound: bool = False
    # Workers end with each epoch.
    workers_end: bool = False
    ranks: int = 1


@dataclass(frozen=True)
class Verdict:
    """``limit`` is one of `LIMITS`; without it ``next_limit`` would allow ``gain`` times as much.

    ``samples_per_s`` is the epoch's rate, in which loader and trainer share the processors. ``gain`` is over the
    slower of the two, each measured alone.
    """

    limit: str
    samples_per_s: float
    gain: float
    next_limit: str
    try_first: str
    client_bound: bool
    shares: Mapping[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """The verdict for a person."""
        if self.gain < 1.1:
            lifted = f"{self.next_limit} limits almost as much"
        else:
            alone = f"{self.gain:.1f} times as fast, loader and trainer each measured alone"
            lifted = f"without it {self.next_limit} would ({alone})"
        return f"{self.limit} limits, at {self.samples_per_s:,.0f} samples/s; {lifted}; try first: {self.try_first}"

    @property
    def side(self) -> str:
        """Whether the ``storage`` limits, with the way to it, or the ``clients``."""
        return "storage" if self.limit in (LATENCY, BANDWIDTH) else "clients"

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"side": self.side, "sentence": self.sentence()}


def diagnose(rungs: Rungs, setup: Setup) -> Verdict:
    """Says what limits the training that was measured."""
    storage_limit = _storage_limit(rungs)
    # Of the time that a sample takes in the loader.
    whole_s = 1 / rungs.loader_per_s
    parts_s = {
        storage_limit: max(whole_s - 1 / rungs.memory_per_s, 0.0),
        DECODE: max(1 / rungs.memory_per_s - 1 / rungs.overhead_per_s, 0.0),
        LOADER: min(1 / rungs.overhead_per_s, whole_s),
    }
    in_loader = sorted(parts_s, key=lambda layer: parts_s[layer], reverse=True)
    most = in_loader[0]
    without_most_per_s = _rate_without(most, parts_s, rungs)
    if rungs.compute_per_s <= rungs.loader_per_s:
        limit, next_limit, lifted_per_s = COMPUTE, most, rungs.loader_per_s
    else:
        limit, lifted_per_s = most, min(without_most_per_s, rungs.compute_per_s)
        next_limit = COMPUTE if rungs.compute_per_s <= without_most_per_s else in_loader[1]
    total_s = sum(parts_s.values()) or 1.0
    return Verdict(
        limit=limit,
        samples_per_s=rungs.epoch_per_s,
        gain=max(lifted_per_s / min(rungs.loader_per_s, rungs.compute_per_s), 1.0),
        next_limit=next_limit,
        try_first=_try_first(limit, setup, rungs),
        client_bound=storage_limit == CLIENT,
        shares={layer: seconds / total_s for layer, seconds in parts_s.items()},
    )


def _rate_without(layer: str, parts_s: Mapping[str, float], rungs: Rungs) -> float:
    """Samples/s of the loader where one of its layers cost nothing."""
    if layer not in (DECODE, LOADER):
        return rungs.memory_per_s
    left_s = 1 / rungs.loader_per_s - parts_s[layer]
    # No faster than the loader's reads alone: where a layer takes nearly all of the time, what is left is noise.
    as_loader = rungs.reads["loader"]
    used = min(as_loader.processes, rungs.cores)
    reads_per_s = as_loader.objects_per_s * (rungs.cores / used if rungs.one_core_client else 1)
    return min(1 / left_s, reads_per_s) if left_s > 0 else reads_per_s


def _storage_limit(rungs: Rungs) -> str:
    """Which of latency, bandwidth and the client makes up the time that a sample's bytes take."""
    one, as_loader, more = (rungs.reads[name] for name in ("one reader", "loader", "more"))
    usable = rungs.cores, rungs.one_core_client
    if one.client_bound(*usable):
        return CLIENT
    # Where there are too few objects for more reads at a time, their rate tells nothing.
    if not as_loader.client_bound(*usable) and more.in_flight >= 2 * as_loader.in_flight:
        if more.objects_per_s >= LATENCY_GROWTH * as_loader.objects_per_s:
            return LATENCY
        if not more.client_bound(*usable):
            return BANDWIDTH
    # In one process the client itself keeps us from telling: then by whether reads take longer than alone.
    return LATENCY if rungs.loader_latency_p50_ms < 2 * one.latency_p50_ms else BANDWIDTH


def _try_first(limit: str, setup: Setup, rungs: Rungs) -> str:
    torch = setup.framework == "torch"
    section = "framework.PyTorch" if torch else "framework.TensorFlow"
    more_workers = None
    if torch and setup.workers < rungs.cores:
        more_workers = f"{section}.DataLoader.num_workers={-(-rungs.cores // setup.ranks)}"
    higher = f"a higher {section}.concurrency"
    if setup.batch_bound:
        higher = "a larger framework.batch_size (no more than two batches are in flight), or more num_workers"
    less_overhead = more_workers or "a larger framework.batch_size, or less work in collating"
    if setup.workers_end:
        less_overhead = f"{section}.DataLoader.persistent_workers=true"
    settings = {
        LATENCY: higher if setup.concurrent else f"{section}.reading=concurrent",
        CLIENT: "storage.s3.client_lib=obstore" if setup.client == "boto3" else more_workers,
        DECODE: more_workers if setup.reduced else "dataset.decode=reduced",
        LOADER: less_overhead,
        BANDWIDTH: "nothing here: the storage, or the network to it, gives no more",
        COMPUTE: "a faster device, or a smaller network: the storage would keep up",
    }
    return settings[limit] or "more processor cores"

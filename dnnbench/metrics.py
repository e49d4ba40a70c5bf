"""Every figure and every unit: what happened goes in, the record of a benchmark comes out.

No other module does arithmetic on results. The record's keys are documented in the README ("The
record"); `SCHEMA` grows when a key changes its meaning.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dnnbench.errors import MeasurementError
from dnnbench.metrics_curves import ALL, at_shares_ms, course, latency_curve
from dnnbench.metrics_money import bytes_per_used_byte, cost, per_sample
from dnnbench.metrics_rounds import (
    MIB,
    NS,
    UNKNOWN,
    Machine,
    disturbances,
    is_served_from_cache,
    others_share,
)

if TYPE_CHECKING:
    from dnnbench.config import Prices

SCHEMA = 1
# A read that is this much the client's own work says more of the client than of the storage.
CLIENT_SHARE = 0.5
# So much of the processors that a client may use is all of them, for who measures in ticks.
BUSY_SHARE = 0.8
# What a dataset that opens its files by itself must read of them at least, for its figures to be theirs.
OWN_READS_SHARE = 0.9
# In millionths, as whole numbers: 0.999 as a float leads one rank too far.
PERCENTILES = {"p50": 500_000, "p90": 900_000, "p99": 990_000, "p99_9": 999_000, "max": ALL}


@dataclass
class Tally:
    """What a storage did: merges by ``+=``, pickles, and holds nothing but sums and single latencies.

    ``latency_ns`` has one value per object read, whatever retries it took; ``read_bytes`` are the
    bytes of those objects; ``requests`` counts every request on the wire by verb, retries included;
    ``own_reads`` are those of the reads that a user's dataset made past the storage; ``not_by_length`` counts the reads
    that were held against the SHA-256 of a ``manifest``, the checksum of the ``server``, or ``nothing``.
    """

    latency_ns: array[int] = field(default_factory=lambda: array("q"))
    read_bytes: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    errors: int = 0
    own_reads: int = 0
    not_by_length: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Tally) -> Tally:
        self.latency_ns.extend(other.latency_ns)
        self.read_bytes += other.read_bytes
        self.requests.update(other.requests)
        self.retries += other.retries
        self.errors += other.errors
        self.own_reads += other.own_reads
        self.not_by_length.update(other.not_by_length)
        return self

    @property
    def verified(self) -> dict[str, int]:
        """How many reads were held against what: their listed ``length``, or that and a checksum."""
        by_length = len(self.latency_ns) - self.not_by_length.total()
        counts = {"length": by_length, **{by: self.not_by_length[by] for by in ("manifest", "server")}}
        return {by: count for by, count in counts.items() if count}


@dataclass
class EpochFigures:
    """One pass of a loader over its samples. Times in nanoseconds; ``loss`` and ``accuracy`` where known.

    ``waits_ns`` and ``computes_ns`` are those of ``batches`` single batches, for the course of the epoch.
    """

    samples: int
    read_bytes: int
    wall_ns: int
    wait_ns: int
    compute_ns: int
    first_batch_ns: int
    first_step_ns: int = 0
    retries: int = 0
    errors: int = 0
    loss: float | None = None
    accuracy: float | None = None
    batches: int = 0
    waits_ns: Sequence[int] = ()
    computes_ns: Sequence[int] = ()
    # On the clock of the process that it ran in.
    start_ns: int = 0

    def record(self, number: int) -> dict[str, Any]:
        record = {
            "epoch": number,
            "samples": self.samples,
            "bytes": self.read_bytes,
            "wall_s": self.wall_ns / NS,
            "samples_per_s": per_second(self.samples, self.wall_ns),
            "mib_per_s": per_second(self.read_bytes / MIB, self.wall_ns),
            "first_batch_s": self.first_batch_ns / NS,
            "waiting_s": self.wait_ns / NS,
            "computing_s": self.compute_ns / NS,
            "retries": self.retries,
            "errors": self.errors,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "course": course(self.batches, self.waits_ns, self.computes_ns) if self.batches else None,
        }
        return {key: value for key, value in record.items() if value is not None}


@dataclass
class RankFigures:
    """One rank's part of a round. ``start_ns`` and ``end_ns`` are on the first rank's clock, ``clock_error_ns`` right.

    ``epochs_ns`` are the starts and ends of its epochs on that clock.
    """

    rank: int
    host: str
    objects: int
    tally: Tally
    start_ns: int
    end_ns: int
    clock_error_ns: int
    wait_ns: int = 0
    epochs_ns: Sequence[tuple[int, int]] = ()


@dataclass
class Inference:
    """Predictions of one pass: ``confusion[true][predicted]`` counts; ``batch_ns`` from request to predictions.

    A network with more outputs than there are categories may predict none of them: the last column
    of ``confusion``, one more than there are rows.
    """

    confusion: list[list[int]]
    batch_ns: array[int]


@dataclass
class Round:
    """What happened in one timed round. ``objects`` were listed or read; ``epochs`` only for loaders."""

    objects: int
    tally: Tally
    listed_bytes: int | None = None
    epochs: list[EpochFigures] = field(default_factory=list)
    inference: Inference | None = None
    worker_cpu_ns: int = 0
    # The samples' own bytes, where more than these has to be read to get them, such as the headers in a shard.
    used_bytes: int | None = None
    # Of raw reads, how many were in flight, and whether their client can use one processor only.
    in_flight: int | None = None
    one_core: bool = False
    # The rungs of a ladder and its verdict.
    ladder: dict[str, Any] | None = None
    # Of reads of ranges, whose latencies are of single ranges: their size, how many at a time, and in a round.
    ranges: dict[str, Any] | None = None
    # How busy an emulated accelerator was.
    accelerator: dict[str, Any] | None = None
    # Where more in flight brought no more, and the way there.
    knee: dict[str, Any] | None = None
    # Of each pass over the catalog, the samples that came; only until the ranks' rounds are one.
    indices: list[Any] = field(default_factory=list)
    # What each rank did, where there are several (`dnnbench.metrics_ranks`).
    ranks: list[RankFigures] = field(default_factory=list)
    # Known to the one who keeps the clock:
    wall_ns: int = 0
    process_cpu_ns: int = 0
    others_cpu_ns: int = 0
    machine: Machine = field(default_factory=Machine)
    # The page cache, as verified before the round and audited after it; what was fetched, and by which counter.
    cache: str = UNKNOWN
    fetched_bytes: int | None = None
    fetched_by: str | None = None
    # Whether nothing had read these objects before in this session; None where nothing is read.
    first_read: bool | None = None

    @property
    def content_bytes(self) -> int:
        """Bytes read; for a listing the sizes that it told of."""
        return self.tally.read_bytes if self.listed_bytes is None else self.listed_bytes

    def disturbed_by(self, cores: int) -> list[str]:
        """What disturbed the round."""
        return disturbances(self.others_cpu_ns, self.machine, self.wall_ns, cores)


def per_second(amount: float, wall_ns: int) -> float:
    """A rate over wall-clock time."""
    if wall_ns <= 0:
        raise MeasurementError("a round took no time: there is nothing to divide by")
    return amount * NS / wall_ns


def percentiles_ms(latency_ns: array[int], of: str = "latency") -> dict[str, float | int]:
    """Exact percentiles (nearest rank: each is a value that occurred), maximum and count; ``of`` begins the keys."""
    figures: dict[str, float | int] = {f"{of}_count": len(latency_ns)}
    if latency_ns:
        values_ms = at_shares_ms(latency_ns, tuple(PERCENTILES.values()))
        figures.update({f"{of}_{name}_ms": ms for name, ms in zip(PERCENTILES, values_ms, strict=True)})
    return figures


def utilization(steps: int, step_ms: float, window_ns: int, overhead_ms: float = 0.0) -> float:
    """The share of its time that an accelerator was busy, whose ``steps`` take ``step_ms`` each.

    ``window_ns`` holds exactly these steps and the waiting for their batches: from asking for the first of them until
    the last step has ended. ``overhead_ms`` of each step is the harness's own, and is taken off.
    """
    if not steps or window_ns <= 0:
        raise MeasurementError("an accelerator got no batch, so there is nothing to say how busy it was")
    return steps * step_ms / max(window_ns / 1e6 - steps * overhead_ms, steps * step_ms)


def client_bound(
    *,
    in_flight: int,
    latency_p50_ms: float,
    cpu_s_per_object: float,
    own_cores: float,
    all_cores: float,
    cores: int,
    one_core: bool,
    processes: int = 1,
) -> bool:
    """Whether the client's own processor time limits reads, so that their rate says nothing about the storage.

    ``own_cores`` and ``all_cores`` are the processor seconds per second of the ``processes`` that read and of all, of
    ``cores``; ``one_core``: the client can use no more than one in a process.
    """
    # One at a time, a read waits for the storage or works.
    if in_flight == processes and cpu_s_per_object * 1e3 >= CLIENT_SHARE * latency_p50_ms:
        return True
    if own_cores >= BUSY_SHARE * (min(processes, cores) if one_core else cores):
        return True
    # Where a server has the rest of this machine's processors, the client gets no more of them.
    return all_cores >= (1 + BUSY_SHARE) / 2 * cores and own_cores >= CLIENT_SHARE * all_cores


def used_bytes(rounds: Sequence[Round]) -> int:
    """The samples' own bytes, of what was read."""
    return sum(one.tally.read_bytes if one.used_bytes is None else one.used_bytes for one in rounds)


def cache_state(rounds: Sequence[Round]) -> str:
    """The state that every round had, or ``unknown``."""
    states = {one.cache for one in rounds}
    return states.pop() if len(states) == 1 else UNKNOWN


def record(
    rounds: Sequence[Round],
    *,
    cores: int,
    peak_memory_bytes: int | None,
    start_memory_bytes: int | None = None,
    worker_start_s: float | None = None,
    repeated: Sequence[Round] = (),
    prices: Prices | None = None,
    stored_bytes: int = 0,
) -> dict[str, Any]:
    """The figures of a benchmark: totals over its rounds, rates as total over total, never a mean of means.

    ``repeated`` are rounds that were disturbed and made again: told of, and in no total. ``prices`` are those of the
    storage, None where it has none, and ``stored_bytes`` the size of the data that was read.
    """
    total = Tally()
    for one in rounds:
        total += one.tally
    wall_ns = sum(one.wall_ns for one in rounds)
    objects = sum(one.objects for one in rounds)
    content_bytes = sum(one.content_bytes for one in rounds)
    cpu_ns = sum(one.process_cpu_ns + one.worker_cpu_ns for one in rounds)
    core_ns = wall_ns * cores
    others_cpu_ns = sum(one.others_cpu_ns for one in rounds)
    others_cpu_share = others_share(others_cpu_ns, wall_ns, cores)
    disturbed_by = {why for one in rounds for why in one.disturbed_by(cores)}
    disturbed_by.update(disturbances(others_cpu_ns, Machine(), wall_ns, cores))
    listing = any(one.listed_bytes is not None for one in rounds)
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "rounds": len(rounds),
        "objects": objects,
        ("listed_bytes" if listing else "bytes"): content_bytes,
        "wall_s": wall_ns / NS,
        "objects_per_s": per_second(objects, wall_ns),
        "requests": dict(sorted(total.requests.items())),
        "retries": total.retries,
        "errors": total.errors,
        "own_reads": total.own_reads,
        "cpu_s_per_object": cpu_ns / NS / objects if objects else None,
        "cpu_share": cpu_ns / core_ns,
        "others_cpu_share": others_cpu_share,
        "disturbed": None if others_cpu_share is None and not disturbed_by else bool(disturbed_by),
        "disturbed_by": sorted(disturbed_by),
        "repeats": len(repeated),
        "cores": cores,
        "start_memory_mib": None if start_memory_bytes is None else start_memory_bytes / MIB,
        "peak_memory_mib": None if peak_memory_bytes is None else peak_memory_bytes / MIB,
        "cache": cache_state(rounds),
        "fetched_bytes": sum_if_known([one.fetched_bytes for one in rounds]),
        "fetched_by": "; ".join(sorted({one.fetched_by for one in rounds if one.fetched_by})) or None,
        "per_round": [_round_record(one, listing, cores) for one in rounds],
        "repeated_rounds": [_round_record(one, listing, cores) for one in repeated],
    }
    if not listing:
        figures["used_bytes"] = used_bytes(rounds)
        figures.update(_first_and_later(rounds))
        figures["verified"] = total.verified
        figures["mib_per_s"] = per_second(content_bytes / MIB, wall_ns)
        figures.update(percentiles_ms(total.latency_ns))
        figures["latency_curve"] = latency_curve(total.latency_ns)
    if rounds[0].in_flight is not None and objects:
        figures["client_bound"] = _client_bound(
            rounds[0],
            figures,
            cpu_ns / NS / len(total.latency_ns),
            cpu_ns / wall_ns,
            (cpu_ns + others_cpu_ns) / wall_ns,
        )
    epochs = [epoch for one in rounds for epoch in one.epochs]
    figures["requests_per_sample"] = per_sample(total.requests, objects)
    figures["bytes_per_used_byte"] = None if listing else bytes_per_used_byte(total.read_bytes, used_bytes(rounds))
    figures["cost"] = prices and cost(
        total.requests,
        transferred_bytes=total.read_bytes,
        stored_bytes=stored_bytes,
        passes=len(epochs) or len(rounds),
        samples=objects,
        prices=prices,
    )
    if epochs:
        figures.update(_loader_record(epochs, wall_ns, len(rounds[0].ranks) or 1))
        figures["worker_start_s"] = worker_start_s
    for name in ("ladder", "accelerator", "knee", "ranges"):
        told = [getattr(one, name) for one in rounds if getattr(one, name) is not None]
        if told:
            figures[name] = told[-1]
    inferences = [one.inference for one in rounds if one.inference is not None]
    if inferences:
        figures.update(_inference_record(inferences))
    return figures


def _client_bound(
    reads: Round, figures: Mapping[str, Any], cpu_s_per_read: float, own_cores: float, all_cores: float
) -> bool:
    return client_bound(
        in_flight=reads.in_flight or 1,
        latency_p50_ms=figures["latency_p50_ms"],
        cpu_s_per_object=cpu_s_per_read,
        own_cores=own_cores,
        all_cores=all_cores,
        cores=figures["cores"],
        one_core=reads.one_core,
        processes=len(reads.ranks) or 1,
    )


def sum_if_known(values: Sequence[int | None]) -> int | None:
    """Their sum; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _round_record(one: Round, listing: bool, cores: int) -> dict[str, Any]:
    return {
        "wall_s": one.wall_ns / NS,
        "objects": one.objects,
        ("listed_bytes" if listing else "bytes"): one.content_bytes,
        "objects_per_s": per_second(one.objects, one.wall_ns),
        "cache": one.cache,
        "fetched_bytes": one.fetched_bytes,
        "fetched_by": one.fetched_by,
        "others_cpu_share": others_share(one.others_cpu_ns, one.wall_ns, cores),
        "disturbed_by": one.disturbed_by(cores),
        **one.machine.record(one.wall_ns, cores),
    }


def _first_and_later(rounds: Sequence[Round]) -> dict[str, Any]:
    """The first reading of keys and the later ones, apart, where the first was the session's first of them."""
    first, later = rounds[0], rounds[1:]
    if not first.first_read or not later:
        return {"first_reads": None, "later_reads": None, "server_cache": None}
    told = {}
    for name, some in (("first_reads", [first]), ("later_reads", later)):
        latency_ns = array("q")
        for one in some:
            latency_ns.extend(one.tally.latency_ns)
        told[name] = {
            "objects_per_s": per_second(sum(one.objects for one in some), sum(one.wall_ns for one in some)),
            "latency_p50_ms": percentiles_ms(latency_ns).get("latency_p50_ms"),
        }
    cached = is_served_from_cache(first.tally.latency_ns, [one.tally.latency_ns for one in later])
    return {**told, "server_cache": cached}


def _loader_record(epochs: Sequence[EpochFigures], wall_ns: int, ranks: int) -> dict[str, Any]:
    wait_ns = sum(epoch.wait_ns for epoch in epochs)
    samples = sum(epoch.samples for epoch in epochs)
    last = epochs[-1]
    figures = {
        "samples": samples,
        "samples_per_s": per_second(samples, wall_ns),
        "first_batch_s": epochs[0].first_batch_ns / NS,
        "first_step_s": epochs[0].first_step_ns / NS,
        "waiting_s": wait_ns / NS,
        "computing_s": sum(epoch.compute_ns for epoch in epochs) / NS,
        "waiting_share": wait_ns / (wall_ns * ranks),
        "epochs": [epoch.record(i + 1) for i, epoch in enumerate(epochs)],
        "loss": last.loss,
        "accuracy": last.accuracy,
    }
    return {key: value for key, value in figures.items() if value is not None}


def _inference_record(inferences: Sequence[Inference]) -> dict[str, Any]:
    categories = range(len(inferences[0].confusion))
    columns = range(len(inferences[0].confusion[0]))
    confusion = [[sum(one.confusion[i][j] for one in inferences) for j in columns] for i in categories]
    if not any(row[-1] for row in confusion):
        confusion = [row[:-1] for row in confusion]
    batch_ns = array("q")
    for one in inferences:
        batch_ns.extend(one.batch_ns)
    return {
        "accuracy": sum(confusion[i][i] for i in categories) / sum(map(sum, confusion)),
        "confusion": confusion,
        **percentiles_ms(batch_ns, "batch_latency"),
    }


@dataclass(frozen=True)
class ShardReadings:
    """Of a pass over shards: the bytes of the samples that came out of them; the readings planned, and their bytes."""

    used_bytes: int | None
    reads: int
    read_bytes: int


def check_pass(
    what: str,
    indices: Any,
    tally: Tally,
    sizes_bytes: Any,
    expected: int,
    checksums: bool = False,
    of_shards: ShardReadings | None = None,
) -> None:
    """Holds one pass over a catalog against it: each sample once, as many as expected, and their bytes.

    ``indices`` and ``sizes_bytes`` are arrays of whole numbers. Reads that a user's dataset made by itself may
    leave out a little of each object, such as what follows a picture's end. With ``checksums``, each read must have
    been held against one. Of samples that lie in shards, ``of_shards``, the bytes are those that came out of them, and
    the reads the ones that were planned. Raises `MeasurementError`.
    """
    import numpy as np

    reads = len(tally.latency_ns)
    if not expected:
        raise MeasurementError(f"{what}: there was nothing to read, so there is nothing to measure")
    if len(indices) != expected:
        raise MeasurementError(
            f"{what}: {len(indices)} samples came through, but {expected} were expected; a loop that ends early, or "
            "looks at a first batch, makes a pass that is no epoch"
        )
    if indices.min() < 0 or indices.max() >= len(sizes_bytes):
        raise MeasurementError(f"{what}: some samples are none of the catalog's {len(sizes_bytes)}")
    came = np.zeros(len(sizes_bytes), dtype=bool)
    came[indices] = True
    if np.count_nonzero(came) != len(indices):
        raise MeasurementError(f"{what}: some samples were read more than once in one pass")
    if of_shards is not None:
        _check_shards(what, tally, int(sizes_bytes[indices].sum()), of_shards)
        return
    if reads != expected:
        raise MeasurementError(
            f"{what}: {reads} objects were read at the storage for {expected} samples; a dataset of your own reads "
            "each object in each pass, by self.storage.read(image)"
        )
    expected_bytes = int(sizes_bytes[indices].sum())
    least_bytes = expected_bytes * (1 - (1 - OWN_READS_SHARE) * tally.own_reads / reads)
    if not least_bytes <= tally.read_bytes <= expected_bytes:
        raise MeasurementError(f"{what}: {tally.read_bytes} bytes were read, but the catalog says {expected_bytes}")
    verified = tally.not_by_length["manifest"] + tally.not_by_length["server"]
    if checksums and verified != reads:
        raise MeasurementError(
            f"{what}: {verified} of {reads} objects were held against a checksum, as dataset.verify asks; a dataset of "
            "your own hands on the key as it gets it: self.storage.read(image)"
        )


def _check_shards(what: str, tally: Tally, expected_bytes: int, of_shards: ShardReadings) -> None:
    if of_shards.used_bytes != expected_bytes:
        raise MeasurementError(
            f"{what}: samples of {of_shards.used_bytes} bytes came out of the shards, but the catalog says "
            f"{expected_bytes}"
        )
    made, planned = (len(tally.latency_ns), tally.read_bytes), (of_shards.reads, of_shards.read_bytes)
    if made != planned:
        raise MeasurementError(
            f"{what}: {made[0]} readings of {made[1]} bytes were made of the shards, but {planned[0]} of {planned[1]} "
            "were planned"
        )

"""What rungs, knees and accelerators are measured on: a share of the catalog, and raw reads with who was busy."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.datasets.passes import batch_bytes
from dnnbench.datasets.shares import RankShare
from dnnbench.diagnosis import Reads
from dnnbench.metrics import Round, per_second, percentiles_ms
from dnnbench.metrics_rounds import NS
from dnnbench.probe import cores, cores_busy_s, own_cpu_ns
from dnnbench.ranks import ALONE, Ranks
from dnnbench.storage import page_cache
from dnnbench.storage.base import Storage
from dnnbench.workloads import Training

# One measuring takes about so long, whatever the storage: of a slow one fewer samples are read.
STEP_S = 1.0
MOST_SAMPLES = 512
MOST_BYTES = 256 * 1024 * 1024
# Of each worker: with fewer it is told how some of them wait for others.
LEAST_BATCHES = 4
# Where many workers need more than the above, no more than this.
MOST_SAMPLES_FOR_WORKERS = 8192
MOST_BYTES_FOR_WORKERS = 1024 * 1024 * 1024
MOST_IN_FLIGHT = 256
# Raw reads are so many times those in flight, or more, where a second look at an object is no cheaper.
LEAST_WAVES = 3
# No pass of them begins reads after so long: a storage that gives little would take minutes.
MOST_READING_S = 3.0
# Shorter reads are repeated: the processors' accounts are kept in ticks of 10 ms.
LEAST_READING_S = 0.3
MOST_PASSES = 8


class ShareTraining(Training):
    """One epoch of a training over a share of the catalog, chosen by seed while it prepares.

    ``build`` is a framework's builder (`dnnbench.trained.load_builder`), ``framework`` its short name. Its ``what``
    is the framework's name and `part`.
    """

    has_own_part = True

    def __init__(
        self,
        storage: Storage,
        catalog: Catalog,
        config: Config,
        build: Any,
        framework: str,
        access: str,
        ranks: Ranks = ALONE,
    ) -> None:
        self.what = f"{framework} {self.part}"
        self.storage, self.catalog, self.total, self.worker_start_s = storage, catalog, len(catalog), None
        self._config = config.model_copy(update={"framework": config.framework.model_copy(update={"epochs": 1})})
        self._build, self._framework, self._access, self._ranks = build, framework, access, ranks
        self._loaders: list[Any] = []
        self._done_before = 0

    def account(self) -> Round:
        finished = super().account()
        # Each rank counts its own part, which no other one has.
        finished.indices = [np.empty(0, dtype=np.int64) for _ in finished.indices]
        return finished

    def close(self) -> None:
        """Ends the loaders' workers."""
        for loader in self._loaders:
            loader.close()
        self._loaders = []

    def _take_share(self, in_flight: int, workers: int | None = None) -> Reads:
        """Makes a share of the catalog, of this rank's part, the workload's; what one reader does there.

        All ranks take as many samples as the first one has time for, or the least that one has.
        """
        order = np.random.default_rng([self._config.execution.seed, 1]).permutation(len(self.catalog))
        mine = RankShare(self._ranks.rank, self._ranks.ranks).of(len(order))
        part = self.catalog
        if self._ranks.ranks > 1:
            part = self.catalog.select(np.sort(order[mine.start : mine.stop]))
        self._ranks.sync(f"{self.what}: one reader")
        self.catalog, serial = share_of_catalog(self.storage, part, self._config, in_flight, workers)
        samples = min(self._ranks.all_gather(len(self.catalog)))
        if samples < len(self.catalog):
            self.catalog = self.catalog.select(np.arange(samples) * len(self.catalog) // samples)
        self.total = len(self.catalog)
        return self._reads_of_all(serial)

    def _reads_of_all(self, reads: Reads) -> Reads:
        """What all ranks had, of what each had at the same time."""
        told = self._ranks.all_gather((reads, self._ranks.leads_host))
        return reads_together([one for one, _ in told], [leads for _, leads in told])

    def _make_loader(self, storage: Storage) -> Any:
        """A loader over the share; its workers are yet to be started."""
        loader = self._build.make_loader(self._config, storage, self.catalog, self._access)
        self._loaders.append(loader)
        return loader


def reads_together(reads: Sequence[Reads], leads_host: Sequence[bool]) -> Reads:
    """The raw reads of several ranks as one: rates add up; of latencies the median rank's p50 and the worst p99.

    Each rank sees the processors of its whole host, so of each host one of them counts.
    """
    if len(reads) == 1:
        return reads[0]
    rate = sum(one.objects_per_s for one in reads)
    own = sum(one.own_cores for one in reads)
    return Reads(
        in_flight=sum(one.in_flight for one in reads),
        objects_per_s=rate,
        latency_p50_ms=statistics.median(one.latency_p50_ms for one in reads),
        latency_p99_ms=max(one.latency_p99_ms for one in reads),
        cpu_s_per_object=sum(one.cpu_s_per_object * one.objects_per_s for one in reads) / rate,
        own_cores=own,
        all_cores=max(sum(one.all_cores for one, leads in zip(reads, leads_host, strict=True) if leads), own),
        processes=len(reads),
    )


def share_of_catalog(
    storage: Storage, catalog: Catalog, config: Config, in_flight: int, workers: int | None = None
) -> tuple[Catalog, Reads]:
    """(as many samples, by seed, as ``in_flight`` reads have time for, reads one after the other to find out).

    The samples make `LEAST_BATCHES` for each of ``workers`` (None: PyTorch's ``num_workers``), which have nothing to do
    otherwise. A catalog that is smaller is taken whole: what is told of many workers is then of some that wait.
    """
    order = np.random.default_rng(config.execution.seed).permutation(len(catalog))
    batch = config.framework.batch_size
    mean_bytes = max(catalog.total_bytes / len(catalog), 1)
    workers = max(workers or config.framework.pytorch.loader.num_workers, 1)
    least = max(LEAST_BATCHES * batch * workers, LEAST_WAVES * in_flight)
    least = max(min(least, MOST_SAMPLES_FOR_WORKERS, int(MOST_BYTES_FOR_WORKERS / mean_bytes)), batch)
    most = min(max(MOST_SAMPLES, least), max(int(MOST_BYTES / mean_bytes), least), len(order))
    chosen = catalog.select(order[:most])
    ready_cache(storage, chosen, config)
    storage.open()
    # Connecting and signing in happen once in a training's life.
    storage.fetch(*chosen.item(0))
    count = 0
    with Watch(storage, 1) as watch:
        while count < most and watch.elapsed_s() < STEP_S / 2:
            storage.fetch(*chosen.item(count))
            count += 1
    serial = watch.reads()
    wanted = int(serial.objects_per_s * STEP_S * max(in_flight // 2, 1))
    samples = min(max(wanted, least), most)
    samples -= samples % batch if samples > batch else 0
    # In the catalog's order, as a training reads them that shuffles nothing; cut before, or the end of it were missing.
    return catalog.select(np.sort(order[:samples])), serial


def raw_reads(storage: Storage, catalog: Catalog, config: Config, in_flight: int) -> Reads:
    """Reads every sample with ``in_flight`` reads at a time, once or more.

    More than there are samples are never in flight, and of files, whose second reading would be of the page cache, half
    as many: what is told of one wave of reads is the same for any number of them.
    """
    items = list(catalog.items(range(len(catalog))))
    in_flight = max(min(in_flight, len(items) // 2 if storage.name == "fs" else len(items)), 1)
    if storage.name != "fs":
        # One pass after the other without a gap, in which they would all wait for the last one.
        items *= -(-LEAST_WAVES * in_flight // len(items))
    watch = Watch(storage, in_flight)
    # The threads and connections are there from here on, as they are in a loader that has run for a while.
    ready_cache(storage, catalog, config)
    storage.warm(items, in_flight)
    for _ in range(MOST_PASSES):
        ready_cache(storage, catalog, config)
        with watch:
            # Its step is the interpreter's own, so that threads may share it.
            in_time = itertools.takewhile(lambda _: watch.elapsed_s() < MOST_READING_S, items)
            storage.fetch_each(in_time, in_flight)
        if watch.wall_ns >= LEAST_READING_S * NS:
            break
    return watch.reads()


def ready_cache(storage: Storage, catalog: Catalog, config: Config, warm: bool = False) -> None:
    """Makes the page cache cold or warm, as configured, where there is one."""
    if storage.name == "fs":
        cold = not warm and config.execution.cache == page_cache.COLD
        make = page_cache.make_cold if cold else page_cache.make_warm
        # Where a file is gone or not ours to read, the reading says so, with the storage's words.
        with contextlib.suppress(OSError):
            make(catalog.key(i) for i in range(len(catalog)))


class Watch:
    """Times reads through a storage, and looks at who was busy meanwhile; may be entered again."""

    def __init__(self, storage: Storage, in_flight: int) -> None:
        self._storage, self._in_flight = storage, in_flight
        self.wall_ns = 0
        self._cpu_ns, self._busy_s = 0, 0.0
        self._tally: Any = None

    def __enter__(self) -> Watch:
        self._storage.meter.take()
        self._start_busy_s, self._start_cpu_ns = cores_busy_s(), own_cpu_ns()
        self._start_ns = time.perf_counter_ns()
        return self

    def elapsed_s(self) -> float:
        """Seconds since it was entered."""
        return (time.perf_counter_ns() - self._start_ns) / NS

    def __exit__(self, *_: object) -> None:
        self.wall_ns += time.perf_counter_ns() - self._start_ns
        self._cpu_ns += own_cpu_ns() - self._start_cpu_ns
        self._busy_s += cores_busy_s() - self._start_busy_s
        tally = self._storage.meter.take()
        if self._tally is None:
            self._tally = tally
        else:
            self._tally += tally

    def reads(self) -> Reads:
        """What was seen."""
        latency = percentiles_ms(self._tally.latency_ns)
        count = int(latency["latency_count"])
        own_cores = self._cpu_ns / self.wall_ns
        told_apart = self.wall_ns >= LEAST_READING_S * NS
        return Reads(
            in_flight=self._in_flight,
            objects_per_s=per_second(count, self.wall_ns),
            latency_p50_ms=float(latency["latency_p50_ms"]),
            latency_p99_ms=float(latency["latency_p99_ms"]),
            cpu_s_per_object=self._cpu_ns / NS / count,
            own_cores=own_cores,
            all_cores=max(self._busy_s * NS / self.wall_ns, own_cores) if told_apart else own_cores,
        )


def loader_pass(
    loader: Any, storage: Storage, catalog: Catalog, config: Config, warm: bool = False, keep: bool = False
) -> tuple[Any, list[Any]]:
    """(the account of the second pass over a loader whose workers run, with ``keep`` some batches of the first one).

    In the first one workers still load what they need, which would pass for overhead. No more batches are kept than
    `MOST_SAMPLES` and `MOST_BYTES`, or two, and none of them in the memory that workers share.
    """
    kept: list[Any] = []
    samples, held_bytes = 0, 0
    for number in range(2):
        ready_cache(storage, catalog, config, warm)
        storage.meter.take()
        loader.take_epochs()
        cpu_ns = own_cpu_ns()
        for batch in loader:
            if keep and number == 0 and (len(kept) < 2 or (samples < MOST_SAMPLES and held_bytes < MOST_BYTES)):
                kept.append(loader.keep(batch))
                samples, held_bytes = samples + len(batch[1]), held_bytes + batch_bytes(batch)
    (epoch,) = loader.take_epochs()
    epoch.process_cpu_ns = own_cpu_ns() - cpu_ns
    return epoch, kept


def in_flight_of(config: Config, framework: str, access: str = "random") -> tuple[int, int]:
    """Reads in flight at the configured settings: of one reader, which is a process, and of the whole loader."""
    batches = most_of_batches(config, framework, access)
    if framework == "torch":
        torch = config.framework.pytorch
        one = min(torch.concurrency, batches or torch.concurrency) if torch.reading == "concurrent" else 1
        whole = one * max(torch.loader.num_workers, 1)
    else:
        tf = config.framework.tensorflow
        one = whole = tf.concurrency if tf.reading == "concurrent" else tf.num_parallel_calls or cores()
    return min(one, MOST_IN_FLIGHT), min(whole, MOST_IN_FLIGHT)


def most_of_batches(config: Config, framework: str, access: str) -> int | None:
    """Reads that the batches which one worker knows of allow to be in flight, or None where it knows of all."""
    # A map-style worker knows its batch and the next one; an iterable one its share, and tf.data the whole order.
    return 2 * config.framework.batch_size if framework == "torch" and access == "random" else None

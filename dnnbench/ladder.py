"""The ladder: one training taken apart, rung by rung, on the same samples in one run. `diagnosis` reads it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.diagnosis import MORE_IN_FLIGHT, Reads, Rungs, Setup, diagnose
from dnnbench.metrics import NS, Round, per_second, percentiles_ms
from dnnbench.plugins import load_class
from dnnbench.probe import cores, cores_busy_s
from dnnbench.storage import page_cache
from dnnbench.storage.base import Storage
from dnnbench.storage.held import HeldStorage
from dnnbench.workloads import Training

# A rung takes about so long, whatever the storage: of a slow one fewer samples are read.
RUNG_S = 1.0
MOST_SAMPLES = 512
MOST_BYTES = 256 * 1024 * 1024
LEAST_BATCHES = 4
MOST_IN_FLIGHT = 256
# Shorter reads are repeated: the processors' accounts are kept in ticks of 10 ms.
LEAST_READING_S = 0.3
MOST_PASSES = 8


class Ladder(Training):
    """A trainer's epoch from the storage, timed; before it, outside of the clock, each layer below it.

    ``build`` is a framework's builder (`dnnbench.trained.load_builder`), ``framework`` its short name.
    The samples are a share of the catalog, by seed.
    """

    part = "ladder"

    def __init__(
        self, storage: Storage, catalog: Catalog, config: Config, build: Any, framework: str, access: str
    ) -> None:
        self.what = f"{framework} ladder"
        self.storage, self.catalog, self.worker_start_s = storage, catalog, None
        self.total = len(catalog)
        self._config = config.model_copy(update={"framework": config.framework.model_copy(update={"epochs": 1})})
        self._build, self._framework, self._access = build, framework, access
        self._open: list[Any] = []
        self._rungs: Callable[[float], Rungs] | None = None
        self._done_before = 0

    def check(self) -> None:
        """Raises what the configured classes cannot do, before anything is measured."""
        self._build.make_dataset(self._config)
        self._build.make_model(self._config, len(self.catalog.label_names))
        load_class("training.name", self._config.training.name, self._build.TRAININGS, self._build.DNNTrain)

    def prepare(self, number: int) -> None:
        one_reader, in_flight = self._in_flight()
        serial = self._choose_samples(in_flight)
        reads = {
            "one reader": serial if one_reader == 1 else self._read(one_reader),
            "loader": self._read(in_flight),
            "more": self._read(min(MORE_IN_FLIGHT * in_flight, 2 * MOST_IN_FLIGHT)),
        }
        held = self.storage
        if self.storage.name != "fs":
            held = HeldStorage(self.storage, self.catalog.items(range(len(self.catalog))), in_flight)
        # From memory: the page cache where there is one, so that a dataset may open its files by itself.
        from_memory = self._loader(held)
        memory_per_s = self._pass(from_memory, warm=True)[0]
        overhead_per_s = self._pass(self._loader(held, fixed=True), warm=True)[0]
        self.loader = self._loader(self.storage)
        loader_per_s, latency_ms, batches = self._pass(self.loader, keep=True)
        compute_per_s = self._compute(batches)
        classes = len(self.catalog.label_names)
        self.trainer = self._build.make_trainer(self._config, self.loader, classes)
        self.total = self.loader.expected_samples
        super().prepare(number)

        def rungs(epoch_per_s: float) -> Rungs:
            return Rungs(
                reads=reads,
                overhead_per_s=overhead_per_s,
                memory_per_s=memory_per_s,
                loader_per_s=loader_per_s,
                compute_per_s=compute_per_s,
                epoch_per_s=epoch_per_s,
                loader_latency_p50_ms=latency_ms,
                cores=cores(),
                one_core_client=self.storage.one_core,
            )

        self._rungs = rungs

    def account(self) -> Round:
        finished = super().account()
        assert self._rungs is not None  # noqa: S101 (prepared before)
        samples = sum(epoch.samples for epoch in finished.epochs)
        rungs = self._rungs(per_second(samples, sum(epoch.wall_ns for epoch in finished.epochs)))
        finished.ladder = {
            "samples": len(self.catalog),
            **dataclasses.asdict(rungs),
            "verdict": diagnose(rungs, self._setup()).record(),
        }
        return finished

    def close(self) -> None:
        """Ends the loaders' workers."""
        for loader in self._open:
            loader.close()
        self._open = []

    # -- the rungs -------------------------------------------------------------------------------

    def _choose_samples(self, in_flight: int) -> Reads:
        """Takes as many samples as a rung has time for, found by reading one object after the other."""
        order = np.random.default_rng(self._config.execution.seed).permutation(len(self.catalog))
        batch = self._config.framework.batch_size
        mean_bytes = max(self.catalog.total_bytes / len(self.catalog), 1)
        most = min(MOST_SAMPLES, max(int(MOST_BYTES / mean_bytes), batch), len(order))
        chosen = self.catalog.select(np.sort(order[:most]))
        self._ready(chosen)
        self.storage.open()
        self.storage.fetch(chosen.key(0), chosen.size_bytes(0))
        count = 0
        with _Watch(self.storage, 1) as watch:
            while count < most and watch.elapsed_s() < RUNG_S / 2:
                self.storage.fetch(chosen.key(count), chosen.size_bytes(count))
                count += 1
        serial = watch.reads()
        wanted = int(serial.objects_per_s * RUNG_S * max(in_flight // 2, 1))
        samples = min(max(wanted, LEAST_BATCHES * batch), most)
        self.catalog = chosen.select(np.arange(samples - samples % batch if samples > batch else samples))
        return serial

    def _read(self, in_flight: int) -> Reads:
        """Raw reads of every sample, once or more."""
        items = list(self.catalog.items(range(len(self.catalog))))
        watch = _Watch(self.storage, in_flight)
        # The threads and connections are there from here on, as they are in a loader that has run for a while.
        self._ready(self.catalog)
        self.storage.fetch_each(items[: 2 * in_flight], in_flight)
        for _ in range(MOST_PASSES):
            self._ready(self.catalog)
            with watch:
                self.storage.fetch_each(items, in_flight)
            if watch.wall_ns >= LEAST_READING_S * NS:
                break
        return watch.reads()

    def _loader(self, storage: Storage, fixed: bool = False) -> Any:
        """A loader whose workers run; ``fixed`` neither reads nor decodes."""
        loader = self._build.make_loader(self._config, storage, self.catalog, self._access)
        self._open.append(loader)
        if fixed:
            # Before the workers start: each has a dataset of its own.
            dataset = getattr(loader.dataset, "dataset", loader.dataset)
            dataset.fixed_image = dataset[0][0]
        loader.start_workers()
        return loader

    def _pass(self, loader: Any, warm: bool = False, keep: bool = False) -> tuple[float, float, list[Any]]:
        """(samples/s, median latency of a read in ms, the batches) of the second pass over a loader.

        In the first one workers still load what they need, which would pass for overhead.
        """
        for _ in range(2):
            self._ready(self.catalog, warm)
            self.storage.meter.take()
            loader.take_epochs()
            batches = []
            for batch in loader:
                if keep:
                    batches.append(batch)
            (epoch,) = loader.take_epochs()
        latency = percentiles_ms(epoch.tally.latency_ns).get("latency_p50_ms", 0.0)
        return per_second(epoch.samples, epoch.wall_ns), latency, batches

    def _compute(self, batches: Sequence[Any]) -> float:
        """Samples/s of the trainer on batches that are in memory, the first one left out where there are more."""
        loader = self._build.memory_loader(batches)
        trainer = self._build.make_trainer(self._config, loader, len(self.catalog.label_names))
        trainer.warm_up()
        trainer.train()
        epoch = loader.take_epochs()[-1]
        if len(batches) == 1:
            return per_second(epoch.samples, epoch.compute_ns)
        return per_second(epoch.samples - len(batches[0][1]), epoch.compute_ns - epoch.first_step_ns)

    def _ready(self, catalog: Catalog, warm: bool = False) -> None:
        """Makes the page cache cold or warm where there is one."""
        if self.storage.name == "fs":
            cold = not warm and self._config.execution.cache == page_cache.COLD
            make = page_cache.make_cold if cold else page_cache.make_warm
            make(catalog.key(i) for i in range(len(catalog)))

    # -- the configuration -----------------------------------------------------------------------

    def _in_flight(self) -> tuple[int, int]:
        """Reads in flight: of one reader, which is a process, and of the whole loader."""
        framework = self._config.framework
        if self._framework == "torch":
            torch = framework.pytorch
            one = torch.concurrency if torch.reading == "concurrent" else 1
            whole = one * max(torch.loader.num_workers, 1)
        else:
            tf = framework.tensorflow
            one = whole = tf.concurrency if tf.reading == "concurrent" else tf.num_parallel_calls or cores()
        return min(one, MOST_IN_FLIGHT), min(whole, MOST_IN_FLIGHT)

    def _setup(self) -> Setup:
        framework = self._config.framework
        torch = self._framework == "torch"
        return Setup(
            framework=self._framework,
            storage=self.storage.name,
            client=self.storage.client,
            workers=max(framework.pytorch.loader.num_workers, 1) if torch else cores(),
            concurrent=(framework.pytorch if torch else framework.tensorflow).reading == "concurrent",
            reduced=self._config.dataset.decode == "reduced",
        )


class _Watch:
    """Times reads through a storage, and looks at who was busy meanwhile; may be entered again."""

    def __init__(self, storage: Storage, in_flight: int) -> None:
        self._storage, self._in_flight = storage, in_flight
        self.wall_ns = 0
        self._cpu_ns, self._busy_s = 0, 0.0
        self._tally: Any = None

    def __enter__(self) -> _Watch:
        self._storage.meter.take()
        self._start_busy_s, self._start_cpu_ns = cores_busy_s(), time.process_time_ns()
        self._start_ns = time.perf_counter_ns()
        return self

    def elapsed_s(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / NS

    def __exit__(self, *_: object) -> None:
        self.wall_ns += time.perf_counter_ns() - self._start_ns
        self._cpu_ns += time.process_time_ns() - self._start_cpu_ns
        self._busy_s += cores_busy_s() - self._start_busy_s
        tally = self._storage.meter.take()
        if self._tally is None:
            self._tally = tally
        else:
            self._tally += tally

    def reads(self) -> Reads:
        """What was seen."""
        count = len(self._tally.latency_ns)
        own_cores = self._cpu_ns / self.wall_ns
        told_apart = self.wall_ns >= LEAST_READING_S * NS
        return Reads(
            in_flight=self._in_flight,
            objects_per_s=per_second(count, self.wall_ns),
            latency_p50_ms=float(percentiles_ms(self._tally.latency_ns)["latency_p50_ms"]),
            cpu_s_per_object=self._cpu_ns / NS / count,
            own_cores=own_cores,
            all_cores=max(self._busy_s * NS / self.wall_ns, own_cores) if told_apart else own_cores,
        )

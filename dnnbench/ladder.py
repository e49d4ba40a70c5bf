"""The ladder: one training taken apart, rung by rung, on the same samples in one run. `diagnosis` reads it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from dnnbench.datasets.samples import ImageSamples
from dnnbench.diagnosis import MORE_IN_FLIGHT, Reads, Rungs, Setup, diagnose
from dnnbench.metrics import Round, per_second, percentiles_ms
from dnnbench.metrics_rounds import NS
from dnnbench.plugins import load_class
from dnnbench.probe import cores
from dnnbench.ranks import cores_of
from dnnbench.sampling import (
    MOST_IN_FLIGHT,
    ShareTraining,
    in_flight_of,
    loader_pass,
    most_of_batches,
    raw_reads,
)
from dnnbench.storage.base import Storage
from dnnbench.storage.held import HeldStorage


class Ladder(ShareTraining):
    """A trainer's epoch from the storage, timed; before it, outside of the clock, each layer below it."""

    part = "ladder"
    # The rungs below, to which the epoch's rate is added.
    _rungs: partial[Rungs]

    def check(self) -> None:
        """Raises what the configured classes cannot do, before anything is measured."""
        self._build.make_dataset(self._config)
        self._build.make_model(self._config, len(self.catalog.label_names))
        load_class("training.name", self._config.training.name, self._build.TRAININGS, self._build.DNNTrain)

    def prepare(self, number: int) -> None:
        one_reader, in_flight = in_flight_of(self._config, self._framework, self._access)
        workers = self._workers()
        serial = self._take_share(in_flight, workers)
        reads = {
            "one reader": serial if one_reader == 1 else self._read(one_reader),
            "loader": self._read(in_flight),
            "more": self._read(min(MORE_IN_FLIGHT * in_flight, 2 * MOST_IN_FLIGHT)),
        }
        held = self.storage
        if self.storage.name != "fs":
            held = HeldStorage(self.storage, self.catalog.items(range(len(self.catalog))), in_flight)
        # From memory: the page cache where there is one, so that a dataset may open its files by itself.
        memory_per_s = self._rate(self._pass(self._loader(held), warm=True)[0])
        overhead_per_s = self._rate(self._pass(self._loader(held, fixed=True), warm=True)[0])
        self.loader = self._loader(self.storage)
        epoch, batches = self._pass(self.loader, keep=True)
        loader_per_s = self._rate(epoch)
        latencies_ms = self._ranks.all_gather(percentiles_ms(epoch.tally.latency_ns).get("latency_p50_ms", 0.0))
        latency_ms = float(statistics.median(latencies_ms))
        compute_per_s = sum(self._ranks.all_gather(self._compute(batches)))
        self.trainer = self._make_trainer(self.loader)
        self.total = self.loader.expected_samples
        super().prepare(number)

        self._rungs = partial(
            Rungs,
            reads=reads,
            overhead_per_s=overhead_per_s,
            memory_per_s=memory_per_s,
            loader_per_s=loader_per_s,
            compute_per_s=compute_per_s,
            loader_latency_p50_ms=latency_ms,
            cores=cores_of(self._ranks),
            one_core_client=self.storage.one_core,
            loader_cpu_s_per_sample=(epoch.worker_cpu_ns + epoch.process_cpu_ns) / NS / epoch.samples,
        )

    def account(self) -> Round:
        finished = super().account()
        samples = sum(epoch.samples for epoch in finished.epochs)
        epoch_per_s = per_second(samples, sum(epoch.wall_ns for epoch in finished.epochs))
        rungs = self._rungs(epoch_per_s=sum(self._ranks.all_gather(epoch_per_s)))
        finished.ladder = {
            "samples": len(self.catalog) * self._ranks.ranks,
            **dataclasses.asdict(rungs),
            "verdict": diagnose(rungs, self._setup()).record(),
        }
        return finished

    # -- the rungs -------------------------------------------------------------------------------

    def _loader(self, storage: Storage, fixed: bool = False) -> Any:
        """A loader whose workers run; ``fixed`` neither reads nor decodes."""
        loader = self._make_loader(storage)
        if fixed:
            # Before the workers start: each has a dataset of its own.
            dataset = loader.dataset if isinstance(loader.dataset, ImageSamples) else loader.dataset.dataset
            dataset.fixed_image = dataset[0][0]
        loader.start_workers()
        return loader

    def _read(self, in_flight: int) -> Reads:
        self._ranks.sync(f"{self.what}: {in_flight} reads")
        return self._reads_of_all(raw_reads(self.storage, self.catalog, self._config, in_flight))

    def _pass(self, loader: Any, warm: bool = False, keep: bool = False) -> tuple[Any, list[Any]]:
        self._ranks.sync(f"{self.what}: a loader")
        return loader_pass(loader, self.storage, self.catalog, self._config, warm, keep)

    def _compute(self, batches: Sequence[Any]) -> float:
        """Samples/s of the trainer on batches that are in memory, the first one left out where there are more."""
        loader = self._build.memory_loader(batches, self.loader)
        trainer = self._make_trainer(loader)
        trainer.warm_up()
        with trainer.together():
            trainer.train()
        epoch = loader.take_epochs()[-1]
        if len(batches) == 1:
            return per_second(epoch.samples, epoch.compute_ns)
        return per_second(epoch.samples - len(batches[0][1]), epoch.compute_ns - epoch.first_step_ns)

    def _make_trainer(self, loader: Any) -> Any:
        return self._build.make_trainer(self._config, loader, len(self.catalog.label_names), self._ranks)

    def _rate(self, epoch: Any) -> float:
        """Samples/s of all ranks, each over its own pass; they begin together."""
        return sum(self._ranks.all_gather(per_second(epoch.samples, epoch.wall_ns)))

    def _workers(self) -> int:
        """The processes of this rank's loader, or the threads."""
        return max(self._config.framework.pytorch.loader.num_workers, 1) if self._framework == "torch" else cores()

    def _setup(self) -> Setup:
        framework = self._config.framework
        torch = self._framework == "torch"
        most = most_of_batches(self._config, self._framework, self._access)
        return Setup(
            framework=self._framework,
            client=self.storage.client,
            workers=self._workers() * self._ranks.ranks,
            ranks=self._ranks.ranks,
            concurrent=(framework.pytorch if torch else framework.tensorflow).reading == "concurrent",
            reduced=self._config.dataset.decode == "reduced",
            batch_bound=most is not None and framework.pytorch.concurrency >= most,
            workers_end=torch
            and framework.pytorch.loader.num_workers > 0
            and not framework.pytorch.loader.persistent_workers,
        )

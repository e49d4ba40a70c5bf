"""The ladder: one training taken apart, rung by rung, on the same samples in one run. `diagnosis` reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from dnnbench.datasets.samples import ImageSamples
from dnnbench.diagnosis import MORE_IN_FLIGHT, Reads, Rungs, Setup, diagnose
from dnnbench.metrics import Round, per_second, percentiles_ms
from dnnbench.metrics_rounds import NS
from dnnbench.plugins import load_class
from dnnbench.probe import cores
from dnnbench.sampling import (
    MOST_IN_FLIGHT,
    ShareTraining,
    in_flight_of,
    loader_pass,
    most_of_batches,
    raw_reads,
    share_of_catalog,
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
        workers = self._setup().workers
        self.catalog, serial = share_of_catalog(self.storage, self.catalog, self._config, in_flight, workers)
        reads = {
            "one reader": serial if one_reader == 1 else self._read(one_reader),
            "loader": self._read(in_flight),
            "more": self._read(min(MORE_IN_FLIGHT * in_flight, 2 * MOST_IN_FLIGHT)),
        }
        held = self.storage
        if self.storage.name != "fs":
            held = HeldStorage(self.storage, self.catalog.items(range(len(self.catalog))), in_flight)
        # From memory: the page cache where there is one, so that a dataset may open its files by itself.
        memory_per_s = _rate(self._pass(self._loader(held), warm=True)[0])
        overhead_per_s = _rate(self._pass(self._loader(held, fixed=True), warm=True)[0])
        self.loader = self._loader(self.storage)
        epoch, batches = self._pass(self.loader, keep=True)
        loader_per_s = _rate(epoch)
        latency_ms = float(percentiles_ms(epoch.tally.latency_ns).get("latency_p50_ms", 0.0))
        compute_per_s = self._compute(batches)
        self.trainer = self._build.make_trainer(self._config, self.loader, len(self.catalog.label_names))
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
            cores=cores(),
            one_core_client=self.storage.one_core,
            loader_cpu_s_per_sample=(epoch.worker_cpu_ns + epoch.process_cpu_ns) / NS / epoch.samples,
        )

    def account(self) -> Round:
        finished = super().account()
        samples = sum(epoch.samples for epoch in finished.epochs)
        rungs = self._rungs(epoch_per_s=per_second(samples, sum(epoch.wall_ns for epoch in finished.epochs)))
        finished.ladder = {
            "samples": len(self.catalog),
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
        return raw_reads(self.storage, self.catalog, self._config, in_flight)

    def _pass(self, loader: Any, warm: bool = False, keep: bool = False) -> tuple[Any, list[Any]]:
        return loader_pass(loader, self.storage, self.catalog, self._config, warm, keep)

    def _compute(self, batches: Sequence[Any]) -> float:
        """Samples/s of the trainer on batches that are in memory, the first one left out where there are more."""
        loader = self._build.memory_loader(batches, self.loader)
        trainer = self._build.make_trainer(self._config, loader, len(self.catalog.label_names))
        trainer.warm_up()
        trainer.train()
        epoch = loader.take_epochs()[-1]
        if len(batches) == 1:
            return per_second(epoch.samples, epoch.compute_ns)
        return per_second(epoch.samples - len(batches[0][1]), epoch.compute_ns - epoch.first_step_ns)

    def _setup(self) -> Setup:
        framework = self._config.framework
        torch = self._framework == "torch"
        most = most_of_batches(self._config, self._framework, self._access)
        return Setup(
            framework=self._framework,
            client=self.storage.client,
            workers=max(framework.pytorch.loader.num_workers, 1) if torch else cores(),
            concurrent=(framework.pytorch if torch else framework.tensorflow).reading == "concurrent",
            reduced=self._config.dataset.decode == "reduced",
            batch_bound=most is not None and framework.pytorch.concurrency >= most,
            workers_end=torch
            and framework.pytorch.loader.num_workers > 0
            and not framework.pytorch.loader.persistent_workers,
        )


def _rate(epoch: Any) -> float:
    return per_second(epoch.samples, epoch.wall_ns)

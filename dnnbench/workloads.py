"""What the benchmarks time: each workload prepares outside of the clock, runs inside it, and accounts after it.

No framework is imported here: loaders and trainers are handed in.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dnnbench.catalog import CHECKSUM, Catalog, list_catalog
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.errors import MeasurementError
from dnnbench.images import EXTENSIONS
from dnnbench.metrics import EpochFigures, Inference, Round, ShardReadings, Tally, check_pass
from dnnbench.storage.base import Item, Storage
from dnnbench.training.emulated import Emulation
from dnnbench.training.history import learned, of_passes


class Workload(Protocol):
    """One benchmark's work. ``what`` names it; ``total`` is the number of objects or samples of a round."""

    what: str
    storage: Storage
    catalog: Catalog
    total: int
    worker_start_s: float | None
    rounds: int | None
    reads_content: bool
    # Whether each rank has a catalog of its own, and not a share of one.
    has_own_part: bool
    part: str

    def prepare(self, number: int) -> None:
        """Makes round ``number`` (from 0) ready, outside of the clock."""

    def again(self) -> bool:
        """Makes the round that has run ready once more, in the same order; False where it cannot run twice."""

    def run(self) -> None:
        """The timed part, and nothing else."""

    def account(self) -> Round:
        """What happened in the round, held against the catalog. Raises `MeasurementError`."""

    def done(self) -> int:
        """Objects or samples done so far in this round, for a live display."""


def part_of(catalog: Catalog) -> str:
    """Which part of a data set a catalog of its objects is: all of its files, or its shards of one format."""
    return "all" if catalog.extensions == EXTENSIONS else catalog.label_names[0]


class Listing:
    """Lists every source and category in parallel and builds the catalog."""

    rounds = None
    worker_start_s = None
    reads_content = False
    has_own_part = False
    part = "all"

    def __init__(
        self, storage: Storage, catalog: Catalog, sources: Sequence[str], labels: Sequence[str], workers: int
    ) -> None:
        self.what = "list"
        self.storage, self.catalog = storage, catalog
        self.total, self.part = len(catalog), part_of(catalog)
        self._sources, self._labels, self._workers = sources, labels, workers
        self._listed: Catalog | None = None

    def prepare(self, number: int) -> None:
        self._listed = None
        self.storage.meter.take()

    def again(self) -> bool:
        self.prepare(0)
        return True

    def run(self) -> None:
        self._listed = list_catalog(self.storage, self._sources, self._labels, self._workers, self.catalog.extensions)

    def account(self) -> Round:
        tally = self.storage.meter.take()
        listed = self._listed
        if listed is None or listed.hash() != self.catalog.hash():
            found = f"{len(listed or ())} objects, and {len(self.catalog)} before"
            raise MeasurementError(
                f"{self.storage.label}: the data set changed between two listings ({found}), or one of them left out a "
                "page; measure one that nobody writes to"
            )
        # What is no sample was listed too.
        return Round(len(listed) + listed.left_out.total(), tally, listed_bytes=listed.total_bytes)

    def done(self) -> int:
        return 0


class Reading:
    """Reads each object of a rank's share once, in a fresh random order, without decoding.

    ``concurrency`` None reads one at a time in the calling thread; a number keeps that many reads
    in flight.
    """

    rounds: int | None = None
    worker_start_s = None
    reads_content = True
    has_own_part = False
    part = "all"

    def __init__(
        self, storage: Storage, catalog: Catalog, concurrency: int | None, seed: int, share: RankShare = ALONE
    ) -> None:
        self.what = "read" if concurrency is None else f"read c{concurrency}"
        self.storage, self.catalog = storage, catalog
        self._mine = share.of(len(catalog))
        self.total, self.part = len(self._mine), part_of(catalog)
        self._concurrency, self._seed = concurrency, seed
        self._items: list[Item] = []
        self._order = np.empty(0, dtype=np.int64)
        self._reads_before = 0

    def prepare(self, number: int) -> None:
        order = np.random.default_rng([self._seed, number]).permutation(len(self.catalog))
        self._order = order[self._mine.start : self._mine.stop]
        self._items = list(self.catalog.items(self._order))
        self.storage.open()
        if number == 0 and self._items:
            # Connecting and signing in happen once in a training's life, so they are not read time.
            if self._concurrency is None:
                self.storage.fetch(*self._items[0])
            else:
                self.storage.warm(self._items, self._concurrency)
        self.again()

    def again(self) -> bool:
        self.storage.meter.take()
        self._reads_before = self.storage.meter.reads
        return True

    def run(self) -> None:
        if self._concurrency is None:
            for item in self._items:
                self.storage.fetch(*item)
        else:
            self.storage.fetch_each(self._items, self._concurrency)

    def account(self) -> Round:
        tally = self.storage.meter.take()
        # Of fewer objects than ranks, as a few shards are, some ranks have none.
        if self.total or not len(self.catalog):
            check_pass(
                f"{self.storage.label}: {self.what}",
                self._order,
                tally,
                self.catalog.sizes_bytes,
                self.total,
                self.catalog.verify == CHECKSUM,
            )
        return Round(
            len(self._order),
            tally,
            in_flight=self._concurrency or 1,
            one_core=self.storage.one_core,
            indices=[self._order],
        )

    def done(self) -> int:
        return self.storage.meter.reads - self._reads_before


class Loader(Protocol):
    """What a metered loader of any framework offers to the workloads here."""

    samples_done: int
    expected_samples: int
    before_epoch: Callable[[], None] | None
    passes: int

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...
    def take_epochs(self) -> list[Any]: ...
    def start_workers(self) -> float | None: ...
    def rewind(self, passes: int) -> None: ...


class Loading:
    """One epoch of a loader per round, batches dropped as they come."""

    rounds: int | None = None
    reads_content = True
    has_own_part = False
    part = "all"

    def __init__(self, storage: Storage, catalog: Catalog, loader: Loader, what: str) -> None:
        self.what = what
        self.storage, self.catalog, self.loader = storage, catalog, loader
        self.total = loader.expected_samples
        self.worker_start_s: float | None = None
        self._done_before = 0

    def prepare(self, number: int) -> None:
        if number == 0:
            self.worker_start_s = self.loader.start_workers()
        self._passes_before = self.loader.passes
        self._begin()

    def again(self) -> bool:
        self.loader.rewind(self._passes_before)
        self._begin()
        return True

    def _begin(self) -> None:
        self.loader.take_epochs()
        self.storage.meter.take()
        self._done_before = self.loader.samples_done

    def run(self) -> None:
        for _ in self.loader:
            pass

    def account(self) -> Round:
        return self._round(self.loader.take_epochs())

    def _round(self, epochs: Sequence[Any], history: Sequence[dict[str, float]] = ()) -> Round:
        """The epochs of one round, each held against the catalog."""
        total, figures = Tally(), []
        for epoch, told in zip(epochs, of_passes(history, len(epochs)), strict=True):
            check_pass(
                f"{self.storage.label}: {self.what}",
                epoch.indices,
                epoch.tally,
                self.catalog.sizes_bytes,
                self.loader.expected_samples,
                self.catalog.verify == CHECKSUM,
                ShardReadings(epoch.used_bytes, *epoch.readings()) if epoch.readings is not None else None,
            )
            figures.append(
                EpochFigures(
                    samples=epoch.samples,
                    read_bytes=epoch.tally.read_bytes,
                    wall_ns=epoch.wall_ns,
                    wait_ns=epoch.wait_ns,
                    compute_ns=epoch.compute_ns,
                    first_batch_ns=epoch.first_batch_ns,
                    first_step_ns=epoch.first_step_ns,
                    retries=epoch.tally.retries,
                    errors=epoch.tally.errors,
                    loss=told.get("loss"),
                    accuracy=told.get("accuracy"),
                    batches=epoch.batches,
                    waits_ns=epoch.waits_ns,
                    computes_ns=epoch.computes_ns,
                    start_ns=epoch.start_ns,
                )
            )
            total += epoch.tally
        return Round(
            objects=sum(figure.samples for figure in figures),
            tally=total,
            used_bytes=None if self.catalog.shards is None else sum(epoch.used_bytes for epoch in epochs),
            epochs=figures,
            worker_cpu_ns=sum(epoch.worker_cpu_ns for epoch in epochs),
            indices=[epoch.indices for epoch in epochs],
        )

    def done(self) -> int:
        # Some make their loader while they prepare, and a live display asks before that.
        loader: Loader | None = getattr(self, "loader", None)
        return 0 if loader is None else loader.samples_done - self._done_before


class Training(Loading):
    """A trainer's own loop over a metered loader: all of its epochs in one round."""

    rounds = 1

    def __init__(self, storage: Storage, catalog: Catalog, loader: Loader, trainer: Any, what: str) -> None:
        super().__init__(storage, catalog, loader, what)
        self.trainer = trainer
        self.total = loader.expected_samples * trainer.epochs

    def prepare(self, number: int) -> None:
        super().prepare(number)
        self.trainer.warm_up()

    def again(self) -> bool:
        # The network has learned from the first attempt: another one would be another training.
        return False

    def run(self) -> None:
        with self.trainer.together():
            self.trainer.train()

    def account(self) -> Round:
        epochs = self.loader.take_epochs()
        if not epochs:
            raise MeasurementError(f"{self.storage.label}: {self.what}: the trainer read nothing from its loader")
        finished = self._round(epochs, learned(getattr(self.trainer, "history", ()), type(self.trainer).__name__))
        if isinstance(self.trainer, Emulation):
            finished.accelerator = self.trainer.accelerator(epochs)
        return finished


class Predictor(Protocol):
    """A trained network of any framework: batches of images to indices of categories."""

    def __call__(self, images: Any) -> npt.NDArray[np.int64]: ...


class Inferring(Loading):
    """A trained network over the held-out part: every sample read, decoded and predicted, batch by batch."""

    part = "held out"

    def __init__(self, storage: Storage, catalog: Catalog, loader: Loader, predict: Predictor, what: str) -> None:
        super().__init__(storage, catalog, loader, what)
        self._predict = predict
        self._batch_ns = array("q")
        self._confusion = np.zeros((0, 0), dtype=np.int64)

    def _begin(self) -> None:
        super()._begin()
        categories = len(self.catalog.label_names)
        self._batch_ns = array("q")
        self._confusion = np.zeros((categories, categories + 1), dtype=np.int64)

    def run(self) -> None:
        none_of_them = len(self.catalog.label_names)
        asked_ns = time.perf_counter_ns()
        for images, labels in self.loader:
            predicted = self._predict(images)
            now_ns = time.perf_counter_ns()
            self._batch_ns.append(now_ns - asked_ns)
            np.add.at(self._confusion, (np.asarray(labels), np.minimum(predicted, none_of_them)), 1)
            asked_ns = now_ns

    def account(self) -> Round:
        finished = super().account()
        finished.inference = Inference(self._confusion.tolist(), self._batch_ns)
        return finished

"""A DataLoader that meters itself: what was read, by whom, how long the loop waited and computed.

The loop that iterates sees plain batches; what its workers do is in `torch_worker`.
"""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dnnbench.config import Config, ConfigError
from dnnbench.datasets.passes import Epoch, MeteredPasses, epoch_order
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset
from dnnbench.datasets.torch_shards import ShardBatches, ShardedDataset
from dnnbench.datasets.torch_worker import (
    Envelope,
    IterableBatches,
    MapBatches,
    Shipped,
    StartWorker,
    check_ships,
    ended_workers_cpu_ns,
    start_forkserver,
)
from dnnbench.errors import MeasurementError
from dnnbench.storage.s3 import NOT_FORKED


class _BatchOrder(Sampler[tuple[list[int], list[int] | None]]):
    """(the indices of a batch, those of the one that the same worker will get next, or None), batch by batch.

    In a fresh order per epoch where ``shuffle``, of which it has its rank's ``share``; none while ``armed`` is False.
    A DataLoader deals batches out to its workers in turn, so the next one of ``workers`` is as many batches later.
    """

    def __init__(
        self, count: int, sizes: list[int], shuffle: bool, seed: int, workers: int, share: RankShare = ALONE
    ) -> None:
        self._count, self._shuffle, self._seed, self._share = count, shuffle, seed, share
        self._workers = max(workers, 1)
        self._ends = list(itertools.accumulate(sizes))
        self.used = sum(sizes)
        self.epoch = 0
        self.armed = True

    def __iter__(self) -> Iterator[tuple[list[int], list[int] | None]]:
        if not self.armed:
            return
        order = epoch_order(self._count, self._seed, self.epoch) if self._shuffle else np.arange(self._count)
        mine = self._share.of(self._count)
        order = order[mine.start : mine.stop]

        def batch(number: int) -> list[int]:
            indices: list[int] = order[self._ends[number - 1] if number else 0 : self._ends[number]].tolist()
            return indices

        for number in range(len(self)):
            later = number + self._workers
            yield batch(number), batch(later) if later < len(self) else None

    def __len__(self) -> int:
        return len(self._ends)


def _as_it_is(envelope: Any) -> Any:
    return envelope


class MeteredLoader(MeteredPasses):
    """Iterates batches ``(images, labels)`` like a DataLoader and keeps an `Epoch` of every pass.

    ``dataset`` is bound; `SequentialDataset` makes it iterable, `ShardedDataset` reads it from shards (by its own plan
    of batches, orders and shares). ``section`` is the configuration's
    ``framework.PyTorch.DataLoader``. ``seed`` makes the orders of the epochs repeatable; ``share`` is what this rank
    reads of them. What a DataLoader has and this has not is asked of the DataLoader.
    """

    def __init__(
        self,
        dataset: RandomAccessDataset | SequentialDataset | ShardedDataset,
        batch_size: int,
        section: Any = None,
        seed: int = 0,
        share: RankShare = ALONE,
    ) -> None:
        super().__init__()
        section = section or Config().framework.pytorch.loader
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, section.num_workers
        self.drop_last = section.drop_last
        self._cpu_ns_by_pid: dict[int, int] = {}
        self._persistent = section.persistent_workers and section.num_workers > 0
        self._start_method = section.multiprocessing_context
        self._armed = torch.ones(1, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._order: _BatchOrder | None = None
        self._number = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._plan = dataset.plan if isinstance(dataset, ShardedDataset) else None
        source: Shipped
        if isinstance(dataset, ShardedDataset):
            source = ShardBatches(dataset, self._armed, self._number)
            sizes = dataset.plan.batch_sizes()
            self.expected_samples, self._length = sum(sizes), len(sizes)
        elif isinstance(dataset, SequentialDataset):
            dataset.batch_size, dataset.drop_last, dataset.rank_share = batch_size, section.drop_last, share
            source = IterableBatches(dataset, self._armed)
            workers = max(self.num_workers, 1)
            sizes = [size for worker in range(workers) for size in dataset.batch_sizes(worker, workers)]
            self.expected_samples, self._length = sum(sizes), len(sizes)
        else:
            sizes = share.batch_sizes(len(dataset), batch_size, section.drop_last)
            self._order = _BatchOrder(len(dataset), sizes, section.shuffle, seed, section.num_workers, share)
            source = MapBatches(dataset)
            self.expected_samples, self._length = self._order.used, len(self._order)
        if self.num_workers and section.multiprocessing_context != "fork":
            check_ships(source)
        elif self.num_workers and source.dataset.storage.client in NOT_FORKED:
            raise ConfigError(
                "framework.PyTorch.DataLoader.multiprocessing_context: workers that are forked from a process that has "
                f'used {source.dataset.storage.client} hang; use "forkserver"'
            )
        self._loader: DataLoader[Any] = DataLoader(
            source,
            sampler=self._order,
            batch_size=None,
            collate_fn=_as_it_is,
            pin_memory=section.pin_memory,
            worker_init_fn=StartWorker(source),
            **self._worker_options(section),
        )

    @staticmethod
    def _worker_options(section: Any) -> dict[str, Any]:
        if section.num_workers == 0:
            return {}
        if section.multiprocessing_context == "fork" and "tensorflow" in sys.modules:
            raise ConfigError(
                "framework.PyTorch.DataLoader.multiprocessing_context: fork after TensorFlow has started hangs; "
                'use "forkserver"'
            )
        if section.multiprocessing_context == "forkserver":
            start_forkserver()
        return {
            "num_workers": section.num_workers,
            "persistent_workers": section.persistent_workers,
            "prefetch_factor": section.prefetch_factor,
            "multiprocessing_context": section.multiprocessing_context,
        }

    def __len__(self) -> int:
        return self._length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def _start_pass(self, number: int) -> Iterator[Any]:
        self._number.fill_(number)
        if self._order is not None:
            self._order.epoch = number
        if self._workers_end:
            self._ended_cpu_ns = ended_workers_cpu_ns(self._start_method)
        self._iterator: Any = iter(self._loader)
        iterator: Iterator[Any] = self._iterator
        return iterator

    def _next(self, iterator: Any) -> Any:
        try:
            return next(iterator, None)
        except (OSError, RuntimeError) as exc:
            # torch and the pipes tell of a dead worker as of a lost connection, which reads like the storage's.
            dead = [worker for worker in getattr(iterator, "_workers", ()) if not worker.is_alive()]
            if not dead:
                raise
            codes = ", ".join(f"{worker.pid} ({worker.exitcode})" for worker in dead)
            raise MeasurementError(
                f"a loader worker died in the middle of an epoch: process (exit code) {codes}; -9 is killed, "
                "mostly for want of memory: set fewer num_workers"
            ) from exc

    def _unpack(self, received: Envelope, epoch: Epoch) -> Any:
        epoch.tally += received.tally
        if self._plan is not None:
            epoch.used_bytes = (epoch.used_bytes or 0) + (received.used_bytes or 0)
        if self._persistent:
            epoch.worker_cpu_ns += received.cpu_ns - self._cpu_ns_by_pid.get(received.pid, 0)
            self._cpu_ns_by_pid[received.pid] = received.cpu_ns
        if received.error is not None:
            raise received.error
        self._saw(epoch, received.indices)
        return received.batch

    def _end_pass(self, epoch: Epoch) -> None:
        if self._plan is not None:
            # Asked after the clock.
            epoch.readings = partial(self._plan.readings, int(self._number.item()), max(self.num_workers, 1))
        # Workers that do not persist are ended here: left to the garbage collector, each that is
        # not yet through its share when an error stops the loop costs five seconds.
        if self._workers_end:
            self._iterator._shutdown_workers()
            epoch.worker_cpu_ns = ended_workers_cpu_ns(self._start_method) - self._ended_cpu_ns

    @property
    def _workers_end(self) -> bool:
        """Whether workers end with the pass."""
        return self.num_workers > 0 and not self._persistent

    def start_workers(self) -> float | None:
        """Starts persistent workers without reading anything; returns the seconds it took, None where none start.

        Training starts them once for all of its epochs, so their start is no part of an epoch's time.
        """
        if not self._persistent:
            return None
        start_ns = time.perf_counter_ns()
        self._arm(False)
        # The first pass starts the processes; the second returns when each of them has answered.
        for _ in range(2):
            for _envelope in self._loader:
                raise AssertionError("a worker read something before the clock ran")
        self._arm(True)
        self._note_worker_cpu()
        return (time.perf_counter_ns() - start_ns) / 1e9

    def _arm(self, armed: bool) -> None:
        self._armed.fill_(armed)
        if self._order is not None:
            self._order.armed = armed

    def _note_worker_cpu(self) -> None:
        import psutil

        for worker in getattr(self._loader._iterator, "_workers", ()):
            times = psutil.Process(worker.pid).cpu_times()
            self._cpu_ns_by_pid[worker.pid] = round((times.user + times.system) * 1e9)

    def keep(self, batch: Any) -> Any:
        """A copy: each tensor that a worker sent holds a file open, and memory of which a machine has little."""
        pinned = self._loader.pin_memory and torch.cuda.is_available()
        return copy.deepcopy(batch) if self.num_workers and not pinned else batch

    def close(self) -> None:
        """Ends the workers."""
        iterator = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None

"""A DataLoader that meters itself: what was read, by whom, how long the loop waited and computed.

Each worker makes whole batches and sends, with the batch, what its storage did for it. Nothing is
shared between workers, and the loop that iterates sees plain batches.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from dnnbench.config import Config, ConfigError
from dnnbench.datasets.passes import Epoch, MeteredPasses, epoch_order
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset
from dnnbench.errors import DnnbenchError
from dnnbench.metrics import Tally
from dnnbench.plugins import USER_MODULE, load_file

_PRELOAD = ["__main__", "dnnbench.datasets.torch_loader"]


@dataclass
class _Envelope:
    """A batch on its way out of a worker, with the account of what it took; or the error instead."""

    batch: Any
    indices: list[int]
    tally: Tally
    pid: int
    cpu_ns: int
    error: DnnbenchError | None = None

    def pin_memory(self) -> _Envelope:
        # Called by torch for objects that it does not know.
        self.batch = pin_memory(self.batch)  # type: ignore[no-untyped-call]
        return self


def _pack(dataset: RandomAccessDataset, samples: Iterator[tuple[int, tuple[Any, int]]]) -> _Envelope:
    """Makes a batch of (index, sample) pairs. An error of ours travels as itself, not as torch's retelling."""
    indices, read = [], []
    batch, error = None, None
    try:
        for index, (image, label) in samples:
            indices.append(index)
            # PIL images are the one usual kind of image that torch does not collate.
            read.append((np.array(image) if hasattr(image, "getbands") else image, label))
        batch = default_collate(read) if read else None
    except DnnbenchError as exc:
        error = exc
    return _Envelope(batch, indices, dataset.storage.meter.take(), os.getpid(), time.process_time_ns(), error)


class _Shipped:
    """A dataset that finds its class again in a worker, also where that comes from a user's file."""

    def __init__(self, dataset: RandomAccessDataset) -> None:
        self.dataset = dataset

    def __reduce__(self) -> tuple[Any, ...]:
        module = type(self.dataset).__module__
        file = sys.modules[module].__file__ if module.startswith(USER_MODULE) else None
        return _unship, (type(self), file, bytes(ForkingPickler.dumps(self._state())))

    def _state(self) -> tuple[Any, ...]:
        return (self.dataset,)


def _unship(kind: type, file: str | None, state: bytes) -> Any:
    if file:
        load_file("dataset.name", Path(file))
    return kind(*ForkingPickler.loads(state))


class _MapBatches(_Shipped, Dataset[_Envelope]):
    """Indexed by a whole batch's indices."""

    def __getitem__(self, indices: Sequence[int]) -> _Envelope:
        return _pack(self.dataset, ((i, self.dataset[i]) for i in indices))


class _IterableBatches(_Shipped, IterableDataset[_Envelope]):
    """Yields whole batches of a worker's share; yields nothing while ``armed`` is 0."""

    def __init__(self, sequential: SequentialDataset, armed: torch.Tensor) -> None:
        super().__init__(sequential.dataset)
        self.sequential, self.armed = sequential, armed

    def _state(self) -> tuple[Any, ...]:
        return (self.sequential, self.armed)

    def __iter__(self) -> Iterator[_Envelope]:
        if not self.armed.item():
            return
        samples = iter(self.sequential)
        while True:
            envelope = _pack(self.dataset, itertools.islice(samples, self.sequential.batch_size))
            if envelope.error is None and not envelope.indices:
                return
            yield envelope


class _BatchOrder(Sampler[list[int]]):
    """The indices of each batch, in a fresh order per epoch where ``shuffle``; none while ``armed`` is False."""

    def __init__(self, count: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int) -> None:
        self._count, self._batch_size, self._shuffle, self._seed = count, batch_size, shuffle, seed
        self.used = count - count % batch_size if drop_last else count
        self.epoch = 0
        self.armed = True

    def __iter__(self) -> Iterator[list[int]]:
        if not self.armed:
            return
        order = np.arange(self._count)
        if self._shuffle:
            order = epoch_order(self._count, self._seed, self.epoch)
        for start in range(0, self.used, self._batch_size):
            yield order[start : min(start + self._batch_size, self.used)].tolist()

    def __len__(self) -> int:
        return (self.used + self._batch_size - 1) // self._batch_size


def _as_it_is(envelope: Any) -> Any:
    return envelope


class MeteredLoader(MeteredPasses):
    """Iterates batches ``(images, labels)`` like a DataLoader and keeps an `Epoch` of every pass.

    ``dataset`` is bound; `SequentialDataset` makes it iterable. ``section`` is the configuration's
    ``framework.PyTorch.DataLoader``. ``seed`` makes the orders of the epochs repeatable. What a
    DataLoader has and this has not is asked of the DataLoader.
    """

    def __init__(
        self, dataset: RandomAccessDataset | SequentialDataset, batch_size: int, section: Any = None, seed: int = 0
    ) -> None:
        super().__init__()
        section = section or Config().framework.pytorch.loader
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, section.num_workers
        self.drop_last = section.drop_last
        self._cpu_ns_by_pid: dict[int, int] = {}
        self._persistent = section.persistent_workers and section.num_workers > 0
        self._armed = torch.ones(1, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._order: _BatchOrder | None = None
        source: _Shipped
        if isinstance(dataset, SequentialDataset):
            dataset.batch_size, dataset.drop_last = batch_size, section.drop_last
            source = _IterableBatches(dataset, self._armed)
            shares = [len(dataset.share(w, max(self.num_workers, 1))) for w in range(max(self.num_workers, 1))]
            self.expected_samples = sum(shares)
            self._length = sum(-(-share // batch_size) for share in shares)
        else:
            self._order = _BatchOrder(len(dataset), batch_size, section.shuffle, section.drop_last, seed)
            source = _MapBatches(dataset)
            self.expected_samples, self._length = self._order.used, len(self._order)
        self._loader: DataLoader[Any] = DataLoader(
            source,
            sampler=self._order,
            batch_size=None,
            collate_fn=_as_it_is,
            pin_memory=section.pin_memory,
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
            # The server imports torch once, and every worker is forked from it.
            multiprocessing.set_forkserver_preload(_PRELOAD)
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
        if self._order is not None:
            self._order.epoch = number
        self._iterator: Any = iter(self._loader)
        iterator: Iterator[Any] = self._iterator
        return iterator

    def _unpack(self, received: _Envelope, epoch: Epoch) -> Any:
        epoch.tally += received.tally
        if received.pid != os.getpid():
            epoch.worker_cpu_ns += received.cpu_ns - self._cpu_ns_by_pid.get(received.pid, 0)
            self._cpu_ns_by_pid[received.pid] = received.cpu_ns
        if received.error is not None:
            raise received.error
        self._saw(epoch, received.indices)
        return received.batch

    def _end_pass(self, epoch: Epoch) -> None:
        # Workers that do not persist are ended here: left to the garbage collector, each that is
        # not yet through its share when an error stops the loop costs five seconds.
        if self.num_workers and not self._persistent:
            self._iterator._shutdown_workers()

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

    def close(self) -> None:
        """Ends the workers."""
        iterator = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None

"""What runs in the workers of a metered DataLoader, and how these start: whole batches, with their account.

Each worker sends, with a batch, what its storage did for it. Nothing is shared between workers.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from dnnbench.datasets.samples import ReadAhead
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset
from dnnbench.errors import DnnbenchError
from dnnbench.metrics import Tally
from dnnbench.plugins import USER_MODULE, PluginError, load_file
from dnnbench.secrets import hide_secrets

_PRELOAD = ["__main__", "dnnbench.datasets.torch_worker"]


@dataclass
class Envelope:
    """A batch on its way out of a worker, with the account of what it took; or the error instead."""

    batch: Any
    indices: list[int]
    tally: Tally
    pid: int
    cpu_ns: int
    error: DnnbenchError | None = None
    # The samples' own bytes, where more are read to get them.
    used_bytes: int | None = None

    def pin_memory(self) -> Envelope:
        # Called by torch for objects that it does not know.
        self.batch = pin_memory(self.batch)  # type: ignore[no-untyped-call]
        return self


class StartWorker:
    """What a worker does before it reads: it opens its storage, and sees to it that it ends with its parent."""

    def __init__(self, source: Shipped) -> None:
        self._source = source

    def __call__(self, number: int) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        # What fails here fails again, and is told, where the first sample is read.
        with contextlib.suppress(DnnbenchError):
            self._source.dataset.storage.open()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: workers of one that was killed would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def pack_batch(dataset: RandomAccessDataset, samples: Callable[[], Iterable[tuple[int, tuple[Any, int]]]]) -> Envelope:
    """Makes a batch of (index, sample) pairs. An error of ours travels as itself, not as torch's retelling."""
    indices, read = [], []
    batch, error = None, None
    try:
        for index, (image, label) in samples():
            indices.append(index)
            # PIL images are the one usual kind of image that torch does not collate.
            read.append((np.array(image) if hasattr(image, "getbands") else image, label))
        batch = dataset.collate_fn(read) if read else None
    except DnnbenchError as exc:
        error = exc
    except Exception as exc:
        # torch hands it on as a text, in which are those of the errors behind it.
        hide_secrets(exc)
        raise
    return Envelope(batch, indices, dataset.storage.meter.take(), os.getpid(), time.process_time_ns(), error)


class Shipped:
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


def check_ships(shipped: Shipped) -> None:
    """Raises `PluginError` where a dataset cannot be sent to a worker that is not forked from this process."""
    try:
        # Not the whole of it: the shared tensor in it would stay open for a worker that never asks for it.
        ForkingPickler.dumps(shipped.dataset)
    # What pickle raises for what it cannot do has no common base.
    except (pickle.PicklingError, AttributeError, TypeError) as exc:
        raise PluginError(
            f"dataset.name: {type(shipped.dataset).__name__} cannot be sent to a loader worker ({exc}); define what it "
            'holds in a module, or set framework.PyTorch.DataLoader.multiprocessing_context to "fork"'
        ) from exc


class MapBatches(Shipped, Dataset[Envelope]):
    """Indexed by (a whole batch's indices, those of the batch that this worker will be asked for next, or None)."""

    def __init__(self, dataset: RandomAccessDataset) -> None:
        super().__init__(dataset)
        self._ahead = ReadAhead(dataset)

    def __getitem__(self, wanted: tuple[list[int], list[int] | None]) -> Envelope:
        indices, upcoming = wanted
        if self.dataset.concurrency is None or self.dataset.fixed_image is not None:
            return pack_batch(self.dataset, lambda: ((index, self.dataset.loader_sample(index)) for index in indices))
        return pack_batch(self.dataset, lambda: self._ahead.samples(indices, upcoming))


class IterableBatches(Shipped, IterableDataset[Envelope]):
    """Yields whole batches of a worker's share; yields nothing while ``armed`` is 0."""

    def __init__(self, sequential: SequentialDataset, armed: torch.Tensor) -> None:
        super().__init__(sequential.dataset)
        self.sequential, self.armed = sequential, armed

    def _state(self) -> tuple[Any, ...]:
        return (self.sequential, self.armed)

    def __iter__(self) -> Iterator[Envelope]:
        if not self.armed.item():
            return
        info, samples = get_worker_info(), iter(self.sequential)
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for size in self.sequential.batch_sizes(worker, workers):
            yield pack_batch(self.dataset, partial(itertools.islice, samples, size))


def start_forkserver() -> None:
    """Starts the server that imports torch once and from which every worker is forked; again does nothing."""
    multiprocessing.set_forkserver_preload(_PRELOAD)
    # What it preloads it looks for in its environment's path alone, and says nothing where it finds nothing.
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = root if before is None else root + os.pathsep + before
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def ended_workers_cpu_ns(start_method: str) -> int:
    """Processor time of all workers that have ended so far, as whoever waited for them was told."""
    if start_method != "forkserver":
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return round((used.ru_utime + used.ru_stime) * 1e9)
    import psutil

    server: Any = forkserver._forkserver
    times = psutil.Process(server._forkserver_pid).cpu_times()
    return int((times.children_user + times.children_system) * 1e9)

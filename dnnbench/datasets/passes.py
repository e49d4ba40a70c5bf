"""Meters a loop over batches from outside: time in ``next`` is waiting, time between is computing."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnbench.config import ConfigError
from dnnbench.metrics import Tally
from dnnbench.probe import cores


@dataclass
class Epoch:
    """One pass of a loop over the loader. Times in nanoseconds; ``complete`` is False where it broke off."""

    indices: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    tally: Tally = field(default_factory=Tally)
    batches: int = 0
    wait_ns: int = 0
    compute_ns: int = 0
    first_batch_ns: int = 0
    first_step_ns: int = 0
    last_batch_ns: int = 0
    start_ns: int = 0
    wall_ns: int = 0
    worker_cpu_ns: int = 0
    # Of the process that iterates, where someone watched it.
    process_cpu_ns: int = 0
    complete: bool = False
    # Of samples in shards: their own bytes, and what says how many readings there must be, of how many bytes.
    used_bytes: int | None = None
    readings: Callable[[], tuple[int, int]] | None = field(default=None, repr=False)
    seen: array[int] = field(default_factory=lambda: array("q"), repr=False)
    # Of each batch, what ``wait_ns`` and ``compute_ns`` are the sums of; a last wait finds that there is none.
    waits_ns: array[int] = field(default_factory=lambda: array("q"), repr=False)
    computes_ns: array[int] = field(default_factory=lambda: array("q"), repr=False)

    @property
    def samples(self) -> int:
        return len(self.indices)

    def waited(self, wait_ns: int) -> None:
        """Notes the time between asking for a batch and getting it, or learning that there is none."""
        self.wait_ns += wait_ns
        self.waits_ns.append(wait_ns)

    def computed(self, compute_ns: int) -> None:
        """Notes the time between getting a batch and asking for the next one."""
        self.compute_ns += compute_ns
        self.computes_ns.append(compute_ns)
        if self.batches == 1:
            self.first_step_ns = compute_ns


class MeteredPasses(ABC):
    """A loader of batches that keeps an `Epoch` of every pass over it.

    A subclass starts a pass, unpacks what its iterator yields into a batch, and says how many
    samples (``expected_samples``) and batches (``len``) a pass has.
    """

    expected_samples: int

    def __init__(self) -> None:
        self.samples_done = 0
        # Called before each pass and outside of its times; what makes the page cache cold hangs here.
        self.before_epoch: Callable[[], None] | None = None
        # The first batch of the last pass: what an image is like once it has come through a user's dataset.
        self.first_batch: Any = None
        self._passes = 0
        self._epochs: list[Epoch] = []

    @abstractmethod
    def _start_pass(self, number: int) -> Iterator[Any]:
        """The iterator of pass ``number`` (from 0); it reads nothing before this is called."""

    @abstractmethod
    def _unpack(self, received: Any, epoch: Epoch) -> Any:
        """The batch in what the iterator yielded; notes its samples with `_saw`. Raises what went wrong."""

    def _end_pass(self, epoch: Epoch) -> None:  # noqa: B027 (workers may have told everything already)
        """Completes the account of a pass, and lets go of what it holds."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]:
        epoch = self.open_pass()
        asked_ns = start_ns = epoch.start_ns = time.perf_counter_ns()
        iterator: Iterator[Any] | None = self._start_pass(self._passes - 1)
        ended = False
        try:
            while True:
                received = self._next(iterator)
                got_ns = time.perf_counter_ns()
                if received is None:
                    # Letting go of what a pass holds is the loader's doing, and may take it long.
                    iterator, ended = None, True
                    self._end_pass(epoch)
                    epoch.waited(time.perf_counter_ns() - asked_ns)
                    epoch.complete = True
                    return
                epoch.waited(got_ns - asked_ns)
                batch = self._unpack(received, epoch)
                epoch.last_batch_ns = got_ns - start_ns
                if epoch.batches == 1:
                    epoch.first_batch_ns, self.first_batch = got_ns - start_ns, batch
                yield batch
                asked_ns = time.perf_counter_ns()
                epoch.computed(asked_ns - got_ns)
        finally:
            if not ended:
                iterator = None
                self._end_pass(epoch)
            self.close_pass(epoch, time.perf_counter_ns() - start_ns)

    def _next(self, iterator: Any) -> Any:
        return next(iterator, None)

    def open_pass(self) -> Epoch:
        """Begins the account of a pass."""
        if self.before_epoch is not None:
            self.before_epoch()
        self._passes += 1
        return Epoch()

    def close_pass(self, epoch: Epoch, wall_ns: int) -> None:
        """Ends the account of a pass that took ``wall_ns``; `_end_pass` has been called."""
        epoch.wall_ns = wall_ns
        epoch.indices, epoch.seen = np.asarray(epoch.seen, dtype=np.int64), array("q")
        self._epochs.append(epoch)

    def _saw(self, epoch: Epoch, indices: list[int]) -> None:
        epoch.batches += 1
        epoch.seen.extend(indices)
        self.samples_done += len(indices)

    def check_not_empty(self) -> None:
        """Raises `ConfigError` where a pass has no batch, so that there is nothing to measure or to train on."""
        if not self.expected_samples:
            raise ConfigError(
                "framework.batch_size: the data set (or a rank's or worker's share of it) makes no whole batch, and "
                "drop_last leaves out the rest, or it has fewer samples than ranks; set a smaller batch_size, "
                "drop_last to false, or fewer execution.ranks"
            )

    def take_epochs(self) -> list[Epoch]:
        """The passes since the last `take_epochs`."""
        epochs, self._epochs = self._epochs, []
        return epochs

    @property
    def passes(self) -> int:
        """How many passes have begun."""
        return self._passes

    def rewind(self, passes: int) -> None:
        """Counts from ``passes`` again, so that the next pass has the order of that one.

        A shuffle buffer of TensorFlow's goes on, and gives another order.
        """
        self._passes = passes

    def start_workers(self) -> float | None:
        """Starts what can be started before reading; the seconds that took, or None."""
        return None

    def keep(self, batch: Any) -> Any:
        """The batch, such that many of them may be kept."""
        return batch

    def close(self) -> None:  # noqa: B027 (not every loader holds something)
        """Gives back what the loader holds."""


def batch_bytes(batch: Any) -> int:
    """Bytes of the tensors and arrays of a batch, in whatever lists, tuples and dictionaries."""
    if isinstance(batch, list | tuple | dict):
        return sum(map(batch_bytes, batch.values() if isinstance(batch, dict) else batch))
    return int(getattr(batch if hasattr(batch, "nbytes") else np.asarray(batch), "nbytes", 0))


def batches_at_once(concurrency: int, batch_size: int) -> int:
    """How many whole batches tf.data reads at a time, where they share ``concurrency`` reads in flight.

    As many as can be decoded at a time, or as have so many objects.
    """
    return min(max(cores(), -(-concurrency // batch_size)), concurrency)


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The shuffled order of an epoch: the same for every framework, loader and number of workers."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class MemoryBatches(MeteredPasses):
    """Batches ``(images, labels)`` that are in memory already, metered like any others.

    What it has not, such as ``dataset``, is asked of the loader ``like``, where given.
    """

    def __init__(self, batches: Sequence[tuple[Any, Any]], like: MeteredPasses | None = None) -> None:
        super().__init__()
        self._batches, self._like = batches, like
        self.expected_samples = sum(len(labels) for _, labels in batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self._like is None:
            raise AttributeError(name)
        return getattr(self._like, name)

    def _start_pass(self, number: int) -> Iterator[Any]:
        return iter(self._batches)

    def _unpack(self, received: Any, epoch: Epoch) -> Any:
        self._saw(epoch, list(range(len(epoch.seen), len(epoch.seen) + len(received[1]))))
        return received

"""Many reads at once: threads that wait for the storage, with a bounded number of objects asked for and not yet taken.

Threads, not coroutines: the client libraries let go of the interpreter while they wait, and a thread's
read costs a third of the processor time of an awaited one (obstore, 72 KB objects, 32 in flight).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
# Objects that may be asked for and not yet taken, as a multiple of the reads in flight: so many that a
# reader that is ready finds the next one waiting, and no more.
AHEAD = 2


class Readers:
    """Threads that make calls for whoever asks; kept between uses, since a loader asks once per batch.

    They hold nothing of their owner, and end with it. Belongs to one process.
    """

    def __init__(self, owner: object) -> None:
        self._idle: dict[int, list[SimpleQueue[Any]]] = {}
        self._lock = threading.Lock()
        weakref.finalize(owner, _end, self._idle)

    def results(
        self, call: Callable[[Any], T], items: Iterable[Any], concurrency: int, in_order: bool = False
    ) -> Iterator[tuple[int, T]]:
        """(position, ``call(item)``) of every item, with ``concurrency`` calls at a time.

        In order of completion, or of the items. ``items`` is drawn from in the caller's thread, and no
        further than ``AHEAD * concurrency`` beyond what the caller has taken. The first error stops the
        rest and is raised; so does leaving the iterator early. Calls under way are waited for.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 (found {concurrency})")
        return _Job(call, iter(items), concurrency, in_order).run(self)

    def each(self, call: Callable[[Any], object], items: Sequence[Any], concurrency: int) -> None:
        """Calls ``call(item)`` for every item, with ``concurrency`` calls at a time, and returns when all are done.

        For what needs no answer: nothing is handed from thread to thread, which costs a fast storage a quarter
        of its rate. The first error stops the rest and is raised.
        """
        remaining = iter(items)
        stopped = threading.Event()
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def drain() -> None:
            error: BaseException | None = None
            try:
                # One step of a sequence's iterator is one of the interpreter's, so threads may share it.
                for item in remaining:
                    if stopped.is_set():
                        break
                    call(item)
            except BaseException as exc:
                stopped.set()
                error = exc
            done.put(error)

        calls = self.take(concurrency)
        errors: list[BaseException] = []
        running = concurrency
        try:
            for _ in range(concurrency):
                calls.put(drain)
            while running:
                error = done.get()
                running -= 1
                if error is not None:
                    errors.append(error)
        finally:
            stopped.set()
            for _ in range(running):
                done.get()
            self.give_back(concurrency, calls)
        if errors:
            raise errors[0]

    def take(self, concurrency: int) -> SimpleQueue[Any]:
        """The queue of ``concurrency`` threads that nobody else uses."""
        with self._lock:
            idle = self._idle.setdefault(concurrency, [])
            if idle:
                return idle.pop()
        calls: SimpleQueue[Any] = SimpleQueue()
        for _ in range(concurrency):
            threading.Thread(target=_work, args=(calls,), daemon=True, name="dnnbench-read").start()
        return calls

    def give_back(self, concurrency: int, calls: SimpleQueue[Any]) -> None:
        with self._lock:
            self._idle.setdefault(concurrency, []).append(calls)

    def close(self) -> None:
        """Ends the threads that are idle."""
        with self._lock:
            _end(self._idle)


def _end(idle: dict[int, list[SimpleQueue[Any]]]) -> None:
    for concurrency, queues in idle.items():
        for calls in queues:
            for _ in range(concurrency):
                calls.put(None)
    idle.clear()


def _work(calls: SimpleQueue[Any]) -> None:
    while (task := calls.get()) is not None:
        task()
        # Lest a thread that waits keep alive what it made the last call for.
        del task


class _Job(Generic[T]):
    """One use of the threads."""

    def __init__(self, call: Callable[[Any], T], items: Iterator[Any], concurrency: int, in_order: bool) -> None:
        self._call, self._items, self._concurrency, self._in_order = call, enumerate(items), concurrency, in_order
        self._done: SimpleQueue[tuple[int, T, BaseException | None]] = SimpleQueue()
        self._stopped = False

    def call_one(self, position: int, item: Any) -> None:
        result: Any = None
        error: BaseException | None = None
        if not self._stopped:
            try:
                result = self._call(item)
            except BaseException as exc:
                error = exc
        self._done.put((position, result, error))

    def run(self, readers: Readers) -> Iterator[tuple[int, T]]:
        calls = readers.take(self._concurrency)
        outstanding = 0
        try:
            early: dict[int, T] = {}
            expected = 0
            for first in itertools.islice(self._items, AHEAD * self._concurrency):
                calls.put(partial(self.call_one, *first))
                outstanding += 1
            while outstanding:
                position, result, error = self._done.get()
                outstanding -= 1
                if error is not None:
                    raise error
                ready = [(position, result)]
                if self._in_order:
                    early[position] = result
                    ready = []
                    while expected in early:
                        ready.append((expected, early.pop(expected)))
                        expected += 1
                for one in ready:
                    if (item := next(self._items, None)) is not None:
                        calls.put(partial(self.call_one, *item))
                        outstanding += 1
                    yield one
        finally:
            self._stopped = True
            for _ in range(outstanding):
                self._done.get()
            readers.give_back(self._concurrency, calls)


class Stream(Generic[T]):
    """Calls whose results are taken in the order in which they were asked for, ``concurrency`` of them at a time.

    No more than ``AHEAD * concurrency`` are begun and not yet taken. For one thread; `stop` gives back the threads.
    """

    def __init__(self, readers: Readers, call: Callable[[Any], T], concurrency: int) -> None:
        self._readers, self._call, self._concurrency = readers, call, concurrency
        self._calls = readers.take(concurrency)
        # A stream that nobody stops, such as of a loader that is let go, ends its threads itself.
        self._end = weakref.finalize(self, _end, {concurrency: [self._calls]})
        self._waiting: deque[Any] = deque()
        self._done: SimpleQueue[tuple[int, T, BaseException | None]] = SimpleQueue()
        self._early: dict[int, tuple[T, BaseException | None]] = {}
        self._begun = self._taken = 0
        self._arrived = 0
        self._stopped = False

    def ask(self, items: Iterable[Any]) -> None:
        """Adds to what will be taken."""
        self._waiting.extend(items)
        self._begin()

    def take(self) -> T:
        """The next result, or its error; waits for it."""
        self._begin()
        if self._taken == self._begun:
            raise LookupError("nothing was asked for")
        while self._taken not in self._early:
            self._await_one()
        result, error = self._early.pop(self._taken)
        self._taken += 1
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Drops what was asked for and not taken; calls under way are waited for."""
        self._stopped = True
        self._waiting.clear()
        while self._arrived < self._begun:
            self._await_one()
        if self._end.detach():
            self._readers.give_back(self._concurrency, self._calls)

    def _begin(self) -> None:
        while self._waiting and self._begun - self._taken < AHEAD * self._concurrency:
            self._calls.put(partial(self._call_one, self._begun, self._waiting.popleft()))
            self._begun += 1

    def _call_one(self, position: int, item: Any) -> None:
        result: Any = None
        error: BaseException | None = None
        if not self._stopped:
            try:
                result = self._call(item)
            except BaseException as exc:
                error = exc
        self._done.put((position, result, error))

    def _await_one(self) -> None:
        position, result, error = self._done.get()
        self._arrived += 1
        self._early[position] = result, error

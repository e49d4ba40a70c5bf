"""Many reads at once: threads that wait for the storage, with a bounded number of objects asked for and not yet taken.

Threads, not coroutines: the client libraries let go of the interpreter while they wait, and a thread's
read costs a third of the processor time of an awaited one (obstore, 72 KB objects, 32 in flight).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from dnnbench.errors import DnnbenchError

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
        return self._results(call, iter(items), _no_more_than(items, concurrency), in_order)

    def _results(
        self, call: Callable[[Any], T], items: Iterator[Any], concurrency: int, in_order: bool
    ) -> Iterator[tuple[int, T]]:
        calls = _Calls(self, call, concurrency)
        try:
            for item in itertools.islice(items, AHEAD * concurrency):
                calls.begin(item)
            early: dict[int, T] = {}
            expected = 0
            while calls.outstanding:
                position, result, error = calls.await_one()
                if error is not None:
                    raise error
                ready = [(position, result)]
                if in_order:
                    early[position] = result
                    ready = []
                    while expected in early:
                        ready.append((expected, early.pop(expected)))
                        expected += 1
                for one in ready:
                    for item in itertools.islice(items, 1):
                        calls.begin(item)
                    yield one
        finally:
            calls.stop()

    def each(self, call: Callable[[Any], object], items: Iterable[Any], concurrency: int) -> None:
        """Calls ``call(item)`` for every item, with ``concurrency`` calls at a time, and returns when all are done.

        One step of the items' iterator is one of the interpreter's, as that of a sequence is: threads share it.
        For what needs no answer: nothing is handed from thread to thread, which costs a fast storage a quarter
        of its rate. The first error stops the rest and is raised.
        """
        concurrency = _no_more_than(items, concurrency)
        remaining = iter(items)
        stopped = threading.Event()

        def drain(_: int) -> None:
            try:
                for item in remaining:
                    if stopped.is_set():
                        return
                    call(item)
            except BaseException:
                stopped.set()
                raise

        calls = _Calls(self, drain, concurrency)
        try:
            for number in range(concurrency):
                calls.begin(number)
            while calls.outstanding:
                _, _, error = calls.await_one()
                if error is not None:
                    raise error
        finally:
            stopped.set()
            calls.stop()

    def take(self, concurrency: int) -> SimpleQueue[Any]:
        """The queue of ``concurrency`` threads that nobody else uses."""
        with self._lock:
            idle = self._idle.setdefault(concurrency, [])
            if idle:
                return idle.pop()
        calls: SimpleQueue[Any] = SimpleQueue()
        for started in range(concurrency):
            try:
                threading.Thread(target=_work, args=(calls,), daemon=True, name="dnnbench-read").start()
            except RuntimeError as exc:
                _end({started: [calls]})
                raise DnnbenchError(
                    f"{concurrency} reads at a time need as many threads, and only {started} could be started ({exc}); "
                    "set a lower concurrency, or allow more processes (ulimit -u)"
                ) from exc
        return calls

    def give_back(self, concurrency: int, calls: SimpleQueue[Any]) -> None:
        with self._lock:
            self._idle.setdefault(concurrency, []).append(calls)

    def close(self) -> None:
        """Ends the threads that are idle."""
        with self._lock:
            _end(self._idle)


def _no_more_than(items: Iterable[Any], concurrency: int) -> int:
    """As many calls at a time as there are items, where that is known: each is a thread."""
    return min(concurrency, max(len(items), 1)) if isinstance(items, Sized) else concurrency


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


class _Calls(Generic[T]):
    """Threads that nobody else uses, the calls that they were given, and what came of them. `stop` gives them back."""

    def __init__(self, readers: Readers, call: Callable[[Any], T], concurrency: int) -> None:
        self._readers, self._call, self._concurrency = readers, call, concurrency
        self._queue = readers.take(concurrency)
        # Threads that nobody gives back, such as those of a loader that is let go, are ended.
        self._end = weakref.finalize(self, _end, {concurrency: [self._queue]})
        self._done: SimpleQueue[tuple[int, T, BaseException | None]] = SimpleQueue()
        self.begun = 0
        # Calls that were begun and not awaited.
        self.outstanding = 0
        self._stopped = False

    def begin(self, item: Any) -> None:
        """Hands over one more call; its position is how many were before it."""
        self._queue.put(partial(self._call_one, self.begun, item))
        self.begun += 1
        self.outstanding += 1

    def await_one(self) -> tuple[int, T, BaseException | None]:
        """(position, result, error) of the next call to end."""
        ended = self._done.get()
        self.outstanding -= 1
        return ended

    def stop(self) -> None:
        """Leaves out calls that no thread has begun, and waits for the others."""
        self._stopped = True
        while self.outstanding:
            self.await_one()
        if self._end.detach():
            self._readers.give_back(self._concurrency, self._queue)

    def _call_one(self, position: int, item: Any) -> None:
        result: Any = None
        error: BaseException | None = None
        if not self._stopped:
            try:
                result = self._call(item)
            except BaseException as exc:
                error = exc
        self._done.put((position, result, error))


class Stream(Generic[T]):
    """Calls whose results are taken in the order in which they were asked for, ``concurrency`` of them at a time.

    No more than ``AHEAD * concurrency`` are begun and not yet taken. For one thread; `stop` gives back the threads.
    """

    def __init__(self, readers: Readers, call: Callable[[Any], T], concurrency: int) -> None:
        self._calls = _Calls(readers, call, concurrency)
        self._most_begun = AHEAD * concurrency
        self._waiting: deque[Any] = deque()
        self._early: dict[int, tuple[T, BaseException | None]] = {}
        self._taken = 0

    def ask(self, items: Iterable[Any]) -> None:
        """Adds to what will be taken."""
        self._waiting.extend(items)
        self._begin()

    def take(self) -> T:
        """The next result, or its error; waits for it."""
        self._begin()
        if self._taken == self._calls.begun:
            raise LookupError("nothing was asked for")
        while self._taken not in self._early:
            position, result, error = self._calls.await_one()
            self._early[position] = result, error
        result, error = self._early.pop(self._taken)
        self._taken += 1
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Drops what was asked for and not taken; calls under way are waited for."""
        self._waiting.clear()
        self._calls.stop()

    def _begin(self) -> None:
        while self._waiting and self._calls.begun - self._taken < self._most_begun:
            self._calls.begin(self._waiting.popleft())

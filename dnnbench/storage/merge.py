"""Several iterators drained at the same time by threads, as one iterator with bounded look-ahead."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
# How many items go through the queue at a time: a page of a listing.
CHUNK = 1000
# How many chunks may wait for the consumer.
WAITING = 4


def merged(sources: Sequence[Iterator[T]], chunk_items: int = CHUNK) -> Iterator[T]:
    """Yields the items of all sources, each source's in its order, as they come.

    The first error of a source stops the others and is raised. An iterator that is left early stops
    its threads, each after the chunk that it is at.
    """
    chunks: queue.Queue[list[T] | BaseException | None] = queue.Queue(WAITING)
    stop = threading.Event()

    def put(chunk: list[T] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return chunks.put(chunk, timeout=0.1)
            except queue.Full:
                continue

    def drain(source: Iterator[T]) -> None:
        try:
            while not stop.is_set() and (chunk := list(itertools.islice(source, chunk_items))):
                put(chunk)
        except BaseException as exc:
            put(exc)
            return
        put(None)

    threads = [threading.Thread(target=drain, args=(source,), daemon=True) for source in sources]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            chunk = chunks.get()
            if chunk is None:
                running -= 1
            elif isinstance(chunk, BaseException):
                raise chunk
            else:
                yield from chunk
    finally:
        stop.set()
        for thread in threads:
            thread.join()

"""The protocol of a storage, and the meter that says what a storage did in this process.

A backend implements the ``_…`` methods; timing, counting, length checks and concurrency are here,
once, so that every backend is measured alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dnnbench.metrics import Tally
from dnnbench.storage.errors import CorruptError, MisconfiguredError, StorageError
from dnnbench.storage.in_flight import Readers, Stream
from dnnbench.storage.merge import merged
from dnnbench.storage.ranges import RangedReads

# As many as S3 tells at once.
PAGE_ENTRIES = 1000
# In the place of a SHA-256: the object is held against the checksum that the server has of it.
OF_SERVER = b""
# What is read, and what it is held against: key, size in bytes, SHA-256 or `OF_SERVER`; None for what it is not.
Item = tuple[str, int | None] | tuple[str, int | None, bytes | None]
# What belongs to one process and never travels to another.
_OF_PROCESS = ("_meter", "_lock", "_pid", "_clients", "_down", "_is_open", "_readers", "_watchdog")


class Entry(NamedTuple):
    """One listed object: ``key`` as `Storage.read` takes it, ``size_bytes``."""

    key: str
    size_bytes: int


class ListedKey(str):
    """An object's key (for a file system, its path) that knows its listed size, and what its content is held against.

    ``expected`` is an `Item` of three; left out, it is held against its size.
    """

    size_bytes: int
    expected: tuple[str, int | None, bytes | None]

    def __new__(cls, key: str, size_bytes: int, expected: Item | None = None) -> ListedKey:
        listed = super().__new__(cls, key)
        listed.size_bytes = size_bytes
        plain, *against = expected or (str(key), size_bytes)
        listed.expected = (plain, *against, None)[:3]
        return listed

    def __getnewargs__(self) -> tuple[str, int, Item]:  # type: ignore[override]
        return str(self), self.size_bytes, self.expected


class Meter:
    """Collects a process's `Tally`; safe for threads. ``reads`` only grows, for a progress display."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally()
        self._thread = threading.local()
        self.reads = 0

    @property
    def reads_of_this_thread(self) -> int:
        """How many reads the calling thread has done; only grows."""
        return getattr(self._thread, "reads", 0)

    def read_done(self, latency_ns: int, size_bytes: int, held_against: str | None = None) -> None:
        """Counts a read; ``held_against`` says against what it was, unless that is its listed length (see `Tally`)."""
        thread = self._thread
        try:
            thread.reads += 1
        except AttributeError:
            thread.reads = 1
        with self._lock:
            self._tally.latency_ns.append(latency_ns)
            self._tally.read_bytes += size_bytes
            if held_against is not None:
                self._tally.not_by_length[held_against] += 1
            self.reads += 1

    def own_read_done(self, latency_ns: int, size_bytes: int) -> None:
        """Counts a read that a user's dataset made past the storage."""
        self.request("READ")
        with self._lock:
            self._tally.own_reads += 1
        self.read_done(latency_ns, size_bytes, "nothing")

    def request(self, verb: str, count: int = 1) -> None:
        with self._lock:
            self._tally.requests[verb] += count

    def retry(self, count: int = 1) -> None:
        with self._lock:
            self._tally.retries += count

    def error(self) -> None:
        with self._lock:
            self._tally.errors += 1

    def take(self) -> Tally:
        """What happened since the last `take`."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally


class Storage(RangedReads):
    """A place that holds objects. Pickles; builds its client once per process; safe for threads.

    ``name`` is ``fs``, ``aws`` or ``dss``; ``client`` is the client library. Every method raises
    the errors of `dnnbench.storage.errors` and no others.
    """

    name: str
    client: str
    # Whether the client holds the interpreter while it works, so that a process gets one processor's work of it.
    one_core = True
    # Whether it can hold what it reads against the checksum that the server has of it.
    verifies = False
    # The clock of latencies; a fake storage brings its own.
    clock_ns: Callable[[], int] = staticmethod(time.perf_counter_ns)
    _pid: int
    _is_open: bool

    def __init__(self) -> None:
        self._enter_process(new=True)

    # -- what a storage does ---------------------------------------------------------------------

    def open(self) -> None:
        """Builds this process's clients. Reading does it too, before its clock starts: no read pays for it."""
        self._enter_process()
        if not self._is_open:
            self._open()
            self._is_open = True

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yields every object whose key starts with ``prefix``, at any depth, in no fixed order.

        ``prefix`` is literal: end it in "/" to mean a folder. Raises `NotFoundError` where the
        bucket is missing (fs: where the folder is); a prefix that no key has yields nothing on S3.
        """
        self._enter_process()
        try:
            yield from self._list(prefix)
        except StorageError:
            self.meter.error()
            raise

    def list_many(self, prefixes: Sequence[str], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
        """`list` of several prefixes with ``workers`` requests at a time: (number of the prefix, some of its objects).

        Every object once, in no fixed order. Where keys come in order, one long prefix is listed in several ranges
        at once.
        """
        self._enter_process()
        try:
            yield from self._list_many(prefixes, workers)
        except StorageError:
            self.meter.error()
            raise

    def size(self, key: str) -> int:
        """The object's size in bytes (one HEAD, or one stat)."""
        self._enter_process()
        size_bytes: int = self._counting_errors(self._size, key)
        return size_bytes

    def fetch(self, key: str, size_bytes: int | None = None, sha256: bytes | None = None) -> Any:
        """The whole object as any bytes-like object, such as the client library has it: `read` without a copy."""
        # Written out, since what this costs is added to every object of a fast storage.
        if type(key) is ListedKey:
            key, size_bytes, sha256 = key.expected
        if self._pid != os.getpid() or not self._is_open:
            self._counting_errors(self.open)
        meter = self._meter
        start_ns = self.clock_ns()
        try:
            data = self._read(key, size_bytes) if sha256 is None or sha256 else self._read_verified(key, size_bytes)
            latency_ns = self.clock_ns() - start_ns
            if size_bytes is not None and len(data) != size_bytes:
                problem = f"{len(data)} bytes read, but {size_bytes} when it was listed; list again"
                raise CorruptError(self.label, key, problem)
            if sha256:
                self._check_sha256(key, data, sha256)
        except StorageError:
            meter.error()
            raise
        if sha256 is None and size_bytes is not None:
            meter.read_done(latency_ns, len(data))
        else:
            meter.read_done(latency_ns, len(data), "nothing" if sha256 is None else "manifest" if sha256 else "server")
        return data

    def read(self, key: str, size_bytes: int | None = None, sha256: bytes | None = None) -> bytes:
        """The whole object, by exactly one GET where nothing fails; its latency is recorded, without the hashing.

        With ``size_bytes`` (from a listing) a different length raises `CorruptError`, with ``sha256`` another content;
        `OF_SERVER` holds it against the server's own checksum, and raises `MisconfiguredError` where that cannot be
        had. A `ListedKey` brings both along.
        """
        data = self.fetch(key, size_bytes, sha256)
        return data if isinstance(data, bytes) else bytes(data)

    def read_many(self, items: Iterable[Item], concurrency: int, in_order: bool = False) -> Iterator[tuple[int, Any]]:
        """Reads items with ``concurrency`` reads in flight; yields (position, bytes-like content).

        In order of completion, or with ``in_order`` of the items. At most ``2 * concurrency`` objects are asked for
        beyond those taken. The first error stops the rest and is raised.
        """
        return self.in_flight(lambda item: self.fetch(*item), items, concurrency, in_order)

    def warm(
        self, items: Sequence[tuple[Any, ...]], concurrency: int, call: Callable[..., object] | None = None
    ) -> None:
        """Starts the threads and makes the connections that ``concurrency`` reads of the items at a time will use.

        Each of them reads one item, all at the same time, by `fetch` or by another ``call``.
        """
        call, items = call or self.fetch, items[:concurrency]
        together = threading.Barrier(max(len(items), 1))

        def fetch(item: tuple[Any, ...]) -> None:
            # Nobody waits for ever where the others were never begun.
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(5)
            call(*item)

        for _ in self.in_flight(fetch, items, concurrency):
            pass

    def fetch_each(self, items: Iterable[Item], concurrency: int) -> None:
        """Reads items with ``concurrency`` reads in flight, and drops what was read."""
        self.each(lambda item: self.fetch(*item), items, concurrency)

    def each(self, call: Callable[[Any], object], items: Iterable[Any], concurrency: int) -> None:
        """As `fetch_each`, for any call that reads from this storage."""
        self._counting_errors(self.open)
        self._readers.each(call, items, concurrency)

    def in_flight(
        self, call: Callable[[Any], Any], items: Iterable[Any], concurrency: int, in_order: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """As `read_many`, for any call that reads from this storage."""
        self._counting_errors(self.open)
        return self._readers.results(call, items, concurrency, in_order)

    def stream(self, call: Callable[[Any], Any], concurrency: int) -> Stream[Any]:
        """Calls that read from this storage, ``concurrency`` at a time, their results taken in order."""
        self._counting_errors(self.open)
        return Stream(self._readers, call, concurrency)

    def write(self, key: str, data: bytes) -> None:
        """Stores an object whole (never half of one), over one of the same key; folders are made as needed."""
        self._enter_process()
        self._counting_errors(self._write, key, data)

    def close(self) -> None:
        """Gives back connections. A closed storage opens again when it is used."""
        self._enter_process()
        self._readers.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._is_open = False

    # -- what a backend implements ---------------------------------------------------------------

    def _open(self) -> None:
        """Builds every client that a read may need."""

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[Entry]: ...

    def _list_many(self, prefixes: Sequence[str], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
        """Several prefixes at a time, each from its beginning to its end."""
        numbers = iter(range(len(prefixes)))

        def pages() -> Iterator[tuple[int, Sequence[Entry]]]:
            for number in numbers:
                listing = iter(self._list(prefixes[number]))
                while page := list(itertools.islice(listing, PAGE_ENTRIES)):
                    yield number, page

        return merged([pages() for _ in range(min(workers, len(prefixes)))], chunk_items=1)

    @abstractmethod
    def _size(self, key: str) -> int: ...

    @abstractmethod
    def _read(self, key: str, size_bytes: int | None) -> Any: ...

    def _read_verified(self, key: str, size_bytes: int | None) -> Any:
        """As `_read`, the content held against the checksum that the server has of it."""
        raise MisconfiguredError(self.label, key, no_checksum(f"no manifest, and {self.client} verifies no server's"))

    @abstractmethod
    def _write(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the record says of this storage: endpoint, bucket, retries, time-outs; no secrets."""

    # -- what is common --------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How messages name this storage."""
        return f"{self.name} ({self.client})"

    @property
    def meter(self) -> Meter:
        """This process's meter."""
        self._enter_process()
        return self._meter

    def join(self, *parts: str) -> str:
        """Key parts put together by "/", empty parts and doubled slashes left out."""
        return "/".join(part.strip("/") for part in parts if part.strip("/"))

    def _enter_process(self, new: bool = False) -> None:
        # A forked child inherits the parent's sockets, locks and counts: none of them is its own.
        if new or self._pid != os.getpid():
            self._pid = os.getpid()
            self._meter = Meter()
            self._lock = threading.Lock()
            self._clients: dict[str, Any] = {}
            self._is_open = False
            self._down: dict[str, float] = {}
            self._readers = Readers(self)

    def _client_of(self, name: str, build: Callable[[], Any]) -> Any:
        """This process's client of that name, built on first use."""
        client = self._clients.get(name)
        if client is None:
            with self._lock:
                client = self._clients.get(name)
                if client is None:
                    client = self._clients[name] = build()
        return client

    def _check_sha256(self, key: str, data: Any, expected: bytes) -> None:
        found = hashlib.sha256(data).digest()
        if found != expected:
            problem = f"the content's SHA-256 is {found.hex()[:16]}…, but {expected.hex()[:16]}… in the manifest"
            raise CorruptError(self.label, key, f"{problem}; write the object again, or make the manifest anew")

    def _counting_errors(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except StorageError:
            self.meter.error()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enter_process(new=True)


def no_checksum(why: str) -> str:
    """The problem of an object that is to be held against a checksum, and has none."""
    return (
        f"there is no checksum to hold it against ({why}); make a manifest of its source: python -m dnnbench manifest "
        "PLACE, or set dataset.verify to length"
    )

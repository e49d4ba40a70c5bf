"""Ranged reads of any storage: one at a time, or a whole object in several at once, held against the object's length.

A part of `dnnbench.storage.base.Storage`, which says how it is timed and counted.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dnnbench.storage.errors import CorruptError, StorageError

if TYPE_CHECKING:
    from dnnbench.storage.base import Meter
    from dnnbench.storage.in_flight import Readers


class Part(NamedTuple):
    """What answered a ranged read: ``data``, and of which object it says that it is a part.

    ``total_bytes`` is the whole object's length, ``version`` tells its contents apart (S3: its ETag; a file: its inode
    and when it was written); None where the client does not tell.
    """

    data: Any
    total_bytes: int | None = None
    version: str | None = None


class RangedReads(ABC):
    """What a storage does with ranges; a backend implements ``_read_range``, and ``_read_into`` if that is faster."""

    clock_ns: Callable[[], int]
    label: Any
    _meter: Meter
    _readers: Readers
    _pid: int
    _is_open: bool

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def _counting_errors(self, call: Any, *args: Any) -> Any: ...

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to but without ``end``; its latency is recorded.

        A range that goes past the object's end yields what is there; an empty range (``start ==
        end``) yields ``b""`` without a request; ``start`` past the end yields ``b""``.
        Raises `ValueError` for a negative ``start`` or ``end < start``.
        """
        data = self.fetch_range(key, start, end)
        return data if isinstance(data, bytes) else bytes(data)

    def fetch_range(self, key: str, start: int, end: int, size_bytes: int | None = None) -> Any:
        """`read_range` without a copy: any bytes-like object.

        With the object's ``size_bytes`` (from a listing), a range that is not as long as it must be then, or of an
        object of another length, raises `CorruptError`, as one that the server answers with something else always does.
        """
        if start < 0 or end < start:
            raise ValueError(f"a range needs 0 <= start <= end (found {start}, {end})")
        return self._part(key, start, end, size_bytes).data if start < end else b""

    def read_parallel(self, key: str, size_bytes: int, range_bytes: int, concurrency: int) -> memoryview:
        """The whole object, in ranges of ``range_bytes`` (the last one shorter), ``concurrency`` at a time.

        They are put into one piece of memory; each is a read with a latency of its own. An object of another length,
        or one that changes meanwhile (where the client tells versions apart, see `Part`), raises `CorruptError`.
        """
        if range_bytes < 1:
            raise ValueError(f"a range needs a byte at least (found {range_bytes})")
        import numpy as np

        # Not a bytearray, which would be filled with zeros first.
        content = np.empty(size_bytes, dtype=np.uint8).data
        seen: dict[str, str | None] = {}

        def read(start: int) -> None:
            into = content[start : start + range_bytes]
            version = self._part(key, start, start + len(into), size_bytes, into).version
            if seen.setdefault(key, version) != version:
                self._meter.error()
                raise CorruptError(self.label, key, "the object changed while its ranges were read; list again")

        self._counting_errors(self.open)
        self._readers.each(read, range(0, size_bytes, range_bytes), concurrency)
        return content

    def _part(self, key: str, start: int, end: int, size_bytes: int | None, into: memoryview | None = None) -> Part:
        """One ranged read, timed, counted and held against what the object's length makes of it."""
        if self._pid != os.getpid() or not self._is_open:
            self._counting_errors(self.open)
        meter = self._meter
        start_ns = self.clock_ns()
        try:
            part = self._read_range(key, start, end) if into is None else self._read_into(key, start, into)
            latency_ns = self.clock_ns() - start_ns
            total_bytes = part.total_bytes if size_bytes is None else size_bytes
            wanted_bytes = end - start if total_bytes is None else max(min(end, total_bytes) - start, 0)
            if len(part.data) > wanted_bytes or (total_bytes is not None and len(part.data) < wanted_bytes):
                problem = f"{len(part.data)} bytes came for the range from {start} to {end}, which has {wanted_bytes}"
                raise CorruptError(self.label, key, f"{problem}; list again, or ask whether the server knows ranges")
            if part.total_bytes not in (None, total_bytes):
                problem = f"it has {part.total_bytes} bytes, but {size_bytes} when it was listed; list again"
                raise CorruptError(self.label, key, problem)
        except StorageError:
            meter.error()
            raise
        meter.read_done(latency_ns, len(part.data), "nothing" if size_bytes is None else None)
        return part

    @abstractmethod
    def _read_range(self, key: str, start: int, end: int) -> Part: ...

    def _read_into(self, key: str, start: int, into: memoryview) -> Part:
        """As `_read_range`, of as many bytes as ``into`` has room for, which ``data`` then is, as far as it is filled.

        More than that is given back as it came.
        """
        part = self._read_range(key, start, start + len(into))
        if len(part.data) > len(into):
            return part
        into[: len(part.data)] = memoryview(part.data)
        return part._replace(data=into[: len(part.data)])

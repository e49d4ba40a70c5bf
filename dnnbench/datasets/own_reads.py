"""Meters a dataset's method that reads its file by itself, past the storage: from outside, by the kernel's accounts.

That this very file was read, inotify(7) tells, whatever library opened it; reading through a memory
map it does not see. The bytes are those that the calling thread read(2) meanwhile, as
``/proc/thread-self/io`` has them (proc(5): ``rchar``). The latency is the whole method's.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

from dnnbench.storage.base import Meter

_LIBC = ctypes.CDLL(None, use_errno=True)
_ACCOUNT = "/proc/thread-self/io"
# From <sys/inotify.h>.
_IN_ACCESS = 0x00000001
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_EVENTS_BYTES = 64 * 1024


def metered(meter: Meter, read: Callable[[Any], Any], key: Any) -> Any:
    """``read(key)``, counted as a read of the dataset's own where it asked no storage; ``key`` knows ``size_bytes``.

    No more bytes are counted than the object has: what else the method read, such as a module that
    it imports, is no part of the data set. A method that did not read this file is not counted as a
    read, so that a dataset that keeps its samples in memory, or reads other files, gives no figure.
    """
    reads_before = meter.reads_of_this_thread
    with _Watch(str(key)) as watch:
        _, begin_bytes = _account()
        start_ns = time.perf_counter_ns()
        result = read(key)
        latency_ns = time.perf_counter_ns() - start_ns
        if meter.reads_of_this_thread == reads_before:
            # In this order: asking the watch is a read(2) as well.
            read_bytes = _account()[0] - begin_bytes
            if watch.was_read() and read_bytes > 0:
                meter.own_read_done(latency_ns, min(read_bytes, key.size_bytes))
    return result


def _account() -> tuple[int, int]:
    """Bytes that this thread has read, without and with the reading of this account; 0 where the kernel keeps none."""
    try:
        with open(_ACCOUNT, "rb", buffering=0) as file:
            text = file.read(128)
    except OSError:
        return 0, 0
    read_bytes = int(text.split(None, 2)[1]) if text.startswith(b"rchar:") else 0
    return read_bytes, read_bytes + len(text)


class _Watch:
    """Notices that a file is read while this is entered. Where the kernel cannot watch it, it is not noticed."""

    # Queues of events that nobody uses now. Not one per thread: TensorFlow's threads forget what is theirs with each
    # call, and a user may have few.
    _idle: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, path: str) -> None:
        self._path = os.fsencode(path)
        self._handle = self._number = -1

    def __enter__(self) -> _Watch:
        # A forked child shares its parent's queues, and so uses none of them.
        pid = os.getpid()
        while self._handle < 0:
            try:
                of, handle = self._idle.pop()
            except IndexError:
                handle, of = _LIBC.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC), pid
                if handle < 0:
                    return self
            if of == pid:
                self._handle = handle
        self.was_read()  # what is left of an earlier file
        self._number = _LIBC.inotify_add_watch(self._handle, self._path, _IN_ACCESS)
        return self

    def was_read(self) -> bool:
        """Whether there was a reading since the last question."""
        try:
            events = os.read(self._handle, _EVENTS_BYTES) if self._handle >= 0 else b""
        except BlockingIOError:
            return False
        # An event begins with its watch (int) and its mask (uint32): removing a watch makes one too.
        return any(int.from_bytes(events[i + 4 : i + 8], "little") & _IN_ACCESS for i in range(0, len(events), 16))

    def __exit__(self, *_: object) -> None:
        if self._number >= 0:
            _LIBC.inotify_rm_watch(self._handle, self._number)
        if self._handle >= 0:
            self._idle.append((os.getpid(), self._handle))

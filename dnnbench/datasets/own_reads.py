"""Meters a dataset's method that reads its file by itself, past the storage: from outside, by the kernel's account.

The bytes are those that the calling thread read(2) while the method ran, as ``/proc/thread-self/io``
has them (proc(5): ``rchar``), which memory-mapped files escape. The latency is the whole method's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dnnbench.storage.base import Meter

_ACCOUNT = "/proc/thread-self/io"


def metered(meter: Meter, read: Callable[[Any], Any], key: Any) -> Any:
    """``read(key)``, counted as a read of the dataset's own where it asked no storage; ``key`` knows ``size_bytes``.

    No more bytes are counted than the object has: what else the method read, such as a module that
    it imports, is no part of the data set. A method that read nothing is not counted as a read.
    """
    reads_before = meter.reads_of_this_thread
    _, begin_bytes = _account()
    start_ns = time.perf_counter_ns()
    result = read(key)
    latency_ns = time.perf_counter_ns() - start_ns
    if meter.reads_of_this_thread == reads_before:
        read_bytes = _account()[0] - begin_bytes
        if read_bytes > 0:
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

"""What AWS's CRT, below s3torchconnector, is only told by its environment, and only tells in its log."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LEVEL, _FOLDER = "S3_TORCH_CONNECTOR_DEBUG_LOGS", "S3_TORCH_CONNECTOR_LOGS_DIR_PATH"
# Of the CRT alone: what the layer above it warns of shows the headers of requests, and what the server said of them.
_WARNINGS = "off,awscrt=warn"
# What it says of a request that failed, or had no connection; and after that, where it does not send it again.
_FAILED, _NOT_REPEATED = (b"Try to setup a retry", b"Could not acquire connection"), b"could not retry request"
# There is a file for each hour.
_LOOK_FOR_FILES_S = 1.0
_changing = threading.Lock()


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables of the process, which the native library reads when it is loaded and when a client is built."""
    with _changing:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class Log:
    """The library's warnings of this process: how many requests it has repeated by itself.

    It repeats a request that failed at least once, whatever it is told. Where the user has asked for a log, or the
    library was loaded by somebody else, its log is not ours to read.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._lock = threading.Lock()
        # The newest file of the log and how much of it was read: one is begun every hour.
        self._name, self._handle, self._read_bytes = "", -1, 0
        self._look_s = 0.0
        self._repeated = 0

    @property
    def is_kept(self) -> bool:
        """Whether there is one to read."""
        return bool(self._folder)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The library is to be loaded within it."""
        if "s3torchconnectorclient" in sys.modules or _LEVEL in os.environ:
            yield
            return
        folder = tempfile.mkdtemp(prefix="dnnbench-crt-")
        # Worker processes leave without `atexit`.
        multiprocessing.util.Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)
        with environment({_LEVEL: _WARNINGS, _FOLDER: folder}):
            yield
        self._folder = folder

    def repeated(self) -> int:
        """How many requests were repeated since it was last asked, for any thread and client of this process."""
        if not self._folder:
            return 0
        # Asked after each request, so this is on every read. A seek tells the length for less than a stat.
        now_s = time.monotonic()
        if now_s < self._look_s and os.lseek(self._handle, 0, os.SEEK_END) == self._read_bytes:
            return 0
        with self._lock:
            # Where no more files can be opened, what is not read now is read after a later request.
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(self._folder)):
                    if name >= self._name:
                        self._read(name)
            self._look_s = now_s + _LOOK_FOR_FILES_S if self._name else 0.0
            # Where only the first of a request's lines has been read, a later one takes it back.
            found, self._repeated = max(self._repeated, 0), min(self._repeated, 0)
        return found

    def _read(self, name: str) -> None:
        if name != self._name:
            handle = os.open(os.path.join(self._folder, name), os.O_RDONLY | os.O_CLOEXEC)
            if self._handle < 0:
                self._handle = handle
            else:
                # The same number for whoever is just asking for its length.
                os.dup2(handle, self._handle, inheritable=False)
                os.close(handle)
            self._name, self._read_bytes = name, 0
        size_bytes = os.lseek(self._handle, 0, os.SEEK_END)
        text = os.pread(self._handle, size_bytes - self._read_bytes, self._read_bytes)
        lines = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(lines)
        self._repeated += sum(map(lines.count, _FAILED)) - lines.count(_NOT_REPEATED)


LOG = Log()

"""The file system as a storage: a key is a path. Reads by `os.pread`, without a buffer in between.

Only regular files are objects: what else lies in a folder is not listed, and not waited for where it takes a file's
place.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import DeniedError, MisconfiguredError, NotFoundError, StorageError, TransientError
from dnnbench.storage.ranges import Part

# Opening a pipe waits for its other end, unless it is told not to; regular files know no difference.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
# What an answer of the kernel means for a path, where Python has no exception of its own for it.
_NOT_FOUND = {
    errno.ELOOP: "is a link that leads to itself",
    errno.ENAMETOOLONG: "cannot be a path (it is too long)",
    # Of opening a socket, a device that is not there, or a pipe; of reading what has no places to read at.
    **dict.fromkeys((errno.ENXIO, errno.ENODEV, errno.ESPIPE), "is no regular file"),
}


class FsStorage(Storage):
    """Regular files below any folder. Links to files and folders are followed, each folder once."""

    name = "fs"
    client = "posix"

    def _list(self, prefix: str) -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        seen: set[tuple[int, int]] = set()
        root = folder + "/" if folder or prefix.startswith("/") else "./"
        pending = [root]
        while pending:
            current = pending.pop()
            with self._errors(current):
                self.meter.request("LIST")
                info = os.stat(current)
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
                with os.scandir(current) as entries:
                    found = [entry for entry in entries if not start or entry.name.startswith(start)]
            start = ""
            for entry in found:
                path = current.removeprefix("./") + entry.name
                with self._errors(path):
                    if entry.is_dir():
                        if entry.is_symlink():
                            self._check_leads_not_above(path, root)
                        pending.append(path + "/")
                    elif entry.is_file() or entry.is_symlink():
                        # A link that leads nowhere is an error here: it would be one when it is read.
                        self.meter.request("STAT")
                        info = entry.stat()
                        if stat.S_ISREG(info.st_mode):
                            yield Entry(path, info.st_size)

    def _check_leads_not_above(self, link: str, root: str) -> None:
        """Refuses a link to a folder that holds the one that is listed: it would be listed as a part of itself."""
        target, listed = os.path.realpath(link), os.path.realpath(root)
        if target != listed and os.path.commonpath([target, listed]) == target:
            problem = f"is a link that leads back to {target}, which it lies in; remove it"
            raise MisconfiguredError(self.label, link, problem)

    def _size(self, key: str) -> int:
        with self._errors(key):
            self.meter.request("STAT")
            return os.stat(key).st_size

    def _read(self, key: str, size_bytes: int | None) -> bytes:
        # Not by `_errors`: entering and leaving a context costs a third of what opening a nearby file does.
        try:
            handle = os.open(key, OPEN_FLAGS)
            try:
                self._meter.request("READ")
                listed_bytes = size_bytes
                if size_bytes is None:
                    size_bytes = self._file_bytes(key, handle)
                # One byte more than listed, so that a file that has grown shows.
                data = _read_at(handle, 0, size_bytes + 1)
                if len(data) != size_bytes and listed_bytes is not None:
                    # A device gives anything. Only asked about where something is wrong: it costs a call.
                    self._file_bytes(key, handle)
                return data
            finally:
                os.close(handle)
        except (OSError, ValueError) as exc:
            raise self._told(key, exc) from exc

    def _file_bytes(self, key: str, handle: int) -> int:
        """The length of an open file. Raises `NotFoundError` for what is none."""
        return self._regular(key, handle).st_size

    def _regular(self, key: str, handle: int) -> os.stat_result:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(key)
        if not stat.S_ISREG(info.st_mode):
            raise NotFoundError(self.label, key, "is no regular file")
        return info

    def _read_range(self, key: str, start: int, end: int) -> Part:
        with self._ranged(key) as (handle, part):
            return part._replace(data=_read_at(handle, start, end - start))

    def _read_into(self, key: str, start: int, into: memoryview) -> Part:
        filled = 0
        with self._ranged(key) as (handle, part):
            while filled < len(into) and (count := os.preadv(handle, [into[filled:]], start + filled)):
                filled += count
            return part._replace(data=into[:filled])

    @contextmanager
    def _ranged(self, key: str) -> Iterator[tuple[int, Part]]:
        """(the file, opened; a part of it without content), to read one range."""
        with self._errors(key):
            handle = os.open(key, OPEN_FLAGS)
            try:
                self._meter.request("READ")
                info = self._regular(key, handle)
                yield handle, Part(b"", info.st_size, f"{info.st_dev}-{info.st_ino}-{info.st_mtime_ns}")
            finally:
                os.close(handle)

    def _write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            folder = os.path.dirname(key) or "."
            os.makedirs(folder, exist_ok=True)
            # Not the key's name with something added: that may be as long as names can be.
            temporary = f"{folder}/.{os.getpid()}.{threading.get_ident():x}.part"
            self.meter.request("WRITE")
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                os.replace(temporary, key)
            except BaseException:
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise

    def settings(self) -> dict[str, Any]:
        return {"open_flags": "O_RDONLY", "read_call": "pread(2), whole file"}

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as exc:
            raise self._told(key, exc) from exc

    def _told(self, key: str, error: OSError | ValueError) -> StorageError:
        """What an error of Python's means for a path, as one of ours."""
        match error:
            case FileNotFoundError() | NotADirectoryError():
                return NotFoundError(self.label, key, "there is no such file or folder")
            case PermissionError():
                return DeniedError(self.label, key, "permission denied; run as a user who may read it")
            case IsADirectoryError():
                return NotFoundError(self.label, key, "is a folder, not a file")
            case ValueError():
                return NotFoundError(self.label, key, f"cannot be a path ({error})")
            case OSError(errno=number) if number in _NOT_FOUND:
                return NotFoundError(self.label, key, _NOT_FOUND[number])
        return TransientError(self.label, key, f"{error.strerror or error}")


def _read_at(handle: int, start: int, limit_bytes: int) -> bytes:
    """Reads from ``start`` to the end of the file or to the limit. One system call where the kernel gives all at once.

    By `pread`, which a pipe that has taken the file's place refuses.
    """
    data = os.pread(handle, limit_bytes, start)
    if not data or len(data) >= limit_bytes:
        return data
    parts = [data]
    read_bytes = len(data)
    # A short read is the end of a regular file only when the next one is empty.
    while read_bytes < limit_bytes and (data := os.pread(handle, limit_bytes - read_bytes, start + read_bytes)):
        parts.append(data)
        read_bytes += len(data)
    return b"".join(parts)

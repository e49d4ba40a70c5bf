"""The file system as a storage: a key is a path. Reads by `os.read`, without a buffer in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import DeniedError, NotFoundError, StorageError, TransientError


class FsStorage(Storage):
    """Files below any folder. Links to files and folders are followed, each folder once."""

    name = "fs"
    client = "posix"

    def _list(self, prefix: str) -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        seen: set[tuple[int, int]] = set()
        pending = [folder + "/" if folder or prefix.startswith("/") else "./"]
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
                        pending.append(path + "/")
                    elif entry.is_file() or entry.is_symlink():
                        # A link that leads nowhere is an error here: it would be one when it is read.
                        self.meter.request("STAT")
                        yield Entry(path, entry.stat().st_size)

    def _size(self, key: str) -> int:
        with self._errors(key):
            self.meter.request("STAT")
            return os.stat(key).st_size

    def _read(self, key: str, size_bytes: int | None) -> bytes:
        with self._errors(key):
            handle = os.open(key, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.meter.request("READ")
                if size_bytes is None:
                    info = os.fstat(handle)
                    if stat.S_ISDIR(info.st_mode):
                        raise IsADirectoryError(key)
                    size_bytes = info.st_size
                # One byte more than listed, so that a file that has grown shows.
                return _read_up_to(handle, size_bytes + 1)
            finally:
                os.close(handle)

    def _read_range(self, key: str, start: int, end: int) -> bytes:
        with self._errors(key):
            handle = os.open(key, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.meter.request("READ")
                os.lseek(handle, start, os.SEEK_SET)
                return _read_up_to(handle, end - start)
            finally:
                os.close(handle)

    def _write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            os.makedirs(os.path.dirname(key) or ".", exist_ok=True)
            temporary = f"{key}.{os.getpid()}.{id(data):x}.part"
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
        return {"open_flags": "O_RDONLY", "read_call": "read(2), whole file"}

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NotFoundError(self.label, key, "there is no such file or folder") from exc
        except PermissionError as exc:
            raise DeniedError(self.label, key, "permission denied; run as a user who may read it") from exc
        except IsADirectoryError as exc:
            raise NotFoundError(self.label, key, "is a folder, not a file") from exc
        except ValueError as exc:
            raise NotFoundError(self.label, key, f"cannot be a path ({exc})") from exc
        except OSError as exc:
            raise TransientError(self.label, key, f"{exc.strerror or exc}") from exc


def _read_up_to(handle: int, limit_bytes: int) -> bytes:
    """Reads to the end of the file or to the limit. One system call where the kernel gives all at once."""
    data = os.read(handle, limit_bytes)
    if not data or len(data) >= limit_bytes:
        return data
    parts = [data]
    left = limit_bytes - len(data)
    # A short read is the end of a regular file only when the next one is empty.
    while left and (data := os.read(handle, left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)

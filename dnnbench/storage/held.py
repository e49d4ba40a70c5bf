"""Objects of another storage, held in memory: what a loader does where the storage costs nothing."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from tempfile import NamedTemporaryFile
from typing import Any

from dnnbench.outputs import goes_with
from dnnbench.storage.base import Entry, Item, Storage
from dnnbench.storage.errors import MisconfiguredError, NotFoundError
from dnnbench.storage.ranges import Part


class HeldStorage(Storage):
    """The given objects of ``storage``; its name is that storage's, so that a dataset reads them the same way.

    They are in a file that every process maps. It is read-only.
    """

    client = "memory"

    def __init__(self, storage: Storage, items: Iterator[Item], concurrency: int) -> None:
        super().__init__()
        self.name = storage.name
        self._places: dict[str, tuple[int, int]] = {}
        listed = list(items)
        with NamedTemporaryFile(prefix="dnnbench-held-", delete=False) as file:
            self._path = file.name
            goes_with(self, file.name)
            for position, content in storage.read_many(listed, concurrency):
                self._places[listed[position][0]] = file.tell(), len(content)
                file.write(content)
            # A file without a byte cannot be mapped.
            file.write(b"\0")

    def _open(self) -> None:
        with open(self._path, "rb") as file:
            self._clients["map"] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _list(self, prefix: str) -> Iterator[Entry]:
        return (Entry(key, size) for key, (_, size) in self._places.items() if key.startswith(prefix))

    def _size(self, key: str) -> int:
        return self._place(key)[1]

    def _read(self, key: str, size_bytes: int | None) -> Any:
        start, size = self._place(key)
        self._meter.request("GET")
        return self._clients["map"][start : start + size]

    def _read_verified(self, key: str, size_bytes: int | None) -> Any:
        # It was, when it was read to be held.
        return self._read(key, size_bytes)

    def _read_range(self, key: str, start: int, end: int) -> Part:
        return Part(self._read(key, None)[start:end])

    def _write(self, key: str, data: bytes) -> None:
        raise MisconfiguredError(self.label, key, "what is held in memory is read-only")

    def settings(self) -> dict[str, Any]:
        return {}

    def _place(self, key: str) -> tuple[int, int]:
        if key not in self._places:
            raise NotFoundError(self.label, key, "is none of the objects that are held")
        return self._places[key]

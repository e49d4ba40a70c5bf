"""A data set's objects, listed once: key, size, label and source of each, packed.

Keys are one block of bytes with offsets, not a list of strings, and the arrays travel to loader
workers as a memory-mapped file: hundreds of thousands of keys cost a worker nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnbench.errors import DnnbenchError
from dnnbench.images import is_image_name
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import NotFoundError

Int64s = npt.NDArray[np.int64]
_ARRAYS = ("offsets", "sizes_bytes", "labels", "sources", "relative_offsets")


class CatalogError(DnnbenchError):
    """What was listed is no usable data set; the message names the prefix."""


class Catalog:
    """Samples in a fixed order: by source, label and key.

    ``sizes_bytes``, ``labels`` (index into ``label_names``) and ``sources`` (index of the prefix)
    are int64 arrays of length ``len(catalog)``. ``left_out`` counts what was listed and is no
    sample, by reason: ``hidden``, ``empty``, ``not_image``, ``folder_marker``.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        relative_starts: Sequence[int],
        sizes_bytes: Sequence[int],
        labels: Sequence[int],
        sources: Sequence[int],
        label_names: Sequence[str],
        left_out: Counter[str] | None = None,
    ) -> None:
        self.label_names = tuple(label_names)
        self.left_out: Counter[str] = Counter(left_out or {})
        self._blob = np.frombuffer(b"".join(keys), dtype=np.uint8)
        self.offsets = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum([len(key) for key in keys], out=self.offsets[1:])
        # Where, in each key, the part below source and category begins: prefixes differ between
        # storages, and the data set's identity must not.
        self.relative_offsets = np.asarray(relative_starts, dtype=np.int64)
        self.sizes_bytes = np.asarray(sizes_bytes, dtype=np.int64)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.sources = np.asarray(sources, dtype=np.int64)
        self._spilled: str | None = None

    def __len__(self) -> int:
        return len(self.sizes_bytes)

    def key(self, index: int) -> str:
        """The key of a sample, as `Storage.read` takes it."""
        return os.fsdecode(self._blob[self.offsets[index] : self.offsets[index + 1]].tobytes())

    def relative_key(self, index: int) -> str:
        """The key below source and category: the same on every storage."""
        start = self.offsets[index] + self.relative_offsets[index]
        return os.fsdecode(self._blob[start : self.offsets[index + 1]].tobytes())

    def size_bytes(self, index: int) -> int:
        return int(self.sizes_bytes[index])

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def items(self, indices: Sequence[int] | Int64s) -> Iterator[tuple[str, int | None]]:
        """(key, size in bytes) of the given samples, as `Storage.read_many` takes them."""
        return ((self.key(i), self.size_bytes(i)) for i in indices)

    @property
    def total_bytes(self) -> int:
        """The sum of the objects' sizes."""
        return int(self.sizes_bytes.sum())

    def hash(self) -> str:
        """A SHA-256 (16 hex digits) over source, label, key below them, and size of every sample.

        Two catalogs of the same data set on different storages have the same hash.
        """
        digest = hashlib.sha256(repr(self.label_names).encode())
        for i in range(len(self)):
            head = f"{self.sources[i]}\0{self.labels[i]}\0{self.sizes_bytes[i]}\0"
            digest.update(head.encode() + os.fsencode(self.relative_key(i)) + b"\0")
        return digest.hexdigest()[:16]

    def select(self, indices: Sequence[int] | Int64s) -> Catalog:
        """A catalog of some of the samples, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Catalog(
            [self._blob[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in chosen],
            self.relative_offsets[chosen].tolist(),
            self.sizes_bytes[chosen].tolist(),
            self.labels[chosen].tolist(),
            self.sources[chosen].tolist(),
            self.label_names,
        )

    def split(self, test_share: float, seed: int) -> tuple[Catalog, Catalog]:
        """(train, test): ``test_share`` of each category, chosen by seed.

        Each category with at least two samples has one or more in both parts.
        Raises `ValueError` unless ``0 < test_share < 1``.
        """
        if not 0 < test_share < 1:
            raise ValueError(f"test_share must be between 0 and 1 (found {test_share})")
        rng = np.random.default_rng(seed)
        is_test = np.zeros(len(self), dtype=bool)
        for label in range(len(self.label_names)):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            if len(members) > 1:
                count = min(max(round(len(members) * test_share), 1), len(members) - 1)
                is_test[members[:count]] = True
        return self.select(np.flatnonzero(~is_test)), self.select(np.flatnonzero(is_test))

    # A pickled catalog is the path of a file that every process maps: one copy for all of them.
    def __reduce__(self) -> tuple[Any, ...]:
        return _map_file, (self._spill(), len(self), self.label_names)

    def _spill(self) -> str:
        if self._spilled is None or not os.path.exists(self._spilled):
            handle, path = tempfile.mkstemp(prefix="dnnbench-catalog-")
            with open(handle, "wb") as file:
                for name in _ARRAYS:
                    file.write(getattr(self, name).tobytes())
                file.write(self._blob.tobytes())
            # The process that wrote the file removes it; mappings outlive the name.
            weakref.finalize(self, _remove_own, path, os.getpid())
            self._spilled = path
        return self._spilled


def single(entry: Entry, label_names: Sequence[str]) -> Catalog:
    """A catalog of one object whose category is not known; its label is 0."""
    return Catalog([os.fsencode(entry.key)], [0], [entry.size_bytes], [0], [0], label_names)


def _remove_own(path: str, pid: int) -> None:
    if os.getpid() == pid:
        Path(path).unlink(missing_ok=True)


def _map_file(path: str, count: int, label_names: tuple[str, ...]) -> Catalog:
    catalog = Catalog.__new__(Catalog)
    catalog.label_names, catalog.left_out = label_names, Counter()
    catalog._spilled = path
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 0
    for name in _ARRAYS:
        length = (count + 1 if name == "offsets" else count) * 8
        setattr(catalog, name, data[start : start + length].view(np.int64))
        start += length
    catalog._blob = data[start:]
    return catalog


@dataclass(frozen=True)
class _Listed:
    """The samples of one source and category."""

    entries: list[Entry]
    left_out: Counter[str]


def list_catalog(storage: Storage, sources: Sequence[str], labels: Sequence[str], workers: int) -> Catalog:
    """Lists every source and category, ``workers`` at a time. ``sources`` are "" or end in "/".

    Left out, and counted: objects that no image has the name of, hidden ones (a part of the key
    below the category begins with "."), zero-byte ones. Objects in nested folders belong to the category.
    Raises `CatalogError` for a category that has no image in any source or is missing in one, and
    the errors of the storage.
    """
    places = [(s, label) for s in range(len(sources)) for label in range(len(labels))]
    prefixes = [f"{sources[s]}{labels[label]}/" for s, label in places]

    def scan(prefix: str) -> _Listed:
        return _scan(storage, prefix)

    with ThreadPoolExecutor(min(workers, len(places))) as pool:
        listings = list(pool.map(scan, prefixes))
    keys: list[bytes] = []
    columns: dict[str, list[int]] = {"starts": [], "sizes": [], "labels": [], "sources": []}
    left_out: Counter[str] = Counter()
    for (source, label), prefix, listing in zip(places, prefixes, listings, strict=True):
        left_out.update(listing.left_out)
        if not listing.entries:
            raise CatalogError(_nothing(storage, prefix, listing.left_out))
        start = len(os.fsencode(prefix))
        for key, entry in sorted((os.fsencode(entry.key), entry) for entry in listing.entries):
            keys.append(key)
            columns["starts"].append(start)
            columns["sizes"].append(entry.size_bytes)
            columns["labels"].append(label)
            columns["sources"].append(source)
    return Catalog(keys, columns["starts"], columns["sizes"], columns["labels"], columns["sources"], labels, left_out)


def _scan(storage: Storage, prefix: str) -> _Listed:
    entries, left_out = [], Counter[str]()
    try:
        for entry in storage.list(prefix):
            reason = _why_left_out(entry, prefix)
            if reason:
                left_out[reason] += 1
            else:
                entries.append(entry)
    except NotFoundError as exc:
        if storage.name == "fs" and exc.key == prefix:
            raise CatalogError(
                f"{storage.label}: {prefix}: there is no such folder; each source needs one folder "
                "per category of dataset.label"
            ) from exc
        raise
    return _Listed(entries, left_out)


def _why_left_out(entry: Entry, prefix: str) -> str:
    relative = entry.key[len(prefix) :]
    if relative.endswith("/") or not relative:
        return "folder_marker"
    if any(part.startswith(".") for part in relative.split("/")):
        return "hidden"
    if not is_image_name(relative):
        return "not_image"
    return "" if entry.size_bytes else "empty"


def _nothing(storage: Storage, prefix: str, left_out: Counter[str]) -> str:
    what = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    found = f"only {what}" if what else "nothing"
    return (
        f"{storage.label}: {prefix}: no images in this category (found {found}); check dataset.label, and "
        f"{'storage.fs.data_dir' if storage.name == 'fs' else 'storage.s3.prefix'}"
    )

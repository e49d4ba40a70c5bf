"""A data set's objects, listed once: key, size, label and source of each, packed.

What all keys of a prefix begin with is held once, the rest is one block of bytes, and the arrays
travel to loader workers as a memory-mapped file: ten million keys take less memory than their own
bytes, once for all processes, and cost a worker nothing.
"""

from __future__ import annotations

import copy
import hashlib
import operator
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnnbench.errors import DnnbenchError
from dnnbench.images import EXTENSIONS
from dnnbench.outputs import goes_with
from dnnbench.packed_names import CHUNK_SAMPLES, Int64s, Names, chunks
from dnnbench.storage.base import OF_SERVER, Entry, Item, Storage
from dnnbench.storage.errors import NotFoundError

# Of the columns in a file: numbers of eight bytes are read where eight divides their address.
_ALIGNMENT = 64
# What each object that is read is held against (``dataset.verify``).
NONE, LENGTH, CHECKSUM = "none", "length", "checksum"
SHA256_BYTES = hashlib.sha256().digest_size
_NO_SHA256 = np.empty(0, dtype=np.uint8)
_UNKNOWN = bytes(SHA256_BYTES)

_Layout = list[tuple[str, int]]


class CatalogError(DnnbenchError):
    """What was listed is no usable data set; the message names the prefix."""


class Group(NamedTuple):
    """What the samples of one source and category share: what their keys begin with, and both numbers."""

    prefix: bytes
    source: int
    label: int


def _number_type(groups: Sequence[Group]) -> np.dtype[Any]:
    return np.min_scalar_type(len(groups) - 1)


class Catalog:
    """Samples in a fixed order: by source, label and key. They never change.

    Sample ``i`` belongs to ``groups[group_numbers[i]]``; ``names`` are the keys below the prefix of
    the group. ``sizes_bytes`` is an array, uint32 where all sizes fit and else int64.
    ``verify`` is what reads are held against: the objects' listed length, unless `expecting` says otherwise.
    ``left_out`` counts what was listed and is no sample, by reason: ``hidden``, ``empty``,
    ``not_image``, ``folder_marker``.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        group_numbers: npt.ArrayLike,
        names: Names,
        sizes_bytes: npt.ArrayLike,
        label_names: Sequence[str],
        left_out: Counter[str] | None = None,
    ) -> None:
        self.groups, self.label_names = tuple(groups), tuple(label_names)
        self.left_out: Counter[str] = Counter(left_out or {})
        numbers = np.asarray(group_numbers, dtype=_number_type(self.groups))
        self._hold([names.offsets, names.block, _narrow(np.asarray(sizes_bytes)), numbers, _NO_SHA256])
        self.verify = LENGTH
        # How the names of samples end.
        self.extensions: tuple[str, ...] = EXTENSIONS
        # Where the samples lie, where they are no objects of their own but parts of shards (`dnnbench.shards`).
        self.shards: Any = None
        self._hash: str | None = None
        self._spilled: str | None = None

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        """The key of a sample, as `Storage.read` takes it."""
        return os.fsdecode(self._group(index).prefix + self._names[index])

    def object_keys(self) -> Iterator[str]:
        """The keys of the objects that hold the samples: one for each, or those of the shards."""
        return map(self.key, range(len(self))) if self.shards is None else iter(self.shards.keys)

    def relative_key(self, index: int) -> str:
        """The key below source and category: the same on every storage."""
        return os.fsdecode(self._names[index])

    def size_bytes(self, index: int) -> int:
        return int(self.sizes_bytes[index])

    def label(self, index: int) -> int:
        return self._group(index).label

    def item(self, index: int) -> Item:
        """A sample as `Storage.fetch` takes it: its key, and what is read is held against."""
        if self.verify == LENGTH:
            return self.key(index), self.size_bytes(index)
        if self.verify == NONE:
            return self.key(index), None
        return self.key(index), self.size_bytes(index), self.sha256(index)

    def items(self, indices: Sequence[int] | Int64s) -> Iterator[Item]:
        """`item` of the given samples, as `Storage.read_many` takes them."""
        return map(self.item, indices)

    def sha256(self, index: int) -> bytes:
        """The SHA-256 of a sample's content; `OF_SERVER` where none is known."""
        known = self._sha256[index].tobytes() if len(self._sha256) else _UNKNOWN
        return OF_SERVER if known == _UNKNOWN else known

    def first_without_sha256(self) -> int | None:
        """The first sample whose SHA-256 is not known, if there is one."""
        if not len(self._sha256):
            return 0 if len(self) else None
        unknown = np.flatnonzero(~self._sha256.any(axis=1))
        return int(unknown[0]) if len(unknown) else None

    def by_group(self) -> Iterator[tuple[Group, Int64s]]:
        """Each group, and its samples in the catalog's order."""
        order = np.argsort(self._group_numbers, kind="stable")
        ends = np.cumsum(np.bincount(self._group_numbers, minlength=len(self.groups)))
        return zip(self.groups, np.split(order, ends[:-1]), strict=True)

    def expecting(self, verify: str, sha256: npt.NDArray[np.uint8] | None = None) -> Catalog:
        """The same samples, their reads held against ``verify``, and that is the rows of ``sha256`` [samples, 32].

        A row of zeros is one that is not known.
        """
        catalog = copy.copy(self)
        catalog.verify, catalog._spilled = verify, None
        catalog._hold([*self._columns()[:-1], _NO_SHA256 if sha256 is None else sha256.reshape(-1)])
        return catalog

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Each sample's index into ``label_names``, of the smallest unsigned type; a new array."""
        return self._of_groups([group.label for group in self.groups])

    @property
    def sources(self) -> npt.NDArray[Any]:
        """Each sample's index of the source, of the smallest unsigned type; a new array."""
        return self._of_groups([group.source for group in self.groups])

    @property
    def total_bytes(self) -> int:
        """The sum of the samples' sizes."""
        return int(self.sizes_bytes.sum(dtype=np.int64))

    @property
    def stored_bytes(self) -> int:
        """What the objects that hold the samples take: the files themselves, or the shards with all that is in them."""
        return self.total_bytes if self.shards is None else int(self.shards.sizes_bytes.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the samples take, mapped or not."""
        return sum(column.nbytes for column in self._columns())

    def hash(self) -> str:
        """A SHA-256 (16 hex digits) over source, label, key below them, and size of every sample.

        Two catalogs of the same data set on different storages have the same hash.
        """
        if self._hash is None:
            digest = hashlib.sha256(f"{self.label_names!r}\0{len(self)}\0".encode())
            # One column after the other, each in one type: with their number and lengths all is told apart.
            for column in (self.sources, self.labels, self.sizes_bytes, self._names.lengths):
                for chunk in chunks(len(self), CHUNK_SAMPLES):
                    digest.update(column[chunk].astype("<u8").data)
            digest.update(self._names.block.data)
            self._hash = digest.hexdigest()[:16]
        return self._hash

    def select(self, indices: Sequence[int] | Int64s) -> Catalog:
        """A catalog of some of the samples, in the order given. Raises `CatalogError` where they lie in shards."""
        if self.shards is not None:
            raise CatalogError(
                "a part of a data set cannot be chosen from shards, which hold its samples in any order; measure this "
                "on single files (dataset.format=files)"
            )
        chosen = np.asarray(indices, dtype=np.int64)
        catalog = Catalog(
            self.groups,
            self._group_numbers[chosen],
            self._names.take(chosen),
            self.sizes_bytes[chosen],
            self.label_names,
        )
        return catalog.expecting(self.verify, self._sha256[chosen] if len(self._sha256) else None)

    def split(self, test_share: float, seed: int) -> tuple[Catalog, Catalog]:
        """(train, test): ``test_share`` of each category, chosen by seed.

        Each category with at least two samples has one or more in both parts.
        Raises `ValueError` unless ``0 < test_share < 1``.
        """
        if not 0 < test_share < 1:
            raise ValueError(f"test_share must be between 0 and 1 (found {test_share})")
        rng = np.random.default_rng(seed)
        is_test = np.zeros(len(self), dtype=bool)
        labels = self.labels
        by_label = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=len(self.label_names)))
        for members in np.split(by_label, ends[:-1]):
            if len(members) > 1:
                count = min(max(round(len(members) * test_share), 1), len(members) - 1)
                is_test[rng.permutation(members)[:count]] = True
        return self.select(np.flatnonzero(~is_test)), self.select(np.flatnonzero(is_test))

    def _group(self, index: int) -> Group:
        return self.groups[int(self._group_numbers[index])]

    def _of_groups(self, numbers: Sequence[int]) -> npt.NDArray[Any]:
        table = np.asarray(numbers, dtype=np.min_scalar_type(max(numbers, default=0)))
        of_samples: npt.NDArray[Any] = table[self._group_numbers]
        return of_samples

    def state(self) -> tuple[Any, ...]:
        """All of it as plain values and arrays, for processes that share no files with this one; see `of_state`."""
        columns = [np.asarray(column) for column in self._columns()]
        told = self.verify, dict(self.left_out), self.extensions, self.shards
        return self.groups, self.label_names, *told, columns

    @classmethod
    def of_state(cls, state: tuple[Any, ...]) -> Catalog:
        """The catalog that has this `state`."""
        catalog = cls.__new__(cls)
        catalog.groups, catalog.label_names, catalog.verify, left_out, extensions, shards, columns = state
        catalog.left_out, catalog.extensions, catalog.shards = Counter(left_out), extensions, shards
        catalog._hash, catalog._spilled = None, None
        catalog._hold(columns)
        return catalog

    # A pickled catalog is the path of a file that every process maps: one copy for all of them.
    def __reduce__(self) -> tuple[Any, ...]:
        path = self._spill()
        told = self.verify, self.left_out, self.extensions, self.shards
        return _map_file, (path, self._layout(), self.groups, self.label_names, *told)

    def _columns(self) -> list[npt.NDArray[Any]]:
        sha256 = self._sha256.reshape(-1)
        return [self._names.offsets, self._names.block, self.sizes_bytes, self._group_numbers, sha256]

    def _layout(self) -> _Layout:
        return [(column.dtype.str, len(column)) for column in self._columns()]

    def _hold(self, columns: Sequence[npt.NDArray[Any]]) -> None:
        offsets, block, self.sizes_bytes, self._group_numbers, sha256 = columns
        self._names = Names(block, offsets)
        self._sha256 = sha256.reshape(-1, SHA256_BYTES)

    def _spill(self) -> str:
        if self._spilled is None or not os.path.exists(self._spilled):
            handle, path = tempfile.mkstemp(prefix="dnnbench-catalog-")
            # The process that wrote the file removes it; mappings outlive the name.
            goes_with(self, path)
            with open(handle, "wb") as file:
                for column in self._columns():
                    file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
                    file.write(column.data)
            # From here on this process, too, holds no copy of its own.
            self._hold(_map_columns(path, self._layout()))
            self._spilled = path
        return self._spilled


def as_listed(storage: Storage, prefix: str) -> str:
    """What listed keys below a prefix begin with: the paths of files below the folder "." come without it."""
    return prefix.removeprefix("./") if storage.name == "fs" else prefix


def single(entry: Entry, label_names: Sequence[str]) -> Catalog:
    """A catalog of one object whose category is not known; its label is 0."""
    return Catalog([Group(b"", 0, 0)], [0], Names.of([os.fsencode(entry.key)]), [entry.size_bytes], label_names)


def _map_file(
    path: str, layout: _Layout, groups: tuple[Group, ...], label_names: tuple[str, ...], verify: str,
    left_out: Counter[str], extensions: tuple[str, ...], shards: Any,
) -> Catalog:  # fmt: skip
    catalog = Catalog.__new__(Catalog)
    catalog.groups, catalog.label_names, catalog.left_out = groups, label_names, left_out
    catalog.verify, catalog.extensions, catalog.shards = verify, extensions, shards
    catalog._hash, catalog._spilled = None, path
    catalog._hold(_map_columns(path, layout))
    return catalog


def _map_columns(path: str, layout: _Layout) -> list[npt.NDArray[Any]]:
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    columns, end = [], 0
    for kind, count in layout:
        start = end + -end % _ALIGNMENT
        end = start + count * np.dtype(kind).itemsize
        columns.append(data[start:end].view(kind))
    return columns


class _Page(NamedTuple):
    """The samples of one page; ``is_sorted`` tells whether each name is greater than the one before."""

    names: Names
    sizes_bytes: npt.NDArray[Any]
    is_sorted: bool


class CatalogBuilder:
    """Packs a listing page by page, in any order and from any thread.

    Group ``i`` is what is listed below ``prefixes[i]``: one source and category, in the order of
    both. ``sources`` are "" or end in "/". ``storage`` is only named in messages. The names of samples have one of
    the ``extensions``, which are lower-case.
    """

    def __init__(
        self,
        storage: Storage,
        sources: Sequence[str],
        labels: Sequence[str],
        extensions: tuple[str, ...] = EXTENSIONS,
    ) -> None:
        self._extensions = extensions
        places = [(source, label) for source in range(len(sources)) for label in range(len(labels))]
        self.prefixes = [f"{sources[source]}{labels[label]}/" for source, label in places]
        self._key_prefixes = [as_listed(storage, prefix) for prefix in self.prefixes]
        self._groups = [Group(os.fsencode(p), *place) for p, place in zip(self._key_prefixes, places, strict=True)]
        self._storage, self._labels = storage, labels
        self._lock = threading.Lock()
        self._pages: list[list[_Page]] = [[] for _ in places]
        self._left_out: list[Counter[str]] = [Counter() for _ in places]

    def add(self, group_number: int, page: Sequence[Entry]) -> None:
        """Packs what is a sample in a page of a group's listing, and counts what is none.

        Raises `CatalogError` for a key that is not below the group's prefix.
        """
        if not page:
            return
        prefix = self._key_prefixes[group_number]
        keys, sizes_bytes = zip(*page, strict=True)
        # Between two strings with one beginning there is none with another.
        for key in (min(keys), max(keys)):
            if not key.startswith(prefix):
                raise CatalogError(f"{self._storage.label}: {prefix}: the listing has {key!r}, which is not below it")
        relative = [key[len(prefix) :] for key in keys]
        left_out: Counter[str] = Counter()
        if not _are_samples(relative, sizes_bytes, self._extensions):
            reasons = [_why_left_out(*one, self._extensions) for one in zip(relative, sizes_bytes, strict=True)]
            left_out.update(filter(None, reasons))
            relative = [name for name, reason in zip(relative, reasons, strict=True) if not reason]
            sizes_bytes = tuple(size for size, reason in zip(sizes_bytes, reasons, strict=True) if not reason)
        names = [*map(os.fsencode, relative)]
        packed = _Page(
            Names.of(names),
            _narrow(np.asarray(sizes_bytes, dtype=np.int64)),
            all(map(operator.lt, names, islice(names, 1, None))),
        )
        with self._lock:
            self._left_out[group_number].update(left_out)
            if names:
                self._pages[group_number].append(packed)

    def build(self) -> Catalog:
        """The catalog of all pages, which are let go.

        Raises `CatalogError` for a group that has no sample, and for a key that is there twice.
        """
        for prefix, of_group, left_out in zip(self.prefixes, self._pages, self._left_out, strict=True):
            if not of_group:
                raise CatalogError(_nothing(self._storage, prefix, left_out))
        counts, pages = [], []
        for prefix, of_group in zip(self.prefixes, self._pages, strict=True):
            counts.append(sum(len(page.names) for page in of_group))
            in_order, twice = _in_order(of_group)
            if twice is not None:
                key = prefix + os.fsdecode(twice)
                raise CatalogError(f"{self._storage.label}: {key!r}: is listed twice; the server's listing is broken")
            pages += in_order
            of_group.clear()
        numbers = np.arange(len(self._groups), dtype=_number_type(self._groups))
        catalog = Catalog(
            self._groups,
            np.repeat(numbers, counts),
            Names.joined([page.names for page in pages]),
            np.concatenate([page.sizes_bytes for page in pages]),
            self._labels,
            sum(self._left_out, Counter()),
        )
        catalog.extensions = self._extensions
        return catalog


def _in_order(pages: list[_Page]) -> tuple[list[_Page], bytes | None]:
    """The pages of one group, sorted by the bytes of the keys, and a name that is there twice (None: there is none).

    For S3's pages, which are sorted, only they themselves are moved.
    """
    pages = sorted(pages, key=lambda page: page.names[0])
    if all(page.is_sorted for page in pages) and all(a.names[-1] < b.names[0] for a, b in pairwise(pages)):
        return pages, None
    names = Names.joined([page.names for page in pages])
    sizes_bytes = np.concatenate([page.sizes_bytes for page in pages])
    order = names.order()
    names = names.take(order)
    repeated = names.repeated()
    return [_Page(names, sizes_bytes[order], True)], names[int(repeated[0])] if len(repeated) else None


def list_catalog(
    storage: Storage,
    sources: Sequence[str],
    labels: Sequence[str],
    workers: int,
    extensions: tuple[str, ...] = EXTENSIONS,
) -> Catalog:
    """Lists every source and category, ``workers`` at a time. ``sources`` are "" or end in "/".

    Left out, and counted: objects that no image has the name of, hidden ones (a part of the key
    below the category begins with "."), zero-byte ones. Objects in nested folders belong to the category.
    Raises `CatalogError` for a category that has no image in any source or is missing in one, and
    the errors of the storage.
    """
    builder = CatalogBuilder(storage, sources, labels, extensions)
    try:
        for group_number, page in storage.list_many(builder.prefixes, workers):
            builder.add(group_number, page)
    except NotFoundError as exc:
        if storage.name == "fs" and exc.key in builder.prefixes:
            raise CatalogError(
                f"{storage.label}: {exc.key}: there is no such folder; each source needs one folder "
                "per category of dataset.label"
            ) from exc
        raise
    return builder.build()


def is_sample(relative: str) -> bool:
    """Whether an object that is not empty is a sample, by its key below source and category."""
    return not _why_left_out(relative, 1)


def _are_samples(relative: Sequence[str], sizes_bytes: Sequence[int], extensions: tuple[str, ...]) -> bool:
    """Whether `_why_left_out` has nothing against any key of a page, where that is seen without looking at each."""
    # A line break in a key may hide nothing, but look like the beginning of a hidden one.
    text = "\n".join(("", *relative))
    longest = max(map(len, extensions))
    endings = {name[-longest:] for name in relative}
    return (
        "\n." not in text
        and "/." not in text
        and all(sizes_bytes)
        and all(end.lower().endswith(extensions) for end in endings)
    )


def _why_left_out(relative: str, size_bytes: int, extensions: tuple[str, ...] = EXTENSIONS) -> str:
    if relative.endswith("/") or not relative:
        return "folder_marker"
    if any(part.startswith(".") for part in relative.split("/")):
        return "hidden"
    if not relative.lower().endswith(extensions):
        return "not_image"
    return "" if size_bytes else "empty"


def _nothing(storage: Storage, prefix: str, left_out: Counter[str]) -> str:
    what = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    found = f"only {what}" if what else "nothing"
    return (
        f"{storage.label}: {prefix}: no images in this category (found {found}); check dataset.label, and "
        f"{'storage.fs.data_dir' if storage.name == 'fs' else 'storage.s3.prefix'}"
    )


def _narrow(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers from 0 as uint32 where all fit, else as int64 (with which uint64 would make floats)."""
    fits = not len(numbers) or int(numbers.max()) < 2**32
    return numbers.astype(np.uint32 if fits else np.int64, copy=False)

"""Shards: many samples in one object, and the index that says where each of them lies.

A source's shards are ``SOURCE/shards-FORMAT/NUMBER.FORMAT``, and its index ``SOURCE/dnnbench.shards-FORMAT.index``,
which `dnnbench.pack` writes last; that of shards from elsewhere `dnnbench.shard_scan` makes. With it a data set's
samples, their sizes and labels are known without reading a shard, and any run of them is a range of bytes. What parses
them is in `dnnbench.datasets.shard_reads`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnnbench.catalog import Catalog, CatalogError, Group, as_listed, list_catalog
from dnnbench.packed_names import Int64s, Names
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import CorruptError, NotFoundError

TAR, TFRECORD = "tar", "tfrecord"
FORMATS = (TAR, TFRECORD)
# Of an index: label numbers, begins, sizes, and the names' lengths and bytes.
_COLUMNS = ("<u4", "<u8", "<u8", "<u4", "u1")
_MAGIC = b"dnnbench shards 1\n"
# Instead of what follows the magic, for as long as shards are being written.
HALF_WRITTEN = b"half written\n"


def folder_of(kind: str) -> str:
    """The folder of a source that holds its shards."""
    return f"shards-{kind}"


def index_key(source: str, folder: str) -> str:
    """The key of the index of the shards in a source's folder; ``source`` is "" or ends in "/"."""
    return f"{source}dnnbench.{folder.replace('/', '-')}.index"


class Shard(NamedTuple):
    """``name`` below the folder, its length, where its last sample ends, and how many samples it has."""

    name: str
    size_bytes: int
    data_bytes: int
    samples: int


@dataclass(frozen=True)
class Index:
    """One source's shards, and its samples in the order in which they lie in them.

    ``label_numbers`` count in ``labels``; sample ``i`` begins at byte ``begins[i]`` of its shard, and its image has
    ``sizes_bytes[i]``; ``names`` are the paths of the packed files, below source and category.
    """

    kind: str
    labels: Sequence[str]
    shards: Sequence[Shard]
    label_numbers: npt.NDArray[Any]
    begins: npt.NDArray[Any]
    sizes_bytes: npt.NDArray[Any]
    names: Names
    # Whether a sample has nothing but its image and its label.
    strict: bool = True

    def encode(self) -> bytes:
        """The index as it is stored: a line of JSON, and the columns."""
        columns = (self.label_numbers, self.begins, self.sizes_bytes, self.names.lengths, self.names.block)
        body = b"".join(np.asarray(c).astype(dtype).tobytes() for c, dtype in zip(columns, _COLUMNS, strict=True))
        head = {
            "format": self.kind,
            "labels": list(self.labels),
            "samples": len(self.names),
            "names_bytes": len(self.names.block),
            "shards": [list(shard) for shard in self.shards],
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return _MAGIC + json.dumps(head).encode() + b"\n" + body

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Raises `ValueError` with what is wrong."""
        if not data.startswith(_MAGIC):
            raise ValueError("it begins with something else")
        if data[len(_MAGIC) :] == HALF_WRITTEN:
            raise ValueError("the packing did not end")
        line, _, body = data[len(_MAGIC) :].partition(b"\n")
        try:
            head = json.loads(line)
            shards = [
                Shard(*(_of_type(value, kind) for value, kind in zip(shard, (str, int, int, int), strict=True)))
                for shard in head["shards"]
            ]
            samples, names_bytes = _of_type(head["samples"], int), _of_type(head["names_bytes"], int)
            labels, kind = [_of_type(label, str) for label in head["labels"]], _of_type(head["format"], str)
            sha256 = head["sha256"]
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError(f"its first line cannot be read ({exc!r})") from exc
        if hashlib.sha256(body).hexdigest() != sha256:
            raise ValueError("its checksum is wrong")
        columns: list[npt.NDArray[Any]] = []
        at = 0
        for dtype, count in zip(_COLUMNS, [samples] * 4 + [names_bytes], strict=True):
            end = at + count * np.dtype(dtype).itemsize
            if end > len(body):
                raise ValueError("its columns do not fit")
            columns.append(np.frombuffer(body[at:end], dtype=dtype))
            at = end
        if at != len(body) or int(columns[3].sum()) != names_bytes or sum(s.samples for s in shards) != samples:
            raise ValueError("its columns do not fit")
        offsets = np.zeros(samples + 1, dtype=np.int64)
        np.cumsum(columns[3], out=offsets[1:])
        index = cls(kind, labels, shards, columns[0], columns[1], columns[2], Names(columns[4], offsets))
        index._check()
        return index

    def _check(self) -> None:
        """Raises `ValueError` for samples that are not where any could be."""
        first = 0
        for shard in self.shards:
            here = slice(first, first + shard.samples)
            bounds = np.append(self.begins[here].astype(np.int64), shard.data_bytes)
            lengths: Int64s = np.diff(bounds)
            if not shard.samples or int(bounds[0]) < 0 or shard.data_bytes > shard.size_bytes or (lengths <= 0).any():
                raise ValueError(f"the places of the samples in {shard.name} cannot be")
            if (self.sizes_bytes[here].astype(np.int64) > lengths).any():
                raise ValueError(f"a sample in {shard.name} would be longer than its place")
            first += shard.samples
        if bool((self.label_numbers >= len(self.labels)).any()):
            raise ValueError("a sample has a label without a name")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"{value!r} where a {kind.__name__} belongs")
    return value


def half_written() -> bytes:
    """What lies in the place of an index while its shards are written."""
    return _MAGIC + HALF_WRITTEN


class Run(NamedTuple):
    """Samples of one shard that are read at once: positions ``first`` to (not with) ``last``, bytes alike.

    ``whole``: all of the object, what follows its last sample included.
    """

    shard: int
    first: int
    last: int
    begin: int
    end: int
    whole: bool


class Shards:
    """Where the samples of a catalog lie: position ``p`` counts them as they lie, shard by shard.

    ``order[p]`` is the catalog's index of that sample; ``firsts[s]`` the first position in shard ``s``; ``begins[p]``
    the byte of its shard at which a sample begins, and ``written_labels[p]`` the label that is written there.
    ``strict``: samples have nothing but an image and a label, so that anything else is damage.
    """

    def __init__(
        self,
        kind: str,
        keys: Sequence[str],
        shards: Sequence[Shard],
        begins: Int64s,
        order: Int64s,
        written_labels: npt.NDArray[Any],
        strict: bool = True,
    ) -> None:
        self.strict = strict
        self.kind, self.keys = kind, tuple(keys)
        self.sizes_bytes = np.asarray([shard.size_bytes for shard in shards], dtype=np.int64)
        self.data_bytes = np.asarray([shard.data_bytes for shard in shards], dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards], dtype=np.int64)])
        self.begins, self.order, self.written_labels = begins, order, written_labels

    def __len__(self) -> int:
        return len(self.keys)

    def position_of(self, index: int) -> int:
        """The position of the catalog's sample ``index``; looks at all of them."""
        return int(np.flatnonzero(self.order == index)[0])

    def shard_of(self, position: int) -> int:
        return int(np.searchsorted(self.firsts, position, side="right")) - 1

    def run(self, shard: int, first: int, last: int, may_be_whole: bool = False) -> Run:
        """Positions ``first`` to ``last`` of a shard as one reading."""
        is_last = last == self.firsts[shard + 1]
        whole = may_be_whole and is_last and first == self.firsts[shard]
        end = self.data_bytes[shard] if is_last else self.begins[last]
        if whole:
            return Run(shard, first, last, 0, int(self.sizes_bytes[shard]), True)
        return Run(shard, first, last, int(self.begins[first]), int(end), False)

    def runs(self, shard: int, first: int, last: int, range_bytes: int | None) -> list[Run]:
        """The same, in readings of at most ``range_bytes``, or a sample each where that has more; None: in one."""
        if range_bytes is None:
            return [self.run(shard, first, last, may_be_whole=True)]
        bounds = np.append(self.begins[first:last], self.run(shard, first, last).end)
        runs, at = [], 0
        while at < last - first:
            fits = int(np.searchsorted(bounds, bounds[at] + range_bytes, side="right")) - 1
            to = max(fits, at + 1)
            runs.append(self.run(shard, first + at, first + to))
            at = to
        return runs


def list_shards(
    storage: Storage, sources: Sequence[str], kind: str, workers: int, folder: str | None = None
) -> Catalog:
    """The shards themselves as a catalog of objects. Raises `CatalogError` where a source has none."""
    try:
        return list_catalog(storage, sources, [folder or folder_of(kind)], workers, (f".{kind}",))
    except (CatalogError, NotFoundError) as exc:
        if isinstance(exc, NotFoundError) and storage.name != "fs":
            raise
        raise CatalogError(
            f"{storage.label}: no shards in {' and '.join(f'{s}{folder or folder_of(kind)}/' for s in sources)}, as "
            f"dataset.format={kind} asks; make them: python -m dnnbench pack SOURCE DEST --format {kind}"
        ) from exc


def sharded_catalog(storage: Storage, sources: Sequence[str], labels: Sequence[str], objects: Catalog) -> Catalog:
    """The samples in listed shards, as the catalog of the files that were packed; it has `Shards`.

    Shards without an index are read once to make it. Raises `CatalogError` for an index of other shards or categories,
    `CorruptError` for one that is none and for a shard that is cut off, and the errors of the storage.
    """
    kind, folder = objects.extensions[0].removeprefix("."), objects.label_names[0]
    listed: list[dict[str, int]] = [{} for _ in sources]
    for group, numbers in objects.by_group():
        listed[group.source] = {objects.relative_key(int(i)): objects.size_bytes(int(i)) for i in numbers}
    indexes = [
        _index_of(storage, source, folder, kind, found, labels) for source, found in zip(sources, listed, strict=True)
    ]
    keys: list[str] = []
    groups = [
        Group(os.fsencode(as_listed(storage, f"{source}{label}/")), s, number)
        for s, source in enumerate(sources)
        for number, label in enumerate(labels)
    ]
    group_numbers = []
    for s, (source, index) in enumerate(zip(sources, indexes, strict=True)):
        _check_listed(storage, f"{source}{folder}/", index, listed[s])
        if set(index.labels) != set(labels):
            raise CatalogError(
                f"{storage.label}: {index_key(source, folder)}: the shards hold the categories "
                f"{', '.join(index.labels)}, and dataset.label names {', '.join(labels)}; pack again, or name these"
            )
        prefix = as_listed(storage, f"{source}{folder}/")
        keys += [prefix + shard.name for shard in index.shards]
        numbers = np.asarray([labels.index(label) for label in index.labels], dtype=np.int64)
        group_numbers.append(s * len(labels) + numbers[index.label_numbers])
    names = Names.joined([index.names for index in indexes])
    of_groups = np.concatenate(group_numbers)
    by_name = names.order()
    # By group, and by name within each: as a listing of the files has them.
    order = by_name[np.argsort(of_groups[by_name], kind="stable")]
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    sizes_bytes = np.concatenate([index.sizes_bytes for index in indexes]).astype(np.int64)
    catalog = Catalog(groups, of_groups[order], names.take(order), sizes_bytes[order], labels)
    catalog.shards = Shards(
        kind,
        keys,
        [shard for index in indexes for shard in index.shards],
        np.concatenate([index.begins for index in indexes]).astype(np.int64),
        places,
        np.concatenate([index.label_numbers for index in indexes]),
        all(index.strict for index in indexes),
    )
    return catalog


def _index_of(
    storage: Storage, source: str, folder: str, kind: str, listed: dict[str, int], labels: Sequence[str]
) -> Index:
    key = index_key(source, folder)
    again = f"pack the source again: python -m dnnbench pack SOURCE DEST --format {kind} --overwrite"
    try:
        data = storage.read(key)
    except NotFoundError:
        from dnnbench.shard_scan import scan

        return scan(storage, f"{source}{folder}/", listed, kind, labels)
    try:
        index = Index.decode(data)
        if index.kind != kind:
            raise ValueError(f"it is of {index.kind}")
    except ValueError as exc:
        raise CorruptError(storage.label, key, f"is no index of shards: {exc}; {again}") from exc
    return index


def _check_listed(storage: Storage, folder: str, index: Index, listed: dict[str, int]) -> None:
    for shard in index.shards:
        found = listed.get(shard.name)
        if found is None:
            raise CatalogError(f"{storage.label}: {folder}{shard.name}: is in the index and was not listed; pack again")
        if found != shard.size_bytes:
            how = "is cut off" if found < shard.size_bytes else "has grown"
            problem = (
                f"{how} at byte {min(found, shard.size_bytes):,}: it has {found:,} bytes, and the index says "
                f"{shard.size_bytes:,}; copy or pack it again"
            )
            raise CorruptError(storage.label, folder + shard.name, problem)
    known = {shard.name for shard in index.shards}
    for name in listed:
        if name not in known:
            raise CatalogError(
                f"{storage.label}: {folder}{name}: is a shard that the index does not know; remove it, or pack again"
            )

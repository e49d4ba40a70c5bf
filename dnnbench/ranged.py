"""Large objects: which of them are read, in ranges of a given size and several at a time, and one of them whole.

As in `dnnbench.workloads`: prepared outside of the clock, run inside of it, held against the catalog after it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnbench.catalog import Catalog, CatalogError, Group, as_listed
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.errors import MeasurementError
from dnnbench.metrics import Round
from dnnbench.metrics_rounds import MIB
from dnnbench.packed_names import Names
from dnnbench.storage.base import Entry, Storage

Int64s = npt.NDArray[np.int64]
# One ranged read: its number, then key, start, end and the object's size.
_Read = tuple[int, str, int, int, int]
# The name of a catalog's part: objects of a place of their own, or the largest of the data set.
LARGE, LARGEST = "large", "largest"
_LONGEST_WARM_BYTES = 64 * 1024


def list_large(storage: Storage, places: Sequence[str]) -> Catalog:
    """A catalog of all objects that are not empty below some places, whatever their names; see `large_places`.

    Its hash is the same for the same objects on another storage. Raises `CatalogError` where there is none.
    """
    groups, numbers, names, sizes_bytes = [], [], [], []
    for number, place in enumerate(places):
        found = sorted(entry for entry in storage.list(place) if entry.size_bytes and _is_at(storage, place, entry))
        if not found:
            raise CatalogError(
                f"{storage.label}: {place}: there is no object to read in ranges; check "
                f"{'storage.fs.large_dir' if storage.name == 'fs' else 'storage.s3.large_prefix'}"
            )
        # What is below the last folder tells them apart; the same on every storage.
        start = as_listed(storage, place[: place.rfind("/") + 1])
        groups.append(Group(os.fsencode(start), number, 0))
        numbers += [number] * len(found)
        names += [os.fsencode(entry.key[len(start) :]) for entry in found]
        sizes_bytes += [entry.size_bytes for entry in found]
    return Catalog(groups, numbers, Names.of(names), sizes_bytes, [LARGE])


def _is_at(storage: Storage, place: str, entry: Entry) -> bool:
    # A file is named whole, and others may begin as it does.
    return storage.name != "fs" or place.endswith("/") or entry.key == as_listed(storage, place)


def choose(sizes_bytes: npt.ArrayLike, max_bytes: int, seed: int) -> Int64s:
    """The numbers of the largest objects, no more than ``max_bytes`` of them together, in rising order.

    None that is larger than that itself; of those of one size, some by ``seed``.
    """
    sizes = np.asarray(sizes_bytes, dtype=np.int64)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(sizes)), -sizes))
    order = order[sizes[order] <= max_bytes]
    return np.sort(order[: np.searchsorted(np.cumsum(sizes[order]), max_bytes, side="right")])


def split(sizes_bytes: npt.ArrayLike, range_bytes: int) -> tuple[Int64s, Int64s, Int64s]:
    """(object, start, end) of ranges that hold each byte of each object once; the last one of an object is shorter."""
    sizes = np.asarray(sizes_bytes, dtype=np.int64)
    counts = -(-sizes // range_bytes)
    objects = np.repeat(np.arange(len(sizes)), counts)
    starts = (np.arange(len(objects)) - np.repeat(np.cumsum(counts) - counts, counts)) * range_bytes
    return objects, starts, np.minimum(starts + range_bytes, sizes[objects])


def check_cover(what: str, ranges: tuple[Int64s, Int64s, Int64s], sizes_bytes: npt.ArrayLike) -> None:
    """Raises `MeasurementError` unless the ranges (object, start, end) hold each byte of each object exactly once."""
    objects, starts, ends = ranges
    order = np.lexsort((starts, objects))
    objects, starts, ends = objects[order], starts[order], ends[order]
    sizes = np.asarray(sizes_bytes, dtype=np.int64)
    first = np.diff(objects, prepend=-1) > 0
    last = np.diff(objects, append=len(sizes)) > 0
    whole = len(np.unique(objects)) == np.count_nonzero(sizes) and bool((ends > starts).all())
    joined = starts[1:][~first[1:]] == ends[:-1][~last[:-1]]
    if not (whole and (starts[first] == 0).all() and joined.all() and (ends[last] == sizes[objects[last]]).all()):
        raise MeasurementError(f"{what}: the ranges that were read are not each byte of the objects once")


class RangedReading:
    """Reads each byte of the objects once, in ranges of ``range_bytes``, in a fresh random order.

    ``concurrency`` ranges are read at a time. What comes is dropped.
    """

    rounds: int | None = None
    worker_start_s = None
    reads_content = True

    has_own_part = False

    def __init__(
        self,
        storage: Storage,
        catalog: Catalog,
        range_bytes: int,
        concurrency: int,
        seed: int,
        part: str = LARGE,
        share: RankShare = ALONE,
    ) -> None:
        self.what = f"ranges {size_text(range_bytes)} c{concurrency}"
        self.part = part
        self.storage, self.catalog = storage, catalog
        self._range_bytes, self._concurrency, self._seed = range_bytes, concurrency, seed
        self._ranges = split(catalog.sizes_bytes, range_bytes)
        self._share = share
        self._mine = share.of(len(self._ranges[0]))
        self.total = len(self._mine)
        self._order = np.empty(0, dtype=np.int64)
        self._keys = [catalog.key(i) for i in range(len(catalog))]
        self._reads: list[_Read] = []
        self._came: list[int] = []

    def prepare(self, number: int) -> None:
        whole = np.random.default_rng([self._seed, number]).permutation(len(self._ranges[0]))
        self._order = order = whole[self._mine.start : self._mine.stop]
        objects, starts, ends = (column[order].tolist() for column in self._ranges)
        sizes = self.catalog.sizes_bytes
        self._reads = [
            (position, self._keys[at], start, end, int(sizes[at]))
            for position, at, start, end in zip(order.tolist(), objects, starts, ends, strict=True)
        ]
        self.storage.open()
        if number == 0:
            warm(self.storage, self._reads, self._concurrency)
        self.again()

    def again(self) -> bool:
        self._came = []
        self.storage.meter.take()
        return True

    def run(self) -> None:
        fetch_range, came = self.storage.fetch_range, self._came.append

        def read(one: _Read) -> None:
            fetch_range(*one[1:])
            came(one[0])

        self.storage.each(read, self._reads, self._concurrency)

    def account(self) -> Round:
        tally = self.storage.meter.take()
        what = f"{self.storage.label}: {self.what}"
        came = np.asarray(self._came, dtype=np.int64)
        objects, starts, ends = self._ranges
        if self._share.ranks == 1:
            check_cover(what, (objects[came], starts[came], ends[came]), self.catalog.sizes_bytes)
        elif not np.array_equal(np.sort(came), np.sort(self._order)):
            raise MeasurementError(f"{what}: the ranges that were read are not this rank's, each of them once")
        _check_tally(what, tally, self.total, int((ends - starts)[self._order].sum()))
        return Round(
            # Of objects that ranks read parts of, each counts some, so that together they count all of them.
            len(self._share.of(len(self.catalog))),
            tally,
            in_flight=self._concurrency,
            one_core=self.storage.one_core,
            ranges={"size_bytes": self._range_bytes, "concurrency": self._concurrency, "per_round": len(objects)},
            indices=[came],
        )

    def done(self) -> int:
        return len(self._came)


class WholeObject:
    """Reads one object whole: in ``concurrency`` ranges of ``range_bytes`` at a time, or (None) by one plain read.

    The content of the ranges is held against that of a plain read, outside of the clock.
    """

    rounds: int | None = None
    worker_start_s = None
    reads_content = True
    has_own_part = False

    def __init__(self, storage: Storage, catalog: Catalog, ranges: tuple[int, int] | None, part: str = LARGE) -> None:
        """``ranges``: (range_bytes, concurrency), or None. The catalog is of the one object."""
        self.part = part
        self.storage, self.catalog = storage, catalog
        self._key, self._size_bytes = catalog.key(0), catalog.size_bytes(0)
        self._ranges = ranges
        self.total, self.what = 1, "whole plain"
        if ranges:
            self.total = -(-self._size_bytes // ranges[0])
            self.what = f"whole in ranges {size_text(ranges[0])} c{ranges[1]}"
        self._content: Any = None
        self._sha256 = b""
        self._reads_before = 0

    def prepare(self, number: int) -> None:
        self.storage.open()
        if number == 0:
            _, starts, ends = split([self._size_bytes], self._ranges[0] if self._ranges else self._size_bytes)
            reads = [(0, self._key, int(a), int(b), self._size_bytes) for a, b in zip(starts, ends, strict=True)]
            warm(self.storage, reads, self._ranges[1] if self._ranges else 1)
        self.again()

    def again(self) -> bool:
        self._content = None
        self.storage.meter.take()
        self._reads_before = self.storage.meter.reads
        return True

    def run(self) -> None:
        if self._ranges is None:
            self._content = self.storage.fetch(self._key, self._size_bytes)
        else:
            self._content = self.storage.read_parallel(self._key, self._size_bytes, *self._ranges)

    def account(self) -> Round:
        tally = self.storage.meter.take()
        _check_tally(f"{self.storage.label}: {self.what}", tally, self.total, self._size_bytes)
        if self._ranges is None:
            self._content = None
            return Round(1, tally, in_flight=1, one_core=self.storage.one_core)
        found, self._content = hashlib.sha256(self._content).digest(), None
        if not self._sha256:
            # After the first round, which is then the first reading of the object.
            self._sha256 = hashlib.sha256(self.storage.fetch(self._key, self._size_bytes)).digest()
            self.storage.meter.take()
        if found != self._sha256:
            raise MeasurementError(
                f"{self.storage.label}: {self._key}: its ranges are not what a plain read of it gives (SHA-256 "
                f"{found.hex()[:16]}…, and {self._sha256.hex()[:16]}…)"
            )
        size_bytes, concurrency = self._ranges
        return Round(
            1,
            tally,
            in_flight=min(concurrency, self.total),
            one_core=self.storage.one_core,
            ranges={"size_bytes": size_bytes, "concurrency": concurrency, "per_round": self.total},
        )

    def done(self) -> int:
        return self.storage.meter.reads - self._reads_before


def warm(storage: Storage, reads: Sequence[_Read], concurrency: int) -> None:
    """Makes the connections and starts the threads that ranged reads will use, by a few bytes for each."""
    storage.warm(
        [(key, start, min(end, start + _LONGEST_WARM_BYTES)) for _, key, start, end, _ in reads[:concurrency]],
        concurrency,
        storage.fetch_range,
    )


def _check_tally(what: str, tally: Any, reads: int, expected_bytes: int) -> None:
    if len(tally.latency_ns) != reads or tally.read_bytes != expected_bytes:
        raise MeasurementError(
            f"{what}: {tally.read_bytes} bytes came in {len(tally.latency_ns)} reads, but the catalog says "
            f"{expected_bytes} in {reads}"
        )


def size_text(size_bytes: int) -> str:
    """A size for a person, exact: ``8MiB``, ``64KiB``, ``1000B``."""
    for unit, name in ((MIB, "MiB"), (1024, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"

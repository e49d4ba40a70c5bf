"""Many strings of bytes as one block, with where each begins: ten million keys cost little more than their bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# A gathered byte needs an index of eight bytes, and a sorted name some eight numbers, for as long as a chunk takes.
_CHUNK_BYTES = 1 << 18
CHUNK_SAMPLES = 1 << 14

Int64s = npt.NDArray[np.int64]


class Names:
    """Strings of any bytes, in a fixed order: name ``i`` is ``block[offsets[i] : offsets[i + 1]]``.

    ``block`` is uint8; ``offsets``, of length ``len(names) + 1``, are uint32, or int64 from 4 GiB on.
    """

    def __init__(self, block: npt.NDArray[np.uint8], offsets: npt.NDArray[Any]) -> None:
        self.block, self.offsets = block, offsets

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        """The names of a list, packed."""
        return cls(
            np.frombuffer(b"".join(names), dtype=np.uint8),
            _offsets(np.fromiter(map(len, names), dtype=np.int64, count=len(names))),
        )

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """The names of all parts, one part after the other."""
        return cls(
            np.concatenate([np.empty(0, dtype=np.uint8), *(part.block for part in parts)]),
            _offsets(np.concatenate([np.empty(0, dtype=np.uint32), *(part.lengths for part in parts)])),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if index < 0:
            index += len(self)
        return self.block[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[Any]:
        """The names' lengths in bytes: a new array."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the names take."""
        return self.block.nbytes + self.offsets.nbytes

    def take(self, indices: Int64s) -> Names:
        """The names at the given places, in that order. Raises `IndexError` for a place that is not there."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"there are {len(self)} names, and indices from {indices.min()} to {indices.max()}")
        starts = self.offsets[indices]
        offsets = _offsets(self.offsets[indices + 1] - starts)
        block = np.empty(int(offsets[-1]), dtype=np.uint8)
        first = 0
        while first < len(indices):
            begin = int(offsets[first])
            # As many whole names as the chunk has room for, and one that is larger than it by itself.
            last = max(bisect_right(offsets, begin + _CHUNK_BYTES) - 1, first + 1)
            end = int(offsets[last])
            # The byte at place p of the result is at p + (where its name was - where it is now).
            moved = starts[first:last].astype(np.int64) - offsets[first:last]
            moved_bytes = np.repeat(moved, np.diff(offsets[first : last + 1]))
            block[begin:end] = self.block[moved_bytes + np.arange(begin, end)]
            first = last
        return Names(block, offsets)

    def order(self) -> Int64s:
        """The order that sorts the names by their bytes.

        Eight bytes at a time, as one number; names that differ by then are not looked at again.
        """
        lengths = self.lengths
        # Behind its end a name counts as NULs. Sorting is stable from here on, so that one that goes on with
        # real NULs stays behind the one that ends.
        order: Int64s = np.argsort(lengths, kind="stable")
        alike = np.arange(len(self))
        runs = np.zeros(len(self), dtype=np.int64)
        depth = 0
        while len(alike) and depth < lengths[order[alike]].max():
            words = self._words(order[alike], depth)
            within = np.lexsort((words, runs))
            order[alike] = order[alike][within]
            words, runs = words[within], runs[within]
            is_new = np.ones(len(alike), dtype=bool)
            is_new[1:] = (words[1:] != words[:-1]) | (runs[1:] != runs[:-1])
            runs = np.cumsum(is_new) - 1
            is_open = np.bincount(runs)[runs] > 1
            alike, runs = alike[is_open], runs[is_open]
            depth += 8
        return order

    def repeated(self) -> Int64s:
        """The places in sorted names at which the next one is the same."""
        lengths = self.lengths
        places: Int64s = np.flatnonzero(lengths[1:] == lengths[:-1])
        depth = 0
        while len(places) and depth < lengths[places].max():
            places = places[self._words(places, depth) == self._words(places + 1, depth)]
            depth += 8
        return places

    def _words(self, indices: Int64s, depth: int) -> npt.NDArray[np.uint64]:
        """Eight bytes of each name from ``depth`` on, as numbers that compare as the bytes do."""
        words = np.zeros(len(indices), dtype=np.uint64)
        for chunk in chunks(len(indices), CHUNK_SAMPLES):
            start = self.offsets[indices[chunk]].astype(np.int64) + depth
            end = self.offsets[indices[chunk] + 1]
            for place in range(8):
                at = start + place
                byte = np.where(at < end, self.block[np.minimum(at, len(self.block) - 1)], 0)
                words[chunk] = words[chunk] << np.uint64(8) | byte.astype(np.uint64)
        return words


def chunks(count: int, size: int) -> Iterator[slice]:
    """``count`` things in slices of ``size``."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _offsets(lengths: npt.NDArray[Any]) -> npt.NDArray[Any]:
    total = int(lengths.sum(dtype=np.int64))
    offsets = np.zeros(len(lengths) + 1, dtype=np.uint32 if total < 2**32 else np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets

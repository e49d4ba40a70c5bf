"""Manifests: the SHA-256 of each object of a source, in a file at its root that ``sha256sum -c`` reads.

A line is ``hex  path``, the path relative to the source; one that holds a line break or a backslash begins with a
backslash and has them escaped, as GNU coreutils writes it. Nothing here reads what is measured: `Storage.fetch` does.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, pairwise, takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnnbench.catalog import CHECKSUM, SHA256_BYTES, Catalog, CatalogError, is_sample
from dnnbench.packed_names import Names
from dnnbench.storage.base import Storage, no_checksum
from dnnbench.storage.errors import CorruptError, MisconfiguredError, NotFoundError
from dnnbench.transfer import Item

NAME = "dnnbench.sha256"
_LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_ESCAPED = {escape: char for char, escape in _ESCAPES.items()}
_ANEW = "make it anew: python -m dnnbench manifest PLACE --overwrite"
_EMPTY = hashlib.sha256().digest()


class Manifest(NamedTuple):
    """``names`` are paths below the source, sorted by their bytes; ``sha256`` [paths, 32] has a row for each."""

    names: Names
    sha256: npt.NDArray[np.uint8]


def encode(digests: Mapping[bytes, bytes]) -> bytes:
    """Path -> SHA-256 as a manifest's lines, sorted by path."""
    return b"".join(_line(path, digests[path]) for path in sorted(digests))


def _line(path: bytes, digest: bytes) -> bytes:
    escaped = re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], path)
    return (b"\\" if escaped != path else b"") + digest.hex().encode() + b"  " + escaped + b"\n"


def decode(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(path, SHA-256) of each line. Raises `ValueError` with the number of a line that is none."""
    for number, line in enumerate(io.BytesIO(data), 1):
        found = _LINE.fullmatch(line.removesuffix(b"\n"))
        if found is None:
            raise ValueError(f"line {number} is not a SHA-256, two blanks and a path")
        path = found[3]
        if found[1]:
            path = re.sub(rb"\\.", lambda escape: _ESCAPED.get(escape[0], escape[0]), path, flags=re.DOTALL)
        # As `find . -type f -exec sha256sum {} +` names them.
        yield path.removeprefix(b"./"), bytes.fromhex(found[2].decode())


def read_manifest(storage: Storage, source: str) -> Manifest | None:
    """The manifest of a source ("" or a prefix that ends in "/"); None where there is none.

    Raises `CorruptError` for one that cannot be read, and the errors of the storage.
    """
    key = source + NAME
    try:
        data = storage.read(key)
    except NotFoundError:
        return None
    paths, digests = [], bytearray()
    try:
        for path, digest in decode(data):
            paths.append(path)
            digests += digest
    except ValueError as exc:
        raise CorruptError(storage.label, key, f"is no manifest: {exc}; {_ANEW}") from exc
    names, sha256 = Names.of(paths), np.frombuffer(digests, dtype=np.uint8).reshape(-1, SHA256_BYTES)
    if all(before < later for before, later in pairwise(paths)):
        return Manifest(names, sha256)
    order = names.order()
    names, sha256 = names.take(order), sha256[order]
    again = np.zeros(max(len(names) - 1, 0), dtype=bool)
    again[names.repeated()] = True
    differs = np.flatnonzero(again & (sha256[1:] != sha256[:-1]).any(axis=1))
    if len(differs):
        which = os.fsdecode(names[int(differs[0])])
        raise CorruptError(storage.label, key, f"is no manifest: two lines differ about {which!r}; {_ANEW}")
    once = np.flatnonzero(~np.concatenate([[False], again]))
    return Manifest(names.take(once), sha256[once])


def expecting(verify: str, storage: Storage, sources: Sequence[str], catalog: Catalog, whole: bool = True) -> Catalog:
    """A listed catalog, its reads held against ``verify`` (``none``, ``length`` or ``checksum``).

    Checksums are those of the sources' manifests; of a source that has none, the server's. Raises `CatalogError` for
    an object that a manifest lacks and, where the listing was ``whole``, for one of the manifest that was not listed.
    """
    if verify != CHECKSUM:
        return catalog.expecting(verify)
    sha256 = np.zeros((len(catalog), SHA256_BYTES), dtype=np.uint8)
    manifests = [read_manifest(storage, source) for source in sources]
    for group, samples in catalog.by_group():
        manifest = manifests[group.source]
        if manifest is not None:
            place = _Place(storage.label, sources[group.source], f"{catalog.label_names[group.label]}/")
            names = (os.fsencode(catalog.relative_key(int(i))) for i in samples)
            sha256[samples] = manifest.sha256[[*_rows(place, manifest, names, whole)]]
    return catalog.expecting(CHECKSUM, sha256 if sha256.any() else None)


class _Place(NamedTuple):
    """A category of a source: what errors name."""

    storage: str
    source: str
    category: str

    def error(self, name: bytes, problem: str) -> CatalogError:
        key = f"{self.source}{self.category}{os.fsdecode(name)}"
        return CatalogError(f"{self.storage}: {key!r}: {problem} the manifest {self.source}{NAME}; {_ANEW}")


def _rows(place: _Place, manifest: Manifest, names: Iterator[bytes], whole: bool) -> Iterator[int]:
    """The manifest's row of each of a category's samples, whose names come sorted as its lines do."""
    prefix = os.fsencode(place.category)
    row = bisect_left(manifest.names, prefix)
    paths = (manifest.names[i] for i in range(row, len(manifest.names)))
    lines = (path[len(prefix) :] for path in takewhile(lambda path: path.startswith(prefix), paths))
    line, last = next(lines, None), None
    for name in chain(names, [None]):
        while line is not None and (name is None or line < name):
            if line != last:
                _check_needless(place, line, manifest.sha256[row], whole)
            line, row = next(lines, None), row + 1
        if name is not None:
            if line != name:
                raise place.error(name, "is not in")
            yield row
            last = name


def _check_needless(place: _Place, name: bytes, sha256: npt.NDArray[np.uint8], whole: bool) -> None:
    """Raises `CatalogError` where a line without an object of the catalog is of a sample that should have one."""
    if whole and is_sample(os.fsdecode(name)) and sha256.tobytes() != _EMPTY:
        raise place.error(name, "was not listed, but is in")


def check_verifiable(storage: Storage, catalog: Catalog) -> None:
    """Raises `MisconfiguredError` for the first object that has a checksum neither in a manifest nor at the server."""
    index = catalog.first_without_sha256()
    if catalog.verify == CHECKSUM and index is not None and not storage.verifies:
        why = f"no manifest, and {storage.client} asks no server for one"
        raise MisconfiguredError(storage.label, catalog.key(index), no_checksum(why))


def make_manifest(
    storage: Storage, folder: str, concurrency: int, overwrite: bool = False, progress: bool = True
) -> tuple[str, int, int]:
    """Reads every object below a prefix ("" or ending in "/") and writes their manifest: (its key, objects, bytes).

    Manifests are left out. Raises `NotFoundError` where there is nothing, `MisconfiguredError` where there is a
    manifest and ``overwrite`` is False, and the errors of the storage.
    """
    from tqdm import tqdm

    entries = [*storage.list(folder)]
    if not overwrite and any(entry.key == folder + NAME for entry in entries):
        raise MisconfiguredError(storage.label, folder + NAME, "exists; use --overwrite to make it anew")
    entries = [entry for entry in entries if not entry.key.endswith("/") and entry.key.rpartition("/")[2] != NAME]
    if not entries:
        raise NotFoundError(storage.label, folder or "the whole of it", "there is nothing to make a manifest of")

    def digest(number: int) -> bytes:
        return hashlib.sha256(storage.fetch(*entries[number])).digest()

    read = storage.in_flight(digest, range(len(entries)), concurrency)
    with tqdm(read, total=len(entries), unit="object", disable=None if progress else True) as bar:
        digests = {os.fsencode(entries[number].key[len(folder) :]): found for number, found in bar}
    storage.write(folder + NAME, encode(digests))
    return folder + NAME, len(entries), sum(entry.size_bytes for entry in entries)


def write_manifests(storage: Storage, prefix: str, items: Iterable[Item], digests: Mapping[str, bytes]) -> None:
    """Brings the manifests of sources up to date that a transfer has filled; an item's key begins with its source.

    ``digests`` are those of what was written. Of what was there already the manifest's line is kept, or made from
    what the item makes where there is none. What it says of other objects stays.
    """
    for name, of_source in groupby(items, key=lambda item: item[0].partition("/")[0]):
        source = "/".join(filter(None, [prefix.rstrip("/"), name])) + "/"
        manifest = read_manifest(storage, source)
        lines = {} if manifest is None else dict(zip(manifest.names, map(bytes, manifest.sha256), strict=True))
        before = dict(lines)
        for key, _, make in of_source:
            path = os.fsencode(key.partition("/")[2])
            if key in digests:
                lines[path] = digests[key]
            elif path not in lines:
                lines[path] = hashlib.sha256(make()).digest()
        if lines != before:
            storage.write(source + NAME, encode(lines))

"""Packs a data set into shards: samples in an order shuffled by seed, the same bytes each time.

The tar format is WebDataset's: ``KEY.jpg`` and ``KEY.cls`` (the label's number, in decimal) beside each other, KEY
being a number without dots. TFRecords are ``tf.train.Example`` with the usual features of image classification.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dnnbench import tfrecord
from dnnbench.catalog import Catalog, CatalogError, list_catalog
from dnnbench.errors import DnnbenchError
from dnnbench.images import FORMATS as IMAGE_FORMATS
from dnnbench.packed_names import Names
from dnnbench.shards import FORMATS, TAR, Index, Shard, folder_of, half_written, index_key
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import CorruptError, NotFoundError
from dnnbench.transfer import as_folder, existing

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Two blocks of zeros end an archive.
_TAR_END = bytes(2 * tarfile.BLOCKSIZE)
_LISTERS = 8


class PackError(DnnbenchError):
    """Shards that cannot be made, or would be written over others."""


@dataclass
class Packed:
    """What was written."""

    sources: int = 0
    samples: int = 0
    shards: int = 0
    bytes: int = 0


def parse_size(text: str) -> int:
    """Bytes of a size such as ``128MiB``, ``1GB`` or ``500000``. Raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    size_bytes = int(float(found[1]) * unit) if found and unit else 0
    if size_bytes < 1:
        raise ValueError(f"a size such as 128MiB (found {text!r})")
    return size_bytes


def sources_at(storage: Storage, prefix: str, labels: Sequence[str]) -> list[str]:
    """The sources at a place, "" or names that end in "/": it is one, or holds some, each with a folder per category.

    Raises `CatalogError` where there is none.
    """
    folder = as_folder(prefix)
    found = set()
    for entry in storage.list(folder):
        path = entry.key[len(folder) :]
        for label in labels:
            if path.startswith(f"{label}/"):
                return [""]
        name, _, rest = path.partition("/")
        if any(rest.startswith(f"{label}/") for label in labels):
            found.add(f"{name}/")
    if not found:
        raise CatalogError(
            f"{storage.label}: {folder or 'the whole of it'}: holds no folder of a category of dataset.label "
            f"({', '.join(labels)}), and none that does"
        )
    return sorted(found)


def pack(
    storage: Storage,
    prefix: str,
    destination: Storage,
    to_prefix: str,
    labels: Sequence[str],
    *,
    kind: str = TAR,
    shard_bytes: int = 128 * 2**20,
    seed: int = 0,
    concurrency: int = 16,
    overwrite: bool = False,
    progress: bool = True,
) -> Packed:
    """Packs the source, or all sources, at a place into shards at another, with an index each (`dnnbench.shards`).

    A shard is no longer than ``shard_bytes``, unless a single sample is. Raises `PackError` where there are shards
    already, or the rest of a packing that broke off, and ``overwrite`` is False; `CatalogError`, and the errors of the
    storages.
    """
    from tqdm import tqdm

    if kind not in FORMATS:
        raise PackError(f"--format: found {kind}, expected one of {', '.join(FORMATS)}")
    folder, to_folder = as_folder(prefix), as_folder(to_prefix)
    sources = sources_at(storage, prefix, labels)
    catalogs = [list_catalog(storage, [folder + source], labels, _LISTERS) for source in sources]
    there = {source: _there(destination, to_folder + source, kind, overwrite) for source in sources}
    done = Packed(sources=len(sources))
    with tqdm(total=sum(map(len, catalogs)), unit="sample", disable=None if progress else True) as bar:
        for source, catalog in zip(sources, catalogs, strict=True):
            place = to_folder + source
            # Until the index is there nobody takes what is written for whole, nor an earlier index for its own.
            destination.write(index_key(place, folder_of(kind)), half_written())
            packing = _Packing(storage, catalog, kind, shard_bytes)
            for name, data in packing.shards(seed, concurrency):
                destination.write(f"{place}{folder_of(kind)}/{name}", data)
                bar.update(packing.made[-1].samples)
                done.shards += 1
                done.bytes += len(data)
            destination.write(index_key(place, folder_of(kind)), packing.index().encode())
            done.samples += len(catalog)
            left = sorted(there[source] - {shard.name for shard in packing.made})
            if left:
                raise PackError(
                    f"{destination.label}: {place}{folder_of(kind)}/: all is packed, but {len(left)} earlier "
                    f"shards are left, from {left[0]} on, which belong to none of it; remove them"
                )
    return done


def _there(destination: Storage, place: str, kind: str, overwrite: bool) -> set[str]:
    """The names of shards that are at a place. Raises `PackError` for any unless ``overwrite``."""
    folder = f"{place}{folder_of(kind)}/"
    names = {key[len(folder) :] for key in existing(destination, folder)}
    try:
        index = destination.read(index_key(place, folder_of(kind)))
    except NotFoundError:
        index = b""
    if (names or index) and not overwrite:
        broke_off = not index or index == half_written()
        what = "a packing that did not end" if broke_off else f"{len(names)} shards, and an index of them"
        raise PackError(
            f"{destination.label}: {folder}: there is {what}; use --overwrite to replace it, or another destination"
        )
    return names


class _Packing:
    """One source's samples on their way into shards."""

    def __init__(self, storage: Storage, catalog: Catalog, kind: str, shard_bytes: int) -> None:
        self._storage, self._catalog, self._kind, self._shard_bytes = storage, catalog, kind, shard_bytes
        self._order = np.empty(0, dtype=np.int64)
        self._begins: list[int] = []
        self.made: list[Shard] = []

    def shards(self, seed: int, concurrency: int) -> Iterator[tuple[str, bytes]]:
        """(name, content) of each shard, the samples shuffled by seed."""
        catalog = self._catalog
        self._order = np.random.default_rng(seed).permutation(len(catalog))
        read = self._storage.read_many(catalog.items(self._order.tolist()), concurrency, in_order=True)
        parts: list[bytes] = []
        held = samples = 0
        end = _TAR_END if self._kind == TAR else b""
        for position, content in read:
            sample = self._sample(int(self._order[position]), bytes(content))
            if parts and held + len(sample) + len(end) > self._shard_bytes:
                yield self._close([*parts, end], held, samples)
                parts, held, samples = [], 0, 0
            self._begins.append(held)
            parts.append(sample)
            held, samples = held + len(sample), samples + 1
        yield self._close([*parts, end], held, samples)

    def _close(self, parts: Sequence[bytes], data_bytes: int, samples: int) -> tuple[str, bytes]:
        content = b"".join(parts)
        self.made.append(Shard(f"{len(self.made):06d}.{self._kind}", len(content), data_bytes, samples))
        return self.made[-1].name, content

    def index(self) -> Index:
        """The index of what was packed."""
        catalog = self._catalog
        return Index(
            self._kind,
            catalog.label_names,
            self.made,
            catalog.labels[self._order],
            np.asarray(self._begins, dtype=np.int64),
            catalog.sizes_bytes[self._order],
            Names.of([os.fsencode(catalog.relative_key(int(i))) for i in self._order]),
        )

    def _sample(self, index: int, content: bytes) -> bytes:
        catalog = self._catalog
        name = catalog.relative_key(index)
        if self._kind == TAR:
            extension = name.rpartition(".")[2].lower()
            label = str(catalog.label(index)).encode()
            return _member(f"{index:09d}.{extension}", content) + _member(f"{index:09d}.cls", label)
        return tfrecord.frame(tfrecord.example(self._features(index, name, content)))

    def _features(self, index: int, name: str, content: bytes) -> dict[str, tfrecord.Feature]:
        from PIL import Image

        catalog = self._catalog
        try:
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                width, height, kind, channels = image.width, image.height, image.format or "", len(image.getbands())
        # As in dnnbench.images: what Pillow raises has no common base.
        except Exception as exc:
            problem = f"is no image whose size can be told ({exc}), which a TFRecord of it holds; pack it as tar"
            raise CorruptError(self._storage.label, catalog.key(index), problem) from exc
        label = catalog.label(index)
        return {
            "image/encoded": content,
            "image/format": kind.encode(),
            "image/filename": os.fsencode(name),
            "image/height": height,
            "image/width": width,
            "image/channels": channels,
            "image/colorspace": b"RGB" if channels >= 3 else b"Grayscale",
            "image/class/label": label,
            "image/class/text": catalog.label_names[label].encode(),
        }


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE)

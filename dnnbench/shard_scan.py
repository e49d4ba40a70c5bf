"""Makes the index of shards that have none, such as of a WebDataset from elsewhere, by reading each of them once.

Other members of a sample than its image and its label (``KEY.json``, ``KEY.txt``) are passed over there.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnnbench import tfrecord
from dnnbench.catalog import CatalogError
from dnnbench.images import EXTENSIONS
from dnnbench.packed_names import Names
from dnnbench.shards import TAR, Index, Shard
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import CorruptError
from dnnbench.tfrecord import FormatError

# As webdataset splits a member's name, and which it passes over.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class _Sample(NamedTuple):
    begin: int
    label: int
    size_bytes: int
    name: str


def scan(storage: Storage, folder: str, listed: dict[str, int], kind: str, labels: Sequence[str]) -> Index:
    """The index of listed shards (name -> size). Reads all of them, and warns of that.

    Raises `CorruptError` for a sample that lacks something, `CatalogError` for a label that has no name in ``labels``,
    and the errors of the storage.
    """
    from tqdm import tqdm

    total_bytes = sum(listed.values())
    warnings.warn(
        f"{storage.label}: {folder}: there is no index, so all {len(listed):,} shards ({total_bytes:,} bytes) are read "
        "once, before anything is measured",
        stacklevel=2,
    )
    shards, samples = [], []
    for name in tqdm(sorted(listed), unit="shard", desc="indexing", disable=None):
        data = storage.fetch(folder + name, listed[name])
        try:
            found = list(_tar(data) if kind == TAR else _records(data))
        except (FormatError, tarfile.TarError) as exc:
            at = f"at byte {exc.offset:,}: {exc.problem}" if isinstance(exc, FormatError) else f"is no tar ({exc})"
            raise CorruptError(storage.label, folder + name, at) from exc
        if not found:
            raise CorruptError(storage.label, folder + name, "has no sample")
        unnamed = [sample.label for sample in found if not 0 <= sample.label < len(labels)]
        if unnamed:
            raise CatalogError(
                f"{storage.label}: {folder}{name}: has the label {unnamed[0]}, and dataset.label has {len(labels)} "
                f"names, for 0 to {len(labels) - 1}; name as many categories as there are"
            )
        end = _end(data, found[-1]) if kind == TAR else len(data)
        shards.append(Shard(name, len(data), end, len(found)))
        samples += [sample._replace(name=f"{name}/{sample.name}") for sample in found]
    return Index(
        kind,
        labels,
        shards,
        np.asarray([sample.label for sample in samples], dtype=np.int64),
        np.asarray([sample.begin for sample in samples], dtype=np.int64),
        np.asarray([sample.size_bytes for sample in samples], dtype=np.int64),
        Names.of([os.fsencode(sample.name) for sample in samples]),
        strict=False,
    )


def _tar(data: Any) -> Iterator[_Sample]:
    """The samples of an archive: adjacent members of one key."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        key, begin, size_bytes, label, image = "", 0, -1, -1, ""
        for member in archive:
            found = _KEY.match(member.name)
            if not member.isreg() or found is None or _META.match(member.name):
                continue
            if found[1] != key:
                if key:
                    yield _whole(key, begin, label, size_bytes, image)
                key, begin, size_bytes, label, image = found[1], member.offset, -1, -1, ""
            extension = found[2].lower()
            if f".{extension}" in EXTENSIONS:
                size_bytes, image = member.size, found[2]
            elif extension == "cls":
                content = archive.extractfile(member)
                text = content.read() if content else b""
                if not text.strip().isdigit():
                    raise FormatError(member.offset, f"the label in {member.name} is no number ({text[:20]!r})")
                label = int(text)
        if key:
            yield _whole(key, begin, label, size_bytes, image)


def _whole(key: str, begin: int, label: int, size_bytes: int, image: str) -> _Sample:
    if size_bytes < 0 or label < 0:
        raise FormatError(begin, f"the sample {key} has no {'image' if size_bytes < 0 else f'label ({key}.cls)'}")
    return _Sample(begin, label, size_bytes, f"{key}.{image}")


def _end(data: Any, last: _Sample) -> int:
    """Where the members of the last sample end."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        ends: list[int] = [
            member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            for member in archive
            if member.offset >= last.begin
        ]
        return max(ends)


def _records(data: Any) -> Iterator[_Sample]:
    for number, (offset, record) in enumerate(tfrecord.records(data)):
        try:
            features = tfrecord.parse_example(record)
            yield _Sample(offset, features["image/class/label"], len(features["image/encoded"]), f"{number:09d}")
        except (ValueError, KeyError, TypeError) as exc:
            raise FormatError(offset, f"a record is no tf.train.Example of an image with a label ({exc!r})") from exc

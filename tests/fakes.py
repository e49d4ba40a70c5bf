"""A storage in memory and a data set in it: for tests, and importable by the workers that they start."""

import io
import os
import time

import numpy as np
from PIL import Image

from dnnbench.catalog import Catalog, Group, Names
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import NotFoundError

LABELS = ("roses", "tulips")


class MemoryStorage(Storage):
    """Holds ``contents`` (key -> bytes). Each read adds a line to ``log``, where given, whatever process it is in."""

    client = "memory"

    def __init__(self, contents, name="fs", log=None, failing=None, burn_s=0):
        super().__init__()
        self.contents, self.name, self.log, self.burn_s = dict(contents), name, log, burn_s
        self.failing = dict(failing or {})

    def settings(self):
        return {}

    def logged(self):
        """The keys that were read, in every process."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _list(self, prefix):
        return (Entry(key, len(data)) for key, data in self.contents.items() if key.startswith(prefix))

    def _size(self, key):
        return len(self._read(key, None))

    def _read(self, key, size_bytes):
        self.meter.request("GET")
        if self.log is not None:
            # One write of a short line to a file opened for appending is never torn apart.
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{key}\n".encode())
            os.close(handle)
        end_s = time.thread_time() + self.burn_s
        while time.thread_time() < end_s:
            pass
        if key in self.failing:
            raise self.failing[key]
        if key not in self.contents:
            raise NotFoundError(self.label, key, "there is no such object")
        return self.contents[key]

    def _read_range(self, key, start, end):
        return self._read(key, None)[start:end]

    def _write(self, key, data):
        self.contents[key] = data


def image_bytes(shade, size=(8, 6), form="PNG", mode="L"):
    """An image of one shade; ``size`` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, shade).save(buffer, form)
    return buffer.getvalue()


def make_catalog(contents, labels=LABELS):
    """A catalog of ``label/name`` keys, in the order given."""
    groups = [Group(f"{label}/".encode(), 0, number) for number, label in enumerate(labels)]
    numbers = [labels.index(key.split("/")[0]) for key in contents]
    names = Names.of([key.split("/", 1)[1].encode() for key in contents])
    return Catalog(groups, numbers, names, [len(d) for d in contents.values()], labels)


def one_category(sizes_bytes):
    """A catalog of one category, in the order given; ``sizes_bytes`` has the size of each key."""
    names = Names.of([os.fsencode(key) for key in sizes_bytes])
    return Catalog([Group(b"", 0, 0)], [0] * len(names), names, list(sizes_bytes.values()), ["roses"])


def make_contents(count):
    """``count`` images, sample ``i`` of shade ``i % 256`` and label ``i % 2``."""
    return {f"{LABELS[i % 2]}/{i:04d}.png": image_bytes(i % 256) for i in range(count)}


def bound(dataset, count, **storage_options):
    """The dataset, bound to a storage of ``count`` images."""
    contents = make_contents(count)
    dataset.bind(MemoryStorage(contents, **storage_options), make_catalog(contents))
    return dataset


def shades(batches):
    """The shade of every image of the batches, in their order: the sample's index, below 256."""
    return [int(value) for images, _ in batches for value in np.asarray(images)[:, 0, 0]]

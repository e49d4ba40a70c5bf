"""A storage in memory and a data set in it, for tests, and importable by the workers that they start; virtual time."""

import contextlib
import io
import os
import time
from unittest import mock

import numpy as np
from PIL import Image

from dnnbench.catalog import Catalog, Group, Names
from dnnbench.datasets import passes
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import NotFoundError
from dnnbench.storage.ranges import Part
from dnnbench.training import emulated

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
        return Part(self._read(key, None)[start:end])

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


class VirtualTime:
    """In the place of the module ``time``: it passes where somebody sleeps, and nowhere else.

    Each sleep takes ``late_ns`` longer than it should; ``early``: it wakes when half of its time is over.
    """

    def __init__(self, late_ns=0, early=False):
        self.now_ns, self.late_ns, self.early = 0, late_ns, early

    def perf_counter_ns(self):
        return self.now_ns

    def sleep(self, seconds):
        slept_ns = round(seconds * 1e9)
        self.now_ns += max(slept_ns // 2, 1) if self.early else slept_ns + self.late_ns

    @contextlib.contextmanager
    def passing(self):
        """Within it, loaders and emulated accelerators live in this time."""
        with mock.patch.object(passes, "time", self), mock.patch.object(emulated, "time", self):
            yield self


class VirtualLoader(passes.MeteredPasses):
    """``workers`` make batches of ``catalog``, each its own one after the other, in ``making_ns`` of virtual time.

    They are ahead of the loop by at most ``ahead`` batches; 0: a batch is made when it is asked for. ``steady``: they
    begin one after the other, so that the batches come evenly.
    """

    def __init__(self, clock, catalog, batch_size, making_ns, workers=1, ahead=None, steady=False):
        super().__init__()
        self.clock, self.catalog, self.batch_size, self.making_ns = clock, catalog, batch_size, making_ns
        self.workers = self.num_workers = workers
        self.ahead, self.steady = len(catalog) if ahead is None else ahead, steady
        self.expected_samples, self.started, self.closed = len(catalog), 0, 0

    def __len__(self):
        return (len(self.catalog) + self.batch_size - 1) // self.batch_size

    def start_workers(self):
        self.started += 1
        return 0.0

    def close(self):
        self.closed += 1

    def _start_pass(self, number):
        start_ns = self.clock.now_ns
        made_ns, taken_ns = [], []
        for i in range(len(self)):
            begun_ns = made_ns[i - self.workers] if i >= self.workers else start_ns
            if i >= self.ahead:
                begun_ns = max(begun_ns, taken_ns[i - self.ahead] if self.ahead else self.clock.now_ns)
            first = self.steady and i < self.workers
            made_ns.append(begun_ns + (self.making_ns * (i + 1) // self.workers if first else self.making_ns))
            # In order, as loaders give them.
            self.clock.now_ns = max(self.clock.now_ns, made_ns[-1])
            taken_ns.append(self.clock.now_ns)
            yield range(i * self.batch_size, min((i + 1) * self.batch_size, len(self.catalog)))

    def _unpack(self, received, epoch):
        sizes_bytes = [int(self.catalog.sizes_bytes[i]) for i in received]
        epoch.tally.latency_ns.extend([self.making_ns // self.batch_size] * len(sizes_bytes))
        epoch.tally.read_bytes += sum(sizes_bytes)
        self._saw(epoch, list(received))
        return np.zeros((len(sizes_bytes), 1, 1), np.uint8), np.zeros(len(sizes_bytes), np.int64)

"""The share of a catalog that is measured, raw reads of it, and passes of a loader over it."""

import itertools
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import MemoryStorage, VirtualLoader, VirtualTime, bound, make_catalog, make_contents, one_category

from dnnbench import sampling
from dnnbench.config import expand_settings
from dnnbench.datasets.torch import TorchImageClassificationDataset
from dnnbench.datasets.torch_loader import MeteredLoader
from dnnbench.sampling import in_flight_of, loader_pass, raw_reads, ready_cache, share_of_catalog


def configured(*settings):
    return expand_settings({}, list(settings))[0].config


class Endless(MemoryStorage):
    """Has every object, of one byte."""

    def __init__(self, name="aws"):
        super().__init__({}, name=name)

    def _read(self, key, size_bytes):
        return b"1"


def sources(sizes):
    """A catalog of two halves, the objects of the second a thousand times as large."""
    return one_category({f"{i:05d}": 1 if i < sizes // 2 else 1000 for i in range(sizes)})


@pytest.fixture
def one_read(monkeypatch):
    """A share is chosen after one read, and is no larger than workers need, however fast that was."""
    monkeypatch.setattr(sampling, "STEP_S", 0.0)
    elapsed = itertools.cycle([-1.0, 1.0])
    monkeypatch.setattr(sampling.Watch, "elapsed_s", lambda _: next(elapsed))


@pytest.mark.parametrize(("workers", "batch"), [(12, 32), (1, 8), (32, 4)])
def test_the_share_has_work_for_every_worker(workers, batch, one_read):
    config = configured(f"framework.batch_size={batch}", f"framework.PyTorch.DataLoader.num_workers={workers}")
    catalog = one_category({f"{i:05d}": 1 for i in range(20_000)})
    share, _ = share_of_catalog_of(catalog, config)
    assert len(share) == sampling.LEAST_BATCHES * workers * batch
    # Who asks for another number of workers gets theirs.
    share, _ = share_of_catalog_of(catalog, config, workers=2 * workers)
    assert len(share) == sampling.LEAST_BATCHES * 2 * workers * batch


def share_of_catalog_of(catalog, config, in_flight=1, workers=None):
    """The share of a storage that has all that the catalog lists."""
    storage = Endless()
    storage._read = lambda key, size_bytes: b"1" * size_bytes
    return share_of_catalog(storage, catalog, config, in_flight, workers)


def test_many_workers_get_no_more_than_a_machine_holds(one_read, monkeypatch):
    config = configured("framework.batch_size=32", "framework.PyTorch.DataLoader.num_workers=64")
    few = one_category({f"{i:05d}": 1 for i in range(100)})
    assert len(share_of_catalog_of(few, config)[0]) == 96
    monkeypatch.setattr(sampling, "MOST_BYTES_FOR_WORKERS", 64_000)
    large = one_category({f"{i:05d}": 1000 for i in range(10_000)})
    assert len(share_of_catalog_of(large, config)[0]) == 64


def test_the_share_is_of_all_parts_of_the_catalog(one_read):
    config = configured("framework.batch_size=16", "framework.PyTorch.DataLoader.num_workers=2")
    share, _ = share_of_catalog_of(sources(4000), config)
    keys = [share.key(i) for i in range(len(share))]
    assert keys == sorted(keys)
    assert 0.3 < np.mean(np.asarray(share.sizes_bytes) == 1000) < 0.7


@pytest.mark.parametrize(
    ("settings", "framework", "access", "expected"),
    [
        (("PyTorch.concurrency=128", "batch_size=16"), "torch", "random", (32, 64)),
        (("PyTorch.concurrency=8", "batch_size=16"), "torch", "random", (8, 16)),
        (("PyTorch.concurrency=100", "batch_size=16"), "torch", "sequential", (100, 200)),
        (("TensorFlow.concurrency=5", "batch_size=2"), "tf", "random", (5, 5)),
    ],
)
def test_no_more_is_in_flight_than_the_batches_that_a_worker_knows_of(settings, framework, access, expected):
    config = configured(
        "framework.PyTorch.reading=concurrent",
        "framework.TensorFlow.reading=concurrent",
        "framework.PyTorch.DataLoader.num_workers=2",
        *(f"framework.{setting}" for setting in settings),
    )
    assert in_flight_of(config, framework, access) == expected


class Together(Endless):
    """Notes how many reads were ever under way at a time; each waits until as many are as may be, once."""

    def __init__(self, at_once):
        super().__init__()
        self.barrier, self.most, self.now, self.count = threading.Barrier(at_once), 0, 0, 0
        self.guard = threading.Lock()

    def _read(self, key, size_bytes):
        with self.guard:
            self.now, self.count = self.now + 1, self.count + 1
            self.most = max(self.most, self.now)
        self.barrier.wait(20)
        with self.guard:
            self.now -= 1
        return b"1"


def test_raw_reads_are_more_than_one_wave_and_never_more_than_the_objects(monkeypatch):
    monkeypatch.setattr(sampling, "LEAST_READING_S", 0.0)
    catalog = one_category({f"{i:02d}": 1 for i in range(6)})
    storage = Together(6)
    reads = raw_reads(storage, catalog, configured(), 40)
    assert (reads.in_flight, storage.most) == (6, 6)
    # One wave to warm up.
    assert storage.count == 6 + sampling.LEAST_WAVES * 6


def test_few_files_are_not_read_again_from_the_page_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "LEAST_READING_S", 0.0)
    monkeypatch.setattr(sampling, "ready_cache", lambda *_: None)
    catalog = one_category({f"{i:02d}": 1 for i in range(6)})
    assert raw_reads(Endless(name="fs"), catalog, configured(), 40).in_flight == 3


def test_raw_reads_end_in_time_whatever_they_would_take(monkeypatch):
    monkeypatch.setattr(sampling, "MOST_READING_S", 0.0)
    monkeypatch.setattr(sampling, "LEAST_READING_S", 0.0)
    elapsed = iter([-1.0] * 10)
    monkeypatch.setattr(sampling.Watch, "elapsed_s", lambda _: next(elapsed, 1.0))
    storage = MemoryStorage(make_contents(100), name="aws")
    raw_reads(storage, make_catalog(storage.contents), configured(), 2)
    assert storage.meter.reads == 2 + 10


def test_a_file_that_is_gone_is_left_to_the_reading(tmp_path):
    ready_cache(SimpleNamespace(name="fs"), one_category({str(tmp_path / "gone"): 1}), configured())


def test_a_pass_keeps_no_more_batches_than_are_needed(monkeypatch):
    monkeypatch.setattr(sampling, "MOST_SAMPLES", 12)
    catalog = one_category({f"{i:02d}": 1 for i in range(40)})
    clock = VirtualTime()
    with clock.passing():
        loader = VirtualLoader(clock, catalog, 4, 1000)
        storage = Endless()
        assert loader_pass(loader, storage, catalog, configured())[1] == []
        epoch, kept = loader_pass(loader, storage, catalog, configured(), keep=True)
        assert (epoch.samples, len(kept)) == (40, 3)
        monkeypatch.setattr(sampling, "MOST_BYTES", 1)
        assert len(loader_pass(loader, storage, catalog, configured(), keep=True)[1]) == 2


def test_batches_that_are_kept_hold_no_file_open():
    section = configured("framework.PyTorch.DataLoader.num_workers=1").framework.pytorch.loader
    dataset = bound(TorchImageClassificationDataset({"dataset": {"image_dimension": (6, 8)}}), 40, name="aws")
    loader = MeteredLoader(dataset, 1, section)
    try:
        loader.start_workers()
        before = len(os.listdir("/proc/self/fd"))
        _, kept = loader_pass(loader, dataset.storage, dataset.catalog, configured(), keep=True)
        assert len(kept) == 40
        assert not any(isinstance(part, torch.Tensor) and part.is_shared() for batch in kept for part in batch)
        # Those under way: what a worker has prepared.
        assert len(os.listdir("/proc/self/fd")) < before + 20
    finally:
        loader.close()

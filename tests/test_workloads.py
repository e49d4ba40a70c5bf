"""Workloads: known latencies come out as they went in, and what was not read as listed gives no figure."""

from contextlib import nullcontext

import numpy as np
import pytest
from fakes import image_bytes, one_category

from dnnbench.catalog import list_catalog
from dnnbench.datasets.shares import RankShare
from dnnbench.datasets.torch import TorchImageClassificationDataset
from dnnbench.datasets.torch_loader import MeteredLoader
from dnnbench.errors import MeasurementError
from dnnbench.metrics import record
from dnnbench.storage.base import Entry, Storage
from dnnbench.workloads import Listing, Loading, Reading, Training

COUNT = 500


class Delayed(Storage):
    """Answers after a delay that is known for each key, on a clock of its own."""

    name, client = "fake", "fake"

    def __init__(self, delays_ns, data):
        super().__init__()
        self.delays_ns, self.data, self.time_ns = delays_ns, data, 0

    def clock_ns(self):
        return self.time_ns

    def _list(self, prefix):
        yield from (Entry(key, len(self.data)) for key in self.delays_ns if key.startswith(prefix))

    def _read(self, key, size_bytes):
        self.time_ns += self.delays_ns[key]
        self.meter.request("GET")
        return self.data

    def _size(self, key):
        raise NotImplementedError

    _read_range = _write = settings = _size


@pytest.fixture
def delayed():
    """A storage of known delays, log-normal with a long tail, and its catalog."""
    rng = np.random.default_rng(1)
    delays = {f"roses/{i:04d}.jpg": int(5e6 * np.exp(rng.normal(0, 0.8))) for i in range(COUNT)}
    storage = Delayed(delays, image_bytes(1))
    return storage, list_catalog(storage, [""], ["roses"], 1)


def _rounds(workload, count):
    rounds = []
    for number in range(count):
        workload.prepare(number)
        workload.run()
        one = workload.account()
        one.wall_ns = 1_000_000_000
        rounds.append(one)
    return rounds


def _check(figures, delays_ns, repeats):
    assert figures["latency_count"] == repeats * COUNT
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99), ("p99_9", 99.9), ("max", 100)):
        expected_ms = np.percentile(np.repeat(delays_ns, repeats), share, method="inverted_cdf") / 1e6
        assert figures[f"latency_{name}_ms"] == pytest.approx(expected_ms, rel=0.02)


def test_reading_records_the_latencies_that_were(delayed):
    storage, catalog = delayed
    rounds = _rounds(Reading(storage, catalog, None, seed=3), 3)
    _check(record(rounds, cores=2, peak_memory_bytes=None), list(storage.delays_ns.values()), 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_record_the_latencies_that_were(delayed, workers):
    from dnnbench.config import expand_settings

    storage, catalog = delayed
    dataset = TorchImageClassificationDataset()
    dataset.bind(storage, catalog)
    setting = f"framework.PyTorch.DataLoader.num_workers={workers}"
    section = expand_settings({}, [setting])[0].config.framework.pytorch.loader
    loader = MeteredLoader(dataset, 32, section)
    try:
        rounds = _rounds(Loading(storage, catalog, loader, "load"), 2)
    finally:
        loader.close()
    figures = record(rounds, cores=2, peak_memory_bytes=None)
    _check(figures, list(storage.delays_ns.values()), 2)
    assert figures["requests"] == {"GET": 2 * COUNT}
    assert [epoch["bytes"] for epoch in figures["epochs"]] == [catalog.total_bytes] * 2


@pytest.mark.parametrize("concurrency", [None, 4])
def test_of_fewer_objects_than_ranks_some_ranks_read_none(concurrency):
    storage = Delayed({f"roses/{i}.jpg": 1 for i in range(2)}, image_bytes(1))
    catalog = list_catalog(storage, [""], ["roses"], 1)
    workloads = [Reading(storage, catalog, concurrency, 3, RankShare(rank, 4)) for rank in range(4)]
    assert sorted(_rounds(one, 1)[0].objects for one in workloads) == [0, 0, 1, 1]


def test_a_fresh_order_each_round_that_a_seed_repeats(delayed):
    storage, catalog = delayed
    orders = []
    for seed in (1, 1, 2):
        workload = Reading(storage, catalog, None, seed)
        workload.prepare(0)
        first = list(workload._items)
        workload.prepare(1)
        assert first != workload._items
        assert sorted(first) == sorted(workload._items)
        orders.append(first)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("loads", [False, True])
def test_a_round_that_runs_again_has_the_same_order(delayed, loads):
    from dnnbench.config import expand_settings

    storage, catalog = delayed
    dataset = TorchImageClassificationDataset()
    dataset.bind(storage, catalog)
    section = expand_settings({}, ["framework.PyTorch.DataLoader.num_workers=0"])[0].config.framework.pytorch.loader
    loader = MeteredLoader(dataset, 32, section)
    workload = Loading(storage, catalog, loader, "load") if loads else Reading(storage, catalog, None, 1)
    read = []
    storage._read = lambda key, size_bytes: read.append(key) or storage.data
    orders = []
    for number in (0, 1):
        workload.prepare(number)
        for attempt in (0, 1):
            assert attempt == 0 or workload.again()
            read.clear()
            workload.run()
            workload.account()
            orders.append(list(read))
    assert orders[0] == orders[1] != orders[2] == orders[3]


class _Broken:
    """A loader that loses or doubles something."""

    before_epoch = None
    samples_done = 0
    expected_samples = 3

    def __init__(self, indices, read_bytes):
        self._indices, self._read_bytes = indices, read_bytes

    def __iter__(self):
        return iter(())

    def start_workers(self):
        return None

    def take_epochs(self):
        from dnnbench.datasets.torch_loader import Epoch

        epoch = Epoch(indices=np.array(self._indices), wall_ns=1)
        epoch.tally.read_bytes = self._read_bytes
        epoch.tally.latency_ns.extend([1] * len(self._indices))
        return [epoch]


@pytest.mark.parametrize(
    ("indices", "read_bytes", "message"),
    [([0, 1], 3, "2 samples"), ([0, 1, 1], 5, "more than once"), ([0, 1, 2], 5, "5 bytes were read")],
)
def test_a_pass_that_differs_from_the_catalog_is_no_figure(delayed, indices, read_bytes, message):
    catalog = one_category({"a": 1, "b": 2, "c": 3})
    workload = Loading(delayed[0], catalog, _Broken(indices, read_bytes), "load")
    with pytest.raises(MeasurementError, match=message):
        workload.account()


def test_a_trainer_that_reads_nothing_is_no_figure(delayed):
    storage, catalog = delayed
    loader = _Broken([], 0)
    loader.take_epochs = list
    trainer = type("Idle", (), {"epochs": 1, "train": lambda self: None, "history": [], "together": nullcontext})()
    workload = Training(storage, catalog, loader, trainer, "train")
    workload.run()
    with pytest.raises(MeasurementError, match="read nothing"):
        workload.account()


def test_a_listing_that_changed_is_no_figure(delayed):
    storage, catalog = delayed
    workload = Listing(storage, catalog, [""], ["roses"], 2)
    workload.prepare(0)
    storage.delays_ns["roses/new.jpg"] = 1
    workload.run()
    with pytest.raises(MeasurementError, match="changed between two listings"):
        workload.account()

"""The ladder over trainings in which one layer limits by construction; and what a verdict says of given figures."""

import dataclasses
import fcntl
import io
import time

import numpy as np
import pytest
from fakes import MemoryStorage, make_catalog, make_contents
from PIL import Image

from dnnbench import sampling
from dnnbench.config import expand_settings
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.diagnosis import (
    BANDWIDTH,
    CLIENT,
    COMPUTE,
    DECODE,
    LATENCY,
    LIMITS,
    LOADER,
    Reads,
    Rungs,
    Setup,
    diagnose,
)
from dnnbench.ladder import Ladder
from dnnbench.metrics import record
from dnnbench.storage.held import HeldStorage
from dnnbench.trained import load_builder
from dnnbench.training.torch import DNNTrain

LATENCY_S = 0.03


class FarStorage(MemoryStorage):
    """Each read takes a while, whatever else is read."""

    one_core = False

    def _read(self, key, size_bytes):
        time.sleep(LATENCY_S)
        return super()._read(key, size_bytes)


class NarrowStorage(MemoryStorage):
    """All reads of all processes share one narrow way: they go one after the other."""

    one_core = False

    def _read(self, key, size_bytes):
        with open(self.log, "ab") as way:
            fcntl.flock(way, fcntl.LOCK_EX)
            time.sleep(LATENCY_S / 6)
        return self.contents[key]


class SlowCollate(RandomAccessDataset):
    """Makes much of putting a batch together."""

    def __init__(self, config={}):  # noqa: B006
        super().__init__(config=config)

    def collate_fn(self, samples):
        end_s = time.thread_time() + 0.05
        while time.thread_time() < end_s:
            pass
        return super().collate_fn(samples)


class OwnGetitem(RandomAccessDataset):
    """Reads and decodes by itself, and has a member called ``dataset``, as many have."""

    def __init__(self, config={}):  # noqa: B006
        super().__init__(config=config)
        self.dataset = config["dataset"]

    def __getitem__(self, index):
        return self.decode(self.storage.read(self.catalog.key(index))), self.catalog.label(index)


class FastTrainer(DNNTrain):
    """Looks at every batch, and that is all."""

    of_a_sample_s = 0.0

    def __init__(self, config, dataloader, model, device):
        super().__init__(config, model, device)
        self.train_dataloader = dataloader

    def train(self):
        for _ in range(self.epochs):
            for _images, labels in self.train_dataloader:
                time.sleep(self.of_a_sample_s * len(labels))


class TutorialTrainer(FastTrainer):
    """Asks its loader for what PyTorch's tutorial asks for."""

    def train(self):
        assert len(self.train_dataloader.dataset) >= 16
        assert self.train_dataloader.batch_size == 8
        super().train()


class SlowTrainer(FastTrainer):
    """Takes five milliseconds for a sample."""

    of_a_sample_s = 0.005


def large_pictures(count):
    def picture(i):
        buffer = io.BytesIO()
        Image.fromarray(np.full((1200, 1600, 3), i, np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    return {f"roses/{i:03d}.jpg": picture(i) for i in range(count)}


def climb(storage, settings=(), framework="torch"):
    """(the record, its verdict) of one ladder over all of a storage's objects."""
    config = expand_settings({}, ["framework.batch_size=8", f"training.name={__file__}:FastTrainer", *settings])[
        0
    ].config
    ladder = Ladder(storage, make_catalog(storage.contents), config, load_builder(framework), framework, "random")
    try:
        ladder.check()
        ladder.prepare(0)
        start_ns = time.perf_counter_ns()
        ladder.run()
        wall_ns = time.perf_counter_ns() - start_ns
        finished = ladder.account()
    finally:
        ladder.close()
    finished.wall_ns = wall_ns
    figures = record([finished], cores=2, peak_memory_bytes=None)
    return figures, figures["ladder"]["verdict"]


WORKERS = "framework.PyTorch.DataLoader.num_workers="


def case(limit, tmp_path):
    """(storage, settings) in which one layer limits."""
    contents = make_contents(64)
    if limit == LATENCY:
        return FarStorage(contents, name="aws"), [WORKERS + "1"]
    if limit == BANDWIDTH:
        return NarrowStorage(contents, name="aws", log=tmp_path / "way"), [WORKERS + "2"]
    if limit == CLIENT:
        return MemoryStorage(contents, name="aws", burn_s=0.004), [WORKERS + "1"]
    if limit == DECODE:
        return MemoryStorage(large_pictures(32), name="aws"), [WORKERS + "1"]
    if limit == LOADER:
        return MemoryStorage(contents, name="aws"), [WORKERS + "1", f"dataset.name={__file__}:SlowCollate"]
    return MemoryStorage(contents, name="aws"), [WORKERS + "2", f"training.name={__file__}:SlowTrainer"]


@pytest.mark.parametrize("limit", LIMITS)
def test_the_layer_that_limits_by_construction_is_named(limit, tmp_path):
    storage, settings = case(limit, tmp_path)
    figures, verdict = climb(storage, settings)
    assert verdict["limit"] == limit, figures["ladder"]
    assert verdict["limit"] in verdict["sentence"]
    assert verdict["next_limit"] in LIMITS
    assert verdict["next_limit"] != limit
    # The figures around the verdict are those of the whole epoch.
    assert figures["objects"] == figures["ladder"]["samples"] >= 32


def test_a_dataset_that_decodes_by_itself_is_limited_by_decoding():
    storage = MemoryStorage(large_pictures(32), name="aws")
    figures, verdict = climb(storage, [WORKERS + "1", f"dataset.name={__file__}:OwnGetitem"])
    assert verdict["limit"] == DECODE, figures["ladder"]


def test_a_trainer_may_ask_for_the_loaders_dataset():
    figures, _ = climb(
        MemoryStorage(make_contents(16), name="aws"), [WORKERS + "0", f"training.name={__file__}:TutorialTrainer"]
    )
    assert figures["ladder"]["compute_per_s"] > 0


def test_the_ladder_ends_its_workers_and_what_it_holds(tmp_path, monkeypatch):
    import psutil

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    climb(MemoryStorage(make_contents(16), name="aws"), [WORKERS + "1"])
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before and c.is_running()]
    # What starts workers, and what looks after their memory, stay for the next ones.
    assert not [c for c in left if "spawn_main" in " ".join(c.cmdline())]
    import gc

    gc.collect()
    assert not list(tmp_path.glob("dnnbench-held-*"))


def test_a_slow_storage_gets_fewer_samples(monkeypatch):
    monkeypatch.setattr(sampling, "STEP_S", 0.1)
    monkeypatch.setattr(sampling, "LEAST_READING_S", 0.01)
    figures, _ = climb(FarStorage(make_contents(200), name="aws"), [WORKERS + "1"])
    assert 8 <= figures["ladder"]["samples"] == figures["objects"] < 200


def test_held_objects_are_the_storages_and_travel_by_name():
    import pickle

    contents = make_contents(5)
    storage = MemoryStorage(contents, name="dss")
    held = HeldStorage(storage, iter([(key, len(data)) for key, data in contents.items()]), 2)
    copy = pickle.loads(pickle.dumps(held))  # noqa: S301 (our own bytes)
    assert (held.name, copy.name) == ("dss", "dss")
    storage.contents.clear()
    for one in (held, copy):
        assert {key: one.read(key, len(data)) for key, data in contents.items()} == contents
    assert held.list("roses/")


def reads(in_flight=1, rate=100.0, latency_ms=10.0, cpu_s=1e-4, own=0.1, both=0.2):
    return Reads(in_flight, rate, latency_ms, 2 * latency_ms, cpu_s, own, both)


def rungs(**changes):
    given = {
        "reads": {"one reader": reads(), "loader": reads(2, 200.0), "more": reads(8, 800.0)},
        "overhead_per_s": 20_000.0,
        "memory_per_s": 2_000.0,
        "loader_per_s": 150.0,
        "compute_per_s": 1_000.0,
        "epoch_per_s": 140.0,
        "loader_latency_p50_ms": 10.0,
        "cores": 2,
        "one_core_client": True,
    }
    return Rungs(**given | changes)


SETUP = Setup("torch", "boto3", workers=2, concurrent=False, reduced=False)


def test_what_would_limit_next_and_by_how_much():
    verdict = diagnose(rungs(), SETUP)
    assert (verdict.limit, verdict.next_limit) == (LATENCY, COMPUTE)
    assert verdict.gain == pytest.approx(1000 / 150)
    assert verdict.samples_per_s == 140
    assert verdict.try_first == "framework.PyTorch.reading=concurrent"
    verdict = diagnose(rungs(compute_per_s=10_000.0), SETUP)
    assert verdict.next_limit == DECODE
    assert verdict.gain == pytest.approx(2000 / 150)
    assert sum(verdict.shares.values()) == pytest.approx(1)


def test_compute_limits_where_the_loader_is_faster():
    verdict = diagnose(rungs(compute_per_s=50.0), SETUP)
    assert (verdict.limit, verdict.next_limit) == (COMPUTE, LATENCY)
    assert verdict.gain == pytest.approx(3)


def test_a_storage_that_gives_no_more_to_more_readers_is_one_of_bandwidth():
    same = {"one reader": reads(), "loader": reads(2, 100.0), "more": reads(8, 110.0)}
    assert diagnose(rungs(reads=same), SETUP).limit == BANDWIDTH


@pytest.mark.parametrize(
    "bound", [reads(latency_ms=1.0, cpu_s=0.8e-3), reads(own=0.9), reads(own=1.2, both=1.95)], ids=str
)
def test_a_client_that_works_as_long_as_a_read_takes_is_the_limit(bound):
    all_alike = dict.fromkeys(("one reader", "loader", "more"), bound)
    verdict = diagnose(rungs(reads=all_alike), SETUP)
    assert (verdict.limit, verdict.client_bound) == (CLIENT, True)
    assert verdict.try_first == "storage.s3.client_lib=obstore"


def test_where_one_process_cannot_read_enough_to_tell_the_latency_under_load_does():
    busy = {"one reader": reads(), "loader": reads(32, 900.0, own=1.0), "more": reads(128, 900.0, own=1.0)}
    assert diagnose(rungs(reads=busy, loader_latency_p50_ms=12.0), SETUP).limit == LATENCY
    assert diagnose(rungs(reads=busy, loader_latency_p50_ms=40.0), SETUP).limit == BANDWIDTH


def test_what_is_tried_first_is_what_can_help():
    def first(given, **setup):
        return diagnose(given, dataclasses.replace(SETUP, **setup)).try_first

    assert first(rungs(), concurrent=True) == "a higher framework.PyTorch.concurrency"
    assert first(rungs(), concurrent=True, batch_bound=True).startswith("a larger framework.batch_size")
    assert first(rungs(), batch_bound=True) == "framework.PyTorch.reading=concurrent"
    loader = rungs(loader_per_s=25_000.0, memory_per_s=24_000.0, compute_per_s=1e6)
    assert first(loader, workers_end=True) == "framework.PyTorch.DataLoader.persistent_workers=true"
    assert "persistent" not in first(loader)


def test_as_many_reads_at_a_time_tell_nothing_of_more():
    few = {"one reader": reads(8), "loader": reads(64, 640.0), "more": reads(96, 700.0)}
    assert diagnose(rungs(reads=few, loader_latency_p50_ms=11.0), SETUP).limit == LATENCY
    assert diagnose(rungs(reads=few, loader_latency_p50_ms=40.0), SETUP).limit == BANDWIDTH


def test_a_verdict_stands_whatever_the_noise_between_rungs():
    # A rung that came out faster than the one below it.
    verdict = diagnose(rungs(loader_per_s=25_000.0, memory_per_s=24_000.0, compute_per_s=1e6), SETUP)
    assert verdict.limit == LOADER
    assert verdict.gain >= 1
    assert all(share >= 0 for share in verdict.shares.values())


def test_a_gain_is_no_more_than_the_reads_alone_allow():
    # All but a millionth of the time is the loader's own.
    almost = rungs(loader_per_s=100.0, memory_per_s=100.005, overhead_per_s=100.01, compute_per_s=1e6)
    verdict = diagnose(almost, SETUP)
    assert verdict.limit == LOADER
    assert verdict.gain == pytest.approx(2 * 200 / 100)

"""The metered loader: batches as a DataLoader gives them, and an exact account of every pass."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from fakes import bound, shades
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from dnnbench.config.model import DataLoader as Section
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset, TorchImageClassificationDataset
from dnnbench.datasets.torch_loader import MeteredLoader
from dnnbench.datasets.torch_worker import Envelope
from dnnbench.errors import MeasurementError
from dnnbench.metrics import Tally
from dnnbench.plugins import PluginError
from dnnbench.storage.errors import NotFoundError, StorageError, TransientError

COUNT = 23
BATCH_SIZE = 4
# Forked workers start at once; what depends on how a worker starts has a test for each way.
STARTS = ["fork", "forkserver", "spawn"]


@contextlib.contextmanager
def loading(dataset, batch_size=BATCH_SIZE, access="random", seed=0, concurrency=None, **section):
    """A loader over the dataset, closed at the end."""
    dataset.concurrency = concurrency
    chosen = {"num_workers": 0, "persistent_workers": False, "multiprocessing_context": "fork"} | section
    source = SequentialDataset(dataset) if access == "sequential" else dataset
    loader = MeteredLoader(source, batch_size, Section(**chosen), seed)
    try:
        yield loader
    finally:
        loader.close()


def images(count=COUNT, **storage_options):
    return bound(TorchImageClassificationDataset({"dataset": {"image_dimension": [2, 3]}}), count, **storage_options)


def one_epoch(loader):
    """(batches, the epoch's account)."""
    batches = list(loader)
    (epoch,) = loader.take_epochs()
    return batches, epoch


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("access", ["random", "sequential"])
def test_every_way_to_start_a_worker_reads_each_sample_once(start, access):
    with loading(images(), access=access, num_workers=2, multiprocessing_context=start) as loader:
        batches, epoch = one_epoch(loader)
    assert sorted(shades(batches)) == list(range(COUNT))
    assert len(epoch.tally.latency_ns) == COUNT
    assert epoch.worker_cpu_ns > 0


@pytest.mark.parametrize("concurrency", [None, 5])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_epoch_accounts_for_exactly_what_came_through(tmp_path, num_workers, access, drop_last, concurrency):
    dataset = images(log=tmp_path / "log")
    options = {"num_workers": num_workers, "drop_last": drop_last, "concurrency": concurrency}
    with loading(dataset, access=access, **options) as loader:
        batches, epoch = one_epoch(loader)
        assert len(batches) == len(loader) == epoch.batches
        assert epoch.samples == loader.expected_samples == loader.samples_done
    assert shades(batches) == epoch.indices.tolist()
    assert len(set(epoch.indices.tolist())) == epoch.samples
    assert len(dataset.storage.logged()) == epoch.samples
    assert len(epoch.tally.latency_ns) == epoch.tally.requests["GET"] == epoch.samples
    assert epoch.tally.read_bytes == dataset.catalog.sizes_bytes[epoch.indices].sum()
    if drop_last:
        assert all(len(labels) == BATCH_SIZE for _, labels in batches)
    else:
        assert epoch.samples == COUNT
    assert epoch.complete


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize(("count", "num_workers"), [(2, 5), (1, 3), (4, 4)])
def test_more_workers_than_samples_read_each_once(access, count, num_workers):
    with loading(images(count), batch_size=2, access=access, num_workers=num_workers) as loader:
        batches, _ = one_epoch(loader)
        assert len(batches) == len(loader)
    assert sorted(shades(batches)) == list(range(count))


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_without_a_whole_batch_reads_nothing(tmp_path, access, num_workers):
    dataset = images(3, log=tmp_path / "log")
    with loading(dataset, batch_size=4, access=access, num_workers=num_workers, drop_last=True) as loader:
        batches, epoch = one_epoch(loader)
        assert loader.expected_samples == 0
    assert batches == []
    assert epoch.complete
    assert dataset.storage.logged() == []


def test_a_batch_is_images_and_labels_and_no_more():
    with loading(images(), shuffle=False) as loader:
        pixels, labels = next(iter(loader))
    assert (pixels.shape, pixels.dtype) == ((BATCH_SIZE, 2, 3), torch.uint8)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 0, 1], torch.int64)


def test_without_shuffle_the_order_is_the_catalogs():
    with loading(images(), shuffle=False, num_workers=3) as loader:
        assert shades(loader) == shades(loader) == list(range(COUNT))


@pytest.mark.parametrize("persistent", [False, True])
def test_shuffled_epochs_differ_and_follow_from_the_seed(persistent):
    with loading(images(), seed=5, num_workers=2, persistent_workers=persistent) as loader:
        orders = [shades(loader) for _ in range(3)]
    assert orders == [np.random.default_rng([5, e]).permutation(COUNT).tolist() for e in range(3)]
    assert len(set(map(tuple, orders))) == 3


def test_another_seed_is_another_order():
    orders = []
    for seed in (1, 1, 2):
        with loading(images(), seed=seed) as loader:
            orders.append(shades(loader))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("start", STARTS[:2])
def test_each_of_several_epochs_has_an_account_of_its_own(start, persistent, access):
    options = {"num_workers": 2, "persistent_workers": persistent, "multiprocessing_context": start}
    with loading(images(), access=access, **options) as loader:
        for _ in range(3):
            for _ in loader:
                pass
        epochs = loader.take_epochs()
        assert loader.samples_done == 3 * COUNT
        assert loader.take_epochs() == []
    assert [sorted(epoch.indices.tolist()) for epoch in epochs] == [list(range(COUNT))] * 3
    assert [len(epoch.tally.latency_ns) for epoch in epochs] == [COUNT] * 3


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("access", ["random", "sequential"])
def test_starting_the_workers_reads_nothing(tmp_path, start, access):
    dataset = images(log=tmp_path / "log")
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": start}
    with loading(dataset, access=access, **options) as loader:
        assert loader.start_workers() > 0
        assert dataset.storage.logged() == []
        assert loader.take_epochs() == []
        started = {worker.pid for worker in loader._loader._iterator._workers}
        batches, epoch = one_epoch(loader)
        # The workers that were started are the ones that read.
        assert {worker.pid for worker in loader._loader._iterator._workers} == started
    assert len(dataset.storage.logged()) == epoch.samples == len(shades(batches)) == COUNT


def test_starting_the_workers_does_not_use_up_an_order():
    orders = []
    for start in (False, True):
        with loading(images(), num_workers=2, persistent_workers=True) as loader:
            if start:
                loader.start_workers()
            orders.append(shades(loader))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("section", [{"num_workers": 0}, {"num_workers": 2, "persistent_workers": False}])
def test_where_no_worker_outlives_an_epoch_there_is_none_to_start(section):
    with loading(images(), **section) as loader:
        assert loader.start_workers() is None
        assert len(shades(loader)) == COUNT


def test_times_of_an_epoch_add_up():
    with loading(images(), num_workers=1) as loader:
        _, epoch = one_epoch(loader)
    assert 0 < epoch.first_batch_ns <= epoch.wait_ns
    assert epoch.compute_ns > 0
    # What lies between the readings of the clock is part of neither.
    assert epoch.wait_ns + epoch.compute_ns <= epoch.wall_ns
    assert (sum(epoch.waits_ns), sum(epoch.computes_ns)) == (epoch.wait_ns, epoch.compute_ns)
    assert epoch.batches == len(epoch.computes_ns) == len(epoch.waits_ns) - 1


def test_in_the_own_process_there_is_no_workers_cpu_time():
    with loading(images()) as loader:
        assert one_epoch(loader)[1].worker_cpu_ns == 0


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("section", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_a_loop_that_breaks_off_leaves_an_incomplete_epoch_and_the_next_is_whole(access, section):
    with loading(images(), access=access, **section) as loader:
        for _ in loader:
            break
        (broken,) = loader.take_epochs()
        _, whole = one_epoch(loader)
    assert (broken.complete, broken.samples, broken.batches) == (False, BATCH_SIZE, 1)
    assert (whole.complete, whole.samples, len(whole.tally.latency_ns)) == (True, COUNT, COUNT)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("access", ["random", "sequential"])
def test_an_error_of_a_storage_arrives_as_itself_in_one_line(num_workers, access):
    key = "tulips/0003.png"
    dataset = images(name="aws", failing={key: TransientError("aws (memory)", key, "is slow; wait")})
    with loading(dataset, access=access, num_workers=num_workers) as loader:
        with pytest.raises(TransientError) as caught:
            list(loader)
        (epoch,) = loader.take_epochs()
    assert str(caught.value) == f"aws (memory): {key}: is slow; wait"
    assert not epoch.complete
    assert epoch.tally.errors == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_is_no_image_is_named_from_within_a_worker(num_workers):
    dataset = images()
    key = dataset.catalog.key(7)
    dataset.storage.contents[key] = b"x" * dataset.catalog.size_bytes(7)
    with loading(dataset, num_workers=num_workers) as loader, pytest.raises(StorageError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"fs (memory): {key}: is no image")
    assert "\n" not in str(caught.value)


def test_workers_that_live_on_work_after_an_error():
    dataset = images(failing={"roses/0002.png": NotFoundError("fs (memory)", "roses/0002.png", "gone")})
    with loading(dataset, num_workers=2, persistent_workers=True) as loader:
        for _ in range(2):
            with pytest.raises(NotFoundError, match="gone"):
                list(loader)
        assert [epoch.complete for epoch in loader.take_epochs()] == [False, False]


class FaultyDataset(RandomAccessDataset):
    def read_file_system_data(self, image):
        raise ZeroDivisionError("the user's own mistake")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_other_error_keeps_its_kind_and_its_traceback(num_workers):
    with (
        loading(bound(FaultyDataset(), 3), num_workers=num_workers) as loader,
        pytest.raises(ZeroDivisionError) as caught,
    ):
        list(loader)
    told = str(caught.value) + "".join(str(entry.path) for entry in caught.traceback)
    assert "the user's own mistake" in told
    assert "test_loader_torch.py" in told


class PixelsAs(RandomAccessDataset):
    """Gives the image in the kind that ``convert`` makes of an array."""

    convert = staticmethod(lambda pixels: pixels)

    def read_file_system_data(self, image):
        return self.convert(self.decode(self.read_bytes(image)).numpy())


@pytest.mark.parametrize("convert", [lambda a: a, Image.fromarray, torch.from_numpy, lambda a: a.astype(np.float32)])
def test_arrays_pil_images_and_tensors_all_become_a_tensor(convert):
    dataset = bound(PixelsAs(), 5)
    dataset.convert = convert
    with loading(dataset, batch_size=5, shuffle=False) as loader:
        ((pixels, _),) = list(loader)
    assert isinstance(pixels, torch.Tensor)
    assert pixels[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_it_answers_for_what_it_wraps():
    dataset = images()
    with loading(dataset, num_workers=2, prefetch_factor=3) as loader:
        assert loader.dataset is dataset
        assert (loader.batch_size, loader.num_workers, loader.drop_last) == (BATCH_SIZE, 2, False)
        assert loader.prefetch_factor == 3
        assert not hasattr(loader, "no_such_thing")


def test_what_torch_pins_of_an_envelope_is_its_batch(monkeypatch):
    # Stands in for a GPU's driver: a tensor that was pinned is one greater.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
    envelope = Envelope((torch.zeros(2), torch.ones(2)), [3, 5], Tally(), 1, 1)
    pinned = pin_memory(envelope)
    assert [tensor.tolist() for tensor in pinned.batch] == [[1, 1], [2, 2]]
    assert pinned.indices == [3, 5]


def test_asking_for_pinned_memory_changes_no_batch():
    with loading(images(), num_workers=1, pin_memory=True) as loader:
        assert sorted(shades(loader)) == list(range(COUNT))


def test_closing_ends_the_workers_and_may_be_repeated():
    with loading(images(), num_workers=2, persistent_workers=True) as loader:
        loader.start_workers()
        workers = list(loader._loader._iterator._workers)
        loader.close()
        loader.close()
        assert not any(worker.is_alive() for worker in workers)


class Suicidal(TorchImageClassificationDataset):
    def read_file_system_data(self, image):
        if image.endswith("0011.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_file_system_data(image)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_worker_that_is_killed_is_said_to_have_died(start):
    with (
        loading(bound(Suicidal(), COUNT), num_workers=1, multiprocessing_context=start) as loader,
        pytest.raises(MeasurementError, match=r"a loader worker died .* \(-9\)"),
    ):
        list(loader)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_what_cannot_be_sent_to_a_worker_is_said_at_once(start):
    dataset = bound(RandomAccessDataset(transform=lambda image: image), 3)
    with (
        pytest.raises(PluginError, match=r"cannot be sent to a loader worker.*fork"),
        loading(dataset, num_workers=1, multiprocessing_context=start),
    ):
        pass


@pytest.mark.parametrize("start", STARTS)
def test_the_cpu_time_of_workers_that_end_with_their_pass_is_all_counted(start):
    with loading(images(60, burn_s=0.01), num_workers=2, multiprocessing_context=start) as loader:
        _, epoch = one_epoch(loader)
    assert epoch.worker_cpu_ns >= 60 * 0.01 * 1e9 * 0.9


ORPHANS = """
import os, sys, signal
sys.path[:0] = {paths!r}
from fakes import bound
from dnnbench.config.model import DataLoader as Section
from dnnbench.datasets.torch import TorchImageClassificationDataset
from dnnbench.datasets.torch_loader import MeteredLoader
if __name__ == "__main__":
    section = Section(num_workers=2, multiprocessing_context={start!r})
    loader = MeteredLoader(bound(TorchImageClassificationDataset(), 8), 2, section)
    loader.start_workers()
    print(*(worker.pid for worker in loader._loader._iterator._workers), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(start, ending, tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS.format(paths=[str(here.parent), str(here)], start=start))
    # From another folder: the server that forks workers finds the project nevertheless.
    parent = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL
    )
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(ending)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    parent.stdin.close()
    parent.stdout.close()
    assert alive == []


def test_a_loader_that_is_made_and_never_used_leaves_nothing_open():
    def open_files_after_one():
        with loading(images(), access="sequential", num_workers=2, multiprocessing_context="forkserver"):
            pass
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    open_files_after_one()
    before = open_files_after_one()
    assert open_files_after_one() <= before

"""What a sample is, what a user's class may override, and how a sequential pass is shared out."""

import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import MemoryStorage, bound, image_bytes, make_catalog, one_category
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnnbench.config import Config
from dnnbench.datasets.samples import ListedKey
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset, TorchImageClassificationDataset
from dnnbench.storage.errors import CorruptError, NotFoundError
from dnnbench.storage.fs import FsStorage


def test_a_sample_is_a_grey_image_and_its_label():
    image, label = bound(TorchImageClassificationDataset(), 4)[3]
    assert (image.shape, image.dtype, int(image[0, 0])) == ((32, 32), torch.uint8, 3)
    assert label == 1
    assert type(label) is int


def test_its_length_is_the_catalogs():
    assert len(bound(RandomAccessDataset(), 7)) == 7


@pytest.mark.parametrize("config", [{}, {"dataset": {}}, {"framework": {"epochs": 1}}])
def test_every_key_of_the_configuration_has_a_default(config):
    dataset = RandomAccessDataset(config=config)
    assert dataset.image_dimension == (32, 32)
    assert dataset.label == dataset.labels == Config().dataset.label
    assert dataset.config is config


def test_the_configuration_gives_the_dimension_and_the_labels():
    dataset = RandomAccessDataset(config={"dataset": {"image_dimension": [8, 12], "label": ["a"]}})
    assert (dataset.image_height, dataset.image_width, dataset.labels) == (8, 12, ["a"])
    assert bound(dataset, 1)[0][0].shape == (8, 12)


def test_the_default_argument_is_never_written_to():
    one = RandomAccessDataset()
    before = copy.deepcopy(one.config)
    one.labels.append("x")
    assert RandomAccessDataset().config == before
    assert "x" not in RandomAccessDataset().labels


def test_a_transform_gets_the_image_alone():
    dataset = bound(RandomAccessDataset(transform=lambda image: image.float() / 255), 2)
    image, label = dataset[1]
    assert image.dtype == torch.float32
    assert label == 1


@pytest.mark.parametrize(("name", "method"), [("fs", "file"), ("aws", "object"), ("dss", "object")])
def test_the_storage_chooses_the_method_that_reads(name, method):
    class Told(RandomAccessDataset):
        def read_file_system_data(self, image):
            return "file"

        def read_s3_object(self, image):
            return "object"

    assert bound(Told(), 1, name=name)[0][0] == method


@pytest.mark.parametrize("name", ["fs", "aws"])
def test_one_sample_is_one_request_and_one_latency(name):
    dataset = bound(TorchImageClassificationDataset(), 3, name=name)
    dataset[2]
    tally = dataset.storage.meter.take()
    assert tally.requests == {"GET": 1}
    assert len(tally.latency_ns) == 1
    assert tally.read_bytes == dataset.catalog.size_bytes(2)


def test_the_key_that_a_user_gets_is_a_string():
    class Reads(RandomAccessDataset):
        def read_s3_object(self, image):
            assert isinstance(image, str)
            return self.storage.read(image)

    assert bound(Reads(), 2, name="aws")[1][0].startswith(b"\x89PNG")


@pytest.mark.parametrize("copied", [lambda k: pickle.loads(pickle.dumps(k)), copy.copy, copy.deepcopy])  # noqa: S301
def test_a_listed_key_travels_with_its_size(copied):
    key = copied(ListedKey("roses/日本.jpg", 12))
    assert (key, key.size_bytes) == ("roses/日本.jpg", 12)


class OwnReads(RandomAccessDataset):
    """Opens its files by itself, in a way that ``how`` gives."""

    how = staticmethod(lambda image: Path(image).read_bytes())

    def read_file_system_data(self, image):
        self.how(image)
        return 1


def _own_reads(tmp_path, how, count=3):
    contents = {f"{tmp_path}/{i}.jpg": image_bytes(i, (400, 300), "JPEG") for i in range(count)}
    for path, data in contents.items():
        Path(path).write_bytes(data)
    sizes = {key: len(data) for key, data in contents.items()}
    dataset = OwnReads()
    dataset.how = how
    dataset.bind(FsStorage(), one_category(sizes))
    for i in range(count):
        dataset[i]
    return dataset.storage.meter.take(), sum(sizes.values())


def _read_in_pieces(image, limit=10**9):
    """Reads a file, or its beginning, in small pieces, as a library in C would."""
    handle = os.open(image, os.O_RDONLY)
    while limit > 0 and (piece := os.read(handle, min(1000, limit))):
        limit -= len(piece)
    os.close(handle)


@pytest.mark.parametrize(
    "how",
    [
        lambda image: Path(image).read_bytes(),
        lambda image: Image.open(image).load(),
        _read_in_pieces,
        lambda image: (Path(image).read_bytes(), Path(image).read_bytes()),
    ],
    ids=["read", "pillow", "os.read", "twice"],
)
def test_files_that_a_dataset_opens_by_itself_are_metered_from_outside(tmp_path, how):
    tally, total_bytes = _own_reads(tmp_path, how)
    assert (len(tally.latency_ns), tally.own_reads, tally.requests) == (3, 3, {"READ": 3})
    assert tally.read_bytes == total_bytes
    assert min(tally.latency_ns) > 0


def test_a_dataset_that_reads_only_a_part_of_its_files_has_only_that_counted(tmp_path):
    tally, total_bytes = _own_reads(tmp_path, lambda image: _read_in_pieces(image, 100))
    assert tally.read_bytes == 300 < total_bytes


def test_a_dataset_that_reads_nothing_has_no_read_counted(tmp_path):
    tally, _ = _own_reads(tmp_path, lambda image: None)
    assert (len(tally.latency_ns), tally.own_reads, tally.read_bytes) == (0, 0, 0)


def test_a_dataset_that_reads_another_file_has_no_read_counted(tmp_path):
    (tmp_path / "annotations.csv").write_bytes(b"x" * 100_000)
    tally, _ = _own_reads(tmp_path, lambda image: (tmp_path / "annotations.csv").read_bytes())
    assert len(tally.latency_ns) == 0


def test_what_was_read_before_is_not_what_is_read_now(tmp_path):
    seen = []

    def once(image):
        if not seen:
            seen.append(Path(image).read_bytes())

    tally, _ = _own_reads(tmp_path, once)
    assert len(tally.latency_ns) == 1


@pytest.mark.parametrize("threads", [1, 4])
def test_own_reads_of_several_threads_are_each_their_own(tmp_path, threads):
    contents = {f"{tmp_path}/{i}.jpg": bytes([i]) * (1000 + i) for i in range(40)}
    for path, data in contents.items():
        Path(path).write_bytes(data)
    dataset = OwnReads()
    dataset.bind(FsStorage(), one_category({key: len(data) for key, data in contents.items()}))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(dataset.__getitem__, range(40)))
    tally = dataset.storage.meter.take()
    assert (tally.own_reads, tally.read_bytes) == (40, sum(map(len, contents.values())))


def test_a_read_through_the_storage_is_not_one_of_the_datasets_own(tmp_path):
    storage = FsStorage()
    tally, total_bytes = _own_reads(tmp_path, storage.read)
    # Another storage's meter knows nothing of ours: what went past ours is an own read.
    assert tally.own_reads == 3

    class Through(RandomAccessDataset):
        def read_file_system_data(self, image):
            return self.storage.read(image)

    assert storage.meter.take().read_bytes == total_bytes
    dataset = bound(Through(), 2)
    dataset[0], dataset[1]
    tally = dataset.storage.meter.take()
    assert (len(tally.latency_ns), tally.own_reads) == (2, 0)


def test_an_object_that_changed_since_it_was_listed_is_corrupt():
    dataset = bound(TorchImageClassificationDataset(), 1)
    dataset.storage.contents["roses/0000.png"] += b"more"
    with pytest.raises(CorruptError, match=r"roses/0000\.png"):
        dataset[0]


def test_a_file_that_is_no_image_is_corrupt_and_named():
    contents = {"roses/a.png": b"text, not pixels"}
    dataset = TorchImageClassificationDataset()
    dataset.bind(MemoryStorage(contents, name="dss"), make_catalog(contents))
    with pytest.raises(CorruptError) as caught:
        dataset[0]
    assert str(caught.value).startswith("dss (memory): roses/a.png: is no image")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_the_error_of_a_storage_comes_through_as_it_is():
    dataset = bound(TorchImageClassificationDataset(), 1)
    dataset.storage.contents.clear()
    with pytest.raises(NotFoundError):
        dataset[0]


def test_a_dataset_pickles_with_its_storage_and_its_catalog():
    # The original lives on, as it does in a loader: the catalog's file goes with it.
    original = bound(TorchImageClassificationDataset(), 5)
    copied = pickle.loads(pickle.dumps(original))  # noqa: S301
    assert int(copied[4][0][0, 0]) == 4


def test_decode_can_be_overridden_alone():
    class Mean(RandomAccessDataset):
        def decode(self, data):
            return float(super().decode(data).float().mean())

    dataset = Mean()
    contents = {"roses/a.png": image_bytes(60)}
    dataset.bind(MemoryStorage(contents), make_catalog(contents))
    assert dataset[0] == (60.0, 0)


def test_a_sequential_pass_is_in_the_catalogs_order():
    indices = [index for index, _ in SequentialDataset(bound(RandomAccessDataset(), 6))]
    assert indices == list(range(6))


class _Length:
    """A dataset of a length, for shares."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


@given(length=st.integers(0, 500), workers=st.integers(1, 40), batch_size=st.integers(1, 70))
def test_shares_leave_nothing_out_and_have_nothing_twice(length, workers, batch_size):
    sequential = SequentialDataset(_Length(length), batch_size)
    shares = [sequential.share(worker, workers) for worker in range(workers)]
    assert [i for share in shares for i in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(length=st.integers(0, 500), workers=st.integers(1, 40), batch_size=st.integers(1, 70))
def test_with_drop_last_every_share_is_whole_batches_and_less_than_one_is_dropped(length, workers, batch_size):
    whole = SequentialDataset(_Length(length), batch_size)
    trimmed = SequentialDataset(_Length(length), batch_size, drop_last=True)
    for worker in range(workers):
        before, after = whole.share(worker, workers), trimmed.share(worker, workers)
        assert len(after) % batch_size == 0
        assert 0 <= len(before) - len(after) < batch_size
        assert np.array_equal(before[: len(after)], after)


@pytest.mark.parametrize(("drop_last", "read"), [(False, 7), (True, 6)])
def test_with_drop_last_nothing_that_is_dropped_is_read(tmp_path, drop_last, read):
    dataset = bound(RandomAccessDataset(), 7, log=tmp_path / "log")
    assert len(list(SequentialDataset(dataset, 3, drop_last))) == read
    assert len(dataset.storage.logged()) == read


def test_own_reads_are_noticed_however_many_threads_there_have_been(tmp_path):
    path = tmp_path / "0.jpg"
    path.write_bytes(b"x" * 1000)
    dataset = OwnReads()
    dataset.bind(FsStorage(), one_category({str(path): 1000}))
    # More than a user may have queues of events, on most machines.
    count = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()) + 10
    for _ in range(min(count, 1000)):
        thread = threading.Thread(target=dataset.__getitem__, args=(0,))
        thread.start()
        thread.join()
    assert dataset.storage.meter.take().own_reads == min(count, 1000)


class Usual(RandomAccessDataset):
    """Reads as it is meant to be read."""


class Doubled(RandomAccessDataset):
    """Reads by a method of its own."""

    def read_s3_object(self, image):
        return super().read_s3_object(image) * 2

    read_file_system_data = read_s3_object


@pytest.mark.parametrize("name", ["fs", "aws"])
@pytest.mark.parametrize("kind", [Usual, Doubled])
@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_concurrent_reading_gives_the_same_samples_in_the_same_order(tmp_path, name, kind, concurrency):
    dataset = bound(kind(config={"dataset": {"image_dimension": [2, 3]}}), 20, name=name, log=tmp_path / "log")
    indices = [7, 3, 19, 0, 11]
    plain = [dataset[i] for i in indices]
    dataset.storage.meter.take()
    dataset.concurrency = concurrency
    concurrent = dataset.__getitems__(indices)
    assert [int(label) for _, label in concurrent] == [int(label) for _, label in plain]
    assert all((a == b).all() for (a, _), (b, _) in zip(concurrent, plain, strict=True))
    assert dict(dataset.storage.meter.take().requests) == {"GET": 5}
    assert [position for position, _ in dataset.read_samples(range(20), in_order=True)] == list(range(20))


@pytest.mark.parametrize("kind", [Usual, Doubled])
def test_an_error_in_concurrent_reading_names_the_object(kind):
    dataset = bound(kind(), 20)
    dataset.concurrency = 4
    key = dataset.catalog.key(5)
    dataset.storage.contents[key] = b"x" * dataset.catalog.size_bytes(5)
    with pytest.raises(CorruptError, match=key):
        dataset.__getitems__(list(range(20)))


def test_concurrent_reading_has_that_many_reads_in_flight():
    barrier = threading.Barrier(6)

    class AllAtOnce(MemoryStorage):
        def _read(self, key, size_bytes):
            barrier.wait(timeout=30)
            return super()._read(key, size_bytes)

    dataset = bound(Usual(), 12)
    dataset.bind(AllAtOnce(dataset.storage.contents), dataset.catalog)
    dataset.concurrency = 6
    assert len(dataset.__getitems__(list(range(12)))) == 12

"""The catalog: what is a sample and what is not, its order and identity, and what it costs a worker."""

import multiprocessing
import os
import pickle
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.catalog import Catalog, CatalogError, list_catalog
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.s3 import S3Storage

LABELS = ["roses", "tulips"]
FILES = {
    f"{source}/{label}/{name}": bytes([i]) * (i + 1)
    for source in ("s1", "s2")
    for label in LABELS
    for i, name in enumerate(["a.jpg", "b.PNG", "nested/c.jpeg", "ü 日.jpg"])
}
NOT_SAMPLES = {
    "s1/roses/.hidden.jpg": b"x",
    "s1/roses/.git/x.jpg": b"x",
    "s1/roses/notes.txt": b"x",
    "s2/tulips/empty.jpg": b"",
}


class Shuffled(Storage):
    """Lists a fixed set of entries in an order of its own."""

    name, client = "fake", "fake"

    def __init__(self, entries, seed=0):
        super().__init__()
        self._entries = [entries[i] for i in np.random.default_rng(seed).permutation(len(entries))]

    def _list(self, prefix):
        yield from (entry for entry in self._entries if entry.key.startswith(prefix))

    def _size(self, key):
        raise NotImplementedError

    _read = _read_range = _write = settings = _size


def _write(storage, prefix, files):
    for key, data in files.items():
        storage.write(prefix + key, data)


def test_the_same_data_set_has_the_same_catalog_on_every_storage(local_servers, tmp_path):
    credentials, bucket = local_servers.aws()
    places = [
        (FsStorage(), f"{tmp_path}/"),
        (S3Storage(bucket, credentials), f"{uuid.uuid4()}/"),
        (DssStorage(local_servers.dss()), f"{uuid.uuid4()}/"),
    ]
    catalogs = []
    for storage, prefix in places:
        _write(storage, prefix, FILES | NOT_SAMPLES)
        catalogs.append(list_catalog(storage, [f"{prefix}s1/", f"{prefix}s2/"], LABELS, 4))
    for catalog in catalogs:
        assert catalog.hash() == catalogs[0].hash()
        assert [catalog.relative_key(i) for i in range(len(catalog))] == [
            catalogs[0].relative_key(i) for i in range(len(catalog))
        ]
        assert len(catalog) == len(FILES)
        assert catalog.total_bytes == sum(map(len, FILES.values()))
        assert catalog.left_out == {"hidden": 2, "not_image": 1, "empty": 1}


def test_label_is_the_index_in_the_label_list(tmp_path):
    _write(FsStorage(), f"{tmp_path}/", FILES)
    catalog = list_catalog(FsStorage(), [f"{tmp_path}/s1/"], ["tulips", "roses"], 2)
    for i in range(len(catalog)):
        assert f"/{['tulips', 'roses'][catalog.label(i)]}/" in catalog.key(i)
        assert os.path.getsize(catalog.key(i)) == catalog.size_bytes(i)


@given(st.integers(0, 1000), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_listing_and_the_workers_do_not_matter(seed, workers):
    entries = [Entry(key, len(data)) for key, data in FILES.items()]
    catalogs = [list_catalog(Shuffled(entries, s), ["s1/", "s2/"], LABELS, w) for s, w in ((seed, workers), (0, 1))]
    keys = [[catalog.key(i) for i in range(len(catalog))] for catalog in catalogs]
    assert keys[0] == keys[1]
    assert catalogs[0].hash() == catalogs[1].hash()


@pytest.mark.parametrize(
    "change", [{"s1/roses/a.jpg": b"longer"}, {"s1/roses/z.jpg": b"1"}], ids=["another size", "another key"]
)
def test_the_hash_knows_keys_and_sizes(change):
    def catalog(files):
        return list_catalog(Shuffled([Entry(k, len(d)) for k, d in files.items()]), ["s1/", "s2/"], LABELS, 2)

    assert catalog(FILES).hash() != catalog(FILES | change).hash()


@pytest.mark.parametrize(
    ("only", "reason"),
    [({}, "nothing"), ({"s1/roses/readme.txt": b"x"}, "1 not_image"), ({"s1/roses/a.jpg": b""}, "1 empty")],
)
def test_a_category_without_images_names_its_prefix(only, reason):
    files = {k: d for k, d in FILES.items() if not k.startswith("s1/roses/")} | only
    storage = Shuffled([Entry(k, len(d)) for k, d in files.items()])
    with pytest.raises(CatalogError, match=f"s1/roses/: no images.*{reason}"):
        list_catalog(storage, ["s1/", "s2/"], LABELS, 2)


def test_a_missing_folder_names_it(tmp_path):
    _write(FsStorage(), f"{tmp_path}/", FILES)
    with pytest.raises(CatalogError, match=r"s1/lilies/: there is no such folder"):
        list_catalog(FsStorage(), [f"{tmp_path}/s1/"], ["roses", "lilies"], 2)


def test_a_folder_marker_is_no_sample():
    entries = [Entry("roses/", 0), Entry("roses/a.jpg", 3)]
    catalog = list_catalog(Shuffled(entries), [""], ["roses"], 2)
    assert (len(catalog), catalog.left_out) == (1, {"folder_marker": 1})


def _big(count):
    keys = [f"s1/roses/{i:012d}.jpg".encode() for i in range(count)]
    return Catalog(keys, [9] * count, list(range(count)), [0] * count, [0] * count, ["roses"])


def test_a_catalog_of_many_keys_travels_as_a_file_name():
    catalog = _big(300_000)
    data = pickle.dumps(catalog)
    assert len(data) < 500
    copy = pickle.loads(data)  # noqa: S301 (our own bytes)
    assert (copy.key(123_456), copy.size_bytes(123_456)) == ("s1/roses/000000123456.jpg", 123_456)
    assert len(copy) == 300_000
    assert isinstance(copy.sizes_bytes.base, np.memmap | np.ndarray)
    assert not copy.sizes_bytes.flags.owndata


def _tell(catalog, queue):
    queue.put((catalog.hash(), len(catalog)))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_catalog_arrives_in_another_process(method):
    catalog = _big(50)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_tell, args=(catalog, queue))
    child.start()
    assert queue.get(timeout=60) == (catalog.hash(), 50)
    child.join()


def test_the_file_behind_a_catalog_is_removed_with_it():
    catalog = _big(5)
    path = catalog.__reduce__()[1][0]
    assert os.path.exists(path)
    del catalog
    assert not os.path.exists(path)


@given(st.lists(st.integers(0, 2), min_size=3, max_size=60), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(deadline=None)
def test_a_split_keeps_the_shares_of_the_classes(labels, share, seed):
    count = len(labels)
    catalog = Catalog(
        [f"{i}".encode() for i in range(count)], [0] * count, [1] * count, labels, [0] * count, ["a", "b", "c"]
    )
    train, test = catalog.split(share, seed)
    keys = [part.key(i) for part in (train, test) for i in range(len(part))]
    assert sorted(keys) == sorted(str(i) for i in range(count))
    for label in range(3):
        all_of_it, tested = labels.count(label), int((test.labels == label).sum())
        if all_of_it > 1:
            assert 1 <= tested <= all_of_it - 1
            assert abs(tested - all_of_it * share) <= 1
    again = catalog.split(share, seed)[1]
    assert [again.key(i) for i in range(len(again))] == [test.key(i) for i in range(len(test))]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_split_of_nothing_is_refused(share):
    with pytest.raises(ValueError, match="test_share"):
        _big(4).split(share, 0)

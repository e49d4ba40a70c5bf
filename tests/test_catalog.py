"""The catalog: what is a sample and what is not, its order and identity, and what it costs a worker."""

import hashlib
import multiprocessing
import os
import pickle
import struct
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from fakes import one_category
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench import catalog as catalog_module
from dnnbench import packed_names
from dnnbench.catalog import Catalog, CatalogBuilder, CatalogError, Group, Names, list_catalog
from dnnbench.images import is_image_name
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


# Alike for long and different at the end, ended by NULs, short, empty, of any bytes.
NAMES = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(lambda end, length: b"n01440764_"[:length] + end, st.binary(max_size=2), st.integers(0, 10)),
    st.builds(lambda letter, nulls: letter + bytes(nulls), st.sampled_from([b"", b"a", b"\xff"]), st.integers(0, 20)),
    st.integers(0, 300).map(lambda length: b"x" * length),
)


@pytest.fixture(
    params=[(1, 1), (50, 3), (packed_names._CHUNK_BYTES, packed_names.CHUNK_SAMPLES)],
    ids=["ones", "small", "usual"],
)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(packed_names, "_CHUNK_BYTES", request.param[0])
    for module in (packed_names, catalog_module):
        monkeypatch.setattr(module, "CHUNK_SAMPLES", request.param[1])


def _chunked(test):
    return pytest.mark.usefixtures("_chunks")(settings(deadline=None)(test))


@given(st.lists(NAMES))
def test_names_come_out_as_they_went_in(names):
    packed_names = Names.of(names)
    assert list(packed_names) == names
    assert packed_names.lengths.tolist() == [len(name) for name in names]
    assert [packed_names[i - len(names)] for i in range(len(names))] == names


@_chunked
@given(st.lists(NAMES, min_size=1), st.data())
def test_taken_are_the_names_at_the_places_in_their_order(names, data):
    places = data.draw(st.lists(st.integers(0, len(names) - 1)))
    taken = Names.of(names).take(np.array(places, dtype=np.int64))
    assert list(taken) == [names[i] for i in places]


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_that_is_not_there_is_refused(place):
    with pytest.raises(IndexError, match="2 names"):
        Names.of([b"a", b"b"]).take(np.array([0, place]))


@given(st.lists(st.lists(NAMES)))
def test_joined_are_one_part_after_the_other(parts):
    assert list(Names.joined([Names.of(part) for part in parts])) == [name for part in parts for name in part]


@_chunked
@given(st.lists(NAMES))
def test_the_order_is_that_of_the_bytes(names):
    assert [names[i] for i in Names.of(names).order()] == sorted(names)


@_chunked
@given(st.lists(NAMES))
def test_repeated_are_the_places_before_the_same_name(names):
    names = sorted(names)
    assert Names.of(names).repeated().tolist() == [i for i, (a, b) in enumerate(pairwise(names)) if a == b]


def test_a_block_of_more_than_4_gib_has_longer_offsets():
    # Zeros that nobody touches take no memory.
    block = np.zeros(2**32 + 6, dtype=np.uint8)
    block[2**32 :] = np.frombuffer(b"abcdef", dtype=np.uint8)
    names = Names(block, packed_names._offsets(np.array([2**32, 2, 4])))
    assert names.offsets.dtype == np.int64
    assert (names[1], names[2]) == (b"ab", b"cdef")
    taken = names.take(np.array([2, 1, 2]))
    assert (list(taken), taken.offsets.dtype) == ([b"cdef", b"ab", b"cdef"], np.uint32)


@pytest.mark.parametrize(("largest", "kind"), [(2**32 - 1, np.uint32), (2**32, np.int64)])
def test_numbers_are_as_narrow_as_the_largest_lets_them_be(largest, kind):
    narrow = catalog_module._narrow(np.array([1, largest]))
    assert (narrow.tolist(), narrow.dtype) == ([1, largest], kind)


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


def test_files_below_the_folder_that_we_are_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(FsStorage(), "", FILES)
    catalog = list_catalog(FsStorage(), ["./s1/"], LABELS, 2)
    assert catalog.hash() == list_catalog(FsStorage(), [f"{tmp_path}/s1/"], LABELS, 2).hash()
    assert {catalog.key(i) for i in range(len(catalog))} == {key for key in FILES if key.startswith("s1/")}


def test_a_listing_of_something_else_is_refused():
    builder = CatalogBuilder(Shuffled([]), ["s1/"], LABELS)
    with pytest.raises(CatalogError, match=r"s1/roses/.*'s2/a.jpg'"):
        builder.add(0, [Entry("s1/roses/a.jpg", 1), Entry("s2/a.jpg", 1)])


def _why_left_out(name, size_bytes):
    if not name or name.endswith("/"):
        return "folder_marker"
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    if not is_image_name(name):
        return "not_image"
    return "" if size_bytes else "empty"


# Whatever a name may be: with line breaks, NULs, bytes that are no text, or nothing between two slashes.
ODD_NAMES = st.builds(
    "".join,
    st.lists(
        st.sampled_from(["a", "b", "/", ".", "\n", "\0", "é", "日", "\udcff", "n01440764_", ".jpg", "İ"]), max_size=6
    ),
).flatmap(lambda name: st.sampled_from([name, f"{name}.jpg", f"{name}.TIFF", f"x{name}.jpeg"]))
LISTINGS = st.lists(st.lists(st.tuples(ODD_NAMES, st.sampled_from([0, 1, 2**32 - 1, 2**33])), max_size=12), max_size=6)


@given(LISTINGS, LISTINGS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_keys_are_packed_sorted_and_left_out_as_one_by_one(roses, tulips, random):
    pages = [(group, page) for group, of_group in enumerate((roses, tulips)) for page in of_group]
    # One sample that is surely there.
    pages += [(0, [("z.jpg", 7)]), (1, [("z.jpg", 7)])]
    random.shuffle(pages)
    builder = CatalogBuilder(Shuffled([]), ["s/"], LABELS)
    with ThreadPoolExecutor(3) as pool:
        added = [
            pool.submit(builder.add, group, [Entry(f"s/{LABELS[group]}/{name}", size) for name, size in page])
            for group, page in pages
        ]
    for one in added:
        one.result()
    listed = [(group, name, size) for group, page in pages for name, size in page]
    reasons = [_why_left_out(name, size) for _, name, size in listed]
    expected = sorted(
        (group, os.fsencode(name), size)
        for (group, name, size), reason in zip(listed, reasons, strict=True)
        if not reason
    )
    if len({(group, name) for group, name, _ in expected}) < len(expected):
        with pytest.raises(CatalogError, match="is listed twice"):
            builder.build()
        return
    catalog = builder.build()
    assert catalog.left_out == Counter(filter(None, reasons))
    assert [
        (catalog.label(i), os.fsencode(catalog.relative_key(i)), catalog.size_bytes(i)) for i in range(len(catalog))
    ] == expected
    assert [os.fsencode(catalog.key(i)) for i in range(len(catalog))] == [
        f"s/{LABELS[group]}/".encode() + name for group, name, _ in expected
    ]
    assert catalog.total_bytes == sum(size for _, _, size in expected)


@st.composite
def catalogs(draw):
    """A catalog in no order, and what is in it: (source, label, prefix, name, size) of each sample."""
    groups = [Group(draw(st.binary(max_size=6)), source, label) for source in range(2) for label in range(3)]
    # So many groups that their numbers are not all of one byte.
    groups *= draw(st.sampled_from([1, 60]))
    samples = draw(
        st.lists(
            st.tuples(
                st.integers(0, len(groups) - 1),
                st.one_of(st.binary(max_size=20), st.text(max_size=9).map(str.encode), st.just(b"x" * 500)),
                st.one_of(st.integers(0, 9), st.integers(2**32 - 2, 2**33)),
            ),
            max_size=30,
        )
    )
    numbers, names, sizes = zip(*samples, strict=True) if samples else ((), (), ())
    catalog = Catalog(groups, numbers, Names.of(names), sizes, ["a", "b", "c"])
    return catalog, [(*groups[number][1:], groups[number].prefix, name, size) for number, name, size in samples]


def _is(catalog, samples):
    assert len(catalog) == len(samples)
    assert catalog.sources.tolist() == [source for source, *_ in samples]
    assert catalog.labels.tolist() == [label for _, label, *_ in samples]
    assert catalog.sizes_bytes.tolist() == [size for *_, size in samples]
    assert catalog.total_bytes == sum(size for *_, size in samples)
    for i, (_, label, prefix, name, size) in enumerate(samples):
        assert (os.fsencode(catalog.key(i)), os.fsencode(catalog.relative_key(i))) == (prefix + name, name)
        assert (catalog.label(i), catalog.size_bytes(i)) == (label, size)
    assert list(catalog.items(range(len(samples)))) == [
        (os.fsdecode(prefix + name), size) for _, _, prefix, name, size in samples
    ]


@given(catalogs(), st.data())
@settings(deadline=None)
def test_selected_and_travelled_are_the_same_samples(made, data):
    catalog, samples = made
    _is(catalog, samples)
    places = data.draw(st.lists(st.integers(0, len(samples) - 1))) if samples else []
    chosen = [samples[i] for i in places]
    part = catalog.select(np.array(places, dtype=int))
    _is(part, chosen)
    _is(pickle.loads(pickle.dumps(catalog)), samples)  # noqa: S301 (our own bytes)
    _is(pickle.loads(pickle.dumps(part)), chosen)  # noqa: S301
    # To a process on another host.
    handed_out = Catalog.of_state(pickle.loads(pickle.dumps(part.state())))  # noqa: S301
    _is(handed_out, chosen)
    assert (handed_out.hash(), handed_out.verify) == (part.hash(), part.verify)
    # It now reads what it wrote for the others.
    _is(catalog, samples)


@given(catalogs(), catalogs())
@settings(deadline=None)
def test_the_hash_is_that_of_the_samples_and_not_of_how_they_are_held(made, other):
    catalog, samples = made
    text = hashlib.sha256(f"{('a', 'b', 'c')!r}\0{len(samples)}\0".encode())
    for column in (0, 1, 4):
        text.update(b"".join(struct.pack("<Q", sample[column]) for sample in samples))
    names = [sample[3] for sample in samples]
    text.update(b"".join(struct.pack("<Q", len(name)) for name in names) + b"".join(names))
    assert catalog.hash() == catalog.hash() == text.hexdigest()[:16]
    assert pickle.loads(pickle.dumps(catalog)).hash() == catalog.hash()  # noqa: S301 (our own bytes)
    identity = [(source, label, name, size) for source, label, _, name, size in samples]
    assert (catalog.hash() == other[0].hash()) == (
        identity == [(source, label, name, size) for source, label, _, name, size in other[1]]
    )


@given(catalogs(), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(deadline=None)
def test_a_split_is_that_of_each_category_by_itself(made, share, seed):
    catalog, samples = made
    rng, tested = np.random.default_rng(seed), set()
    for label in range(3):
        members = rng.permutation([i for i, sample in enumerate(samples) if sample[1] == label])
        if len(members) > 1:
            tested.update(members[: min(max(round(len(members) * share), 1), len(members) - 1)].tolist())
    train, test = catalog.split(share, seed)
    _is(train, [sample for i, sample in enumerate(samples) if i not in tested])
    _is(test, [samples[i] for i in sorted(tested)])


def _big(count):
    names = Names.of([f"{i:012d}.jpg".encode() for i in range(count)])
    return Catalog([Group(b"s1/roses/", 0, 0)], np.zeros(count, dtype=int), names, range(count), ["roses"])


def _typical():
    labels = [f"n{1440764 + i:08d}" for i in range(200)]
    builder = CatalogBuilder(Shuffled([]), ["source1/"], labels)
    for number, label in enumerate(labels):
        keys = (f"source1/{label}/{label}_{i}.JPEG" for i in range(10_000, 11_000))
        builder.add(number, [Entry(key, 100_000 + i) for i, key in enumerate(keys)])
    return builder.build()


def test_typical_keys_take_less_memory_than_their_own_bytes():
    catalog = _typical()
    key_bytes = sum(len(catalog.key(i)) for i in range(len(catalog)))
    assert (len(catalog), catalog.key(1)) == (200_000, "source1/n01440764/n01440764_10001.JPEG")
    assert catalog.nbytes < key_bytes
    part = catalog.select(np.random.default_rng(0).permutation(200_000))
    assert part.nbytes == catalog.nbytes
    assert os.path.getsize(catalog.__reduce__()[1][0]) < catalog.nbytes + 1000


def test_sums_of_sizes_do_not_overflow():
    catalog = one_category({"a": 2**32 - 1, "b": 2**32 - 1})
    assert catalog.sizes_bytes.dtype == np.uint32
    assert catalog.total_bytes == catalog.sizes_bytes[np.array([0, 1])].sum() == 2**33 - 2


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


def _mapped_kib(path):
    """(resident, proportional) KiB of a file's mappings in this process, as proc(5) says."""
    kib, is_ours = Counter(), False
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *values = line.split()
            if not name.endswith(":"):
                is_ours = path in line
            elif is_ours and name in ("Rss:", "Pss:"):
                kib[name] += int(values[0])
    return kib["Rss:"], kib["Pss:"]


def _hold(data, barrier, queue):
    catalog = pickle.loads(data)  # noqa: S301 (our own bytes)
    # Every byte of it is looked at, and all processes hold it while each looks at what it holds.
    identity = catalog.hash()
    barrier.wait(60)
    queue.put((identity, *_mapped_kib(catalog.__reduce__()[1][0])))
    barrier.wait(60)


def test_eight_workers_hold_one_copy_of_a_catalog_between_them():
    catalog = _typical()
    data = pickle.dumps(catalog)
    path = catalog.__reduce__()[1][0]
    identity = catalog.hash()
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(9), context.Queue()
    workers = [context.Process(target=_hold, args=(data, barrier, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    barrier.wait(60)
    told = [queue.get(timeout=60) for _ in workers]
    own_kib = _mapped_kib(path)[1]
    barrier.wait(60)
    for worker in workers:
        worker.join()
    copy_kib = os.path.getsize(path) / 1024
    assert {one[0] for one in told} == {identity}
    assert min(resident for _, resident, _ in told) >= copy_kib - 4
    # Each tells it at a moment of its own, so that a few pages may be shared by more or fewer.
    assert sum(proportional for *_, proportional in told) + own_kib <= 1.1 * copy_kib


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
    groups = [Group(b"", 0, label) for label in range(3)]
    names = Names.of([f"{i}".encode() for i in range(count)])
    catalog = Catalog(groups, labels, names, [1] * count, ["a", "b", "c"])
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

"""Shards: packed to the same bytes, indexed, shared out with nothing twice, and named with the byte where damaged."""

import io
import itertools
import tarfile

import numpy as np
import pytest
from fakes import LABELS, MemoryStorage, image_bytes, make_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench import tfrecord
from dnnbench.catalog import CatalogError, list_catalog
from dnnbench.datasets.shard_reads import ShardPlan, parser_of, read_sample, shuffled
from dnnbench.datasets.shares import RankShare
from dnnbench.pack import PackError, _member, pack, parse_size, sources_at
from dnnbench.shards import FORMATS, Index, Shard, Shards, folder_of, index_key, list_shards, sharded_catalog
from dnnbench.storage.errors import CorruptError, NotFoundError

KINDS = pytest.mark.parametrize("kind", FORMATS)
COUNT = 25
PNG = image_bytes(3)
SHARD_BYTES = {"tar": 8 * 2048 + 1024, "tfrecord": 2600}


def packed(kind, count=COUNT, shard_bytes=None, seed=0, **contents):
    """A storage with files and shards of them, of one source."""
    storage = MemoryStorage(make_contents(count) | contents)
    pack(
        storage, "", storage, "", LABELS, kind=kind, shard_bytes=shard_bytes or SHARD_BYTES[kind], seed=seed,
        progress=False,
    )  # fmt: skip
    return storage


def catalog_of(storage, kind, sources=("",), labels=LABELS, folder=None):
    return sharded_catalog(storage, sources, labels, list_shards(storage, sources, kind, 2, folder))


def plan_of(shards, share=RankShare(), **options):  # noqa: B008 (frozen)
    chosen = {"batch_size": 4, "drop_last": False, "shuffle": True, "seed": 0, "range_bytes": None, "parallel": None}
    return ShardPlan(shards=shards, share=share, **chosen | {"buffer": 5} | options)


def read_all(storage, catalog, plan, number=0, workers=1):
    parse, sizes = parser_of(catalog.shards), catalog.sizes_bytes
    return [list(plan.samples(storage, sizes, parse, number, worker, workers)) for worker in range(workers)]


@KINDS
def test_the_catalog_of_the_shards_is_that_of_the_files(kind):
    storage = packed(kind)
    files = list_catalog(storage, [""], LABELS, 2)
    catalog = catalog_of(storage, kind)
    assert catalog.hash() == files.hash()
    assert [catalog.key(i) for i in range(COUNT)] == [files.key(i) for i in range(COUNT)]
    assert len(catalog.shards) > 2
    assert files.stored_bytes == files.total_bytes == catalog.total_bytes
    assert catalog.stored_bytes == sum(len(storage.contents[key]) for key in catalog.shards.keys)
    for index in range(COUNT):
        assert bytes(read_sample(storage, catalog, index)) == storage.contents[files.key(index)]


@KINDS
def test_the_same_seed_makes_the_same_bytes_and_another_one_others(kind):
    first, again, other = packed(kind), packed(kind), packed(kind, seed=1)
    assert first.contents == again.contents
    key = f"{folder_of(kind)}/000000.{kind}"
    assert other.contents[key] != first.contents[key]


@KINDS
def test_a_shard_holds_several_categories_and_is_no_longer_than_asked(kind):
    storage = packed(kind)
    shards = catalog_of(storage, kind).shards
    for number, key in enumerate(shards.keys):
        assert len(storage.contents[key]) <= SHARD_BYTES[kind]
        labels = shards.written_labels[shards.firsts[number] : shards.firsts[number + 1]]
        assert len(labels) < 3 or len(set(labels.tolist())) > 1


def test_a_tar_is_what_tar_and_webdataset_read(tmp_path):
    import webdataset

    storage = packed("tar", shard_bytes=10**6)
    path = tmp_path / "shard.tar"
    path.write_bytes(storage.contents["shards-tar/000000.tar"])
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2 * COUNT
    samples = list(webdataset.WebDataset(f"file:{path}", shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert len(samples) == COUNT
    assert {image.getpixel((0, 0))[0] % 2 == label for image, label in samples} == {True}


def test_a_record_has_the_usual_features():
    storage = packed("tfrecord", shard_bytes=10**6)
    (_, record), *_ = tfrecord.records(storage.contents["shards-tfrecord/000000.tfrecord"])
    features = tfrecord.parse_example(record)
    label = features["image/class/label"]
    assert bytes(features["image/class/text"]).decode() == LABELS[label]
    assert (features["image/height"], features["image/width"], features["image/channels"]) == (6, 8, 1)
    assert bytes(features["image/format"]) == b"PNG"
    name = bytes(features["image/filename"]).decode()
    assert storage.contents[f"{LABELS[label]}/{name}"] == features["image/encoded"]


@KINDS
@pytest.mark.parametrize("range_bytes", [None, 1, 3000])
@pytest.mark.parametrize("parallel", [None, 3])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_every_sample_once_over_all_ranks_and_workers(kind, range_bytes, parallel, ranks, workers):
    storage = packed(kind)
    catalog = catalog_of(storage, kind)
    came = []
    for rank in range(ranks):
        plan = plan_of(catalog.shards, RankShare(rank, ranks), range_bytes=range_bytes, parallel=parallel)
        storage.meter.take()
        parts = read_all(storage, catalog, plan, number=3, workers=workers)
        tally = storage.meter.take()
        assert (len(tally.latency_ns), tally.read_bytes) == plan.readings(3, workers)
        assert [len(part) for part in parts] == [sum(plan.worker_batches(w, workers)) for w in range(workers)]
        came += [sample for part in parts for sample in part]
    assert sorted(index for index, _ in came) == list(range(COUNT))
    assert all(bytes(content) == storage.contents[catalog.key(index)] for index, content in came)


def shards_of(counts, kind="tar"):
    """Shards with so many samples each, of 10 bytes, and 5 bytes behind the last."""
    made = [Shard(f"{i}.tar", 10 * count + 5, 10 * count, count) for i, count in enumerate(counts)]
    begins = np.concatenate([np.arange(count) * 10 for count in counts])
    order = np.random.default_rng(0).permutation(sum(counts))
    return Shards(kind, [shard.name for shard in made], made, begins, order, np.zeros(sum(counts), dtype=np.uint32))


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([None, 1, 25, 1000]),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=150)
def test_shares_are_everything_once_however_few_the_shards(counts, ranks, workers, range_bytes, shuffle, number):
    shards = shards_of(counts)
    read = []
    for rank in range(ranks):
        plan = plan_of(shards, RankShare(rank, ranks), range_bytes=range_bytes, shuffle=shuffle)
        by_worker = [plan.runs(number, worker, workers) for worker in range(workers)]
        mine = [run for runs in by_worker for run in runs]
        assert sum(run.last - run.first for run in mine) == len(RankShare(rank, ranks).of(sum(counts)))
        read += mine
        for run, later in (pair for runs in by_worker for pair in itertools.pairwise(runs)):
            # No more readings than it takes.
            together = run.last == later.first and run.shard == later.shard
            assert not together or (range_bytes and later.begin + 10 - run.begin > range_bytes)
    assert sorted(p for run in read for p in range(run.first, run.last)) == list(range(sum(counts)))
    for run in read:
        assert run.first < run.last
        assert run.whole == (range_bytes is None and run.last - run.first == counts[run.shard])
        assert run.end - run.begin == 10 * (run.last - run.first) + (5 if run.whole else 0)
        assert range_bytes is None or run.end - run.begin <= max(range_bytes, 10)


def test_the_order_is_fresh_in_each_pass_and_the_same_for_a_seed():
    storage = packed("tar")
    catalog = catalog_of(storage, "tar")
    plan = plan_of(catalog.shards)
    first, again, later = ([i for i, _ in read_all(storage, catalog, plan, n)[0]] for n in (0, 0, 1))
    assert first == again != later
    assert [run.shard for run in plan.runs(0, 0, 1)] != [run.shard for run in plan.runs(1, 0, 1)]
    plain = plan_of(catalog.shards, shuffle=False)
    assert [i for i, _ in read_all(storage, catalog, plain, 5)[0]] == catalog.shards.order.tolist()


@given(st.integers(0, 60), st.integers(2, 20))
@settings(max_examples=50)
def test_a_shuffle_buffer_yields_each_once_and_none_long_before_its_turn(count, buffer):
    out = list(shuffled(iter(range(count)), buffer, np.random.default_rng(0)))
    assert sorted(out) == list(range(count))
    assert all(value <= place + buffer for place, value in enumerate(out))


def test_drop_last_reads_whole_batches_alone():
    storage = packed("tar")
    catalog = catalog_of(storage, "tar")
    plan = plan_of(catalog.shards, RankShare(1, 2), drop_last=True)
    assert plan.batch_sizes() == [4, 4, 4]
    assert [len(part) for part in read_all(storage, catalog, plan, workers=2)] == [4, 8]


# -- damage ------------------------------------------------------------------------------------------------


def damaged(kind, change):
    """(storage, catalog, the first shard's key) whose first shard was changed behind the index's back."""
    storage = packed(kind, shard_bytes=10**6)
    catalog = catalog_of(storage, kind)
    key = catalog.shards.keys[0]
    storage.contents[key] = bytes(change(bytearray(storage.contents[key]), catalog.shards))
    return storage, catalog, key


def begin_of(shards, position):
    return int(shards.begins[position])


def _flip(at):
    def change(data, shards):
        data[begin_of(shards, 7) + at] ^= 0x55
        return data

    return change


def _members(new):
    """A tar in which the eighth sample's members are others, of the same length in all."""

    def change(data, shards):
        begin, end = begin_of(shards, 7), begin_of(shards, 8)
        made = new(7)
        assert len(made) <= end - begin
        return data[:begin] + made + data[end:]

    return change


def _record(features):
    def change(data, shards):
        return data[: begin_of(shards, 7)] + tfrecord.frame(tfrecord.example(features)) + data[begin_of(shards, 8) :]

    return change


DAMAGE = {
    "tar header": ("tar", _flip(3), "a sample belongs here|bad checksum"),
    "tar without a label": ("tar", _members(lambda i: _member("x.png", PNG)), "no label"),
    "tar without an image": ("tar", _members(lambda i: _member("x.cls", b"1")), "no image"),
    "tar with an unknown member": ("tar", _members(lambda i: _member("x.txt", PNG)), "x.txt is an unknown member"),
    "tar with another label": ("tar", _members(lambda i: _member("x.png", PNG) + _member("x.cls", b"9")), "label 9"),
    "tar with no number": ("tar", _members(lambda i: _member("x.png", PNG) + _member("x.cls", b"a")), "no number"),
    "tar with a longer image": (
        "tar", _members(lambda i: _member("x.png", PNG + b"x") + _member("x.cls", b"1")), "the index says",
    ),
    "tar with two images": ("tar", _members(lambda i: _member("x.png", PNG) + _member("x.jpg", b"1")), "several"),
    "record's length": ("tfrecord", _flip(0), "CRC of a record's length"),
    "record's CRC": ("tfrecord", _flip(30), "CRC of a record is wrong"),
    "record without a label": ("tfrecord", _record({"image/encoded": PNG}), "no image/class/label"),
    "record without an image": ("tfrecord", _record({"image/class/label": 1}), "no image/encoded"),
    "record of two numbers": ("tfrecord", _record({"image/encoded": 1, "image/class/label": 1}), "no image"),
    "no Example": ("tfrecord", lambda d, s: d[: begin_of(s, 7)] + tfrecord.frame(b"\xff\xff") + d[begin_of(s, 8) :],
                   "no tf.train.Example"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("range_bytes", [None, 2500])
def test_a_damaged_sample_is_named_by_its_shard_and_byte(case, range_bytes):
    kind, change, problem = DAMAGE[case]
    storage, catalog, key = damaged(kind, change)
    begin = begin_of(catalog.shards, 7)
    # What was put in the place of the sample may be shorter; a range ends where the index says, or before it.
    catalog.shards.sizes_bytes[0] = len(storage.contents[key])
    with pytest.raises(CorruptError, match=problem) as caught:
        read_all(storage, catalog, plan_of(catalog.shards, shuffle=False, range_bytes=range_bytes))
    assert caught.value.key == key
    assert f"at byte {begin:,}" in str(caught.value)


@KINDS
def test_a_shard_that_is_cut_off_while_it_is_read_is_named_with_the_byte(kind):
    storage, catalog, key = damaged(kind, lambda data, shards: data[: begin_of(shards, 9) + 5])
    with pytest.raises(CorruptError, match=f"at byte {begin_of(catalog.shards, 9) + 5:,}") as caught:
        read_all(storage, catalog, plan_of(catalog.shards, shuffle=False, range_bytes=3000))
    assert caught.value.key == key


@KINDS
def test_a_shard_that_is_cut_off_is_found_in_the_listing(kind):
    storage, _, key = damaged(kind, lambda data, shards: data[:-100])
    with pytest.raises(CorruptError, match=f"is cut off at byte {len(storage.contents[key]):,}") as caught:
        catalog_of(storage, kind)
    assert caught.value.key == key


def test_more_samples_than_the_index_knows_are_an_error():
    more = _member("999.png", PNG) + _member("999.cls", b"1")
    storage, catalog, _ = damaged("tar", lambda data, shards: data[:-1024] + more + bytes(1024))
    catalog.shards.sizes_bytes[0] += len(more)
    with pytest.raises(CorruptError, match="more samples"):
        read_all(storage, catalog, plan_of(catalog.shards))


# -- the index ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda data: b"x" + data, "something else"),
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:40], "cannot be read"),
        (lambda data: data.replace(b'"samples": 25', b'"samples": 26'), "do not fit"),
        (lambda data: data.replace(b'"format": "tar"', b'"format": "zip"'), "of zip"),
        (lambda data: data.replace(b'["roses", "tulips"]', b'["roses"]'), "label"),
    ],
)
def test_an_index_that_is_none_is_named(make, told):
    storage = packed("tar")
    storage.contents[index_key("", folder_of("tar"))] = make(storage.contents[index_key("", folder_of("tar"))])
    with pytest.raises(CorruptError, match=rf"no index of shards: .*{told}.*--overwrite"):
        catalog_of(storage, "tar")


@given(st.binary(max_size=80))
@settings(max_examples=50)
def test_garbage_is_no_index(tail):
    with pytest.raises(ValueError, match=r"it begins|its |where a"):
        Index.decode(b"dnnbench shards 1\n" + tail)


def test_without_shards_pack_is_named():
    storage = MemoryStorage(make_contents(4))
    with pytest.raises(CatalogError, match=r"no shards in shards-tar/.*dnnbench pack"):
        list_shards(storage, [""], "tar", 2)


# -- shards from elsewhere ---------------------------------------------------------------------------------


@KINDS
def test_shards_without_an_index_are_read_once_to_make_it(kind):
    storage = packed(kind)
    indexed = catalog_of(storage, kind)
    del storage.contents[index_key("", folder_of(kind))]
    storage.meter.take()
    with pytest.warns(UserWarning, match=r"no index, so all \d+ shards .* are read once"):
        catalog = catalog_of(storage, kind)
    assert len(storage.meter.take().latency_ns) == len(indexed.shards)
    # Other names, and so another order; the same places.
    for name in ("begins", "written_labels", "firsts", "data_bytes", "sizes_bytes"):
        assert np.array_equal(getattr(catalog.shards, name), getattr(indexed.shards, name))
    (came,) = read_all(storage, catalog, plan_of(catalog.shards, range_bytes=3000))
    expected = sorted(data for key, data in storage.contents.items() if key.startswith(LABELS))
    assert sorted(bytes(content) for _, content in came) == expected
    assert all(LABELS[catalog.label(index)] for index, _ in came)


def foreign(*members):
    return MemoryStorage({"train/a-0.tar": b"".join(_member(*member) for member in members) + bytes(1024)})


def test_a_webdataset_from_elsewhere_may_hold_more_than_images_and_labels():
    png = [image_bytes(shade) for shade in range(3)]
    storage = foreign(
        ("__meta__/x", b"m"), ("d.1/0.cls", b"1\n"), ("d.1/0.JSON", b"{}"), ("d.1/0.png", png[0]),
        ("1.png", png[1]), ("1.txt", b"t"), ("1.cls", b"0"), ("2.PNG", png[2]), ("2.cls", b"1"), ("2.json", b"[]"),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="train/"):
        catalog = catalog_of(storage, "tar", folder="train")
    assert [catalog.label(i) for i in range(3)] == [0, 1, 1]
    assert {catalog.relative_key(i) for i in range(3)} == {"a-0.tar/d.1/0.png", "a-0.tar/1.png", "a-0.tar/2.PNG"}
    for range_bytes in (None, 1):
        (came,) = read_all(storage, catalog, plan_of(catalog.shards, shuffle=False, range_bytes=range_bytes))
        assert [content for _, content in came] == png


@pytest.mark.parametrize(
    ("members", "error", "told"),
    [
        ([("0.png", PNG), ("1.cls", b"1")], CorruptError, r"at byte 0: the sample 0 has no label"),
        ([("0.png", PNG), ("0.cls", b"1"), ("1.cls", b"1")], CorruptError, r"at byte 2,048: the sample 1 has no image"),
        ([("0.png", PNG), ("0.cls", b"x")], CorruptError, r"at byte 1,024: the label in 0\.cls is no number"),
        ([("0.png", PNG), ("0.cls", b"2")], CatalogError, r"has the label 2, and dataset\.label has 2 names"),
        ([("readme", b"x")], CorruptError, "has no sample"),
    ],
)
def test_what_no_index_can_be_made_of_is_named(members, error, told):
    with pytest.warns(UserWarning, match="no index"), pytest.raises(error, match=told):
        catalog_of(foreign(*members), "tar", folder="train")


def test_shards_and_index_must_agree_on_names_and_categories():
    storage = packed("tar")
    with pytest.raises(CatalogError, match="hold the categories roses, tulips"):
        catalog_of(storage, "tar", labels=("roses",))
    # In another order they are the same categories.
    assert catalog_of(storage, "tar", labels=LABELS[::-1]).label(0) == 0
    spare = dict(storage.contents)
    storage.contents["shards-tar/zzz.tar"] = b"x"
    with pytest.raises(CatalogError, match="does not know"):
        catalog_of(storage, "tar")
    storage.contents = spare
    del storage.contents["shards-tar/000001.tar"]
    with pytest.raises(CatalogError, match=r"000001\.tar: is in the index and was not listed"):
        catalog_of(storage, "tar")


def test_a_part_of_a_catalog_of_shards_cannot_be_chosen():
    with pytest.raises(CatalogError, match=r"dataset\.format=files"):
        catalog_of(packed("tar"), "tar").split(0.2, 0)


# -- packing -----------------------------------------------------------------------------------------------


def test_what_is_there_is_refused_and_replaced_when_asked():
    storage = packed("tar")
    with pytest.raises(PackError, match=r"shards, and an index.*--overwrite"):
        pack(storage, "", storage, "", LABELS, progress=False)
    with pytest.raises(PackError, match=r"all is packed, but \d+ earlier shards are left, from 000001"):
        pack(storage, "", storage, "", LABELS, overwrite=True, progress=False)
    for key in [key for key in storage.contents if key > "shards-tar/000000.tar" and key.startswith("shards-")]:
        del storage.contents[key]
    assert len(catalog_of(storage, "tar")) == COUNT


def test_a_packing_that_breaks_off_leaves_what_nobody_takes_for_whole():
    class Full(MemoryStorage):
        def _write(self, key, data):
            if key.endswith("000001.tar"):
                raise NotFoundError(self.label, key, "the disk is full")
            super()._write(key, data)

    source, to = packed("tar"), Full({})
    with pytest.raises(NotFoundError, match="full"):
        pack(source, "", to, "", LABELS, shard_bytes=SHARD_BYTES["tar"], progress=False)
    with pytest.raises(CorruptError, match="did not end"):
        catalog_of(to, "tar")
    with pytest.raises(PackError, match="did not end"):
        pack(source, "", to, "", LABELS, progress=False)


def test_several_sources_are_packed_each_into_its_own_place():
    contents = {f"{source}/{key}": data for source in ("a", "b") for key, data in make_contents(6).items()}
    storage, to = MemoryStorage(contents), MemoryStorage({})
    assert sources_at(storage, "", LABELS) == ["a/", "b/"]
    done = pack(storage, "", to, "x", LABELS, progress=False)
    assert (done.sources, done.samples, done.shards) == (2, 12, 2)
    files = list_catalog(storage, ["a/", "b/"], LABELS, 2)
    assert catalog_of(to, "tar", ["x/a/", "x/b/"]).hash() == files.hash()
    with pytest.raises(CatalogError, match="holds no folder of a category"):
        pack(MemoryStorage({"readme": b"x"}), "", to, "", LABELS, progress=False)


def test_what_is_no_image_cannot_be_a_record_with_its_size():
    with pytest.raises(CorruptError, match=r"roses/broken\.jpg.*whose size"):
        packed("tfrecord", **{"roses/broken.jpg": b"no image"})


@pytest.mark.parametrize(
    ("text", "expected"), [("128MiB", 2**27), ("1GB", 10**9), ("1.5 KiB", 1536), ("7", 7), ("2b", 2)]
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "MiB", "1 parsec", "-1", "1e9", "0.1B"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(text)


def test_a_long_archive_is_not_longer_than_its_members():
    # What tarfile itself would have written, but for the padding behind the end.
    storage = packed("tar", shard_bytes=10**6)
    content = storage.contents["shards-tar/000000.tar"]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        last = archive.getmembers()[-1]
    assert len(content) == last.offset_data + 512 + 1024

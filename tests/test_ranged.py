"""Large objects: which are chosen, how they are split, and that what was not read as listed gives no figure."""

import os
from array import array

import numpy as np
import pytest
from fakes import MemoryStorage, one_category
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.catalog import CatalogError
from dnnbench.errors import MeasurementError
from dnnbench.metrics import Round, Tally, record
from dnnbench.ranged import RangedReading, WholeObject, check_cover, choose, list_large, size_text, split
from dnnbench.storage.errors import CorruptError
from dnnbench.storage.fs import FsStorage

SIZES = st.lists(st.integers(1, 3000), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 4000))
def test_ranges_hold_each_byte_of_each_object_once(sizes, range_bytes):
    objects, starts, ends = split(sizes, range_bytes)
    found = [[] for _ in sizes]
    for at, start, end in zip(objects, starts, ends, strict=True):
        assert 0 < end - start <= range_bytes
        found[at] += range(start, end)
    assert found == [list(range(size)) for size in sizes]
    # As few as there can be: only the last one of an object is shorter.
    assert len(objects) == sum(-(-size // range_bytes) for size in sizes)
    check_cover("x", (objects, starts, ends), sizes)


@given(SIZES, st.integers(1, 500), st.randoms(use_true_random=False))
def test_the_order_of_ranges_does_not_matter_but_what_they_hold_does(sizes, range_bytes, random):
    columns = split(sizes, range_bytes)
    order = list(range(len(columns[0])))
    random.shuffle(order)
    check_cover("x", tuple(column[order] for column in columns), sizes)
    at = random.randrange(len(order))
    dropped = tuple(np.delete(column, at) for column in columns)
    doubled = tuple(np.append(column, column[at]) for column in columns)
    longer = (*columns[:2], columns[2] + (np.arange(len(order)) == at))
    for wrong in (dropped, doubled, longer):
        with pytest.raises(MeasurementError, match="each byte of the objects once"):
            check_cover("x", wrong, sizes)


@settings(deadline=None)
@given(SIZES, st.integers(1, 9000), st.integers(0, 5))
def test_the_largest_objects_are_chosen_up_to_so_many_bytes(sizes, max_bytes, seed):
    chosen = choose(sizes, max_bytes, seed)
    assert list(chosen) == sorted(set(chosen)) == list(choose(sizes, max_bytes, seed))
    taken = [sizes[i] for i in chosen]
    left = [size for i, size in enumerate(sizes) if i not in chosen and size <= max_bytes]
    assert sum(taken) <= max_bytes
    if left:
        assert max(left) <= min(taken)
        # The next one would be too much.
        assert sum(taken) + max(left) > max_bytes


def test_of_objects_of_one_size_the_seed_chooses():
    some = {tuple(choose([10] * 20, 50, seed)) for seed in range(9)}
    assert {len(one) for one in some} == {5}
    assert len(some) > 1


CONTENTS = {"a.bin": os.urandom(1000), "b.bin": os.urandom(251), "c.bin": os.urandom(100)}


def catalog(contents=None):
    return one_category({key: len(data) for key, data in (contents or CONTENTS).items()})


def rounds(workload, count=2):
    made = []
    for number in range(count):
        workload.prepare(number)
        workload.run()
        made.append(workload.account())
        made[-1].wall_ns = 1_000_000_000
    return made


@pytest.mark.parametrize("concurrency", [1, 4, 100])
@pytest.mark.parametrize("range_bytes", [100, 300, 5000])
def test_a_round_reads_each_byte_once_and_times_each_range(range_bytes, concurrency):
    figures = record(
        rounds(RangedReading(MemoryStorage(CONTENTS), catalog(), range_bytes, concurrency, 1)),
        cores=2,
        peak_memory_bytes=None,
    )
    ranges = sum(-(-len(data) // range_bytes) for data in CONTENTS.values())
    assert figures["ranges"] == {"size_bytes": range_bytes, "concurrency": concurrency, "per_round": ranges}
    assert figures["requests"] == {"GET": 2 * ranges}
    assert figures["latency_count"] == 2 * ranges
    assert (figures["objects"], figures["bytes"]) == (6, 2 * 1351)
    assert figures["verified"] == {"length": 2 * ranges}


def test_each_round_has_an_order_of_its_own_and_the_same_in_the_next_run():
    class Seen(MemoryStorage):
        def _read_range(self, key, start, end):
            self.seen.append((key, start))
            return super()._read_range(key, start, end)

    def orders(seed):
        storage, found = Seen(CONTENTS), []
        workload = RangedReading(storage, catalog(), 100, 1, seed)
        for number in range(2):
            storage.seen = []
            workload.prepare(number)
            storage.seen = []
            workload.run()
            found.append(storage.seen)
        return found

    first = orders(1)
    assert first == orders(1) != orders(2)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1])


def test_an_object_that_is_no_longer_as_it_was_listed_gives_no_figure():
    storage = MemoryStorage(CONTENTS | {"b.bin": b"x" * 250})
    with pytest.raises(CorruptError, match=r"b\.bin"):
        rounds(RangedReading(storage, catalog(), 100, 2, 1))
    with pytest.raises(CorruptError, match=r"b\.bin"):
        rounds(WholeObject(storage, catalog({"b.bin": CONTENTS["b.bin"]}), (100, 2)))


def test_what_a_round_left_out_gives_no_figure():
    workload = RangedReading(MemoryStorage(CONTENTS), catalog(), 100, 2, 1)
    workload.prepare(0)
    workload._reads.pop()
    workload.run()
    with pytest.raises(MeasurementError, match="each byte of the objects once"):
        workload.account()


@pytest.mark.parametrize("ranges", [(300, 2), None])
def test_a_whole_object_is_one_object_in_as_many_reads_as_it_has_ranges(ranges):
    one = {"a.bin": CONTENTS["a.bin"]}
    figures = record(rounds(WholeObject(MemoryStorage(one), catalog(one), ranges)), cores=2, peak_memory_bytes=None)
    reads = 2 * (4 if ranges else 1)
    assert (figures["objects"], figures["bytes"], figures["latency_count"]) == (2, 2000, reads)
    # What it is held against is read outside of the clock, and in no figure.
    assert figures["requests"] == {"GET": reads}
    assert ("ranges" in figures) == bool(ranges)


@pytest.mark.parametrize(("cpu_ns", "bound"), [(10_000_000, False), (60_000_000, True)])
def test_whether_the_client_limits_is_told_by_what_a_range_takes_it_not_the_whole_object(cpu_ns, bound):
    # A hundred ranges, a millisecond each, of one object.
    tally = Tally(array("q", [1_000_000] * 100), 100)
    one = Round(1, tally, in_flight=1, wall_ns=100_000_000, process_cpu_ns=cpu_ns)
    assert record([one], cores=2, peak_memory_bytes=None)["client_bound"] is bound


def test_a_whole_object_that_is_not_what_a_plain_read_gives_is_an_error():
    class Mixed(MemoryStorage):
        def _read_range(self, key, start, end):
            part = super()._read_range(key, start, end)
            return part._replace(data=part.data[::-1]) if start == 300 else part

    one = {"a.bin": CONTENTS["a.bin"]}
    with pytest.raises(MeasurementError, match=r"a\.bin: its ranges are not what a plain read of it gives"):
        rounds(WholeObject(Mixed(one), catalog(one), (300, 2)))


def test_large_objects_are_all_below_a_place_whatever_their_name_and_alike_on_every_storage(tmp_path):
    (tmp_path / "ckpt" / "deep").mkdir(parents=True)
    contents = {"model.pt": b"x" * 50, ".hidden": b"x" * 7, "deep/opt.bin": b"x" * 60, "empty": b""}
    for name, data in contents.items():
        (tmp_path / "ckpt" / name).write_bytes(data)
    files = list_large(FsStorage(), [f"{tmp_path}/ckpt/"])
    held = MemoryStorage({f"run/{name}": data for name, data in contents.items()}, name="aws")
    objects = list_large(held, ["run/"])
    assert [objects.key(i) for i in range(3)] == ["run/.hidden", "run/deep/opt.bin", "run/model.pt"]
    assert files.hash() == objects.hash()
    # A file is itself alone, not what else begins as it does.
    (tmp_path / "ckpt" / "model.pt.bak").write_bytes(b"x")
    one = list_large(FsStorage(), [f"{tmp_path}/ckpt/model.pt"])
    assert [one.key(i) for i in range(len(one))] == [f"{tmp_path}/ckpt/model.pt"]
    # A prefix of S3 is what the keys begin with.
    assert len(list_large(held, ["run/m"])) == 1


def test_a_place_without_an_object_is_named():
    with pytest.raises(CatalogError, match=r"none/: .*storage\.s3\.large_prefix"):
        list_large(MemoryStorage({"run/x": b""}, name="aws"), ["none/"])


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(8 * 2**20, "8MiB"), (2**16, "64KiB"), (1000, "1000B"), (2**20 + 1, "1048577B")]
)
def test_sizes_are_told_exactly(size_bytes, text):
    assert size_text(size_bytes) == text

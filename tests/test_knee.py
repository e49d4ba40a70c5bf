"""The knee: on given curves, and of raw reads and of loaders over a storage in memory."""

import json
import time

import pytest
from fakes import MemoryStorage, VirtualLoader, VirtualTime, make_catalog, make_contents
from hypothesis import example, given
from hypothesis import strategies as st

from dnnbench import knee, sampling
from dnnbench.config import Config, expand_settings
from dnnbench.errors import MeasurementError
from dnnbench.knee import GROWTH, NEAR, LoaderKnee, ReadKnee, Step, find_knee
from dnnbench.metrics import Tally, record

COUNT = 32


def found(rates, p99_ms=(), most=1024, bound_ms=None):
    """The knee of a curve that is given level by level, the last one's figures standing for those beyond it."""
    asked = []

    def measure(level):
        number = min(len(asked), len(rates) - 1)
        asked.append(level)
        worst_ms = p99_ms[min(number, len(p99_ms) - 1)] if p99_ms else 1.0
        return Step(level, rates[number], worst_ms / 2, worst_ms)

    result = find_knee(measure, most, bound_ms)
    assert [step.level for step in result.curve] == asked
    return result


def level_of(result):
    return result.step and result.step.level


@pytest.mark.parametrize(
    ("rates", "knee_level", "last_level", "stopped_by"),
    [
        ([100, 200, 400, 400, 400], 4, 16, "throughput"),
        ([100, 100, 100], 1, 4, "throughput"),
        ([100, 200, 390, 400, 405], 4, 16, "throughput"),  # within 5 % of the highest
        ([100, 200, 200, 300, 300, 300], 8, 32, "throughput"),  # one flat step is no end
        ([100, 200, 150, 100], 2, 8, "throughput"),
        ([100, 105, 110.25, 115.7], 2, 4, "throughput"),
        ([100, 106, 113, 121, 121, 121], 8, 32, "throughput"),
        ([100 * 2**i for i in range(11)], 1024, 1024, "most"),
    ],
)
def test_known_curves_have_their_knee(rates, knee_level, last_level, stopped_by):
    result = found(rates)
    assert (result.step.level, result.curve[-1].level, result.stopped_by) == (knee_level, last_level, stopped_by)


@pytest.mark.parametrize(
    ("bound_ms", "knee_level", "last_level", "stopped_by"),
    [(15, 2, 4, "p99"), (20, 4, 8, "p99"), (5, None, 1, "p99"), (10, 1, 2, "p99"), (1e9, 8, 8, "most")],
)
def test_a_level_beyond_the_bound_ends_the_curve_and_is_not_the_knee(bound_ms, knee_level, last_level, stopped_by):
    result = found([100, 200, 400, 800], p99_ms=[10, 12, 20, 50], most=8, bound_ms=bound_ms)
    assert (level_of(result), result.curve[-1].level, result.stopped_by) == (knee_level, last_level, stopped_by)


@pytest.mark.parametrize("enough_for", [1, 2, 4])
def test_the_curve_ends_where_there_are_too_few_batches_for_more(enough_for):
    result = find_knee(lambda level: Step(level, 100.0 * level, 1.0, 2.0) if level <= enough_for else None, 1024)
    assert (result.step.level, result.curve[-1].level, result.stopped_by) == (enough_for, enough_for, "batches")


def flat_twice(curve):
    """Whether the last two steps brought no more than the best one before them."""
    rates = [step.per_s for step in curve]
    return len(curve) > 2 and all(rates[i] <= GROWTH * max(rates[:i]) for i in (len(curve) - 2, len(curve) - 1))


curves = {
    "rates": st.lists(st.floats(1, 1e6), min_size=1, max_size=12),
    "p99_ms": st.lists(st.floats(0.1, 100), min_size=1, max_size=12),
    "most": st.integers(1, 1024),
    "bound_ms": st.none() | st.floats(0.1, 100),
}


@given(**curves)
@example(rates=[1.0, 2.0, 4.0], p99_ms=[1.0, 9.0], most=4, bound_ms=5.0)
@example(rates=[1.0], p99_ms=[1.0], most=1024, bound_ms=None)
def test_any_curve_has_a_knee_within_the_bound_if_any_is_and_ends_where_it_should(rates, p99_ms, most, bound_ms):
    result = found(rates, p99_ms, most, bound_ms)
    curve, one = result.curve, result.step
    assert [step.level for step in curve] == [2**i for i in range(len(curve))]
    assert curve[-1].level <= most

    def beyond(step):
        return bound_ms is not None and step.latency_p99_ms > bound_ms

    within = [step for step in curve if not beyond(step)]
    assert one in within or (one is None and not within)
    if one:
        # The lowest of those that give nearly all there is.
        highest_per_s = max(step.per_s for step in within)
        assert one.per_s >= NEAR * highest_per_s
        assert all(step.per_s < NEAR * highest_per_s for step in within if step.level < one.level)
    # None before the last one was a reason to stop; the last one was, or there are no more.
    for end in range(1, len(curve)):
        assert not beyond(curve[end - 1])
        assert not flat_twice(curve[:end])
    if beyond(curve[-1]):
        assert result.stopped_by == "p99"
    elif flat_twice(curve):
        assert result.stopped_by == "throughput"
    else:
        assert result.stopped_by == "most"
        assert 2 * curve[-1].level > most


@pytest.mark.parametrize("unit", ["concurrency", "num_workers"])
def test_the_record_has_the_knee_and_the_way_there(unit):
    told = found([100, 200, 210], most=4).record(unit)
    assert told == {
        unit: 2,
        "per_s": 200,
        "latency_p99_ms": 1,
        "stopped_by": "most",
        "curve": [
            {"level": level, unit: level, "per_s": rate, "latency_p50_ms": 0.5, "latency_p99_ms": 1}
            for level, rate in ((1, 100), (2, 200), (4, 210))
        ],
    }


# -- of raw reads ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(knee, "MOST_IN_FLIGHT", 4)
    monkeypatch.setattr(sampling, "LEAST_READING_S", 0.01)


class FarStorage(MemoryStorage):
    """Each read takes a while, whatever else is read."""

    one_core = False

    def _read(self, key, size_bytes):
        time.sleep(0.01)
        return super()._read(key, size_bytes)


def timed(workload, storage):
    """(the record of a workload's one round, the keys that were read in it)."""
    workload.prepare(0)
    storage.log.unlink(missing_ok=True)
    start_ns = time.perf_counter_ns()
    workload.run()
    wall_ns = time.perf_counter_ns() - start_ns
    finished = workload.account()
    finished.wall_ns = wall_ns
    return record([finished], cores=2, peak_memory_bytes=None), storage.logged()


def test_of_a_storage_that_waits_the_knee_of_reads_is_the_most_that_are_tried(tmp_path):
    storage = FarStorage(make_contents(COUNT), name="aws", log=tmp_path / "log")
    catalog = make_catalog(storage.contents)
    workload = ReadKnee(storage, catalog, Config(), None)
    figures, read = timed(workload, storage)
    told = figures["knee"]
    assert (told["concurrency"], told["stopped_by"], workload.what) == (4, "most", "read knee c4")
    assert [point["concurrency"] for point in told["curve"]] == [1, 2, 4]
    for point in told["curve"]:
        assert point["client_bound"] is False
        assert 0 < point["latency_p50_ms"] <= point["latency_p99_ms"]
    assert json.loads(json.dumps(told)) == told
    # Once each in the timed round, in an order of its own, as any other read.
    assert sorted(read) == sorted(storage.contents)
    assert (figures["objects"], figures["bytes"], figures["rounds"]) == (COUNT, catalog.total_bytes, 1)
    assert "client_bound" in figures


def test_a_bound_that_no_read_keeps_has_no_knee(tmp_path):
    storage = MemoryStorage(make_contents(COUNT), name="aws", log=tmp_path / "log")
    workload = ReadKnee(storage, make_catalog(storage.contents), Config(), 1e-9)
    figures, read = timed(workload, storage)
    told = figures["knee"]
    assert [told[key] for key in ("concurrency", "per_s", "latency_p99_ms")] == [None] * 3
    assert (told["stopped_by"], len(told["curve"]), workload.what) == ("p99", 1, "read c1, no knee")
    assert sorted(read) == sorted(storage.contents)


def test_a_read_that_fails_on_the_way_is_raised(tmp_path):
    from dnnbench.storage.errors import NotFoundError

    contents = make_contents(COUNT)
    storage = MemoryStorage(contents, name="aws", log=tmp_path / "log")
    del storage.contents["roses/0010.png"]
    with pytest.raises(NotFoundError, match=r"roses/0010\.png"):
        ReadKnee(storage, make_catalog(contents), Config(), None).prepare(0)


# -- of a loader -----------------------------------------------------------------------------------


class Loaders:
    """Makes loaders over virtual workers, of which no more than ``useful`` help."""

    def __init__(self, useful=4, fails_at=None):
        self.clock, self.useful, self.fails_at, self.made, self.asked = VirtualTime(), useful, fails_at, [], []

    def __call__(self, config, catalog):
        framework = config.framework
        tensorflow = framework.tensorflow
        self.asked.append((framework.pytorch.loader.num_workers, tensorflow.num_parallel_calls, tensorflow.concurrency))
        level = max(self.asked[-1])
        made = VirtualLoader(self.clock, catalog, framework.batch_size, 10_000_000, workers=min(level, self.useful))
        if level == self.fails_at:
            made._unpack = self._fail
        self.made.append(made)
        return made

    def _fail(self, received, epoch):
        raise MeasurementError("a worker died")


def loader_knee(loaders, framework, bound_ms=None, batch_size=1, **tensorflow):
    contents = make_contents(COUNT)
    # The least of each, so that a level is the largest of what a loader is asked for.
    settings = ["framework.PyTorch.DataLoader.num_workers=0", "framework.TensorFlow.num_parallel_calls=0"]
    settings += ["framework.TensorFlow.concurrency=1", f"framework.batch_size={batch_size}"]
    settings += [f"framework.TensorFlow.{key}={value}" for key, value in tensorflow.items()]
    config = expand_settings({}, settings)[0].config
    storage = MemoryStorage(contents, name="aws")
    return LoaderKnee(storage, make_catalog(contents), config, loaders, framework, bound_ms)


@pytest.mark.parametrize(
    ("framework", "reading", "unit", "place"),
    [
        ("torch", "plain", "num_workers", 0),
        ("tf", "plain", "num_parallel_calls", 1),
        ("tf", "concurrent", "concurrency", 2),
    ],
)
def test_a_loaders_knee_is_where_more_workers_bring_no_more(framework, reading, unit, place, monkeypatch):
    monkeypatch.setattr(knee, "MOST_IN_FLIGHT", 1024)
    loaders = Loaders()
    workload = loader_knee(loaders, framework, reading=reading)
    with loaders.clock.passing():
        workload.prepare(0)
        workload.run()
        finished = workload.account()
    told = finished.knee
    assert (told[unit], told["per_s"], told["stopped_by"]) == (4, pytest.approx(400), "throughput")
    assert [(point[unit], point["per_s"]) for point in told["curve"]] == [
        (level, pytest.approx(100 * min(level, 4))) for level in (1, 2, 4, 8, 16)
    ]
    assert "client_bound" not in told["curve"][0]
    # What is timed is one epoch of a loader at the knee, and only that framework's setting was changed.
    levels = [1, 2, 4, 8, 16, 4]
    assert loaders.asked == [tuple(level if i == place else (0, 0, 1)[i] for i in range(3)) for level in levels]
    assert [epoch.samples for epoch in finished.epochs] == [COUNT]
    assert workload.what == f"{framework} loader knee {'w' if framework == 'torch' else 'c'}4"
    # Each is gone before the next one starts, and the last one when the benchmark is over.
    assert [one.closed for one in loaders.made] == [1] * 5 + [0]
    workload.close()
    assert all(one.closed == 1 and one.started for one in loaders.made)


@pytest.mark.parametrize(
    ("batch_size", "levels", "stopped_by"), [(1, [1, 2, 4, 8, 16], "batches"), (2, [1, 2, 4, 8], "batches"),
        (8, [1, 2], "batches"), (20, [1], "batches"), (64, [1], "batches")],
)  # fmt: skip
def test_there_is_no_level_whose_workers_have_less_than_two_batches_each(batch_size, levels, stopped_by):
    loaders = Loaders(useful=64)
    workload = loader_knee(loaders, "torch", batch_size=batch_size)
    with loaders.clock.passing():
        workload.prepare(0)
    workload.close()
    assert [workers for workers, *_ in loaders.asked][:-1] == levels
    assert (workload._knee.step.level, workload._knee.stopped_by) == (levels[-1], stopped_by)


def test_each_worker_has_as_many_batches_as_the_others():
    """Of five batches for two workers, one would have none while the other reads its third."""
    loaders = Loaders()
    workload = loader_knee(loaders, "torch", batch_size=6)
    with loaders.clock.passing():
        workload.prepare(0)
    workload.close()
    assert [len(one) for one in loaders.made[:-1]] == [5, 4]
    assert [len(set(one.catalog.items(range(len(one.catalog))))) for one in loaders.made[:-1]] == [30, 24]


def test_more_workers_than_a_share_has_batches_for_get_a_larger_one(monkeypatch):
    monkeypatch.setattr(knee, "share_of_catalog", lambda storage, catalog, *_: (catalog.select([0, 1]), None))
    loaders = Loaders(useful=64)
    workload = loader_knee(loaders, "torch", batch_size=2)
    with loaders.clock.passing():
        workload.prepare(0)
    workload.close()
    assert [len(one) for one in loaders.made[:-1]] == [2, 4, 8, 16]
    assert workload._knee.stopped_by == "batches"


def test_batches_that_run_out_on_the_way_end_the_curve_and_lose_nothing():
    """In sequential order each worker leaves out what makes no whole batch: more workers than batches have nothing."""
    from dnnbench.training import torch_build

    storage = MemoryStorage(make_contents(COUNT), name="aws")
    catalog = make_catalog(storage.contents)
    # No process is started for that: what is wrong with a loader shows when it is made.
    settings = ["framework.batch_size=8", "framework.PyTorch.DataLoader.drop_last=true"]
    config = expand_settings({}, settings)[0].config
    loaders, checked = Loaders(useful=64), []

    def make_loader(config, part):
        checked.append(torch_build.make_loader(config, storage, part, "sequential").expected_samples)
        return loaders(config, part)

    workload = LoaderKnee(storage, catalog, config, make_loader, "torch", None)
    with loaders.clock.passing():
        workload.prepare(0)
    workload.close()
    assert checked == [COUNT, COUNT, COUNT]
    assert workload._knee.stopped_by == "batches"


def test_a_dataset_that_reads_past_the_storage_is_one_line():
    loaders = Loaders()
    workload = loader_knee(loaders, "torch")

    def past_the_storage(config, catalog):
        made = loaders(config, catalog)
        unpack = made._unpack

        def unread(received, epoch):
            tally, epoch.tally = epoch.tally, Tally()
            batch = unpack(received, epoch)
            epoch.tally = tally
            return batch

        made._unpack = unread
        return made

    workload._make_loader = past_the_storage
    with loaders.clock.passing(), pytest.raises(MeasurementError, match=r"0 objects were read at the storage for 32"):
        workload.prepare(0)
    workload.close()
    assert [one.closed for one in loaders.made] == [1]


@pytest.mark.parametrize(("bound_ms", "asked", "level"), [(9, [1, 1], None), (10, [1, 2, 4, 8, 16, 4], 4)])
def test_a_bound_that_no_loader_keeps_has_no_knee(bound_ms, asked, level):
    # A read takes ten milliseconds there.
    loaders = Loaders()
    workload = loader_knee(loaders, "torch", bound_ms)
    with loaders.clock.passing():
        workload.prepare(0)
    assert [workers for workers, *_ in loaders.asked] == asked
    assert level_of(workload._knee) == level
    assert workload.what == f"torch loader {f'knee w{level}' if level else 'w1, no knee'}"
    workload.close()


def test_a_loader_that_fails_on_the_way_is_closed():
    loaders = Loaders(fails_at=2)
    workload = loader_knee(loaders, "torch")
    with loaders.clock.passing(), pytest.raises(MeasurementError, match="a worker died"):
        workload.prepare(0)
    workload.close()
    assert [one.closed for one in loaders.made] == [1, 1]


def test_the_knee_of_a_real_loader_reads_every_object_once_and_its_workers_end(tmp_path, monkeypatch):
    import psutil

    from dnnbench.training import torch_build

    monkeypatch.setattr(knee, "MOST_WORKERS", 1)
    storage = MemoryStorage(make_contents(COUNT), name="aws", log=tmp_path / "log")
    catalog = make_catalog(storage.contents)

    def make_loader(config, part):
        return torch_build.make_loader(config, storage, part, "random")

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    config = expand_settings({}, ["framework.batch_size=4"])[0].config
    workload = LoaderKnee(storage, catalog, config, make_loader, "torch", None)
    try:
        figures, read = timed(workload, storage)
    finally:
        workload.close()
    assert figures["knee"]["num_workers"] == 1
    assert figures["knee"]["stopped_by"] == "most"
    assert sorted(read) == sorted(storage.contents)
    assert "client_bound" not in figures
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before and c.is_running()]
    assert not [c for c in left if "spawn_main" in " ".join(c.cmdline())]

"""Metrics: nothing is lost on the way into a record, and every figure is what its name says."""

import copy
import json
import pickle
import re
from array import array
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import MemoryStorage, make_catalog, make_contents
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.config import Config, Variant
from dnnbench.datasets.passes import MemoryBatches
from dnnbench.errors import MeasurementError
from dnnbench.metrics import (
    NS,
    EpochFigures,
    Inference,
    Round,
    Tally,
    check_pass,
    client_bound,
    percentiles_ms,
    record,
)
from dnnbench.metrics_curves import MOST_SLICES, SHARES, course, latency_curve

MIB = 1024 * 1024
S = 1_000_000_000
PERCENT = {"p50": Fraction(50), "p90": Fraction(90), "p99": Fraction(99), "p99_9": Fraction(999, 10)}

SHARES_OF = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}

counts = st.integers(0, 2**40)
latencies = st.lists(st.integers(0, 10**13), max_size=20).map(lambda values: array("q", values))
requests = st.dictionaries(st.sampled_from(["GET", "LIST", "HEAD", "READ"]), st.integers(1, 99)).map(Counter)
not_by_length = st.dictionaries(st.sampled_from(["nothing", "manifest", "server"]), counts).map(Counter)
tallies = st.builds(Tally, latencies, counts, requests, counts, counts, counts, not_by_length)


def merged(*parts):
    total = Tally()
    for part in parts:
        total += part
    return total


@given(tallies, tallies, tallies)
def test_merging_is_associative(a, b, c):
    assert merged(merged(a, b), c) == merged(a, merged(b, c))


@given(st.lists(tallies, max_size=4))
def test_merging_and_pickling_lose_nothing_and_leave_the_parts_alone(parts):
    before = copy.deepcopy(parts)
    total = merged(*parts)
    assert parts == before
    assert list(total.latency_ns) == [value for part in parts for value in part.latency_ns]
    for name in ("read_bytes", "retries", "errors", "own_reads"):
        assert getattr(total, name) == sum(getattr(part, name) for part in parts)
    for verb in ("GET", "LIST", "HEAD", "READ"):
        assert total.requests[verb] == sum(part.requests[verb] for part in parts)
    for against in ("nothing", "manifest", "server"):
        assert total.not_by_length[against] == sum(part.not_by_length[against] for part in parts)
    assert pickle.loads(pickle.dumps(total)) == total  # noqa: S301 (our own bytes)


def nearest_rank(values, share):
    """The smallest value that at least ``share`` percent of the values do not exceed."""
    return sorted(values)[-(-len(values) * share // 100) - 1]


def assert_percentiles(values):
    figures = percentiles_ms(array("q", values))
    assert figures.pop("latency_count") == len(values)
    assert figures.pop("latency_max_ms") == max(values) / 1e6
    assert figures == {f"latency_{name}_ms": nearest_rank(values, share) / 1e6 for name, share in PERCENT.items()}


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300))
def test_percentiles_are_values_of_the_nearest_rank(values):
    assert_percentiles(values)


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000, 1001, 10_000])
def test_percentiles_have_the_exact_rank_where_it_is_a_whole_number(count):
    assert_percentiles(np.random.default_rng(count).permutation(count).tolist())


def test_percentiles_of_nothing_are_left_out_and_the_count_says_so():
    assert percentiles_ms(array("q")) == {"latency_count": 0}


def nearest_rank_of_millionths(values, share):
    return sorted(values)[max(-(-len(values) * share // 1_000_000) - 1, 0)]


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300))
def test_the_curve_of_latencies_has_the_exact_ranks_and_agrees_with_the_percentiles(values):
    curve = latency_curve(array("q", values))
    assert curve == [[share / 1e6, nearest_rank_of_millionths(values, share) / 1e6] for share in SHARES]
    assert (curve[0][1], curve[-1]) == (min(values) / 1e6, [1.0, max(values) / 1e6])
    told, figures = dict(curve), percentiles_ms(array("q", values))
    for name, share in SHARES_OF.items():
        assert told[share] == figures[f"latency_{name}_ms"]


@pytest.mark.parametrize("count", [1, 2, 1000, 10_000])
def test_the_curve_has_the_exact_rank_where_it_is_a_whole_number(count):
    values = np.random.default_rng(count).permutation(count).tolist()
    assert [ms for _, ms in latency_curve(array("q", values))] == [
        nearest_rank_of_millionths(values, share) / 1e6 for share in SHARES
    ]


def test_the_curve_of_nothing_is_empty_and_a_listing_has_none():
    assert latency_curve(array("q")) == []
    assert "latency_curve" not in measured(Round(3, Tally(), listed_bytes=7, wall_ns=S))
    assert measured(reading(2), reading(3))["latency_curve"][-1] == [1.0, 1.0]


times = st.lists(st.integers(0, 10**10), min_size=1, max_size=400)


@given(times, times, st.booleans())
def test_the_course_of_an_epoch_loses_no_time_and_no_batch(waits, computes, ended):
    batches = len(waits)
    told = course(batches, waits + [7] * ended, computes[:batches])
    assert sum(told["batches"]) == batches
    assert len(told["batches"]) == len(told["waiting_s"]) == len(told["computing_s"]) == min(batches, MOST_SLICES)
    assert max(told["batches"]) - min(told["batches"]) <= 1
    assert sum(told["waiting_s"]) == pytest.approx((sum(waits) + 7 * ended) / NS, rel=1e-12)
    assert sum(told["computing_s"]) == pytest.approx(sum(computes[:batches]) / NS, rel=1e-12)


def test_a_slice_of_the_course_has_the_times_of_its_own_batches():
    few = course(3, [1 * S, 2 * S, 3 * S, S], [10 * S, 20 * S, 30 * S])
    assert few == {"batches": [1, 1, 1], "waiting_s": [1, 2, 4], "computing_s": [10, 20, 30]}
    many = course(200, range(200), [0] * 200)
    assert many["waiting_s"] == [(4 * number + 1) / NS for number in range(100)]


def test_a_loop_is_metered_batch_by_batch():
    loader = MemoryBatches([(np.zeros(2), np.zeros(2))] * 5)
    for _ in loader:
        pass
    (epoch,) = loader.take_epochs()
    # A sixth wait found that there is no more.
    assert (len(epoch.waits_ns), len(epoch.computes_ns)) == (6, 5)
    assert (sum(epoch.waits_ns), sum(epoch.computes_ns)) == (epoch.wait_ns, epoch.compute_ns)


def reading(objects=2, size=MIB, wall_s=1, **others):
    tally = Tally(array("q", [10**6] * objects), objects * size, Counter(GET=objects))
    return Round(objects, tally, wall_ns=int(wall_s * S), **{"cache": "cold", **others})


def measured(*rounds, cores=2, peak_memory_bytes=5 * MIB, **others):
    return record(rounds, cores=cores, peak_memory_bytes=peak_memory_bytes, **others)


def test_rates_are_total_over_total():
    figures = measured(reading(100, wall_s=1), reading(100, wall_s=4))
    assert figures["objects_per_s"] == pytest.approx(40)  # the mean of the rounds' rates is 62.5
    assert figures["mib_per_s"] == pytest.approx(40)
    assert (figures["objects"], figures["bytes"], figures["wall_s"]) == (200, 200 * MIB, 5)
    assert [one["objects_per_s"] for one in figures["per_round"]] == [100, 25]


def test_a_mib_is_1024_times_1024_bytes():
    figures = measured(reading(1, size=3 * MIB, wall_s=2))
    assert (figures["mib_per_s"], figures["peak_memory_mib"]) == (1.5, 5)
    assert measured(reading(), peak_memory_bytes=None)["peak_memory_mib"] is None


def test_requests_retries_and_latencies_are_those_of_all_rounds():
    one, two = reading(3), reading(4)
    one.tally.retries, two.tally.retries, two.tally.errors, two.tally.own_reads = 2, 3, 1, 4
    figures = measured(one, two)
    assert (figures["latency_count"], figures["requests"]) == (7, {"GET": 7})
    assert (figures["retries"], figures["errors"], figures["own_reads"]) == (5, 1, 4)


def test_processor_time_is_this_process_and_its_workers_and_that_of_others_is_told_apart():
    rounds = [reading(2, process_cpu_ns=S, worker_cpu_ns=2 * S), reading(2, process_cpu_ns=3 * S, others_cpu_ns=S)]
    figures = measured(*rounds, cores=4)
    assert figures["cpu_share"] == pytest.approx(6 / (2 * 4))
    assert figures["others_cpu_share"] == pytest.approx(1 / (2 * 4))
    assert figures["cpu_s_per_object"] == pytest.approx(6 / 4)
    assert measured(reading(0, process_cpu_ns=S))["cpu_s_per_object"] is None


@pytest.mark.parametrize(
    ("states", "state"),
    [("cold cold", "cold"), ("warm", "warm"), ("cold warm", "unknown"), ("cold cold unknown", "unknown")],
)
def test_a_cache_state_is_that_of_every_round(states, state):
    assert measured(*(reading(cache=one) for one in states.split()))["cache"] == state


def test_a_listing_has_listed_bytes_and_reads_none():
    figures = measured(Round(3, Tally(requests=Counter(LIST=1)), listed_bytes=7, wall_ns=S))
    assert (figures["listed_bytes"], figures["per_round"][0]["listed_bytes"]) == (7, 7)
    for part in (figures, figures["per_round"][0]):
        assert not {key for key in part if key == "bytes" or key.startswith(("latency", "mib"))}


def epoch(samples=10, wall_s=2, wait_s=1, first_s=0.5, **learned):
    times = [int(t * S) for t in (wall_s, wait_s, wall_s - wait_s, first_s)]
    batches = {"batches": 2, "waits_ns": [times[1] - 1, 1], "computes_ns": [times[2], 0]}
    return EpochFigures(samples, samples * MIB, *times, **batches, **learned)


def training():
    epochs = [epoch(10, 1, 1, 0.25, loss=3.0, accuracy=0.1), epoch(10, 4, 1, 0.75, loss=2.0, accuracy=0.5)]
    # What a trainer does between its epochs is part of the round's time and of no epoch's.
    return [reading(10, wall_s=2, epochs=epochs[:1]), reading(10, wall_s=6, epochs=epochs[1:])]


def test_loaders_tell_waiting_and_computing_as_totals():
    figures = measured(*training(), worker_start_s=1.5)
    expected = {"samples": 20, "samples_per_s": 2.5, "waiting_s": 2, "computing_s": 3, "waiting_share": 0.25}
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert (figures["first_batch_s"], figures["worker_start_s"]) == (0.25, 1.5)


def test_epochs_count_from_one_over_all_rounds_and_the_last_one_tells_loss_and_accuracy():
    figures = measured(*training())
    assert [(e["epoch"], e["loss"], e["mib_per_s"]) for e in figures["epochs"]] == [(1, 3, 10), (2, 2, 2.5)]
    assert (figures["loss"], figures["accuracy"]) == (2.0, 0.5)


def test_what_was_not_learned_is_left_out():
    figures = measured(reading(epochs=[epoch()]))
    for part in (figures, figures["epochs"][0]):
        assert not {"loss", "accuracy"} & set(part)


def inference():
    passes = [
        Inference([[9, 1, 0], [0, 0, 0]], array("q", [1 * S, 2 * S])),
        Inference([[1, 9, 0], [20, 0, 0]], array("q", [3 * S])),
    ]
    return [reading(epochs=[epoch()], inference=one) for one in passes]


def test_predictions_are_summed_over_the_rounds():
    figures = measured(*inference())
    assert figures["confusion"] == [[10, 10], [20, 0]]
    assert figures["accuracy"] == pytest.approx(10 / 40)  # the mean of the rounds' accuracies is 0.47
    assert (figures["batch_latency_count"], figures["latency_count"]) == (3, 4)
    assert (figures["batch_latency_p50_ms"], figures["batch_latency_max_ms"]) == (2000, 3000)


def test_a_prediction_that_is_no_category_is_wrong_and_told_in_a_column_of_its_own():
    one = Inference([[3, 0, 1], [0, 4, 2]], array("q", [S]))
    figures = measured(reading(epochs=[epoch()], inference=one))
    assert figures["confusion"] == [[3, 0, 1], [0, 4, 2]]
    assert figures["accuracy"] == pytest.approx(7 / 10)


@pytest.mark.parametrize(
    "rounds", [[], [reading(wall_s=0)], [reading(epochs=[epoch(wall_s=0, wait_s=0)])]], ids=["none", "round", "epoch"]
)
def test_no_time_is_no_figure(rounds):
    with pytest.raises(MeasurementError, match="took no time"):
        measured(*rounds)


SIZES = np.array([1, 2, 4, 8])


def read(sizes, own_reads=0):
    return Tally(array("q", [1] * len(sizes)), sum(sizes), own_reads=own_reads)


@given(st.permutations(range(4)), st.integers(1, 4), st.integers(-20, 20))
def test_a_pass_is_exact_to_the_byte_or_no_figure(order, count, off):
    indices = np.array(order[:count])
    tally = read(SIZES[indices].tolist())
    check_pass("read", indices, tally, SIZES, count)
    if off:
        tally.read_bytes += off
        with pytest.raises(MeasurementError, match=f"{tally.read_bytes} bytes were read"):
            check_pass("read", indices, tally, SIZES, count)


DIFFERENT = {  # samples that came through, sizes that were read, samples expected
    "too few samples": ([0, 1, 2], [1, 2, 4], 4),
    "too many samples": ([0, 1, 2, 3], [1, 2, 4, 8], 3),
    "one sample twice": ([0, 1, 2, 2], [1, 2, 4, 4], 4),
    "a sample that was not read": ([0, 1, 2, 3], [1, 2, 12], 4),
    "one object in two reads": ([0, 1, 2, 3], [1, 2, 4, 7, 1], 4),
    "a sample outside of the catalog": ([0, 4], [1, 16], 2),
    "one sample twice, once counted from the end": ([3, -1], [8, 8], 2),
    "nothing at all": ([], [], 0),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_pass_that_differs_from_the_catalog_raises(case):
    indices, sizes, expected = DIFFERENT[case]
    with pytest.raises(MeasurementError, match="read: "):
        check_pass("read", np.array(indices, dtype=np.int64), read(sizes), SIZES, expected)


@pytest.mark.parametrize("read_bytes", [899, 1001])
def test_own_reads_may_leave_out_a_little_and_no_more(read_bytes):
    arguments = (np.array([1000]), 1)
    check_pass("read", np.array([0]), read([900], own_reads=1), *arguments)
    with pytest.raises(MeasurementError, match=f"{read_bytes} bytes were read"):
        check_pass("read", np.array([0]), read([read_bytes], own_reads=1), *arguments)


@pytest.mark.parametrize(
    ("verified", "passes"), [({"manifest": 2}, True), ({"manifest": 1, "server": 1}, True), ({"manifest": 1}, False),
                             ({"nothing": 2}, False), ({}, False)], ids=str,
)  # fmt: skip
def test_where_checksums_are_asked_for_each_read_must_have_been_held_against_one(verified, passes):
    tally = Tally(array("q", [1, 1]), 3, not_by_length=Counter(verified))
    assert sum(tally.verified.values()) == 2 - verified.get("nothing", 0)
    check_pass("read", np.array([0, 1]), tally, SIZES, 2)
    if passes:
        check_pass("read", np.array([0, 1]), tally, SIZES, 2, checksums=True)
    else:
        with pytest.raises(MeasurementError, match=r"of 2 objects were held against a checksum"):
            check_pass("read", np.array([0, 1]), tally, SIZES, 2, checksums=True)


KINDS = {
    "listing": lambda: [Round(3, Tally(requests=Counter(LIST=1)), listed_bytes=7, wall_ns=S)],
    "read": lambda: [reading(in_flight=8)],
    "knee": lambda: [reading(in_flight=8, knee={"concurrency": 8})],
    "ranges": lambda: [reading(in_flight=8, ranges={"size_bytes": 8})],
    "ladder": lambda: [reading(epochs=[epoch()], ladder={"verdict": {}})],
    "accelerator": lambda: [reading(epochs=[epoch()], accelerator={"utilization": 1.0})],
    "loader": lambda: [reading(epochs=[epoch()])],
    "training": training,
    "inference": inference,
}
READS, LOADERS = set(KINDS) - {"listing"}, {"loader", "training", "inference", "ladder", "accelerator"}
# What is not in the record of every benchmark, by the beginning of its key.
ONLY_OF = {
    "bytes": READS, "verif": READS, "mib_per_s": READS, "latency": READS, "samples": LOADERS, "first_batch": LOADERS,
    "used_bytes": READS, "first_step": LOADERS, "first_reads": READS, "later_reads": READS, "server_cache": READS,
    "course": LOADERS, "waiting": LOADERS, "computing": LOADERS, "worker_start": LOADERS, "epochs": LOADERS,
    "loss": {"training"}, "accuracy": {"training", "inference"}, "confusion": {"inference"},
    "batch_latency": {"inference"},
    # Those of the run, not of the measuring.
    "finished_utc": set(), "resumed": set(),
    # Of a launch.
    "ranks": set(),
    "client_bound": {"read", "knee", "ranges"}, "knee": {"knee"}, "ladder": {"ladder"}, "ranges": {"ranges"},
    "accelerator": {"accelerator"},
}  # fmt: skip


def documented():
    """The README's table of the record: key -> the text of its row. ``_p90_`` stands for the key before it."""
    section = (Path(__file__).parent.parent / "README.md").read_text().split("### The record")[1].split("\n## ")[0]
    found, whole = {}, ""
    for keys, meaning in re.findall(r"^\| (`.+?) \| (.+) \|$", section, re.MULTILINE):
        for key in re.findall(r"`(.+?)`", keys):
            whole = whole if key.startswith("_") else key
            found[whole.replace("_p50_", key) if key.startswith("_") else key] = meaning
    return found


def complete(kind):
    from dnnbench.ranks import ALONE
    from fixtures.measure import _catalog_read, _identity

    contents = make_contents(2)
    workload = SimpleNamespace(
        what=kind,
        part="all",
        storage=MemoryStorage(contents),
        catalog=make_catalog(contents),
        reads_content=kind in READS,
        has_own_part=False,
    )
    read = _catalog_read(workload, ALONE)
    found = _identity(workload, Config(), Variant(Config()), read) | measured(*KINDS[kind]())
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_tells_every_key_of_the_record(kind):
    found, table = complete(kind), documented()
    assert "`listed_bytes`" in table["bytes"]
    assert sorted(set(found) - set(table) - {"listed_bytes"}) == []
    assert sorted({key for one in found.get("epochs", []) for key in one} - set(table) - {"epoch"}) == []


def test_an_epochs_course_adds_up_to_its_totals():
    for told in complete("training")["epochs"]:
        for key in ("waiting_s", "computing_s"):
            assert sum(told["course"][key]) == pytest.approx(told[key], rel=1e-12)
        assert sum(told["course"]["batches"]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_has_every_key_that_the_readme_tells(kind):
    wanted = {k for k in documented() if all(kind in o for name, o in ONLY_OF.items() if k.startswith(name))}
    assert len(wanted) > 20
    found = complete(kind)
    assert sorted(wanted - set(found) - {key for one in found.get("epochs", []) for key in one}) == []


def test_the_readme_tells_every_key_of_the_catalog():
    assert set(complete("read")["catalog"]) <= set(re.findall(r"`(\w+)`", documented()["catalog"]))


@pytest.mark.parametrize(
    ("others_ns", "wall_ns", "disturbed"),
    [
        (NS, 10 * NS, False),  # 5 % of two cores
        (3 * NS, 10 * NS, True),  # 15 %
        (NS // 20, NS // 10, None),  # 25 %, and within the kernel's ticks
    ],
)
def test_a_run_beside_others_is_called_disturbed(others_ns, wall_ns, disturbed):
    one = Round(1, Tally(), wall_ns=wall_ns, others_cpu_ns=others_ns)
    figures = record([one], cores=2, peak_memory_bytes=None)
    assert figures["disturbed"] is disturbed
    expected = None if disturbed is None else pytest.approx(others_ns / wall_ns / 2)
    assert figures["others_cpu_share"] == expected


READS_OF = {
    "in_flight": 1, "latency_p50_ms": 10.0, "cpu_s_per_object": 0.001, "own_cores": 0.1, "all_cores": 0.2,
    "cores": 4, "one_core": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, False),
        # One at a time, and half of a read or more is the client's own work.
        ({"cpu_s_per_object": 0.00499}, False),
        ({"cpu_s_per_object": 0.005}, True),
        ({"cpu_s_per_object": 0.005, "in_flight": 2}, False),
        # All of the processors that it can use: one, or those of the machine.
        ({"own_cores": 0.8, "one_core": True}, True),
        ({"own_cores": 0.79, "one_core": True}, False),
        ({"own_cores": 0.8, "all_cores": 0.8}, False),
        ({"own_cores": 3.2, "all_cores": 3.2, "in_flight": 32}, True),
        ({"own_cores": 3.19, "all_cores": 3.2, "in_flight": 32}, False),
        # Nobody gets more of a machine that is full, and half of what fills it is the client.
        ({"own_cores": 1.8, "all_cores": 3.6, "in_flight": 32}, True),
        ({"own_cores": 1.79, "all_cores": 3.6, "in_flight": 32}, False),
        ({"own_cores": 2.0, "all_cores": 3.59, "in_flight": 32}, False),
        ({"own_cores": 0.1, "all_cores": 4.0}, False),
    ],
    ids=str,
)
def test_reads_are_limited_by_the_clients_own_processor_time_by_one_of_three_rules(changes, bound):
    assert client_bound(**READS_OF | changes) is bound


shares = st.floats(0, 4)


@given(
    st.integers(1, 64), st.floats(0.01, 100), shares, shares, shares, st.integers(1, 8), st.booleans(), st.floats(1, 3)
)
def test_more_work_of_the_client_never_clears_it(in_flight, p50_ms, cpu_s, own, others, cores, one_core, times):
    given_reads = {
        "in_flight": in_flight, "latency_p50_ms": p50_ms, "cpu_s_per_object": cpu_s, "own_cores": own,
        "all_cores": own + others, "cores": cores, "one_core": one_core,
    }  # fmt: skip
    more = given_reads | {
        "cpu_s_per_object": cpu_s * times, "own_cores": own * times, "all_cores": own * times + others
    }  # fmt: skip
    assert client_bound(**given_reads) <= client_bound(**more)


@pytest.mark.parametrize(
    ("in_flight", "one_core", "cpu_s", "bound"),
    [
        (1, False, 0.04, False),  # of a hundred reads in a second, each of which takes a millisecond
        (1, False, 0.06, True),
        (8, False, 0.9, False),
        (8, True, 0.9, True),
        (8, False, 1.7, True),  # of two cores
    ],
)
def test_the_record_of_raw_reads_tells_whether_the_client_limits_them(in_flight, one_core, cpu_s, bound):
    rounds = [reading(100, in_flight=in_flight, one_core=one_core, process_cpu_ns=int(cpu_s * S)) for _ in range(3)]
    assert measured(*rounds)["client_bound"] is bound


def test_the_work_of_others_counts_where_the_machine_is_full():
    one = reading(100, in_flight=8, process_cpu_ns=int(1.1 * S), others_cpu_ns=int(0.8 * S))
    assert measured(one)["client_bound"] is True
    one.others_cpu_ns = int(0.6 * S)
    assert measured(one)["client_bound"] is False


@pytest.mark.parametrize("kind", ["listing", "loader", "training", "inference"])
def test_what_is_no_raw_read_has_no_such_mark(kind):
    rounds = KINDS[kind]()
    for one in rounds:
        one.process_cpu_ns = 10 * S
    assert "client_bound" not in measured(*rounds)
    assert "client_bound" not in measured(reading(0, in_flight=1))


@pytest.mark.parametrize("name", ["ladder", "accelerator", "knee"])
def test_what_a_round_found_goes_into_the_record_and_only_there(name):
    figures = measured(reading(**{name: {"found": 1}}))
    assert figures[name] == {"found": 1}
    assert {"ladder", "accelerator", "knee"} & set(figures) == {name}
    assert not {"ladder", "accelerator", "knee"} & set(measured(reading()))

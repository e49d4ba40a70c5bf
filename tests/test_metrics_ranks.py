"""Several ranks' rounds as one: sums over the time of all, merged latencies, who was slowest, what more ranks bring."""

from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.errors import MeasurementError
from dnnbench.metrics import EpochFigures, Inference, Round, Tally, percentiles_ms, record
from dnnbench.metrics_ranks import RankRound, merged, ranks_record, scaling
from dnnbench.metrics_rounds import Machine

MS = 1_000_000


def tally(latencies_ms, read_bytes=0):
    return Tally(array("q", [round(ms * MS) for ms in latencies_ms]), read_bytes, Counter(GET=len(latencies_ms)))


def part(rank, samples, start_ms, end_ms, host="a", leads=None, **more):
    one = Round(len(samples), tally([1.0] * len(samples), 10 * len(samples)), indices=[np.array(samples, np.int64)])
    for name, value in more.pop("round", {}).items():
        setattr(one, name, value)
    return RankRound(rank, host, rank == 0 if leads is None else leads, start_ms * MS, end_ms * MS, 0, 0, one, **more)


def test_a_round_is_all_that_was_read_from_the_first_start_to_the_last_end():
    together = merged("read", [part(0, [0, 1], 100, 150), part(1, [2, 3, 4], 110, 200)])
    assert (together.objects, together.content_bytes, together.wall_ns) == (5, 50, 100 * MS)
    assert together.tally.requests == {"GET": 5}


def test_another_hosts_clock_is_put_right_before_times_are_compared():
    other = part(1, [1], 5, 25, host="b", leads=True)
    other.offset_ns, other.clock_error_ns = 1000 * MS, 2 * MS
    together = merged("read", [part(0, [0], 1000, 1010), other])
    assert together.wall_ns == 25 * MS
    assert ranks_record([together], 4)["clock_error_ms"] == 2


@given(st.lists(st.lists(st.integers(1, 10_000), min_size=1, max_size=30), min_size=1, max_size=6))
def test_percentiles_are_those_of_all_reads_together(latencies):
    parts, at = [], 0
    for rank, values in enumerate(latencies):
        parts.append(part(rank, list(range(at, at + len(values))), 0, 10, round={"tally": tally(values, 0)}))
        at += len(values)
    together = merged("read", parts)
    assert percentiles_ms(together.tally.latency_ns) == percentiles_ms(
        tally([ms for values in latencies for ms in values]).latency_ns
    )


def test_a_sample_that_came_to_two_ranks_is_an_error():
    with pytest.raises(MeasurementError, match="sample 3 came to two ranks in one pass"):
        merged("read", [part(0, [0, 3], 0, 1), part(1, [3, 4], 0, 1)])


def test_the_same_sample_in_two_passes_is_right():
    passes = {"indices": [np.array([0]), np.array([1])]}
    others = {"indices": [np.array([1]), np.array([0])]}
    assert merged("train", [part(0, [0, 1], 0, 1, round=passes), part(1, [1, 0], 0, 1, round=others)]).objects == 4


def test_ranks_with_different_numbers_of_passes_are_an_error():
    with pytest.raises(MeasurementError, match="different numbers of passes"):
        merged("train", [part(0, [0], 0, 1), part(1, [1], 0, 1, round={"indices": []})])


def epoch(samples, start_ms, wall_ms, wait_ms, loss=None):
    return EpochFigures(
        samples, samples * 10, wall_ms * MS, wait_ms * MS, (wall_ms - wait_ms) * MS, 3 * MS, loss=loss, batches=2,
        waits_ns=array("q", [wait_ms * MS // 2] * 2), computes_ns=array("q", [1, 2]), start_ns=start_ms * MS,
    )  # fmt: skip


def test_epochs_are_one_from_the_first_start_of_each_to_its_last_end_and_waiting_is_a_share_of_all_ranks_time():
    first = {"epochs": [epoch(2, 100, 50, 10, loss=1.0)]}
    second = {"epochs": [epoch(6, 120, 80, 40, loss=2.0)]}
    together = merged("train", [part(0, [0, 1], 100, 150, round=first), part(1, range(2, 8), 120, 200, round=second)])
    (one,) = together.epochs
    assert (one.samples, one.wall_ns, one.wait_ns) == (8, 100 * MS, 50 * MS)
    assert one.loss == pytest.approx((2 * 1.0 + 6 * 2.0) / 8)
    assert list(one.waits_ns) == [25 * MS] * 2
    figures = record([together], cores=4, peak_memory_bytes=None)
    assert figures["waiting_share"] == pytest.approx(50 / 200)
    assert figures["samples_per_s"] == pytest.approx(80)


def test_a_loss_that_only_some_ranks_know_is_none():
    parts = [
        part(0, [0], 0, 1, round={"epochs": [epoch(1, 0, 1, 0, loss=1.0)]}),
        part(1, [1], 0, 1, round={"epochs": [epoch(1, 0, 1, 0)]}),
    ]
    assert merged("train", parts).epochs[0].loss is None


def test_of_each_host_one_rank_tells_what_is_the_hosts():
    def one(rank, host, leads, others_ms, fetched):
        told = {"others_cpu_ns": others_ms * MS, "fetched_bytes": fetched, "fetched_by": "device", "cache": "cold"}
        return part(rank, [rank], 0, 1, host=host, leads=leads, round=told)

    together = merged("read", [one(0, "a", True, 5, 100), one(1, "a", False, 6, 90), one(2, "b", True, 7, 50)])
    assert (together.others_cpu_ns, together.fetched_bytes, together.cache) == (12 * MS, 150, "cold")


def test_what_processes_fetch_adds_up_over_all_ranks():
    told = {"fetched_bytes": 70, "fetched_by": "processes"}
    assert merged("read", [part(rank, [rank], 0, 1, round=told) for rank in range(3)]).fetched_bytes == 210


def test_the_counter_is_that_of_the_ranks_that_tell_of_their_hosts():
    told = [("network lo", "a", True), ("network eth0", "a", False), ("network eth1", "b", True)]
    parts = [
        part(rank, [rank], 0, 1, host=host, leads=leads, round={"fetched_bytes": 5, "fetched_by": by})
        for rank, (by, host, leads) in enumerate(told)
    ]
    together = merged("read", parts)
    assert (together.fetched_bytes, together.fetched_by) == (10, "network eth1; network lo")


def test_counters_of_two_kinds_are_not_added_up():
    parts = [
        part(0, [0], 0, 1, round={"fetched_bytes": 70, "fetched_by": "processes"}),
        part(1, [1], 0, 1, round={"fetched_bytes": 70, "fetched_by": "device"}),
    ]
    assert merged("read", parts).fetched_bytes is None


def test_hosts_in_different_states_have_no_state_together():
    parts = [
        part(0, [0], 0, 1, round={"cache": "cold"}),
        part(1, [1], 0, 1, host="b", leads=True, round={"cache": "warm"}),
    ]
    assert merged("read", parts).cache == "unknown"


def test_a_machine_is_as_disturbed_as_the_worst_host():
    parts = [
        part(0, [0], 0, 1, round={"machine": Machine(1.0, 2000, 3000, 5, 1, 1, {"io": 3})}),
        part(1, [1], 0, 1, host="b", leads=True, round={"machine": Machine(9.0, 1000, 3000, 6, 2, None, {"io": 7})}),
    ]
    assert merged("read", parts).machine == Machine(9.0, 1000, 3000, 11, 3, 1, {"io": 7})


def test_confusions_add_up():
    parts = [
        part(0, [0], 0, 1, round={"inference": Inference([[1, 0, 0], [0, 2, 0]], array("q", [5]))}),
        part(1, [1], 0, 1, round={"inference": Inference([[0, 1, 0], [0, 0, 3]], array("q", [6]))}),
    ]
    together = merged("infer", parts).inference
    assert (together.confusion, list(together.batch_ns)) == ([[1, 1, 0], [0, 2, 3]], [5, 6])


def test_accelerators_are_as_busy_as_the_one_that_waits_most():
    parts = [part(rank, [rank], 0, 1, round={"accelerator": {"utilization": 0.9 - rank / 10}}) for rank in range(2)]
    assert merged("accelerator", parts).accelerator == {"utilization": 0.8}


def test_each_ranks_figures_and_the_slowest_and_the_fastest_are_told():
    rounds = [
        merged("read", [part(0, [0, 1], 0, 10), part(1, [2, 3], 1, 41, host="b", leads=True)]),
        merged("read", [part(0, [2, 3], 0, 10), part(1, [0, 1], 0, 40, host="b", leads=True)]),
    ]
    told = ranks_record(rounds, cores=8)
    assert (told["count"], told["hosts"], told["cores"], told["start_spread_ms"]) == (2, 2, 8, 1)
    assert told["slowest"] == {"rank": 1, "host": "b", "objects_per_s": pytest.approx(50)}
    assert told["fastest"] == {"rank": 0, "host": "a", "objects_per_s": pytest.approx(200)}
    assert [one["objects"] for one in told["per_rank"]] == [4, 4]
    assert sum(one["bytes"] for one in told["per_rank"]) == sum(one.content_bytes for one in rounds)


def scaled(ranks, rate, **more):
    record = {"storage": "aws", "client": "boto3", "what": "torch loader random", "objects_per_s": rate}
    return record | {"swept": {"execution.ranks": str(ranks)}, "ranks": {"count": ranks, "hosts": 1}} | more


def test_efficiency_is_what_a_rank_brings_against_one_of_the_fewest():
    (series,) = scaling([scaled(2, 190.0), scaled(1, 100.0), scaled(4, 300.0)])
    assert [point["ranks"] for point in series["points"]] == [1, 2, 4]
    assert [point["efficiency"] for point in series["points"]] == [1, pytest.approx(0.95), pytest.approx(0.75)]
    assert [point["speed_up"] for point in series["points"]] == [1, pytest.approx(1.9), pytest.approx(3)]


def test_only_what_differs_in_ranks_alone_is_compared():
    assert scaling([scaled(1, 100.0), scaled(2, 100.0, client="obstore")]) == []
    assert scaling([scaled(1, 100.0), scaled(2, 100.0, swept={"execution.ranks": "2", "x": "1"})]) == []
    assert scaling([scaled(1, 100.0)]) == []
    assert scaling([{"storage": "fs"}]) == []

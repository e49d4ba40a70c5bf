"""The table's words: what is beside the figures and below them, for made-up figures."""

import pytest

from dnnbench.knee import Step, find_knee
from dnnbench.notes import answers, warnings
from fixtures.table import layout, row

FIGURES = {
    "storage": "aws", "client": "boto3", "what": "read c8", "swept": {}, "cache": "unknown", "objects_per_s": 1234.5,
    "mib_per_s": 12.34, "latency_p50_ms": 1.5, "latency_p99_ms": 123.4, "errors": 0, "retries": 0,
    "catalog": {"left_out": {}}, "settings": {}, "disturbed": None, "others_cpu_share": None,
}  # fmt: skip
SENTENCE = "decode limits, at 100 samples/s; without it compute would, at 2.0 times that; try first: sleep"
VERDICT = {"limit": "decode", "sentence": SENTENCE, "client_bound": False}
LADDER = {"what": "torch ladder", "ladder": {"verdict": VERDICT}}
BOUND_LADDER = {"what": "torch ladder", "ladder": {"verdict": VERDICT | {"client_bound": True}}}
EMULATED = {"batch_compute_ms": 12.5, "utilization": 0.914, "steps": 8, "warm_up_steps": 2}
FASTEST = EMULATED | {"target": 0.9, "kept_busy": True, "samples_per_s": 2560.0, "trials": [{"utilization": 0.914}]}


def mark(**figures):
    """What is beside the figures."""
    return row(FIGURES | figures)[-1]


def below(*several):
    """What is written below the table."""
    figures = [FIGURES | one for one in several]
    return [*warnings(figures, None), *answers(figures)]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, ""),
        ({"client_bound": False}, ""),
        ({"client_bound": True}, "client-bound"),
        (LADDER, "limit: decode"),
        (BOUND_LADDER, "limit: decode, client-bound"),
        ({"accelerator": FASTEST}, "keeps 2,560/s busy"),
        ({"accelerator": FASTEST | {"kept_busy": False}}, ""),
        # A training with an emulated accelerator of a given speed looks for none.
        ({"accelerator": EMULATED}, ""),
    ],
    ids=["nothing", "not bound", "bound", "ladder", "bound ladder", "accelerator", "not busy", "emulated"],
)
def test_a_mark_stands_at_the_end_of_the_line(figures, expected):
    assert mark(**figures) == expected
    header, line = layout([row(FIGURES | figures)])
    assert line.endswith(expected)
    assert line == line.rstrip()
    assert header.startswith("storage")


def test_nothing_to_say_is_no_line():
    assert below({}, {"client_bound": False}, {"accelerator": EMULATED}) == []


def test_requests_that_were_sent_again_are_told():
    (line,) = below({"retries": 2}, {}, {"retries": 3})
    assert line.startswith("retries: in 2 of 3 benchmarks requests were sent again (5 in all)")


def test_certificates_that_were_not_verified_are_told_once_for_each_client():
    unverified = {"settings": {"verify_tls": False}}
    lines = below(unverified, unverified, unverified | {"client": "obstore"}, {"settings": {"verify_tls": True}})
    assert [line.partition(":")[0] for line in lines] == ["aws (boto3)", "aws (obstore)"]
    assert all("not verified" in line for line in lines)


def test_readings_that_the_client_limits_are_counted_below():
    line, _ = below({"client_bound": True}, {}, BOUND_LADDER, {"client_bound": False})
    assert line.startswith("client-bound: 2 of the readings ")
    assert "nothing about the storage" in line


def test_a_ladder_says_its_sentence_and_whose_it_is():
    assert below(LADDER, {}) == [f"aws (boto3), torch ladder: {SENTENCE}"]


def test_an_accelerator_that_is_kept_busy_is_told_with_its_speed_and_how_busy_it_was():
    (line,) = below({"what": "torch accelerator", "accelerator": FASTEST})
    assert line.startswith("aws (boto3), torch accelerator: the fastest of the accelerators tried ")
    for words in ("kept busy to 90%", " takes 2,560 samples/s (12.5 ms a batch)", "busy 91% of its epoch"):
        assert words in line
    assert "no accelerator" not in line
    assert line.endswith("of its epoch")


def test_an_epoch_too_short_to_leave_its_start_out_is_said_to_be():
    (line,) = below({"what": "torch accelerator", "accelerator": FASTEST | {"warm_up_steps": 0}})
    assert "the wait for its first batches counts" in line


def test_where_none_is_kept_busy_the_line_says_so():
    told = FASTEST | {"kept_busy": False, "utilization": 0.5, "samples_per_s": 40.0, "batch_compute_ms": 800.0}
    (line,) = below({"what": "tf accelerator", "accelerator": told})
    assert line.startswith("aws (boto3), tf accelerator: no accelerator tried is kept busy to 90%; one takes ")
    for words in ("40 samples/s (800 ms a batch)", "busy 50% of its epoch"):
        assert words in line
    assert "fastest" not in line


@pytest.mark.parametrize(
    ("rates", "most", "bound_ms", "why"),
    [
        ([100, 200, 200, 200], 1024, None, "1: 100/s, 2: 200/s, 4: 200/s, 8: 200/s (more bring no more)"),
        ([100, 2000], 2, None, "1: 100/s, 2: 2,000/s (as many as are tried)"),
        ([100, 200], 1024, 15, "1: 100/s, 2: 200/s (more pass the bound of p99)"),
        ([100], 1024, 5, "1: 100/s (no knee: p99 is 10 ms, beyond the bound, already there)"),
        ([100, 200, None], 1024, None, "1: 100/s, 2: 200/s (the data set has too few batches for more)"),
    ],
)
def test_a_knee_is_told_with_the_way_there_and_why_it_ended(rates, most, bound_ms, why):
    def measure(level):
        rate = rates[level.bit_length() - 1]
        return rate and Step(level, rate, 5.0, 10.0 * level)

    found = find_knee(measure, most, bound_ms)
    knee = found.record("concurrency")
    assert below({"what": "read knee c2", "knee": knee}) == [f"aws (boto3), read knee c2: {why}"]


def test_points_of_a_curve_that_the_client_limits_are_marked():
    found = find_knee(lambda level: Step(level, 100.0 * level, 5.0, 10.0, client_bound=level > 1), 4)
    (line,) = below({"what": "read knee c4", "knee": found.record("concurrency")})
    assert " 1: 100/s, 2: 200/s client-bound, 4: 400/s client-bound (" in line


def test_swept_settings_are_beside_what_was_measured():
    assert row(FIGURES | {"swept": {"framework.PyTorch.reading": "plain"}})[2] == "read c8 reading=plain"


def ranks_of(count, hosts=1, slowest_per_s=90.0):
    """The part of a record that tells of ranks."""
    ends = {"slowest": (count - 1, slowest_per_s), "fastest": (0, 100.0)}
    told = {which: {"rank": rank, "host": "h", "objects_per_s": rate} for which, (rank, rate) in ends.items()}
    return {"count": count, "hosts": hosts, **told}


def by_ranks(what, rates, swept=(), **more):
    """Records of a benchmark with so many ranks (its rate by their number)."""
    return [
        {"what": what, "objects_per_s": rate, "swept": {"execution.ranks": str(count), **dict(swept)}}
        | {"ranks": ranks_of(count), **more}
        for count, rate in rates.items()
    ]


def test_what_limits_more_ranks_is_told_of_the_same_settings_only():
    plain, concurrent = {"reading": "plain"}, {"reading": "concurrent"}
    told = below(
        *by_ranks("torch loader random", {1: 10.0, 2: 20.0}, plain),
        *by_ranks("torch loader random", {1: 40.0, 2: 50.0}, concurrent),
        *by_ranks("torch ladder", {2: 20.0}, plain, ladder={"verdict": VERDICT | {"limit": "a", "side": "storage"}}),
        *by_ranks(
            "torch ladder", {2: 50.0}, concurrent, ladder={"verdict": VERDICT | {"limit": "b", "side": "clients"}}
        ),
    )
    by = "by ranks (and efficiency) 1:"
    assert [line for line in told if by in line] == [
        f"aws (boto3), torch loader random reading=plain: {by} 10/s, 2: 20/s (100%); with 2 a limits, which is the "
        "storage's",
        f"aws (boto3), torch loader random reading=concurrent: {by} 40/s, 2: 50/s (62%); with 2 b limits, which is the "
        "clients'",
    ]


def test_ladders_of_several_settings_are_told_apart():
    one, other = (LADDER | {"swept": {"framework.PyTorch.reading": value}} for value in ("plain", "concurrent"))
    assert below(one, other) == [
        f"aws (boto3), torch ladder reading={way}: {SENTENCE}" for way in ("plain", "concurrent")
    ]


def test_of_several_accelerators_it_is_told_which_one_is_meant():
    one, four = (below({"what": "a", "accelerator": FASTEST, "ranks": ranks_of(count)})[0] for count in (1, 4))
    assert four == f"{one}; of 4 ranks each had one, and this is the one that waited most"


def test_a_ladder_on_files_says_nothing_of_shards():
    ladder = by_ranks(
        "torch ladder", {2: 1.0}, {"dataset.format": "files"}, ladder={"verdict": VERDICT | {"side": "x"}}
    )
    told = below(*by_ranks("torch loader random", {1: 10.0, 2: 20.0}, {"dataset.format": "tar"}), *ladder)
    assert [line for line in told if "efficiency" in line and "limits" in line] == []


def test_a_rank_for_which_the_others_wait_is_named():
    (line,) = below(
        {"ranks": ranks_of(4)},
        {"ranks": ranks_of(4, slowest_per_s=60.0)},
        {"what": "read c32", "ranks": ranks_of(4, slowest_per_s=50.0)},
        {"ranks": ranks_of(1)},
    )
    assert line == (
        "ranks: in 2 of 3 benchmarks the slowest rank had less than 67% of the fastest one's rate; most apart, in "
        "read c32: slowest rank 3 on h 50/s, fastest rank 0 on h 100/s"
    )

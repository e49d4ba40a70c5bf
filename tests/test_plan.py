"""The planner: its model of readers, what it reads out of a ladder, its limits, and what it refuses and warns of."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import RESOLVED, record, result, write

from dnnbench.__main__ import main
from dnnbench.config import Config
from dnnbench.diagnosis import Reads
from dnnbench.plan import GETS_PER_PREFIX, Cluster, PlanError, chooses, plan, plan_all
from dnnbench.plan_model import PROCESSORS, STORAGE, WAITING, Measured, closed_rate, predict, readers_for, waiting_s
from dnnbench.plan_text import FORMATS
from dnnbench.results import result_of

TORCH = "test_ladder[aws-obstore-torch-random]"
MS, US = 1e-3, 1e-6
ASKED = Cluster(accelerators=1024, samples_per_s=3000)
SHARES = st.floats(min_value=1e-5, max_value=1.0)


def reads(in_flight, per_s, cpu_us=100.0, own=0.1, both=0.1, latency_ms=15.0):
    return Reads(in_flight, per_s, latency_ms, 1.2 * latency_ms, cpu_us * US, own, both)


def rungs(one=None, loader=None, more=None):
    """Raw reads of a storage 16 ms away, which keeps up."""
    return {
        "one reader": one or reads(1, 62.5),
        "loader": loader or reads(2, 125.0),
        "more": more or reads(8, 500.0),
    }


def measured(**changes):
    told = {
        "readers": 2, "cores": 2, "loader_per_s": 110.0, "cpu_s": 2 * MS, "server_cpu_s": 0.0, "gets_per_sample": 1.0,
        "bytes_per_sample": 72_000.0, "reads": rungs(), "one_core_client": False,
    }  # fmt: skip
    return Measured(**told | changes)


def ladder(reads=None, **changes):
    told = {
        "samples": 512, "reads": {name: dataclasses.asdict(one) for name, one in (reads or rungs()).items()},
        "overhead_per_s": 20_000.0, "memory_per_s": 900.0, "loader_per_s": 110.0, "compute_per_s": 1_000.0,
        "epoch_per_s": 105.0, "loader_latency_p50_ms": 15.5, "cores": 2, "one_core_client": False,
        "loader_cpu_s_per_sample": 2 * MS, "verdict": {},
    }  # fmt: skip
    return told | changes


def climbed(storage="aws", endpoint="http://10.0.0.7:9000", told=None, **figures):
    """The record of a ladder."""
    one = {
        "what": "torch ladder", "ladder": told or ladder(), "samples": 512, "bytes": 512 * 72_000, "retries": 0,
        "requests": {"READ" if storage == "fs" else "GET": 512},
        "settings": {"endpoint": endpoint} if storage != "fs" else {},
        "cache": "cold" if storage == "fs" else "unknown",
    }  # fmt: skip
    return record(storage, "posix" if storage == "fs" else "obstore", **one | figures)


def file_of(benchmarks, config=None, **about):
    resolved = RESOLVED | (config or Config()).resolved()
    about = {"configuration": [{"swept": {}, "hash": "cccc", "resolved": resolved}], **about}
    return result(benchmarks=benchmarks, **about)


def planned(one=None, cluster=ASKED, config=None, **about):
    """The plan of a file with one ladder."""
    made = result_of(file_of({TORCH: one or climbed()}, config, **about), Path("out.json"))
    return plan(made.benchmarks[0], made, cluster)


# -- the model -----------------------------------------------------------------------------------


@given(st.integers(1, 64), SHARES, SHARES, st.integers(1, 16))
def test_a_rate_is_below_what_each_resource_alone_allows_and_above_what_one_queue_of_all_gives(n, wait_s, cpu_s, cores):
    per_s = closed_rate(n, wait_s, cpu_s, cores)
    assert per_s <= min(n / (wait_s + cpu_s), cores / cpu_s) * (1 + 1e-9)
    # The other bound: each reader finds all others before it, at one processor.
    assert per_s >= n / (wait_s + n * cpu_s) * (1 - 1e-9)
    assert closed_rate(n + 1, wait_s, cpu_s, cores) >= per_s * (1 - 1e-9)


def test_the_rate_is_that_of_the_machine_repair_model():
    # Two that wait 3 s and work 1 s at one processor: states (3^2/2 : 3 : 1), idle in the first.
    assert closed_rate(2, 3.0, 1.0, 1) == pytest.approx(1 - 4.5 / 8.5)
    # No queue where there are processors enough.
    assert closed_rate(4, 3.0, 1.0, 4) == pytest.approx(1.0)
    assert closed_rate(3, 0.0, 0.5, 2) == 4.0
    assert closed_rate(3, 0.5, 0.0, 2) == 6.0


@given(st.integers(1, 64), SHARES, SHARES, st.integers(1, 16))
def test_the_wait_is_found_again_in_the_rate(n, wait_s, cpu_s, cores):
    per_s = closed_rate(n, wait_s, cpu_s, cores)
    found_s = waiting_s(n, per_s, cpu_s, cores)
    assert closed_rate(n, found_s, cpu_s, cores) == pytest.approx(per_s, rel=1e-6)


def test_one_rank_is_predicted_as_it_was_measured_and_more_until_the_processors_are_busy():
    told = [predict(measured(), ranks) for ranks in (1, 2, 4, 8, 64)]
    assert told[0].samples_per_s == pytest.approx(110)
    assert told[1].samples_per_s == pytest.approx(220, rel=0.03)
    assert [one.limited_by for one in told[:3]] == [WAITING] * 3
    # 2 processors over 2 ms.
    assert told[-1].samples_per_s == pytest.approx(1000, rel=0.01)
    assert told[-1].limited_by == PROCESSORS


def test_a_server_on_the_same_machine_takes_its_share():
    here, elsewhere = measured(server_cpu_s=3 * MS), measured()
    assert predict(here, 64).samples_per_s == pytest.approx(400, rel=0.01)
    assert predict(here, 1).samples_per_s == pytest.approx(predict(elsewhere, 1).samples_per_s)
    # On two machines it runs on neither.
    assert predict(here, 128, machines=2).samples_per_s == pytest.approx(2000, rel=0.01)


def test_ranks_on_several_machines_share_no_processors():
    alone = predict(measured(), 8, machines=8)
    assert alone.samples_per_s == pytest.approx(8 * 110, rel=1e-6)
    assert predict(measured(), 3, machines=2).samples_per_s < predict(measured(), 3, machines=3).samples_per_s
    assert predict(measured(), 2, machines=4).samples_per_s == pytest.approx(220, rel=1e-6)
    assert predict(measured(), 64, cores=8).samples_per_s > 3 * predict(measured(), 64).samples_per_s


def test_processor_time_beyond_what_the_measured_rate_leaves_is_not_believed():
    # Twice what two processors had for it: someone else's.
    told = measured(loader_per_s=1000.0, server_cpu_s=2 * MS)
    assert predict(told, 1).samples_per_s == pytest.approx(1000)
    assert predict(told, 8).samples_per_s == pytest.approx(1000)


FLAT = rungs(loader=reads(2, 125.0), more=reads(8, 130.0))


def test_a_storage_that_gives_no_more_to_more_reads_is_the_limit():
    told = measured(reads=FLAT, gets_per_sample=2.0, loader_per_s=50.0)
    assert told.ceiling_gets_per_s == 130
    assert predict(told, 8).samples_per_s == 65
    assert predict(told, 8).limited_by == STORAGE


@pytest.mark.parametrize(
    "more",
    [
        reads(8, 130.0, own=0.9, both=0.95),
        reads(8, 130.0, own=0.5, both=1.9),
        reads(3, 130.0),
        reads(8, 200.0),
    ],
    ids=["client-bound", "the machine is busy", "hardly more in flight", "it gave more"],
)
def test_what_something_else_limited_is_no_ceiling(more):
    # The client can use one of the two processors.
    told = measured(reads=rungs(more=more), one_core_client=True)
    assert told.ceiling_gets_per_s is None
    assert predict(told, 8).limited_by != STORAGE


def test_the_fewest_readers_that_are_enough():
    count = readers_for(900.0, 16 * MS, 2 * MS, 2)
    assert closed_rate(count, 16 * MS, 2 * MS, 2) >= 900 > closed_rate(count - 1, 16 * MS, 2 * MS, 2)
    assert readers_for(1001.0, 16 * MS, 2 * MS, 2) is None
    assert readers_for(1.0, 16 * MS, 2 * MS, 2) == 1


# -- what is needed ------------------------------------------------------------------------------


def test_what_a_cluster_needs_is_what_a_sample_takes_times_the_samples():
    told = planned(climbed(requests={"GET": 1024}), Cluster(1000, 3000, accelerators_per_node=10, cores_per_node=96))
    assert told.gets_per_s == 2 * 3e6
    assert told.bytes_per_s == 72_000 * 3e6
    assert told.read_s == pytest.approx(2 / 125)
    assert told.reads_at_a_time == pytest.approx(6e6 * 0.016)
    assert told.cores == pytest.approx(3e6 * 2 * MS)
    assert (told.cluster.nodes, told.cores_per_node) == (100, pytest.approx(60))
    assert told.network_gbit_per_node == pytest.approx(30_000 * 72_000 * 8 / 1e9)
    # On 96 processors hardly any of them waits for one.
    assert told.readers_per_node == pytest.approx(30_000 * (told.measured.wait_s + 2 * MS), rel=0.01)
    assert told.node_per_s == pytest.approx(1000)


def test_the_first_to_bite_is_what_is_used_most():
    told = planned(cluster=Cluster(8, 500, cores_per_node=96, gets_per_endpoint=20_000))
    assert [one.name for one in told.limits] == ["endpoints", "processors", "network"]
    assert told.first.used == pytest.approx(0.2)
    told = planned(cluster=Cluster(8, 500, gets_per_endpoint=20_000))
    assert (told.first.name, told.first.used) == ("processors", pytest.approx(4.0))
    told = planned(cluster=Cluster(8, 500, cores_per_node=96, gets_per_endpoint=20_000, nic_gbit_per_s=2))
    assert (told.first.name, told.first.used) == ("network", pytest.approx(4000 * 72_000 * 8 / 2e9 * 1538 / 1448))


def test_aws_has_a_limit_per_prefix_and_another_server_only_where_one_is_given():
    def limits(endpoint, **asked):
        told = planned(climbed(endpoint=endpoint), Cluster(1024, 3000, **asked))
        return {one.name: one for one in told.limits}

    for endpoint in ("AWS", "https://s3.eu-west-1.amazonaws.com"):
        limit = limits(endpoint, prefixes=10)["prefixes"]
        assert limit.has == 10 * GETS_PER_PREFIX
        assert "559 would do" in limit.told
    assert "prefixes" not in limits("http://10.0.0.7:9000")
    assert limits("http://10.0.0.7:9000", gets_per_prefix=1000)["prefixes"].has == 1000


def dss(told=None):
    clusters = [{"id": i, "endpoints": [f"http://10.0.0.{i}:9000", f"http://10.0.1.{i}:9000"]} for i in range(2)]
    return climbed("dss", settings={"endpoint": "http://10.0.0.7:9000", "clusters": clusters}, told=told)


def test_a_ceiling_that_was_measured_is_shared_by_the_endpoints_that_were_read():
    told = planned(dss(ladder(FLAT)), Cluster(8, 100, endpoints=8))
    limit = next(one for one in told.limits if one.name == "endpoints")
    assert limit.has == pytest.approx(130 / 4 * 8)
    assert told.unknown == []


def test_what_the_client_limited_is_told_as_at_least_and_never_as_a_limit():
    busy = reads(8, 500.0, own=1.9, both=1.95)
    told = planned(dss(ladder(rungs(loader=busy, more=busy))), Cluster(8, 100))
    assert {one.name for one in told.limits} == {"processors", "network"}
    (line,) = told.unknown
    assert "at least 500 GET/s, 125 for each of 4 endpoints" in line
    assert "what limited was the client" in line
    assert any(one.startswith("client-bound: the reads of loader, more ") for one in told.warnings)


def test_the_time_of_a_read_is_one_that_the_client_did_not_limit():
    busy = reads(8, 500.0, own=1.9, both=1.95)
    assert planned(climbed(told=ladder(rungs(loader=busy)))).read_s == pytest.approx(1 / 62.5)
    slow_client = reads(1, 500.0, cpu_us=1800, latency_ms=2.0)
    told = planned(climbed(told=ladder(rungs(slow_client, busy, busy))))
    assert told.read_s == pytest.approx(2 * MS)
    assert "the client's own work" in told.read_told


def test_files_have_reads_and_no_prefixes_or_endpoints():
    told = planned(climbed("fs"), Cluster(8, 100))
    assert (told.verb, {one.name for one in told.limits}) == ("reads", {"processors", "network"})
    told = planned(climbed("fs", told=ladder(FLAT)), Cluster(8, 100))
    assert next(one for one in told.limits if one.name == "measured ceiling").has == 130


def test_a_server_on_this_machine_takes_of_its_processors_what_grows_with_the_reads():
    # Half a processor is taken by others all the time, 1 ms by each read.
    told = ladder(
        rungs(
            reads(1, 60.0, own=0.1, both=0.66), reads(2, 125.0, own=0.1, both=0.725), reads(8, 500.0, own=0.1, both=1.1)
        )
    )
    assert planned(climbed(endpoint="http://127.0.0.1:9000", told=told)).measured.server_cpu_s == pytest.approx(1 * MS)
    assert planned(climbed(told=told)).measured.server_cpu_s == 0


def test_tensorflow_reads_in_parallel_calls():
    config = Config()
    one = climbed(what="tf ladder", told=ladder(rungs(loader=reads(8, 480.0))))
    assert planned(one, config=config).measured.readers == 8


# -- what is refused, and warned of --------------------------------------------------------------


def all_of(benchmarks, words="", **about):
    return plan_all(result_of(file_of(benchmarks, **about), Path("out.json")), ASKED, words)


def test_a_file_without_a_ladder_is_refused():
    with pytest.raises(PlanError, match=r"out.json: holds no ladder.*pytest bench/ -k ladder"):
        all_of({"test_read[aws-obstore-c8]": record()})


def test_each_ladder_has_a_plan_and_those_of_a_mock_have_a_reason():
    ladders = {TORCH: climbed(), "test_ladder[fs-posix-torch-random]": climbed("fs"), "test_read[aws-c8]": record()}
    told = all_of(ladders)
    assert [one.storage for one in told.plans] == ["aws", "fs"]
    told = all_of(ladders, embedded_default=True, embedded_server={"kind": "moto", "version": "5"})
    assert [one.storage for one in told.plans] == ["fs"]
    assert "says nothing about a storage" in told.refused[0]
    assert any("embedded data set" in line for line in told.plans[0].warnings)
    with pytest.raises(PlanError, match="moto"):
        all_of(ladders, "aws", embedded_server={"kind": "moto", "version": "5"})
    told = all_of(ladders, "aws", embedded_server={"kind": "ceph", "version": "18"})
    assert any("comparable on this machine alone" in line for line in told.plans[0].warnings)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (climbed(told=ladder(loader_cpu_s_per_sample=None)), "an earlier version"),
        (climbed(told=ladder(rungs(more=dataclasses.replace(reads(8, 500.0), processes=2)))), "several ranks"),
        (climbed(samples=0), "damaged"),
        (climbed(told={**ladder(), "reads": {}}), "damaged"),
        (climbed(config_hash="dddd"), "damaged"),
        (climbed(told=ladder(loader_per_s=0.0)), "damaged"),
    ],
    ids=["no processor time", "ranks", "no samples", "no reads", "no configuration", "no rate"],
)
def test_a_ladder_that_tells_too_little_is_refused(one, why):
    with pytest.raises(PlanError, match=why):
        planned(one)


def test_what_may_spoil_a_plan_is_said():
    def warned(one, cluster=ASKED, config=None):
        return " | ".join(planned(one, cluster, config).warnings)

    assert warned(climbed()) == ""
    assert "disturbed by swapping: measure again" in warned(climbed(disturbed=True, disturbed_by=["swapping"]))
    assert "page cache warm" in warned(climbed("fs", cache="warm"))
    assert "3 requests were sent again" in warned(climbed(retries=3))
    assert "fewer than two batches" in warned(climbed(told=ladder(samples=100)))
    tail = dataclasses.replace(reads(2, 125.0), latency_p99_ms=300.0)
    assert "long tail" in warned(climbed(told=ladder(rungs(loader=tail))))
    assert "200,000 bytes a sample" in warned(climbed(), Cluster(8, 100, mean_bytes=200_000))
    ends = Config.model_validate({"framework": {"PyTorch": {"DataLoader": {"persistent_workers": False}}}})
    assert "persistent_workers=true" in warned(climbed(), config=ends)


@pytest.mark.parametrize(
    ("words", "yes"),
    [("", True), ("aws", True), ("AWS and torch", True), ("aws and tf", False), ("tf or torch", True),
     ("not aws", False), ("not dss and torch", True), ("dss or not tf", True)],
)  # fmt: skip
def test_words_choose_as_pytests_do(words, yes):
    assert chooses(words, TORCH) is yes


# -- the command ---------------------------------------------------------------------------------


ASK = ["--accelerators", "1024", "--samples-per-s", "3000"]


@pytest.fixture
def out(tmp_path):
    return str(write(tmp_path, "out.json", file_of({TORCH: climbed(), "test_ladder[dss-torch]": dss(ladder(FLAT))})))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_tells_all_of_it(out, form, tmp_path, capsys):
    assert main(["plan", out, *ASK, "--format", form, "-o", str(tmp_path / "plan")]) == 0
    told = capsys.readouterr().out
    assert (tmp_path / "plan").read_text() == told
    if form == "json":
        plans = json.loads(told)["plans"]
        assert [one["first"] for one in plans] == ["processors", "endpoints"]
        assert plans[0]["gets_per_s"] == 3072000
        assert [one["ranks"] for one in plans[0]["prediction"]] == [1, 2, 4, 8]
        return
    for text in (
        "3,072,000 GET/s", "221 GB/s", "49,152", "6,144 in all", "128 nodes", "first to bite: processors",
        "at least 500 GET/s", "94,524", "prediction on this machine",
    ):  # fmt: skip
        assert text in told, text


def test_the_command_refuses_what_it_cannot_plan(out, tmp_path, capsys):
    assert main(["plan", out, *ASK, "-k", "fs"]) == 2
    assert "chooses none of the ladders" in capsys.readouterr().err
    assert main(["plan", out, *ASK, "-k", "(aws)"]) == 2
    assert main(["plan", str(write(tmp_path, "p.json", file_of({TORCH: climbed()}, complete=False))), *ASK]) == 2
    assert "not complete" in capsys.readouterr().err
    for option in (["--accelerators", "0"], ["--samples-per-s", "nan"], ["--nic-gbit", "-1"]):
        with pytest.raises(SystemExit):
            main(["plan", out, *ASK, *option])


def test_a_plan_that_fits_says_so(out, capsys):
    assert main(["plan", out, "-k", "aws", "--accelerators", "8", "--samples-per-s", "10"]) == 0
    assert "none of the known limits bites; the nearest is processors, at 8%" in capsys.readouterr().out

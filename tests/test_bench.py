"""The benchmarks as a user runs them: what the result file holds, and what bad input says."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from other_tools import bencher, github_action_benchmark, read_strictly
from PIL import Image

from dnnbench.__main__ import main
from fixtures.results import pytest_benchmark_update_json

ROOT = Path(__file__).parent.parent
LABELS = ["roses", "tulips"]
# A benchmark run of its own must not know that it was started from inside of one.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "DSS_"))}


def bench(*arguments, cwd=ROOT, timeout_s=120):
    """Runs pytest on bench/ and gives back the finished process."""
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={ROOT}", "-c", str(ROOT / "pytest.ini")]
    paths = [] if any(str(a).startswith(str(ROOT / "bench")) for a in arguments) else [str(ROOT / "bench")]
    return subprocess.run(
        [*command, *map(str, arguments), *paths],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip


def jpeg(seed, side=24):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def data(tmp_path):
    """A folder with one small source, and the configuration that names it."""
    return tmp_path / "flowers", make_data(tmp_path)


def make_data(tmp_path):
    """Makes the folder ``flowers`` and a configuration in a folder; returns the configuration's path."""
    folder = tmp_path / "flowers"
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for i in range(4):
            (folder / label / f"{i}.jpg").write_bytes(jpeg(i))
    config = {
        "storage": {"format": "fs", "name": "nfs1", "fs": {"data_dir": [str(folder)]}},
        "dataset": {"label": LABELS},
        "execution": {"test_share": 0.5},
        "framework": {"name": "PyTorch", "PyTorch": {"DataLoader": {"num_workers": 0}}, "batch_size": 3, "epochs": 2},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(total bytes of the folder, the result of a run of everything on it, what the run printed, its path)."""
    folder = tmp_path_factory.mktemp("measured")
    config = make_data(folder)
    out = folder / "out.json"
    settings = ("--dnn-set=framework.name=PyTorch,TensorFlow", "--dnn-set=execution.ranges.size_bytes=200")
    done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    total_bytes = sum(file.stat().st_size for file in folder.rglob("*.jpg"))
    return total_bytes, json.loads(out.read_text()), done.stdout, out


def test_every_benchmark_says_what_it_read(measured):
    total_bytes, result, _, _ = measured
    assert result["dnnbench"]["complete"] is True
    assert result["dnnbench"]["machine"]["packages"]["torch"]
    kinds = {}
    for one in result["benchmarks"]:
        info = one["extra_info"]
        kinds.setdefault(one["name"].partition("[")[0], []).append(one["name"])
        assert all(value is None or isinstance(value, str) for value in (one["params"] or {}).values())
        assert info["schema"] == 1
        assert info["storage_label"] == "nfs1"
        # Two of each four of a category are held out with a share of 0.5.
        expected = total_bytes if info["catalog"]["part"] == "all" else info["catalog"]["bytes"]
        assert info["catalog"]["bytes"] == expected
        assert info["wall_s"] == pytest.approx(sum(one["stats"]["data"]), rel=0.05)
        assert info["objects_per_s"] == pytest.approx(info["objects"] / info["wall_s"])
        if "listing" in one["name"]:
            continue
        assert info["bytes"] == sum(r["bytes"] for r in info["per_round"])
        reads = info["ranges"]["per_round"] * info["rounds"] if "ranges" in info else info["objects"]
        assert info["latency_count"] == reads
        assert info["requests"] == {"READ": reads}
        if "epochs" in info:
            assert {epoch["bytes"] for epoch in info["epochs"]} == {expected}
            assert {epoch["samples"] for epoch in info["epochs"]} == {info["catalog"]["objects"]}
        else:
            assert {r["bytes"] for r in info["per_round"]} == {expected}
    assert {kind: len(names) for kind, names in kinds.items()} == {
        "test_listing": 1, "test_read": 4, "test_loader": 4, "test_training": 2, "test_inference": 2,
        "test_ladder": 2, "test_accelerator": 2, "test_ranges": 1, "test_ranges_whole": 1, "test_ranges_plain": 1,
    }  # fmt: skip


def test_ranges_are_of_the_largest_images_where_no_larger_objects_are_configured(measured):
    total_bytes, result, _, _ = measured
    records = {b["name"]: b["extra_info"] for b in result["benchmarks"]}
    every, whole, plain = (records[f"test_ranges{kind}[fs-posix]"] for kind in ("", "_whole", "_plain"))
    assert {one["catalog"]["part"] for one in (every, whole, plain)} == {"largest"}
    assert every["catalog"]["bytes"] == total_bytes
    assert whole["catalog"] == plain["catalog"]
    assert (whole["objects"], whole["bytes"]) == (plain["objects"], plain["bytes"])
    assert whole["ranges"]["per_round"] == -(-whole["catalog"]["bytes"] // 200) > 1


@pytest.mark.parametrize(
    ("arguments", "are_read"),
    [
        ([], False),
        (["-k", "read or listing"], False),
        (["-k", "ranges"], True),
        (["--dnn-set=storage.fs.large_dir=/tmp"], True),
        (["--dnn-set=execution.ranges.concurrency=1,2"], True),
    ],
)
def test_ranges_are_read_where_somebody_asks_for_large_objects(data, arguments, are_read):
    ids = collected(f"--dnn-config={data[1]}", *arguments)
    assert ids
    assert any(one.startswith("test_ranges") for one in ids) == are_read


def test_objects_that_a_range_holds_whole_or_that_are_too_large_are_skipped_with_what_to_set(data):
    for setting, key in (("size_bytes=100000", "storage.fs.large_dir"), ("max_bytes=10", "execution.ranges.max_bytes")):
        done = bench(f"--dnn-config={data[1]}", f"--dnn-set=execution.ranges.{setting}", "-k", "ranges", "-rs")
        assert done.returncode == 0
        assert "3 skipped" in done.stdout
        assert key in done.stdout


def test_large_files_of_a_place_of_their_own_are_read_in_ranges_of_several_sizes(data, tmp_path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "model.pt").write_bytes(os.urandom(100_001))
    out = tmp_path / "out.json"
    done = bench(
        f"--dnn-config={data[1]}", f"--dnn-set=storage.fs.large_dir={tmp_path}/ckpt", "-k", "ranges",
        "--dnn-set=execution.ranges.size_bytes=1000,60000", "--dnn-set=execution.ranges.concurrency=1,4",
        f"--benchmark-json={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {b["name"]: b["extra_info"] for b in json.loads(out.read_text())["benchmarks"]}
    axes = [f"size_bytes={size}-c{c}" for size in (1000, 60000) for c in (1, 4)]
    ranged = [f"test_ranges{kind}[fs-posix-{axis}]" for kind in ("", "_whole") for axis in axes]
    assert sorted(records) == sorted([*ranged, "test_ranges_plain[fs-posix]"])
    for name, figures in records.items():
        size_bytes = next((size for size in (1000, 60000) if f"size_bytes={size}-" in name), 100_001)
        assert figures["latency_count"] == -(-100_001 // size_bytes) * figures["rounds"]
        assert (figures["catalog"]["part"], figures["bytes"]) == ("large", 100_001 * figures["rounds"])


def test_a_place_of_large_objects_that_is_not_there_is_one_line(data, tmp_path):
    out = tmp_path / "out.json"
    setting = f"--dnn-set=storage.fs.large_dir={tmp_path}/gone"
    done = bench(f"--dnn-config={data[1]}", setting, f"--benchmark-json={out}", "-k", "ranges")
    _fails(done, out, "storage.fs.large_dir[0]", "there is no such folder or file")


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_training_and_inference_are_recorded_alike_for_both_frameworks(measured, framework):
    records = {b["name"]: b["extra_info"] for b in measured[1]["benchmarks"]}
    training = records[f"test_training[fs-posix-{framework}-random]"]
    assert len(training["epochs"]) == 2
    assert 0 <= training["accuracy"] <= 1
    for epoch in training["epochs"]:
        assert {"loss", "accuracy", "samples_per_s", "waiting_s", "computing_s", "first_batch_s"} <= set(epoch)
    inference = records[f"test_inference[fs-posix-{framework}-random]"]
    rounds = inference["rounds"]
    assert inference["catalog"]["part"] == "held out"
    assert inference["catalog"]["objects"] == 4
    confusion = inference["confusion"]
    assert [sum(row) for row in confusion] == [2 * rounds, 2 * rounds]
    assert inference["accuracy"] == (confusion[0][0] + confusion[1][1]) / (4 * rounds)
    assert inference["batch_latency_count"] == 2 * rounds
    assert inference["batch_latency_p50_ms"] <= inference["batch_latency_max_ms"]


def test_a_person_sees_one_table(measured):
    stdout = measured[2]
    assert re.search(r"storage +client +what .*waiting", stdout)
    for what in ("list", "read c32", "torch loader random", "tf train random", "tf infer"):
        assert re.search(rf"^fs +posix +{what} ", stdout, re.MULTILINE), what


def test_pytest_benchmark_reads_the_result(measured):
    twin = measured[3].with_name("later.json")
    twin.write_bytes(measured[3].read_bytes())
    compare = subprocess.run(
        [str(Path(sys.executable).parent / "pytest-benchmark"), "compare", str(measured[3]), str(twin),
         "--columns=mean", "--group-by=fullname"],
        capture_output=True, text=True, check=False, cwd=measured[3].parent,
    )  # fmt: skip
    assert compare.returncode == 0, compare.stderr
    for benchmark in measured[1]["benchmarks"]:
        # The group's heading, and a line of each file.
        assert compare.stdout.count(benchmark["name"]) == 3


def test_other_tools_read_the_result_and_see_the_rate_of_the_record(measured):
    result = read_strictly(measured[3].read_text())
    records = {one["fullname"]: one["extra_info"] for one in measured[1]["benchmarks"]}
    drawn, latencies = github_action_benchmark(result), bencher(result)
    assert set(drawn) == set(latencies) == set(records)
    for name, record in records.items():
        per_round = record["objects"] / record["rounds"]
        value, unit = drawn[name]
        assert unit == "iter/sec"
        # Of rounds that read all alike, as ours do, their rate says the same as that of the objects.
        assert value * per_round == pytest.approx(record["objects_per_s"], rel=0.05)
        latency_ns, lower_ns, upper_ns = latencies[name]
        assert latency_ns == pytest.approx(record["wall_s"] / record["rounds"] * 1e9, rel=0.05)
        assert lower_ns <= latency_ns <= upper_ns


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_in_the_result_so_that_it_stays_json(pytestconfig, value):
    # As a training that diverges has it.
    record = {"loss": value, "epochs": [{"loss": value, "accuracy": 0.5}]}
    output = {"benchmarks": [{"fullname": "a", "extra_info": record}]}
    pytest_benchmark_update_json(pytestconfig, [], output)
    assert output["benchmarks"][0]["extra_info"] == {"loss": None, "epochs": [{"loss": None, "accuracy": 0.5}]}
    json.dumps(output["benchmarks"], allow_nan=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"mean": ', '"mean": NaN, "was": ', 1),
        lambda text: text.replace('"iqr": ', '"was": ', 1),
        lambda text: text.replace('"commit_info"', '"was"', 1),
    ],
)
def test_a_result_that_other_tools_would_not_read_is_told_apart(measured, damage):
    with pytest.raises(ValueError, match=r"NaN|iqr|commit_info"):
        read_strictly(damage(measured[3].read_text()))


def collected(*arguments):
    done = bench("--collect-only", *arguments)
    return re.findall(r"test_\w+\[.*\]", done.stdout)


def test_several_values_of_a_key_are_an_axis_where_they_matter(data):
    ids = collected(f"--dnn-config={data[1]}", "--dnn-set=framework.PyTorch.DataLoader.num_workers=1,4,10")
    assert [i for i in ids if i.startswith("test_loader[")] == [
        f"test_loader[fs-posix-torch-{access}-w{w}]" for access in ("random", "sequential") for w in (1, 4, 10)
    ]
    assert sum(i.startswith("test_listing") for i in ids) == 1
    assert sum(i.startswith("test_read") for i in ids) == 4


def test_a_frameworks_own_key_is_an_axis_of_that_framework_alone(data):
    sweeps = (
        "framework.name=TensorFlow,PyTorch",
        "framework.PyTorch.DataLoader.num_workers=1,4",
        "framework.epochs=1,2",
    )
    ids = collected(f"--dnn-config={data[1]}", *(f"--dnn-set={sweep}" for sweep in sweeps))
    assert [i for i in ids if i.startswith("test_training[")] == [
        *(f"test_training[fs-posix-tf-random-e{e}]" for e in (1, 2)),
        *(f"test_training[fs-posix-torch-random-w{w}-e{e}]" for w in (1, 4) for e in (1, 2)),
    ]
    assert "test_loader[fs-posix-tf-random]" in ids


def test_how_a_loader_reads_and_decodes_is_an_axis_of_loaders_and_not_of_reading(data):
    sweeps = ("framework.PyTorch.reading=plain,concurrent", "dataset.decode=full,reduced")
    ids = collected(f"--dnn-config={data[1]}", "--dnn-autoscale", *(f"--dnn-set={sweep}" for sweep in sweeps))
    by_kind = {}
    for one in ids:
        by_kind.setdefault(one.partition("[")[0], []).append(one.partition("[")[2].rstrip("]"))
    both = [
        f"-reading={reading}-decode={decode}" for reading in ("plain", "concurrent") for decode in ("full", "reduced")
    ]
    for kind in ("training", "inference", "ladder", "accelerator", "autoscale_loader"):
        assert by_kind[f"test_{kind}"] == [f"fs-posix-torch-random{both_of}" for both_of in both]
    assert by_kind["test_loader"] == [
        f"fs-posix-torch-{access}{both_of}" for access in ("random", "sequential") for both_of in both
    ]
    assert by_kind["test_listing"] == by_kind["test_autoscale_read"] == ["fs-posix"]
    assert by_kind["test_read"] == [f"fs-posix-{concurrency}" for concurrency in ("serial", "c1", "c8", "c32")]


def test_the_page_cache_is_an_axis_of_the_knee_of_reads_as_of_any_read(data):
    sweep = "--dnn-set=execution.cache=cold,warm"
    ids = collected(f"--dnn-config={data[1]}", "--dnn-autoscale", sweep, "-k", "autoscale_read or read and c1")
    assert sorted(ids) == [
        *(f"test_autoscale_read[fs-posix-cache={cache}]" for cache in ("cold", "warm")),
        *(f"test_read[fs-posix-cache={cache}-c1]" for cache in ("cold", "warm")),
    ]


def test_knees_are_looked_for_only_where_they_are_asked_for(data):
    arguments = ("--collect-only", f"--dnn-config={data[1]}")
    done = bench(*arguments)
    assert "autoscale" not in done.stdout + done.stderr
    assert "switches off" not in done.stdout
    assert "test_read[fs-posix-c1]" in done.stdout


@pytest.mark.parametrize("value", ["0", "-5", "nan", "fast", "5ms"])
def test_a_bound_of_latency_that_is_none_is_one_line(data, tmp_path, value):
    out = tmp_path / "out.json"
    done = bench(f"--dnn-config={data[1]}", f"--dnn-autoscale={value}", f"--benchmark-json={out}", "-k", "listing")
    _fails(done, out, "--dnn-autoscale", value)


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "fast", "true"])
def test_an_accelerators_step_that_takes_no_time_is_one_line(data, tmp_path, value):
    out = tmp_path / "out.json"
    setting = f"--dnn-set=training.batch_compute_ms={value}"
    done = bench(f"--dnn-config={data[1]}", setting, f"--benchmark-json={out}", "-k", "listing")
    _fails(done, out, "training.batch_compute_ms: found", value, "expected")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(records by name, what the run printed, the spreadsheet's rows) of the benchmarks that look for something."""
    folder = tmp_path_factory.mktemp("searched")
    out = folder / "out.json"
    config = make_data(folder)
    assert main(["manifest", f"{folder}/flowers"]) == 0
    done = bench(
        f"--dnn-config={config}", f"--benchmark-json={out}", f"--dnn-set=metrics.path={folder}/all.csv",
        "--dnn-set=dataset.verify=checksum",
        # No read is as fast as that, so that the way to the knee is short.
        "--dnn-autoscale=0.000001", "-k", "autoscale or ladder or accelerator or read and c1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {one["name"]: one["extra_info"] for one in json.loads(out.read_text())["benchmarks"]}
    with (folder / "all.csv").open(newline="") as file:
        return records, done.stdout, list(csv.DictReader(file))


def test_every_object_that_a_run_read_was_held_against_its_checksum(searched):
    records, _, _ = searched
    for name, figures in records.items():
        assert (figures["verify"], figures["verified"]) == ("checksum", {"manifest": figures["objects"]}), name


def test_what_a_run_looked_for_is_in_its_result(searched):
    records, _, _ = searched
    assert sorted(records) == [
        "test_accelerator[fs-posix-torch-random]",
        "test_autoscale_loader[fs-posix-torch-random]",
        "test_autoscale_read[fs-posix]",
        "test_ladder[fs-posix-torch-random]",
        "test_read[fs-posix-c1]",
    ]
    read, loader = records["test_autoscale_read[fs-posix]"], records["test_autoscale_loader[fs-posix-torch-random]"]
    for figures, unit in ((read, "concurrency"), (loader, "num_workers")):
        # No read is as fast as the bound.
        assert (figures["knee"][unit], figures["knee"]["stopped_by"]) == (None, "p99")
        assert figures["objects"] == figures["catalog"]["objects"] == 8
        assert figures["rounds"] == 1
    assert {name.partition("[")[0] for name, one in records.items() if "client_bound" in one} == {
        "test_autoscale_read", "test_read",
    }  # fmt: skip
    told = records["test_accelerator[fs-posix-torch-random]"]["accelerator"]
    assert told["trials"]
    assert 0 < told["utilization"] <= 1
    assert records["test_ladder[fs-posix-torch-random]"]["ladder"]["verdict"]["limit"]


def test_what_a_run_looked_for_is_told_below_the_table_and_in_the_spreadsheet(searched):
    records, stdout, rows = searched
    verdict = records["test_ladder[fs-posix-torch-random]"]["ladder"]["verdict"]
    assert f"fs (posix), torch ladder: {verdict['sentence']}" in stdout
    limit = verdict["limit"] + (", client-bound" if verdict["client_bound"] else "")
    assert re.search(f"^fs +posix +torch ladder .* limit: {limit}$", stdout, re.MULTILINE)
    assert re.search(r"^fs \(posix\), torch accelerator: .* kept busy to 90%", stdout, re.MULTILINE)
    assert re.search(r"^fs \(posix\), read c1, no knee: 1: .*/s.* \(no knee: p99 is ", stdout, re.MULTILINE)
    assert re.search(r"^fs \(posix\), torch loader w1, no knee: 1: .*/s \(no knee: p99 is ", stdout, re.MULTILINE)
    by_kind = {row["benchmark"].partition("[")[0]: row for row in rows}
    assert by_kind["test_ladder"]["limit"] == verdict["limit"]
    assert by_kind["test_ladder"]["client_bound"] == str(verdict["client_bound"])
    assert by_kind["test_read"]["client_bound"] in ("True", "False")
    assert by_kind["test_accelerator"]["client_bound"] == by_kind["test_read"]["limit"] == ""


@pytest.mark.parametrize(
    ("step", "gone"),
    [
        ("training", {"test_accelerator", "test_ladder", "test_training"}),
        ("inference", {"test_inference"}),
        ("model", {"test_ladder", "test_training", "test_inference"}),
    ],
)
def test_a_step_that_is_switched_off_is_deselected_and_the_run_says_so(data, step, gone):
    done = bench("--collect-only", f"--dnn-config={data[1]}", f"--dnn-set=execution.steps.{step}=false")
    kinds = set(re.findall(r"(test_\w+)\[", done.stdout))
    kept = {"test_listing", "test_read", "test_loader", "test_training", "test_inference"}
    assert kinds == {*kept, "test_ladder", "test_accelerator"} - gone
    assert f"execution.steps switches off {', '.join(sorted(gone))}" in done.stdout


def test_the_figures_go_to_a_csv_in_the_folder_that_the_configuration_names(data, tmp_path):
    listing = (f"--dnn-config={data[1]}", "-k", "listing")
    (tmp_path / "sheets").mkdir()
    assert bench(*listing, f"--dnn-set=metrics.path={tmp_path}/sheets").returncode == 0
    assert (tmp_path / "sheets" / "metrics.csv").read_text().count("test_listing") == 1
    off = bench(*listing, f"--dnn-set=metrics.path={tmp_path}/off.csv", "--dnn-set=execution.steps.metrics=false")
    assert "execution.steps switches off metrics.csv" in off.stdout
    assert not (tmp_path / "off.csv").exists()
    gone = bench(*listing, f"--dnn-set=metrics.path={tmp_path}/gone/all.csv")
    assert gone.returncode != 0
    assert f"there is no folder {tmp_path}/gone" in gone.stdout + gone.stderr


@pytest.mark.parametrize("key", ["storage.name=nfs1,nfs2", "execution.steps.training=true,false", "metrics.path=a,b"])
def test_what_chooses_the_run_is_no_axis(key, tmp_path):
    out = tmp_path / "out.json"
    _fails(bench(f"--dnn-set={key}", f"--benchmark-json={out}"), out, key.partition("=")[0], "cannot be an axis")


@pytest.mark.parametrize(("expression", "only"), [("dss", "dss"), ("aws and torch", "torch")])
def test_k_selects_by_the_words_in_the_ids(expression, only):
    done = bench("--collect-only", "-k", expression)
    ids = re.findall(r"test_\w+\[(.*)\]", done.stdout)
    assert ids
    assert all(only in i for i in ids)


def test_under_xdist_each_benchmark_runs_once_as_a_check(data, tmp_path):
    out = tmp_path / "out.json"
    done = bench(f"--dnn-config={data[1]}", f"--benchmark-json={out}", "-n1", "-k", "read or listing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was measured or written" in done.stdout
    assert not out.exists()


def _fails(done, out, *words):
    """Not 0, one clear line, no traceback, and no result that looks whole."""
    text = done.stdout + done.stderr
    assert done.returncode not in (0, 5), text
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert lines, text
    assert "Traceback" not in text
    assert not out.exists()


BAD_CONFIGS = {
    "unknown key": ('{"dataset": {"lable": ["a"]}}', "dataset.lable", 'did you mean "label"'),
    "wrong type": ('{"execution": {"workers": "ten"}}', "execution.workers", '"ten"', "integer"),
    "malformed": ('{\n  "dataset": {,}\n}', "bad.json:2:15", "not valid JSON"),
    "missing data_dir": (
        '{"storage": {"fs": {"data_dir": ["/no/such/folder"]}}}', "storage.fs.data_dir[0]", "/no/such/folder"
    ),
    "no data_dir": ('{"storage": {"format": "fs"}}', "storage.fs.data_dir", "not set"),
    "no bucket": ('{"storage": {"format": "s3", "name": "aws"}}', "storage.s3.bucket", "not set"),
    "client_lib": ('{"storage": {"s3": {"client_lib": "boto"}}}', "storage.s3.client_lib", 'did you mean "boto3"'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_configuration_is_one_line(case, tmp_path):
    text, *words = BAD_CONFIGS[case]
    path, out = tmp_path / "bad.json", tmp_path / "out.json"
    path.write_text(text)
    _fails(bench(f"--dnn-config={path}", f"--benchmark-json={out}"), out, *words)


def test_a_missing_configuration_is_one_line(tmp_path):
    out = tmp_path / "out.json"
    _fails(bench("--dnn-config=gone.json", f"--benchmark-json={out}"), out, "gone.json", "no such configuration file")


def test_a_json_path_in_no_folder_fails_before_measuring(tmp_path):
    out = tmp_path / "gone" / "out.json"
    _fails(bench(f"--benchmark-json={out}", "-k", "listing and fs"), out, str(out.parent), "no folder")


def _s3_config(tmp_path, credentials, **s3):
    aws = {"endpoint": credentials.endpoint, "access_key": "dnnbench", "secret_key": "dnnbench-secret"}
    account = {"credentials": aws}
    path = tmp_path / "s3.json"
    storage = {"format": "s3", "name": "aws", "s3": {"aws": account, "dss": account, **s3}}
    path.write_text(json.dumps({"storage": storage, "dataset": {"label": LABELS}}))
    return path


def test_a_server_that_is_asked_for_and_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    done = bench("--dnn-server=ceph", "-k", "listing")
    assert done.returncode == 4, done.stdout
    assert "apt-get install" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_server_beside_a_configured_storage_is_refused(data):
    done = bench(f"--dnn-config={data[1]}", "--dnn-server=ceph", "--collect-only")
    assert done.returncode == 4
    assert "--dnn-server ceph: a storage is configured" in done.stderr


def test_a_missing_bucket_is_one_line(local_servers, tmp_path):
    out = tmp_path / "out.json"
    config = _s3_config(tmp_path, local_servers.aws()[0], bucket="no-such-bucket")
    _fails(bench(f"--dnn-config={config}", f"--benchmark-json={out}"), out, "no-such-bucket", "no such bucket")


def test_wrong_credentials_are_one_line_without_them(answering_server, tmp_path):
    out = tmp_path / "out.json"
    url = answering_server(403, "<Error><Code>InvalidAccessKeyId</Code></Error>")
    for name in ("aws", "dss"):
        config = _s3_config(tmp_path, type("At", (), {"endpoint": url}), bucket="bucket")
        done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", f"--dnn-storage={name}")
        _fails(done, out, "access denied", "check the credentials")
        assert "dnnbench-secret" not in done.stdout + done.stderr


def test_a_refused_connection_is_one_line(tmp_path):
    out = tmp_path / "out.json"
    config = _s3_config(tmp_path, type("At", (), {"endpoint": "http://127.0.0.1:9"}), bucket="bucket")
    _fails(bench(f"--dnn-config={config}", f"--benchmark-json={out}", timeout_s=60), out, "no connection", ":9")


def test_a_malformed_conf_json_is_one_line(local_servers, tmp_path):
    from dnnbench.storage.s3 import S3Storage

    credentials, _ = local_servers.aws()
    out = tmp_path / "out.json"
    S3Storage("dss", credentials).connection().create_bucket("dss")
    storage = S3Storage("dss", credentials)
    storage.write("conf.json", b'{"clusters": "many"}')
    try:
        config = _s3_config(tmp_path, credentials, bucket="bucket")
        _fails(
            bench(f"--dnn-config={config}", "--dnn-storage=dss", f"--benchmark-json={out}"),
            out, "conf.json", "malformed", "clusters",
        )  # fmt: skip
    finally:
        storage.connection().delete("dss", "conf.json")


def test_a_category_without_images_is_one_line(data, tmp_path):
    folder, config = data
    out = tmp_path / "out.json"
    for file in (folder / "tulips").iterdir():
        file.unlink()
    _fails(bench(f"--dnn-config={config}", f"--benchmark-json={out}"), out, "flowers/tulips/", "no images")


@pytest.mark.parametrize("content", ["truncated", "text"])
@pytest.mark.parametrize(
    "settings",
    [
        ["framework.PyTorch.DataLoader.num_workers=0"],
        ["framework.PyTorch.DataLoader.num_workers=1"],
        ["framework.name=TensorFlow"],
    ],
    ids=["torch", "worker", "tf"],
)
def test_a_bad_image_fails_the_loader_and_names_the_object(data, tmp_path, content, settings):
    folder, config = data
    out = tmp_path / "out.json"
    bad = folder / "roses" / "2.jpg"
    bad.write_bytes(jpeg(1, 200)[:2000] if content == "truncated" else b"this is no picture")
    done = bench(
        f"--dnn-config={config}", f"--benchmark-json={out}", "-k", "loader or read and serial",
        *(f"--dnn-set={setting}" for setting in settings),
    )  # fmt: skip
    _fails(done, out, "CorruptError", "roses/2.jpg")
    partial = json.loads(Path(f"{out}.partial").read_text())
    assert partial["dnnbench"]["complete"] is False
    assert [b["name"] for b in partial["benchmarks"]] == ["test_read[fs-posix-serial]"]


def test_an_object_deleted_after_the_listing_fails_and_is_named(data, tmp_path):
    folder, config = data
    out = tmp_path / "out.json"
    plugin = tmp_path / "deleting.py"
    plugin.write_text(
        "import pytest, pathlib\n"
        "@pytest.fixture(autouse=True)\n"
        "def _delete(catalog):\n"
        "    pathlib.Path(catalog.key(1)).unlink(missing_ok=True)\n"
    )
    ENVIRONMENT_WITH = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "deleting", "bench/test_read.py", f"--dnn-config={config}"]
    done = subprocess.run(
        [*command, f"--benchmark-json={out}"],
        cwd=ROOT,
        env=ENVIRONMENT_WITH,
        capture_output=True,
        text=True,
        check=False,
    )
    _fails(done, out, "NotFoundError", f"{folder}/roses/1.jpg")


def test_an_older_result_is_not_taken_for_that_of_a_failing_run_and_is_kept_aside(data, tmp_path):
    folder, config = data
    out = tmp_path / "out.json"
    out.write_text('{"benchmarks": []}')
    (folder / "roses" / "2.jpg").write_bytes(b"no picture")
    done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", "-k", "loader")
    _fails(done, out, "roses/2.jpg")
    assert Path(f"{out}.old").read_text() == '{"benchmarks": []}'
    assert f"the earlier result is kept in {out}.old" in done.stdout
    done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", "-k", "listing")
    assert done.returncode == 0
    assert json.loads(out.read_text())["dnnbench"]["complete"] is True
    assert not Path(f"{out}.old").exists()


@pytest.mark.parametrize(
    "arguments", [["-k", "zzz"], ["--benchmark-disable", "-k", "listing"], ["-n1", "-k", "listing"]]
)
def test_a_run_that_measures_nothing_leaves_an_older_result_alone(data, tmp_path, arguments):
    out = tmp_path / "out.json"
    out.write_text("mine")
    bench(f"--dnn-config={data[1]}", f"--benchmark-json={out}", *arguments)
    assert out.read_text() == "mine"


def test_a_result_goes_through_a_link_and_leaves_it_one(data, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("older")
    done = bench(f"--dnn-config={data[1]}", f"--benchmark-json={tmp_path}/link.json", "-k", "listing")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["benchmarks"]


def test_the_configurations_hash_is_that_of_what_the_user_gave(measured):
    result = measured[1]
    (configuration,) = result["dnnbench"]["configuration"]
    assert {b["extra_info"]["config_hash"] for b in result["benchmarks"]} == {configuration["hash"]}


NETWORKS = """
import torch
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.models.torch import NeuralNetwork
from dnnbench.training.torch import DNNTrain

class ChannelsFirst(RandomAccessDataset):
    def read_file_system_data(self, image):
        return super().read_file_system_data(image).float()[None] / 255

class TenOutputs(NeuralNetwork):
    def __init__(self, image_diments):
        super().__init__()
        self.last = torch.nn.Linear(image_diments[0] * image_diments[1], 10)

    def forward(self, x):
        # The ninth is always the largest: no category of a small data set.
        return self.last(torch.flatten(x, 1) / 255) + 1000 * torch.nn.functional.one_hot(torch.tensor(9), 10)

class Idle(DNNTrain):
    def __init__(self, **kwargs):
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])

    def train(self):
        for images, labels in self.train_dataloader:
            assert images.shape[1:] == (1, 32, 32)
"""


def test_inference_takes_whatever_a_dataset_makes_and_a_network_says(data, tmp_path):
    (tmp_path / "mine.py").write_text(NETWORKS)
    out = tmp_path / "out.json"
    classes = {"dataset": "ChannelsFirst", "model": "TenOutputs", "training": "Idle"}
    done = bench(
        f"--dnn-config={data[1]}", f"--benchmark-json={out}", "-k", "inference",
        *(f"--dnn-set={key}.name={tmp_path}/mine.py:{name}" for key, name in classes.items()),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (one,) = json.loads(out.read_text())["benchmarks"]
    info = one["extra_info"]
    assert info["confusion"] == [[0, 0, 2 * info["rounds"]]] * 2
    assert info["accuracy"] == 0


def test_inference_predicts_every_held_out_image_whatever_training_drops(data, tmp_path):
    out = tmp_path / "out.json"
    section = "framework.PyTorch.DataLoader.drop_last=true"
    done = bench(f"--dnn-config={data[1]}", f"--benchmark-json={out}", "-k", "inference", f"--dnn-set={section}")
    assert done.returncode == 0, done.stdout
    (one,) = json.loads(out.read_text())["benchmarks"]
    assert one["extra_info"]["objects"] == 4 * one["extra_info"]["rounds"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["framework.batch_size=64", "framework.PyTorch.DataLoader.drop_last=true"], ["makes no whole batch"]),
        (["execution.test_share=0.001", 'dataset.label=["roses"]'], []),
        (["model.save_dir=/proc/no"], ["model.save_dir", "cannot be written"]),
        (["metrics.path=/proc/no.csv"], ["metrics.path", "cannot be written"]),
    ],
)
def test_what_could_not_be_finished_is_said_before_it_begins(data, tmp_path, settings, words):
    out = tmp_path / "out.json"
    done = bench(
        f"--dnn-config={data[1]}", f"--benchmark-json={out}", "-k", "inference", *(f"--dnn-set={s}" for s in settings)
    )
    if words:
        _fails(done, out, *words)
    else:
        assert done.returncode == 0, done.stdout


def test_a_json_that_cannot_be_written_fails_before_measuring():
    done = bench("--benchmark-json=/proc/out.json", "-k", "listing and fs")
    assert done.returncode != 0
    assert "/proc/out.json: cannot be written" in done.stdout + done.stderr


@pytest.mark.parametrize("word", ["accelerator", "accel"])
def test_the_embedded_default_is_asked_for_an_accelerator_by_name(word):
    asked = bench("--collect-only", "-k", word).stdout
    assert asked.count("test_accelerator[") == 6


def test_the_embedded_default_is_asked_for_no_accelerator_otherwise():
    done = bench("--collect-only").stdout
    assert "test_accelerator" not in done


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("autoscale", ["test_autoscale_loader, test_autoscale_read", "--dnn-autoscale"]),
        ("autoscale_read or listing", ["dnnbench: test_autoscale_read: ", "--dnn-autoscale"]),
        ("test_a", ["test_autoscale_loader, test_autoscale_read", "test_accelerator: ", "-k accelerator"]),
    ],
)
def test_what_is_selected_and_yet_not_run_is_told_with_what_to_do(expression, words):
    stdout = bench("--collect-only", "-k", expression).stdout
    assert all(word in stdout for word in words), stdout


def test_what_is_selected_by_the_way_and_not_run_is_not_told():
    assert "autoscale" not in bench("--collect-only", "-k", "aws and torch").stdout

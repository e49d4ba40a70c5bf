"""Files and shards in one run, told apart and counted alike; and the commands that concern shards."""

import json

import pytest

from dnnbench.__main__ import main
from tests.test_bench import LABELS, bench, make_data

KINDS = ("tar", "tfrecord")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(the records by benchmark and format, what the run printed) of a run over files and shards beside them."""
    folder = tmp_path_factory.mktemp("shards")
    config, out, place = make_data(folder), folder / "out.json", str(folder / "flowers")
    for kind in KINDS:
        assert main(["pack", place, place, "--format", kind, "--shard-size", "3KiB", "--config", str(config)]) == 0
    done = bench(
        f"--dnn-config={config}", f"--benchmark-json={out}", "--dnn-set=dataset.format=files,tar,tfrecord",
        "--dnn-set=execution.rounds=2", "--dnn-set=dataset.shards.range_mib=0.001,0.002", "-rs",
        "-k", "listing or serial or (loader and random) or training or ((inference or ladder) and tar)",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {one["name"]: one["extra_info"] for one in json.loads(out.read_text())["benchmarks"]}
    return records, done.stdout


def test_files_and_shards_are_told_apart_and_counted_alike(measured):
    records, printed = measured
    assert "test_loader[fs-posix-torch-random-format=tar-range_mib=0.001]" in records
    # What is only of shards makes no axis of files.
    assert "test_loader[fs-posix-torch-random-format=files]" in records
    assert "format=tfrecord" in printed
    files = records["test_loader[fs-posix-torch-random-format=files]"]
    assert (files["format"], files["bytes_per_used_byte"]) == ("files", 1.0)
    for name, record in records.items():
        if "loader" in name or "training" in name:
            passes = 2
            assert record["catalog"]["hash"] == files["catalog"]["hash"]
            assert record["objects"] == record["samples"] == 8 * passes
            assert record["used_bytes"] == files["used_bytes"] == files["catalog"]["bytes"] * passes
            assert record["bytes"] / record["used_bytes"] == record["bytes_per_used_byte"]
            assert record["requests"] == {"READ": record["latency_count"]}
            assert (record["bytes"] > record["used_bytes"]) == (record["format"] != "files")


def test_shards_are_listed_and_read_as_objects(measured):
    records, _ = measured
    for kind in KINDS:
        listed, read = (records[name.format(kind)] for name in (
            "test_listing[fs-posix-format={}]", "test_read[fs-posix-format={}-serial]",
        ))  # fmt: skip
        assert listed["catalog"]["part"] == read["catalog"]["part"] == f"shards-{kind}"
        assert read["catalog"]["objects"] > 1
        assert read["objects"] == 2 * read["catalog"]["objects"]
        assert read["bytes"] == 2 * read["catalog"]["bytes"] == 2 * listed["catalog"]["bytes"]
        assert listed["catalog"]["left_out"] == {}


def test_what_chooses_samples_is_skipped_with_the_reason(measured):
    records, printed = measured
    assert "a ladder chooses a part of the samples, which lie in shards" in printed
    assert "inference on what is held out chooses" in printed
    assert not any("ladder" in name and "tar" in name for name in records)


def test_a_shard_that_was_cut_off_is_one_line_and_no_figure(tmp_path):
    config, place = make_data(tmp_path), tmp_path / "flowers"
    assert main(["pack", str(place), str(place), "--shard-size", "3KiB", "--config", str(config)]) == 0
    shard = place / "shards-tar" / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:-700])
    done = bench(f"--dnn-config={config}", "--dnn-set=dataset.format=tar", "-k", "loader and random")
    assert done.returncode != 0
    assert f"shards-tar/000001.tar: is cut off at byte {shard.stat().st_size:,}" in done.stdout + done.stderr


def test_check_tries_shards(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"dataset": {"format": "tar", "label": LABELS}, "framework": {"name": "PyTorch"}}))
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1 sources, 1 tar shards of 6 images" in printed
    assert "trained on 6 images" in printed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shard-size", "big"], "expected a size such as 128MiB (found 'big')"),
        (["--format", "zip"], "invalid choice"),
    ],
)
def test_a_bad_option_of_pack_is_told(options, told, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["pack", str(tmp_path), str(tmp_path), *options])
    assert told in capsys.readouterr().err


def test_pack_says_what_it_did_and_refuses_to_do_it_again(tmp_path, capsys):
    config, place = make_data(tmp_path), str(tmp_path / "flowers")
    command = ["pack", place, str(tmp_path / "to"), "--config", str(config)]
    assert main(command) == 0
    assert "8 samples of 1 sources in 1 shards" in capsys.readouterr().out
    assert main(command) == 2
    assert "use --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_checksums_and_shards_do_not_go_together(tmp_path):
    done = bench(
        f"--dnn-config={make_data(tmp_path)}", "--dnn-set=dataset.format=tar", "--dnn-set=dataset.verify=checksum"
    )
    assert done.returncode == 4
    assert 'verify "length" where format is "tar"' in done.stderr

"""Transfers and the commands over them: any place to any other, and nothing overwritten unasked."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dnnbench.__main__ import main
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.s3 import S3Storage
from dnnbench.transfer import TransferError, items_of, transfer

ROOT = Path(__file__).parent.parent


def _items(contents):
    return [(key, len(data), lambda data=data: data) for key, data in contents.items()]


def _files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


CONTENTS = {f"a/{i}.bin": bytes([i]) * i for i in range(50)}


def test_everything_arrives_once(tmp_path):
    done = transfer(_items(CONTENTS), FsStorage(), str(tmp_path), concurrency=3, progress=False)
    assert (done.objects, done.bytes, done.skipped) == (50, sum(range(50)), 0)
    assert _files(tmp_path) == CONTENTS


def test_what_exists_is_skipped_or_refused_but_never_touched(tmp_path):
    transfer(_items({"x": b"old"}), FsStorage(), str(tmp_path))
    done = transfer(_items({"x": b"new", "y": b"1"}), FsStorage(), str(tmp_path))
    assert (done.objects, done.skipped) == (1, 1)
    with pytest.raises(TransferError, match=r"/x: exists with 3 bytes instead of 6.*--overwrite"):
        transfer(_items({"x": b"longer"}), FsStorage(), str(tmp_path))
    assert _files(tmp_path) == {"x": b"old", "y": b"1"}


def test_overwrite_replaces_only_what_is_named(tmp_path):
    transfer(_items({"x": b"old", "keep": b"k"}), FsStorage(), str(tmp_path))
    transfer(_items({"x": b"new!"}), FsStorage(), str(tmp_path), overwrite=True)
    assert _files(tmp_path) == {"x": b"new!", "keep": b"k"}


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/out", "a//b", "a/./b", "a\0b", ""])
def test_a_key_cannot_lead_out_of_the_folder(tmp_path, key):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(TransferError, match="cannot be a path"):
        transfer(_items({key: b"x"}), FsStorage(), str(folder))
    assert _files(tmp_path) == {}


def test_a_failing_item_stops_the_transfer_with_its_error(tmp_path):
    def fail():
        raise TransferError("this one")

    items = [("a", 1, lambda: b"a"), ("b", 1, fail), *_items({f"later{i}": b"x" for i in range(500)})]
    with pytest.raises(TransferError, match="this one"):
        transfer(items, FsStorage(), str(tmp_path), concurrency=1)
    assert len(_files(tmp_path)) < 500


@pytest.fixture
def places(local_servers, tmp_path):
    """The configuration's path, and a fresh place of each kind."""
    aws, bucket = local_servers.aws()
    dss = local_servers.dss()
    accounts = {
        name: {"credentials": {"endpoint": c.endpoint, "access_key": "dnnbench", "secret_key": "dnnbench-secret"}}
        for name, c in (("aws", aws), ("dss", dss))
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"storage": {"s3": accounts}, "dataset": {"label": ["roses", "tulips"]}}))
    unique = str(uuid.uuid4())
    return path, {"fs": str(tmp_path / "to"), "aws": f"s3://{bucket}/{unique}", "dss": f"dss:{unique}"}


SMALL = ["--images-per-category", "3", "--median-bytes", "2000"]


@pytest.mark.parametrize("kind", ["fs", "aws", "dss"])
def test_generate_and_copy_between_all_places(kind, places, tmp_path, capsys):
    config, where = places
    options = ["--config", str(config)]
    assert main(["generate", where[kind], *options, *SMALL]) == 0
    assert "12 objects" in capsys.readouterr().out
    assert main(["generate", where[kind], *options, *SMALL]) == 0
    assert "0 objects, 0 bytes" in capsys.readouterr().out
    made = tmp_path / "made"
    assert main(["generate", str(made), *options, *SMALL]) == 0
    for other in {"fs", "aws", "dss"} - {kind}:
        assert main(["copy", where[kind], where[other], *options]) == 0
        back = tmp_path / f"back-{other}"
        assert main(["copy", where[other], str(back), *options]) == 0
        assert _files(back) == _files(made)


def test_copy_keeps_everything_that_is_no_image_too(places, tmp_path):
    config, where = places
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "notes ü%2F.txt").write_bytes(b"n")
    (source / "empty").write_bytes(b"")
    assert main(["copy", str(source), where["dss"], "--config", str(config)]) == 0
    assert main(["copy", where["dss"], str(tmp_path / "back"), "--config", str(config)]) == 0
    assert _files(tmp_path / "back") == _files(source)


def test_a_whole_bucket_is_a_place(places, local_servers, tmp_path):
    credentials, bucket = local_servers.aws()
    storage = S3Storage(bucket, credentials)
    storage.write(f"top-{uuid.uuid4()}", b"x")
    assert any(key.startswith("top-") for key, _, _ in items_of(storage, ""))


BAD = {
    "missing source": (["copy", "/no/such/folder", "{tmp}/x"], "/no/such/folder"),
    "empty source": (["copy", "{tmp}", "{tmp}/x"], "nothing to copy"),
    "no bucket in the URL": (["generate", "s3://"], "s3://BUCKET/PREFIX"),
    "missing configuration": (["generate", "{tmp}/x", "--config", "gone.json"], "gone.json"),
    "dss without an endpoint": (["generate", "dss:x"], "endpoint"),
    "no images": (["generate", "{tmp}/x", "--images-per-category", "0"], "images_per_category"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_command_is_one_line_and_not_0(case, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DSS_CONFIG_FILE", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments, word = BAD[case]
    assert main([argument.format(tmp=empty) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dnnbench: ")
    assert word in line


def test_the_module_runs_as_a_command_without_heavy_imports(tmp_path):
    code = (
        "import sys\nfrom dnnbench.__main__ import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'tensorflow', 'boto3', 'moto'} & set(sys.modules), 'something heavy was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", str(tmp_path / "x"), *SMALL],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(_files(tmp_path / "x")) == 2 * (5 * 3 + 1), "images, and a manifest of each source"
    assert done.stderr == "", "a progress bar is for terminals only"


def test_generate_over_another_data_set_is_refused(tmp_path, capsys):
    assert main(["generate", str(tmp_path / "d"), *SMALL]) == 0
    assert main(["generate", str(tmp_path / "d"), *SMALL, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "d"), *SMALL, "--seed", "1", "--overwrite"]) == 0


def test_a_setting_of_a_command_is_named_as_it_was_given(tmp_path, capsys):
    assert main(["generate", str(tmp_path / "d"), "--set", "dataset.lable=a"]) == 2
    assert capsys.readouterr().err.startswith("dnnbench: --set dataset.lable: unknown key")

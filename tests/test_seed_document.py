"""The seed document end to end: its fragments in one file, its three classes, on all three storages."""

import json
from pathlib import Path

import pytest
from test_bench import bench, jpeg

from dnnbench.__main__ import main

CLASSES = Path(__file__).with_name("seed_user_classes.py")
LABELS = ["roses", "sunflowers", "tulips", "daisy", "dandelion"]
# The document's fragments, each with its remarks, put together; the values are this test's.
CONFIG = """
{
  "storage": {
      "format": "fs",
      "name": "nfs1",
      "s3": {
        "bucket": "%(bucket)s",
        "prefix": ["%(unique)s/flower_photos/", "%(unique)s/flower_photos2/"],
        "client_lib": "boto3",
        "aws": {"credentials": {
            "endpoint": "%(aws)s",
            "region_name": "us-east-2", "access_key": "dnnbench", "secret_key": "dnnbench-secret"
        }},
        "dss": {"credentials": {
            "endpoint": "%(dss)s",
            "access_key": "dnnbench", "secret_key": "dnnbench-secret"
        }}
      },
      "fs": {"data_dir": ["%(folder)s/flower_photos", "%(folder)s/flower_photos2"]}
  },
  "dataset" : {
             "name": "%(classes)s:MyDataset",
             "access": {"random": true, "sequential":  false},
             "type":  "image",
             "label": ["roses", "sunflowers", "tulips", "daisy", "dandelion"],
             "image_dimension": [32,32]
            },
  "execution":{
    "workers": 10,  <<=== Update parallel workers no
    "steps":{
      "model": true,
      "training": true,
      "inference": false,
      "metrics": false
    }
  },
  "framework": {
    "batch_size": 4,
    "epochs": 2,
    "PyTorch": {
                  "DataLoader": {
                    "shuffle": true,
                    "num_workers": 1,   << ==== Update this variable.
                    "persistent_workers": true,
                    "prefetch_factor": 2,
                    "pin_memory": false,
                    "drop_last": false
                  }
    }
  },
  "model":{
    "name": "%(classes)s:ConvNet",  <<== Add your neural network class name.
    "loss_function": "<Specify Loss Function ex.[CorssEntrophy]"
  },
  "training":{
    "name": "%(classes)s:RandomAccessDatasetTrain"
  }
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, local_servers):
    """(the result, what the run printed, bytes of the data set) of the benchmarks on fs, aws and dss."""
    folder = tmp_path_factory.mktemp("seed")
    for source in ("flower_photos", "flower_photos2"):
        for label in LABELS:
            (folder / source / label).mkdir(parents=True)
            for i in range(2):
                (folder / source / label / f"{i}.jpg").write_bytes(jpeg(i, 32))
    aws, bucket = local_servers.aws()
    values = {
        "bucket": bucket, "unique": folder.name, "aws": aws.endpoint, "dss": local_servers.dss().endpoint,
        "folder": folder, "classes": CLASSES,
    }  # fmt: skip
    config, out = folder / "config.json", folder / "out.json"
    config.write_text(CONFIG % values)
    for place in (f"s3://{bucket}/{folder.name}", f"dss:{folder.name}"):
        for source in ("flower_photos", "flower_photos2"):
            assert main(["copy", f"{folder}/{source}", f"{place}/{source}", "--config", str(config)]) == 0
    done = bench(f"--dnn-config={config}", "--dnn-storage=fs,aws,dss", f"--benchmark-json={out}", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    total_bytes = sum(file.stat().st_size for file in folder.rglob("*.jpg"))
    return json.loads(out.read_text()), done.stdout, total_bytes


@pytest.mark.parametrize("name", ["fs-posix", "aws-boto3", "dss-boto3"])
def test_the_three_classes_are_metered_without_their_help(run, name):
    result, _, total_bytes = run
    records = {b["name"]: b["extra_info"] for b in result["benchmarks"]}
    training = records[f"test_training[{name}-torch-random]"]
    assert [(epoch["samples"], epoch["bytes"]) for epoch in training["epochs"]] == [(20, total_bytes)] * 2
    assert training["latency_count"] == 40
    assert training["requests"] == {"READ" if name == "fs-posix" else "GET": 40}
    # The user's class opens its files by itself, and its objects through the storage.
    assert training["own_reads"] == (40 if name == "fs-posix" else 0)
    assert training["waiting_s"] > 0
    assert training["computing_s"] > 0
    assert f"test_loader[{name}-torch-random]" in records


def test_the_same_data_set_has_one_hash(run):
    assert len({b["extra_info"]["catalog"]["hash"] for b in run[0]["benchmarks"]}) == 1


def test_steps_and_access_choose_what_runs(run):
    names = [b["name"] for b in run[0]["benchmarks"]]
    assert not [name for name in names if "inference" in name or "sequential" in name]
    assert "execution.steps switches off test_inference" in run[1]


def test_a_framework_that_the_classes_are_not_for_is_skipped_with_the_reason(run):
    skipped = run[0]["dnnbench"]["skipped"]
    assert skipped
    assert all("-tf-" in name for name in skipped)
    assert "must be a subclass of dnnbench.datasets.tensorflow.RandomAccessDataset" in run[1]
    assert "set framework.name" in run[1]

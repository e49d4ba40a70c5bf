"""The commands that look at a run before and after it: check, predict and run."""

import csv
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
import torch

from dnnbench.__main__ import main
from dnnbench.config import expand_settings
from dnnbench.trained import save_trained
from dnnbench.training import torch_build

ROOT = Path(__file__).parent.parent
LABELS = ["roses", "tulips"]


def configure(tmp_path, **sections):
    """Writes a configuration of small images in ``tmp_path / "data"``, PyTorch only; returns its path."""
    config = {
        "storage": {"format": "fs", "fs": {"data_dir": [f"{tmp_path}/data/source1", f"{tmp_path}/data/source2"]}},
        "dataset": {"label": LABELS},
        "framework": {"name": "PyTorch", "PyTorch": {"DataLoader": {"num_workers": 0}}, "epochs": 1},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | sections))
    return path


def generate(place, config):
    small = ["--images-per-category", "4", "--median-bytes", "3000"]
    assert main(["generate", str(place), "--config", str(config), *small]) == 0


@pytest.fixture
def config(tmp_path):
    """A configuration whose data set is there."""
    path = configure(tmp_path)
    generate(tmp_path / "data", path)
    return path


# -- check -------------------------------------------------------------------------------------------


def test_check_tries_every_layer_once(config, capsys):
    assert main(["check", str(config)]) == 0
    told = capsys.readouterr().out
    assert "2 sources x 2 categories, 16 images" in told
    assert "ConvNet trained on 16 images, loss" in told
    assert "FAIL" not in told
    assert told.endswith("a run would start\n")


def _fails(config, capsys, *words):
    capsys.readouterr()
    assert main(["check", str(config)]) == 1
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if line.startswith("FAIL")]
    assert all(word in line for word in words), line
    assert "a run would not start" in told
    return told


def test_check_names_what_is_wrong_with_the_configuration(tmp_path, capsys):
    path = tmp_path / "bad.json"
    path.write_text('{"dataset": {"lable": []}}')
    _fails(path, capsys, "configuration", "dataset.lable", 'did you mean "label"')


def test_check_names_a_folder_that_is_not_there(tmp_path, capsys):
    _fails(configure(tmp_path), capsys, "listing", "data/source1", "no such folder")


def test_check_names_an_image_that_does_not_decode(config, tmp_path, capsys):
    first = tmp_path / "data/source1/roses/000000.jpg"
    first.write_bytes(first.read_bytes()[:1500])
    told = _fails(config, capsys, "read and decode", "roses/000000.jpg", "cannot be decoded")
    assert "Traceback" not in told


def test_check_reads_on_every_kind_of_storage(config, tmp_path, local_servers, capsys):
    aws, bucket = local_servers.aws()
    account = {"access_key": "dnnbench", "secret_key": "dnnbench-secret"}
    s3 = {
        "bucket": bucket,
        "prefix": [f"{tmp_path.name}/source1", f"{tmp_path.name}/source2"],
        "aws": {"credentials": {**account, "endpoint": aws.endpoint}},
        "dss": {"credentials": {**account, "endpoint": local_servers.dss().endpoint}},
    }
    for name, place in (("aws", f"s3://{bucket}/{tmp_path.name}"), ("dss", f"dss:{tmp_path.name}")):
        path = configure(tmp_path, storage={"format": "s3", "name": name, "s3": s3})
        assert main(["copy", f"{tmp_path}/data", place, "--config", str(path)]) == 0
        assert main(["check", str(path)]) == 0
        told = capsys.readouterr().out
        assert "2 sources x 2 categories, 16 images" in told
        assert "dnnbench-secret" not in told


def test_check_says_that_a_server_is_not_there_without_the_secrets(tmp_path, capsys):
    credentials = {"endpoint": "http://127.0.0.1:9", "access_key": "key-of-mine", "secret_key": "secret-of-mine"}
    s3 = {"bucket": "b", "aws": {"credentials": credentials}}
    path = configure(tmp_path, storage={"format": "s3", "name": "aws", "s3": s3})
    told = _fails(path, capsys, "listing", "no connection", "127.0.0.1:9")
    assert "of-mine" not in told


USER = """
import torch
from dnnbench.training.torch import DNNTrain

class Lazy(DNNTrain):
    def __init__(self, **kwargs):
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])

    def train(self):
        pass

class Mistaken(Lazy):
    def train(self):
        return 1 / 0  # the user's line
"""


def test_check_shows_the_users_own_traceback(config, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(USER)
    config = configure(tmp_path, training={"name": f"{tmp_path}/mine.py:Mistaken"})
    told = _fails(config, capsys, "one batch, PyTorch", "ZeroDivisionError")
    assert "# the user's line" in told


def test_check_shows_an_import_that_fails_in_the_users_file(config, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import no_such_library  # the user's line\n")
    config = configure(tmp_path, training={"name": f"{tmp_path}/mine.py:Mistaken"})
    told = _fails(config, capsys, "no_such_library")
    assert "# the user's line" in told


def test_check_notices_a_trainer_that_reads_nothing(config, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(USER)
    config = configure(tmp_path, training={"name": f"{tmp_path}/mine.py:Lazy"})
    _fails(config, capsys, "Lazy", "read nothing from its loader")


def test_check_trains_nothing_where_no_step_does(config, tmp_path, capsys):
    config = configure(tmp_path, execution={"steps": {"training": False, "inference": False}})
    assert main(["check", str(config)]) == 0
    assert "16 images loaded; execution.steps trains nothing" in capsys.readouterr().out


def test_check_without_a_storage_tries_the_network_on_data_of_its_own(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text('{"framework": {"name": "PyTorch", "PyTorch": {"DataLoader": {"num_workers": 0}}}}')
    assert main(["check", str(path)]) == 0
    assert "ConvNet trained on 15 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"metrics": {"path": "no/such/folder.csv"}}, ["metrics.path", "no folder"]),
        ({"model": {"save_dir": "/proc/no"}}, ["model.save_dir", "cannot be written"]),
    ],
)
def test_check_tries_where_the_outputs_go(config, tmp_path, capsys, sections, words):
    _fails(configure(tmp_path, **sections), capsys, "outputs", *words)


CACHING = """
from dnnbench.datasets.torch import RandomAccessDataset

class Caching(RandomAccessDataset):
    def read_file_system_data(self, image):
        return self.decode(b"") if False else __import__("torch").zeros(32, 32)
"""


def test_check_holds_what_was_read_against_the_catalog(config, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(CACHING)
    config = configure(tmp_path, dataset={"label": LABELS, "name": f"{tmp_path}/mine.py:Caching"})
    _fails(config, capsys, "0 objects were read at the storage for 16 samples", "self.storage.read(image)")


# -- predict -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(config, tmp_path):
    """The path of a saved network, untrained."""
    chosen = expand_settings(json.loads(config.read_text()), [f"model.save_dir={tmp_path}/models"])[0].config
    return save_trained(torch_build, chosen, torch_build.make_model(chosen, 2), "torch-fs")


def test_predict_gives_a_line_per_image_with_what_the_network_says(saved, tmp_path, capsys):
    capsys.readouterr()
    assert main(["predict", str(saved), str(tmp_path / "data/source1")]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [key for key, _, _ in lines] == [
        f"{tmp_path}/data/source1/{label}/00000{i}.jpg" for label in LABELS for i in range(4)
    ]
    assert all(label in LABELS and 0.5 <= float(probability) <= 1 for _, label, probability in lines)
    one = lines[3]
    assert main(["predict", str(saved), one[0]]) == 0
    assert capsys.readouterr().out.split() == one


def test_predict_says_the_same_of_the_same_image_on_every_storage(saved, tmp_path, local_servers, capsys):
    aws, bucket = local_servers.aws()
    account = {"access_key": "dnnbench", "secret_key": "dnnbench-secret"}
    s3 = {
        "aws": {"credentials": {**account, "endpoint": aws.endpoint}},
        "dss": {"credentials": {**account, "endpoint": local_servers.dss().endpoint}},
    }
    path = configure(tmp_path, storage={"s3": s3})
    told = []
    places = [f"{tmp_path}/data/source1", f"s3://{bucket}/predict-{tmp_path.name}", f"dss:predict-{tmp_path.name}"]
    for place in places:
        if place != places[0]:
            assert main(["copy", places[0], place, "--config", str(path)]) == 0
        capsys.readouterr()
        assert main(["predict", str(saved), place, "--config", str(path)]) == 0
        told.append(
            [line.partition("/roses/")[2] for line in capsys.readouterr().out.splitlines() if "/roses/" in line]
        )
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 4


NORMALISED = """
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.models.torch import NeuralNetwork
import torch

class Normalised(RandomAccessDataset):
    def __init__(self, config={}):
        super().__init__(transform=lambda image: image.float() / 255, config=config)

class Brightness(NeuralNetwork):
    def __init__(self, image_diments):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        # Of 0 to 1 images the third output, which is no category, is the largest; of 0 to 255 ones the second.
        mean = images.mean(dim=(1, 2))
        return torch.stack([0 * mean, 100 * (mean > 1), 50 + 0 * mean], 1) * self.scale
"""


def test_predict_reads_as_the_users_dataset_did_from_any_folder(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(NORMALISED)
    monkeypatch.chdir(tmp_path)
    names = {"dataset.name": "mine.py:Normalised", "model.name": "mine.py:Brightness", "model.save_dir": "models"}
    settings = [f"{key}={name}" for key, name in names.items()]
    chosen = expand_settings(json.loads(config.read_text()), settings)[0].config
    path = save_trained(torch_build, chosen, torch_build.make_model(chosen, 2), "torch-mine").absolute()
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert main(["predict", str(path), f"{tmp_path}/data/source1/roses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.split("\t")[1:] == ["-", "1.000"] for line in lines)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_saved_network_is_never_executed(saved, tmp_path, capsys):
    mark = tmp_path / "executed"
    torch.save({"weights": Bomb(mark)}, saved)
    assert main(["predict", str(saved), str(tmp_path / "data/source1")]) == 2
    saved.write_bytes(pickle.dumps(Bomb(mark)))
    assert main(["predict", str(saved), str(tmp_path / "data/source1")]) == 2
    assert not mark.exists()
    error = capsys.readouterr().err
    assert error.count("cannot be loaded as weights") == 2
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda saved: saved.unlink(), "there is no such file"),
        (lambda saved: Path(f"{saved}.json").unlink(), "there is no such file"),
        (lambda saved: Path(f"{saved}.json").write_text("{"), "does not describe a network"),
        (lambda saved: Path(f"{saved}.json").write_text("[]"), "does not describe a network"),
        (lambda saved: saved.write_bytes(saved.read_bytes()[:-300]), "cannot be loaded"),
        (lambda saved: torch.save({"other": torch.zeros(2)}, saved), "cannot be loaded"),
    ],
)
def test_a_network_that_cannot_be_used_is_one_line(saved, tmp_path, capsys, break_it, message):
    break_it(saved)
    assert main(["predict", str(saved), str(tmp_path / "data/source1")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(saved) in line


def test_predict_names_what_is_no_image_and_where_there_is_none(saved, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    assert main(["predict", str(saved), str(tmp_path / "text.jpg")]) == 2
    assert "text.jpg: is no image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(saved), str(tmp_path / "empty")]) == 2
    assert "no images here" in capsys.readouterr().err


def test_saving_writes_weights_and_a_description_without_secrets(saved):
    assert zipfile.is_zipfile(saved)
    described = json.loads(Path(f"{saved}.json").read_text())
    assert described["framework"] == "torch"
    assert set(described["configuration"]) == {"dataset", "model"}


# -- run ---------------------------------------------------------------------------------------------


def run(config, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "dnnbench", "run", str(config), *arguments],
        cwd=config.parent, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_run_measures_and_writes_json_and_csv(config, tmp_path):
    for times in (1, 2):
        done = run(config, "-k", "listing or training or (read and c8)")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "torch train random" in done.stdout
        names = [b["name"] for b in json.loads((tmp_path / "config.out.json").read_text())["benchmarks"]]
        assert names == ["test_listing[fs-posix]", "test_read[fs-posix-c8]", "test_training[fs-posix-torch-random]"]
        with (tmp_path / "config.metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["benchmark"] for row in rows] == names * times
        assert rows[-1]["epoch"] == "1"
        assert float(rows[-1]["samples_per_s"]) > 0


def test_run_tells_a_mistake_at_once_and_passes_a_failure_on(tmp_path):
    done = run(configure(tmp_path), "-k", "listing")
    assert done.returncode != 0
    assert "no such folder" in done.stdout + done.stderr
    path = tmp_path / "bad.json"
    path.write_text("{")
    done = run(path)
    assert done.returncode == 2
    assert done.stderr.startswith("dnnbench: ")
    assert not list(tmp_path.glob("*.csv"))


SLOW = """
import time
from dnnbench.datasets.torch import RandomAccessDataset

class Endless(RandomAccessDataset):
    def read_file_system_data(self, image):
        print("reading", flush=True)
        open({mark!r}, "a").close()
        while True:
            time.sleep(0.05)
"""


@pytest.mark.parametrize("whom", ["group", "parent"])
def test_ctrl_c_ends_a_run_with_its_workers_and_leaves_no_whole_result(config, tmp_path, whom):
    mark = tmp_path / "reading"
    (tmp_path / "mine.py").write_text(SLOW.format(mark=str(mark)))
    sections = {"PyTorch": {"DataLoader": {"num_workers": 2}}, "name": "PyTorch"}
    config = configure(tmp_path, dataset={"label": LABELS, "name": f"{tmp_path}/mine.py:Endless"}, framework=sections)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dnnbench", "run", str(config), "-k", "listing or loader"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    watch = psutil.Process(process.pid)
    while not mark.exists():
        assert process.poll() is None, process.stdout.read()
        select.select([], [], [], 0.1)
    family = watch.children(recursive=True)
    assert len(family) >= 3
    os.killpg(process.pid, signal.SIGINT) if whom == "group" else process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in told.decode()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not (tmp_path / "config.out.json").exists()
    assert (tmp_path / "config.out.json.partial").exists()

"""Whole runs of several ranks: ``pytest tests/distributed_runs.py``. Real launches, losses, and hosts of their own.

Hosts are network namespaces, where this system lets us make them; their server is in a third one.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.test_bench import jpeg


def run(*command):
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


ROOT = Path(__file__).parent.parent
LABELS = ["roses", "tulips"]
IMAGES = 21
# A lost rank has to end the run within this; so much has a run for all that it does otherwise.
LOST_S = 30
LONGEST_S = 240
# What is quick: the framework that starts soonest, no workers, nothing made again.
QUICK = [
    "--dnn-set=framework.PyTorch.DataLoader.num_workers=0",
    "--dnn-set=execution.max_repeats=0",
    "--dnn-set=execution.rounds=2",
    "--dnn-set=framework.epochs=2",
    "--dnn-set=framework.batch_size=4",
]


@pytest.fixture
def data(tmp_path):
    """A folder of images of different sizes; (the folder, their bytes together)."""
    total = 0
    for label in LABELS:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(IMAGES):
            image = jpeg(number) + b"\0" * (97 * number)
            (tmp_path / "data" / label / f"{number}.jpg").write_bytes(image)
            total += len(image)
    return tmp_path / "data", total


@pytest.fixture
def config(tmp_path, data):
    """A configuration file of these images, with changes."""

    def write(name="config.json", **changes):
        content = {"storage": {"fs": {"data_dir": [str(data[0])]}}, "dataset": {"label": LABELS}} | changes
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def environment(**more):
    """The environment of a run that knows nothing of the one that tests it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def torchrun(ranks, *arguments, options=(), prefix=()):
    launch = [sys.executable, "-m", "torch.distributed.run", *options]
    if not options:
        # A port of its own: several runs may be made at a time.
        launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [*prefix, *launch, f"--nproc-per-node={ranks}", "-m", "pytest", "bench/", *QUICK, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process, longest_s=LONGEST_S):
    """(exit status, what was said) of a process, which is killed with all of its own where it takes too long."""
    try:
        told, _ = process.communicate(timeout=longest_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        told, _ = process.communicate()
        pytest.fail(f"ran longer than {longest_s} s: {told[-3000:]}")
    return process.returncode, told


def started_ranks(ranks, of_rank, cwds=None):
    """Ranks without a launcher, each with arguments of its own; (exit status, what was said) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "bench/", *QUICK, *of_rank(rank)], cwd=cwds[rank] if cwds else ROOT,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks), **launched),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    return [ended(process) for process in processes]


def records(out):
    return {one["name"]: one["extra_info"] for one in json.loads(out.read_text())["benchmarks"]}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_read_everything_once_together(tmp_path, config, data, ranks):
    out = tmp_path / "out.json"
    selected = "listing or (read and (serial or c8)) or (loader and torch)"
    status, told = ended(
        torchrun(ranks, f"--dnn-config={config()}", "-k", selected, f"--benchmark-json={out}", "--dnn-storage=fs")
    )
    assert status == 0, told
    found = records(out)
    listing = found.pop("test_listing[fs-posix]")
    assert (listing["ranks"]["count"], listing["listed_bytes"]) == (1, 2 * data[1])
    assert len(found) == 4
    for name, record in found.items():
        told_of = record["ranks"]
        assert (told_of["count"], told_of["hosts"], record["rounds"]) == (ranks, 1, 2), name
        # Two rounds, in each of which every sample came once, to one of the ranks.
        assert (record["objects"], record["bytes"]) == (2 * 2 * IMAGES, 2 * data[1]), name
        assert record["latency_count"] == record["objects"], name
        assert record["requests"] == {"READ": record["objects"]} or sum(record["requests"].values())
        each = [one["objects"] for one in told_of["per_rank"]]
        assert sum(each) == record["objects"], name
        assert max(each) - min(each) <= 2, name
        assert sum(one["bytes"] for one in told_of["per_rank"]) == record["bytes"], name
        assert told_of["slowest"]["objects_per_s"] <= told_of["fastest"]["objects_per_s"], name
    assert told.count("= dnnbench =") == 1
    # pytest-benchmark's own figures are those of all ranks, too.
    for one in json.loads(out.read_text())["benchmarks"]:
        assert sum(one["stats"]["data"]) == pytest.approx(one["extra_info"]["wall_s"], rel=0.05)


def test_ranks_of_a_launch_are_an_axis_with_their_efficiency(tmp_path, config, data):
    out = tmp_path / "out.json"
    status, told = ended(
        torchrun(
            3, f"--dnn-config={config()}", "-k", "read and c8", "--dnn-set=execution.ranks=1,2,3",
            f"--benchmark-json={out}",
        )
    )  # fmt: skip
    assert status == 0, told
    counts = {name: (record["ranks"]["count"], record["bytes"]) for name, record in records(out).items()}
    assert counts == {f"test_read[fs-posix-r{ranks}-c8]": (ranks, 2 * data[1]) for ranks in (1, 2, 3)}
    (series,) = json.loads(out.read_text())["dnnbench"]["scaling"]
    assert [point["ranks"] for point in series["points"]] == [1, 2, 3]
    assert series["points"][0]["efficiency"] == 1
    assert "read c8: by ranks (and efficiency) 1: " in told


TRAINER = """
import torch
import torch.distributed as dist
from dnnbench.training.torch import RandomAccessDatasetTrain

class Together(RandomAccessDatasetTrain):
    "Trains, and finds the same network on every rank, which is not what it would be without the others."
    def train(self):
        super().train()
        mine = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        assert all(torch.equal(one, mine) for one in everyone), "the ranks have different networks"
        batches = [None] * dist.get_world_size()
        dist.all_gather_object(batches, len(self.train_dataloader))
        print("batches", batches)
"""


@pytest.mark.parametrize("access", ["random", "sequential"])
def test_a_network_of_torch_is_one_on_all_ranks(tmp_path, config, data, access):
    (tmp_path / "together.py").write_text(TRAINER)
    out = tmp_path / "out.json"
    path = config(
        training={"name": f"{tmp_path / 'together.py'}:Together"},
        dataset={"label": LABELS, "access": {"random": access == "random", "sequential": access == "sequential"}},
    )
    # 42 samples of 4 ranks: 10, 11, 10 and 11, in batches of 5: some have a sample that begins another batch.
    status, told = ended(
        torchrun(
            4, f"--dnn-config={path}", "-k", "training and torch", f"--benchmark-json={out}",
            "--dnn-set=framework.batch_size=5",
        )
    )  # fmt: skip
    assert status == 0, told
    (record,) = records(out).values()
    assert [epoch["samples"] for epoch in record["epochs"]] == [2 * IMAGES] * 2
    assert record["bytes"] == 2 * data[1]
    if access == "random":
        assert record["epochs"][1]["loss"] < record["epochs"][0]["loss"]


def test_a_network_of_tensorflow_is_trained_by_all_ranks(tmp_path, config, data):
    out = tmp_path / "out.json"
    status, told = ended(
        torchrun(2, f"--dnn-config={config()}", "-k", "(training or loader) and tf", f"--benchmark-json={out}")
    )
    assert status == 0, told
    found = records(out)
    assert len(found) == 3
    for record in found.values():
        assert (record["ranks"]["count"], record["bytes"]) == (2, 2 * data[1])
    trained = found["test_training[fs-posix-tf-random]"]
    assert [epoch["samples"] for epoch in trained["epochs"]] == [2 * IMAGES] * 2


def test_a_ladder_is_climbed_by_all_ranks(tmp_path, config):
    out = tmp_path / "out.json"
    status, told = ended(torchrun(2, f"--dnn-config={config()}", "-k", "ladder and torch", f"--benchmark-json={out}"))
    assert status == 0, told
    (record,) = records(out).values()
    assert record["ranks"]["count"] == 2
    assert {reads["processes"] for reads in record["ladder"]["reads"].values()} == {2}
    assert record["ladder"]["verdict"]["side"] in ("storage", "clients")
    # Both ranks' parts, as the reads are.
    assert record["catalog"]["objects"] == record["ladder"]["samples"] == record["objects"]


SLOW = """
import os, time
from pathlib import Path
from dnnbench.datasets.torch import TorchImageClassificationDataset

class Slow(TorchImageClassificationDataset):
    "Never ends its second loader, and says who it is."
    def __getitem__(self, index):
        if Path({begun!r}).exists():
            Path({folder!r}, os.environ["RANK"]).write_text(str(os.getpid()))
            time.sleep(600)
        return super().__getitem__(index)
"""


def await_ranks(folder, ranks, process):
    """The process number of each rank, when all of them read."""
    until_s = time.monotonic() + LONGEST_S
    while time.monotonic() < until_s and process.poll() is None:
        pids = [(folder / str(rank)).read_text() for rank in range(ranks) if (folder / str(rank)).exists()]
        if len(pids) == ranks and all(pids):
            return list(map(int, pids))
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"the ranks did not begin to read: {process.communicate()[0][-3000:]}")


def test_a_killed_rank_ends_the_run_with_its_name_and_what_had_finished_is_kept(tmp_path, config):
    pids = tmp_path / "pids"
    pids.mkdir()
    begun = tmp_path / "begun"
    (tmp_path / "slow.py").write_text(SLOW.format(begun=str(begun), folder=str(pids)))
    path = config(dataset={"label": LABELS, "name": f"{tmp_path / 'slow.py'}:Slow"})
    out = tmp_path / "out.json"
    arguments = [f"--dnn-config={path}", f"--benchmark-json={out}", "-k", "loader and torch or listing"]
    process = torchrun(3, *arguments)
    journal = Path(f"{out}.journal")
    until_s = time.monotonic() + LONGEST_S
    # The listing has finished; what comes next will never.
    while time.monotonic() < until_s and not (journal.exists() and "test_listing" in journal.read_text()):
        time.sleep(0.05)
    begun.touch()
    numbers = await_ranks(pids, 3, process)
    os.kill(numbers[1], signal.SIGKILL)
    killed_s = time.monotonic()
    status, told = ended(process)
    assert time.monotonic() - killed_s < LOST_S
    assert status != 0
    assert re.search(r"^dnnbench: rank 1 on \S+ gave no sign of life", told, re.MULTILINE), told
    assert not out.exists()
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert "test_listing" in str([entry["benchmark"]["name"] for entry in entries if "benchmark" in entry])
    begun.unlink()
    status, told = ended(torchrun(3, *arguments, "--dnn-resume"))
    assert status == 0, told
    assert "dnnbench: resumed: " in told
    assert all(record["ranks"]["count"] in (1, 3) for record in records(out).values())


FAILING = """
import os
from dnnbench.datasets.torch import TorchImageClassificationDataset

class Failing(TorchImageClassificationDataset):
    def __getitem__(self, index):
        if os.environ["RANK"] == "1":
            self.storage.fetch("/no/such/file", 5)
        return super().__getitem__(index)
"""


def test_a_rank_that_fails_ends_the_run_for_all_with_its_cause(tmp_path, config):
    (tmp_path / "failing.py").write_text(FAILING)
    path = config(dataset={"label": LABELS, "name": f"{tmp_path / 'failing.py'}:Failing"})
    out = tmp_path / "out.json"
    began_s = time.monotonic()
    status, told = ended(torchrun(2, f"--dnn-config={path}", f"--benchmark-json={out}", "-k", "loader and torch"))
    assert status != 0
    assert time.monotonic() - began_s < LONGEST_S
    assert re.search(r"rank 1 on \S+ failed: NotFoundError: .*/no/such/file", told), told
    assert not out.exists()


def test_two_configurations_are_refused_at_the_start(tmp_path, config):
    paths = [config("0.json"), config("1.json", framework={"max_batch_size": 7})]
    out = tmp_path / "out.json"
    ranks = started_ranks(2, lambda rank: [f"--dnn-config={paths[rank]}", "-k", "listing", f"--benchmark-json={out}"])
    for status, told in ranks:
        assert status == pytest.ExitCode.USAGE_ERROR, told
    assert re.search(r"ERROR: rank 1 on \S+: configuration is \S+, but \S+ on rank 0 on", ranks[0][1]), ranks
    assert not out.exists()


def test_two_versions_of_the_code_are_refused_at_the_start(tmp_path, config):
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("dnnbench", "fixtures", "bench", "conftest.py", "pytest.ini"):
        run("cp", "-r", str(ROOT / part), str(copy / part))
    (copy / "dnnbench" / "errors.py").open("a").write("# another version\n")
    path = config()
    ranks = started_ranks(2, lambda rank: [f"--dnn-config={path}", "-k", "listing"], [ROOT, copy])
    for status, told in ranks:
        assert status == pytest.ExitCode.USAGE_ERROR, told
    assert re.search(r"ERROR: rank 1 on \S+: dnnbench is \S+, but \S+ on rank 0 on", ranks[0][1]), ranks


# -- several hosts -----------------------------------------------------------------------------------


class Hosts:
    """Hosts of our own on this machine: network namespaces, each with a cable to the one of the server."""

    def __init__(self, count):
        # Interfaces have short names, and other runs theirs.
        self._mark = uuid.uuid4().hex[:6]
        self.names = [f"dnn{self._mark}h{number}" for number in range(count)]
        self.server = f"dnn{self._mark}s"
        self._made = []

    def __enter__(self):
        try:
            for name in (self.server, *self.names):
                run("ip", "netns", "add", name)
                self._made.append(name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", self.server, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", self.server, "addr", "add", f"{self.address()}/24", "dev", "br0")
            run("ip", "-n", self.server, "link", "set", "br0", "up")
            for number, name in enumerate(self.names):
                plug = f"p{self._mark}{number}"
                run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", plug, "netns", self.server)
                run("ip", "-n", self.server, "link", "set", plug, "master", "br0", "up")
                run("ip", "-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                run("ip", "-n", name, "link", "set", "eth0", "up")
                run(*self.on(number), "true")
        except (OSError, subprocess.SubprocessError) as exc:
            self.__exit__()
            pytest.skip(f"no network namespaces here: {getattr(exc, 'stderr', '') or exc}")
        return self

    def __exit__(self, *_):
        for name in self._made:
            run("ip", "netns", "del", name)

    def address(self, number=-1):
        return f"10.213.7.{number + 2}"

    def on(self, number):
        """What goes before a command to run it on a host, under the host's own name."""
        name = self.names[number]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]

    def cut(self, number):
        run("ip", "-n", self.names[number], "link", "set", "eth0", "down")


SERVER = "import dnnbench.servers.moto as m; m.HOST = {host!r}; m._serve('aws', 1)"


@pytest.fixture
def hosts(tmp_path, data):
    """Two hosts, and a configuration of a data set that both reach on a server on a third."""
    with Hosts(2) as made:
        inside = ["ip", "netns", "exec", made.server]
        server = subprocess.Popen(
            [*inside, sys.executable, "-c", SERVER.format(host=made.address())], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            port = json.loads(server.stdout.readline())["ports"]["aws"][0]
            account = {"endpoint": f"http://{made.address()}:{port}", "access_key": "a", "secret_key": "b"}
            s3 = {"bucket": "pictures", "prefix": ["set/"], "client_lib": "obstore", "aws": {"credentials": account}}
            content = {"storage": {"format": "s3", "name": "aws", "s3": s3}, "dataset": {"label": LABELS}}
            path = tmp_path / "s3.json"
            path.write_text(json.dumps(content))
            make = (
                "import boto3, sys; s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', "
                "aws_access_key_id='a', aws_secret_access_key='b'); s3.create_bucket(Bucket='pictures')"
            )
            run(*inside, sys.executable, "-c", make, account["endpoint"])
            run(*inside, sys.executable, "-m", "dnnbench", "copy", str(data[0]), "s3://pictures/set", "--config", path)
            yield made, path
        finally:
            server.kill()
            server.wait()


def on_two_hosts(hosts, *arguments):
    """A launch of one rank on each of two hosts."""
    options = ["--nnodes=2", f"--master-addr={hosts.address(0)}", "--master-port=29400"]
    return [
        torchrun(1, *arguments, options=[*options, f"--node-rank={node}"], prefix=hosts.on(node)) for node in range(2)
    ]


def test_two_hosts_read_from_a_third(tmp_path, hosts, data):
    made, path = hosts
    out = tmp_path / "out.json"
    nodes = on_two_hosts(
        made,
        f"--dnn-config={path}",
        f"--benchmark-json={out}",
        "-k",
        "listing or read or (torch and random and (loader or training))",
    )
    told = [ended(node) for node in nodes]
    assert [status for status, _ in told] == [0, 0], told
    assert "= dnnbench =" in told[0][1]
    assert "= dnnbench =" not in told[1][1]
    for name, record in records(out).items():
        if "listing" not in name:
            assert (record["ranks"]["count"], record["ranks"]["hosts"]) == (2, 2), name
            assert [one["host"] for one in record["ranks"]["per_rank"]] == made.names
            assert record["bytes"] == 2 * data[1], name
            assert record["requests"] == {"GET": record["objects"]}, name


def test_a_host_that_is_cut_off_ends_the_run_on_both_sides_with_its_name(tmp_path, hosts):
    made, path = hosts
    pids = tmp_path / "pids"
    pids.mkdir()
    begun = tmp_path / "begun"
    begun.touch()
    (tmp_path / "slow.py").write_text(SLOW.format(begun=str(begun), folder=str(pids)))
    content = json.loads(path.read_text())
    content["dataset"]["name"] = f"{tmp_path / 'slow.py'}:Slow"
    path.write_text(json.dumps(content))
    out = tmp_path / "out.json"
    nodes = on_two_hosts(made, f"--dnn-config={path}", f"--benchmark-json={out}", "-k", "listing or loader and torch")
    await_ranks(pids, 2, nodes[0])
    made.cut(1)
    cut_s = time.monotonic()
    (first_status, first), (second_status, second) = [ended(node, LONGEST_S) for node in nodes]
    assert 0 not in (first_status, second_status)
    assert f"dnnbench: rank 1 on {made.names[1]} gave no sign of life" in first, first
    assert f"dnnbench: rank 0 on {made.names[0]} cannot be reached" in second, second
    assert time.monotonic() - cut_s < 2 * LOST_S
    assert Path(f"{out}.journal").exists()

"""Local servers: free ports, a true DSS, and an end together with their parent, whatever ends that."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dnnbench import servers
from dnnbench.servers import LocalServer, LocalServers, ServerError
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.s3 import S3Storage

ROOT = Path(__file__).parent.parent


def test_servers_take_ports_that_are_free():
    first, second = LocalServer(2), LocalServer(1)
    try:
        assert len({*first.endpoints, *second.endpoints}) == 3
    finally:
        first.close()
        second.close()


def test_nothing_starts_before_it_is_used():
    with LocalServers() as unused:
        assert unused.pids() == []


def test_conf_json_names_every_endpoint_in_every_cluster(local_servers):
    credentials = local_servers.dss()
    clusters = DssStorage(credentials).clusters
    assert [(cluster.id, cluster.bucket, len(cluster.endpoints)) for cluster in clusters] == [
        (0, "dss0", 2),
        (1, "dss1", 2),
    ]
    for cluster in clusters:
        for endpoint in cluster.endpoints:
            there = S3Storage("dss", credentials.model_copy(update={"endpoint": endpoint}))
            conf = json.loads(there.read("conf.json"))
            assert conf["transport_type"] == "minio"
            assert [one["id"] for one in conf["clusters"]] == [0, 1]


def test_the_clusters_share_nothing_but_a_clusters_endpoints_do(local_servers):
    credentials = local_servers.dss()
    first, second = DssStorage(credentials).clusters

    def at(endpoint, bucket):
        return S3Storage(bucket, credentials.model_copy(update={"endpoint": endpoint}))

    at(first.endpoints[0], "dss0").write("shared.bin", b"x")
    assert at(first.endpoints[1], "dss0").read("shared.bin") == b"x"
    assert [e.key for e in at(second.endpoints[0], "dss1").list("shared.bin")] == []


def test_close_ends_the_processes_and_may_be_called_again():
    local = LocalServers()
    local.aws()
    processes = [psutil.Process(pid) for pid in local.pids()]
    local.close()
    local.close()
    assert not any(process.is_running() for process in processes)


PARENT = """
import sys
from dnnbench.servers import LocalServers
local = LocalServers()
local.dss()
print(*local.pids(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_servers_end_with_a_parent_that_is_killed(ending):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(ending)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    parent.stdin.close()
    parent.stdout.close()
    assert alive == []


def test_a_server_that_cannot_start_is_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "moto"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no moto here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"no moto here.*requirements\.txt") as caught:
        LocalServer()
    assert "\n" not in str(caught.value)


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 0)
    with pytest.raises(ServerError, match="within 0 s"):
        LocalServer()

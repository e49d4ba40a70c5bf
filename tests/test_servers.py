"""Local servers: free ports, a true DSS, and an end together with their parent, whatever ends that."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dnnbench import servers
from dnnbench.servers import LocalServer, LocalServers, ServerError, installed_version
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.s3 import S3Storage

ROOT = Path(__file__).parent.parent


# Where its packages are not installed, Ceph's own tests say which they are.
try:
    NEEDS_CEPH = pytest.mark.skipif(False, reason=installed_version("ceph"))
except ServerError as _missing:
    NEEDS_CEPH = pytest.mark.skip(reason=str(_missing))


def test_servers_take_ports_that_are_free():
    first, second = LocalServer("moto", {"a": 2}), LocalServer("moto", {"a": 1})
    try:
        assert len({*first.endpoints["a"], *second.endpoints["a"]}) == 3
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


def test_a_kind_that_is_not_known_is_named():
    with pytest.raises(ServerError, match='found "minio", expected one of moto, ceph'):
        LocalServers("minio")


def test_close_ends_the_processes_and_may_be_called_again():
    local = LocalServers()
    assert local.description() is None
    local.aws()
    processes = [psutil.Process(pid) for pid in local.pids()]
    local.close()
    local.close()
    assert not any(process.is_running() for process in processes)
    # The record is written after the servers' end.
    assert local.description() == {"kind": "moto", "version": installed_version("moto")}


PARENT = """
import sys
from dnnbench.servers import LocalServers
local = LocalServers(sys.argv[1])
local.dss()
print(*local.pids(), flush=True)
sys.stdin.read()
"""


CEPH_DIES = pytest.param("ceph", signal.SIGKILL, marks=NEEDS_CEPH)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("moto", signal.SIGKILL), ("moto", signal.SIGINT), ("moto", signal.SIGTERM), CEPH_DIES],
)
def test_servers_end_with_a_parent_that_is_killed(kind, ending, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, kind],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == {"moto": 2, "ceph": 6}[kind]
    assert bool(list(tmp_path.iterdir())) == (kind == "ceph")
    parent.send_signal(ending)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    parent.stdin.close()
    parent.stdout.close()
    assert alive == []
    assert list(tmp_path.iterdir()) == []


@NEEDS_CEPH
def test_ceph_ends_with_the_child_that_holds_it_and_with_any_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for victim in (0, 1):
        server = LocalServer("ceph", {"a": 1})
        try:
            daemons = [psutil.Process(pid) for pid in server.pids]
            assert [one.name() for one in daemons[1:]] == ["ceph-mon", "ceph-osd", "radosgw"]
            daemons[victim].kill()
            _, alive = psutil.wait_procs(daemons, timeout=20)
            assert alive == []
        finally:
            server.close()


def test_without_the_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"radosgw.*apt-get install .*radosgw ceph-mon ceph-osd") as caught:
        LocalServers("ceph").aws()
    assert "\n" not in str(caught.value)


@NEEDS_CEPH
def test_a_daemon_that_dies_in_the_boot_is_named_with_its_last_error(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    mkfs = f'case "$*" in *--mkfs*) exec {shutil.which("ceph-osd")} "$@";; esac'
    (programs / "ceph-osd").write_text(f"#!/bin/sh\n{mkfs}\necho '2026 7f -1 no room here' >&2\necho dump\nexit 3\n")
    (programs / "ceph-osd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ServerError, match=r"ceph-osd ended with status 3: no room here$"):
        LocalServer("ceph", {"a": 1})
    assert list(tmp_path.iterdir()) == [programs]


def test_a_server_that_cannot_start_is_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "moto"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no moto here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"no moto here.*requirements\.txt") as caught:
        LocalServer("moto", {"a": 1})
    assert "\n" not in str(caught.value)


def test_a_server_that_has_much_to_complain_of_goes_on(monkeypatch, tmp_path):
    (tmp_path / "moto.py").write_text(
        f"import sys\nsys.stderr.write('x' * {1 << 20} + chr(10))\nraise ImportError('end')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 20)
    with pytest.raises(ServerError, match=r"did not start: .*requirements"):
        LocalServer("moto", {"a": 1})


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 0)
    with pytest.raises(ServerError, match="within 0 s"):
        LocalServer("moto", {"a": 1})

"""The child that serves with Ceph, a real object store: ``python -m dnnbench.servers.ceph NAME=PORTS …``.

One monitor, one OSD that keeps its objects in memory, and for each name space a zone of its own with its own S3
gateway (RGW). All is on loopback, in a temporary folder, and belongs to whoever runs it: root is not needed. The
daemons end with this child, and this child with the run.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from dnnbench.servers import ACCESS_KEY, HOST, SECRET_KEY, ServerError
from dnnbench.servers.child import end_with_the_run, spaces, tell

PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "setpriv")
INSTALL = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
BOOT_TIMEOUT_S = 75
POLL_S = 0.02
# As much as memory holds in objects; nothing is taken before it is written.
STORE_BYTES = 4 << 30

# One of everything, no keys between the daemons, nothing outside of the folder, and no log but errors.
CONF = """
[global]
fsid = {fsid}
mon_host = [v2:{host}:{mon_port}]
public_addr = {host}
cluster_addr = {host}
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}
crash_dir = {folder}
admin_socket =
log_file =
log_to_stderr = true
err_to_stderr = true
debug_default = 0/0
debug_mon = 0/0
debug_osd = 0/0
debug_rgw = 0/0
debug_rocksdb = 0/0
debug_paxos = 0/0
debug_ms = 0/0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon]
mon_data = {folder}/mon
mon_cluster_log_to_file = false
# A proposal waits so long for others to join it: in a boot there are many, one after the other.
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {store_bytes}
osd_crush_initial_weight = 1
osd_class_load_list = *
osd_class_default_list = *
"""
GATEWAY_CONF = """
[client.rgw.{name}]
rgw_data = {folder}
rgw_realm = {name}
rgw_zonegroup = {name}
rgw_zone = {name}
rgw_frontends = beast {endpoints} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
rgw_enable_usage_log = false
rgw_enable_ops_log = false
"""


def version() -> str:
    """The version that is installed. Raises `ServerError` with what to install."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ServerError(f"Ceph needs {', '.join(missing)}, not found here; {INSTALL}")
    told = subprocess.run(["ceph-mon", "--version"], capture_output=True, text=True, check=False)  # noqa: S607 (as found on the PATH above)
    found = re.search(r"ceph version (\S+)", told.stdout)
    if not found:
        raise ServerError(f"ceph-mon does not run ({_last_line(told.stderr)}); {INSTALL}")
    return found[1]


class Ceph:
    """The daemons, as a context manager: ``spaces`` are the name spaces, and how many ports each has.

    Entering waits until all serve, and raises `ServerError`; leaving kills them and removes what they had.
    """

    def __init__(self, spaces: Mapping[str, int]) -> None:
        self._spaces = spaces
        self._deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # Bound and not listening, these keep their ports free of others, and the daemons may still listen there.
        self._held: list[socket.socket] = []
        self.ports: dict[str, list[int]] = {}

    def __enter__(self) -> Ceph:
        self._folder = Path(tempfile.mkdtemp(prefix="dnnbench-ceph-"))
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def pids(self) -> list[int]:
        """The daemons' processes."""
        return [daemon.pid for daemon in self._daemons.values()]

    def wait(self) -> None:
        """Waits until a daemon ends, which none should: raises `ServerError`."""
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        self._check()

    def _boot(self) -> None:
        self.ports = {name: [self._free_port() for _ in range(count)] for name, count in self._spaces.items()}
        mon_port, fsid, monmap = self._free_port(), str(uuid.uuid4()), str(self._folder / "monmap")
        self._configure(fsid, mon_port)
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:{HOST}:{mon_port}]", monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("ceph-mon", "ceph-mon", "-f", "-i", "a")
        osd_uuid = str(uuid.uuid4())
        # Answered as soon as the monitor serves.
        self._run("ceph", "osd", "new", osd_uuid)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        self._start("ceph-osd", "ceph-osd", "-f", "-i", "0")
        for name in self._spaces:
            self._make_zone(name)
            self._start(f"radosgw {name}", "radosgw", "-f", "-n", f"client.rgw.{name}")
        for ports in self.ports.values():
            for port in ports:
                self._until(partial(_answers, port), "its S3 gateways")

    def _configure(self, fsid: str, mon_port: int) -> None:
        for name in ("mon", "osd"):
            (self._folder / name).mkdir()
        text = CONF.format(fsid=fsid, host=HOST, mon_port=mon_port, folder=self._folder, store_bytes=STORE_BYTES)
        for name, ports in self.ports.items():
            endpoints = " ".join(f"endpoint={HOST}:{port}" for port in ports)
            text += GATEWAY_CONF.format(name=name, folder=self._folder, endpoints=endpoints)
        (self._folder / "ceph.conf").write_text(text)

    def _make_zone(self, name: str) -> None:
        """A realm with one zone: its buckets and users are its own."""
        own = ("-n", f"client.rgw.{name}", f"--rgw-realm={name}", f"--rgw-zonegroup={name}", f"--rgw-zone={name}")
        self._run("radosgw-admin", *own, "realm", "create")
        self._run("radosgw-admin", *own, "zonegroup", "create", "--master")
        self._run("radosgw-admin", *own, "zone", "create", "--master")
        self._run("radosgw-admin", *own, "period", "update", "--commit")
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        who = ("--uid=dnnbench", "--display-name=dnnbench", "--max-buckets=0")
        self._run("radosgw-admin", *own, "user", "create", *who, *keys)

    # -- processes -------------------------------------------------------------------------------

    def _free_port(self) -> int:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        self._held.append(held)
        port: int = held.getsockname()[1]
        return port

    def _start(self, name: str, *command: str) -> None:
        """Starts a daemon. Should this child be killed itself, the kernel kills the daemon."""
        with open(self._log(name), "wb") as log:
            self._daemons[name] = self._popen("setpriv", "--pdeathsig", "KILL", *command, output=log.fileno())

    def _run(self, *command: str) -> None:
        """Waits for a command that must succeed."""
        with open(self._log("command"), "w+b") as log:
            process = self._popen(*command, output=log.fileno())
            try:
                self._until(lambda: process.poll() is not None, " ".join(command[:3]))
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if process.returncode:
                raise ServerError(f"{' '.join(command[:3])} failed: {self._said('command')}")

    def _popen(self, *command: str, output: int) -> subprocess.Popen[bytes]:
        # The user's own Ceph, if there is one, has no say here: no CEPH_ARGS, no /etc/ceph.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "CEPH_CONF": str(self._folder / "ceph.conf")}
        return subprocess.Popen(  # noqa: S603 (our own words)
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Polls until that is done. Raises `ServerError` when a daemon ends meanwhile, or the time to boot does."""
        while not done():
            self._check()
            if time.monotonic() > self._deadline_s:
                raise ServerError(f"no answer from {what} within {BOOT_TIMEOUT_S} s")
            time.sleep(POLL_S)

    def _check(self) -> None:
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                how = f"signal {-daemon.returncode}" if daemon.returncode < 0 else f"status {daemon.returncode}"
                raise ServerError(f"{name} ended with {how}: {self._said(name)}")

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _said(self, name: str) -> str:
        return _last_line(self._log(name).read_text(errors="replace"))

    def _end(self) -> None:
        # What they hold in memory goes anyway, and a gateway that is asked to end takes seconds.
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        for held in self._held:
            held.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(text: str) -> str:
    """What a program said last; of a daemon that broke down its last error, since a dump of all it knows follows."""
    lines = text.strip().splitlines()
    errors = [line.partition(" -1 ")[2] for line in lines if " -1 " in line]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _serve(spaces: Mapping[str, int]) -> None:
    end_with_the_run()
    try:
        installed = version()
        with Ceph(spaces) as ceph:
            tell(ceph.ports, installed, ceph.pids())
            ceph.wait()
    except (ServerError, OSError) as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        try:
            print(version())
        except ServerError as exc:
            sys.exit(str(exc))
    else:
        _serve(spaces(sys.argv[1:]))

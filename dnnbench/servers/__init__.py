"""Local S3 servers for a first run and for tests: moto, a mock, or Ceph, a real object store.

Never in the measuring process: the server's work would be counted as the client's. Each file beside
this one is such a server: ``python -m dnnbench.servers.KIND NAME=PORTS …`` serves as many separate
name spaces as there are names, each on so many free ports of the loopback interface.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dnnbench.errors import DnnbenchError

# The children import this file too: what it imports delays their start.
if TYPE_CHECKING:
    from dnnbench.config import S3Credentials

KINDS = ("moto", "ceph")
HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "dnnbench"
# What every server lets in.
ACCESS_KEY, SECRET_KEY = "dnnbench", "dnnbench-secret"
START_TIMEOUT_S = 90
END_TIMEOUT_S = 20
# The name spaces of a session, with their ports: an S3 server, and the clusters of a DSS.
AWS = {"aws": 1}
DSS = {"dss0": 2, "dss1": 2}


class ServerError(DnnbenchError):
    """A local server cannot be had."""


class LocalServer:
    """A child that serves S3; it ends with this process, however that ends.

    ``spaces`` are its name spaces and how many ports each has; ``endpoints`` then holds their URLs, ``pids`` its
    processes, and ``version`` that of what serves.
    """

    def __init__(self, kind: str, spaces: Mapping[str, int]) -> None:
        # A session of its own, so that Ctrl-C reaches the run and not the server under it; and a pipe
        # as its standard input, which the kernel closes when this process is gone, for any reason.
        command = [sys.executable, "-m", f"dnnbench.servers.{kind}", *(f"{name}={n}" for name, n in spaces.items())]
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self._kind = kind
        # No pipe: nobody empties it, and a server that has much to complain of would wait for that.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        atexit.register(self.close)
        told = self._await_start()
        self.endpoints = {name: [f"http://{HOST}:{port}" for port in ports] for name, ports in told["ports"].items()}
        self.pids: list[int] = [self._process.pid, *told["pids"]]
        self.version: str = told["version"]

    def _await_start(self) -> dict[str, Any]:
        lines: queue.Queue[bytes] = queue.Queue()
        stdout: Any = self._process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            self.close()
            raise ServerError(f"the local {self._kind} server did not start within {START_TIMEOUT_S} s") from None
        if not line:
            self._process.wait()
            complaint = self._complaint()
            self.close()
            raise ServerError(f"the local {self._kind} server did not start: {complaint}")
        told: dict[str, Any] = json.loads(line)
        return told

    def _complaint(self) -> str:
        """The last line that a child which has ended said of it."""
        self._complaints.seek(0)
        text = self._complaints.read().decode(errors="replace")
        return text.strip().rpartition("\n")[2] or f"exit status {self._process.returncode}"

    def close(self) -> None:
        """Ends the server; again does nothing."""
        atexit.unregister(self.close)
        if self._process.poll() is None:
            assert self._process.stdin is not None  # noqa: S101 (it was asked for above)
            self._process.stdin.close()
            try:
                self._process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                stream.close()


class LocalServers:
    """The servers of one session, started on first use: an S3 server for ``aws``, and a DSS of two clusters.

    ``kind`` is one of `KINDS`. Nothing is shared but by the endpoints of one cluster: each moto is a process of its
    own, and one Ceph has a zone for each.
    """

    def __init__(self, kind: str = "moto") -> None:
        if kind not in KINDS:
            raise ServerError(f'found "{kind}", expected one of {", ".join(KINDS)}')
        self.kind = kind
        self._servers: list[LocalServer] = []
        self._version: str | None = None
        self._filled: set[str] = set()

    def __enter__(self) -> LocalServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def aws(self) -> tuple[S3Credentials, str]:
        """(credentials with the endpoint, the name of an existing bucket) of a plain S3 server."""
        ((endpoint,),) = self._serve(AWS)
        if "aws" not in self._filled:
            _client(endpoint).create_bucket(BUCKET)
            self._filled.add("aws")
        return _credentials(endpoint), BUCKET

    def dss(self) -> S3Credentials:
        """Credentials with the discovery endpoint of a DSS: two clusters, two endpoints each."""
        clusters = self._serve(DSS)
        if "dss" not in self._filled:
            conf = json.dumps({"clusters": _describe(clusters), "init_time": "0", "transport_type": "minio"})
            for number, endpoints in enumerate(clusters):
                client = _client(endpoints[0])
                client.create_bucket(f"dss{number}")
                client.create_bucket("dss")
                client.put("dss", "conf.json", conf.encode())
            self._filled.add("dss")
        return _credentials(clusters[0][0])

    def pids(self) -> list[int]:
        """The processes of the servers that run."""
        return [pid for server in self._servers for pid in server.pids]

    def description(self) -> dict[str, str] | None:
        """What serves or has served, for the record; None where nothing has."""
        return {"kind": self.kind, "version": self._version} if self._version else None

    def close(self) -> None:
        """Ends every server that was started."""
        for server in self._servers:
            server.close()
        self._servers, self._filled = [], set()

    def _serve(self, spaces: Mapping[str, int]) -> list[list[str]]:
        """The endpoints of name spaces, whose servers are started where they do not run."""
        if not spaces.keys() <= self._endpoints().keys():
            apart: list[Mapping[str, int]] = [{name: ports} for name, ports in spaces.items()]
            # One Ceph has them all.
            children = [AWS | DSS] if self.kind == "ceph" else apart
            with ThreadPoolExecutor(len(children)) as pool:
                started = [pool.submit(LocalServer, self.kind, child) for child in children]
            errors = [one.exception() for one in started]
            self._servers += [one.result() for one, error in zip(started, errors, strict=True) if not error]
            for error in filter(None, errors):
                raise error
            self._version = self._servers[0].version
        return [self._endpoints()[name] for name in spaces]

    def _endpoints(self) -> dict[str, list[str]]:
        return {name: urls for server in self._servers for name, urls in server.endpoints.items()}


def installed_version(kind: str) -> str:
    """The version of a server that could be started. Raises `ServerError` with what to install for it."""
    version: str = importlib.import_module(f"dnnbench.servers.{kind}").version()
    return version


def _describe(clusters: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The clusters as ``conf.json`` has them."""
    return [
        {"id": number, "endpoints": [{"ipv4": HOST, "port": int(url.rpartition(":")[2])} for url in endpoints]}
        for number, endpoints in enumerate(clusters)
    ]


def _credentials(endpoint: str) -> S3Credentials:
    from dnnbench.config import S3Credentials

    return S3Credentials.model_validate(
        {"endpoint": endpoint, "region_name": REGION, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    )


def _client(endpoint: str) -> Any:
    from dnnbench.storage.base import Meter
    from dnnbench.storage.s3 import client_class

    return client_class("boto3")(_credentials(endpoint), Meter(), "local server")

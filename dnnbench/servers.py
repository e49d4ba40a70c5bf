"""Local S3 servers (moto) for a first run and for tests, each in a process of its own.

Never in the measuring process: the server's work would be counted as the client's. Run as a
module, this file is such a server: ``python -m dnnbench.servers PORTS``.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dnnbench.config import S3Credentials
from dnnbench.errors import DnnbenchError

HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "dnnbench"
START_TIMEOUT_S = 60
ENDPOINTS_PER_CLUSTER = 2
DSS_CLUSTERS = 2


class ServerError(DnnbenchError):
    """A local server cannot be had."""


class LocalServer:
    """One S3 server on free ports of the loopback interface; it ends with this process, however that ends."""

    def __init__(self, ports: int = 1) -> None:
        # A session of its own, so that Ctrl-C reaches the run and not the server under it; and a pipe
        # as its standard input, which the kernel closes when this process is gone, for any reason.
        command = [sys.executable, "-m", "dnnbench.servers", str(ports)]
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        atexit.register(self.close)
        self.endpoints = [f"http://{HOST}:{port}" for port in self._await_ports()]

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def _await_ports(self) -> list[int]:
        lines: queue.Queue[bytes] = queue.Queue()
        stdout: Any = self._process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            self.close()
            raise ServerError(f"the local S3 server did not start within {START_TIMEOUT_S} s") from None
        if not line:
            _, complaint = self._process.communicate()
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise ServerError(
                f"the local S3 server did not start ({last}); pip install -r requirements.txt brings what it needs"
            )
        ports: list[int] = json.loads(line)
        return ports

    def close(self) -> None:
        """Ends the server; again does nothing."""
        atexit.unregister(self.close)
        if self._process.poll() is None:
            assert self._process.stdin is not None  # noqa: S101 (it was asked for above)
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class LocalServers:
    """The servers of one session, started on first use: one for ``aws``, and a DSS of two clusters."""

    def __init__(self) -> None:
        self._aws: LocalServer | None = None
        self._dss: list[LocalServer] = []

    def __enter__(self) -> LocalServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def aws(self) -> tuple[S3Credentials, str]:
        """(credentials with the endpoint, the name of an existing bucket) of a plain S3 server."""
        if self._aws is None:
            self._aws = LocalServer()
            _client(self._aws.endpoints[0]).create_bucket(BUCKET)
        return _credentials(self._aws.endpoints[0]), BUCKET

    def dss(self) -> S3Credentials:
        """Credentials with the discovery endpoint of a DSS: two clusters, two endpoints each."""
        if not self._dss:
            with ThreadPoolExecutor(DSS_CLUSTERS) as pool:
                self._dss = list(pool.map(LocalServer, [ENDPOINTS_PER_CLUSTER] * DSS_CLUSTERS))
            conf = json.dumps({"clusters": _describe(self._dss), "init_time": "0", "transport_type": "minio"})
            for number, server in enumerate(self._dss):
                client = _client(server.endpoints[0])
                client.create_bucket(f"dss{number}")
                client.create_bucket("dss")
                client.put("dss", "conf.json", conf.encode())
        return _credentials(self._dss[0].endpoints[0])

    def pids(self) -> list[int]:
        """The processes of the servers that run."""
        return [server.pid for server in self._all()]

    def close(self) -> None:
        """Ends every server that was started."""
        for server in self._all():
            server.close()
        self._aws, self._dss = None, []

    def _all(self) -> list[LocalServer]:
        return [*([self._aws] if self._aws else []), *self._dss]


def _describe(servers: list[LocalServer]) -> list[dict[str, Any]]:
    """The clusters as ``conf.json`` has them."""
    return [
        {
            "id": number,
            "endpoints": [{"ipv4": HOST, "port": int(url.rpartition(":")[2])} for url in server.endpoints],
        }
        for number, server in enumerate(servers)
    ]


def _credentials(endpoint: str) -> S3Credentials:
    return S3Credentials.model_validate(
        {"endpoint": endpoint, "region_name": REGION, "access_key": "dnnbench", "secret_key": "dnnbench-secret"}
    )


def _client(endpoint: str) -> Any:
    from dnnbench.storage.base import Meter
    from dnnbench.storage.s3 import client_class

    return client_class("boto3")(_credentials(endpoint), Meter(), "local server")


def _serve(ports: int) -> None:
    """The child: serves on free ports, tells them in one line, and ends when its standard input does."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as on any real server

        def log(self, type: str, message: str, *args: Any) -> None:
            """Says nothing: the run's output is the user's."""

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    servers = [make_server(HOST, 0, app, threaded=True, request_handler=Quiet) for _ in range(ports)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.server_port for server in servers]), flush=True)
    sys.stdin.buffer.read()
    # Requests under way have nobody left to answer.
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

"""The ladder's verdict against real servers, over and over: ``python tests/known_answers.py [LIMIT …] [--runs 20]``.

In each case one layer limits by construction, so the verdict has one right answer. The server is nginx over files in
memory, or the S3 server that ``--server`` names (Ceph RGW, for instance); a distance of 50 ms is put in front of it by
nginx, a cap on its bandwidth by a proxy. Needs Debian's nginx and libnginx-mod-http-echo, and a calm machine: what it
prints with every case is how often which layer was named. The exit status is 0 where all answers were right.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import Process, Queue
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import test_diagnosis
from fakes import image_bytes
from peers import free_ports, serve

from dnnbench.config import S3Credentials
from dnnbench.diagnosis import BANDWIDTH, CLIENT, COMPUTE, DECODE, LATENCY, LIMITS, LOADER
from dnnbench.storage.errors import StorageError
from dnnbench.storage.s3 import S3Storage
from dnnbench.synth import SynthSpec, image

BUCKET = "known-answers"
AWAY_MS = 50
CAP_BYTES_PER_S = 20_000_000
ACCESS_KEY, SECRET_KEY = "known", "knownanswers"


def pictures(count: int, median_bytes: int = 72_000) -> dict[str, bytes]:
    """``count`` photographs-to-be of an ordinary size."""
    spec = SynthSpec(labels=("roses",), sources=1, images_per_category=count, median_bytes=median_bytes)
    return {f"roses/{i:04d}.jpg": image(spec, 0, 0, i) for i in range(count)}


def contents_of(limit: str) -> dict[str, bytes]:
    """The objects in whose training ``limit`` limits."""
    if limit == DECODE:
        return test_diagnosis.large_pictures(64)
    if limit in (CLIENT, LOADER, COMPUTE):
        # Next to no decoding.
        return {f"roses/{i:04d}.png": image_bytes(i % 256) for i in range(256)}
    return pictures(256)


class Servers:
    """A server with what one case reads; the same one 50 ms away; the same one behind a narrow way."""

    def __init__(self, server: str | None, access_key: str, secret_key: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dnnbench-known-", dir="/dev/shm")
        self.root = Path(self._folder.name)
        (self.root / BUCKET).mkdir()
        self.root.chmod(0o755)
        self._keys = access_key, secret_key
        self._real = server is not None
        ports = free_ports(2)
        self.near = server or f"http://127.0.0.1:{ports[0]}"
        self.away = f"http://127.0.0.1:{ports[1]}"
        root = self.root
        files = "" if self._real else f"server {{ listen {self.near[7:]} backlog=4096; root {root}; }}"
        conf = root / "nginx.conf"
        conf.write_text(f"""
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
worker_processes 1; daemon off; pid {root}/pid; error_log {root}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 10000000; sendfile on; tcp_nopush on; default_type image/jpeg;
  client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3; uwsgi_temp_path {root}/4;
  scgi_temp_path {root}/5;
  upstream s3 {{ server {self.near[7:]}; keepalive 256; keepalive_requests 10000000; }}
  {files}
  server {{
    listen {self.away[7:]} backlog=4096;
    location / {{ echo_sleep {AWAY_MS / 1000}; echo_exec @s3; }}
    location @s3 {{
      proxy_pass http://s3; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_buffers 64 64k;
    }}
  }}
}}
""")
        self._nginx = subprocess.Popen(["nginx", "-c", str(conf)])  # noqa: S607
        queue: Queue[int] = Queue()
        self._proxy = Process(target=serve_capped, args=(self.near[7:], queue), daemon=True)
        self._proxy.start()
        self.capped = f"http://127.0.0.1:{queue.get()}"
        if self._real:
            try:
                self._client().create_bucket(BUCKET)
            except StorageError as exc:
                print(f"({exc})")

    def _client(self) -> object:
        from dnnbench.storage.base import Meter
        from dnnbench.storage.s3 import client_class

        return client_class("boto3")(self._credentials(self.near), Meter(), "known answers")

    def _credentials(self, endpoint: str) -> S3Credentials:
        access_key, secret_key = self._keys
        return S3Credentials.model_validate(
            {"endpoint": endpoint, "region_name": "us-east-1", "access_key": access_key, "secret_key": secret_key}
        )

    def put(self, contents: dict[str, bytes]) -> None:
        for key, data in contents.items():
            if self._real:
                self._client().put(BUCKET, key, data)
            else:
                path = self.root / BUCKET / key
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)

    def storage(self, endpoint: str, client: str, contents: dict[str, bytes]) -> S3Storage:
        storage = S3Storage(BUCKET, self._credentials(endpoint), client)
        storage.contents = contents  # type: ignore[attr-defined]  # what the catalog is made of: nginx lists nothing
        return storage

    def close(self) -> None:
        self._proxy.terminate()
        self._proxy.join()
        self._nginx.terminate()
        self._nginx.wait()
        self._folder.cleanup()


def serve_capped(upstream: str, queue: Queue[int]) -> None:
    """A proxy through which all connections together get `CAP_BYTES_PER_S`."""
    way = threading.Lock()
    free_at_s = time.perf_counter()

    def pass_through(size_bytes: int) -> None:
        nonlocal free_at_s
        with way:
            free_at_s = max(free_at_s, time.perf_counter()) + size_bytes / CAP_BYTES_PER_S
            until_s = free_at_s
        time.sleep(max(until_s - time.perf_counter(), 0))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Otherwise a body's pieces wait 40 ms for the header's acknowledgement: a distance, and no cap.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if not hasattr(self, "server_side"):
                self.server_side = http.client.HTTPConnection(upstream)
            self.server_side.request("GET", self.path, headers=dict(self.headers))
            answer = self.server_side.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), 16384):
                piece = body[start : start + 16384]
                pass_through(len(piece))
                self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    serve(Handler, queue)


def case(limit: str, servers: Servers, contents: dict[str, bytes]) -> tuple[S3Storage, list[str]]:
    """(storage, settings) in which ``limit`` limits."""
    one, two = (f"{test_diagnosis.WORKERS}{count}" for count in (1, 2))
    own = f"{test_diagnosis.__file__}:"
    if limit == LATENCY:
        return servers.storage(servers.away, "boto3", contents), [one]
    if limit == BANDWIDTH:
        return servers.storage(servers.capped, "obstore", contents), [two]
    if limit == CLIENT:
        return servers.storage(servers.near, "boto3", contents), [one]
    if limit == DECODE:
        return servers.storage(servers.near, "obstore", contents), [one]
    if limit == LOADER:
        return servers.storage(servers.near, "obstore", contents), [one, f"dataset.name={own}SlowCollate"]
    return servers.storage(servers.near, "obstore", contents), [two, f"training.name={own}SlowTrainer"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("limits", nargs="*", choices=[*LIMITS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--server", help="an S3 server, http://host:port; default: nginx over files in memory")
    parser.add_argument("--access-key", default=ACCESS_KEY)
    parser.add_argument("--secret-key", default=SECRET_KEY)
    arguments = parser.parse_args()
    servers = Servers(arguments.server, arguments.access_key, arguments.secret_key)
    wrong = 0
    try:
        for limit in arguments.limits or LIMITS:
            contents = contents_of(limit)
            servers.put(contents)
            named, gains = collections.Counter[str](), []
            for _ in range(arguments.runs):
                storage, settings = case(limit, servers, contents)
                figures, verdict = test_diagnosis.climb(storage, settings)
                storage.close()
                named[verdict["limit"]] += 1
                gains.append(verdict["gain"])
                if verdict["limit"] != limit:
                    wrong += 1
                    print(f"  WRONG: {verdict['sentence']}\n  {figures['ladder']}")
            spread = f"gain {min(gains):.1f} to {max(gains):.1f}, load average {os.getloadavg()[0]:.1f}"
            print(f"{limit}: named in {named[limit]} of {arguments.runs}; {dict(named)}; {spread}", flush=True)
    finally:
        servers.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

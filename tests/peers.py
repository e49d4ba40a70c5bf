"""Speed against public peers, as ratios within one run: ``python tests/peers.py [ROW …]``.

Each peer is used as its documentation says. Needs Debian's nginx and libnginx-mod-http-echo: the server that
costs nothing. Every figure is the median of ``--repeats`` turns in which all take part one after the other.
"""

from __future__ import annotations

import argparse
import http.server
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from bisect import bisect_right
from hashlib import sha256
from multiprocessing import Barrier, Process, Queue
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnbench.catalog import Catalog, CatalogBuilder, list_catalog
from dnnbench.config import S3Credentials, expand_settings
from dnnbench.images import decode
from dnnbench.probe import cores
from dnnbench.storage.base import Entry
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.s3 import S3Storage
from dnnbench.synth import SynthSpec, image, keys
from dnnbench.workloads import Loading, Reading

LABEL = "roses"
OBJECTS = 1024
MEDIAN_BYTES = 72_000
AWAY_MS = 15
BATCH = 32
KEYS = 100_000
BUCKET = "b"
DIMENSION = (32, 32)


class Servers:
    """nginx on two ports: nearby, and some milliseconds away. The bucket is a folder of pictures in memory."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dnnbench-peers-", dir="/dev/shm")
        root = Path(self._folder.name)
        self.data = root / BUCKET
        self.fill()
        root.chmod(0o755)
        self.near, self.away = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        conf = root / "nginx.conf"
        conf.write_text(f"""
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
worker_processes 1; daemon off; pid {root}/pid; error_log {root}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 10000000; sendfile on; tcp_nopush on; default_type image/jpeg;
  client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3; uwsgi_temp_path {root}/4;
  scgi_temp_path {root}/5; open_file_cache max=20000 inactive=600s;
  server {{ listen {self.near[7:]} backlog=4096; root {root}; }}
  server {{
    listen {self.away[7:]} backlog=4096; root {root};
    location / {{ echo_sleep {AWAY_MS / 1000}; echo_exec @file; }}
    location @file {{ }}
  }}
}}
""")
        self._nginx = subprocess.Popen(["nginx", "-c", str(conf)])  # noqa: S607
        time.sleep(0.5)

    def fill(self) -> None:
        spec = SynthSpec(labels=(LABEL,), sources=1, images_per_category=OBJECTS, median_bytes=MEDIAN_BYTES)
        for key, at in keys(spec):
            path = self.data / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(spec, *at))

    @property
    def source(self) -> str:
        return next(path.name for path in self.data.iterdir()) + "/"

    def credentials(self, endpoint: str) -> S3Credentials:
        return S3Credentials.model_validate(
            {"endpoint": endpoint, "region_name": "us-east-1", "access_key": "peer", "secret_key": "peersecret"}
        )

    def storage(self, endpoint: str, client: str) -> S3Storage:
        return S3Storage(BUCKET, self.credentials(endpoint), client)

    def local(self) -> tuple[FsStorage, Catalog]:
        storage = FsStorage()
        return storage, list_catalog(storage, [f"{self.data}/{self.source}"], [LABEL], 1)

    def catalog(self, storage: S3Storage) -> Catalog:
        """What a listing of the bucket would be: nginx has none."""
        builder = CatalogBuilder(storage, [self.source], [LABEL])
        root = self.data
        paths = sorted(path for path in root.rglob("*.jpg"))
        builder.add(0, [Entry(str(path.relative_to(root)), path.stat().st_size) for path in paths])
        return builder.build()

    def verified(self, catalog: Catalog, verify: str) -> Catalog:
        """The catalog, its reads held against ``verify``; the bucket has the manifest of its own files."""
        paths = [str(path) for path in sorted((self.data / self.source).rglob("*.jpg"))]
        digests = b"".join(sha256(Path(path).read_bytes()).digest() for path in paths)
        checksums = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
        return catalog.expecting(verify, checksums if verify == "checksum" else None)

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait()
        self._folder.cleanup()


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# -- raw reads -------------------------------------------------------------------------------------


def bare_obstore(servers: Servers, catalog: Catalog, passes: int = 4) -> float:
    """GET/s of nothing but obstore, in threads: the fastest way to call it from Python that we know."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=servers.near,
        access_key_id="peer",
        secret_access_key="peersecret",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    names = [catalog.key(i) for i in range(len(catalog))]

    def once() -> float:
        remaining = iter(names)

        def work() -> None:
            for name in remaining:
                obstore.get(store, name).bytes()

        threads = [threading.Thread(target=work) for _ in range(32)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    once()
    return len(names) * passes / sum(once() for _ in range(passes))


def harness_reads(servers: Servers, client: str, passes: int = 4, verify: str = "length") -> float:
    """GET/s of the benchmark's workload, with its record of every read."""
    storage = servers.storage(servers.near, client)
    return reads_per_s(storage, servers.verified(servers.catalog(storage), verify), passes)


def reads_per_s(storage: Any, catalog: Catalog, passes: int = 4) -> float:
    """Reads/s of the benchmark's workload, 32 in flight, after a pass that is not timed."""
    reading = Reading(storage, catalog, 32, 0)
    taken = 0.0
    for number in range(passes + 1):
        reading.prepare(number)
        start = time.perf_counter()
        reading.run()
        taken += (time.perf_counter() - start) if number else 0
        reading.account()
    storage.close()
    return len(catalog) * passes / taken


# -- loaders ---------------------------------------------------------------------------------------


def our_loader(
    storage: object, catalog: Catalog, reduced: bool = True, workers: int = 2, in_flight: int = BATCH, passes: int = 3
) -> float:
    """Samples/s of the harness's loader, concurrent."""
    from dnnbench.training.torch_build import make_loader

    settings = [
        f"framework.batch_size={BATCH}",
        f"framework.PyTorch.DataLoader.num_workers={workers}",
        "framework.PyTorch.reading=concurrent",
        f"framework.PyTorch.concurrency={in_flight}",
        f"dataset.decode={'reduced' if reduced else 'full'}",
        f"dataset.label={LABEL}",
    ]
    config = expand_settings({}, settings)[0].config
    loader = make_loader(config, storage, catalog, "random")  # type: ignore[arg-type]
    loading = Loading(storage, catalog, loader, "peers")  # type: ignore[arg-type]
    taken = 0.0
    try:
        for number in range(passes + 1):
            loading.prepare(number)
            start = time.perf_counter()
            loading.run()
            taken += (time.perf_counter() - start) if number else 0
            loading.account()
    finally:
        loader.close()
    return len(catalog) * passes / taken


def boto3_client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="peer",
        aws_secret_access_key="peersecret",
    )


class PlainBoto3:
    """A map-style dataset as tutorials have it: a client per worker, one object after the other, decoded in full."""

    def __init__(self, endpoint: str, names: list[str]) -> None:
        self._endpoint, self._names, self._client = endpoint, names, None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> object:
        import torch

        if self._client is None:
            self._client = boto3_client(self._endpoint)
        body = self._client.get_object(Bucket=BUCKET, Key=self._names[index])["Body"].read()
        return torch.from_numpy(decode(body, DIMENSION))


def to_tensor(reader: object) -> object:
    import torch

    return torch.from_numpy(decode(reader.read(), DIMENSION))  # type: ignore[attr-defined]


def peer_loader(dataset: object, workers: int = 8) -> float:
    """Samples/s of torch's own DataLoader over a peer's dataset: its second epoch."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    for _ in loader:
        pass
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    taken = time.perf_counter() - start
    del loader
    return count / taken


def s3_map_dataset(servers: Servers, catalog: Catalog) -> object:
    from s3torchconnector import S3ClientConfig, S3MapDataset

    return S3MapDataset.from_objects(
        [f"s3://{BUCKET}/{catalog.key(i)}" for i in range(len(catalog))],
        region="us-east-1",
        endpoint=servers.away,
        transform=to_tensor,
        s3client_config=S3ClientConfig(force_path_style=True),
    )


def decode_alone(contents: list[bytes], barrier: Any, queue: Any) -> None:
    """Puts the processor seconds that decoding one picture takes while the other processors do the same."""
    barrier.wait()
    start = time.process_time()
    for _ in range(4):
        for content in contents:
            decode(content, DIMENSION, reduced=True)
    queue.put((time.process_time() - start) / len(contents) / 4)


def cpu_per_sample(servers: Servers) -> float:
    """Seconds of processor time of one sample: decoding, all processors at it, and reading with nothing else."""
    storage, catalog = servers.local()
    contents = [storage.read(catalog.key(i)) for i in range(128)]
    queue: Any = Queue()
    barrier = Barrier(cores())
    decoders = [Process(target=decode_alone, args=(contents, barrier, queue)) for _ in range(cores())]
    for decoder in decoders:
        decoder.start()
    decode_s = statistics.mean(queue.get() for _ in decoders)
    for decoder in decoders:
        decoder.join()
    near = servers.storage(servers.near, "obstore")
    items = list(servers.catalog(near).items(range(OBJECTS)))
    near.fetch_each(items, BATCH)
    start = time.process_time()
    near.fetch_each(items, BATCH)
    get_s = (time.process_time() - start) / len(items)
    near.close()
    print(f"    decode {decode_s * 1e6:.0f} us, GET {get_s * 1e6:.0f} us of processor time a sample")
    return decode_s + get_s


# -- listing ---------------------------------------------------------------------------------------


def serve(handler: type[http.server.BaseHTTPRequestHandler], queue: Queue) -> None:  # type: ignore[type-arg]
    """Answers on a free port, which it puts into the queue, until its process ends."""

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    server = Server(("127.0.0.1", 0), handler)
    queue.put(server.server_port)
    server.serve_forever()


def serve_listing(queue: Queue) -> None:  # type: ignore[type-arg]
    """An S3 server that lists `KEYS` keys, each page `AWAY_MS` away, and does nothing else."""
    names = [f"p/{i // 1000:04d}/img_{i:08d}.jpg" for i in range(KEYS)]
    entries = [
        f"<Contents><Key>{name}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag>"
        "<Size>72000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for name in names
    ]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            after = query.get("continuation-token") or query.get("start-after") or ""
            first = bisect_right(names, after)
            last = min(first + 1000, KEYS)
            more = last < KEYS
            token = f"<NextContinuationToken>{names[last - 1]}</NextContinuationToken>" if more else ""
            body = (
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
                f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix>'
                f"<KeyCount>{last - first}</KeyCount><MaxKeys>1000</MaxKeys>"
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
                f"{''.join(entries[first:last])}</ListBucketResult>"
            ).encode()
            time.sleep(AWAY_MS / 1000)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    serve(Handler, queue)


def boto3_listing(endpoint: str) -> float:
    """Keys/s of one boto3 paginator."""
    client = boto3_client(endpoint)
    start = time.perf_counter()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="p/")
    count = sum(len(page["Contents"]) for page in pages)
    assert count == KEYS
    return count / (time.perf_counter() - start)


def our_listing(servers: Servers, endpoint: str, client: str, workers: int) -> float:
    """Keys/s of `list_many` in key ranges."""
    storage = servers.storage(endpoint, client)
    storage.open()
    start = time.perf_counter()
    count = sum(len(page) for _, page in storage.list_many(["p/"], workers))
    taken = time.perf_counter() - start
    assert count == KEYS
    storage.close()
    return count / taken


# -- the rows --------------------------------------------------------------------------------------


def row_raw(servers: Servers, turn: dict[str, float]) -> None:
    catalog = servers.catalog(servers.storage(servers.near, "obstore"))
    turn["bare obstore, 32 in flight"] = bare_obstore(servers, catalog)
    turn["harness, obstore c32"] = harness_reads(servers, "obstore")
    turn["harness, boto3 c32"] = harness_reads(servers, "boto3", passes=1)
    turn["harness, s3torchconnector c32"] = harness_reads(servers, "s3torchconnector")


def row_verify(servers: Servers, turn: dict[str, float]) -> None:
    files, listed = servers.local()
    for verify in ("none", "length", "checksum"):
        turn[f"obstore c32, {verify}"] = harness_reads(servers, "obstore", verify=verify)
        turn[f"warm files c32, {verify}"] = reads_per_s(files, servers.verified(listed, verify))


def row_away(servers: Servers, turn: dict[str, float]) -> None:
    away = servers.storage(servers.away, "obstore")
    catalog = servers.catalog(away)
    names = [catalog.key(i) for i in range(len(catalog))]
    turn["ours away, 2 workers"] = our_loader(away, catalog)
    turn["ours away, 2 workers, full decode"] = our_loader(away, catalog, reduced=False)
    turn["ours on warm files, 2 workers"] = our_loader(*servers.local())
    turn["plain boto3 away, 8 workers"] = peer_loader(PlainBoto3(servers.away, names))
    turn["S3MapDataset away, 8 workers"] = peer_loader(s3_map_dataset(servers, catalog))
    away.close()


def row_near(servers: Servers, turn: dict[str, float]) -> None:
    near = servers.storage(servers.near, "obstore")
    turn["what the processors allow"] = cores() / cpu_per_sample(servers)
    turn["ours nearby, 2 workers"] = our_loader(near, servers.catalog(near))
    near.close()


def row_list(servers: Servers, turn: dict[str, float]) -> None:
    queue: Queue[int] = Queue()
    process = Process(target=serve_listing, args=(queue,), daemon=True)
    process.start()
    endpoint = f"http://127.0.0.1:{queue.get()}"
    try:
        turn["boto3 paginator"] = boto3_listing(endpoint)
        turn["ours, obstore, 32 at a time"] = our_listing(servers, endpoint, "obstore", 32)
        turn["ours, obstore, 10 at a time"] = our_listing(servers, endpoint, "obstore", 10)
        turn["ours, boto3, 10 at a time"] = our_listing(servers, endpoint, "boto3", 10)
    finally:
        process.terminate()
        process.join()


ROWS = {"raw": row_raw, "verify": row_verify, "away": row_away, "near": row_near, "list": row_list}
# (what, against, at least)
RATIOS = [
    ("harness, obstore c32", "bare obstore, 32 in flight", 0.95),
    ("harness, obstore c32", "harness, boto3 c32", 8),
    ("obstore c32, checksum", "obstore c32, length", 0.5),
    ("warm files c32, checksum", "warm files c32, length", 0.25),
    ("ours away, 2 workers", "plain boto3 away, 8 workers", 10),
    ("ours away, 2 workers", "S3MapDataset away, 8 workers", 4),
    ("ours away, 2 workers", "ours on warm files, 2 workers", 0.8),
    ("ours nearby, 2 workers", "what the processors allow", 0.85),
    ("ours, obstore, 32 at a time", "boto3 paginator", 6),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Where s3torchconnector looks for them; before the first worker's server starts.
    os.environ.update(AWS_ACCESS_KEY_ID="peer", AWS_SECRET_ACCESS_KEY="peersecret")
    servers = Servers()
    try:
        for name in arguments.rows or ROWS:
            turns: list[dict[str, float]] = []
            for _ in range(arguments.repeats):
                turns.append({})
                ROWS[name](servers, turns[-1])
            for what in turns[0]:
                values = sorted(turn[what] for turn in turns)
                print(f"  {what:36} {statistics.median(values):10,.0f}/s  ({values[0]:,.0f} to {values[-1]:,.0f})")
            for what, against, least in RATIOS:
                if what in turns[0]:
                    ratios = sorted(turn[what] / turn[against] for turn in turns)
                    middle = statistics.median(ratios)
                    verdict = "reached" if middle >= least else "NOT REACHED"
                    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
                    print(f"{what} / {against}: {middle:.2f} ({spread}), at least {least}: {verdict}")
            print(f"  load average {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        servers.close()


if __name__ == "__main__":
    main()

"""The planner's prediction against measured runs: ``python tests/plan_for_real.py [CASE …] [--repeats 3]``.

One rank climbs the ladder (``pytest bench/ -k ladder``), and the plan predicts 1, 2, 4 and 8 ranks on this machine.
Then so many are measured: by ``torchrun -m pytest bench/ -k loader``, or, with ``--apart``, as so many processes that
know nothing of each other but when to begin. The server is nginx over files in memory on this same machine, near or
15 ms away. Needs Debian's nginx and libnginx-mod-http-echo, and a calm machine. The exit status is 0 where the median
of the predictions for 8 ranks is within 20 % of the measured median in every case.
"""

from __future__ import annotations

import argparse
import http.server
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers import free_ports, serve

from dnnbench.plan import measured_of
from dnnbench.plan_model import Measured, predict
from dnnbench.results import read_result
from dnnbench.run import ROOT, measure
from dnnbench.synth import SynthSpec, image

BUCKET, PREFIX, LABEL = "plan", "pictures/", "roses"
AWAY_MS = 15
# Each picture has several names, so that eight ranks have enough to read for their ends not to count.
PICTURES = 256
MEDIAN_BYTES = 72_000
RANKS = (1, 2, 4, 8)
MOST_ERROR = 0.2
CASES = {
    "away-obstore": ("away", "obstore", "plain"),
    "away-boto3": ("away", "boto3", "plain"),
    "near-obstore": ("near", "obstore", "plain"),
    "near-boto3": ("near", "boto3", "plain"),
    "away-concurrent": ("away", "obstore", "concurrent"),
}


class Servers:
    """nginx on two ports, near and `AWAY_MS` away, over one folder of pictures; a process of ours lists it."""

    def __init__(self, names_each: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dnnbench-plan-", dir="/dev/shm")
        root = Path(self._folder.name)
        root.chmod(0o755)
        entries = fill(root / BUCKET / PREFIX / LABEL, names_each)
        queue: multiprocessing.Queue[int] = multiprocessing.Queue()
        self._lister = multiprocessing.Process(target=serve_listing, args=(entries, queue), daemon=True)
        self._lister.start()
        ports = free_ports(2)
        self.near, self.away = (f"http://127.0.0.1:{port}" for port in ports)
        listing = f"location = /{BUCKET} {{ proxy_pass http://127.0.0.1:{queue.get()}; }}"
        conf = root / "nginx.conf"
        conf.write_text(f"""
load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;
worker_processes 1; daemon off; pid {root}/pid; error_log {root}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 10000000; sendfile on; tcp_nopush on; default_type image/jpeg;
  client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3; uwsgi_temp_path {root}/4;
  scgi_temp_path {root}/5; open_file_cache max=20000 inactive=600s;
  server {{ listen {self.near[7:]} backlog=4096; root {root}; {listing} location /{BUCKET}/ {{ }} }}
  server {{
    listen {self.away[7:]} backlog=4096; root {root}; {listing}
    location /{BUCKET}/ {{ echo_sleep {AWAY_MS / 1000}; echo_exec @file; }}
    location @file {{ }}
  }}
}}
""")
        self._nginx = subprocess.Popen(["nginx", "-c", str(conf)])  # noqa: S607
        time.sleep(0.5)

    def configuration(self, case: str, workers: int) -> Path:
        """The configuration file of a case."""
        place, client, reading = CASES[case]
        account = {"endpoint": getattr(self, place), "region_name": "us-east-1"}
        account |= {"access_key": "plan", "secret_key": "plansecret"}
        s3 = {"bucket": BUCKET, "prefix": [PREFIX], "client_lib": client, "list_ranges": False}
        torch = {"reading": reading, "DataLoader": {"num_workers": workers}}
        path = Path(self._folder.name) / f"{case}.json"
        path.write_text(
            json.dumps(
                {
                    "storage": {"format": "s3", "name": "aws", "s3": {**s3, "aws": {"credentials": account}}},
                    "dataset": {"label": [LABEL], "access": {"random": True, "sequential": False}},
                    "framework": {"name": "PyTorch", "PyTorch": torch},
                    "execution": {"rounds": 3, "max_repeats": 0},
                }
            )
        )
        path.chmod(0o600)
        return path

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait()
        self._lister.terminate()
        self._lister.join()
        self._folder.cleanup()


def fill(folder: Path, names_each: int) -> list[tuple[str, int]]:
    """Makes the pictures; returns (key, bytes) of each name, in the keys' order."""
    folder.mkdir(parents=True)
    spec = SynthSpec(labels=(LABEL,), sources=1, images_per_category=PICTURES, median_bytes=MEDIAN_BYTES)
    entries = []
    for number in range(PICTURES):
        first = folder / f"{number:04d}-0.jpg"
        first.write_bytes(image(spec, 0, 0, number))
        names = [first, *(folder / f"{number:04d}-{name}.jpg" for name in range(1, names_each))]
        for name in names[1:]:
            name.hardlink_to(first)
        entries += [(f"{PREFIX}{LABEL}/{name.name}", name.stat().st_size) for name in names]
    return entries


def serve_listing(entries: list[tuple[str, int]], queue: Any) -> None:
    """Answers ListObjectsV2 over these keys, a thousand a page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            prefix = query.get("prefix", "")
            after = query.get("continuation-token") or query.get("start-after") or ""
            left = [entry for entry in entries if entry[0].startswith(prefix) and entry[0] > after]
            page = left[:1000]
            told = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;x&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for key, size in page
            )
            more = len(left) > len(page)
            token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
            body = (
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
                f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>'
                f"<KeyCount>{len(page)}</KeyCount><MaxKeys>1000</MaxKeys>"
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{told}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    serve(Handler, queue)


def climb(config: Path, folder: Path) -> Measured:
    """One rank's ladder, as the plan reads it."""
    target = folder / "ladder.json"
    if measure(config, target, ["-qq", "-k", "ladder"]):
        raise SystemExit(f"the ladder of {config} failed")
    result = read_result(target)
    return measured_of(result.benchmarks[0], result)


def by_torchrun(config: Path, folder: Path) -> dict[int, float]:
    """Samples/s of the median round, by how many ranks of one distributed run."""
    target = folder / "ranks.json"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={max(RANKS)}", "-m", "pytest", "-qq"]
    command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pytest.ini"), str(ROOT / "bench"), "-k", "test_loader"]
    command += [f"--dnn-config={config}", f"--dnn-set=execution.ranks={','.join(map(str, RANKS))}"]
    done = subprocess.run([*command, f"--benchmark-json={target}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nthe run of {max(RANKS)} ranks failed")
    records = [one.record for one in read_result(target).benchmarks]
    if any(one["disturbed"] for one in records):
        taken = ", ".join(f"{one['others_cpu_share'] or 0:.0%}" for one in records)
        print(f"  DISTURBED: others took {taken} of the processors, which the prediction knows nothing of", flush=True)
    return {
        int(one["swept"]["execution.ranks"]): statistics.median(each["objects_per_s"] for each in one["per_round"])
        for one in records
    }


def apart(config: Path, folder: Path) -> dict[int, float]:
    """The same of loaders in processes of their own, from the first one's start to the last one's end."""
    return {ranks: of_processes(config, ranks) for ranks in RANKS}


def of_processes(config: Path, count: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(count), context.Queue()
    processes = [context.Process(target=load_share, args=(config, rank, barrier, queue)) for rank in range(count)]
    for process in processes:
        process.start()
    told = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return statistics.median(
        sum(samples for _, _, samples in passes)
        / (max(end_s for _, end_s, _ in passes) - min(start_s for start_s, _, _ in passes))
        for passes in zip(*told, strict=True)
    )


def load_share(config_path: Path, rank: int, barrier: Any, queue: Any) -> None:
    """Puts (start, end, samples) of each of three passes over this rank's share."""
    from dnnbench.catalog import list_catalog
    from dnnbench.config import expand_settings, load_config
    from dnnbench.storage.open import open_storage
    from dnnbench.training.torch_build import make_loader

    config = expand_settings(load_config(config_path), [])[0].config
    storage = open_storage(config, "aws")
    catalog = list_catalog(storage, config.storage.s3.prefix, config.dataset.label, 1)
    # As much for each, however many they are.
    share = catalog.select(range(rank, len(catalog), max(RANKS)))
    loader = make_loader(config, storage, share, "random")
    loader.start_workers()
    told = []
    # In the first pass workers still load what they need.
    for number in range(4):
        barrier.wait()
        start_s = time.clock_gettime(time.CLOCK_MONOTONIC)
        samples = sum(len(labels) for _, labels in loader)
        if number:
            told.append((start_s, time.clock_gettime(time.CLOCK_MONOTONIC), samples))
    loader.close()
    queue.put(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="of ladders and of runs (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="of each rank's loader (default 2)")
    parser.add_argument("--names", type=int, default=4, help="of each of the 256 pictures (default 4)")
    parser.add_argument("--apart", action="store_true", help="processes that know nothing of each other")
    options = parser.parse_args()
    run = apart if options.apart else by_torchrun
    servers, good = Servers(options.names), True
    try:
        for case in options.cases or CASES:
            good &= hold(case, servers.configuration(case, options.workers), run, options.repeats)
    finally:
        servers.close()
    return 0 if good else 1


def hold(case: str, config: Path, run: Any, repeats: int) -> bool:
    """Prints predicted and measured rates of a case; whether the last prediction was right."""
    with tempfile.TemporaryDirectory(prefix="dnnbench-plan-runs-") as name:
        folder = Path(name)
        ladders, rates = [], {ranks: [] for ranks in RANKS}  # type: ignore[var-annotated]
        # In turns, so that a drift of the machine is in both.
        for _ in range(repeats):
            ladders.append(climb(config, folder))
            for ranks, per_s in run(config, folder).items():
                rates[ranks].append(per_s)
        costs = ", ".join(f"{1e6 * one.cpu_s:,.0f} + {1e6 * one.server_cpu_s:,.0f}" for one in ladders)
        print(f"{case}: load average {os.getloadavg()[0]:.1f}; processor us a sample, ours + the server's: {costs}")
        for ranks in RANKS:
            told = [predict(one, ranks) for one in ladders]
            guess, seen = statistics.median(one.samples_per_s for one in told), statistics.median(rates[ranks])
            error = guess / seen - 1
            print(
                f"  {ranks} ranks: predicted {guess:,.0f}, measured {seen:,.0f} samples/s ({spread(rates[ranks])}), "
                f"error {error:+.1%}; limited by {told[0].limited_by}",
                flush=True,
            )
    return abs(error) < MOST_ERROR


def spread(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


if __name__ == "__main__":
    sys.exit(main())

"""How often the gate errs and finds on this machine: ``python tests/gate_for_real.py [--runs 20]``.

Three configurations are measured in turns: a real S3 server (Ceph) 40 ms away, the same once more, and the same with
its storage's latency 10 % longer. Then runs of the first are compared with runs of the second, which differ in nothing,
and with runs of the third. Needs Debian's Ceph packages, nginx and libnginx-mod-http-echo, and a calm machine.
The exit status is 0 where no A/A comparison raised an alarm and with 7 runs a side the gate found every slow-down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers import free_ports

from dnnbench.__main__ import main as dnnbench
from dnnbench.compare import compare
from dnnbench.results import Result, read_result
from dnnbench.run import measure
from dnnbench.servers import LocalServers

# nginx counts whole milliseconds, so a tenth of it must be some.
AWAY_MS = 40
SIDES = ("same", "control", "slow")
IMAGES_PER_CATEGORY = 40


class Far:
    """nginx in front of a server, which holds each request for some milliseconds: one port per entry of ``away_ms``."""

    def __init__(self, upstream: str, away_ms: Sequence[int], folder: Path) -> None:
        folder.mkdir()
        ports = free_ports(len(away_ms))
        self.endpoints = [f"http://127.0.0.1:{port}" for port in ports]
        servers = "".join(
            f"server {{ listen 127.0.0.1:{port} backlog=4096; client_max_body_size 0; location / {{ "
            f"client_body_buffer_size 64m; echo_read_request_body; echo_sleep {ms / 1000}; echo_exec @s3; }} "
            'location @s3 { proxy_pass http://s3; proxy_http_version 1.1; proxy_set_header Connection ""; '
            "proxy_set_header Host $http_host; proxy_buffers 64 64k; } }\n"
            for port, ms in zip(ports, away_ms, strict=True)
        )
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = folder / "nginx.conf"
        conf.write_text(
            "load_module /usr/lib/nginx/modules/ngx_http_echo_module.so; worker_processes 1; daemon off; "
            f"pid {folder}/pid; error_log {folder}/error.log warn; events {{ worker_connections 4096; }}\n"
            f"http {{ access_log off; keepalive_requests 10000000; {temporary}\n"
            f"upstream s3 {{ server {upstream.partition('//')[2]}; keepalive 256; keepalive_requests 10000000; }}\n"
            f"{servers} }}\n"
        )
        self._nginx = subprocess.Popen(["nginx", "-c", str(conf)])  # noqa: S607

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait()


def configuration(folder: Path, side: str, endpoint: str, servers: LocalServers) -> Path:
    credentials, bucket = servers.aws()
    secret = credentials.secret_key
    account = {
        "endpoint": endpoint,
        "region_name": "us-east-1",
        "access_key": credentials.access_key.get_secret_value(),
        "secret_key": secret.get_secret_value() if secret else None,
    }
    s3 = {"bucket": bucket, "prefix": ["gate/source1/"], "client_lib": "obstore", "aws": {"credentials": account}}
    path = folder / f"{side}.config.json"
    path.write_text(json.dumps({"storage": {"format": "s3", "name": "aws", "s3": s3}}))
    path.chmod(0o600)
    return path


def windows(runs: Sequence[Result], size: int) -> list[Sequence[Result]]:
    """Runs that follow one another, each window one run later than the one before: no new data, but new chances."""
    return [runs[start : start + size] for start in range(len(runs) - size + 1)]


def tell(
    title: str, baseline: Sequence[Result], candidate: Sequence[Result], size: int
) -> tuple[Counter[str], Counter[int]]:
    """Compares window by window, and prints the verdicts and how far from the truth they were."""
    allowed = ("server", "configuration")
    found: Counter[str] = Counter()
    calls: Counter[int] = Counter()
    for one, other in zip(windows(baseline, size), windows(candidate, size), strict=True):
        compared = compare(one, other, allowed=allowed)
        found.update(comparison.verdict for comparison in compared.comparisons)
        calls[compared.exit_status] += 1
    whole = compare(baseline, candidate, allowed=allowed)
    print(f"{title}, {size} runs a side, {sum(calls.values())} windows: {dict(found)}; exit statuses {dict(calls)}")
    for one_metric in whole.comparisons:
        estimate, low, high = (value or 0 for value in (one_metric.estimate, one_metric.low, one_metric.high))
        told = f"{one_metric.verdict}, {estimate - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"
        print(f"  all {len(baseline)} runs: {one_metric.metric}: {told}")
    return found, calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=20, help="of each side (default 20)")
    parser.add_argument("--keep", type=Path, help="an empty folder that receives the result files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dnnbench-gate-", dir="/dev/shm") as name, LocalServers("ceph") as servers:
        folder, kept = Path(name), options.keep or Path(name) / "runs"
        kept.mkdir(parents=True, exist_ok=True)
        near, _ = servers.aws()
        plain = configuration(folder, "near", near.endpoint or "", servers)
        place = ["--images-per-category", str(IMAGES_PER_CATEGORY), "--sources", "1", "--config", str(plain)]
        dnnbench(["generate", f"s3://{servers.aws()[1]}/gate", *place])
        far = Far(near.endpoint or "", [AWAY_MS], folder / "first")
        # What a read takes is the delay and the server's own share: a tenth of both is what the slow side adds.
        read = ["-q", "-k", "read and c8"]
        try:
            measure(configuration(folder, "first", far.endpoints[0], servers), kept / "first.json", read)
        finally:
            far.close()
        p50_ms = read_result(kept / "first.json").benchmarks[0].record["latency_p50_ms"]
        (kept / "first.json").unlink()
        added_ms = round(0.1 * p50_ms)
        delays = [AWAY_MS, AWAY_MS, AWAY_MS + added_ms]
        print(f"a read takes {p50_ms:.1f} ms; {added_ms} ms are {added_ms / p50_ms:.1%} of it", flush=True)
        far = Far(near.endpoint or "", delays, folder / "far")
        try:
            configs = [
                configuration(folder, side, endpoint, servers)
                for side, endpoint in zip(SIDES, far.endpoints, strict=True)
            ]
            for run in range(options.runs):
                # Each side is first, second and last equally often.
                for place_in_turn in range(len(SIDES)):
                    number = (run + place_in_turn) % len(SIDES)
                    target = kept / f"{SIDES[number]}{run:03}.json"
                    status = measure(configs[number], target, read)
                    if status:
                        print(f"{target.name}: pytest's exit status {status}")
                        return status
        finally:
            far.close()
        sides = {side: [read_result(path) for path in sorted(kept.glob(f"{side}*.json"))] for side in SIDES}
        alarms = missed = 0
        for size in (5, 7):
            found, _ = tell("A/A", sides["same"], sides["control"], size)
            alarms += found["slower"] + found["faster"]
            _, calls = tell("10 % slower", sides["same"], sides["slow"], size)
            missed += calls.total() - calls[1] if size == 7 else 0
        print(f"{alarms} alarms where nothing differs; the gate missed the slow-down {missed} times with 7 runs a side")
        return int(bool(alarms or missed))


if __name__ == "__main__":
    sys.exit(main())

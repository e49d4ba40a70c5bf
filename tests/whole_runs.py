"""Whole runs against servers that behave in a certain way: ``pytest tests/whole_runs.py``, some ten seconds."""

import json
import re
import time

from dnnbench.storage.s3 import S3Storage
from tests.faulty import Proxy
from tests.test_bench import bench, jpeg

OBJECTS = 100
DELAY_S = 0.06
# Each client reads what no other has: a prefix whose objects the server keeps, and one whose objects it does not.
PREFIXES = {"boto3": ("kept1", "fetched1"), "obstore": ("kept2", "fetched2")}


class CachingProxy(Proxy):
    """Keeps what it has passed on; what it has to fetch comes late. What matches ``always`` it fetches every time."""

    def __init__(self, upstream, delay_s, always):
        self._delay_s, self._always, self._kept = delay_s, re.compile(always), {}
        super().__init__(upstream)

    def _ask(self, upstream, request):
        if request.verb != "GET":
            return super()._ask(upstream, request)
        wanted = (request.target, request.header("range"))
        if wanted not in self._kept or self._always.search(request.key):
            time.sleep(self._delay_s)
            self._kept[wanted] = super()._ask(upstream, request)
        return self._kept[wanted]


def test_a_server_that_caches_is_told_from_one_that_does_not(tmp_path, local_servers):
    credentials, bucket = local_servers.aws()
    storage, image = S3Storage(bucket, credentials, "obstore"), jpeg(0)
    prefixes = [f"{tmp_path.name}/{prefix}" for pair in PREFIXES.values() for prefix in pair]
    for prefix in prefixes:
        for number in range(OBJECTS):
            storage.write(f"{prefix}/roses/{number}.jpg", image)
    with CachingProxy(credentials.endpoint, DELAY_S, "/fetched") as proxy:
        account = {"endpoint": proxy.endpoint, "access_key": "dnnbench", "secret_key": "dnnbench-secret"}
        s3 = {"bucket": bucket, "client_lib": list(PREFIXES), "aws": {"credentials": account}}
        config = {
            "storage": {"format": "s3", "name": "aws", "s3": s3},
            "dataset": {"label": ["roses"]},
            # A round that is made again reads nothing for the first time.
            "execution": {"rounds": 3, "max_repeats": 0},
        }
        path, out = tmp_path / "config.json", tmp_path / "out.json"
        path.write_text(json.dumps(config))
        each = " or ".join(f"{client} and ({kept} or {fetched})" for client, (kept, fetched) in PREFIXES.items())
        axis = "--dnn-set=storage.s3.prefix=" + ",".join(json.dumps([prefix]) for prefix in prefixes)
        done = bench(f"--dnn-config={path}", axis, "-k", f"read and c8 and ({each})", f"--benchmark-json={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    records = {
        prefix: next(
            one["extra_info"] for one in json.loads(out.read_text())["benchmarks"] if f"{prefix}-" in one["name"] + "-"
        )
        for pair in PREFIXES.values()
        for prefix in pair
    }
    for client, (kept, fetched) in PREFIXES.items():
        assert (records[kept]["client"], records[fetched]["client"]) == (client, client)
        assert records[kept]["server_cache"] is True
        assert (
            records[kept]["first_reads"]["latency_p50_ms"]
            > DELAY_S * 1e3
            > records[kept]["later_reads"]["latency_p50_ms"]
        )
        assert records[fetched]["server_cache"] is False
        assert records[fetched]["later_reads"]["latency_p50_ms"] > DELAY_S * 1e3
    remarks = re.findall(
        r"^aws \((\w+)\), .*: a cache on the server's side: first reads took", done.stdout, re.MULTILINE
    )
    assert remarks == list(PREFIXES)

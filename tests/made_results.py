"""Result files as `pytest bench/` would write them, with figures that a test chooses."""

import copy
import json
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
MACHINE = {
    "dnnbench": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "boto3": "1.44.8", "botocore": "1.44.8", "obstore": "0.12.1", "numpy": "2.4.6"},
    "kernel": "Linux 6.1",
    "cpu": "Some Processor",
    "cores": 2,
    "memory_mib": 24105,
    "gpu": [],
    "load_average_1min_before": 0.1,
}
RESOLVED = {"storage": {"s3": {"bucket": "b", "client_lib": "obstore"}}, "execution": {"rounds": 3}}


def record(storage="aws", client="obstore", **figures):
    """The record of a benchmark, with these figures in place of others."""
    return {
        "schema": 1,
        "what": "read c8",
        "storage": storage,
        "storage_label": storage,
        "client": client,
        "settings": {"endpoint": "http://10.0.0.7:9000", "bucket": "b", "server": "S", "obstore": "0.12.1"},
        "catalog": {"part": "all", "hash": "aaaa", "objects": 100, "bytes": 1000, "left_out": {}},
        "config_hash": "cccc",
        "swept": {},
        "cache": "unknown",
        "cache_asked": "cold",
        "disturbed": False,
        "wall_s": 1.0,
        "objects_per_s": 1000.0,
        "latency_p50_ms": 5.0,
        "latency_p99_ms": 9.0,
        **figures,
    }


def result(number=0, benchmarks=None, **about):
    """The JSON of run ``number``. ``benchmarks``: {name, as in `test_read[aws-obstore-c8]`: record}."""
    started = START + timedelta(minutes=10 * number)
    run = {"started_utc": started.isoformat(), "ended_utc": (started + timedelta(minutes=5)).isoformat()}
    entries = []
    for name, one in (benchmarks or {"test_read[aws-obstore-c8]": record()}).items():
        params = {"storage_name": one["storage"], "client": one["client"]}
        fullname = f"bench/{name.partition('[')[0]}.py::{name}"
        entries.append({"fullname": fullname, "name": name, "params": params, "extra_info": copy.deepcopy(one)})
    return {
        "benchmarks": entries,
        "dnnbench": {
            "schema": 1,
            "complete": True,
            "failed": [],
            "skipped": [],
            "embedded_default": False,
            "embedded_server": None,
            "configuration": [{"swept": {}, "hash": "cccc", "resolved": copy.deepcopy(RESOLVED)}],
            "machine": copy.deepcopy(MACHINE),
            "runs": [{**run, "benchmarks": len(entries), "machine": copy.deepcopy(MACHINE)}],
            **about,
        },
    }


def write(folder, name, data):
    """Writes a result file; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(data))
    return path

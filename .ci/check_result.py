"""Checks a result file of the embedded default: everything was measured, and what was read is the data set."""

import json
import sys
from pathlib import Path

EVERYWHERE = {"schema", "what", "storage", "client", "cache", "objects", "wall_s", "objects_per_s", "requests",
              "retries", "errors", "cpu_s_per_object", "cpu_share", "peak_memory_mib", "catalog"}  # fmt: skip
READS = {"bytes", "mib_per_s", "latency_count", "latency_p50_ms", "latency_p99_9_ms", "latency_max_ms"}
LOADERS = {"samples_per_s", "first_batch_s", "waiting_s", "computing_s", "epochs"}


def problems(result: dict) -> list[str]:
    found = [] if result["dnnbench"]["complete"] else ["the run is not complete"]
    seen = set()
    for bench in result["benchmarks"]:
        name, info = bench["name"], bench["extra_info"]
        kind = name.partition("[")[0]
        seen.add((kind, info["storage"]))
        wanted = EVERYWHERE | (READS if kind != "test_listing" else set())
        wanted |= LOADERS if kind in ("test_loader", "test_training") else set()
        found += [f"{name}: no {key}" for key in sorted(wanted - set(info))]
        if kind != "test_listing" and info["bytes"] % info["catalog"]["bytes"]:
            found.append(f"{name}: {info['bytes']} bytes are no multiple of the data set's")
        if info["errors"]:
            found.append(f"{name}: {info['errors']} errors")
        if kind == "test_training" and info["accuracy"] < 0.5:
            found.append(f"{name}: the network learned nothing (accuracy {info['accuracy']:.2f}, chance is 0.2)")
    kinds = ("test_listing", "test_read", "test_loader", "test_training")
    found += [f"{k} on {s} is missing" for k in kinds for s in ("fs", "aws", "dss") if (k, s) not in seen]
    if len({bench["extra_info"]["catalog"]["hash"] for bench in result["benchmarks"]}) != 1:
        found.append("the storages' catalogs differ")
    return found


if __name__ == "__main__":
    bad = problems(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(bad) or f"{sys.argv[1]}: all there")
    sys.exit(bool(bad))

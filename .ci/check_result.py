"""Checks a result file of the embedded default: everything was measured, and what was read is the data set."""

import json
import sys
from pathlib import Path

EVERYWHERE = {"schema", "what", "storage", "client", "cache", "objects", "wall_s", "objects_per_s", "requests",
              "retries", "errors", "cpu_s_per_object", "cpu_share", "others_cpu_share", "peak_memory_mib",
              "catalog"}  # fmt: skip
READS = {"bytes", "mib_per_s", "latency_count", "latency_p50_ms", "latency_p99_9_ms", "latency_max_ms"}
LOADERS = {"samples_per_s", "first_batch_s", "waiting_s", "computing_s", "epochs"}
OF_FRAMEWORKS = ("test_loader", "test_training", "test_inference", "test_ladder")
LIMITS = {"storage latency", "storage bandwidth", "client CPU", "decode", "loader overhead", "compute"}


def problems(result: dict) -> list[str]:
    found = [] if result["dnnbench"]["complete"] else ["the run is not complete"]
    if result["dnnbench"]["embedded_server"]["kind"] != "moto":
        found.append("the server is not the default one")
    seen = set()
    for bench in result["benchmarks"]:
        name, info = bench["name"], bench["extra_info"]
        kind = name.partition("[")[0]
        framework = name.partition("[")[2].split("-")[2] if kind in OF_FRAMEWORKS else ""
        seen.add((kind, info["storage"], framework))
        wanted = EVERYWHERE | (READS if kind != "test_listing" else set())
        wanted |= LOADERS if kind in OF_FRAMEWORKS else set()
        found += [f"{name}: no {key}" for key in sorted(wanted - set(info))]
        if kind != "test_listing" and info["bytes"] % info["catalog"]["bytes"]:
            found.append(f"{name}: {info['bytes']} bytes are no multiple of the data set's")
        if info["errors"]:
            found.append(f"{name}: {info['errors']} errors")
        if kind == "test_read" and not isinstance(info.get("client_bound"), bool):
            found.append(f"{name}: does not say whether the client limits it")
        if kind == "test_ladder" and info["ladder"]["verdict"]["limit"] not in LIMITS:
            found.append(f"{name}: no verdict")
        if kind in ("test_training", "test_inference") and info["accuracy"] < 0.5:
            found.append(f"{name}: the network learned nothing (accuracy {info['accuracy']:.2f}, chance is 0.2)")
    kinds = [("test_listing", ""), ("test_read", ""), *((k, f) for k in OF_FRAMEWORKS for f in ("torch", "tf"))]
    storages = ("fs", "aws", "dss")
    found += [f"{k} {f} on {s} is missing" for k, f in kinds for s in storages if (k, s, f) not in seen]
    for part in ("all", "held out"):
        catalogs = [bench["extra_info"]["catalog"] for bench in result["benchmarks"]]
        if len({catalog["hash"] for catalog in catalogs if catalog["part"] == part}) != 1:
            found.append(f"the storages' catalogs differ ({part})")
    return found


if __name__ == "__main__":
    bad = problems(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(bad) or f"{sys.argv[1]}: all there")
    sys.exit(bool(bad))

"""Made-up result files that are shaped like real ones: their records come from `metrics`, of invented rounds."""

import dataclasses
from array import array
from collections import Counter

import numpy as np

from dnnbench.config import Config
from dnnbench.diagnosis import Reads, Rungs, Setup, diagnose
from dnnbench.knee import Step, find_knee
from dnnbench.metrics import EpochFigures, Inference, Round, Tally, record

MS = 1_000_000
S = 1_000_000_000
OBJECT_BYTES = 110_000
# How much slower each storage is than the first.
PLACES = {("fs", "posix"): 1.0, ("aws", "boto3"): 3.0, ("aws", "obstore"): 2.0}
MACHINE = {
    "dnnbench": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "kernel": "Linux 6.1",
    "cpu": "A Processor", "cores": 2, "memory_mib": 24000, "gpu": [], "load_average_1min_before": 0.1,
}  # fmt: skip


def tally(count, slower, seed):
    latency_ns = (np.random.default_rng(seed).lognormal(0.5, 0.6, count) * slower * MS).astype(np.int64)
    return Tally(array("q", latency_ns.tolist()), count * OBJECT_BYTES, Counter(GET=count))


def epoch(slower, seed, batches=12, compute_ms=20):
    waits_ns = [round((40 if i == 0 else 3 + (i + seed) % 4) * slower * MS) for i in range(batches)] + [MS]
    computes_ns = [compute_ms * MS] * batches
    wall_ns = sum(waits_ns) + sum(computes_ns)
    return EpochFigures(
        batches * 32, batches * 32 * OBJECT_BYTES, wall_ns, sum(waits_ns), sum(computes_ns), waits_ns[0],
        batches=batches, waits_ns=waits_ns, computes_ns=computes_ns,
    )  # fmt: skip


def reading(count, slower, seed, wall_s=1.0, **others):
    return Round(count, tally(count, slower, seed), wall_ns=int(wall_s * slower * S), cache="cold", **others)


def loading(slower, seed, epochs=1, **others):
    figures = [epoch(slower, seed + number) for number in range(epochs)]
    count = sum(one.samples for one in figures)
    wall_ns = sum(one.wall_ns for one in figures)
    return Round(count, tally(count, slower, seed), epochs=figures, wall_ns=wall_ns, cache="cold", **others)


def ladder(slower):
    reads = {
        name: Reads(in_flight, 400 * rate / slower, 2.0 * slower, 9.0 * slower, 1e-4, 0.2, 0.4)
        for name, in_flight, rate in (("one reader", 1, 1), ("loader", 2, 2), ("more", 8, 6))
    }
    rungs = Rungs(reads, 30_000.0, 900.0, 600.0 / slower, 2_000.0, 550.0 / slower, 2.2 * slower, 2, True)
    verdict = diagnose(rungs, Setup("torch", "posix", 2, concurrent=False, reduced=False))
    return {"samples": 384, **dataclasses.asdict(rungs), "verdict": verdict.record()}


def knee(slower, unit, bound=False):
    def measure(level):
        return Step(level, 400 * min(level, 8) / slower, 2.0, 5.0 * slower + level, bound and level > 8)

    return find_knee(measure, 64).record(unit)


def accelerator(slower):
    trials = [
        {"batch_compute_ms": step_ms * slower, "utilization": busy, "warm_up_steps": 2}
        for step_ms, busy in ((30.0, 0.71), (55.0, 0.96), (45.0, 0.915))
    ]
    return {
        "batch_compute_ms": 45.0 * slower, "utilization": 0.912, "utilization_uncorrected": 0.9,
        "step_overhead_ms": 0.1, "steps": 10, "warm_up_steps": 2, "target": 0.9, "kept_busy": True,
        "samples_per_s": 32e3 / (45.0 * slower), "trials": trials,
    }  # fmt: skip


def workloads(slower, run):
    """(test, the rest of its id, what, parameters, rounds) of each benchmark."""
    yield "listing", "", "list", {}, [Round(200, Tally(), listed_bytes=200 * OBJECT_BYTES, wall_ns=S // 10)]
    for name, in_flight in {"serial": None, "c1": 1, "c8": 8, "c32": 32}.items():
        wall_s = (1.0 + 0.01 * run) / min(in_flight or 1, 8)
        rounds = [reading(400, slower, run * 10 + i, wall_s, in_flight=in_flight or 1) for i in range(3)]
        yield "read", f"-{name}", "read" if in_flight is None else f"read {name}", {"concurrency": name}, rounds
    for framework in ("torch", "tf"):
        axes = {"framework": framework, "access": "random"}
        rest = f"-{framework}-random"
        yield "loader", rest, f"{framework} loader random", axes, [loading(slower, run)]
        yield "training", rest, f"{framework} train random", axes, [loading(slower, run, epochs=3)]
        inference = Inference([[9, 1, 0], [0, 10, 0]], array("q", [S, 2 * S]))
        yield "inference", rest, f"{framework} infer", axes, [loading(slower, run, inference=inference)]
        yield "ladder", rest, f"{framework} ladder", axes, [loading(slower, run, ladder=ladder(slower))]
        told = accelerator(slower * (1 + run / 50))
        yield "accelerator", rest, f"{framework} accelerator", axes, [loading(slower, run, accelerator=told)]
    found = knee(slower, "concurrency", bound=True)
    yield "autoscale_read", "", f"read knee c{found['concurrency']}", {}, [
        reading(400, slower, run, 0.2, in_flight=8, knee=found)
    ]  # fmt: skip
    found = knee(slower, "num_workers")
    axes = {"framework": "torch", "access": "random"}
    yield "autoscale_loader", "-torch-random", f"torch loader knee w{found['num_workers']}", axes, [
        loading(slower, run, knee=found)
    ]  # fmt: skip


def entry(test, rest, what, params, rounds, storage, client, **changes):
    """One of a file's ``benchmarks``."""
    figures = record(rounds, cores=2, peak_memory_bytes=10**8)
    return {
        "fullname": f"bench/test_{test}.py::test_{test}[{storage}-{client}{rest}]",
        "params": {"storage_name": storage, "client": client, **params},
        "extra_info": {
            "what": what, "storage": storage, "storage_label": storage, "client": client, "settings": {}, "swept": {},
            "cache_asked": "cold" if storage == "fs" else None,
            "catalog": {"part": "all", "hash": "765e9337c4881ce1", "objects": 400, "bytes": 44 * 10**6, "left_out": {}},
            "config_hash": "31f564dcc5e182f0", "finished_utc": "2026-11-27T10:00:00+00:00", **figures, **changes,
        },
    }  # fmt: skip


def result(run=1, places=tuple(PLACES), tests=None, **about):
    """The JSON of a run; ``tests`` chooses some of them, ``about`` replaces keys of ``dnnbench``."""
    entries = [
        entry(*one, *place)
        for place in places
        for one in workloads(PLACES.get(place, 1.0) * (1 + run / 100), run)
        if tests is None or one[0] in tests
    ]
    config = Config()
    return {
        "benchmarks": entries,
        "dnnbench": {
            "schema": 1, "complete": True, "failed": [], "skipped": [], "embedded_default": True,
            "embedded_server": {"kind": "moto", "version": "5.2.5"},
            "configuration": [{"swept": {}, "hash": config.hash(), "resolved": config.resolved()}],
            "machine": MACHINE,
            "runs": [{"started_utc": f"2026-11-27T1{run}:00:00+00:00", "ended_utc": f"2026-11-27T1{run}:20:00+00:00"}],
            **about,
        },
    }  # fmt: skip

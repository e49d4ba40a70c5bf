"""``python -m dnnbench plan``: from a measured ladder, what a cluster would need, and what would limit it first.

Reads ladders out of a result file and does the arithmetic of docs/planning.md; `plan_model` has the model of readers,
`plan_text` the words.
"""

from __future__ import annotations

import math
import statistics
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnnbench.diagnosis import Reads
from dnnbench.errors import DnnbenchError
from dnnbench.notes import EMBEDDED
from dnnbench.plan_model import Measured, Prediction, predict, readers_for
from dnnbench.results import Benchmark, Result

# Of a partitioned prefix of S3, at least: announced by AWS on 17 July 2018, and in the S3 User Guide under "optimizing
# Amazon S3 performance".
GETS_PER_PREFIX = 5500.0
# Of Ethernet's bits, with frames of 1,500 bytes, TCP's payload: 1,448 of 1,538 bytes.
PAYLOAD_SHARE = 1448 / 1538
RANKS = (1, 2, 4, 8)
RUNGS = ("one reader", "loader", "more")
READ_VERBS = ("GET", "READ")
# A median that is so far below the 99th percentile stands for few of the reads.
LONG_TAIL = 5
# A mean size that differs so much from the measured one is another workload.
OTHER_SIZE = 1.5
PREFIXES, ENDPOINTS, NETWORK, CORES, CEILING = "prefixes", "endpoints", "network", "processors", "measured ceiling"


class PlanError(DnnbenchError):
    """A result, or a ladder in it, from which nothing can be planned."""


@dataclass(frozen=True)
class Cluster:
    """What is planned for. ``None``: as measured. Limits are those that are known beforehand."""

    accelerators: int
    samples_per_s: float
    accelerators_per_node: int = 8
    cores_per_node: int | None = None
    nic_gbit_per_s: float = 100.0
    endpoints: int | None = None
    gets_per_endpoint: float | None = None
    prefixes: int = 1
    gets_per_prefix: float | None = None
    mean_bytes: float | None = None

    @property
    def nodes(self) -> int:
        return math.ceil(self.accelerators / self.accelerators_per_node)

    @property
    def total_per_s(self) -> float:
        return self.accelerators * self.samples_per_s

    @property
    def node_per_s(self) -> float:
        """Of a full node."""
        return min(self.accelerators, self.accelerators_per_node) * self.samples_per_s


@dataclass(frozen=True)
class Limit:
    """One thing that may not be enough: ``used`` is what is needed over what there is; beyond 1 it bites."""

    name: str
    need: float
    has: float
    unit: str
    told: str

    @property
    def used(self) -> float:
        return self.need / self.has


@dataclass(frozen=True)
class Plan:
    """What a cluster needs by one ladder. Times in seconds; ``reads_at_a_time`` by Little's law at ``read_s``."""

    benchmark: str
    storage: str
    client: str
    what: str
    verb: str
    cluster: Cluster
    measured: Measured
    gets_per_s: float
    bytes_per_s: float
    read_s: float
    read_told: str
    reads_at_a_time: float
    cores: float
    cores_per_node: float
    readers_per_node: int | None
    network_gbit_per_node: float
    limits: Sequence[Limit]
    first: Limit
    node_per_s: float
    prediction: Sequence[Prediction]
    unknown: Sequence[str]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Plans:
    """The plan of each ladder of a file, and why others have none."""

    plans: Sequence[Plan]
    refused: Sequence[str]


def plan_all(result: Result, cluster: Cluster, words: str = "") -> Plans:
    """A plan for each ladder of a result whose name ``words`` choose, as pytest's ``-k`` does. Raises `PlanError`."""
    ladders = [one for one in result.benchmarks if "ladder" in one.record]
    if not ladders:
        raise PlanError(
            f"{result.path}: holds no ladder, from which plans are made; measure one with pytest bench/ -k ladder "
            "--benchmark-json=FILE"
        )
    chosen = [one for one in ladders if chooses(words, one.name.rpartition("::")[2])]
    if not chosen:
        names = ", ".join(one.name.rpartition("::")[2] for one in ladders)
        raise PlanError(f"-k {words}: chooses none of the ladders of {result.path}: {names}")
    plans, refused = [], []
    for one in chosen:
        try:
            plans.append(plan(one, result, cluster))
        except PlanError as exc:
            refused.append(str(exc))
    if not plans:
        raise PlanError("; ".join(refused))
    return Plans(plans, refused)


def chooses(words: str, name: str) -> bool:
    """Whether words with ``and``, ``or`` and ``not`` (no parentheses) choose a name; none choose all."""

    def fits(term: str) -> bool:
        negated, _, rest = term.strip().rpartition("not ")
        return (rest.strip().lower() in name.lower()) != (negated == "" and term.strip().startswith("not "))

    if "(" in words or ")" in words:
        raise PlanError(f"-k {words}: may hold words, and, or, not; no parentheses")
    return any(all(fits(term) for term in some.split(" and ")) for some in words.split(" or "))


def plan(benchmark: Benchmark, result: Result, cluster: Cluster) -> Plan:
    """What the cluster needs by one ladder. Raises `PlanError`."""
    measured = measured_of(benchmark, result)
    bytes_per_sample = cluster.mean_bytes or measured.bytes_per_sample
    gets_per_s = cluster.total_per_s * measured.gets_per_sample
    read_s, read_told = read_time(measured)
    cores = cluster.cores_per_node or measured.cores
    network_gbit = cluster.node_per_s * bytes_per_sample * 8 / 1e9
    cores_per_node = cluster.node_per_s * measured.cpu_s
    limits = [
        Limit(CORES, cores_per_node, cores, "processors a node", _cores_told(cluster, measured)),
        Limit(
            NETWORK, network_gbit, cluster.nic_gbit_per_s * PAYLOAD_SHARE, "Gbit/s a node",
            f"a NIC of {cluster.nic_gbit_per_s:g} Gbit/s, {PAYLOAD_SHARE:.0%} of it payload",
        ),
    ]  # fmt: skip
    storage_limits, unknown = _storage_limits(benchmark, measured, cluster, gets_per_s)
    limits = sorted([*limits, *storage_limits], key=lambda limit: limit.used, reverse=True)
    return Plan(
        benchmark=benchmark.name.rpartition("::")[2],
        storage=benchmark.storage,
        client=benchmark.client,
        what=str(benchmark.record["what"]),
        verb="reads" if benchmark.storage == "fs" else "GET",
        cluster=cluster,
        measured=measured,
        gets_per_s=gets_per_s,
        bytes_per_s=cluster.total_per_s * bytes_per_sample,
        read_s=read_s,
        read_told=read_told,
        reads_at_a_time=gets_per_s * read_s,
        cores=cluster.total_per_s * measured.cpu_s,
        cores_per_node=cores_per_node,
        readers_per_node=readers_for(cluster.node_per_s, measured.wait_elsewhere_s, measured.cpu_s, cores),
        network_gbit_per_node=network_gbit,
        limits=limits,
        first=limits[0],
        node_per_s=_node_per_s(measured, cluster, bytes_per_sample),
        prediction=[predict(measured, ranks) for ranks in RANKS],
        unknown=unknown,
        warnings=list(_warnings(benchmark, result, measured, cluster)),
    )


def measured_of(benchmark: Benchmark, result: Result) -> Measured:
    """What a ladder's record says, as the model takes it. Raises `PlanError` where nothing can be planned from it."""
    record, name = benchmark.record, benchmark.name.rpartition("::")[2]
    server = result.about.get("embedded_server") or {}
    if benchmark.storage != "fs" and server.get("kind") == "moto":
        raise PlanError(
            f"{name}: was measured on the mock server moto, which says nothing about a storage; measure your own with "
            "--dnn-config FILE, or Ceph with --dnn-server ceph"
        )
    ladder = record["ladder"]
    cpu_s = ladder.get("loader_cpu_s_per_sample")
    if not cpu_s:
        raise PlanError(
            f"{name}: has no loader_cpu_s_per_sample: an earlier version measured it; measure again, with -k ladder"
        )
    try:
        reads = {rung: Reads(**ladder["reads"][rung]) for rung in RUNGS}
        if min(ladder["loader_per_s"], *(one.objects_per_s for one in reads.values())) <= 0:
            raise ValueError("a rate is 0")
        if max(one.processes for one in reads.values()) > 1:
            raise PlanError(f"{name}: is of several ranks, and the model is of one; measure a ladder without torchrun")
        requests = sum(record["requests"].get(verb, 0) for verb in READ_VERBS)
        # What a dataset of the user's reads past the storage is none of its requests.
        gets_per_sample = max(requests / record["samples"], 1.0)
        server_cpu_s = _server_cpu_s(record, reads) * gets_per_sample
        return Measured(
            readers=_readers(benchmark, result, reads),
            cores=int(ladder["cores"]),
            loader_per_s=float(ladder["loader_per_s"]),
            cpu_s=float(cpu_s),
            server_cpu_s=server_cpu_s,
            gets_per_sample=gets_per_sample,
            bytes_per_sample=record["bytes"] / record["samples"],
            reads=reads,
            one_core_client=bool(ladder["one_core_client"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, StopIteration) as exc:
        raise PlanError(f"{name}: its record is damaged ({type(exc).__name__} {exc}); measure again") from exc


def read_time(measured: Measured) -> tuple[float, str]:
    """(mean seconds that a read takes, how that was measured): the time that Little's law asks for.

    With as many in flight as the whole loader has, where neither the client nor its processors limited that; else one
    at a time, as the client saw it.
    """
    as_loader, one = measured.reads["loader"], measured.reads["one reader"]
    if not measured.client_bound("loader"):
        load = f"under load, with {as_loader.in_flight} in flight" if as_loader.in_flight > 1 else "one at a time"
        return as_loader.in_flight / as_loader.objects_per_s, f"the mean {load}"
    if not measured.client_bound("one reader"):
        return one.in_flight / one.objects_per_s, f"the mean without load, with {one.in_flight} in flight"
    return one.latency_p50_ms / 1e3, "the median without load, mostly the client's own work: the storage's is less"


def endpoints_of(settings: Mapping[str, Any]) -> int | None:
    """How many endpoints of its own a storage was read through; None for AWS and for files."""
    if "clusters" in settings:
        return sum(len(cluster["endpoints"]) for cluster in settings["clusters"]) or None
    return 1 if "endpoint" in settings and not is_aws(settings) else None


def is_aws(settings: Mapping[str, Any]) -> bool:
    """Whether AWS itself was read, or another S3 server."""
    endpoint = settings.get("endpoint")
    host = urllib.parse.urlsplit(str(endpoint)).hostname or ""
    return endpoint == "AWS" or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _addresses(settings: Mapping[str, Any]) -> list[str]:
    clusters = settings.get("clusters") or ()
    listed = [str(endpoint) for cluster in clusters for endpoint in cluster["endpoints"]]
    return listed or ([str(settings["endpoint"])] if settings.get("endpoint") else [])


def _is_here(address: str) -> bool:
    host = urllib.parse.urlsplit(address if "//" in address else f"//{address}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _server_cpu_s(record: Mapping[str, Any], reads: Mapping[str, Reads]) -> float:
    """Processor seconds that a server on this machine took per read: what others took, where there were more reads."""
    if not any(map(_is_here, _addresses(record["settings"]))):
        return 0.0
    others = [(one.objects_per_s, one.all_cores - one.own_cores) for one in reads.values()]
    mean_per_s, mean_cores = (statistics.mean(column) for column in zip(*others, strict=True))
    spread = sum((per_s - mean_per_s) ** 2 for per_s, _ in others)
    slope = sum((per_s - mean_per_s) * (cores - mean_cores) for per_s, cores in others) / spread if spread else 0.0
    # A line through them and no more than any of them has: what others do all the time is not the server's.
    return min(max(slope, 0.0), *(cores / per_s for per_s, cores in others))


def _framework_of(benchmark: Benchmark) -> str:
    return "torch" if str(benchmark.record["what"]).startswith("torch") else "tf"


def _section(benchmark: Benchmark, result: Result) -> Mapping[str, Any]:
    """``framework`` of the resolved configuration that the benchmark ran with."""
    wanted = benchmark.record["config_hash"]
    section: Mapping[str, Any] = next(
        one["resolved"]["framework"] for one in result.about["configuration"] if one["hash"] == wanted
    )
    return section


def _readers(benchmark: Benchmark, result: Result, reads: Mapping[str, Reads]) -> int:
    if _framework_of(benchmark) == "torch":
        return max(int(_section(benchmark, result)["PyTorch"]["DataLoader"]["num_workers"]), 1)
    return reads["loader"].in_flight


def _cores_told(cluster: Cluster, measured: Measured) -> str:
    given = "a node has" if cluster.cores_per_node else "the measured machine has"
    return f"{given} {cluster.cores_per_node or measured.cores}; without the trainer's own"


def _storage_limits(
    benchmark: Benchmark, measured: Measured, cluster: Cluster, gets_per_s: float
) -> tuple[list[Limit], list[str]]:
    """(what limits the storage, what of it is not known)."""
    settings = benchmark.record["settings"]
    limits, unknown = [], []
    unit = "reads/s" if benchmark.storage == "fs" else "GET/s"
    if is_aws(settings) or cluster.gets_per_prefix:
        each = cluster.gets_per_prefix or GETS_PER_PREFIX
        needed = math.ceil(gets_per_s / each)
        told = f"{each:,.0f} {unit} for each of {cluster.prefixes:,} partitioned prefixes; {needed:,} would do"
        limits.append(Limit(PREFIXES, gets_per_s, each * cluster.prefixes, unit, told))
    there = endpoints_of(settings)
    ceiling, seen = measured.ceiling_gets_per_s, measured.seen_gets_per_s
    count = cluster.endpoints or there or 1
    each_known = cluster.gets_per_endpoint or (ceiling / (there or 1) if ceiling else None)
    if each_known and (there or cluster.endpoints or cluster.gets_per_endpoint):
        source = "given" if cluster.gets_per_endpoint else f"measured at {there or 1}, or of the network to them"
        enough = math.ceil(gets_per_s / each_known)
        told = f"{each_known:,.1f} {unit} for each of {count:,} ({source}); {enough:,} would do"
        limits.append(Limit(ENDPOINTS, gets_per_s, each_known * count, unit, told))
    elif each_known:
        told = f"{each_known:,.0f} {unit}: the storage, or the network to it, gave this machine no more"
        limits.append(Limit(CEILING, gets_per_s, each_known, unit, told))
    elif not is_aws(settings):
        apiece = f", {seen / there:,.0f} for each of {there} endpoints" if there else ""
        unknown.append(
            f"what the storage can do: it gave at least {seen:,.0f} {unit}{apiece}, and what limited was "
            f"{_what_limited(measured)}; {_to_learn(measured)}"
        )
    return limits, unknown


def _what_limited(measured: Measured) -> str:
    if any(map(measured.client_bound, measured.reads)):
        return "the client"
    return "how few reads were in flight"


def _to_learn(measured: Measured) -> str:
    if any(map(measured.client_bound, measured.reads)):
        return "measure with client_lib=obstore, more processors, or several machines"
    return "measure with more workers or a higher concurrency, or with --dnn-autoscale"


def _node_per_s(measured: Measured, cluster: Cluster, bytes_per_sample: float) -> float:
    """Samples/s that one node like the measured machine feeds, all of its processors at it."""
    network_per_s = cluster.nic_gbit_per_s * PAYLOAD_SHARE * 1e9 / 8 / bytes_per_sample
    return min(measured.cores / measured.cpu_s, network_per_s, measured.ceiling_per_s or math.inf)


def _warnings(benchmark: Benchmark, result: Result, measured: Measured, cluster: Cluster) -> Iterator[str]:
    """What may spoil a plan, a line each."""
    record, about = benchmark.record, result.about
    server = about.get("embedded_server") or {}
    if benchmark.storage != "fs" and server:
        yield f"figures of {server['kind']}: {EMBEDDED.get(server['kind'], 'on this machine')}"
    elif about.get("embedded_default"):
        yield "the embedded data set on the local disk was measured; name your own with --dnn-config FILE"
    bound = [rung for rung in measured.reads if measured.client_bound(rung)]
    if bound:
        yield (
            f"client-bound: the reads of {', '.join(bound)} were limited by the client's own processor time, and say "
            "nothing about the storage; measure with client_lib=obstore, or on more processors"
        )
    if record["disturbed"]:
        by = " and ".join(record.get("disturbed_by") or ["something"])
        yield f"disturbed by {by}: measure again on a calm machine"
    if benchmark.storage == "fs" and record["cache"] != "cold":
        yield f"page cache {record['cache']}: the reads may be memory's and not the storage's; measure with a cold one"
    if record["retries"]:
        yield f"{record['retries']} requests were sent again: their waiting is in these figures"
    section = _section(benchmark, result)
    torch = section["PyTorch"]["DataLoader"]
    if _framework_of(benchmark) == "torch":
        if torch["num_workers"] and not torch["persistent_workers"]:
            yield "workers end with each epoch: their start is in the processor time; set persistent_workers=true"
        if record["ladder"]["samples"] < 2 * section["batch_size"] * measured.readers:
            yield (
                f"{record['ladder']['samples']} samples are fewer than two batches for each of {measured.readers} "
                "workers, some of which had nothing to do; measure a larger data set"
            )
    one = measured.reads["loader"]
    if one.latency_p99_ms > LONG_TAIL * one.latency_p50_ms:
        yield (
            f"latency has a long tail (p50 {one.latency_p50_ms:.3g} ms, p99 {one.latency_p99_ms:.3g} ms): single "
            "readers fall behind, and more reads at a time are needed than their mean says"
        )
    if cluster.mean_bytes and not 1 / OTHER_SIZE < cluster.mean_bytes / measured.bytes_per_sample < OTHER_SIZE:
        yield (
            f"planned for {cluster.mean_bytes:,.0f} bytes a sample, measured with {measured.bytes_per_sample:,.0f}: "
            "latency and processor time are those of the latter; measure a ladder on such samples"
        )

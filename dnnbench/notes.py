"""What stands below the figures, after a run and in its report: what may spoil them, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dnnbench.metrics_ranks import scaling
from dnnbench.metrics_rounds import DISTURBED_SHARE

Figures = Mapping[str, Any]

# What the figures of embedded servers are worth.
EMBEDDED = {
    "moto": "a mock on this machine: they show that all works, and say nothing about a storage",
    "ceph": "a real object store, in this machine's memory and on its processors: they are comparable on this machine "
    "alone",
}
# A rank with less than this of the fastest one's rate is told of.
STRAGGLING = 2 / 3
STOPPED_BY = {
    "throughput": "more bring no more",
    "p99": "more pass the bound of p99",
    "batches": "the data set has too few batches for more",
    "most": "as many as are tried",
}


def place(figures: Figures) -> str:
    """Where a benchmark read from: its storage and client."""
    return f"{figures['storage']} ({figures['client']})"


def swept(figures: Figures) -> str:
    """The swept settings, behind the name of what was measured: `` num_workers=4``."""
    return "".join(f" {key.rpartition('.')[2]}={value}" for key, value in figures["swept"].items())


def warnings(figures: Sequence[Figures], server: Mapping[str, str] | None) -> Iterator[str]:
    """What may spoil the figures of a run, a line each. ``server`` is the record's ``embedded_server``."""
    if server and any(one["storage"] != "fs" for one in figures):
        # Of a kind that a later version knows, the name is all there is to say.
        worth = EMBEDDED.get(server["kind"], "on this machine")
        yield f"aws, dss: figures of {server['kind']} {server['version']}, {worth}"
    left_out = {one["storage"]: one["catalog"]["left_out"] for one in figures if one["catalog"]["left_out"]}
    for storage, counts in left_out.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        yield f"{storage}: left out of the data set: {reasons}"
    if any(one["cache"] == "unknown" and one["storage"] == "fs" and "mib_per_s" in one for one in figures):
        yield "fs: cache unknown: the page cache could not be verified; the figures may be memory's, not the storage's"
    for where in sorted({place(one) for one in figures if one["settings"].get("verify_tls") is False}):
        yield f"{where}: TLS certificates were not verified: storage.s3.verify_tls is false"
    retried = [one for one in figures if one["retries"]]
    if retried:
        yield (
            f"retries: in {len(retried)} of {len(figures)} benchmarks requests were sent again "
            f"({sum(one['retries'] for one in retried)} in all); the waiting is in their latencies and rates"
        )
    bound = [one for one in figures if one.get("client_bound") or verdict_of(one).get("client_bound")]
    if bound:
        yield (
            f"client-bound: {len(bound)} of the readings are limited by the client's own processor time, and say "
            "nothing about the storage"
        )
    yield from _caches(figures)
    yield from _stragglers(figures)
    yield from _disturbed(figures)


def _caches(figures: Sequence[Figures]) -> Iterator[str]:
    """Readings that were not the storage's, whatever was asked for."""
    cached = [one for one in figures if one["cache"] in ("mixed", "warm") and one.get("cache_asked") != one["cache"]]
    if cached:
        yield (
            f"page cache: {len(cached)} of the readings came from memory, whole (warm) or in part (mixed), though "
            "another state was asked for: the machine fetched less, or more, than that state has it"
        )
    for one in figures:
        if one.get("server_cache"):
            first_ms, later_ms = (one[key]["latency_p50_ms"] for key in ("first_reads", "later_reads"))
            yield (
                f"{place(one)}, {one['what']}: a cache on the server's side: first reads took "
                f"{first_ms:.3g} ms, later ones {later_ms:.3g} ms (p50); later rounds do not measure its media"
            )


def _stragglers(figures: Sequence[Figures]) -> Iterator[str]:
    """Ranks that took much longer than others, for which a round waits."""
    several = [one for one in figures if one.get("ranks", {}).get("count", 1) > 1]
    apart = [one for one in several if _slowness(one) < STRAGGLING]
    if apart:
        most = min(apart, key=_slowness)
        yield (
            f"ranks: in {len(apart)} of {len(several)} benchmarks the slowest rank had less than {STRAGGLING:.0%} of "
            f"the fastest one's rate; most apart, in {most['what']}{swept(most)}: {slowest_and_fastest(most)}"
        )


def _slowness(figures: Figures) -> float:
    slowest, fastest = (figures["ranks"][which]["objects_per_s"] for which in ("slowest", "fastest"))
    return float(slowest / fastest) if fastest else 1.0


def slowest_and_fastest(figures: Figures) -> str:
    """Which ranks these were, and their rates over their own time."""
    return ", ".join(
        f"{which} rank {one['rank']} on {one['host']} {one['objects_per_s']:,.0f}/s"
        for which in ("slowest", "fastest")
        for one in (figures["ranks"][which],)
    )


def _disturbed(figures: Sequence[Figures]) -> Iterator[str]:
    repeats = sum(one.get("repeats", 0) for one in figures)
    if repeats:
        yield f"repeated: {repeats} rounds were disturbed and made again; they are in no total"
    disturbed = [one for one in figures if one["disturbed"]]
    if disturbed:
        shares = [one["others_cpu_share"] or 0.0 for one in disturbed]
        swapping = sum("swapping" in one.get("disturbed_by", ()) for one in disturbed)
        yield (
            f"disturbed: during {len(disturbed)} of {len(figures)} benchmarks other processes took more than "
            f"{DISTURBED_SHARE:.0%} of the processors (up to {max(shares):.0%}), or the machine swapped ({swapping}); "
            "measure again on a calm machine"
        )


def answers(figures: Sequence[Figures]) -> Iterator[str]:
    """What ladders, accelerators, knees and several numbers of ranks say, a line each."""
    for one in figures:
        told = [verdict_of(one)["sentence"]] if "ladder" in one else []
        told += [kept_busy(one)] if "trials" in one.get("accelerator", {}) else []
        told += [curve(one["knee"])] if "knee" in one else []
        yield from (f"{place(one)}, {one['what']}{swept(one)}: {line}" for line in told)
    yield from scalings(figures)


def scalings(figures: Sequence[Figures]) -> Iterator[str]:
    """What more ranks brought, a line for each benchmark that ran with several numbers of them."""
    for series in scaling(figures):
        yield f"{place(series)}, {series['what']}{swept(series)}: {scaled(series, figures)}"


def scaled(series: Mapping[str, Any], figures: Sequence[Figures]) -> str:
    """What more ranks brought, from `dnnbench.metrics_ranks.scaling`, and what limits the most of them."""
    points = [
        f"{point['ranks']}: {point['objects_per_s']:,.0f}/s"
        + (f" ({point['efficiency']:.0%})" if point["ranks"] != series["against_ranks"] else "")
        for point in series["points"]
    ]
    most = series["points"][-1]["ranks"]
    framework = series["what"].partition(" ")[0]
    limits = {
        (verdict_of(one)["limit"], verdict_of(one)["side"])
        for one in figures
        if one["what"] == f"{framework} ladder"
        and place(one) == place(series)
        and one["ranks"]["count"] == most
        # Of the same settings: what limits with others is not what limits here.
        and all(one["swept"].get(key, value) == value for key, value in series["swept"].items())
    }
    told = ""
    if len(limits) == 1:
        ((limit, side),) = limits
        whose = f"{side}'" if side.endswith("s") else f"{side}'s"
        told = f"; with {most} {limit} limits, which is the {whose}"
    unit = "ranks" if series["against_ranks"] == 1 else f"ranks, against {series['against_ranks']}"
    return f"by {unit} (and efficiency) {', '.join(points)}{told}"


def costs(figures: Sequence[Figures]) -> Iterator[str]:
    """Requests per sample and what a million samples cost, a line for each storage and client that bills requests."""
    for where in dict.fromkeys(place(one) for one in figures if one.get("cost")):
        told: dict[str, list[str]] = {}
        billed = [one for one in figures if one.get("cost") and place(one) == where]
        for one in billed:
            told.setdefault(billed_text(one), []).append(one["what"] + swept(one))
        parts = [
            f"{text} ({', '.join(dict.fromkeys(whats)) if len(told) > 1 else 'all'})" for text, whats in told.items()
        ]
        yield f"{where}: requests: {'; '.join(parts)}; prices of {billed[-1]['cost']['prices_date']}"


def counted_by(figures: Figures) -> str:
    """What ``objects`` are, by which requests and costs are told: a ``sample``, a ``shard`` or a large ``object``."""
    if figures["catalog"].get("part") in ("large", "largest"):
        return "object"
    return "shard" if figures.get("format", "files") != "files" and "samples" not in figures else "sample"


def billed_text(figures: Figures) -> str:
    """``1 GET/sample, 0.4 USD per million samples``."""
    unit = counted_by(figures)
    requests = " + ".join(f"{count:.3g} {verb}" for verb, count in (figures["requests_per_sample"] or {}).items())
    of_million = figures["cost"]["per_million_samples"] or 0.0
    return f"{requests or 'none'}/{unit}, {of_million:.3g} {figures['cost']['currency']} per million {unit}s"


def kept_busy(figures: Figures) -> str:
    """What `test_accelerator` found."""
    told, ranks = figures["accelerator"], figures.get("ranks", {}).get("count", 1)
    rate, batch_ms = f"{told['samples_per_s']:,.0f} samples/s", f"{told['batch_compute_ms']:.3g} ms a batch"
    kept = f"kept busy to {told['target']:.0%}"
    which = f"the fastest of the accelerators tried that is {kept} takes"
    if not told["kept_busy"]:
        which = f"no accelerator tried is {kept}; one takes"
    start = (
        "" if told["warm_up_steps"] else ", in which the wait for its first batches counts: there are too few others"
    )
    several = f"; of {ranks} ranks each had one, and this is the one that waited most" if ranks > 1 else ""
    return f"{which} {rate} ({batch_ms}), and was busy {told['utilization']:.0%} of its epoch{start}{several}"


def verdict_of(figures: Figures) -> Mapping[str, Any]:
    """A ladder's verdict; of another benchmark, nothing."""
    verdict: Mapping[str, Any] = figures.get("ladder", {}).get("verdict", {})
    return verdict


def curve(knee: Mapping[str, Any]) -> str:
    """The way to a knee, from the record's ``knee``."""
    points = ", ".join(
        f"{point['level']}: {point['per_s']:,.0f}/s{' client-bound' if point.get('client_bound') else ''}"
        for point in knee["curve"]
    )
    if knee["per_s"] is None:
        return (
            f"{points} (no knee: p99 is {knee['curve'][0]['latency_p99_ms']:.3g} ms, beyond the bound, already there)"
        )
    return f"{points} ({STOPPED_BY[knee['stopped_by']]})"

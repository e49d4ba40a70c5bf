"""Several ranks' rounds as one: all that was read, over the time from the first rank's start to the last one's end.

Seconds of waiting and computing add up over the ranks, as rank-seconds; shares are of the ranks' time together.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dnnbench.errors import MeasurementError
from dnnbench.metrics import (
    EpochFigures,
    Inference,
    RankFigures,
    Round,
    Tally,
    per_second,
    percentiles_ms,
    sum_if_known,
)
from dnnbench.metrics_rounds import NS, PROCESSES, UNKNOWN, Machine

RANKS_KEY = "execution.ranks"


@dataclass
class RankRound:
    """What one rank hands over. ``leads_host``: it tells of its host what all ranks there would tell the same of."""

    rank: int
    host: str
    leads_host: bool
    start_ns: int
    end_ns: int
    offset_ns: int
    clock_error_ns: int
    round: Round


def merged(what: str, parts: Sequence[RankRound]) -> Round:
    """One round of all ranks' parts, in order of rank.

    Latencies are those of all reads. Raises `MeasurementError` where two ranks read the same sample in one pass, or
    ran another number of passes.
    """
    check_apart(what, parts)
    rounds = [part.round for part in parts]
    leading = [part.round for part in parts if part.leads_host]
    tally = Tally()
    for one in rounds:
        tally += one.tally
    figures = [_figures(part) for part in parts]
    first = rounds[0]
    audits = {one.fetched_by for one in rounds}
    # A process knows of itself; of a device or a network a whole host does.
    fetching = rounds if PROCESSES in audits else leading
    fetched = [one.fetched_bytes for one in fetching]
    if PROCESSES in audits and len(audits) > 1:
        fetched = [None]
    return replace(
        first,
        objects=sum(one.objects for one in rounds),
        tally=tally,
        listed_bytes=_sum([one.listed_bytes for one in rounds]),
        used_bytes=_sum([one.used_bytes for one in rounds]),
        epochs=_epochs(rounds, figures),
        inference=_inference(rounds),
        # As fast as the slowest of them: what they train waits for all.
        accelerator=min(
            (one.accelerator for one in rounds if one.accelerator), key=lambda told: told["utilization"], default=None
        ),
        worker_cpu_ns=sum(one.worker_cpu_ns for one in rounds),
        in_flight=_sum([one.in_flight for one in rounds]),
        indices=[],
        ranks=figures,
        wall_ns=max(one.end_ns for one in figures) - min(one.start_ns for one in figures),
        process_cpu_ns=sum(one.process_cpu_ns for one in rounds),
        others_cpu_ns=sum(one.others_cpu_ns for one in leading),
        machine=_machine([one.machine for one in leading]),
        cache=first.cache if len({one.cache for one in leading}) == 1 else UNKNOWN,
        fetched_bytes=sum_if_known(fetched),
        fetched_by="; ".join(sorted({one.fetched_by for one in fetching if one.fetched_by})) or None,
    )


def check_apart(what: str, parts: Sequence[RankRound]) -> None:
    """Raises `MeasurementError` where a sample came to two ranks in one pass."""
    import numpy as np

    passes = {len(part.round.indices) for part in parts}
    if len(passes) != 1:
        raise MeasurementError(f"{what}: the ranks made different numbers of passes: {sorted(passes)}")
    for number in range(passes.pop()):
        came = np.sort(np.concatenate([part.round.indices[number] for part in parts]))
        twice = came[1:][came[1:] == came[:-1]]
        if len(twice):
            raise MeasurementError(f"{what}: sample {int(twice[0])} came to two ranks in one pass")


def _figures(part: RankRound) -> RankFigures:
    one = part.round
    return RankFigures(
        rank=part.rank,
        host=part.host,
        objects=one.objects,
        tally=one.tally,
        start_ns=part.start_ns + part.offset_ns,
        end_ns=part.end_ns + part.offset_ns,
        clock_error_ns=part.clock_error_ns,
        wait_ns=sum(epoch.wait_ns for epoch in one.epochs),
        epochs_ns=[
            (epoch.start_ns + part.offset_ns, epoch.start_ns + part.offset_ns + epoch.wall_ns) for epoch in one.epochs
        ],
    )


def _epochs(rounds: Sequence[Round], figures: Sequence[RankFigures]) -> list[EpochFigures]:
    """Epoch by epoch, from the first rank's start of it to the last one's end."""
    together = []
    for number, epochs in enumerate(zip(*(one.epochs for one in rounds), strict=True)):
        spans = [figure.epochs_ns[number] for figure in figures]
        samples = sum(epoch.samples for epoch in epochs)
        together.append(
            EpochFigures(
                samples=samples,
                read_bytes=sum(epoch.read_bytes for epoch in epochs),
                wall_ns=max(end for _, end in spans) - min(start for start, _ in spans),
                wait_ns=sum(epoch.wait_ns for epoch in epochs),
                compute_ns=sum(epoch.compute_ns for epoch in epochs),
                first_batch_ns=max(epoch.first_batch_ns for epoch in epochs),
                first_step_ns=max(epoch.first_step_ns for epoch in epochs),
                retries=sum(epoch.retries for epoch in epochs),
                errors=sum(epoch.errors for epoch in epochs),
                loss=_by_samples([(epoch.loss, epoch.samples) for epoch in epochs]),
                accuracy=_by_samples([(epoch.accuracy, epoch.samples) for epoch in epochs]),
                batches=max(epoch.batches for epoch in epochs),
                waits_ns=_added([epoch.waits_ns for epoch in epochs]),
                computes_ns=_added([epoch.computes_ns for epoch in epochs]),
                start_ns=epochs[0].start_ns,
            )
        )
    return together


def _by_samples(values: Sequence[tuple[float | None, int]]) -> float | None:
    """What each rank says of its samples, as of all samples."""
    known = [(value, samples) for value, samples in values if value is not None]
    samples = sum(count for _, count in known)
    return sum(value * count for value, count in known) / samples if len(known) == len(values) and samples else None


def _added(columns: Sequence[Sequence[int]]) -> array[int]:
    """Batch by batch, over the ranks."""
    longest = max(map(len, columns), default=0)
    return array("q", (sum(column[i] for column in columns if i < len(column)) for i in range(longest)))


def _inference(rounds: Sequence[Round]) -> Inference | None:
    parts = [one.inference for one in rounds if one.inference is not None]
    if not parts:
        return None
    batch_ns = array("q")
    for part in parts:
        batch_ns.extend(part.batch_ns)
    rows = zip(*(part.confusion for part in parts), strict=True)
    return Inference([[sum(cells) for cells in zip(*row, strict=True)] for row in rows], batch_ns)


def _machine(machines: Sequence[Machine]) -> Machine:
    """Of each thing what the worst host had, and of what can be counted the sum."""
    stalled: Counter[str] = Counter()
    for one in machines:
        for name, ns in one.stalled_ns.items():
            stalled[name] = max(stalled[name], ns)
    return Machine(
        load_average_1min=_most([one.load_average_1min for one in machines]),
        cpu_mhz=_least([one.cpu_mhz for one in machines]),
        cpu_mhz_max=_least([one.cpu_mhz_max for one in machines]),
        stolen_ns=sum(one.stolen_ns for one in machines),
        swapped_in_bytes=_sum([one.swapped_in_bytes for one in machines]),
        swapped_out_bytes=_sum([one.swapped_out_bytes for one in machines]),
        stalled_ns=dict(stalled),
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def ranks_record(rounds: Sequence[Round], cores: int) -> dict[str, Any]:
    """The part of a record that tells of the ranks: each one's figures over all rounds, the slowest, the fastest.

    ``cores`` are those of all hosts together. A rank's rate is over its own time, from its start to its end.
    """
    ranks = rounds[0].ranks
    per_rank: list[dict[str, Any]] = []
    for at, figures in enumerate(ranks):
        own = [one.ranks[at] for one in rounds]
        wall_ns = sum(one.end_ns - one.start_ns for one in own)
        latency_ns = array("q")
        for one in own:
            latency_ns.extend(one.tally.latency_ns)
        percentiles = percentiles_ms(latency_ns)
        objects = sum(one.objects for one in own)
        per_rank.append(
            {
                "rank": figures.rank,
                "host": figures.host,
                "objects": objects,
                "bytes": sum(one.tally.read_bytes for one in own),
                "wall_s": wall_ns / NS,
                "objects_per_s": per_second(objects, wall_ns),
                "latency_p50_ms": percentiles.get("latency_p50_ms"),
                "latency_p99_ms": percentiles.get("latency_p99_ms"),
                "waiting_s": sum(one.wait_ns for one in own) / NS,
                "errors": sum(one.tally.errors for one in own),
                "retries": sum(one.tally.retries for one in own),
            }
        )
    # One that had nothing to do, as in a listing, is neither.
    busy = [one for one in per_rank if one["objects"]] or per_rank
    by_pace = sorted(busy, key=lambda one: float(one["objects_per_s"]), reverse=True)
    starts_ns = [max(r.start_ns for r in one.ranks) - min(r.start_ns for r in one.ranks) for one in rounds]
    return {
        "count": len(ranks),
        "hosts": len({figures.host for figures in ranks}),
        "cores": cores,
        "slowest": {key: by_pace[-1][key] for key in ("rank", "host", "objects_per_s")},
        "fastest": {key: by_pace[0][key] for key in ("rank", "host", "objects_per_s")},
        "start_spread_ms": max(starts_ns) / 1e6,
        "clock_error_ms": max(figures.clock_error_ns for one in rounds for figures in one.ranks) / 1e6,
        "per_rank": per_rank,
    }


def scaling(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What more ranks brought, of each benchmark that ran with several numbers of them (``execution.ranks``).

    ``efficiency`` is the rate of a rank over that of a rank of the fewest: 1 where each brings as much as the first.
    """
    series: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        if "ranks" in record:
            swept = {key: value for key, value in record["swept"].items() if key != RANKS_KEY}
            place = record["storage"], record["client"], record["what"], json.dumps(swept, sort_keys=True)
            series.setdefault(place, []).append(record)
    told = []
    for (storage, client, what, others), measured in series.items():
        by_ranks = {record["ranks"]["count"]: record for record in measured}
        if len(by_ranks) < 2 or len(by_ranks) < len(measured):
            continue
        fewest = by_ranks[min(by_ranks)]
        told.append(
            {
                "storage": storage,
                "client": client,
                "what": what,
                "swept": json.loads(others),
                "against_ranks": fewest["ranks"]["count"],
                "points": [_point(by_ranks[count], fewest) for count in sorted(by_ranks)],
            }
        )
    return told


def _point(record: Mapping[str, Any], fewest: Mapping[str, Any]) -> dict[str, Any]:
    ranks, fewest_ranks = record["ranks"]["count"], fewest["ranks"]["count"]
    rate, fewest_rate = record["objects_per_s"], fewest["objects_per_s"]
    return {
        "ranks": ranks,
        "hosts": record["ranks"]["hosts"],
        "objects_per_s": rate,
        "speed_up": rate / fewest_rate,
        "efficiency": (rate / ranks) / (fewest_rate / fewest_ranks),
    }

"""What of a benchmark is a curve rather than a figure: the distribution of its latencies, the course of its epochs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from dnnbench.metrics_rounds import NS

# In millionths, as whole numbers, so that a rank is exact. Denser to the tail, where storages differ.
SHARES = (
    0, 1_000, 5_000, 10_000, 20_000, 30_000, *range(50_000, 500_000, 50_000), *range(500_000, 900_000, 25_000),
    *range(900_000, 990_000, 10_000), *range(990_000, 999_000, 1_000), 999_000, 999_200, 999_400, 999_600, 999_800,
    999_900, 999_950, 999_990, 1_000_000,
)  # fmt: skip
ALL = 1_000_000
MOST_SLICES = 100


def latency_curve(latency_ns: array[int]) -> list[list[float]]:
    """``[share, ms]`` for shares from 0 (the minimum) to 1 (the maximum): exact nearest ranks; empty without values."""
    if not latency_ns:
        return []
    return [[share / 1e6, ms] for share, ms in zip(SHARES, at_shares_ms(latency_ns, SHARES), strict=True)]


def at_shares_ms(latency_ns: array[int], shares: Sequence[int]) -> list[float]:
    """The nearest ranks, in ms, for shares in millionths; 0 is the minimum. Each is a value that occurred."""
    import numpy as np

    positions = [max(-(-len(latency_ns) * share // ALL) - 1, 0) for share in shares]
    values = np.partition(np.asarray(latency_ns, dtype=np.int64), sorted(set(positions)))
    return [float(values[at]) / 1e6 for at in positions]


def course(batches: int, waits_ns: Sequence[int], computes_ns: Sequence[int]) -> dict[str, list[float]]:
    """An epoch's waiting and computing in at most `MOST_SLICES` slices of (nearly) as many batches each.

    ``waits_ns[i]`` came before batch ``i``, ``computes_ns[i]`` after it; what is beyond the last batch, such as finding
    that there is no more, is in the last slice. So the sums are the epoch's totals.
    """
    slices = min(batches, MOST_SLICES)
    starts = [batches * number // slices for number in range(slices)]
    ends = [*starts[1:], batches]
    # Beyond the last batch, too.
    until = [*starts[1:], max(len(waits_ns), len(computes_ns))]
    return {
        "batches": [end - start for start, end in zip(starts, ends, strict=True)],
        "waiting_s": [sum(waits_ns[start:end]) / NS for start, end in zip(starts, until, strict=True)],
        "computing_s": [sum(computes_ns[start:end]) / NS for start, end in zip(starts, until, strict=True)],
    }

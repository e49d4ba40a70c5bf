"""Requests per sample, bytes per byte used, and what a pass over the data costs at given prices.

Prices are those of the configuration (``prices``); what is in a cost, and what is not: docs/requests-and-cost.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnnbench.config import Prices

# A "GB" of a bill is this many bytes, at AWS and with those who bill alike.
BILLED_GB_BYTES = 1024**3
# Billed as PUT, COPY, POST and LIST are; all other verbs as GET is, but for those that are free.
DEARER = frozenset({"LIST", "PUT", "COPY", "POST"})
FREE = frozenset({"DELETE"})
MILLION = 1_000_000


def per_sample(requests: Mapping[str, int], samples: int) -> dict[str, float] | None:
    """Requests per sample by verb, retries included; None where there was no sample."""
    return {verb: count / samples for verb, count in sorted(requests.items())} if samples else None


def bytes_per_used_byte(read_bytes: int, used_bytes: int) -> float | None:
    """What was read for each byte that the samples are; None where none was used."""
    return read_bytes / used_bytes if used_bytes else None


def cost_of_requests(requests: Mapping[str, int], prices: Prices) -> float:
    """What requests cost, by verb; a repeated one as any other."""
    dearer = sum(count for verb, count in requests.items() if verb in DEARER)
    others = sum(count for verb, count in requests.items() if verb not in DEARER | FREE)
    return (dearer * prices.put_list_per_1000 + others * prices.get_per_1000) / 1000


def cost(
    requests: Mapping[str, int],
    *,
    transferred_bytes: int,
    stored_bytes: int,
    passes: int,
    samples: int,
    prices: Prices,
) -> dict[str, Any]:
    """The record's ``cost``: of a pass, of a million samples, and of keeping the data for a month.

    ``requests``, ``transferred_bytes`` and ``samples`` are those of all ``passes``; ``stored_bytes`` those of the data.
    """
    of_requests = cost_of_requests(requests, prices)
    of_transfer = transferred_bytes / BILLED_GB_BYTES * prices.transfer_per_gb
    whole = of_requests + of_transfer
    return {
        "per_epoch": whole / passes,
        "requests_per_epoch": of_requests / passes,
        "transfer_per_epoch": of_transfer / passes,
        "per_million_samples": whole / samples * MILLION if samples else None,
        "storage_per_month": stored_bytes / BILLED_GB_BYTES * prices.storage_per_gb_month,
        "currency": prices.currency,
        "prices_date": prices.date,
        "prices_source": prices.source,
    }

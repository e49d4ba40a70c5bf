"""Where a DSS keeps a key: the hash, the cluster, the endpoint. No I/O here.

The hash is libstdc++'s ``std::hash<std::string>`` on 64-bit machines: MurmurHash64A (A. Appleby,
public domain; its constants and steps are the algorithm's definition) with seed 0xc70f6907.
"""

from __future__ import annotations

from collections.abc import Sequence

_SEED = 0xC70F6907
_M = 0xC6A4A7935BD1E995
_MASK = 0xFFFFFFFFFFFFFFFF


def murmur_hash_64a(data: bytes, seed: int = _SEED) -> int:
    """MurmurHash64A of ``data``: an unsigned 64-bit number."""
    length = len(data)
    value = seed ^ (length * _M & _MASK)
    whole = length & ~7
    for i in range(0, whole, 8):
        word = int.from_bytes(data[i : i + 8], "little") * _M & _MASK
        word = (word ^ word >> 47) * _M & _MASK
        value = (value ^ word) * _M & _MASK
    if length & 7:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    value = (value ^ value >> 47) * _M & _MASK
    return value ^ value >> 47


def weight(cluster_id: int, key: str) -> int:
    """The weight of a cluster for a key: the hash's low 32 bits."""
    return murmur_hash_64a(f"{cluster_id}{key}".encode("utf-8", "surrogateescape")) & 0xFFFFFFFF


def place(cluster_ids: Sequence[int], key: str) -> tuple[int, int]:
    """(id of the cluster that holds the key, its weight there): the highest weight, on a tie the lowest id."""
    best = max((weight(cluster_id, key), -cluster_id) for cluster_id in cluster_ids)
    return -best[1], best[0]

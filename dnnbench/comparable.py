"""May two runs be compared? What must be the same in both, by kind, and what differs.

A difference of one of the `KINDS` makes a comparison one of two things at once, so it is refused unless it is allowed
by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnnbench.results import Benchmark, Result

# What a difference of each kind is one of; "missing" and "undecided" are none, but are allowed in the same way.
KINDS = {
    "catalog": "the objects that were read",
    "configuration": "the resolved configuration",
    "storage": "the storage's name",
    "client": "the client library, its version and settings",
    "software": "dnnbench, Python, the frameworks, NumPy, Pillow, the kernel",
    "hardware": "processor, cores, memory, GPU, ranks and their hosts",
    "cache": "the page cache: cold or warm",
    "server": "the server's endpoint, kind and version",
    "missing": "a benchmark, or a figure of one, that only some runs have",
    "undecided": "not enough data",
}
# Of the settings that a storage tells, those that name the server; the rest is the client's.
_SERVER_SETTINGS = ("endpoint", "bucket", "clusters", "server")
_ADDRESSES = ("endpoint", "clusters")
_CLIENTS = ("boto3", "botocore", "obstore", "s3torchconnector")
# These take no part in what is measured.
_TOOLS = ("pytest", "pytest-benchmark", "pydantic", "moto")
# A machine that starts anew may report a few MiB more or less.
_MEMORY_MIB = 256


@dataclass(frozen=True)
class Difference:
    """What differs, and in how many benchmarks: ``hardware: cores: 2, now 4``."""

    kind: str
    text: str
    benchmarks: int = 1

    def __str__(self) -> str:
        many = f"in {self.benchmarks} benchmarks" if self.benchmarks != 1 else "in 1 benchmark"
        return f"{self.kind}: {self.text} ({many})"


def facts(result: Result, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """What must be the same in another run, by kind and name."""
    machine, record = result.machine, benchmark.record
    packages = machine["packages"]
    settings: Mapping[str, Any] = record["settings"]
    local = result.about.get("embedded_default", False)
    server = {name: settings[name] for name in _SERVER_SETTINGS if name in settings}
    if local:
        # Local servers listen where there is a free port.
        server = {name: value for name, value in server.items() if name not in _ADDRESSES}
        server["local server"] = result.about.get("embedded_server") if benchmark.storage != "fs" else None
    client = {name: value for name, value in settings.items() if name not in _SERVER_SETTINGS}
    versions = {name: version for name, version in packages.items() if name in _CLIENTS and name in benchmark.client}
    if "boto3" in versions and "botocore" in packages:
        versions["botocore"] = packages["botocore"]
    return {
        "catalog": {name: record["catalog"].get(name) for name in ("part", "hash", "objects", "bytes")},
        "configuration": _configuration(result, record),
        "storage": {"storage": benchmark.storage, "name": record.get("storage_label")},
        "client": {"client": benchmark.client, **versions, **client},
        "software": {
            "dnnbench": machine.get("dnnbench"),
            "python": machine.get("python"),
            "kernel": machine.get("kernel"),
            **{name: version for name, version in packages.items() if name not in (*_CLIENTS, *_TOOLS)},
        },
        "hardware": {
            "cpu": machine.get("cpu"),
            "cores": machine.get("cores"),
            "memory_mib": machine.get("memory_mib"),
            "gpu": machine.get("gpu"),
            **{name: record.get("ranks", {}).get(key, 1) for name, key in (("ranks", "count"), ("hosts", "hosts"))},
        },
        "cache": {"cache": record.get("cache"), "asked for": record.get("cache_asked")},
        "server": server,
    }


def _configuration(result: Result, record: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration that a benchmark had, flat, by dotted path."""
    for configuration in result.about["configuration"]:
        if configuration["hash"] == record["config_hash"]:
            return dict(_flat(configuration["resolved"]))
    return {"config_hash": record["config_hash"]}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """(kind, what differs) of the facts of two benchmarks."""
    found = []
    for kind, before in first.items():
        after = second[kind]
        for name in dict.fromkeys([*before, *after]):
            one, other = before.get(name), after.get(name)
            if one != other and not (name == "memory_mib" and one and other and abs(one - other) <= _MEMORY_MIB):
                found.append((kind, f"{name}: {_shown(one)}, now {_shown(other)}"))
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(found: Sequence[tuple[str, str]]) -> list[Difference]:
    """The same difference of many benchmarks as one, in the order of the kinds."""
    counts: dict[tuple[str, str], int] = {}
    for one in found:
        counts[one] = counts.get(one, 0) + 1
    order = list(KINDS)
    return sorted(
        (Difference(kind, text, count) for (kind, text), count in counts.items()), key=lambda d: order.index(d.kind)
    )

"""What other tools read of a result file, and what they make of it, written down from their sources.

github-action-benchmark, tool ``pytest``: `extractPytestResult` and `PytestBenchmarkJson` of its ``src/extract.ts``.
Bencher, adapter ``python_pytest``: ``lib/bencher_adapter/src/adapters/python/pytest.rs``, and for names `BenchmarkName`
of its ``bencher_valid``. Both take JSON as its standard has it, without Python's NaN and Infinity.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class Stats(BaseModel):
    """In seconds; ``ops`` is rounds per second."""

    model_config = ConfigDict(strict=True)
    mean: Number
    stddev: Number
    median: Number
    iqr: Number
    ops: Annotated[Number, Field(gt=0)]
    rounds: Annotated[int, Field(ge=1)]


class Benchmark(BaseModel):
    model_config = ConfigDict(strict=True)
    fullname: Name
    stats: Stats


class Result(BaseModel):
    """What both of them read. Further keys are left alone by both."""

    model_config = ConfigDict(strict=True)
    machine_info: dict[str, Any]
    commit_info: dict[str, Any]
    benchmarks: list[Benchmark]


def read_strictly(text: str) -> Result:
    """The result file as both tools read it. Raises `ValueError` where one of them would not."""
    result = Result.model_validate(json.loads(text, parse_constant=_refuse))
    names = [one.fullname for one in result.benchmarks]
    if len(set(names)) != len(names):
        raise ValueError("a name stands there twice: both keep figures by name")
    return result


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def github_action_benchmark(result: Result) -> dict[str, tuple[float, str]]:
    """By name, what it draws and gates: (value, unit); of this tool's benchmarks more is better."""
    return {one.fullname: (one.stats.ops, "iter/sec") for one in result.benchmarks}


def bencher(result: Result) -> dict[str, tuple[float, float, float]]:
    """By name, its measure ``latency``: (value, lower, upper) in nanoseconds; less is better."""
    ns = 1e9
    return {
        one.fullname: (
            one.stats.mean * ns,
            (one.stats.mean - one.stats.stddev) * ns,
            (one.stats.mean + one.stats.stddev) * ns,
        )
        for one in result.benchmarks
    }

"""The knee of a storage: reads in flight, or loader workers, are doubled until it gives no more or takes too long.

A curve also ends where the data set has too few batches to keep more workers busy: what it told of more would be of
workers without work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.metrics import Round, check_pass, per_second, percentiles_ms
from dnnbench.probe import cores
from dnnbench.sampling import in_flight_of, loader_pass, raw_reads, share_of_catalog
from dnnbench.storage.base import Storage
from dnnbench.workloads import Loading, Reading

# Less growth than this, twice in a row, is none.
GROWTH = 1.05
# Within this of the highest rate, fewer in flight are as good.
NEAR = 0.95
MOST_IN_FLIGHT = 1024
MOST_WORKERS = 64
# Each worker has at least so many batches, or it is not known what it brings.
LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Step:
    """One point of the curve: ``level`` reads in flight, or workers."""

    level: int
    per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    client_bound: bool | None = None

    def record(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Knee:
    """The lowest level that gives (nearly) all there is, or None where no level is within the bound.

    ``stopped_by``: ``throughput``, ``p99``, ``batches`` (there are too few for a higher level) or ``most``.
    """

    step: Step | None
    stopped_by: str
    curve: tuple[Step, ...]

    @property
    def level(self) -> int:
        """The knee, or the lowest level where there is none."""
        return (self.step or self.curve[0]).level

    def record(self, unit: str) -> dict[str, Any]:
        return {
            unit: self.step and self.step.level,
            "per_s": self.step and self.step.per_s,
            "latency_p99_ms": self.step and self.step.latency_p99_ms,
            "stopped_by": self.stopped_by,
            "curve": [step.record() | {unit: step.level} for step in self.curve],
        }


def find_knee(measure: Callable[[int], Step | None], most: int, p99_bound_ms: float | None = None) -> Knee:
    """Measures levels 1, 2, 4 … up to ``most``, until two in a row bring no more, or one's p99 passes the bound.

    A level beyond the bound is on the curve, and is never the knee. ``measure`` gives None for a level, not the
    first, that there are too few batches for.
    """
    curve: list[Step] = []
    level, flat, best_per_s, stopped_by = 1, 0, 0.0, "most"
    while level <= most:
        step = measure(level)
        if step is None:
            stopped_by = "batches"
            break
        curve.append(step)
        if p99_bound_ms is not None and step.latency_p99_ms > p99_bound_ms:
            stopped_by = "p99"
            break
        flat = 0 if step.per_s > GROWTH * best_per_s else flat + 1
        best_per_s = max(best_per_s, step.per_s)
        if flat == 2:
            stopped_by = "throughput"
            break
        level *= 2
    within = [step for step in curve if p99_bound_ms is None or step.latency_p99_ms <= p99_bound_ms]
    highest_per_s = max((step.per_s for step in within), default=0.0)
    knee = next((step for step in within if step.per_s >= NEAR * highest_per_s), None)
    return Knee(knee, stopped_by, tuple(curve))


class ReadKnee(Reading):
    """Raw reads at their knee, timed; the way there is outside of the clock."""

    rounds: int | None = 1

    def __init__(self, storage: Storage, catalog: Catalog, config: Config, p99_bound_ms: float | None) -> None:
        super().__init__(storage, catalog, 1, config.execution.seed)
        self.what = "read knee"
        self._config, self._p99_bound_ms = config, p99_bound_ms
        self._knee: Knee | None = None

    def prepare(self, number: int) -> None:
        # All of them: a share that is enough for one reader is too little for many.
        catalog, _ = share_of_catalog(self.storage, self.catalog, self._config, MOST_IN_FLIGHT)
        self._knee = find_knee(lambda level: self._step(catalog, level), MOST_IN_FLIGHT, self._p99_bound_ms)
        self._concurrency = self._knee.level
        self.what = f"read knee c{self._concurrency}" if self._knee.step else f"read c{self._concurrency}, no knee"
        super().prepare(number)

    def account(self) -> Round:
        finished = super().account()
        assert self._knee is not None  # noqa: S101 (prepared before)
        finished.knee = self._knee.record("concurrency")
        return finished

    def _step(self, catalog: Catalog, level: int) -> Step:
        reads = raw_reads(self.storage, catalog, self._config, level)
        bound = reads.client_bound(cores(), self.storage.one_core)
        return Step(level, reads.objects_per_s, reads.latency_p50_ms, reads.latency_p99_ms, bound)


class LoaderKnee(Loading):
    """A loader at its knee, timed.

    Of PyTorch ``num_workers`` is doubled, of tf.data what decides there how many reads are in flight:
    ``num_parallel_calls``, or ``concurrency`` where reading is concurrent.
    """

    rounds = 1

    def __init__(
        self,
        storage: Storage,
        catalog: Catalog,
        config: Config,
        make_loader: Callable[[Config, Catalog], Any],
        framework: str,
        p99_bound_ms: float | None,
    ) -> None:
        self.what = f"{framework} loader knee"
        self.storage, self.catalog, self.total, self.worker_start_s = storage, catalog, len(catalog), None
        self._config, self._make_loader, self._framework = config, make_loader, framework
        self._p99_bound_ms = p99_bound_ms
        self._knee: Knee | None = None
        self._done_before = 0
        self.loader: Any = None
        self._unit, self._most = "num_workers", MOST_WORKERS
        if framework != "torch":
            self._unit = "num_parallel_calls"
            if config.framework.tensorflow.reading == "concurrent":
                self._unit, self._most = "concurrency", MOST_IN_FLIGHT

    def prepare(self, number: int) -> None:
        self._knee = find_knee(self._step, self._most, self._p99_bound_ms)
        level = self._knee.level
        setting = f"{'w' if self._framework == 'torch' else 'c'}{level}"
        self.what = f"{self._framework} loader " + (f"knee {setting}" if self._knee.step else f"{setting}, no knee")
        self.loader = self._make_loader(self._with_level(level), self.catalog)
        self.total = self.loader.expected_samples
        super().prepare(number)

    def account(self) -> Round:
        finished = super().account()
        assert self._knee is not None  # noqa: S101 (prepared before)
        finished.knee = self._knee.record(self._unit)
        return finished

    def close(self) -> None:
        """Ends the workers."""
        if self.loader is not None:
            self.loader.close()

    def _step(self, level: int) -> Step | None:
        config = self._with_level(level)
        catalog = self._share(config, level)
        if catalog is None:
            return None
        loader = self._make_loader(config, catalog)
        try:
            loader.start_workers()
            epoch, _ = loader_pass(loader, self.storage, catalog, config)
        finally:
            loader.close()
        what = f"{self.storage.label}: {self.what}"
        check_pass(what, epoch.indices, epoch.tally, catalog.sizes_bytes, loader.expected_samples)
        latency = percentiles_ms(epoch.tally.latency_ns)
        rate = per_second(epoch.samples, epoch.wall_ns)
        return Step(level, rate, float(latency["latency_p50_ms"]), float(latency["latency_p99_ms"]))

    def _share(self, config: Config, level: int) -> Catalog | None:
        """By seed, samples enough for all workers, each with as many batches; None where there are too few of them."""
        share, _ = share_of_catalog(self.storage, self.catalog, config, in_flight_of(config, self._framework)[1])
        one_round = level * (config.framework.batch_size if self._framework == "torch" else 1)
        samples = max(len(share) // one_round, LEAST_ROUNDS) * one_round
        if samples > len(self.catalog):
            return share if level == 1 else None
        chosen = np.random.default_rng(config.execution.seed).permutation(len(self.catalog))[:samples]
        return self.catalog.select(np.sort(chosen))

    def _with_level(self, level: int) -> Config:
        framework = self._config.framework
        changed: dict[str, Any]
        if self._framework == "torch":
            loader = framework.pytorch.loader.model_copy(update={self._unit: level})
            changed = {"pytorch": framework.pytorch.model_copy(update={"loader": loader})}
        else:
            changed = {"tensorflow": framework.tensorflow.model_copy(update={self._unit: level})}
        return self._config.model_copy(update={"framework": framework.model_copy(update=changed)})

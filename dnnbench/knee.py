"""The knee of a storage: reads in flight, or loader workers, are doubled until it gives no more or takes too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.metrics import Round, per_second, percentiles_ms
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
    """The lowest level that gives (nearly) all there is; ``stopped_by``: ``throughput``, ``p99`` or ``most``."""

    step: Step
    stopped_by: str
    curve: tuple[Step, ...]

    def record(self, unit: str) -> dict[str, Any]:
        return {
            unit: self.step.level,
            "per_s": self.step.per_s,
            "latency_p99_ms": self.step.latency_p99_ms,
            "stopped_by": self.stopped_by,
            "curve": [step.record() | {unit: step.level} for step in self.curve],
        }


def find_knee(measure: Callable[[int], Step], most: int, p99_bound_ms: float | None = None) -> Knee:
    """Measures levels 1, 2, 4 … up to ``most``, until two in a row bring no more, or one's p99 passes the bound.

    A level beyond the bound is on the curve, and is not the knee, unless it is the first.
    """
    curve: list[Step] = []
    level, flat, best_per_s, stopped_by = 1, 0, 0.0, "most"
    while level <= most:
        step = measure(level)
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
    within = [step for step in curve if p99_bound_ms is None or step.latency_p99_ms <= p99_bound_ms] or curve[:1]
    highest_per_s = max(step.per_s for step in within)
    knee = next(step for step in within if step.per_s >= NEAR * highest_per_s)
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
        self._concurrency = self._knee.step.level
        self.what = f"read knee c{self._concurrency}"
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
    """A loader at its knee, timed: PyTorch's ``num_workers``, or the ``num_parallel_calls`` of tf.data."""

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

    def prepare(self, number: int) -> None:
        catalog, _ = share_of_catalog(
            self.storage, self.catalog, self._config, in_flight_of(self._config, self._framework)[1]
        )
        self._knee = find_knee(lambda level: self._step(catalog, level), MOST_WORKERS, self._p99_bound_ms)
        level = self._knee.step.level
        self.what = f"{self._framework} loader knee {'w' if self._framework == 'torch' else 'c'}{level}"
        self.loader = self._make_loader(self._with_workers(level), self.catalog)
        self.total = self.loader.expected_samples
        super().prepare(number)

    def account(self) -> Round:
        finished = super().account()
        assert self._knee is not None  # noqa: S101 (prepared before)
        finished.knee = self._knee.record("num_workers" if self._framework == "torch" else "num_parallel_calls")
        return finished

    def close(self) -> None:
        """Ends the workers."""
        if self.loader is not None:
            self.loader.close()

    def _step(self, catalog: Catalog, level: int) -> Step:
        loader = self._make_loader(self._with_workers(level), catalog)
        try:
            loader.start_workers()
            epoch, _ = loader_pass(loader, self.storage, catalog, self._config)
        finally:
            loader.close()
        latency = percentiles_ms(epoch.tally.latency_ns)
        rate = per_second(epoch.samples, epoch.wall_ns)
        return Step(level, rate, float(latency["latency_p50_ms"]), float(latency["latency_p99_ms"]))

    def _with_workers(self, level: int) -> Config:
        framework = self._config.framework
        if self._framework == "torch":
            loader = framework.pytorch.loader.model_copy(update={"num_workers": level})
            changed = {"pytorch": framework.pytorch.model_copy(update={"loader": loader})}
            return self._config.model_copy(update={"framework": framework.model_copy(update=changed)})
        changed_tf = {"tensorflow": framework.tensorflow.model_copy(update={"num_parallel_calls": level})}
        return self._config.model_copy(update={"framework": framework.model_copy(update=changed_tf)})

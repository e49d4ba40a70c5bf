"""An accelerator that is not there: a trainer whose step takes a given time and no processor.

How busy it would be is its accelerator utilization (AU), as MLPerf Storage defines it: the time that its steps are
meant to take over the time that they and the waiting for data took. MLPerf Storage leaves the first step of each epoch
out of both, for the loader's start; here it is as many steps as the loader makes batches at a time, since those all
come with the first wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dnnbench.config import Config
from dnnbench.datasets.passes import Epoch, MemoryBatches, batches_at_once
from dnnbench.metrics import utilization
from dnnbench.probe import cores

# The floor is measured over so many steps, or for so long.
FLOOR_STEPS = 20
FLOOR_S = 0.5


@dataclass
class _Steps:
    """When the steps of one epoch were over, and when the first one began."""

    began_ns: int = 0
    ended_ns: list[int] = field(default_factory=list)

    def window_ns(self, epoch: Epoch, left_out: int) -> int:
        """The time of all steps but the first ``left_out``, and of the waiting for their batches."""
        if left_out:
            return self.ended_ns[-1] - self.ended_ns[left_out - 1]
        return epoch.first_batch_ns + self.ended_ns[-1] - self.began_ns


class Emulation:
    """What an emulated accelerator of any framework does; it goes before the framework's trainer among the bases.

    A step takes ``batch_compute_ms``, or what ``training.batch_compute_ms`` says.
    """

    train_dataloader: Any
    config: dict[str, Any]
    epochs: int

    def __init__(self, **kwargs: Any) -> None:
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])  # type: ignore[call-arg]
        training = Config().resolved()["training"] | dict(kwargs["config"].get("training", {}))
        self.batch_compute_ms: float = training["batch_compute_ms"]
        self._overhead_ms = 0.0
        self._steps: list[_Steps] = []

    def warm_up(self) -> None:
        """Measures by how much a step takes longer here than it should, with batches that are there already."""
        steps = int(max(min(FLOOR_STEPS, FLOOR_S * 1e3 / self.batch_compute_ms), 3))
        batch = np.zeros((1, 1, 1), np.uint8), np.zeros(1, np.int64)
        batches = MemoryBatches([batch] * steps)
        self._run(batches)
        (epoch,) = batches.take_epochs()
        self._overhead_ms = max(epoch.last_batch_ns / 1e6 / (steps - 1) - self.batch_compute_ms, 0.0)

    def train(self) -> None:
        """Runs all epochs."""
        self._steps = [self._run(self.train_dataloader) for _ in range(self.epochs)]

    def _run(self, batches: Iterable[Any]) -> _Steps:
        step_ns, steps = round(self.batch_compute_ms * 1e6), _Steps()
        for _ in batches:
            began_ns = now_ns = time.perf_counter_ns()
            # Until then, not for so long: what precedes the sleep is part of the step.
            while (left_ns := began_ns + step_ns - now_ns) > 0:
                time.sleep(left_ns / 1e9)
                now_ns = time.perf_counter_ns()
            steps.began_ns = steps.began_ns if steps.ended_ns else began_ns
            steps.ended_ns.append(now_ns)
        return steps

    def accelerator(self, epochs: Sequence[Epoch]) -> dict[str, Any]:
        """How busy it was in the epochs of the last `train`: the record's ``accelerator``.

        Of several epochs the first is left out, and of each the steps in which the loader starts; where these are
        more than half of it, none are, so that what is made during the first wait is counted with that wait.
        """
        counted = [(epoch, steps) for epoch, steps in zip(epochs, self._steps, strict=True) if steps.ended_ns]
        counted = counted[1:] or counted
        at_a_time = self._made_at_a_time()
        left_out = at_a_time if all(epoch.batches >= 2 * at_a_time for epoch, _ in counted) else 0
        step_ms, steps = self.batch_compute_ms, sum(epoch.batches - left_out for epoch, _ in counted)
        window_ns = sum(times.window_ns(epoch, left_out) for epoch, times in counted)
        return {
            "batch_compute_ms": step_ms,
            "utilization": utilization(steps, step_ms, window_ns, self._overhead_ms),
            "utilization_uncorrected": utilization(steps, step_ms, window_ns),
            "step_overhead_ms": self._overhead_ms,
            "steps": steps,
            "warm_up_steps": left_out,
        }

    def _made_at_a_time(self) -> int:
        """Batches that the loader makes side by side; they are there at about the same time."""
        workers = getattr(self.train_dataloader, "num_workers", None)
        if workers is not None:
            return max(int(workers), 1)
        framework = Config().resolved()["framework"] | dict(self.config.get("framework", {}))
        section = framework["TensorFlow"]
        if section["reading"] == "concurrent":
            return batches_at_once(int(section["concurrency"]), int(framework["batch_size"]))
        return -(-int(section["num_parallel_calls"] or cores()) // int(framework["batch_size"]))

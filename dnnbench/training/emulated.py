"""An accelerator that is not there: a trainer whose step takes a given time and no processor.

How busy it would be is its accelerator utilization (AU), as MLPerf Storage defines it: the time that its steps are
meant to take over the time that they and the waiting for data took.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dnnbench.config import Config
from dnnbench.datasets.passes import Epoch, MemoryBatches
from dnnbench.metrics import utilization

# The floor is measured over so many steps, or for so long.
FLOOR_STEPS = 20
FLOOR_S = 0.5


class Emulation:
    """What an emulated accelerator of any framework does; it goes before the framework's trainer among the bases.

    A step takes ``batch_compute_ms``, or what ``training.batch_compute_ms`` says.
    """

    train_dataloader: Any
    epochs: int

    def __init__(self, **kwargs: Any) -> None:
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])  # type: ignore[call-arg]
        training = Config().resolved()["training"] | dict(kwargs["config"].get("training", {}))
        self.batch_compute_ms: float = training["batch_compute_ms"]
        self._overhead_ms = 0.0

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
        for _ in range(self.epochs):
            self._run(self.train_dataloader)

    def _run(self, batches: Iterable[Any]) -> None:
        step_ns = round(self.batch_compute_ms * 1e6)
        for _ in batches:
            # Until then, not for so long: what precedes the sleep is part of the step.
            end_ns = time.perf_counter_ns() + step_ns
            while (left_ns := end_ns - time.perf_counter_ns()) > 0:
                time.sleep(left_ns / 1e9)

    def accelerator(self, epochs: Sequence[Epoch]) -> dict[str, Any]:
        """How busy it was in these epochs: the record's ``accelerator``. Of several the first is the warm-up."""
        counted = epochs[1:] or epochs
        step_ms, steps = self.batch_compute_ms, sum(epoch.batches for epoch in counted)
        until_last_ns = sum(epoch.last_batch_ns for epoch in counted)
        return {
            "batch_compute_ms": step_ms,
            "utilization": utilization(steps, step_ms, until_last_ns, self._overhead_ms),
            "utilization_uncorrected": utilization(steps, step_ms, until_last_ns),
            "step_overhead_ms": self._overhead_ms,
            "steps": steps,
        }

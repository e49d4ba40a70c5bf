"""An accelerator that is not there: a trainer whose step takes a given time and no processor.

How busy it would be is its accelerator utilization (AU), as MLPerf Storage defines it: the time that its steps are
meant to take over the time that they and the waiting for data took, the first steps left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from dnnbench.config import Config
from dnnbench.datasets.passes import MemoryBatches
from dnnbench.metrics import Utilization, utilization

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
        self._floor: Utilization | None = None
        self._ends_ns: list[list[int]] = []

    def warm_up(self) -> None:
        """Measures how busy an accelerator can seem here at best: with batches that are there already."""
        steps = max(min(FLOOR_STEPS, int(FLOOR_S * 1e3 / self.batch_compute_ms)), 3)
        batch = np.zeros((1, 1, 1), np.uint8), np.zeros(1, np.int64)
        ends_ns = self._epoch(MemoryBatches([batch] * steps))
        self._floor = utilization([ends_ns], self.batch_compute_ms, warm_up_steps=1)

    def train(self) -> None:
        """Runs all epochs."""
        self._ends_ns = [self._epoch(self.train_dataloader) for _ in range(self.epochs)]

    def _epoch(self, batches: Iterable[Any]) -> list[int]:
        """When each step of an epoch ended, in ns."""
        ends_ns = []
        step_ns = round(self.batch_compute_ms * 1e6)
        for _ in batches:
            # Until then, not for so long: what precedes the sleep is part of the step.
            end_ns = time.perf_counter_ns() + step_ns
            while (left_ns := end_ns - time.perf_counter_ns()) > 0:
                time.sleep(left_ns / 1e9)
            ends_ns.append(time.perf_counter_ns())
        return ends_ns

    def accelerator(self) -> dict[str, Any]:
        """How busy it was: the record's ``accelerator``."""
        ready = getattr(self.train_dataloader, "batches_ahead", 1)
        measured = utilization(self._ends_ns, self.batch_compute_ms, warm_up_steps=ready)
        floor = self._floor or measured
        return {
            "batch_compute_ms": self.batch_compute_ms,
            "utilization": min(measured.share / floor.share, 1.0),
            "utilization_uncorrected": measured.share,
            "utilization_floor": floor.share,
            "steps": measured.steps,
            "warm_up_steps": measured.warm_up_steps,
        }

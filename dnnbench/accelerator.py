"""The question that buyers ask: how fast an accelerator does this storage keep busy?"""

from __future__ import annotations

import math
from typing import Any

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.metrics import Round, per_second
from dnnbench.plugins import load_class
from dnnbench.sampling import in_flight_of, loader_pass, ready_cache, share_of_catalog
from dnnbench.storage.base import Storage
from dnnbench.workloads import Training

# MLPerf Storage asks for as much of image classification.
TARGET = 0.9
# A trial that is this near above it ends the search.
NEAR = 0.03
MOST_TRIALS = 4


class FastestAccelerator(Training):
    """One epoch of the fastest emulated accelerator that is kept busy to `TARGET`, timed; the search is outside.

    ``build`` is a framework's builder (`dnnbench.trained.load_builder`), ``framework`` its short name.
    The samples are a share of the catalog, by seed.
    """

    part = "accelerator"

    def __init__(
        self, storage: Storage, catalog: Catalog, config: Config, build: Any, framework: str, access: str
    ) -> None:
        self.what = f"{framework} accelerator"
        self.storage, self.catalog, self.total, self.worker_start_s = storage, catalog, len(catalog), None
        self._config = config.model_copy(update={"framework": config.framework.model_copy(update={"epochs": 1})})
        self._build, self._framework, self._access = build, framework, access
        self.loader: Any = None
        self._done_before = 0
        self._trials: list[dict[str, Any]] = []

    def prepare(self, number: int) -> None:
        in_flight = in_flight_of(self._config, self._framework)[1]
        self.catalog, _ = share_of_catalog(self.storage, self.catalog, self._config, in_flight)
        self.loader = self._build.make_loader(self._config, self.storage, self.catalog, self._access)
        self.total = self.loader.expected_samples
        self.loader.start_workers()
        epoch, _ = loader_pass(self.loader, self.storage, self.catalog, self._config)
        batch_ms = 1e3 * epoch.samples / len(self.loader) / per_second(epoch.samples, epoch.wall_ns)
        self.trainer = self._make_trainer(self._search(batch_ms))
        super().prepare(number)

    def account(self) -> Round:
        finished = super().account()
        accelerator = finished.accelerator or {}
        samples = self._config.framework.batch_size
        busiest = max(accelerator["utilization"], *(trial["utilization"] for trial in self._trials))
        finished.accelerator = {
            **accelerator,
            "target": TARGET,
            "kept_busy": busiest >= TARGET,
            "samples_per_s": samples * 1e3 / accelerator["batch_compute_ms"],
            "trials": self._trials,
        }
        return finished

    def close(self) -> None:
        """Ends the workers."""
        if self.loader is not None:
            self.loader.close()

    def _search(self, first_ms: float) -> float:
        """The shortest step that was tried and keeps the accelerator busy to `TARGET`."""
        batch_ms, good_ms, bad_ms = first_ms, float("inf"), 0.0
        for _ in range(MOST_TRIALS):
            busy = self._busy(batch_ms)
            if busy >= TARGET:
                good_ms = min(good_ms, batch_ms)
            else:
                bad_ms = max(bad_ms, batch_ms)
            if TARGET <= busy <= TARGET + NEAR:
                break
            # One that waits for data is the busier, the longer its steps; one that never waits tells only that
            # shorter ones will do.
            batch_ms *= ((TARGET + NEAR / 2) / busy) ** 2
            if 0 < bad_ms < good_ms < float("inf"):
                # The same step as before would leap over the right one again.
                batch_ms = math.sqrt(bad_ms * good_ms)
        # Where none was kept busy, that is what is reported, with how busy it was.
        return good_ms if good_ms < float("inf") else batch_ms

    def _busy(self, batch_ms: float) -> float:
        trainer = self._make_trainer(batch_ms)
        ready_cache(self.storage, self.catalog, self._config)
        trainer.warm_up()
        self.loader.take_epochs()
        trainer.train()
        told = trainer.accelerator(self.loader.take_epochs())
        self._trials.append({key: told[key] for key in ("batch_compute_ms", "utilization")})
        return float(told["utilization"])

    def _make_trainer(self, batch_ms: float) -> Any:
        training = self._config.training.model_copy(
            update={"name": "EmulatedAccelerator", "batch_compute_ms": batch_ms}
        )
        config = self._config.model_copy(update={"training": training})
        emulated = load_class("training.name", training.name, self._build.TRAININGS, self._build.DNNTrain)
        # It computes nothing, so the network that it gets is any: the one that costs least to make.
        model = self._build.make_model(config, len(self.catalog.label_names))
        return emulated(config=config.resolved(), dataloader=self.loader, model=model, device=None)

"""What a trainer of any framework is: what it knows, and the history that it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dnnbench.config import Config


class Trainer(ABC):
    """Trains ``self.model`` on ``self.device`` for ``self.epochs``; subclasses write `train`.

    ``config`` is the configuration as a dictionary. ``history`` takes one dictionary per epoch;
    its ``loss`` and ``accuracy`` (0 to 1) go into the record. ``max_batch_size`` is how often, in
    batches, the loss is logged.
    """

    def __init__(self, config: dict[str, Any], model: Any, device: Any) -> None:
        framework = Config().resolved()["framework"] | dict(config.get("framework", {}))
        self.config = config
        self.epochs: int = framework["epochs"]
        self.batch_size: int = framework["batch_size"]
        self.max_batch_size: int = framework["max_batch_size"]
        self.model: Any = model
        self.device = device
        self.history: list[dict[str, Any]] = []

    def together(self) -> AbstractContextManager[Any]:
        """Around `train`: what keeps ranks in step that have different numbers of batches."""
        return nullcontext()

    def warm_up(self) -> None:  # noqa: B027 (few frameworks need it)
        """Compiles what `train` would compile, without training; called before any clock runs."""

    @abstractmethod
    def train(self) -> None:
        """Runs all epochs."""

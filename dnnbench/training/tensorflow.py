"""Trainers of TensorFlow: the base class that a user subclasses, and the default through ``model.fit``."""

from __future__ import annotations

import logging
from typing import Any

import keras
import tensorflow as tf

from dnnbench.config import ConfigError
from dnnbench.training.base import Trainer

logger = logging.getLogger(__name__)


def resolve_device(name: str) -> str:
    """``/CPU:0``, or the first GPU for ``gpu`` or ``cuda``. Raises `ConfigError` where there is none."""
    if name == "cpu":
        return "/CPU:0"
    if not tf.config.list_physical_devices("GPU"):
        raise ConfigError(f'device: found "{name}", but TensorFlow {tf.__version__} sees no GPU; set it to "cpu"')
    return "/GPU:0"


class DNNTrain(Trainer):
    """Trains ``self.model`` on ``self.device``; subclasses write ``train``. See `Trainer`."""

    def __init__(self, config: dict[str, Any] = {}, model: Any = None, device: Any = None) -> None:  # noqa: B006 (as PyTorch's)
        super().__init__(config, model, device or "/CPU:0")


class RandomAccessDatasetTrain(DNNTrain):
    """The default: ``model.fit`` with Adam, over the batches of ``dataloader``."""

    def __init__(self, **kwargs: Any) -> None:
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])

    def train(self) -> None:
        with tf.device(self.device):
            self.model.compile(
                optimizer=keras.optimizers.Adam(1e-3), loss=self.model.loss_function(), metrics=["accuracy"]
            )
            fitted = self.model.fit(self.train_dataloader, epochs=self.epochs, verbose=0).history
        for epoch, (loss, accuracy) in enumerate(zip(fitted["loss"], fitted["accuracy"], strict=True)):
            logger.info("epoch %d: loss %.3f", epoch + 1, loss)
            self.history.append({"epoch": epoch + 1, "loss": float(loss), "accuracy": float(accuracy)})

"""Trainers of TensorFlow: the base class that a user subclasses, and the default through ``model.fit``."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from dnnbench.config import ConfigError
from dnnbench.training.base import Trainer
from dnnbench.training.emulated import Emulation

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

    def warm_up(self) -> None:
        with self.together():
            self._compile()
            # A loader that is not ours does not say what its batches are.
            if hasattr(self.train_dataloader, "batch_spec"):
                with self._placed():
                    self.model.compile_step(self.train_dataloader.batch_spec())

    def _placed(self) -> AbstractContextManager[Any]:
        # A strategy places by itself.
        alone = not tf.distribute.has_strategy()
        placed: AbstractContextManager[Any] = tf.device(self.device) if alone else nullcontext()
        return placed

    def _compile(self) -> None:
        optimizer = keras.optimizers.Adam(1e-3)
        if not tf.distribute.has_strategy():
            # Keras sums gradients over replicas, one alone too, by a gradient of its own that TensorFlow registers for
            # ever, and with it the whole graph of each network that was trained.
            optimizer._all_reduce_sum_gradients = _of_one_replica
        self.model.compile(optimizer=optimizer, loss=self.model.loss_function(), metrics=["accuracy"])

    def train(self) -> None:
        if not self.model.compiled:
            self._compile()
        with self._placed():
            fitted = self.model.fit(
                self.train_dataloader, epochs=self.epochs, verbose=0, callbacks=[_LossLog(self.max_batch_size)]
            ).history
        for epoch, (loss, accuracy) in enumerate(zip(fitted["loss"], fitted["accuracy"], strict=True)):
            self.history.append({"epoch": epoch + 1, "loss": float(loss), "accuracy": float(accuracy)})


def _of_one_replica(gradients_and_variables: Any) -> Any:
    return gradients_and_variables


class EmulatedAccelerator(Emulation, DNNTrain):
    """Computes nothing, for as long as it is told; the network is not used."""


class _LossLog(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs the epoch's mean loss so far, every so many batches."""

    def __init__(self, every_batches: int) -> None:
        super().__init__()
        self._every_batches, self._epoch = every_batches, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch % self._every_batches == 0:
            logger.info("epoch %d, batch %d: loss %.3f", self._epoch, batch, logs["loss"])

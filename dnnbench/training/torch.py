"""Trainers of PyTorch: the base class that a user subclasses, and the default."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import optim

from dnnbench.config import ConfigError
from dnnbench.training.base import Trainer
from dnnbench.training.emulated import Emulation

logger = logging.getLogger(__name__)


def resolve_device(name: str, number: int = 0) -> torch.device:
    """``cpu``, or the CUDA GPU of that number for ``gpu`` or ``cuda``. Raises `ConfigError` where there is none."""
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f'device: found "{name}", but torch {torch.__version__} sees no CUDA GPU; set it to "cpu"')
    return torch.device(f"cuda:{number}")


class DNNTrain(Trainer):
    """Trains ``self.model`` on ``self.device``; subclasses write ``train``. See `Trainer`."""

    def __init__(self, config: dict[str, Any] = {}, model: Any = None, device: Any = None) -> None:  # noqa: B006 (the seed's signature; never changed)
        device = device or torch.device("cpu")
        super().__init__(config, model.to(device), device)

    def warm_up(self) -> None:
        # The first optimizer of a process imports torch's compiler, which takes a second or two: whichever
        # benchmark trains first would bear that alone.
        optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


class RandomAccessDatasetTrain(DNNTrain):
    """The default: Adam over the batches of ``dataloader``, epoch by epoch."""

    def __init__(self, **kwargs: Any) -> None:
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])

    def train(self) -> None:
        criterion = self.model.loss_function()
        # Adam, since it learns within few epochs for any data set, and the epochs here are few.
        optimizer = optim.Adam(self.model.parameters(), lr=1e-3)
        self.model.train()
        for epoch in range(self.epochs):
            # Sums stay on the device: reading them in each batch would make a GPU wait for the CPU.
            loss_sum = torch.zeros((), device=self.device)
            right = torch.zeros((), dtype=torch.int64, device=self.device)
            samples = 0
            for batch_index, (images, labels) in enumerate(self.train_dataloader):
                images, labels = images.to(self.device), labels.to(self.device)  # noqa: PLW2901 (the same batch)
                optimizer.zero_grad()
                outputs = self.model(images.float())
                loss = criterion(outputs, labels)
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach() * len(labels)
                right += (outputs.detach().argmax(1) == labels).sum()
                samples += len(labels)
                if batch_index % self.max_batch_size == 0:
                    logger.info("epoch %d, batch %d: loss %.3f", epoch + 1, batch_index, loss.item())
            self.history.append(
                {
                    "epoch": epoch + 1,
                    "loss": loss_sum.item() / samples,
                    "accuracy": right.item() / samples,
                    "samples": samples,
                }
            )


class EmulatedAccelerator(Emulation, DNNTrain):
    """Computes nothing, for as long as it is told; the network is not used."""

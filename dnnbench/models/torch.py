"""Networks of PyTorch: the base class that a user subclasses, and a small convolutional default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from dnnbench.models.losses import find_loss

LOSSES = {loss.__name__: loss for loss in (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)}


class NeuralNetwork(nn.Module):
    """A network that knows its loss. ``loss_function_name`` is ``model.loss_function`` of the configuration."""

    loss_function_name: str = ""

    def loss_function(self) -> nn.Module:
        """The criterion: called with (outputs [batch, classes], labels [batch]). Raises `ConfigError`."""
        criterion: nn.Module = find_loss(self.loss_function_name, LOSSES)()
        return criterion


class ConvNet(NeuralNetwork):
    """Three convolutions and a linear layer, for images of any height and width.

    Takes uint8 or float of 0 to 255, grey [batch, height, width] or, with ``channels`` 3, colour
    [batch, height, width, 3]; gives scores [batch, classes].
    """

    def __init__(self, image_diments: Sequence[int] = (32, 32), classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.image_input_height, self.image_input_width = int(image_diments[0]), int(image_diments[1])
        self.classes, self.channels = classes, channels
        self.network()

    def network(self) -> None:
        """Makes the layers."""
        # Pooled to 4 x 4 whatever the input, so that the last layer fits every image_dimension.
        self.features = nn.Sequential(
            _Block(self.channels, 16), _Block(16, 32), _Block(32, 64), nn.AdaptiveAvgPool2d(4)
        )
        self.classify = nn.Linear(64 * 4 * 4, self.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        channels_first = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
        scaled = channels_first.float() / 127.5 - 1
        scores: torch.Tensor = self.classify(torch.flatten(self.features(scaled), 1))
        return scores


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.normalise = nn.BatchNorm2d(outputs, momentum=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Ceiling, so that a side of one pixel stays one pixel.
        return functional.max_pool2d(functional.relu(self.normalise(self.convolve(x))), 2, ceil_mode=True)

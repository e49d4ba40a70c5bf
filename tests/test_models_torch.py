"""The base network's loss by name, and the default network for images of any size."""

import pytest
import torch
from torch import nn

from dnnbench.config import ConfigError
from dnnbench.models.torch import ConvNet, NeuralNetwork


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("CrossEntropyLoss", nn.CrossEntropyLoss),
        ("CrossEntropy", nn.CrossEntropyLoss),
        ("cross_entropy", nn.CrossEntropyLoss),
        ("CorssEntrophy", nn.CrossEntropyLoss),
        ("NLLLoss", nn.NLLLoss),
        ("MultiMarginLoss", nn.MultiMarginLoss),
        ("", nn.CrossEntropyLoss),
        ("  ", nn.CrossEntropyLoss),
        ("<Specify Loss Function ex.[CorssEntrophy]", nn.CrossEntropyLoss),
    ],
)
def test_a_loss_is_found_by_its_name(name, loss):
    network = NeuralNetwork()
    network.loss_function_name = name
    assert type(network.loss_function()) is loss


def test_the_loss_is_cross_entropy_where_nothing_was_said():
    assert isinstance(NeuralNetwork().loss_function(), nn.CrossEntropyLoss)


@pytest.mark.parametrize(
    ("name", "near"),
    [("CrossEntropyLos", "CrossEntropyLoss"), ("NLLos", "NLLLoss"), ("MultiMargin", "MultiMarginLoss")],
)
def test_an_unknown_loss_is_an_error_with_the_nearest_name(name, near):
    network = NeuralNetwork()
    network.loss_function_name = name
    with pytest.raises(ConfigError, match=f'model.loss_function: found "{name}".*did you mean "{near}"'):
        network.loss_function()


def test_a_loss_like_no_other_is_an_error_with_all_names():
    network = NeuralNetwork()
    network.loss_function_name = "42"
    with pytest.raises(ConfigError, match=r"expected one of CrossEntropyLoss, NLLLoss, MultiMarginLoss$"):
        network.loss_function()


@pytest.mark.parametrize(
    "dimension", [(1, 1), (1, 9), (2, 2), (3, 5), (7, 7), (32, 32), (33, 31), (64, 48), (224, 224)]
)
def test_any_image_dimension_gives_a_score_per_class(dimension):
    network = ConvNet(dimension, classes=5)
    scores = network(torch.zeros((3, *dimension)))
    assert scores.shape == (3, 5)
    assert torch.isfinite(scores).all()
    assert (network.image_input_height, network.image_input_width) == dimension


def test_dimensions_come_as_any_sequence():
    assert ConvNet([16, 8]).image_input_height == 16


def test_every_parameter_takes_part_in_learning():
    network = ConvNet((8, 8), classes=3)
    images = torch.randint(0, 255, (6, 8, 8), generator=torch.Generator().manual_seed(0))
    network.loss_function()(network(images), torch.arange(6) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "bias" not in n)


def test_bytes_and_floats_of_the_same_values_give_the_same_scores():
    network = ConvNet((8, 8)).eval()
    pixels = torch.randint(0, 255, (2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(pixels), network(pixels.float()))

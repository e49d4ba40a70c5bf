"""The base trainer, the default one, and the device by its name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnnbench.config import Config, ConfigError
from dnnbench.models.torch import ConvNet, NeuralNetwork
from dnnbench.training.torch import DNNTrain, RandomAccessDatasetTrain, resolve_device


def stripes(count=40, side=8):
    """Batches of 8 of horizontal (0) and vertical (1) stripes with noise, and their labels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    wave = (torch.arange(side) % 2 * 200).float()
    images = torch.stack([wave.expand(side, side) if label else wave.expand(side, side).T for label in labels])
    images = (images + torch.rand(images.shape, generator=random) * 50).to(torch.uint8)
    return list(zip(images.split(8), labels.split(8), strict=True))


def trained(batches, epochs=3, **framework):
    torch.manual_seed(0)
    trainer = RandomAccessDatasetTrain(
        config={"framework": {"epochs": epochs, **framework}},
        dataloader=batches,
        model=ConvNet((8, 8), classes=2),
        device=torch.device("cpu"),
    )
    trainer.train()
    return trainer


def test_the_base_trainer_is_abstract():
    with pytest.raises(TypeError, match="train"):
        DNNTrain(model=NeuralNetwork())


def test_warming_up_bears_what_the_first_optimizer_of_a_process_imports():
    program = (
        "import sys, torch\n"
        "from dnnbench.models.torch import ConvNet\n"
        "from dnnbench.training.torch import RandomAccessDatasetTrain\n"
        "model = ConvNet((8, 8), classes=2)\n"
        "trainer = RandomAccessDatasetTrain(config={}, dataloader=[], model=model, device=None)\n"
        "trainer.warm_up()\n"
        "before = set(sys.modules)\n"
        "torch.optim.Adam(model.parameters())\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


class Idle(DNNTrain):
    def train(self):
        """Does nothing."""


def test_what_the_configuration_leaves_out_has_a_default():
    trainer = Idle(model=NeuralNetwork())
    default = Config().framework
    assert (trainer.epochs, trainer.batch_size, trainer.max_batch_size) == (
        default.epochs,
        default.batch_size,
        default.max_batch_size,
    )
    assert trainer.device == torch.device("cpu")
    assert trainer.history == []


def test_the_configuration_decides():
    trainer = Idle(config={"framework": {"epochs": 9, "batch_size": 2, "max_batch_size": 5}}, model=NeuralNetwork())
    assert (trainer.epochs, trainer.batch_size, trainer.max_batch_size) == (9, 2, 5)


def test_the_model_moves_to_the_device():
    trainer = Idle(model=ConvNet((4, 4)), device=torch.device("meta"))
    assert {p.device.type for p in trainer.model.parameters()} == {"meta"}


def test_the_default_trainer_learns():
    history = trained(stripes(), epochs=6).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9


def test_history_has_one_entry_per_epoch_with_counts_of_all_samples():
    history = trained(stripes(40), epochs=2).history
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert [entry["samples"] for entry in history] == [40, 40]
    assert all(0 <= entry["accuracy"] <= 1 and entry["loss"] > 0 for entry in history)


def test_loss_and_accuracy_are_means_over_samples_not_over_batches():
    class Fixed(NeuralNetwork):
        """Always sure of class 0; one parameter that has no influence."""

        def __init__(self):
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1) + 0 * self.nothing

    # Nine right in one batch, one wrong in the other: a mean over batches would say 0.5.
    batches = [(torch.zeros(9, 2, 2), torch.zeros(9, dtype=torch.long)), (torch.zeros(1, 2, 2), torch.ones(1).long())]
    trainer = RandomAccessDatasetTrain(
        config={"framework": {"epochs": 1}}, dataloader=batches, model=Fixed(), device=torch.device("cpu")
    )
    trainer.train()
    (entry,) = trainer.history
    assert entry["accuracy"] == pytest.approx(0.9)
    right, wrong = 0.31326, 1.31326  # -log softmax of (1, 0)
    assert entry["loss"] == pytest.approx(0.9 * right + 0.1 * wrong, abs=1e-4)


def test_nothing_goes_to_standard_output(capsys):
    trained(stripes(), epochs=1)
    assert capsys.readouterr().out == ""


def test_the_loss_is_logged_every_so_many_batches(caplog):
    caplog.set_level("INFO", logger="dnnbench.training.torch")
    trained(stripes(40), epochs=1, max_batch_size=2)
    assert [record.args[1] for record in caplog.records] == [0, 2, 4]


def test_a_loader_is_iterated_once_per_epoch():
    class Counted(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    batches = Counted(stripes(8))
    trained(batches, epochs=4)
    assert batches.passes == 4


def test_cpu_is_the_cpu():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_gpu_is_the_first_one_or_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(name) == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f'device: found "{name}".*no CUDA GPU; set it to "cpu"'):
        resolve_device(name)

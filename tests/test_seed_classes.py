"""The seed's example classes work as they are written there, from a user's own file."""

from pathlib import Path

import pytest
import torch
from fakes import MemoryStorage, make_catalog, make_contents

from dnnbench.catalog import list_catalog
from dnnbench.config import Config, expand_settings
from dnnbench.storage.fs import FsStorage
from dnnbench.training.torch_build import make_loader, make_trainer

FILE = Path(__file__).with_name("seed_user_classes.py")
COUNT = 21


def configured(*settings):
    """The configuration that names the user's classes, with small batches."""
    names = {
        "dataset": {"name": f"{FILE}:MyDataset", "label": ["roses", "tulips"]},
        "model": {"name": f"{FILE}:ConvNet", "loss_function": "<Specify Loss Function ex.[CorssEntrophy]"},
        "training": {"name": f"{FILE}:RandomAccessDatasetTrain"},
        "framework": {"batch_size": 4, "epochs": 2},
    }
    (variant,) = expand_settings(names, settings)
    return variant.config


def in_memory(name):
    contents = make_contents(COUNT)
    return MemoryStorage(contents, name=name), make_catalog(contents)


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (2, "fork"), (2, "forkserver"), (1, "spawn")])
def test_the_dataset_reads_from_s3_in_workers(workers, start):
    section = "framework.PyTorch.DataLoader"
    config = configured(f"{section}.num_workers={workers}", f"{section}.multiprocessing_context={start}")
    loader = make_loader(config, *in_memory("aws"), "random")
    try:
        shapes = [tuple(images.shape) for images, _ in loader]
        (epoch,) = loader.take_epochs()
    finally:
        loader.close()
    assert sorted(set(shapes)) == [(1, 32, 32), (4, 32, 32)]
    assert len(epoch.tally.latency_ns) == COUNT


def test_the_dataset_reads_files_by_their_path(tmp_path):
    for key, data in make_contents(COUNT).items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(data)
    catalog = list_catalog(FsStorage(), [f"{tmp_path}/"], ["roses", "tulips"], 2)
    loader = make_loader(configured("framework.PyTorch.DataLoader.num_workers=0"), FsStorage(), catalog, "random")
    assert sum(len(labels) for _, labels in loader) == COUNT


def test_the_trainer_trains_the_network_over_the_metered_loader(capsys):
    config = configured("framework.PyTorch.DataLoader.num_workers=0")
    loader = make_loader(config, *in_memory("dss"), "random")
    trainer = make_trainer(config, loader, classes=2)
    before = trainer.model.fc3.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.fc3.weight)
    assert [epoch.samples for epoch in loader.take_epochs()] == [COUNT, COUNT]
    assert "Epoch:2, BatchIndex:0 loss:" in capsys.readouterr().out


def test_the_trainer_has_what_the_loop_asks_of_it():
    config = configured("framework.PyTorch.DataLoader.num_workers=0", "framework.max_batch_size=7")
    trainer = make_trainer(config, make_loader(config, *in_memory("dss"), "random"), classes=2)
    assert (trainer.epochs, trainer.batch_size, trainer.max_batch_size) == (2, 4, 7)
    assert trainer.config["framework"]["batch_size"] == 4
    assert trainer.device == torch.device("cpu")
    assert trainer.model.input_image_height == trainer.model.input_image_weidth == 32


def test_the_placeholder_for_a_loss_means_the_default():
    config = configured("framework.PyTorch.DataLoader.num_workers=0")
    trainer = make_trainer(config, make_loader(config, *in_memory("dss"), "random"), classes=2)
    assert isinstance(trainer.model.loss_function(), torch.nn.CrossEntropyLoss)


def test_the_sequential_order_takes_the_same_dataset():
    config = configured("framework.PyTorch.DataLoader.num_workers=0")
    loader = make_loader(config, *in_memory("aws"), "sequential")
    assert sum(len(labels) for _, labels in loader) == COUNT


def test_the_default_configuration_names_the_built_in_classes():
    config = Config()
    assert (config.dataset.name, config.model.name, config.training.name) == (
        "TorchImageClassificationDataset",
        "ConvNet",
        "RandomAccessDatasetTrain",
    )

"""Builds what a benchmark needs of PyTorch from the configuration: loader, network, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parallel import DistributedDataParallel

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.datasets.passes import MemoryBatches, MeteredPasses
from dnnbench.datasets.shard_reads import ShardPlan
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.datasets.torch import RandomAccessDataset, SequentialDataset
from dnnbench.datasets.torch_loader import MeteredLoader
from dnnbench.datasets.torch_shards import ShardedDataset
from dnnbench.models.torch import NeuralNetwork
from dnnbench.plugins import load_class
from dnnbench.ranks import ALONE as ALONE_RANKS
from dnnbench.ranks import Ranks
from dnnbench.storage.base import Storage
from dnnbench.training.build import build_model, build_trainer, check_in_step
from dnnbench.training.torch import DNNTrain, resolve_device

# The default of either framework's name means each framework's own class.
_DATASET = "dnnbench.datasets.torch:TorchImageClassificationDataset"
DATASETS = {"TorchImageClassificationDataset": _DATASET, "TensorFlowImageClassificationDataset": _DATASET}
MODELS = {"ConvNet": "dnnbench.models.torch:ConvNet"}
TRAININGS = {
    "RandomAccessDatasetTrain": "dnnbench.training.torch:RandomAccessDatasetTrain",
    "EmulatedAccelerator": "dnnbench.training.torch:EmulatedAccelerator",
}


def make_dataset(config: Config) -> RandomAccessDataset:
    """The configured dataset, which is yet to be bound to a storage and a catalog."""
    dataset_class = load_class("dataset.name", config.dataset.name, DATASETS, RandomAccessDataset)
    return cast(RandomAccessDataset, dataset_class(config=config.resolved()))


def make_loader(
    config: Config, storage: Storage, catalog: Catalog, access: str, share: RankShare = ALONE
) -> MeteredLoader:
    """A metered loader over a rank's share of the catalog; ``access``: ``random`` (map-style), ``sequential``.

    What lies in shards is read from them, as iterable, in either order.
    """
    dataset = make_dataset(config)
    dataset.bind(storage, catalog)
    framework = config.framework
    source: RandomAccessDataset | SequentialDataset | ShardedDataset
    dataset.concurrency = framework.pytorch.concurrency if framework.pytorch.reading == "concurrent" else None
    if catalog.shards is not None:
        section = framework.pytorch.loader
        shuffle, reading = access == "random" and section.shuffle, framework.pytorch.reading
        plan = ShardPlan.of(config, catalog.shards, share, shuffle, section.drop_last, reading)
        source = ShardedDataset(dataset, plan)
    else:
        source = SequentialDataset(dataset) if access == "sequential" else dataset
    loader = MeteredLoader(source, framework.batch_size, framework.pytorch.loader, config.execution.seed, share)
    loader.check_not_empty()
    return loader


def memory_loader(batches: Sequence[tuple[Any, Any]], like: MeteredPasses) -> MemoryBatches:
    """A metered loader of batches that are in memory; what it has not is asked of the loader that they came from."""
    return MemoryBatches(batches, like)


def make_model(config: Config, classes: int) -> NeuralNetwork:
    """The configured network, seeded."""
    torch.manual_seed(config.execution.seed)
    return cast(NeuralNetwork, build_model(config, classes, MODELS, NeuralNetwork))


def make_trainer(config: Config, loader: MeteredPasses, classes: int, ranks: Ranks = ALONE_RANKS) -> DNNTrain:
    """The configured trainer over a loader, with the configured network, both seeded; of several ranks, one network.

    Then every rank calls it at the same time.
    """
    model = make_model(config, classes)
    if not ranks.launched:
        return cast(DNNTrain, build_trainer(config, loader, model, resolve_device(config.device), TRAININGS, DNNTrain))
    from dnnbench.training.torch_parallel import local_gpu, trained_together

    device = resolve_device(config.device, local_gpu(ranks))
    model = trained_together(model, device, ranks)
    check_in_step(ranks, len(loader))
    return cast(DNNTrain, build_trainer(config, loader, model, device, TRAININGS, DNNTrain))


def start(ranks: Ranks) -> None:
    """Nothing: what ranks need of torch is there."""


def own_model(model: Any) -> Any:
    """The network of a trainer, without what makes it one of several ranks."""
    return getattr(model, "module", model) if isinstance(model, DistributedDataParallel) else model


class Predictor:
    """Predicts the category of each image of a batch [batch, height, width(, 3)]."""

    def __init__(self, config: Config, model: NeuralNetwork) -> None:
        self._device = resolve_device(config.device)
        self._model = model.to(self._device).eval()

    def scores(self, images: Any) -> npt.NDArray[np.float32]:
        """Probabilities [batch, classes]."""
        with torch.inference_mode():
            outputs = self._model(torch.as_tensor(images).to(self._device).float())
            return cast("npt.NDArray[np.float32]", torch.softmax(outputs, 1).cpu().numpy())

    def __call__(self, images: Any) -> npt.NDArray[np.int64]:
        return np.asarray(self.scores(images).argmax(1), dtype=np.int64)


MODEL_SUFFIX = ".pt"


def save_model(model: NeuralNetwork, path: Path) -> None:
    """Writes the weights alone."""
    torch.save(model.state_dict(), path)


def load_weights(model: NeuralNetwork, path: Path) -> None:
    """Gives the network the weights of a file; nothing in the file is executed."""
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))

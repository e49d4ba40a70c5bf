"""Builds what a benchmark needs of TensorFlow from the configuration: pipeline, network, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.datasets.passes import MeteredPasses
from dnnbench.datasets.shard_reads import ShardPlan
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.datasets.tensorflow import MemoryPipeline, MeteredPipeline, RandomAccessDataset
from dnnbench.datasets.tensorflow_shards import ShardPipeline
from dnnbench.models.tensorflow import NeuralNetwork
from dnnbench.plugins import load_class
from dnnbench.ranks import ALONE as ALONE_RANKS
from dnnbench.ranks import Ranks
from dnnbench.storage.base import Storage
from dnnbench.training.build import build_model, build_trainer, check_in_step
from dnnbench.training.tensorflow import DNNTrain, resolve_device

# The default of either framework's name means each framework's own class.
_DATASET = "dnnbench.datasets.tensorflow:TensorFlowImageClassificationDataset"
DATASETS = {"TorchImageClassificationDataset": _DATASET, "TensorFlowImageClassificationDataset": _DATASET}
MODELS = {"ConvNet": "dnnbench.models.tensorflow:ConvNet"}
TRAININGS = {
    "RandomAccessDatasetTrain": "dnnbench.training.tensorflow:RandomAccessDatasetTrain",
    "EmulatedAccelerator": "dnnbench.training.tensorflow:EmulatedAccelerator",
}


def make_dataset(config: Config) -> RandomAccessDataset:
    """The configured dataset, which is yet to be bound to a storage and a catalog."""
    dataset_class = load_class("dataset.name", config.dataset.name, DATASETS, RandomAccessDataset)
    return cast(RandomAccessDataset, dataset_class(config=config.resolved()))


def make_loader(
    config: Config, storage: Storage, catalog: Catalog, access: str, share: RankShare = ALONE
) -> MeteredPipeline:
    """A metered pipeline over a rank's share of the catalog; ``access`` is ``random`` or ``sequential``."""
    dataset = make_dataset(config)
    dataset.bind(storage, catalog)
    framework = config.framework
    if catalog.shards is not None:
        section = framework.tensorflow
        shuffle = access == "random" and section.shuffle
        plan = ShardPlan.of(config, catalog.shards, share, shuffle, section.drop_last, section.reading)
        sharded = ShardPipeline(dataset, plan, section)
        sharded.check_not_empty()
        return sharded
    dataset.concurrency = framework.tensorflow.concurrency if framework.tensorflow.reading == "concurrent" else None
    loader = MeteredPipeline(dataset, framework.batch_size, framework.tensorflow, config.execution.seed, access, share)
    loader.check_not_empty()
    return loader


def memory_loader(batches: Sequence[tuple[Any, Any]], like: MeteredPipeline) -> MemoryPipeline:
    """A metered loader of batches that are in memory; its dataset is that of the loader that they came from."""
    return MemoryPipeline(batches, like)


def make_model(config: Config, classes: int) -> NeuralNetwork:
    """The configured network, seeded."""
    keras.utils.set_random_seed(config.execution.seed)
    return cast(NeuralNetwork, build_model(config, classes, MODELS, NeuralNetwork))


def own_model(model: NeuralNetwork) -> NeuralNetwork:
    """The network of a trainer, which is one also where several ranks train it."""
    return model


def make_trainer(config: Config, loader: MeteredPasses, classes: int, ranks: Ranks = ALONE_RANKS) -> DNNTrain:
    """The configured trainer over a loader, with the configured network, both seeded; of several ranks, one network.

    Then every rank calls it at the same time.
    """
    device = resolve_device(config.device)
    if ranks.ranks == 1:
        return cast(DNNTrain, build_trainer(config, loader, make_model(config, classes), device, TRAININGS, DNNTrain))
    from dnnbench.training.tensorflow_parallel import scope_of, strategy_of

    strategy = strategy_of(ranks)
    check_in_step(ranks, len(loader))
    with scope_of(strategy):
        model = make_model(config, classes)
        trainer = cast(DNNTrain, build_trainer(config, loader, model, device, TRAININGS, DNNTrain))
    # What compiles the network does it in its strategy's scope.
    trainer.together = lambda: scope_of(strategy)  # type: ignore[method-assign]
    return trainer


def start(ranks: Ranks) -> None:
    """Makes ready what all ranks need before TensorFlow is used; called by all of them."""
    if ranks.ranks > 1:
        from dnnbench.training.tensorflow_parallel import start as start_workers

        start_workers(ranks)


class Predictor:
    """Predicts the category of each image of a batch [batch, height, width(, 3)]."""

    def __init__(self, config: Config, model: NeuralNetwork) -> None:
        self._device, self._model = resolve_device(config.device), model
        self._run: Any = None

    def scores(self, images: Any) -> npt.NDArray[np.float32]:
        """Probabilities [batch, classes]."""
        images = tf.convert_to_tensor(images)
        if self._run is None:
            # Compiled once, for batches of any length.
            spec = tf.TensorSpec((None, *images.shape[1:]), images.dtype)
            self._run = tf.function(
                lambda batch: tf.nn.softmax(self._model(batch, training=False)), input_signature=[spec]
            )
        with tf.device(self._device):
            return cast("npt.NDArray[np.float32]", self._run(images).numpy())

    def __call__(self, images: Any) -> npt.NDArray[np.int64]:
        return np.asarray(self.scores(images).argmax(1), dtype=np.int64)


MODEL_SUFFIX = ".keras"


def save_model(model: NeuralNetwork, path: Path) -> None:
    """Writes the network in Keras's own format."""
    model.save(path)


def load_weights(model: NeuralNetwork, path: Path) -> None:
    """Gives the network the weights of a file; nothing in the file is executed."""
    model.load_weights(path)

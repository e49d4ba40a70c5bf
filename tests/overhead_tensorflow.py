"""TensorFlow's part of `overhead`, in a process of its own: no fork is safe where TensorFlow has started."""

import numpy as np
import tensorflow as tf
from fakes import make_catalog
from overhead import BATCH, DIMENSION, SAMPLES, InMemory, beside, pictures, table  # noqa: F401 (fixtures)

from dnnbench.datasets.tensorflow import MeteredPipeline, RandomAccessDataset


class OurSamples(RandomAccessDataset):
    def decode(self, data):
        return np.frombuffer(data, np.uint8).reshape(DIMENSION)

    def image_spec(self):
        return np.dtype(np.uint8), DIMENSION


def test_batch_of_tensorflow(beside):  # noqa: F811 (a fixture)
    contents = pictures()
    dataset = OurSamples()
    dataset.bind(InMemory(contents), make_catalog(contents))
    pipeline = MeteredPipeline(dataset, BATCH)
    in_order = list(contents.values())

    def read(index):
        return np.frombuffer(in_order[index], np.uint8).reshape(DIMENSION), np.int64(index % 2)

    def sample(index):
        picture, label = tf.numpy_function(read, [index], [tf.uint8, tf.int64])
        picture.set_shape(DIMENSION)
        label.set_shape(())
        return picture, label

    samples = tf.data.Dataset.range(SAMPLES).shuffle(SAMPLES).map(sample, num_parallel_calls=8)
    batches = samples.batch(BATCH).prefetch(2)

    def bare():
        assert sum(len(labels) for _, labels in batches) == SAMPLES

    def ours():
        assert sum(len(labels) for _, labels in pipeline) == SAMPLES
        (epoch,) = pipeline.take_epochs()
        assert len(epoch.tally.latency_ns) == SAMPLES

    beside(bare, ours, SAMPLES // BATCH, "batch", at_most=2, turns=15)

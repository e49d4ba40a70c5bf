"""Datasets of TensorFlow over any storage, and the metered ``tf.data`` pipeline that reads them."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnbench.config import Config
from dnnbench.datasets.passes import Epoch, MeteredPasses, batches_at_once, epoch_order
from dnnbench.datasets.samples import ImageSamples
from dnnbench.datasets.shares import ALONE, RankShare
from dnnbench.errors import MeasurementError
from dnnbench.probe import cores

# Threads that tf.data may use where it chooses by itself how many reads run at a time.
AUTOTUNED_THREADS = 16


def weakly(method: Any) -> Callable[..., Any]:
    """The method as a function that does not keep its object: TensorFlow keeps what it calls as long as the process."""
    found = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = found()
        if bound is None:
            raise ReferenceError("the pipeline is gone, and something still reads from it")
        return bound(*arguments)

    return call


def as_written(function: Any) -> Any:
    """The function, not rewritten by AutoGraph: that would go on into what reads a sample, and cost it 90 us each."""
    return tf.autograph.experimental.do_not_convert(function)


class RandomAccessDataset(ImageSamples):
    """Sample ``i`` is ``(image, label)``; see `ImageSamples` for what to override."""

    def image_spec(self) -> tuple[Any, tuple[int, ...]]:
        """(dtype, shape) of every image, which ``tf.data`` must know before it reads: those of the first."""
        pixels = np.asarray(self[0][0])
        return pixels.dtype, pixels.shape


class TensorFlowImageClassificationDataset(RandomAccessDataset):
    """The default: images of ``dataset.image_dimension``, decoded like PyTorch's, bit for bit."""

    def __init__(self, config: dict[str, Any] = {}) -> None:  # noqa: B006 (the seed's signature; never changed)
        super().__init__(transform=None, config=config)

    def image_spec(self) -> tuple[Any, tuple[int, ...]]:
        """uint8 [height, width], or [height, width, 3] in colour; nothing is read to know it."""
        return np.dtype(np.uint8), (*self.image_dimension, 3) if self.colour else self.image_dimension


class MeteredPipeline(MeteredPasses):
    """Iterates batches ``(images, labels)`` of eager tensors, and keeps an `Epoch` of every pass.

    ``access`` is ``random`` (shuffled per epoch, by seed) or ``sequential`` (catalog order); ``share`` is what this
    rank reads of the order. ``section`` is ``framework.TensorFlow``. ``model.fit(pipeline)`` of
    `dnnbench.models.tensorflow` trains from it and is metered alike.
    """

    def __init__(
        self,
        dataset: RandomAccessDataset,
        batch_size: int,
        section: Any = None,
        seed: int = 0,
        access: str = "random",
        share: RankShare = ALONE,
    ) -> None:
        super().__init__()
        section = section or Config().framework.tensorflow
        self.dataset, self.batch_size = dataset, batch_size
        self._seed, self._section = seed, section
        self._shuffle = access == "random" and section.shuffle
        self._share = share
        self._sizes = share.batch_sizes(len(dataset), batch_size, section.drop_last)
        self.expected_samples = sum(self._sizes)
        self._error: Exception | None = None
        concurrency = dataset.concurrency
        self._calls = batches_at_once(concurrency, batch_size) if concurrency else None
        self._shares: SimpleQueue[int] = SimpleQueue()
        for number in range(self._calls or 0):
            self._shares.put(((concurrency or 0) + number) // (self._calls or 1))
        # A dataset that reads a sample to know this reads it here, before any clock runs.
        self._image_dtype, self._image_shape = dataset.image_spec()
        self._pipeline = self._build()

    def __len__(self) -> int:
        return len(self._sizes)

    def _build(self) -> tf.data.Dataset:
        section, indices = self._section, self._indices()
        if self._calls is None:
            samples = indices.map(
                as_written(self._sample),
                num_parallel_calls=section.num_parallel_calls or tf.data.AUTOTUNE,
                deterministic=section.deterministic,
            )
            batches = self._batched(samples)
        else:
            batches = self._batched(indices).map(
                as_written(self._batch), num_parallel_calls=self._calls, deterministic=section.deterministic
            )
        batches = batches.prefetch(section.prefetch or tf.data.AUTOTUNE)
        return batches.apply(tf.data.experimental.assert_cardinality(len(self))).with_options(self._options())

    def _indices(self) -> tf.data.Dataset:
        """The samples' numbers in the order of the pass that begins."""
        section = self._section
        # A dataset of the order's numbers, and not one of the order that is unbatched: that takes 30 us a number.
        indices = tf.data.Dataset.range(1).flat_map(as_written(self._order_slices))
        if self._shuffle and section.shuffle_buffer:
            indices = indices.shuffle(section.shuffle_buffer, seed=self._seed, reshuffle_each_iteration=True)
        # What makes no whole batch is left out before it is read.
        return indices.take(self.expected_samples)

    def _batched(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        batches = dataset.batch(self.batch_size)
        # Where a rank makes two batches of its last one; over whole batches the rest of the list is passed over.
        usual = all(size == self.batch_size for size in self._sizes[:-1])
        return batches if usual else batches.rebatch(self._sizes)

    def _options(self) -> tf.data.Options:
        section, options = self._section, tf.data.Options()
        parallel_calls = self._calls or section.num_parallel_calls
        # Each call of Python code holds a thread while it waits for the storage, and tf.data's own pool has
        # one per processor: without more of them no more reads than that would ever be in flight.
        options.threading.private_threadpool_size = max(parallel_calls or AUTOTUNED_THREADS, cores())
        # Where nothing is left to tune, the tuning thread only delays the end of each epoch, by seconds.
        options.autotune.enabled = not (parallel_calls and section.prefetch)
        return options

    def _order_slices(self, _: Any) -> tf.data.Dataset:
        order = tf.numpy_function(weakly(self._order), [], tf.int64)
        order.set_shape((None,))
        return tf.data.Dataset.from_tensor_slices(order)

    def _order(self) -> Any:
        """The whole order of the pass that begins: asked for once per pass, by ``tf.data``."""
        count = len(self.dataset)
        # A buffer shuffles what comes to it: which samples come to a rank is another part of all in each pass, as ever.
        whole = self._shuffle and (not self._section.shuffle_buffer or self._share.ranks > 1)
        order = epoch_order(count, self._seed, self._passes - 1) if whole else np.arange(count)
        mine = self._share.of(count)
        return order[mine.start : mine.stop]

    def _sample(self, index: Any) -> tuple[Any, Any, Any]:
        image, label = tf.numpy_function(weakly(self._read), [index], [self._image_dtype, tf.int64])
        image.set_shape(self._image_shape)
        label.set_shape(())
        return image, label, index

    def _read(self, index: Any) -> tuple[Any, Any]:
        try:
            image, label = self.dataset.loader_sample(int(index))
            return self._pixels(int(index), image), np.int64(label)
        except Exception as exc:
            # TensorFlow would make an error of its own of it, and log its traceback; `_next` raises it as it is.
            self._error = self._error or exc
            return np.zeros(self._image_shape, self._image_dtype), np.int64(-1)

    def _batch(self, indices: Any) -> tuple[Any, Any, Any]:
        images, labels = tf.numpy_function(weakly(self._read_batch), [indices], [self._image_dtype, tf.int64])
        images.set_shape((None, *self._image_shape))
        labels.set_shape((None,))
        return images, labels, indices

    def _read_batch(self, indices: Any) -> tuple[Any, Any]:
        images = np.zeros((len(indices), *self._image_shape), self._image_dtype)
        labels = np.full(len(indices), -1, np.int64)
        in_flight = self._shares.get()
        try:
            for position, (image, label) in self.dataset.read_samples(indices.tolist(), concurrency=in_flight):
                images[position] = self._pixels(int(indices[position]), image)
                labels[position] = label
        except Exception as exc:
            self._error = self._error or exc
        finally:
            self._shares.put(in_flight)
        return images, labels

    def _pixels(self, index: int, image: Any) -> Any:
        pixels = np.asarray(image)
        if pixels.dtype != self._image_dtype or pixels.shape != self._image_shape:
            raise MeasurementError(
                f"{type(self.dataset).__name__}: image {index} is {pixels.dtype} {pixels.shape}, but the "
                f"first one is {self._image_dtype} {self._image_shape}; a batch needs images that are alike"
            )
        return pixels

    def _start_pass(self, number: int) -> Iterator[Any]:
        self._begin()
        iterator: Iterator[Any] = iter(self._pipeline)
        return iterator

    def _begin(self) -> None:
        self._error = None
        self.dataset.storage.meter.take()

    def _next(self, iterator: Iterator[Any]) -> Any:
        received = next(iterator, None)
        if self._error is not None:
            raise self._error
        return received

    def _unpack(self, received: Any, epoch: Epoch) -> Any:
        images, labels, indices = received
        self._saw(epoch, indices.numpy().tolist())
        return images, labels

    def _end_pass(self, epoch: Epoch) -> None:
        # Every read of a pass that was followed to its end has happened by now, in this process.
        epoch.tally += self.dataset.storage.meter.take()

    def fit_through(self, model: Any, fit: Callable[..., Any], **options: Any) -> Any:
        """Runs ``fit`` (Keras's own) over the pipeline, metered; called by the model's ``fit``."""
        meter = _FitMeter(self)
        model.step_meter = meter
        callbacks = options.pop("callbacks", None) or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        if isinstance(options.get("validation_data"), MeteredPipeline):
            options["validation_data"] = options["validation_data"].plain
        callbacks = [meter, *(callbacks if isinstance(callbacks, list | tuple) else [callbacks])]
        try:
            return fit(self._pipeline, **options | {"callbacks": callbacks, "shuffle": False})
        finally:
            model.step_meter = None
            meter.finish()

    @property
    def plain(self) -> tf.data.Dataset:
        """The same batches as a ``tf.data.Dataset`` that is not metered, such as for evaluation."""
        batches = self._pipeline.map(lambda images, labels, _: (images, labels))
        batches.metered = self
        return batches

    def batch_spec(self) -> tuple[Any, Any]:
        """What a batch is to TensorFlow, whatever its length."""
        images, labels, _ = self._pipeline.element_spec
        return tuple(tf.TensorSpec((None, *one.shape[1:]), one.dtype) for one in (images, labels))


class MemoryPipeline(MeteredPipeline):
    """A pipeline of batches ``(images, labels)`` that are in memory already; all but the last of one length."""

    def __init__(self, batches: Sequence[tuple[Any, Any]], like: MeteredPipeline) -> None:
        MeteredPasses.__init__(self)
        self._error = None
        self.dataset = like.dataset
        self.batch_size = len(batches[0][1])
        self._sizes = [len(batch[1]) for batch in batches]
        images, labels = (tf.concat([batch[part] for batch in batches], 0) for part in (0, 1))
        self.expected_samples = len(labels)
        samples = tf.data.Dataset.from_tensor_slices((images, labels, tf.range(len(labels), dtype=tf.int64)))
        batched = samples.batch(self.batch_size)
        self._pipeline = batched.apply(tf.data.experimental.assert_cardinality(len(self)))

    def _begin(self) -> None:
        """Nothing: no storage is asked."""

    def _end_pass(self, epoch: Epoch) -> None:
        """Nothing: no storage was asked."""


class _FitMeter(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the account of a ``model.fit``: epochs by callback, waiting around the request for each batch.

    An epoch's wall-clock time ends with its last batch: what Keras does after it, such as
    validation, is no part of training on our batches.
    """

    def __init__(self, pipeline: MeteredPipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._clock = time.perf_counter_ns
        self._epoch: Epoch | None = None
        self._start_ns = self._asked_ns = self._got_ns = self._end_ns = 0

    def batch_spec(self) -> tuple[Any, Any]:
        """What the batches are to TensorFlow."""
        return self._pipeline.batch_spec()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = self._pipeline.open_pass()
        self._pipeline._begin()
        # Keras makes its iterator now, and lets go of the last epoch's: that is part of the first wait.
        self._start_ns = self._asked_ns = self._end_ns = self._epoch.start_ns = self._clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._computed()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._epoch is not None:
            self._epoch.complete = True
        self.finish()

    def on_test_begin(self, logs: Any = None) -> None:
        # Validation comes before the end of Keras's epoch, and reads what is not ours to count here.
        self.on_epoch_end(0)

    def finish(self) -> None:
        """Closes the pass that is open, also where the fit broke off."""
        if self._epoch is not None:
            epoch, self._epoch = self._epoch, None
            self._pipeline._end_pass(epoch)
            self._pipeline.close_pass(epoch, self._end_ns - self._start_ns)

    def next_batch(self, iterator: Iterator[Any]) -> Any:
        """The next batch; raises ``StopIteration`` at the end of the epoch."""
        epoch = self._epoch
        if epoch is None:
            raise MeasurementError("model.fit asked for a batch outside of an epoch")
        if epoch.batches:
            # Where Keras takes several batches in one step, no callback ends the one before.
            self._computed()
            self._asked_ns = self._clock()
        received = self._pipeline._next(iterator)
        self._got_ns = self._end_ns = self._clock()
        epoch.waited(self._got_ns - self._asked_ns)
        if received is None:
            self._got_ns = 0
            raise StopIteration
        batch = self._pipeline._unpack(received, epoch)
        if epoch.batches == 1:
            epoch.first_batch_ns, self._pipeline.first_batch = self._got_ns - self._start_ns, batch
        return batch

    def _computed(self) -> None:
        if self._epoch is not None and self._got_ns:
            self._end_ns = self._clock()
            self._epoch.computed(self._end_ns - self._got_ns)
            self._got_ns = 0

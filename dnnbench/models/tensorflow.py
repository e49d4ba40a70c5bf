"""Networks of TensorFlow (Keras): the base class that a user subclasses, and the twin of PyTorch's default."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from dnnbench.models.losses import find_loss


def _negative_log_likelihood(labels: Any, outputs: Any) -> Any:
    """Minus the output of the right category, as PyTorch's NLLLoss has it."""
    return -_right_output(labels, outputs)


def _multi_margin(labels: Any, outputs: Any) -> Any:
    """PyTorch's MultiMarginLoss: by how much each wrong category comes within 1 of the right one, over all."""
    margins = keras.ops.relu(1 - _right_output(labels, outputs)[:, None] + outputs)
    # The right category is within 1 of itself, and is not meant.
    return (keras.ops.sum(margins, axis=1) - 1) / outputs.shape[-1]


def _right_output(labels: Any, outputs: Any) -> Any:
    # Keras hands labels over as floats.
    numbers = keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32")
    return keras.ops.sum(outputs * keras.ops.one_hot(numbers, outputs.shape[-1], dtype=outputs.dtype), axis=1)


class _MeanLoss(keras.losses.Loss):  # type: ignore[misc]
    """The mean over the batch of what a function says of each sample."""

    def __init__(self, of_each: Callable[[Any, Any], Any]) -> None:
        super().__init__(name=of_each.__name__.lstrip("_"))
        self._of_each = of_each

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._of_each(y_true, y_pred)


# The same names, and the same values, as PyTorch's.
LOSSES: dict[str, Callable[[], Any]] = {
    "CrossEntropyLoss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "NLLLoss": lambda: _MeanLoss(_negative_log_likelihood),
    "MultiMarginLoss": lambda: _MeanLoss(_multi_margin),
}


class NeuralNetwork(keras.Model):  # type: ignore[misc]
    """A network that knows its loss, and whose ``fit`` over our loader is metered batch by batch."""

    loss_function_name: str = ""
    step_meter: Any = None
    train_function: Any
    _distribute_strategy: Any
    _own_shares: Any = None

    def loss_function(self) -> Any:
        """The loss: called with (labels [batch], outputs [batch, classes]). Raises `ConfigError`."""
        return find_loss(self.loss_function_name, LOSSES)()

    def fit(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        """Keras's ``fit``; where ``x`` is a loader of ours, waiting and computing are told apart."""
        if not hasattr(x, "fit_through"):
            return super().fit(x, *arguments, **options)
        given = inspect.signature(super().fit).bind_partial(x, *arguments, **options).arguments
        del given["x"]
        with self._each_its_share():
            return x.fit_through(self, super().fit, **given)

    @contextlib.contextmanager
    def _each_its_share(self) -> Iterator[None]:
        """Inside of it a strategy's workers train on the datasets that each of them has, as they are."""
        strategy = self._distribute_strategy
        if strategy is None:
            yield
            return
        # Keras would read a batch to build the network, before any epoch, and share out what is a share already.
        self._distribute_strategy, self._own_shares = None, _OwnShares(strategy)
        try:
            yield
        finally:
            self._distribute_strategy, self._own_shares = strategy, None

    @property
    def distribute_strategy(self) -> Any:
        """Keras's own, but that our loaders' batches are each worker's share."""
        return self._own_shares or super().distribute_strategy

    def evaluate(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        """Keras's ``evaluate``; a loader of ours is read as it is, and not metered."""
        return super().evaluate(getattr(x, "plain", x), *arguments, **options)

    def predict(self, x: Any, *arguments: Any, **options: Any) -> Any:
        """Keras's ``predict``; a loader of ours is read as it is, and not metered."""
        return super().predict(getattr(x, "plain", x), *arguments, **options)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's compiled step, fed by a request for a batch that is timed apart from it."""
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = _MeteredStep(self, self.train_function)
        return self.train_function

    def compile_step(self, batch_spec: tuple[Any, Any]) -> None:
        """Compiles the training step for batches of any length, without running it; `compile` has been called."""
        with self._each_its_share():
            self.make_train_function()
            self.train_function.compiled(batch_spec).get_concrete_function()


class _OwnShares:
    """A strategy to whose workers every dataset is their own share."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        return dataset


class _MeteredStep:
    """A model's training step on the next batch of an iterator, asked for through the model's ``step_meter``."""

    def __init__(self, model: NeuralNetwork, step: Callable[[Iterator[Any]], Any]) -> None:
        self._model, self._step = model, step
        self._compiled: dict[Any, Any] = {}

    def __call__(self, iterator: Iterator[Any]) -> Any:
        meter = self._model.step_meter
        if meter is None:
            return self._step(iterator)
        run = self.compiled(meter.batch_spec())
        outputs = run(*meter.next_batch(iterator))
        # What is left of the epoch may be fewer batches than a step takes.
        with contextlib.suppress(StopIteration):
            for _ in range(self._model.steps_per_execution - 1):
                outputs = run(*meter.next_batch(iterator))
        return outputs

    def compiled(self, batch_spec: tuple[Any, Any]) -> Any:
        """The step on one batch, for batches of any length: Keras's own would be compiled again for the last one."""
        if self._model.run_eagerly:
            return lambda *batch: self._step(iter([batch]))
        if batch_spec not in self._compiled:
            self._compiled[batch_spec] = tf.function(
                lambda *batch: self._step(iter([batch])), input_signature=batch_spec, autograph=False
            )
        return self._compiled[batch_spec]


@keras.saving.register_keras_serializable("dnnbench")
class ConvNet(NeuralNetwork):
    """Three convolutions and a dense layer, for images of any height and width.

    Takes uint8 or float of 0 to 255, grey [batch, height, width] or, with ``channels`` 3, colour
    [batch, height, width, 3]; gives scores [batch, classes].
    """

    def __init__(
        self, image_diments: Sequence[int] = (32, 32), classes: int = 10, channels: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.image_input_height, self.image_input_width = int(image_diments[0]), int(image_diments[1])
        self.classes, self.channels = classes, channels
        self.network()

    def network(self) -> None:
        """Makes the layers."""
        self.scale = layers.Rescaling(1 / 127.5, offset=-1)
        self.convolutions = [layers.Conv2D(filters, 3, padding="same") for filters in (16, 32, 64)]
        self.normalisations = [layers.BatchNormalization(momentum=0.7) for _ in self.convolutions]
        self.pool = layers.MaxPooling2D(2, padding="same")
        self.flatten = layers.Flatten()
        self.classify = layers.Dense(self.classes)
        self.build((None, self.image_input_height, self.image_input_width, *([3] if self.channels == 3 else [])))

    def call(self, images: Any, training: bool = False) -> Any:
        x = keras.ops.cast(images, "float32")
        x = self.scale(x if len(x.shape) == 4 else keras.ops.expand_dims(x, -1))
        for convolve, normalise in zip(self.convolutions, self.normalisations, strict=True):
            x = self.pool(keras.activations.relu(normalise(convolve(x), training=training)))
        return self.classify(self.flatten(x))

    def build(self, input_shape: Any) -> None:
        """Makes the weights, so that a saved network can be read back before it has seen an image."""
        if not self.built:
            super().build(input_shape)
            self.call(keras.KerasTensor((1, *input_shape[1:]), dtype="uint8"))

    def get_config(self) -> dict[str, Any]:
        """What makes the same network again."""
        return {
            "image_diments": [self.image_input_height, self.image_input_width],
            "classes": self.classes,
            "channels": self.channels,
        }

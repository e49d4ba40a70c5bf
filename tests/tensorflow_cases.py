"""TensorFlow's twin: the same samples as PyTorch's, metered alike, and both in one process.

Run by `test_tensorflow` in a process of its own: no fork is safe where TensorFlow has started.
"""

import gc
import hashlib
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fakes import LABELS, MemoryStorage, image_bytes, make_catalog, make_contents

from dnnbench.config import Config, ConfigError, expand_settings
from dnnbench.datasets.shares import RankShare
from dnnbench.datasets.tensorflow import MeteredPipeline, RandomAccessDataset, TensorFlowImageClassificationDataset
from dnnbench.errors import MeasurementError
from dnnbench.images import decode
from dnnbench.models.tensorflow import ConvNet, NeuralNetwork
from dnnbench.pack import pack
from dnnbench.shards import FORMATS, list_shards, sharded_catalog
from dnnbench.storage import CorruptError, Entry
from dnnbench.trained import Trained, TrainedModelError, save_trained
from dnnbench.training import tensorflow_build, torch_build
from dnnbench.training.emulated import Emulation
from dnnbench.training.tensorflow import DNNTrain, RandomAccessDatasetTrain, resolve_device
from dnnbench.workloads import Loading, Training

ROOT = Path(__file__).parent.parent
COUNT = 22


def _section(**settings):
    arguments = [f"framework.TensorFlow.{key}={json.dumps(value)}" for key, value in settings.items()]
    return expand_settings({}, arguments)[0].config.framework.tensorflow


def _bound(dataset=None, count=COUNT, **storage):
    dataset = TensorFlowImageClassificationDataset() if dataset is None else dataset
    contents = make_contents(count)
    dataset.bind(MemoryStorage(contents, **storage), make_catalog(contents))
    return dataset


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("name", ["fs", "aws"])
def test_the_pixels_are_pytorchs_bit_for_bit(access, name):
    from dnnbench.datasets.torch import TorchImageClassificationDataset

    dataset = _bound(name=name)
    twin = TorchImageClassificationDataset()
    twin.bind(dataset.storage, dataset.catalog)
    pipeline = MeteredPipeline(dataset, 5, access=access)
    batches = list(pipeline)
    (epoch,) = pipeline.take_epochs()
    images = np.concatenate([images.numpy() for images, _ in batches])
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    for position, index in enumerate(epoch.indices):
        image, label = twin[int(index)]
        assert np.array_equal(image.numpy(), images[position])
        assert label == labels[position]


@pytest.mark.parametrize("settings", [{}, {"num_parallel_calls": 1}, {"prefetch": 3}, {"deterministic": False}])
@pytest.mark.parametrize("access", ["random", "sequential"])
def test_an_epoch_accounts_for_exactly_what_came_through(access, settings):
    dataset = _bound()
    pipeline = MeteredPipeline(dataset, 5, _section(**settings), access=access)
    for _ in range(3):
        assert sum(len(labels) for _, labels in pipeline) == COUNT
    for epoch in pipeline.take_epochs():
        assert sorted(epoch.indices) == list(range(COUNT))
        assert len(epoch.tally.latency_ns) == COUNT
        assert epoch.tally.read_bytes == dataset.catalog.total_bytes
        assert epoch.batches == len(pipeline) == 5
        assert epoch.complete
        assert 0 < epoch.first_batch_ns <= epoch.wait_ns
        assert epoch.wait_ns + epoch.compute_ns <= epoch.wall_ns


def test_orders_are_fresh_per_epoch_and_the_same_as_pytorchs():
    from dnnbench.datasets.torch import TorchImageClassificationDataset
    from dnnbench.datasets.torch_loader import MeteredLoader

    dataset = _bound()
    twin = TorchImageClassificationDataset()
    twin.bind(dataset.storage, dataset.catalog)
    section = expand_settings({}, ["framework.PyTorch.DataLoader.num_workers=0"])[0].config.framework.pytorch.loader
    orders = []
    for loader in (MeteredPipeline(dataset, 4, seed=7), MeteredLoader(twin, 4, section, seed=7)):
        for _ in range(2):
            list(loader)
        orders.append([epoch.indices.tolist() for epoch in loader.take_epochs()])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


@pytest.mark.parametrize("access", ["random", "sequential"])
@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_concurrent_reading_gives_the_same_batches_as_plain(access, concurrency):
    plain = MeteredPipeline(_bound(), 5, access=access)
    dataset = _bound()
    dataset.concurrency = concurrency
    concurrent = MeteredPipeline(dataset, 5, access=access)
    for _ in range(2):
        for (images, labels), (expected, expected_labels) in zip(concurrent, plain, strict=True):
            np.testing.assert_array_equal(images, expected)
            np.testing.assert_array_equal(labels, expected_labels)
    for epoch in concurrent.take_epochs():
        assert (epoch.samples, len(epoch.tally.latency_ns), epoch.tally.requests["GET"]) == (COUNT, COUNT, COUNT)


def test_an_error_in_concurrent_reading_comes_out_as_ours():
    dataset = _bound()
    dataset.concurrency = 4
    key = dataset.catalog.key(7)
    dataset.storage.contents[key] = b"x" * dataset.catalog.size_bytes(7)
    with pytest.raises(CorruptError, match=key):
        list(MeteredPipeline(dataset, 5))


@pytest.mark.parametrize("concurrency", [None, 4])
def test_every_object_is_held_against_its_checksum(concurrency):
    dataset = _bound()
    dataset.concurrency = concurrency
    contents = dataset.storage.contents
    digests = b"".join(hashlib.sha256(contents[dataset.catalog.key(i)]).digest() for i in range(COUNT))
    dataset.catalog = dataset.catalog.expecting("checksum", np.frombuffer(digests, np.uint8).reshape(-1, 32))
    pipeline = MeteredPipeline(dataset, 5)
    assert len(list(pipeline)) == len(pipeline)
    assert pipeline.take_epochs()[0].tally.verified == {"manifest": COUNT}
    key = dataset.catalog.key(7)
    contents[key] = contents[key][:-1] + b"?"
    with pytest.raises(CorruptError, match=f"{key}: the content's SHA-256"):
        list(MeteredPipeline(dataset, 5))


def test_sequential_and_unshuffled_are_the_catalogs_order():
    for pipeline in (
        MeteredPipeline(_bound(), 5, access="sequential"),
        MeteredPipeline(_bound(), 5, _section(shuffle=False)),
    ):
        list(pipeline)
        assert pipeline.take_epochs()[0].indices.tolist() == list(range(COUNT))


def test_a_shuffle_buffer_shuffles_within_it():
    pipeline = MeteredPipeline(_bound(), 5, _section(shuffle_buffer=3))
    list(pipeline)
    order = pipeline.take_epochs()[0].indices.tolist()
    assert sorted(order) == list(range(COUNT)) != order
    assert all(index <= position + 3 for position, index in enumerate(order))


def test_drop_last_reads_nothing_that_it_drops():
    dataset = _bound()
    pipeline = MeteredPipeline(dataset, 5, _section(drop_last=True))
    assert [len(labels) for _, labels in pipeline] == [5, 5, 5, 5]
    (epoch,) = pipeline.take_epochs()
    assert (len(epoch.tally.latency_ns), pipeline.expected_samples) == (20, 20)


def test_a_corrupt_image_comes_out_as_our_error():
    dataset = _bound()
    key = dataset.catalog.key(3)
    dataset.storage.contents[key] = b"x" * dataset.catalog.size_bytes(3)
    with pytest.raises(CorruptError, match=key):
        list(MeteredPipeline(dataset, 5))


def test_images_that_are_not_alike_are_an_error_that_says_what_they_are():
    class Uneven(RandomAccessDataset):
        def decode(self, data):
            return super().decode(data)[: 32 if len(data) % 2 else 31]

    dataset = _bound(Uneven())
    dataset.storage.contents = {k: d + b"x" * (i == 7) for i, (k, d) in enumerate(dataset.storage.contents.items())}
    dataset.catalog = make_catalog(dataset.storage.contents)
    with pytest.raises(MeasurementError, match=r"Uneven: image 7 is uint8 \(3[12], 32\), but the first one is"):
        list(MeteredPipeline(dataset, 5))


class Marked(RandomAccessDataset):
    """A user's dataset: its own reading, floats, and a transform."""

    def __init__(self, config={}):  # noqa: B006
        super().__init__(transform=lambda image: image.astype(np.float32) / 255, config=config)


def test_a_users_dataset_is_metered_without_its_help():
    pipeline = MeteredPipeline(_bound(Marked()), 5)
    (images, _), *_ = list(pipeline)
    assert images.dtype == tf.float32
    (epoch,) = pipeline.take_epochs()
    # What was read to know the dtype and the shape is no part of an epoch.
    assert (epoch.samples, len(epoch.tally.latency_ns)) == (COUNT, COUNT)


@pytest.mark.parametrize("accept", ["numpy", "tensor"])
def test_a_users_own_mistake_keeps_its_kind_and_names_the_object(accept, capfd):
    class Mistaken(RandomAccessDataset):
        def decode(self, data):
            pixels = super().decode(data)
            if pixels[0, 0] == 9:
                raise ZeroDivisionError("the user's own mistake")
            return tf.constant(pixels) if accept == "tensor" else pixels

    with pytest.raises(ZeroDivisionError, match="own mistake") as caught:
        list(MeteredPipeline(_bound(Mistaken()), 5))
    assert any("0009.png" in note for note in caught.value.__notes__)
    # TensorFlow logs what it catches; nothing of this is for it to catch.
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("dimension", [(1, 1), (32, 32), (7, 19)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_takes_any_dimension(dimension, channels):
    network = ConvNet(dimension, classes=5, channels=channels)
    shape = (2, *dimension, 3) if channels == 3 else (2, *dimension)
    assert network(np.zeros(shape, dtype=np.uint8)).shape == (2, 5)
    assert (network.image_input_height, network.image_input_width) == dimension


@pytest.mark.parametrize("name", ["", "CorssEntrophy", "cross_entropy", "CrossEntropyLoss", "<Specify Loss Function>"])
def test_the_loss_is_found_by_any_of_its_names(name):
    network = NeuralNetwork()
    network.loss_function_name = name
    loss = network.loss_function()(np.array([1]), np.array([[0.0, 0.0]], dtype=np.float32))
    assert float(loss) == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"])
def test_every_loss_has_pytorchs_values(name):
    import torch

    from dnnbench.models.torch import LOSSES

    outputs = np.random.default_rng(1).normal(0, 2, (7, 4)).astype(np.float32)
    labels = np.arange(7) % 4
    network = NeuralNetwork()
    network.loss_function_name = name
    expected = LOSSES[name]()(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert float(network.loss_function()(labels, outputs)) == pytest.approx(expected.item(), rel=1e-5)


def test_both_frameworks_know_the_same_losses():
    from dnnbench.models import tensorflow as ours
    from dnnbench.models import torch as theirs

    assert list(ours.LOSSES) == list(theirs.LOSSES)


def test_an_unknown_loss_names_the_known_ones():
    network = NeuralNetwork()
    network.loss_function_name = "NLLoss"
    with pytest.raises(ConfigError, match=r'expected one of CrossEntropyLoss.*did you mean "NLLLoss"'):
        network.loss_function()


def test_a_gpu_that_is_not_there_is_an_error():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match='set it to "cpu"'):
        resolve_device("gpu")


def _train(kind, epochs=4):
    # Not every network that one may start from learns these few pictures within four epochs.
    keras.utils.set_random_seed(1)
    pipeline = MeteredPipeline(_bound(), 4)
    trainer = kind(
        config={"framework": {"epochs": epochs}}, dataloader=pipeline, model=ConvNet((32, 32), classes=2), device=None
    )
    trainer.train()
    return trainer, pipeline.take_epochs()


def test_fit_is_metered_epoch_by_epoch():
    trainer, epochs = _train(RandomAccessDatasetTrain)
    assert len(epochs) == len(trainer.history) == 4
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    for epoch in epochs:
        assert sorted(epoch.indices) == list(range(COUNT))
        assert len(epoch.tally.latency_ns) == COUNT
        assert epoch.complete
        assert min(epoch.wait_ns, epoch.compute_ns, epoch.first_batch_ns) > 0
        assert epoch.wait_ns + epoch.compute_ns <= epoch.wall_ns
    assert epochs[0].indices.tolist() != epochs[1].indices.tolist()


def test_the_loss_is_logged_every_so_many_batches(caplog):
    caplog.set_level("INFO", logger="dnnbench.training.tensorflow")
    trainer = RandomAccessDatasetTrain(
        config={"framework": {"epochs": 1, "max_batch_size": 2}},
        dataloader=MeteredPipeline(_bound(), 4),
        model=ConvNet((32, 32), classes=2),
        device=None,
    )
    trainer.train()
    assert [record.args[1] for record in caplog.records] == [0, 2, 4]


class OwnLoop(DNNTrain):
    """A user's own loop over the loader that it is handed."""

    def __init__(self, **kwargs):
        self.train_dataloader = kwargs["dataloader"]
        super().__init__(config=kwargs["config"], model=kwargs["model"], device=kwargs["device"])

    def train(self):
        criterion = self.model.loss_function()
        optimizer = tf.keras.optimizers.SGD(0.01)
        for _ in range(self.epochs):
            for images, labels in self.train_dataloader:
                with tf.GradientTape() as tape:
                    loss = criterion(labels, self.model(images, training=True))
                weights = self.model.trainable_variables
                optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))


def test_a_users_own_loop_is_metered_from_outside():
    _, epochs = _train(OwnLoop, epochs=2)
    assert [epoch.samples for epoch in epochs] == [COUNT, COUNT]
    assert min(epoch.compute_ns for epoch in epochs) > 0


def test_an_error_in_the_middle_of_fit_is_ours():
    dataset = _bound()
    key = dataset.catalog.key(3)
    dataset.storage.contents[key] = b"x" * dataset.catalog.size_bytes(3)
    model = ConvNet((32, 32), classes=2)
    model.compile(optimizer="adam", loss=model.loss_function())
    with pytest.raises(CorruptError, match=key):
        model.fit(MeteredPipeline(dataset, 4), verbose=0)


def _fit(loader, *arguments, compile_options=None, **options):
    """(the epochs of a fit over the loader, the model)."""
    model = ConvNet((32, 32), classes=2)
    model.compile(optimizer="adam", loss=model.loss_function(), metrics=["accuracy"], **(compile_options or {}))
    model.fit(loader, *arguments, verbose=0, **options)
    return loader.take_epochs(), model


class Counted(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


@pytest.mark.parametrize("callbacks", [None, "empty", "one", "list", "tuple"])
def test_fit_takes_callbacks_in_any_form(callbacks):
    counted = Counted()
    given = {None: None, "empty": [], "one": counted, "list": [counted], "tuple": (counted,)}[callbacks]
    epochs, _ = _fit(MeteredPipeline(_bound(), 4), epochs=2, callbacks=given)
    assert [epoch.samples for epoch in epochs] == [COUNT, COUNT]
    assert counted.batches == (12 if callbacks in ("one", "list", "tuple") else 0)


def test_fit_takes_its_arguments_in_their_order_too():
    epochs, _ = _fit(MeteredPipeline(_bound(), 4), None, None, 3)
    assert len(epochs) == 3


def test_fit_takes_shuffle_for_what_it_is_to_a_loader():
    epochs, _ = _fit(MeteredPipeline(_bound(), 4, access="sequential"), shuffle=True)
    assert epochs[0].indices.tolist() == list(range(COUNT))


@pytest.mark.parametrize("options", [{"steps_per_execution": 4}, {"run_eagerly": True}, {"jit_compile": False}])
def test_fit_reads_every_batch_however_it_steps(options):
    epochs, _ = _fit(MeteredPipeline(_bound(), 4), epochs=2, compile_options=options)
    for epoch in epochs:
        assert sorted(epoch.indices) == list(range(COUNT))
        assert epoch.batches == len(epoch.computes_ns) == 6
        assert 0 < epoch.wait_ns + epoch.compute_ns <= epoch.wall_ns
        assert (sum(epoch.waits_ns), sum(epoch.computes_ns)) == (epoch.wait_ns, epoch.compute_ns)


def test_validation_is_read_and_is_no_part_of_the_epochs():
    loader = MeteredPipeline(_bound(), 4)
    epochs, model = _fit(loader, epochs=2, validation_data=loader)
    assert [(epoch.samples, len(epoch.tally.latency_ns), epoch.complete) for epoch in epochs] == [
        (COUNT, COUNT, True)
    ] * 2
    loss, accuracy = model.evaluate(loader, verbose=0)
    assert loss > 0
    assert 0 <= accuracy <= 1
    assert model.predict(loader, verbose=0).shape == (COUNT, 2)


class Traced(ConvNet):
    """Notes each time that TensorFlow goes through its layers anew, and for how many images."""

    def call(self, images, training=False):
        if training:
            self.traces = [*getattr(self, "traces", []), images.shape[0]]
        return super().call(images, training=training)


def test_the_step_is_compiled_once_before_training_for_batches_of_any_length():
    pipeline = MeteredPipeline(_bound(), 4)
    model = Traced((32, 32), classes=2)
    weights = [weight.numpy() for weight in model.trainable_weights]
    trainer = RandomAccessDatasetTrain(
        config={"framework": {"epochs": 2}}, dataloader=pipeline, model=model, device=None
    )
    trainer.warm_up()
    traces = list(model.traces)
    assert traces
    assert set(traces) == {None}
    assert all(np.array_equal(*pair) for pair in zip(weights, model.trainable_weights, strict=True))
    assert pipeline.take_epochs() == []
    trainer.train()
    assert model.traces == traces
    assert len(trainer.history) == 2


def test_an_emulated_accelerator_is_built_in_and_computes_nothing():
    settings = ["training.name=EmulatedAccelerator", "training.batch_compute_ms=2", "framework.epochs=2"]
    config = expand_settings({}, [*settings, "framework.batch_size=8", "dataset.image_dimension=[4,4]"])[0].config
    dataset = _bound()
    pipeline = tensorflow_build.make_loader(config, dataset.storage, dataset.catalog, "random")
    trainer = tensorflow_build.make_trainer(config, pipeline, 2)
    assert isinstance(trainer, Emulation)
    assert isinstance(trainer, DNNTrain)
    weights = [weight.numpy() for weight in trainer.model.trainable_weights]
    workload = Training(dataset.storage, dataset.catalog, pipeline, trainer, "train")
    workload.prepare(0)
    assert pipeline.samples_done == 0
    workload.run()
    finished = workload.account()
    assert [epoch.samples for epoch in finished.epochs] == [COUNT, COUNT]
    # Three batches, of which none may take less than it should.
    assert all(epoch.compute_ns >= 3 * 2_000_000 for epoch in finished.epochs)
    told = finished.accelerator
    assert (told["batch_compute_ms"], told["steps"], told["warm_up_steps"]) == (2, 2, 1)
    assert 0 < told["utilization_uncorrected"] <= told["utilization"] <= 1
    assert all(np.array_equal(*pair) for pair in zip(weights, trainer.model.trainable_weights, strict=True))


class Meeting(MemoryStorage):
    """Answers only when so many reads are in flight at the same time."""

    def __init__(self, contents, reads):
        super().__init__(contents)
        self.barrier = threading.Barrier(reads)

    def _read(self, key, size_bytes):
        self.barrier.wait(timeout=60)
        return super()._read(key, size_bytes)


@pytest.mark.parametrize("settings", [{}, {"num_parallel_calls": 16}, {"num_parallel_calls": 24, "prefetch": 0}])
def test_as_many_reads_are_in_flight_as_are_asked_for_whatever_the_cores(settings):
    count = settings.get("num_parallel_calls", 8)
    contents = make_contents(2 * count)
    dataset = TensorFlowImageClassificationDataset()
    dataset.bind(Meeting(contents, count), make_catalog(contents))
    assert sum(len(labels) for _, labels in MeteredPipeline(dataset, 4, _section(**settings))) == 2 * count


@pytest.mark.parametrize(("concurrency", "batch_size"), [(3, 11), (5, 11), (12, 2)])
def test_exactly_as_many_reads_are_in_flight_as_concurrency_says(concurrency, batch_size):
    contents = make_contents(COUNT)
    dataset = TensorFlowImageClassificationDataset()
    storage = MemoryStorage(contents)
    together, guard, read = threading.Barrier(concurrency), threading.Lock(), storage._read
    begun = now = most = 0

    def counted(key, size_bytes):
        nonlocal begun, now, most
        with guard:
            begun, now = begun + 1, now + 1
            most, first = max(most, now), begun <= concurrency
        if first:
            together.wait(timeout=20)
        with guard:
            now -= 1
        return read(key, size_bytes)

    storage._read = counted
    dataset.bind(storage, make_catalog(contents))
    dataset.concurrency = concurrency
    assert sum(len(labels) for _, labels in MeteredPipeline(dataset, batch_size, _section())) == COUNT
    assert most == concurrency


def test_batches_in_memory_have_the_dataset_that_they_came_from():
    pipeline = MeteredPipeline(_bound(), 5)
    loader = tensorflow_build.memory_loader(list(pipeline), pipeline)
    assert len(loader.dataset) == COUNT
    assert sum(len(labels) for _, labels in loader) == COUNT


def test_drop_last_drops_others_each_time_where_a_buffer_shuffles():
    pipeline = MeteredPipeline(_bound(), 5, _section(shuffle_buffer=COUNT, drop_last=True))
    for _ in range(4):
        list(pipeline)
    epochs = pipeline.take_epochs()
    dropped = {tuple(sorted(set(range(COUNT)) - set(epoch.indices.tolist()))) for epoch in epochs}
    assert len(dropped) > 1
    assert all(len(epoch.tally.latency_ns) == 20 for epoch in epochs)


@pytest.fixture
def saved(tmp_path):
    """(a network that was trained a little, the path where it was saved, its configuration)."""
    settings = [
        f"model.save_dir={tmp_path}/models",
        'dataset.label=["roses","tulips"]',
        "dataset.image_dimension=[8,6]",
    ]
    config = expand_settings({}, settings)[0].config
    model = tensorflow_build.make_model(config, 2)
    model.compile(optimizer="adam", loss=model.loss_function())
    model.fit(np.random.default_rng(0).integers(0, 255, (8, 8, 6)), np.arange(8) % 2, verbose=0)
    return model, save_trained(tensorflow_build, config, model, "tf-fs"), config


def test_a_saved_network_says_the_same_when_it_is_loaded(saved):
    model, path, config = saved
    data = image_bytes(77, (60, 50))
    label, probability = Trained(path).predict(MemoryStorage({"a.png": data}), Entry("a.png", len(data)))
    scores = tensorflow_build.Predictor(config, model).scores(decode(data, (8, 6))[None])[0]
    assert path.suffix == ".keras"
    assert (label, probability) == (("roses", "tulips")[scores.argmax()], pytest.approx(scores.max(), rel=1e-5))


@pytest.mark.parametrize("broken", [lambda data: data[:-300], lambda data: b"", lambda data: b"no zip file" * 100])
def test_a_damaged_network_is_one_line(saved, broken):
    _, path, _ = saved
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(TrainedModelError, match="cannot be loaded as weights") as caught:
        Trained(path)
    assert "\n" not in str(caught.value)


def test_what_a_saved_network_says_of_itself_is_not_believed(saved, tmp_path):
    """A layer of code in the file's description, which Keras would build: the weights alone are read."""
    _, path, _ = saved
    lambdas = keras.Sequential([keras.Input((8, 6)), keras.layers.Lambda(lambda x: x)])
    lambdas.save(path)
    with pytest.raises(TrainedModelError):
        Trained(path)


BOTH = """
import sys
sys.path[:0] = {paths!r}
from fakes import MemoryStorage, make_catalog, make_contents
from dnnbench.config import expand_settings

def torch_epoch():
    from dnnbench.datasets.torch import TorchImageClassificationDataset
    from dnnbench.datasets.torch_loader import MeteredLoader
    dataset = TorchImageClassificationDataset()
    dataset.bind(MemoryStorage(make_contents(20)), make_catalog(make_contents(20)))
    section = expand_settings({{}}, ["framework.PyTorch.DataLoader.num_workers=2"])[0].config.framework.pytorch.loader
    loader = MeteredLoader(dataset, 4, section)
    for _ in range(2):
        assert sum(len(labels) for _, labels in loader) == 20
    loader.close()

def tf_epoch():
    from dnnbench.datasets.tensorflow import MeteredPipeline, TensorFlowImageClassificationDataset
    dataset = TensorFlowImageClassificationDataset()
    dataset.bind(MemoryStorage(make_contents(20)), make_catalog(make_contents(20)))
    assert sum(len(labels) for _, labels in MeteredPipeline(dataset, 4)) == 20

if __name__ == "__main__":
    for step in {order}:
        step()
    print("done")
"""


@pytest.mark.parametrize("order", ["[tf_epoch, torch_epoch, tf_epoch]", "[torch_epoch, tf_epoch, torch_epoch]"])
def test_both_frameworks_load_in_one_process_in_either_order(order, tmp_path):
    script = tmp_path / "both.py"
    script.write_text(BOTH.format(paths=[str(ROOT), str(ROOT / "tests")], order=order))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


def test_forking_after_tensorflow_is_refused():
    from dnnbench.datasets.torch import TorchImageClassificationDataset
    from dnnbench.datasets.torch_loader import MeteredLoader

    dataset = TorchImageClassificationDataset()
    dataset.bind(MemoryStorage(make_contents(4)), make_catalog(make_contents(4)))
    settings = ["framework.PyTorch.DataLoader.multiprocessing_context=fork"]
    with pytest.raises(ConfigError, match="forkserver"):
        MeteredLoader(dataset, 2, expand_settings({}, settings)[0].config.framework.pytorch.loader)


def test_a_pipeline_and_a_trained_network_leave_nothing_behind():
    from tensorflow.python.eager import context

    pipeline = MeteredPipeline(_bound(), 5)
    config = expand_settings({}, ["framework.epochs=1"])[0].config

    def functions_after_training(loader):
        trainer = tensorflow_build.make_trainer(config, loader, 2)
        trainer.warm_up()
        trainer.train()
        del trainer
        gc.collect()
        return len(context.context().list_function_names())

    functions_after_training(pipeline)
    before = functions_after_training(pipeline)
    assert functions_after_training(pipeline) <= before
    batches, gone = pipeline.plain, weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert gone() is not None
    assert len(list(batches)) == 5
    del batches
    gc.collect()
    assert gone() is None


def _in_shards(kind, count=COUNT, **storage):
    """(storage, catalog) of samples in a few shards."""
    held = MemoryStorage(make_contents(count), **storage)
    pack(held, "", held, "", LABELS, kind=kind, shard_bytes=9000, progress=False)
    return held, sharded_catalog(held, [""], LABELS, list_shards(held, [""], kind, 2))


def _sharded(storage, catalog, *settings, access="random", share=RankShare()):  # noqa: B008 (frozen)
    config = expand_settings({}, ["framework.batch_size=4", "dataset.label=[roses,tulips]", *settings])[0].config
    return tensorflow_build.make_loader(config, storage, catalog, access, share)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("settings", [(), ("framework.TensorFlow.reading=concurrent",), ("dataset.shards.read=whole",)])
def test_samples_in_shards_come_once_in_the_order_of_pytorchs_and_are_accounted_for(kind, settings):
    storage, catalog = _in_shards(kind)
    range_of = "dataset.shards.range_mib=0.003"
    loader = _sharded(storage, catalog, range_of, *settings)
    twin = torch_build.make_loader(
        expand_settings({}, ["framework.batch_size=4", "dataset.label=[roses,tulips]", range_of, *settings,
                             "framework.PyTorch.DataLoader.num_workers=0"])[0].config,
        storage, catalog, "random",
    )  # fmt: skip
    workload = Loading(storage, catalog, loader, "tf loader random")
    orders = []
    for number in range(2):
        workload.prepare(number)
        batches = list(loader)
        orders.append([int(value) for images, _ in batches for value in images[:, 0, 0].numpy()])
        one = workload.account()
        assert (one.objects, one.used_bytes) == (COUNT, catalog.total_bytes)
        assert len(batches) == len(loader)
        for images, labels in batches:
            assert (images[:, 0, 0].numpy() % 2 == labels.numpy()).all()
    assert sorted(orders[0]) == list(range(COUNT))
    assert orders[0] != orders[1]
    assert orders == [[int(v) for images, _ in twin for v in images[:, 0, 0]] for _ in range(2)]


@pytest.mark.parametrize("kind", FORMATS)
def test_ranks_share_the_shards_with_as_many_batches(kind):
    storage, catalog = _in_shards(kind, 21)
    came, lengths = [], set()
    for rank in range(3):
        loader = _sharded(storage, catalog, share=RankShare(rank, 3))
        came += [int(value) for images, _ in loader for value in images[:, 0, 0].numpy()]
        lengths.add(len(loader))
    assert sorted(came) == list(range(21))
    assert lengths == {2}


@pytest.mark.parametrize("position", [2, COUNT - 1])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_shard_is_named_with_the_byte(kind, position):
    storage, catalog = _in_shards(kind)
    key, begin = catalog.shards.keys[catalog.shards.shard_of(position)], int(catalog.shards.begins[position])
    data = bytearray(storage.contents[key])
    # Of a tar the header's checksum tells, of a TFRecord the record's CRC.
    data[begin + 40] ^= 0x55
    storage.contents[key] = bytes(data)
    loader = _sharded(storage, catalog, "dataset.shards.read=whole", access="sequential")
    with pytest.raises(CorruptError, match=f"at byte {begin:,}:") as caught:
        list(loader)
    assert caught.value.key == key


@pytest.mark.parametrize("shuffle_buffer", [0, 8])
def test_ranks_read_everything_once_together_and_other_parts_in_each_pass(shuffle_buffer):
    contents = make_contents(21)
    section = Config().framework.tensorflow.model_copy(update={"shuffle_buffer": shuffle_buffer})
    parts = []
    for rank in range(2):
        dataset = TensorFlowImageClassificationDataset()
        dataset.bind(MemoryStorage(contents), make_catalog(contents))
        pipeline = MeteredPipeline(dataset, 4, section, share=RankShare(rank, 2))
        batches = [len(list(pipeline)) for _ in range(2)]
        assert batches == [len(pipeline)] * 2
        parts.append([set(epoch.indices.tolist()) for epoch in pipeline.take_epochs()])
    for first, second in zip(*parts, strict=True):
        assert not first & second
        assert first | second == set(range(len(contents)))
    assert parts[0][0] != parts[0][1]


def test_a_rank_makes_two_batches_of_its_last_one_where_others_have_one_more():
    contents = make_contents(17)
    sizes = []
    for rank in range(2):
        dataset = TensorFlowImageClassificationDataset()
        dataset.bind(MemoryStorage(contents), make_catalog(contents))
        pipeline = MeteredPipeline(dataset, 4, share=RankShare(rank, 2))
        sizes.append([len(labels) for _, labels in pipeline])
    assert sizes == [[4, 3, 1], [4, 4, 1]]

"""``python -m dnnbench check CONFIG``: would a long run start? Tries each layer once, and says what to mend."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dnnbench.config import Config, FsStorage, expand_settings, exposed_secrets, load_config
from dnnbench.errors import DnnbenchError, MeasurementError
from dnnbench.secrets import hide_secrets
from dnnbench.storage.fs import FsStorage as FileStorage

ONE_PAGE = 1000


class _Report:
    """Prints a line per step and remembers whether any failed."""

    def __init__(self) -> None:
        self.failed = False

    def step(self, name: str, work: Callable[[], tuple[str, Any]]) -> Any:
        """Runs ``work``, which returns (what to say, its result); None after a failure."""
        try:
            told, result = work()
        except DnnbenchError as exc:
            self.failed = True
            print(f"FAIL  {name}: {exc}")
            return None
        except Exception as exc:
            # The user's own dataset, network or trainer: its author needs the traceback.
            self.failed = True
            print(f"FAIL  {name}: {type(exc).__name__}: {exc}")
            hide_secrets(exc)
            traceback.print_exception(exc, file=sys.stdout)
            return None
        print(f"ok    {name}: {told}")
        return result


def check_configuration(options: argparse.Namespace) -> int:
    """Checks the storage that the configuration selects, from its reading to one batch; 0 where all is well."""
    report = _Report()
    path = Path(options.config)

    def read() -> tuple[str, tuple[Config, bool]]:
        data = load_config(path)
        for warning in exposed_secrets(path):
            print(f"warn  {warning}")
        config = expand_settings(data, [], str(path))[0].config
        return f"{path} (hash {config.hash()})", (config, "storage" in data)

    known = report.step("configuration", read)
    if known is not None:
        config, has_storage = known
        with contextlib.ExitStack() as opened:
            if not has_storage:
                config = opened.enter_context(_on_synthetic_data(config))
                print("--    storage: none is configured, so a run makes its own data; here are a few such files")
                _tell_servers()
            report.step("outputs", partial(_check_outputs, config))
            _check_storage(report, config)
    print("a run would not start: mend the above" if report.failed else "a run would start")
    return int(report.failed)


def _tell_servers() -> None:
    """Which local servers a run can start: a run without any still measures files."""
    from dnnbench.servers import KINDS, ServerError, installed_version

    for kind in KINDS:
        try:
            told = f"{installed_version(kind)}, for --dnn-server {kind}"
        except ServerError as exc:
            told = str(exc)
        print(f"--    server {kind}: {told}")


@contextlib.contextmanager
def _on_synthetic_data(config: Config) -> Iterator[Config]:
    """The configuration over a few synthetic images in a folder that is removed at the end."""
    from dnnbench.manifest import write_manifests
    from dnnbench.synth import SynthSpec, image, keys
    from dnnbench.transfer import Item, transfer

    spec = SynthSpec(labels=tuple(config.dataset.label), sources=1, images_per_category=3, median_bytes=20_000)
    with tempfile.TemporaryDirectory(prefix="dnnbench-") as folder:
        made: list[Item] = [(key, None, partial(image, spec, *place)) for key, place in keys(spec)]
        digests: dict[str, bytes] = {}
        transfer(made, FileStorage(), folder, progress=False, digests=digests)
        write_manifests(FileStorage(), folder, made, digests)
        if config.dataset.format != "files":
            from dnnbench.pack import pack

            kind, labels = config.dataset.format, config.dataset.label
            pack(FileStorage(), folder, FileStorage(), folder, labels, kind=kind, progress=False)
        yield config.with_storage(format="fs", name="fs", fs=FsStorage(data_dir=[f"{folder}/source1"]))


def _check_storage(report: _Report, config: Config) -> None:
    from dnnbench.storage.open import clients_of

    name = config.storage.selected
    for client in clients_of(config, name):
        storage = report.step(f"storage {name}", partial(_open, config, name, client))
        catalog = storage and report.step("listing", partial(_list, config, storage))
        if catalog is None or not report.step("read and decode", partial(_read, config, storage, catalog)):
            continue
        for framework in config.framework.names:
            report.step(f"one batch, {framework}", partial(_batch, config, storage, catalog, framework))


def _open(config: Config, name: str, client: str) -> tuple[str, Any]:
    from dnnbench.storage.open import open_storage

    storage = open_storage(config, name, client)
    settings = storage.settings()
    where = settings.get("endpoint") or "local files"
    return f"{storage.label} at {where}", storage


def _list(config: Config, storage: Any) -> tuple[str, Any]:
    """One page of each source and category, as a catalog."""
    from dnnbench.catalog import list_catalog
    from dnnbench.manifest import check_verifiable, expecting
    from dnnbench.storage.open import sources_of

    class OnePage:
        """The storage, with listings that stop after a page."""

        name, label = storage.name, storage.label

        def list_many(self, prefixes: Sequence[str], workers: int) -> Any:
            return ((number, list(itertools.islice(storage.list(p), ONE_PAGE))) for number, p in enumerate(prefixes))

    page: Any = OnePage()
    sources, labels = sources_of(config, storage.name), config.dataset.label
    if config.dataset.format != "files":
        return _list_shards(config, storage, sources)
    listed = list_catalog(page, sources, labels, config.execution.workers)
    catalog = expecting(config.dataset.verify, storage, sources, listed, whole=False)
    check_verifiable(storage, catalog)
    return f"{len(sources)} sources x {len(labels)} categories, {len(catalog):,} images on the first pages", catalog


def _list_shards(config: Config, storage: Any, sources: Sequence[str]) -> tuple[str, Any]:
    """All shards: there are few."""
    from dnnbench.shards import list_shards, sharded_catalog

    kind, folder = config.dataset.format, config.dataset.shards.folder
    objects = list_shards(storage, sources, kind, config.execution.workers, folder)
    catalog = sharded_catalog(storage, sources, config.dataset.label, objects)
    return f"{len(sources)} sources, {len(objects):,} {kind} shards of {len(catalog):,} images", catalog


def _read(config: Config, storage: Any, catalog: Any) -> tuple[str, bool]:
    from dnnbench.datasets.shard_reads import read_sample
    from dnnbench.images import DecodeError, decode
    from dnnbench.storage.errors import CorruptError

    key, size_bytes = catalog.key(0), catalog.size_bytes(0)
    in_shard = catalog.shards is not None
    data = bytes(read_sample(storage, catalog, 0)) if in_shard else storage.read(*catalog.item(0))
    height, width = config.dataset.image_dimension
    try:
        pixels = decode(
            data, (height, width), config.dataset.image_mode == "colour", config.dataset.decode == "reduced"
        )
    except DecodeError as exc:
        raise CorruptError(storage.label, key, str(exc)) from exc
    return f"{key}: {size_bytes:,} bytes, {pixels.shape} pixels", True


def _batch(config: Config, storage: Any, catalog: Any, framework: str) -> tuple[str, bool]:
    """One batch through the loader and, where a run trains, the network."""
    import numpy as np

    from dnnbench.plugins import OtherFrameworkError
    from dnnbench.trained import load_builder

    build = load_builder({"PyTorch": "torch", "TensorFlow": "tf"}[framework])
    steps = config.execution.steps
    try:
        if catalog.shards is not None:
            return _first_of_shards(config, storage, catalog, build), True
        # Spread over the catalog, so that a batch has more than one category.
        count = min(config.framework.batch_size, len(catalog))
        some = catalog.select(np.linspace(0, len(catalog) - 1, count).astype(int))
        loader = build.make_loader(config, storage, some, "random")
        try:
            storage.meter.take()
            if not (steps.model and (steps.training or steps.inference)):
                for _ in loader:
                    pass
                samples = _check_passes(storage, some, loader)
                return f"{samples} images loaded; execution.steps trains nothing", True
            return _train(config, storage, some, build, loader), True
        finally:
            loader.close()
    except OtherFrameworkError as exc:
        if "name" in config.framework.model_fields_set:
            raise
        return f"will be skipped: {exc}", True


def _first_of_shards(config: Config, storage: Any, catalog: Any, build: Any) -> str:
    """The first batch that comes out of the shards: an epoch would read all of them."""
    loader = build.make_loader(config, storage, catalog, "random")
    try:
        images, labels = loader.keep(next(iter(loader)))
        steps = config.execution.steps
        if not (steps.model and (steps.training or steps.inference)):
            return f"{len(labels)} images loaded; execution.steps trains nothing"
        batch = build.memory_loader([(images, labels)], loader)
        one_epoch = config.model_copy(update={"framework": config.framework.model_copy(update={"epochs": 1})})
        trainer = build.make_trainer(one_epoch, batch, len(catalog.label_names))
        trainer.warm_up()
        trainer.train()
        return f"{type(trainer.model).__name__} trained on {len(labels)} images"
    finally:
        loader.close()


def _train(config: Config, storage: Any, catalog: Any, build: Any, loader: Any) -> str:
    from dnnbench.training.history import learned

    one_epoch = config.model_copy(update={"framework": config.framework.model_copy(update={"epochs": 1})})
    trainer = build.make_trainer(one_epoch, loader, len(catalog.label_names))
    trainer.warm_up()
    trainer.train()
    samples = _check_passes(storage, catalog, loader, type(trainer).__name__)
    if config.execution.steps.inference:
        build.Predictor(config, trainer.model)(loader.first_batch[0])
    history = learned(trainer.history, type(trainer).__name__)
    loss = history[-1].get("loss") if history else None
    trained = f"{type(trainer.model).__name__} trained on {samples} images"
    return trained + ("" if loss is None else f", loss {loss:.2f}")


def _check_passes(storage: Any, catalog: Any, loader: Any, trainer: str = "") -> int:
    """Holds what was read against the catalog, as a run does; returns the samples of a pass."""
    from dnnbench.catalog import CHECKSUM
    from dnnbench.metrics import check_pass

    passes = loader.take_epochs()
    if not passes:
        raise MeasurementError(f"training.name: {trainer}: its train() read nothing from its loader")
    for one in passes:
        checksums = catalog.verify == CHECKSUM
        check_pass(storage.label, one.indices, one.tally, catalog.sizes_bytes, loader.expected_samples, checksums)
    return int(passes[0].samples)


def _check_outputs(config: Config) -> tuple[str, bool]:
    from dnnbench.metrics_csv import csv_path
    from dnnbench.outputs import check_folder_writable, check_writable

    path = csv_path(config) if config.execution.steps.metrics else None
    if path is not None:
        check_writable("metrics.path", path)
    if save_dir := config.save_dir():
        check_folder_writable("model.save_dir", save_dir)
    told = [
        f"metrics in {path}" if path else "",
        f"networks in {config.model.save_dir}" if config.model.save_dir else "",
    ]
    return ", ".join(filter(None, told)) or "none but the JSON", True

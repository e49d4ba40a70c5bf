"""``python -m dnnbench check CONFIG``: would a long run start? Tries each layer once, and says what to mend."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dnnbench.config import Config, expand_settings, load_config
from dnnbench.errors import DnnbenchError

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
        except ImportError as exc:
            self.failed = True
            print(f"FAIL  {name}: {exc}; pip install -r requirements.txt brings what dnnbench needs")
            return None
        print(f"ok    {name}: {told}")
        return result


def check_configuration(options: argparse.Namespace) -> int:
    """Checks the storage that the configuration selects, from its reading to one batch; 0 where all is well."""
    report = _Report()
    path = Path(options.config)

    def read() -> tuple[str, Config]:
        config = expand_settings(load_config(path), [], str(path))[0].config
        return f"{path} (hash {config.hash()})", config

    config = report.step("configuration", read)
    if config is not None:
        _check_storage(report, config)
    print("a run would not start: mend the above" if report.failed else "a run would start")
    return int(report.failed)


def _check_storage(report: _Report, config: Config) -> None:
    from dnnbench.storage.open import clients_of

    name = config.storage.selected
    for client in clients_of(config, name):
        storage = report.step(f"storage {name}", partial(_open, config, name, client))
        catalog = storage and report.step("listing", partial(_list, config, storage))
        if catalog is None or not report.step("read and decode", partial(_read, config, storage, catalog)):
            continue
        for framework in config.framework.names:
            report.step(f"one batch, {framework}", partial(_train, config, storage, catalog, framework))


def _open(config: Config, name: str, client: str) -> tuple[str, Any]:
    from dnnbench.storage.open import open_storage

    storage = open_storage(config, name, client)
    settings = storage.settings()
    where = settings.get("endpoint") or "local files"
    return f"{storage.label} at {where}", storage


def _list(config: Config, storage: Any) -> tuple[str, Any]:
    """One page of each source and category, as a catalog."""
    from dnnbench.catalog import list_catalog
    from dnnbench.storage.open import sources_of

    class OnePage:
        """The storage, with listings that stop after a page."""

        name, label = storage.name, storage.label

        def list(self, prefix: str) -> Any:
            return itertools.islice(storage.list(prefix), ONE_PAGE)

    page: Any = OnePage()
    sources, labels = sources_of(config, storage.name), config.dataset.label
    catalog = list_catalog(page, sources, labels, config.execution.workers)
    return f"{len(sources)} sources x {len(labels)} categories, {len(catalog):,} images on the first pages", catalog


def _read(config: Config, storage: Any, catalog: Any) -> tuple[str, bool]:
    from dnnbench.images import DecodeError, decode
    from dnnbench.storage.errors import CorruptError

    key, size_bytes = next(catalog.items([0]))
    data = storage.read(key, size_bytes)
    height, width = config.dataset.image_dimension
    try:
        pixels = decode(data, (height, width), config.dataset.image_mode == "colour")
    except DecodeError as exc:
        raise CorruptError(storage.label, key, str(exc)) from exc
    return f"{key}: {size_bytes:,} bytes, {pixels.shape} pixels", True


def _train(config: Config, storage: Any, catalog: Any, framework: str) -> tuple[str, bool]:
    import numpy as np

    from dnnbench.trained import load_builder

    build = load_builder({"PyTorch": "torch", "TensorFlow": "tf"}[framework])
    # Spread over the catalog, so that a batch has more than one category.
    count = min(config.framework.batch_size, len(catalog))
    some = catalog.select(np.linspace(0, len(catalog) - 1, count).astype(int))
    framework_config = config.framework.model_copy(update={"epochs": 1})
    one_epoch = config.model_copy(update={"framework": framework_config})
    loader = build.make_loader(one_epoch, storage, some, "random")
    try:
        trainer = build.make_trainer(one_epoch, loader, len(catalog.label_names))
        trainer.train()
    finally:
        loader.close()
    loss = trainer.history[-1].get("loss") if trainer.history else None
    return f"{type(trainer.model).__name__} trained on {count} images" + (f", loss {loss:.2f}" if loss else ""), True

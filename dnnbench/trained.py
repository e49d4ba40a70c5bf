"""Trained networks: saved beside a description of what they are, loaded again, and asked about single images."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dnnbench.catalog import single
from dnnbench.config import Config, expand_settings
from dnnbench.errors import DnnbenchError
from dnnbench.images import is_image_name
from dnnbench.plugins import absolute
from dnnbench.storage.base import Entry, Storage

BUILDERS = {"torch": "dnnbench.training.torch_build", "tf": "dnnbench.training.tensorflow_build"}


class TrainedModelError(DnnbenchError):
    """A saved network that cannot be used."""


def load_builder(framework: str) -> Any:
    """The file that builds a framework's parts: imported here, so that only what runs is loaded."""
    if framework == "tf":
        # Its start fills the screen with what it found on the machine; what goes wrong is raised.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return importlib.import_module(BUILDERS[framework])


def save_trained(build: Any, config: Config, model: Any, name: str) -> Path:
    """Saves a network in ``model.save_dir`` with its description beside it (``.json``); returns its path."""
    folder = config.save_dir() or Path()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{build.MODEL_SUFFIX}"
    build.save_model(model, path)
    resolved = config.resolved()
    parts = {key: resolved[key] | {"name": absolute(resolved[key]["name"])} for key in ("dataset", "model")}
    described = {"framework": name.partition("-")[0], "configuration": parts}
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(described, indent=2) + "\n")
    return path


class Trained:
    """A saved network and what it was trained for. Raises `TrainedModelError` where the files don't fit."""

    def __init__(self, path: Path) -> None:
        described_in = path.with_suffix(path.suffix + ".json")
        for file in (path, described_in):
            if not file.is_file():
                raise TrainedModelError(f"{file}: there is no such file; set model.save_dir and run test_inference")
        try:
            described = json.loads(described_in.read_text())
            self.config = expand_settings(described["configuration"], [], str(described_in))[0].config
            build = load_builder(described["framework"])
        except (ValueError, KeyError, TypeError) as exc:
            raise TrainedModelError(f"{described_in}: does not describe a network ({exc!r})") from exc
        self.labels = self.config.dataset.label
        model = build.make_model(self.config, len(self.labels))
        try:
            build.load_weights(model, path)
        except Exception as exc:
            # What torch, Keras and zipfile raise for a file that is damaged, or not theirs, has no common base.
            first_line = str(exc).strip().partition("\n")[0]
            raise TrainedModelError(f"{path}: cannot be loaded as weights of this network ({first_line})") from exc
        self._predictor = build.Predictor(self.config, model)
        self._dataset = build.make_dataset(self.config)

    def predict(self, storage: Storage, entry: Entry) -> tuple[str, float]:
        """(category, its probability) of one image of a storage, read as the dataset read those of the training.

        A network that has more outputs than categories may see none of these in an image: the
        category is then ``-``. Raises the errors of the storage.
        """
        self._dataset.bind(storage, single(entry, self.labels))
        image, _ = self._dataset[0]
        scores = self._predictor.scores(np.asarray(image)[None])[0]
        best = int(scores.argmax())
        return self.labels[best] if best < len(self.labels) else "-", float(scores[best])


def images_at(storage: Storage, prefix: str) -> Iterator[Entry]:
    """The image at a key, or every image below a prefix."""
    if is_image_name(prefix):
        yield Entry(prefix, storage.size(prefix))
        return
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    yield from (entry for entry in sorted(storage.list(folder)) if is_image_name(entry.key))

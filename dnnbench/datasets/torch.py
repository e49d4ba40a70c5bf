"""Datasets of PyTorch over any storage: the classes that a user subclasses. Loading is in `torch_loader`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.images import DecodeError, decode
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import CorruptError


class ListedKey(str):
    """An object's key (for a file system, its path) that knows the size it was listed with."""

    size_bytes: int

    def __new__(cls, key: str, size_bytes: int) -> ListedKey:
        listed = super().__new__(cls, key)
        listed.size_bytes = size_bytes
        return listed

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.size_bytes


class RandomAccessDataset(Dataset[tuple[Any, int]]):
    """Map-style: ``dataset[i]`` is ``(image, label)`` of the catalog's sample ``i``.

    Subclasses override `read_file_system_data` or `read_s3_object`; each gets the object's key and
    returns the image (tensor, array or PIL image). ``config`` is the configuration as a dictionary,
    ``config["dataset"]["image_dimension"]`` and so on; secrets are masked in it, and
    ``self.storage`` is signed in. ``transform`` is applied to what was read.
    """

    def __init__(self, transform: Callable[[Any], Any] | None = None, config: dict[str, Any] = {}) -> None:  # noqa: B006 (the seed's signature; never changed)
        super().__init__()
        dataset = Config().resolved()["dataset"] | dict(config.get("dataset", {}))
        self.transform = transform
        self.config = config
        self.label = self.labels = list(dataset["label"])
        self.image_dimension = tuple(dataset["image_dimension"])
        self.image_height, self.image_width = self.image_dimension
        self.storage: Storage
        self.catalog: Catalog

    def bind(self, storage: Storage, catalog: Catalog) -> None:
        """Says where the samples are; called once, before the first read."""
        self.storage, self.catalog = storage, catalog

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        key = ListedKey(self.catalog.key(index), self.catalog.size_bytes(index))
        try:
            image = self.read_file_system_data(key) if self.storage.name == "fs" else self.read_s3_object(key)
        except DecodeError as exc:
            raise CorruptError(self.storage.label, key, str(exc)) from exc
        if self.transform is not None:
            image = self.transform(image)
        return image, self.catalog.label(index)

    def read_file_system_data(self, image: str) -> Any:
        """Reads and decodes the file ``image`` (its path)."""
        return self.decode(self.read_bytes(image))

    def read_s3_object(self, image: str) -> Any:
        """Reads and decodes the object ``image`` (its key)."""
        return self.decode(self.read_bytes(image))

    def read_bytes(self, image: str) -> bytes:
        """The object's content, through the storage: counted, timed and held against its listed size."""
        return self.storage.read(str(image), getattr(image, "size_bytes", None))

    def decode(self, data: bytes) -> Any:
        """Image bytes -> uint8 tensor [height, width], grey."""
        return torch.from_numpy(decode(data, self.image_dimension))


class TorchImageClassificationDataset(RandomAccessDataset):
    """The default: grey images of ``dataset.image_dimension``."""

    def __init__(self, config: dict[str, Any] = {}) -> None:  # noqa: B006 (as above)
        super().__init__(transform=None, config=config)


class SequentialDataset(IterableDataset[tuple[int, tuple[Any, int]]]):
    """Iterable: a dataset's samples in catalog order, each loader worker its own contiguous share.

    Yields (index, sample). With ``drop_last`` a worker leaves out the end of its share that makes
    no whole batch, before it reads it.
    """

    def __init__(self, dataset: RandomAccessDataset, batch_size: int = 1, drop_last: bool = False) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last

    def share(self, worker: int, workers: int) -> range:
        """The indices that one of ``workers`` reads."""
        bounds = np.linspace(0, len(self.dataset), workers + 1).astype(int).tolist()
        start, end = bounds[worker], bounds[worker + 1]
        if self.drop_last:
            end -= (end - start) % self.batch_size
        return range(start, end)

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, int]]]:
        info = get_worker_info()
        for index in self.share(info.id, info.num_workers) if info else self.share(0, 1):
            yield index, self.dataset[index]

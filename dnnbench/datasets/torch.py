"""Datasets of PyTorch over any storage: the classes that a user subclasses. Loading is in `torch_loader`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from dnnbench.datasets.samples import ImageSamples, share_of
from dnnbench.datasets.shares import ALONE, RankShare, even_part


class RandomAccessDataset(ImageSamples, Dataset[tuple[Any, int]]):
    """Map-style: ``dataset[i]`` is ``(image, label)`` of the catalog's sample ``i``; see `ImageSamples`."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """A whole batch's samples, in the order of ``indices``; torch asks for it where there is this method."""
        samples: list[Any] = [None] * len(indices)
        for position, sample in self.read_samples(indices):
            samples[position] = sample
        return samples

    def collate_fn(self, samples: list[tuple[Any, int]]) -> Any:
        """A list of (image, label) -> a batch, as torch's ``collate_fn``; subclasses may override it."""
        return default_collate(samples)

    def decode(self, data: bytes) -> Any:
        """Image bytes -> uint8 tensor [height, width], or [height, width, 3] in colour."""
        return torch.from_numpy(super().decode(data))


class TorchImageClassificationDataset(RandomAccessDataset):
    """The default: grey images of ``dataset.image_dimension``."""

    def __init__(self, config: dict[str, Any] = {}) -> None:  # noqa: B006 (as above)
        super().__init__(transform=None, config=config)


class SequentialDataset(IterableDataset[tuple[int, tuple[Any, int]]]):
    """Iterable: a dataset's samples in catalog order, each rank and loader worker its own contiguous share.

    Yields (index, sample). With ``drop_last`` a worker leaves out the end of its share that makes
    no whole batch, before it reads it.
    """

    def __init__(
        self, dataset: RandomAccessDataset, batch_size: int = 1, drop_last: bool = False, rank_share: RankShare = ALONE
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.drop_last, self.rank_share = dataset, batch_size, drop_last, rank_share

    def share(self, worker: int, workers: int) -> range:
        """The indices that one of this rank's ``workers`` reads."""
        if self.rank_share.ranks == 1:
            return share_of(len(self.dataset), worker, workers, self.batch_size, self.drop_last)
        # Whole batches for each worker, of which all ranks have as many.
        start, sizes = self.rank_share.of(len(self.dataset)).start, self._sizes_of_rank()
        batches = even_part(len(sizes), worker, workers)
        return range(start + sum(sizes[: batches.start]), start + sum(sizes[: batches.stop]))

    def batch_sizes(self, worker: int, workers: int) -> list[int]:
        """The sizes of the batches of its share."""
        if self.rank_share.ranks == 1:
            return ALONE.batch_sizes(len(self.share(worker, workers)), self.batch_size)
        sizes = self._sizes_of_rank()
        return [sizes[number] for number in even_part(len(sizes), worker, workers)]

    def _sizes_of_rank(self) -> list[int]:
        return self.rank_share.batch_sizes(len(self.dataset), self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, int]]]:
        info = get_worker_info()
        share = self.share(info.id, info.num_workers) if info else self.share(0, 1)
        # Across the ends of batches: reads go on while a batch is made.
        for position, sample in self.dataset.read_samples(share, in_order=True):
            yield share[position], sample

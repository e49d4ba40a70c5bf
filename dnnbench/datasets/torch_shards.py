"""A dataset's samples from shards, as PyTorch's workers read them: whole batches, with their account."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dnnbench.datasets.shard_reads import ShardPlan, check_reads_shards, parser_of
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.datasets.torch_worker import Envelope, Shipped, pack_batch


class ShardedDataset:
    """A dataset that is bound to a catalog in shards, and the plan by which it is read."""

    def __init__(self, dataset: RandomAccessDataset, plan: ShardPlan) -> None:
        check_reads_shards(dataset)
        self.dataset, self.plan = dataset, plan

    def __len__(self) -> int:
        return len(self.dataset)


class ShardBatches(Shipped, IterableDataset[Envelope]):
    """Yields a worker's batches of pass ``number``; yields nothing while ``armed`` is 0. Both are in shared memory."""

    def __init__(self, sharded: ShardedDataset, armed: torch.Tensor, number: torch.Tensor) -> None:
        super().__init__(sharded.dataset)
        self.sharded, self.armed, self.number = sharded, armed, number

    def _state(self) -> tuple[Any, ...]:
        return (self.sharded, self.armed, self.number)

    def __iter__(self) -> Iterator[Envelope]:
        if not self.armed.item():
            return
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        dataset, plan = self.dataset, self.sharded.plan
        used_bytes = 0

        def decoded() -> Iterator[tuple[int, tuple[Any, int]]]:
            nonlocal used_bytes
            read = plan.samples(
                dataset.storage, dataset.catalog.sizes_bytes, parser_of(plan.shards),
                int(self.number.item()), worker, workers,
            )  # fmt: skip
            for index, content in read:
                used_bytes += len(content)
                yield index, dataset.sample_of(index, content)

        samples = decoded()
        for size in plan.worker_batches(worker, workers):
            envelope = pack_batch(dataset, partial(itertools.islice, samples, size))
            envelope.used_bytes, used_bytes = used_bytes, 0
            yield envelope

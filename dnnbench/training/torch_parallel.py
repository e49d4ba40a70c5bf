"""A network that several ranks train together: DistributedDataParallel, over NCCL where each has a GPU, else gloo."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from dnnbench.ranks import Ranks
from dnnbench.ranks.torch_ranks import GLOO, NCCL, TorchRanks


class RankModel(DistributedDataParallel):
    """The network as each rank trains it; what only the network itself has, such as its loss, is asked of that."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def backend_of(device: torch.device, local_ranks: int) -> str:
    """``nccl`` where every rank of this host has a GPU of its own; NCCL refuses two ranks on one."""
    return NCCL if device.type == "cuda" and local_ranks <= torch.cuda.device_count() else GLOO


def trained_together(model: Any, device: torch.device, ranks: Ranks) -> Any:
    """The network on ``device``, its gradients those of all ranks; called by every one of them at the same time."""
    if not isinstance(ranks, TorchRanks):
        return model
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model = model.to(device)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        # Nothing is learned, so there is nothing to hand around; torch refuses it.
        return model
    devices = [device] if device.type == "cuda" else None
    return RankModel(model, device_ids=devices, process_group=ranks.group(backend_of(device, ranks.local_ranks)))


def local_gpu(ranks: Ranks) -> int:
    """Which GPU of its host is a rank's: each has one of its own where there are enough."""
    return ranks.local_rank % max(torch.cuda.device_count(), 1)

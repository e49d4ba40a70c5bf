"""A network of TensorFlow that several ranks train together: ``MultiWorkerMirroredStrategy``, of the whole launch."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

from dnnbench.ranks import Ranks
from dnnbench.ranks.torch_ranks import TorchRanks

# One of a process: TensorFlow takes its place in a cluster when it starts, and keeps it.
_STRATEGIES: list[Any] = []


def start(ranks: Ranks) -> None:
    """Makes this process one of TensorFlow's workers; called by all ranks before any of TensorFlow's operations."""
    if _STRATEGIES or not isinstance(ranks, TorchRanks) or ranks.ranks == 1:
        return
    if "TF_CONFIG" not in os.environ:
        workers = ranks.all_gather(ranks.free_address())
        task = {"type": "worker", "index": ranks.rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    ranks.sync("TensorFlow's cluster")
    _STRATEGIES.append(tf.distribute.MultiWorkerMirroredStrategy())
    ranks.sync("TensorFlow's cluster is there")


def strategy_of(ranks: Ranks) -> Any:
    """The strategy that the ranks train with; None where one trains alone."""
    return _STRATEGIES[0] if _STRATEGIES and ranks.ranks > 1 else None


def scope_of(strategy: Any) -> AbstractContextManager[Any]:
    """Where a network has to be made for the strategy."""
    scope: AbstractContextManager[Any] = nullcontext() if strategy is None else strategy.scope()
    return scope

"""What building a network and a trainer from the configuration has in common between the frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnbench.config import Config, ConfigError
from dnnbench.plugins import construct, load_class
from dnnbench.ranks import Ranks


def check_in_step(ranks: Ranks, batches: int) -> None:
    """Raises `ConfigError` where ranks that train together have different numbers of batches; called by all of them."""
    found = ranks.all_gather(batches)
    if len(set(found)) > 1:
        raise ConfigError(
            f"framework.batch_size: ranks that train together take every step together, but have from {min(found)} to "
            f"{max(found)} batches; set a larger batch_size, or drop_last to true"
        )


def build_model(config: Config, classes: int, builtins: Mapping[str, str], base: type) -> Any:
    """The configured network for ``classes`` categories; the caller has seeded its framework."""
    model_class = load_class("model.name", config.model.name, builtins, base)
    channels = 3 if config.dataset.image_mode == "colour" else 1
    model = construct(model_class, tuple(config.dataset.image_dimension), classes=classes, channels=channels)
    model.loss_function_name = config.model.loss_function
    return model


def build_trainer(config: Config, loader: Any, model: Any, device: Any, builtins: Mapping[str, str], base: type) -> Any:
    """The configured trainer of a network over a loader."""
    trainer_class = load_class("training.name", config.training.name, builtins, base)
    return trainer_class(config=config.resolved(), dataloader=loader, model=model, device=device)

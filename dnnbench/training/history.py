"""What a trainer tells of its epochs, whatever it tells it in -> loss and accuracy of each, as plain numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("loss", "accuracy")


def learned(history: Any, name: str) -> list[dict[str, float]]:
    """``loss`` and ``accuracy`` (0 to 1) of each entry of a trainer's ``history``; ``name`` is the trainer's.

    Takes a list of dictionaries, a dictionary of lists, or what Keras's ``fit`` returns. What is
    no such thing, or no such number, is left out with a warning: it would be no figure.
    """
    history = getattr(history, "history", history)
    if isinstance(history, Mapping):
        columns = {key: history[key] for key in KEYS if _is_list(history.get(key))}
        history = [
            {key: values[i] for key, values in columns.items() if i < len(values)}
            for i in range(max(map(len, columns.values()), default=0))
        ]
    if not _is_list(history) or not all(isinstance(entry, Mapping) for entry in history):
        _left_out(name, "history is no list of one dictionary per epoch")
        return []
    return [{key: value for key in KEYS if (value := _number(name, entry, key)) is not None} for entry in history]


def of_passes(history: Sequence[dict[str, float]], passes: int) -> list[dict[str, float]]:
    """The entry of each pass over the loader, where there are as many; otherwise the last pass alone has the last."""
    if len(history) == passes:
        return list(history)
    # Which pass an entry is about, such as of training or of validation, cannot be known.
    return [{}] * (passes - 1) + [dict(history[-1]) if history else {}]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _number(name: str, entry: Mapping[str, Any], key: str) -> float | None:
    if entry.get(key) is None:
        return None
    try:
        value = float(entry[key])
    except (TypeError, ValueError):
        _left_out(name, f"{key} {entry[key]!r} is no number")
        return None
    if not math.isfinite(value):
        _left_out(name, f"{key} is {value}")
        return None
    if key == "accuracy" and not 0 <= value <= 1:
        _left_out(name, f"accuracy {value} is not between 0 and 1")
        return None
    return value


def _left_out(name: str, problem: str) -> None:
    warnings.warn(f"training.name: {name}: {problem}, and is left out of the record", stacklevel=2)

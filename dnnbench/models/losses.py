"""The name of a loss in the configuration -> a framework's loss. No framework is imported here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from dnnbench.config import ConfigError

# Other names of the default; the seed document's own spelling is one of them.
ALIASES = {
    "crossentropy": "crossentropyloss",
    "corssentrophy": "crossentropyloss",
    "sparsecategoricalcrossentropy": "crossentropyloss",
}


def find_loss(wanted: str, known: Mapping[str, Any]) -> Any:
    """What ``known`` has under a name, compared without case and signs. Raises `ConfigError`.

    ``known`` is keyed by proper names; the first is the default. A placeholder in angle brackets,
    as the documentation's example has it, chooses nothing.
    """
    if not wanted.strip() or wanted.strip().startswith("<"):
        return next(iter(known.values()))
    by_plain = {_plain(name): name for name in known}
    plain = ALIASES.get(_plain(wanted), _plain(wanted))
    if plain not in by_plain:
        near = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.5)
        hint = f'; did you mean "{by_plain[near[0]]}"?' if near else ""
        raise ConfigError(f'model.loss_function: found "{wanted}", expected one of {", ".join(known)}{hint}')
    return known[by_plain[plain]]


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())

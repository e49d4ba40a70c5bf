"""Storages: one protocol (`base`), one error tree (`errors`), one file per backend."""

from dnnbench.storage.base import Entry, Meter, Storage
from dnnbench.storage.errors import (
    CorruptError,
    DeniedError,
    MisconfiguredError,
    NotFoundError,
    StorageError,
    TransientError,
    UnreachableError,
)

__all__ = [
    "CorruptError",
    "DeniedError",
    "Entry",
    "Meter",
    "MisconfiguredError",
    "NotFoundError",
    "Storage",
    "StorageError",
    "TransientError",
    "UnreachableError",
]

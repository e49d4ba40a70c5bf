"""Files that are written: whether they could be, tried before hours of measuring; those that go with their owner."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

from dnnbench.config import ConfigError


def check_writable(what: str, path: Path) -> None:
    """Raises `ConfigError`, which begins with ``what``, where the file could not be written or appended to."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{what}: {path}: there is no folder {folder}; make it first")
    if path.is_dir():
        raise ConfigError(f"{what}: {path}: is a folder; name a file")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            _write_into(folder)
    except OSError as exc:
        raise ConfigError(f"{what}: {path}: cannot be written ({exc.strerror})") from exc


def check_folder_writable(what: str, folder: Path) -> None:
    """Raises `ConfigError`, which begins with ``what``, where the folder could not be made or receive a file."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        _write_into(there)
    except OSError as exc:
        raise ConfigError(f"{what}: {folder}: cannot be written ({there}: {exc.strerror})") from exc


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it, so that nobody sees half of one.

    What is no file, such as ``/dev/stdout``, is written as it is. Raises `OSError`; then what was there still is.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_into(folder: Path) -> None:
    # Rights alone do not tell: a file system may be read-only, or no place for files at all.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dnnbench-"):
        pass


def finite(value: Any) -> Any:
    """The value with None for each NaN and infinity in it: Python writes them into JSON, which has none of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def goes_with(owner: object, path: str) -> None:
    """Removes a file when its owner goes, in the process that says so: others, forked from it, only map the file."""
    weakref.finalize(owner, _remove, path, os.getpid())


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        Path(path).unlink(missing_ok=True)

"""Brings objects to a storage, in parallel, and never over what is there unless that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from dnnbench.config import Config, ConfigError
from dnnbench.errors import DnnbenchError
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import NotFoundError
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.open import open_bucket, open_storage

# key below the destination, size in bytes where it is known, and what makes or reads the content
Item = tuple[str, int | None, Callable[[], bytes]]


class TransferError(DnnbenchError):
    """Something would be overwritten, or a key cannot be a path."""


@dataclass
class Transferred:
    """What a transfer did; ``skipped`` objects were there already with the same size."""

    objects: int = 0
    bytes: int = 0
    skipped: int = 0


def transfer(
    items: Iterable[Item],
    destination: Storage,
    prefix: str,
    *,
    total: int | None = None,
    overwrite: bool = False,
    concurrency: int = 16,
    progress: bool = True,
    digests: dict[str, bytes] | None = None,
) -> Transferred:
    """Writes the items below ``prefix``, ``concurrency`` at a time; a bar shows on a terminal.

    ``digests`` receives the SHA-256 of what was written, by the item's key.

    An object that exists is skipped where its size is that of the item (or the item's is not
    known), and is otherwise an error. Raises `TransferError` and the errors of the storages.
    """
    from tqdm import tqdm

    there = {} if overwrite else existing(destination, prefix)
    done = Transferred()
    bar = tqdm(total=total, unit="object", disable=None if progress else True)
    try:
        with ThreadPoolExecutor(concurrency) as pool:
            pending: set[Future[int]] = set()
            try:
                for path, make in _wanted(items, destination, prefix, there, done):
                    if len(pending) >= 2 * concurrency:
                        pending = _collect(pending, done, bar)
                    pending.add(pool.submit(_move, destination, prefix, path, make, digests))
                while pending:
                    pending = _collect(pending, done, bar)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        bar.close()
    return done


def existing(destination: Storage, prefix: str) -> dict[str, int]:
    """The objects below a place, by their keys, with their sizes; none where it is a folder that is yet to be made."""
    try:
        return {entry.key: entry.size_bytes for entry in destination.list(as_folder(prefix))}
    except NotFoundError:
        # A folder that is yet to be made. A missing bucket shows when the first object is written.
        return {}


def _wanted(
    items: Iterable[Item], destination: Storage, prefix: str, there: dict[str, int], done: Transferred
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The items that are to be written, with their keys at the destination."""
    for key, size_bytes, make in items:
        if destination.name == "fs":
            _check_path(key)
        path = as_folder(prefix) + key
        if path not in there:
            yield path, make
        elif size_bytes is None or there[path] == size_bytes:
            done.skipped += 1
        else:
            raise TransferError(
                f"{destination.label}: {path}: exists with {there[path]} bytes instead of {size_bytes}; "
                "use --overwrite to replace it, or another destination"
            )


def _check_path(key: str) -> None:
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise TransferError(f"{key!r}: cannot be a path below a folder; copy it to an S3 destination instead")


def _move(
    destination: Storage, prefix: str, path: str, make: Callable[[], bytes], digests: dict[str, bytes] | None
) -> int:
    data = make()
    destination.write(path, data)
    if digests is not None:
        digests[path[len(as_folder(prefix)) :]] = hashlib.sha256(data).digest()
    return len(data)


def _collect(pending: set[Future[int]], done: Transferred, bar: object) -> set[Future[int]]:
    finished, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        done.bytes += future.result()
        done.objects += 1
    elapsed_s = bar.format_dict["elapsed"]  # type: ignore[attr-defined]
    bar.set_postfix_str(f"{done.bytes / 1e6 / max(elapsed_s, 1e-9):.1f} MB/s", refresh=False)  # type: ignore[attr-defined]
    bar.update(len(finished))  # type: ignore[attr-defined]
    return left


def as_folder(prefix: str) -> str:
    """What the keys below a place begin with: "" or something that ends in "/"."""
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def parse_place(text: str, config: Config) -> tuple[Storage, str]:
    """The storage and prefix that a folder, ``s3://bucket/prefix``, ``dss`` or ``dss:prefix`` means.

    Credentials and endpoints are the configuration's. Raises `ConfigError`.
    """
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"{text}: expected s3://BUCKET/PREFIX")
        return open_bucket(config, bucket, config.storage.s3.client_libs[0]), prefix.strip("/")
    if text == "dss" or text.startswith("dss:"):
        prefix = text.removeprefix("dss").removeprefix(":")
        return open_storage(config, "dss"), prefix.strip("/")
    if not text:
        raise ConfigError("a place is a folder, s3://BUCKET/PREFIX, dss or dss:PREFIX (found nothing)")
    # The paths of files below "./" come without it.
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return FsStorage(), "" if text in ("", ".") else text.rstrip("/") or "/"


def items_of(source: Storage, prefix: str) -> list[Item]:
    """Every object of a source, to be read when its turn comes. Raises `TransferError` where there is none."""
    folder = as_folder(prefix)
    entries = sorted(source.list(folder))
    items: list[Item] = [
        (entry.key[len(folder) :], entry.size_bytes, lambda entry=entry: source.read(entry.key, entry.size_bytes))  # type: ignore[misc]
        for entry in entries
        if not entry.key.endswith("/")
    ]
    if not items:
        raise TransferError(f"{source.label}: {folder or 'the whole of it'}: there is nothing to copy")
    return items

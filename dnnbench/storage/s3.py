"""One bucket on one S3 endpoint (AWS or any other), through any of the client libraries."""

from __future__ import annotations

import difflib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from dnnbench.config import ConfigError, S3Credentials
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.key_ranges import list_in_ranges

# A client library's name -> the file that imports it, and its class there.
CLIENTS = {
    "boto3": "dnnbench.storage.s3_boto3:Boto3Client",
    "obstore": "dnnbench.storage.s3_obstore:ObstoreClient",
    "s3torchconnector": "dnnbench.storage.s3_torchconnector:TorchConnectorClient",
}
# Those whose threads a forked child lacks: a loader's workers must not be forked from a process that has used one.
NOT_FORKED = ("obstore",)
# Those that hold what they read against a checksum that the server has of it.
VERIFYING = ("boto3",)
# Those that are written in Python.
ONE_CORE = ("boto3",)
# How the name of a bucket ends whose keys AWS lists in no order.
UNORDERED = "--x-s3"


class S3Client(Protocol):
    """What a client library's file provides: requests to one endpoint, counted in the given meter."""

    server: str | None
    # Whether a listing can begin after any key.
    begins_after: bool

    def open(self, bucket: str) -> None: ...
    def pages(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[Sequence[Entry]]: ...
    def size(self, bucket: str, key: str) -> int: ...
    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> Any: ...
    def get_verified(self, bucket: str, key: str, size_bytes: int | None = None) -> Any: ...
    def get_range(self, bucket: str, key: str, start: int, end: int) -> Any: ...
    def put(self, bucket: str, key: str, data: bytes) -> None: ...
    def close(self) -> None: ...
    @staticmethod
    def settings() -> dict[str, Any]: ...


def client_class(name: str) -> Any:
    """The class of a client library; imports the library. Raises `ConfigError` for an unknown name."""
    check_client(name)
    module, _, attribute = CLIENTS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("dnnbench"):
            raise
        raise ConfigError(
            f'storage.s3.client_lib: "{name}" needs the library {exc.name}, which is not installed: pip install {name}'
        ) from exc


def check_client(name: str) -> None:
    """Raises `ConfigError` for the name of no client library, without importing one."""
    if name not in CLIENTS:
        near = difflib.get_close_matches(name, CLIENTS, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f'storage.s3.client_lib: found "{name}", expected one of {", ".join(CLIENTS)}{hint}')


class S3Storage(Storage):
    """A bucket; a key is an object's key in it."""

    name = "aws"

    def __init__(
        self, bucket: str, credentials: S3Credentials, client: str = "boto3", list_ranges: bool = True
    ) -> None:
        check_client(client)
        super().__init__()
        self._list_ranges = list_ranges and not bucket.endswith(UNORDERED)
        self.client, self.bucket, self.credentials = client, bucket, credentials
        self.one_core, self.verifies = client in ONE_CORE, client in VERIFYING

    def connection(self) -> S3Client:
        """This process's client, built on first use."""
        client: S3Client = self._client_of(
            "s3", lambda: client_class(self.client)(self.credentials, self._meter, self.label)
        )
        return client

    def _open(self) -> None:
        self.connection().open(self.bucket)

    def _list(self, prefix: str) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self.connection().pages(self.bucket, prefix))

    def _list_many(self, prefixes: Sequence[str], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
        client = self.connection()
        if not (self._list_ranges and client.begins_after):
            return super()._list_many(prefixes, workers)
        sources = [(prefix, partial(client.pages, self.bucket, prefix)) for prefix in prefixes]
        return list_in_ranges(sources, listers(workers, len(sources), self.one_core))

    def _size(self, key: str) -> int:
        return self.connection().size(self.bucket, key)

    def _read(self, key: str, size_bytes: int | None) -> Any:
        return self.connection().get(self.bucket, key, size_bytes)

    def _read_verified(self, key: str, size_bytes: int | None) -> Any:
        return self.connection().get_verified(self.bucket, key, size_bytes)

    def _read_range(self, key: str, start: int, end: int) -> Any:
        return self.connection().get_range(self.bucket, key, start, end)

    def _write(self, key: str, data: bytes) -> None:
        self.connection().put(self.bucket, key, data)

    def settings(self) -> dict[str, Any]:
        client = self.connection()
        return {
            "endpoint": self.credentials.endpoint or "AWS",
            "bucket": self.bucket,
            "server": client.server,
            **client.settings(),
        }


def listers(workers: int, sources: int, one_core: bool) -> int:
    """How many threads list so many sources in key ranges.

    A client that is written in Python takes longer to read a page's answer than the answer takes to come: more
    threads than there are sources only get into each other's way, but for a second one that waits meanwhile.
    """
    return min(workers, max(sources, 2)) if one_core else workers

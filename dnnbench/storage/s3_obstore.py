"""The obstore client (Rust's object_store): one S3 endpoint, any bucket. The only file that imports obstore."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from dnnbench.config import S3Credentials
from dnnbench.storage import s3_errors
from dnnbench.storage.base import Entry, Meter
from dnnbench.storage.errors import MisconfiguredError, StorageError, TransientError
from dnnbench.storage.s3_errors import CONNECT_TIMEOUT_S, MAX_ATTEMPTS, READ_TIMEOUT_S, attempts, resumed

# The most keys that an answer to a listing holds; obstore does not tell of single answers.
PAGE_KEYS = 1000
_STATUS = re.compile(r"non-2xx status code: (\d+)")
_KIND = re.compile(r"\bkind: (\w+)")
_FORKED = threading.Event()


class ObstoreClient:
    """Requests to one endpoint. ``label`` names the storage in errors; every request is counted in ``meter``."""

    begins_after = True

    _used_in: int | None = None

    def __init__(self, credentials: S3Credentials, meter: Meter, label: str) -> None:
        self._label, self._meter = label, meter
        self.endpoint = credentials.endpoint
        # obstore shows no header of an answer.
        self.server: str | None = None
        if _FORKED.is_set():
            problem = (
                "obstore cannot be used in a process that was forked from one that has used it; set "
                'framework.PyTorch.DataLoader.multiprocessing_context to "forkserver"'
            )
            raise MisconfiguredError(label, self.endpoint or "AWS", problem)
        ObstoreClient._used_in = os.getpid()
        self._options = _store_options(credentials, label)
        self._stores: dict[str, S3Store] = {}
        self._lock = threading.Lock()

    def open(self, bucket: str) -> None:
        """Builds what requests to the bucket need."""
        self._store(bucket)

    def pages(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[Sequence[Entry]]:
        """The objects of the bucket below the prefix, of keys greater than ``start_after``, in the server's order.

        obstore takes a prefix for a folder: what begins with its last part is picked here.
        """
        return resumed(self._meter, lambda after: self._pages(bucket, prefix, after), start_after)

    def _pages(self, bucket: str, prefix: str, start_after: str) -> Iterator[Sequence[Entry]]:
        folder = prefix[: prefix.rfind("/") + 1]
        stream = iter(
            obstore.list(self._store(bucket), folder or None, offset=start_after or None, chunk_size=PAGE_KEYS)
        )
        asked = False
        while True:
            with self._errors(f"s3://{bucket}/{prefix}", listing=True):
                try:
                    page = next(stream, None)
                except BaseError:
                    self._meter.request("LIST")
                    raise
            # After a last page that is full no request is made to find that there is no more.
            if page is not None or not asked:
                self._meter.request("LIST")
            asked = True
            if page is None:
                return
            entries = [Entry(item["path"], item["size"]) for item in page]
            yield [entry for entry in entries if entry.key.startswith(prefix) and entry.key > start_after]
            if len(entries) < PAGE_KEYS:
                return

    def size(self, bucket: str, key: str) -> int:
        return int(self._ask("HEAD", bucket, key, lambda store: obstore.head(store, key)["size"]))

    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> Any:
        """The object in obstore's own memory: bytes-like."""
        # The way of nearly all reads, written out: `_ask` would add a tenth to what a read costs.
        store = self._stores.get(bucket)
        if store is None or key[:1] == "/" or key[-1:] == "/":
            return self._ask("GET", bucket, key, lambda store: obstore.get(store, key).bytes())
        self._meter.request("GET")
        try:
            return obstore.get(store, key).bytes()
        except (BaseError, OSError, ValueError):
            try:
                with self._errors(f"s3://{bucket}/{key}"):
                    raise
            except TransientError:
                return self._ask("GET", bucket, key, lambda store: obstore.get(store, key).bytes(), failed=1)

    def get_range(self, bucket: str, key: str, start: int, end: int) -> Any:
        """The bytes from ``start`` up to but without ``end``; b"" where that is past the end of the object."""
        try:
            return self._ask("GET", bucket, key, lambda store: obstore.get_range(store, key, start=start, end=end))
        except _PastTheEndError:
            return b""

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._ask("PUT", bucket, key, lambda store: obstore.put(store, key, data, use_multipart=False))

    def close(self) -> None:
        self._stores.clear()

    @staticmethod
    def settings() -> dict[str, Any]:
        """Library version and the settings that govern speed and patience."""
        return {
            "obstore": version("obstore"),
            "connect_timeout_s": CONNECT_TIMEOUT_S,
            "request_timeout_s": READ_TIMEOUT_S,
            "max_attempts": MAX_ATTEMPTS,
            "list_requests": f"counted as one per {PAGE_KEYS} keys",
        }

    def _store(self, bucket: str) -> S3Store:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = S3Store(bucket, **self._options)
            return self._stores[bucket]

    def _ask(self, verb: str, bucket: str, key: str, request: Callable[[S3Store], Any], failed: int = 0) -> Any:
        if key != key.strip("/"):
            # It would leave the slash out, and so name another object.
            problem = 'obstore cannot name a key that begins or ends with "/"; use the client boto3'
            raise MisconfiguredError(self._label, f"s3://{bucket}/{key}", problem)
        store = self._store(bucket)

        def once() -> Any:
            with self._errors(f"s3://{bucket}/{key}"):
                return request(store)

        return attempts(self._meter, verb, once, failed=failed)

    @contextmanager
    def _errors(self, key: str, listing: bool = False) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except (BaseError, OSError) as exc:
            raise self._error_of(key, str(exc), listing) from exc
        except ValueError as exc:
            problem = f"obstore cannot name this key ({_first_line(exc)}); use the client boto3"
            raise MisconfiguredError(self._label, key, problem) from exc

    def _error_of(self, key: str, text: str, listing: bool) -> StorageError:
        status, kind = _STATUS.search(text), _KIND.search(text)
        if status:
            if status[1] == "416":
                return _PastTheEndError(self._label, key, "the range begins behind the object's end")
            return s3_errors.from_answer(self._label, key, int(status[1]), s3_errors.code_in(text), listing)
        if kind and kind[1] == "Timeout":
            return s3_errors.no_answer(self._label, key, self.endpoint, READ_TIMEOUT_S)
        if kind and kind[1] in ("Connect", "Request", "Unknown"):
            return s3_errors.unreachable(self._label, key, self.endpoint, kind[1])
        if kind:
            return TransientError(self._label, key, f"the answer broke off ({kind[1]})")
        return MisconfiguredError(self._label, key, f"obstore: {_first_line(text)}")


class _PastTheEndError(StorageError):
    """A range begins behind the object's end."""


def _first_line(text: object) -> str:
    # What follows is Rust's view of the error.
    return str(text).partition("\n")[0]


def _store_options(credentials: S3Credentials, label: str) -> dict[str, Any]:
    own_endpoint = credentials.endpoint is not None
    region, keys = credentials.region_name, _keys(credentials)
    if not keys:
        region_of_chain, keys = _keys_of_chain(credentials, label)
        region = region or region_of_chain
    return {
        "endpoint": credentials.endpoint,
        "region": region or "us-east-1",
        # Servers that are not AWS seldom have a name per bucket.
        "virtual_hosted_style_request": not own_endpoint,
        "client_options": {
            "allow_http": own_endpoint,
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
            "timeout": f"{READ_TIMEOUT_S}s",
        },
        # Repeated by `attempts`, where it is counted.
        "retry_config": {"max_retries": 0},
        **keys,
    }


def _keys(credentials: S3Credentials) -> dict[str, Any]:
    named = {
        "access_key_id": credentials.access_key,
        "secret_access_key": credentials.secret_key,
        "session_token": credentials.session_token,
    }
    return {name: secret.get_secret_value() for name, secret in named.items() if secret is not None}


def _keys_of_chain(credentials: S3Credentials, label: str) -> tuple[str | None, dict[str, Any]]:
    """(region, options) of the standard AWS chain, of which obstore knows no profiles: boto3 is asked."""
    from dnnbench.storage.s3_boto3 import aws_chain

    region, current = aws_chain(credentials, label)
    return region, {"credential_provider": current} if current else {"skip_signature": True}


def _after_fork() -> None:
    if ObstoreClient._used_in is not None:
        _FORKED.set()


os.register_at_fork(after_in_child=_after_fork)

"""Objects behind S3 endpoints, asked for in turn and again; and one bucket on one endpoint (AWS or any other)."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from dnnbench.config import DEFAULT_REQUESTS, ConfigError, Requests, S3Credentials
from dnnbench.storage import s3_errors, watchdog
from dnnbench.storage.attempts import Attempts
from dnnbench.storage.base import Entry, Storage
from dnnbench.storage.errors import CorruptError, TransientError, UnreachableError
from dnnbench.storage.key_ranges import list_in_ranges
from dnnbench.storage.ranges import Part

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
# Those that take no time-outs, and so are watched.
UNTIMED = ("s3torchconnector",)
# Those that bound a request as a whole by themselves.
TIMED = ("obstore",)
# How the name of a bucket ends whose keys AWS lists in no order.
UNORDERED = "--x-s3"
# How long an endpoint that failed is asked last.
DOWN_S = 30.0

AWS = "AWS"
# An endpoint's URL; None is AWS.
Endpoint = str | None
T = TypeVar("T")


class S3Client(Protocol):
    """What a client library's file provides: requests to one endpoint, one attempt each, counted in the given meter."""

    server: str | None
    endpoint: str | None
    # Whether a listing can begin after any key.
    begins_after: bool

    def open(self, bucket: str) -> None: ...
    def pages(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[Sequence[Entry]]: ...
    def size(self, bucket: str, key: str) -> int: ...
    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> Any: ...
    def get_verified(self, bucket: str, key: str, size_bytes: int | None = None) -> Any: ...
    def get_range(self, bucket: str, key: str, start: int, end: int) -> Part: ...
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
    except ImportError as exc:
        if (exc.name or "").startswith("dnnbench"):
            raise
        missing = isinstance(exc, ModuleNotFoundError)
        why = f"is not installed: pip install {name}" if missing else f"cannot be loaded ({str(exc).splitlines()[0]})"
        raise ConfigError(f'storage.s3.client_lib: "{name}" needs the library {exc.name or name}, which {why}') from exc


def check_client(name: str, installed: bool = False) -> None:
    """Raises `ConfigError` for the name of no client library, without importing one.

    ``installed``: also for one that is not there.
    """
    if name not in CLIENTS:
        near = difflib.get_close_matches(name, CLIENTS, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f'storage.s3.client_lib: found "{name}", expected one of {", ".join(CLIENTS)}{hint}')
    if installed and importlib.util.find_spec(name) is None:
        raise ConfigError(f'storage.s3.client_lib: "{name}" is a library that is not installed: pip install {name}')


class EndpointStorage(Storage):
    """Objects behind endpoints, of which any will do, through one client library.

    ``rules`` and ``verify_tls`` are the configuration's ``storage.s3.requests`` and ``storage.s3.verify_tls``.
    """

    def __init__(
        self,
        credentials: S3Credentials,
        client: str,
        list_ranges: bool,
        rules: Requests,
        verify_tls: bool | str,
    ) -> None:
        check_client(client)
        self.client, self.credentials, self.rules, self.verify_tls = client, credentials, rules, verify_tls
        self.one_core, self.verifies = client in ONE_CORE, client in VERIFYING
        self._list_ranges = list_ranges
        super().__init__()

    def _enter_process(self, new: bool = False) -> None:
        if new or self._pid != os.getpid():
            self._watchdog = watchdog.Watchdog(self.rules, silence=self.client in UNTIMED)
        super()._enter_process(new)

    def _connect(self, endpoint: Endpoint) -> S3Client:
        """This process's client of an endpoint, built on first use."""

        def build() -> S3Client:
            credentials = self.credentials.model_copy(update={"endpoint": endpoint})
            built: S3Client = client_class(self.client)(
                credentials, self._meter, self.label, self.rules, self.verify_tls
            )
            self._watchdog.add(endpoint)
            return built

        client: S3Client = self._client_of(endpoint or AWS, build)
        return client

    def _get(self, endpoints: Sequence[Endpoint], bucket: str, key: str, size_bytes: int | None) -> Any:
        """The object, as `_ask` gets it."""
        if self.client not in TIMED:
            return self._ask(endpoints, lambda client: client.get(bucket, key, size_bytes))
        # The way of the fastest client's reads: being watched would add a tenth to what one costs.
        endpoint = (self._in_turn(endpoints) if self._down else endpoints)[0]
        begun_s = time.monotonic()
        try:
            return (self._clients.get(endpoint or AWS) or self._connect(endpoint)).get(bucket, key, size_bytes)
        except TransientError as exc:
            failed = exc
        return self._ask(endpoints, lambda client: client.get(bucket, key, size_bytes), begun_s, failed)

    def _ask(
        self,
        endpoints: Sequence[Endpoint],
        request: Callable[[S3Client], T],
        begun_s: float | None = None,
        failed: TransientError | None = None,
    ) -> T:
        """The answer of the first attempt that brings one; see `Attempts`. One that began then may have ``failed``."""
        order = self._in_turn(endpoints) if self._down else endpoints
        endpoint, attempts, error = order[0], None, failed
        while True:
            if error is not None:
                attempts = attempts or Attempts(self.rules, self._meter, order, begun_s or time.monotonic())
                endpoint = attempts.next(self._noted(error, endpoint))
            try:
                client = self._clients.get(endpoint or AWS) or self._connect(endpoint)
                begun_s = self._watchdog.begin(begun_s)
                try:
                    return request(client)
                finally:
                    self._watchdog.end()
            except TransientError as exc:
                error = exc

    def _pages(
        self, endpoints: Sequence[Endpoint], bucket: str, prefix: str, start_after: str = ""
    ) -> Iterator[Sequence[Entry]]:
        """A listing, page by page; one that breaks off goes on after its last key, each page with attempts of its own.

        Keys that do not come in order say nothing of what has come: then the error is raised.
        """
        pages: Iterator[Sequence[Entry]] | None = None
        in_order, seen = True, set()
        # Since a page last brought a key: what failed, and when that was.
        failed: list[TransientError] = []
        since_s = time.monotonic()

        def next_page(client: S3Client) -> Sequence[Entry] | None:
            nonlocal pages
            try:
                if pages is None:
                    pages = client.pages(bucket, prefix, start_after)
                return next(pages, None)
            except TransientError as exc:
                pages = None
                error = self._noted(exc, client.endpoint)
                failed.append(error)
                if not in_order:
                    problem = f"{error.problem}, in a listing without order, which cannot go on"
                    raise CorruptError(self.label, error.key, problem) from exc
                raise error from exc.__cause__

        while (page := self._ask(endpoints, next_page)) is not None:
            if page:
                first, last = page[0].key, page[-1].key
                # A hash is shorter than two keys, and a listing may have millions of pages.
                if (ends := hash((first, last))) in seen:
                    problem = f"the listing comes to the page from {first} to {last} again; its pages cannot be trusted"
                    raise CorruptError(self.label, f"s3://{bucket}/{prefix}", problem)
                seen.add(ends)
                # Of the whole page: where it alone is out of order, what comes after its last key may have come.
                in_order = in_order and start_after < first and all(a.key < b.key for a, b in itertools.pairwise(page))
                start_after = last
                failed.clear()
            else:
                self._check_progress(endpoints, f"s3://{bucket}/{prefix}", failed, since_s)
            yield page
            if page:
                since_s = time.monotonic()

    def _check_progress(
        self, endpoints: Sequence[Endpoint], key: str, failed: Sequence[TransientError], since_s: float
    ) -> None:
        """Raises our error where a listing goes on for ever without a key.

        A client that cannot begin in the middle begins anew after each failure: its pages come, and bring nothing.
        """
        made = sum(error.attempts for error in failed)
        if made >= max(self.rules.max_attempts, len(endpoints)):
            failed[-1].reword(f"{failed[-1].problem}; given up after {made} attempts")
            raise failed[-1]
        total_s = self.rules.total_timeout_s
        # What is listed anew may take as long as it took before.
        if not failed and time.monotonic() - since_s >= total_s:
            problem = f"no key within {total_s:g} s (storage.s3.requests.total_timeout_s), in pages that are all empty"
            raise TransientError(self.label, key, problem)

    def _in_turn(self, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """In the order in which to ask; those that failed of late come last."""
        now = time.monotonic()
        return sorted(endpoints, key=lambda endpoint: self._down.get(endpoint or AWS, 0.0) > now)

    def _noted(self, error: TransientError, endpoint: Endpoint) -> TransientError:
        cut = self._watchdog.cut()
        if cut and error.broke_off:
            told = self._cut_off(cut, error.key, endpoint)
            told.attempts, told.__cause__ = error.attempts, error
            error = told
        if isinstance(error, UnreachableError):
            self._down[endpoint or AWS] = time.monotonic() + DOWN_S
        return error

    def _cut_off(self, cut: str, key: str, endpoint: Endpoint) -> UnreachableError:
        if cut == watchdog.CONNECT:
            return s3_errors.unreachable(self.label, key, endpoint, f"within {self.rules.connect_timeout_s:g} s")
        return s3_errors.no_answer(self.label, key, endpoint, self.rules.read_timeout_s)

    def _in_force(self) -> dict[str, Any]:
        """What the record says alike for every client."""
        library = client_class(self.client).settings()
        return {**library, **self.rules.model_dump(), "verify_tls": self.verify_tls}


class S3Storage(EndpointStorage):
    """A bucket; a key is an object's key in it."""

    name = "aws"

    def __init__(
        self,
        bucket: str,
        credentials: S3Credentials,
        client: str = "boto3",
        list_ranges: bool = True,
        rules: Requests = DEFAULT_REQUESTS,
        verify_tls: bool | str = True,
    ) -> None:
        self.bucket = bucket
        self._endpoints = (credentials.endpoint,)
        super().__init__(credentials, client, list_ranges and not bucket.endswith(UNORDERED), rules, verify_tls)

    def connection(self) -> S3Client:
        """This process's client, built on first use."""
        return self._connect(self.credentials.endpoint)

    def _open(self) -> None:
        self.connection().open(self.bucket)

    def _list(self, prefix: str) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self._pages(self._endpoints, self.bucket, prefix))

    def _list_many(self, prefixes: Sequence[str], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
        if not (self._list_ranges and self.connection().begins_after):
            return super()._list_many(prefixes, workers)
        sources = [(prefix, partial(self._pages, self._endpoints, self.bucket, prefix)) for prefix in prefixes]
        return list_in_ranges(sources, listers(workers, len(sources), self.one_core))

    def _size(self, key: str) -> int:
        return self._ask(self._endpoints, lambda client: client.size(self.bucket, key))

    def _read(self, key: str, size_bytes: int | None) -> Any:
        return self._get(self._endpoints, self.bucket, key, size_bytes)

    def _read_verified(self, key: str, size_bytes: int | None) -> Any:
        return self._ask(self._endpoints, lambda client: client.get_verified(self.bucket, key, size_bytes))

    def _read_range(self, key: str, start: int, end: int) -> Part:
        return self._ask(self._endpoints, lambda client: client.get_range(self.bucket, key, start, end))

    def _write(self, key: str, data: bytes) -> None:
        self._ask(self._endpoints, lambda client: client.put(self.bucket, key, data))

    def settings(self) -> dict[str, Any]:
        server = self.connection().server
        endpoint = self.credentials.endpoint or "AWS"
        return {"endpoint": endpoint, "bucket": self.bucket, "server": server, **self._in_force()}


def listers(workers: int, sources: int, one_core: bool) -> int:
    """How many threads list so many sources in key ranges.

    A client that is written in Python takes longer to read a page's answer than the answer takes to come: more
    threads than there are sources only get into each other's way, but for a second one that waits meanwhile.
    """
    return min(workers, max(sources, 2)) if one_core else workers

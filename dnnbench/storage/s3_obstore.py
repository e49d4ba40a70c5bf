"""The obstore client (Rust's object_store): one S3 endpoint, any bucket. The only file that imports obstore."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from dnnbench.config import DEFAULT_REQUESTS, Requests, S3Credentials
from dnnbench.storage import s3_errors
from dnnbench.storage.base import Entry, Meter
from dnnbench.storage.errors import MisconfiguredError, StorageError
from dnnbench.storage.ranges import Part
from dnnbench.storage.s3_errors import PastTheEndError, UncountedClient

# The most keys that an answer to a listing holds; obstore does not tell of single answers.
PAGE_KEYS = 1000
_STATUS = re.compile(r"non-2xx status code: (\d+)")
_KIND = re.compile(r"\bkind: (\w+)")
# What its error says of a key in a listing that it cannot name, and what such keys are.
_INVALID_PATH = "Encountered object with invalid path"
_NAMELESS = "an empty part, one of dots, or a control character is in it); use the client boto3"
_REDIRECTED = re.compile(r" - Received redirect |\bkind: Redirect\b")
_UNTRUSTED = re.compile(r"\bInvalidCertificate\(\s*(\w+)")
# What it says where it asked for a range and got the whole object, or another range.
_NOT_THE_RANGE = re.compile(
    r"non-partial response when range requested|Requested [\d.-]+, got [\d.-]+|Content-?Range", re.I
)
_FORKED = threading.Event()


class ObstoreClient(UncountedClient):
    """Requests to one endpoint. ``label`` names the storage in errors; every request is counted in ``meter``."""

    begins_after = True
    # A ValueError is about a key.
    library_errors = (BaseError, OSError, ValueError)

    _used_in: int | None = None

    def __init__(
        self,
        credentials: S3Credentials,
        meter: Meter,
        label: str,
        rules: Requests = DEFAULT_REQUESTS,
        verify_tls: bool | str = True,
    ) -> None:
        super().__init__(meter, label, credentials.endpoint)
        self._rules = rules
        if _FORKED.is_set():
            problem = (
                "obstore cannot be used in a process that was forked from one that has used it; set "
                'framework.PyTorch.DataLoader.multiprocessing_context to "forkserver"'
            )
            raise MisconfiguredError(label, self.endpoint or "AWS", problem)
        ObstoreClient._used_in = os.getpid()
        # A client that shows the pages of a listing, where one is needed; and where there is nothing to see (any more).
        self._shows_pages = partial(_boto3_client, credentials, meter, label, rules, verify_tls)
        self._checked: set[tuple[str, ...]] = set()
        self._options = _store_options(credentials, label, rules, verify_tls)
        self._stores: dict[str, S3Store] = {}
        self._lock = threading.Lock()

    def open(self, bucket: str) -> None:
        """Builds what requests to the bucket need."""
        self._store(bucket)

    def _answers(self, bucket: str, prefix: str, start_after: str) -> Iterator[Any]:
        # obstore takes a prefix for a folder: what begins with its last part is picked from the answers.
        folder = prefix[: prefix.rfind("/") + 1]
        keys = 0
        for answer in obstore.list(
            self._store(bucket), folder or None, offset=start_after or None, chunk_size=PAGE_KEYS
        ):
            keys += len(answer)
            yield answer
            if len(answer) < PAGE_KEYS:
                return
        if keys > PAGE_KEYS:
            # The server does tell how to go on after a page.
            self._checked.add((bucket,))
        elif keys and not self._checked & {(bucket,), (bucket, folder)}:
            self._check_page(bucket, folder)

    def _check_page(self, bucket: str, folder: str) -> None:
        """Raises our error where the one page that came is not all: without a token obstore ends, and is silent."""
        client = self._shows_pages()
        try:
            next(client.pages(bucket, folder), None)
        finally:
            client.close()
        self._checked.add((bucket, folder))

    def _entries(self, answer: Any) -> Sequence[Entry]:
        return [Entry(item["path"], item["size"]) for item in answer]

    def size(self, bucket: str, key: str) -> int:
        return int(self._ask_for("HEAD", bucket, key, lambda store: obstore.head(store, key)["size"]))

    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> Any:
        """The object in obstore's own memory: bytes-like."""
        # The way of nearly all reads, written out: `_ask_for` would add a tenth to what a read costs.
        store = self._stores.get(bucket)
        if store is None or key[:1] == "/" or key[-1:] == "/":
            return self._ask_for("GET", bucket, key, lambda store: obstore.get(store, key).bytes())
        self._meter.request("GET")
        try:
            return obstore.get(store, key).bytes()
        except self.library_errors as exc:
            raise self._error_of(f"s3://{bucket}/{key}", exc) from exc

    def get_range(self, bucket: str, key: str, start: int, end: int) -> Part:
        """The bytes from ``start`` up to but without ``end``; none where that is past the end of the object."""

        def ranged(store: S3Store) -> Part:
            # Not `obstore.get_range`, which does not tell of which object it is.
            answer = obstore.get(store, key, options={"range": (start, end)})
            return Part(answer.bytes(), answer.meta["size"], answer.meta["e_tag"])

        try:
            part: Part = self._ask_for("GET", bucket, key, ranged)
        except PastTheEndError:
            return Part(b"")
        return part

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._ask_for("PUT", bucket, key, lambda store: obstore.put(store, key, data, use_multipart=False))

    def close(self) -> None:
        self._stores.clear()

    @staticmethod
    def settings() -> dict[str, Any]:
        """Library version and the settings that govern speed and patience."""
        return {
            "obstore": version("obstore"),
            "list_requests": f"counted as one per {PAGE_KEYS} keys",
        }

    def _store(self, bucket: str) -> S3Store:
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = S3Store(bucket, **self._options)
            return self._stores[bucket]

    def _ask_for(self, verb: str, bucket: str, key: str, request: Callable[[S3Store], Any]) -> Any:
        if key != key.strip("/"):
            # It would leave the slash out, and so name another object.
            problem = 'obstore cannot name a key that begins or ends with "/"; use the client boto3'
            raise MisconfiguredError(self._label, f"s3://{bucket}/{key}", problem)
        store = self._store(bucket)
        return self._ask(verb, bucket, key, lambda: request(store))

    def _error_of(self, key: str, error: Exception, listing: bool = False) -> StorageError:
        text = str(error)
        status, kind = _STATUS.search(text), _KIND.search(text)
        if isinstance(error, ValueError) or (listing and _INVALID_PATH in text):
            which = "a key in this listing is none that obstore can name" if listing else "obstore cannot name this key"
            return MisconfiguredError(self._label, key, f"{which} ({_NAMELESS}")
        if status:
            if status[1] == "416":
                return PastTheEndError(self._label, key, "the range begins behind the object's end")
            return s3_errors.from_answer(self._label, key, int(status[1]), s3_errors.code_in(text), listing)
        if _REDIRECTED.search(text):
            return s3_errors.redirected(self._label, key, "as obstore says")
        if untrusted := _UNTRUSTED.search(text):
            return s3_errors.untrusted(self._label, key, self.endpoint, untrusted[1])
        return self._error_without_answer(key, text, kind[1] if kind else "")

    def _error_without_answer(self, key: str, text: str, kind: str) -> StorageError:
        if f"code: {errno.EMFILE}," in text or f"os error {errno.EMFILE})" in text:
            return s3_errors.no_more_files(self._label, key)
        if kind == "Timeout" and "ConnectError(" in text:
            why = f"within {self._rules.connect_timeout_s:g} s"
            return s3_errors.unreachable(self._label, key, self.endpoint, why)
        if kind == "Timeout":
            return s3_errors.no_answer(self._label, key, self.endpoint, self._rules.read_timeout_s)
        if kind in ("Connect", "Request", "Unknown"):
            return s3_errors.unreachable(self._label, key, self.endpoint, kind)
        if kind:
            return s3_errors.broken_off(self._label, key, self.endpoint, kind)
        # What follows is Rust's view of the error.
        first_line = text.partition("\n")[0]
        other = _NOT_THE_RANGE.search(text) and s3_errors.not_the_range(self._label, key, "something else")
        return other or MisconfiguredError(self._label, key, f"obstore: {first_line}")


def _boto3_client(*args: Any) -> Any:
    from dnnbench.storage.s3_boto3 import Boto3Client

    return Boto3Client(*args)


def _store_options(credentials: S3Credentials, label: str, rules: Requests, verify_tls: bool | str) -> dict[str, Any]:
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
            "connect_timeout": timedelta(seconds=rules.connect_timeout_s),
            "read_timeout": timedelta(seconds=rules.read_timeout_s),
            "timeout": timedelta(seconds=rules.total_timeout_s),
            **_trust(verify_tls),
        },
        # Asked again by `Attempts`.
        "retry_config": {"max_retries": 0},
        **keys,
    }


def _trust(verify_tls: bool | str) -> dict[str, Any]:
    """The options that say which certificates are trusted."""
    if verify_tls is True:
        return {}
    if verify_tls is False:
        return {"allow_invalid_certificates": True}
    return {"root_certificate": Path(verify_tls).read_bytes()}


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

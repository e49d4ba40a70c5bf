"""What an S3 server's answer means, whatever client library received it; and trying again, where the library does not.

boto3 counts and repeats its attempts itself. The others do so unseen, so they are told to make one, and
`attempts` repeats it: every request is counted, and a retry means the same for every client.
"""

from __future__ import annotations

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dnnbench.storage.base import Entry, Meter, no_checksum
from dnnbench.storage.errors import (
    DeniedError,
    MisconfiguredError,
    NotFoundError,
    StorageError,
    TransientError,
    UnreachableError,
)

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
MAX_ATTEMPTS = 3
# The longest pause before the next attempt is a random part of this, doubled with each.
BACK_OFF_S = 1.0

_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_DENIED = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "AllAccessDisabled", "401", "Unauthorized",
}  # fmt: skip
_TRANSIENT = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "429",
}
_CODE = re.compile(r"<Code>(\w+)</Code>")

T = TypeVar("T")


def from_answer(label: str, key: str, status: int, code: str, listing: bool = False) -> StorageError:
    """The error that an answer with this HTTP status and S3 error code (or "") stands for."""
    if code == "NoSuchBucket":
        return NotFoundError(label, key, "there is no such bucket; check storage.s3.bucket and the endpoint")
    if (code in _NOT_FOUND or status == 404) and listing:
        return NotFoundError(label, key, f"the server answered {status} {code}; is it an S3 server?")
    if code in _NOT_FOUND or status == 404:
        return NotFoundError(label, key, "there is no such object; was it deleted after it was listed?")
    if code in _DENIED or status in (401, 403):
        return DeniedError(label, key, f"access denied ({code or status}); check the credentials and their rights")
    if code in _TRANSIENT or status >= 500 or status == 429:
        return TransientError(label, key, f"the server answered {status} {code} to every attempt")
    return MisconfiguredError(label, key, f"the server answered {status} {code}")


def unreachable(label: str, key: str, endpoint: str | None, why: str) -> UnreachableError:
    """No connection could be made."""
    problem = f"no connection to {endpoint or 'AWS'} ({why}); is the endpoint right and up?"
    return UnreachableError(label, key, problem)


def no_answer(label: str, key: str, endpoint: str | None, timeout_s: float) -> UnreachableError:
    """No answer came in time."""
    problem = f"no answer from {endpoint or 'AWS'} within {timeout_s} s; is the endpoint up?"
    return UnreachableError(label, key, problem)


def code_in(body: str) -> str:
    """The S3 error code in an answer's body, or ""."""
    found = _CODE.search(body)
    return found[1] if found else ""


def attempts(meter: Meter, verb: str, request: Callable[[], T], requests: int = 1, failed: int = 0) -> T:
    """The answer of ``request``, made up to `MAX_ATTEMPTS` times; each is counted as ``requests`` of ``verb``.

    ``failed`` attempts have been made, and counted, before.
    """
    for number in range(failed, MAX_ATTEMPTS):
        if number:
            _back_off(meter, number)
        meter.request(verb, requests)
        try:
            return request()
        except TransientError:
            if number + 1 == MAX_ATTEMPTS:
                raise
    raise AssertionError("more attempts have failed than are made")


def resumed(
    meter: Meter, pages: Callable[[str], Iterator[Sequence[Entry]]], start_after: str
) -> Iterator[Sequence[Entry]]:
    """The pages of a listing; where one breaks off, it is begun anew after the last key, `MAX_ATTEMPTS` times a page.

    Keys that do not come in order say nothing of what has come: then the error is raised.
    """
    failed, in_order = 0, True
    while True:
        try:
            for page in pages(start_after):
                yield page
                failed = 0
                if page:
                    in_order = in_order and page[0].key > start_after and page[-1].key >= page[0].key
                    start_after = page[-1].key
        except TransientError:
            failed += 1
            if failed == MAX_ATTEMPTS or not in_order:
                raise
            _back_off(meter, failed)
        else:
            return


def _back_off(meter: Meter, failed: int) -> None:
    meter.retry()
    time.sleep(random.random() * BACK_OFF_S * 2 ** (failed - 1))


class PastTheEndError(NotFoundError):
    """A range begins behind the object's end."""


class OneAttemptClient(ABC):
    """A client whose library repeats and counts nothing that we could see: told to make one attempt, it is asked again.

    ``label`` names the storage in errors; every request is counted in ``meter``. A subclass says what the errors of
    its library mean.
    """

    # What the library raises.
    library_errors: tuple[type[Exception], ...]

    def __init__(self, meter: Meter, label: str, endpoint: str | None) -> None:
        self._meter, self._label, self.endpoint = meter, label, endpoint
        # Neither library shows a header of an answer.
        self.server: str | None = None

    @abstractmethod
    def _error_of(self, key: str, error: Exception, listing: bool = False) -> StorageError:
        """Our error for one of the library's."""

    @abstractmethod
    def _answers(self, bucket: str, prefix: str, start_after: str) -> Iterator[Any]:
        """A listing's answers, each asked for when it is drawn; raises the library's errors."""

    @abstractmethod
    def _entries(self, answer: Any) -> Sequence[Entry]:
        """All objects of an answer."""

    def pages(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[Sequence[Entry]]:
        """The objects below the prefix, of keys greater than ``start_after``, as the server pages them."""
        return resumed(self._meter, lambda after: self._pages(bucket, prefix, after), start_after)

    def _pages(self, bucket: str, prefix: str, start_after: str) -> Iterator[Sequence[Entry]]:
        answers = self._answers(bucket, prefix, start_after)
        asked = False
        while True:
            try:
                answer = next(answers, None)
            except self.library_errors as exc:
                self._meter.request("LIST")
                raise self._error_of(f"s3://{bucket}/{prefix}", exc, listing=True) from exc
            # After a last answer no request is made to find that there is no more.
            if answer is not None or not asked:
                self._meter.request("LIST")
            asked = True
            if answer is None:
                return
            entries = self._entries(answer)
            yield [entry for entry in entries if entry.key.startswith(prefix) and entry.key > start_after]

    def get_verified(self, bucket: str, key: str, size_bytes: int | None = None) -> Any:
        """As `get`, held against the checksum that the server has of it: neither library does that."""
        raise MisconfiguredError(
            self._label,
            f"s3://{bucket}/{key}",
            no_checksum("no manifest, and of the clients boto3 alone asks a server"),
        )

    def _ask(self, verb: str, bucket: str, key: str, request: Callable[[], T], requests: int = 1, failed: int = 0) -> T:
        """The answer of ``request``, whose errors are told as ours; see `attempts`."""

        def once() -> T:
            try:
                return request()
            except self.library_errors as exc:
                raise self._error_of(f"s3://{bucket}/{key}", exc) from exc

        return attempts(self._meter, verb, once, requests, failed)

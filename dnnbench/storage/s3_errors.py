"""What an S3 server's answer means, whatever client library received it; and trying again, where the library does not.

boto3 counts and repeats its attempts itself. The others do so unseen, so they are told to make one, and
`attempts` repeats it: every request is counted, and a retry means the same for every client.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dnnbench.storage.base import Entry, Meter
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

"""What an S3 server's answer means, whatever client library received it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from dnnbench.storage.base import Entry, Meter, no_checksum
from dnnbench.storage.errors import (
    CorruptError,
    DeniedError,
    MisconfiguredError,
    NotFoundError,
    StorageError,
    TransientError,
    UnreachableError,
)

_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_DENIED = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken",
    "RequestTimeTooSkewed", "AllAccessDisabled", "401", "Unauthorized",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired"}
_TRANSIENT = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "429",
}
# What is told of a server that ends a page by saying that there is more, and not how to ask for it.
CUT_SHORT = (
    "the server says that there is more, but not how to go on; it must know version 2 of ListObjects "
    "(list-type=2, continuation-token)"
)
_CODE = re.compile(r"<Code>(\w+)</Code>")

T = TypeVar("T")


def from_answer(
    label: str, key: str, status: int, code: str, listing: bool = False, retry_after: str | None = None
) -> StorageError:
    """The error that an answer with this HTTP status, S3 error code (or "") and ``Retry-After`` stands for."""
    answer = f"{status} {code}".strip()
    if code in _NOT_FOUND or status == 404:
        return NotFoundError(label, key, _not_found(code, answer, listing))
    if code in _EXPIRED:
        return DeniedError(label, key, f"the credentials have expired ({code}); renew them")
    if code in _DENIED or status in (401, 403):
        return DeniedError(label, key, f"access denied ({code or status}); check the credentials and their rights")
    if code in _TRANSIENT or status >= 500 or status == 429:
        error = TransientError(label, key, f"the server answered {answer}")
        error.retry_after_s = _seconds(retry_after)
        return error
    if status == 412:
        return CorruptError(label, key, "the object changed while it was read; list again")
    return redirected(label, key, answer) if 300 <= status < 400 else _unknown(label, key, answer)


def _not_found(code: str, answer: str, listing: bool) -> str:
    if code == "NoSuchBucket":
        return "there is no such bucket; check storage.s3.bucket and the endpoint"
    if listing:
        return f"the server answered {answer}; is it an S3 server?"
    return "there is no such object; was it deleted after it was listed?"


def _unknown(label: str, key: str, answer: str) -> MisconfiguredError:
    return MisconfiguredError(label, key, f"the server answered {answer}")


def unreachable(label: str, key: str, endpoint: str | None, why: str) -> UnreachableError:
    """No connection could be made."""
    problem = f"no connection to {endpoint or 'AWS'} ({why}); is the endpoint right and up?"
    return UnreachableError(label, key, problem)


def no_more_files(label: str, key: str) -> MisconfiguredError:
    """This process has as many connections and files open as it may have."""
    problem = "no more connections can be made: too many open files; raise ulimit -n, or read fewer at a time"
    return MisconfiguredError(label, key, problem)


def no_answer(label: str, key: str, endpoint: str | None, timeout_s: float) -> UnreachableError:
    """No answer came in time."""
    problem = f"no answer from {endpoint or 'AWS'} within {timeout_s:g} s; is the endpoint up?"
    return UnreachableError(label, key, problem)


def broken_off(label: str, key: str, endpoint: str | None, why: str) -> TransientError:
    """The connection was closed before the answer, or within it."""
    error = TransientError(label, key, f"the answer of {endpoint or 'AWS'} broke off ({why})")
    error.broke_off = True
    return error


def no_page(label: str, key: str, endpoint: str | None) -> TransientError:
    """What should be a page of a listing is none."""
    error = TransientError(
        label, key, f"what {endpoint or 'AWS'} answered is no page of a listing; is it an S3 server?"
    )
    error.broke_off = True
    return error


def not_the_range(label: str, key: str, what: str) -> CorruptError:
    """A ranged request was answered with something else, such as the whole object."""
    return CorruptError(label, key, f"the server was asked for a range and sent {what}; does it know ranges?")


def redirected(label: str, key: str, status: str) -> MisconfiguredError:
    """What is asked for is said to be elsewhere."""
    problem = f"the server redirects to another place ({status}); check the endpoint and region_name"
    return MisconfiguredError(label, key, problem)


def untrusted(label: str, key: str, endpoint: str | None, why: str) -> MisconfiguredError:
    """The server's certificate is none that is trusted."""
    problem = (
        f"the certificate of {endpoint or 'AWS'} cannot be verified ({why}); storage.s3.verify_tls takes its CA's file"
    )
    return MisconfiguredError(label, key, problem)


def _seconds(retry_after: str | None) -> float:
    """The pause that a ``Retry-After`` header asks for, in seconds or until a date."""
    text = (retry_after or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def code_in(body: str) -> str:
    """The S3 error code in an answer's body, or ""."""
    found = _CODE.search(body)
    return found[1] if found else ""


class PastTheEndError(NotFoundError):
    """A range begins behind the object's end."""


class UncountedClient(ABC):
    """A client whose library tells of neither its requests nor their headers: what it is asked for is counted here.

    ``label`` names the storage in errors; every request is counted in ``meter``. A subclass says what the errors of
    its library mean.
    """

    # What the library raises.
    library_errors: tuple[type[Exception], ...]

    def __init__(self, meter: Meter, label: str, endpoint: str | None) -> None:
        self._meter, self._label, self.endpoint = meter, label, endpoint
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
        answers = self._answers(bucket, prefix, start_after)
        asked = False
        while True:
            try:
                answer = next(answers, None)
            except self.library_errors as exc:
                self._meter.request("LIST")
                raise self._error_of(f"s3://{bucket}/{prefix}", exc, listing=True) from exc
            finally:
                self._count_repeated("LIST")
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

    def _ask(self, verb: str, bucket: str, key: str, request: Callable[[], T], requests: int = 1) -> T:
        """The answer of ``request``, whose errors are told as ours; counted as so many ``requests`` of ``verb``."""
        self._meter.request(verb, requests)
        try:
            return request()
        except self.library_errors as exc:
            raise self._error_of(f"s3://{bucket}/{key}", exc) from exc
        finally:
            self._count_repeated(verb)

    def _count_repeated(self, verb: str) -> None:  # noqa: B027 (most repeat nothing)
        """Counts what the library has sent again by itself."""

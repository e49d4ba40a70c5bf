"""The boto3 client: one S3 endpoint, any bucket. The only file that imports boto3."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore
from botocore import UNSIGNED
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    ConnectTimeoutError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PaginationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.httpchecksum import StreamingChecksumBody

from dnnbench.config import DEFAULT_REQUESTS, Requests, S3Credentials
from dnnbench.storage import s3_errors
from dnnbench.storage.base import Entry, Meter, no_checksum
from dnnbench.storage.errors import CorruptError, DeniedError, MisconfiguredError, StorageError, TransientError
from dnnbench.storage.ranges import Part

# Of idle ones that are kept: with fewer than there are reads in flight, some reads would pay for connecting.
MAX_CONNECTIONS = 1024
# How a part of an object is answered, and what is said of it: "bytes 0-99/1000".
PARTIAL = 206
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)$")
# What these say of each request holds keys, tokens and signatures.
for _name in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_name).setLevel(logging.INFO)


class _RedirectedAgainError(Exception):
    """The server redirects also who asks where the bucket is."""


class Boto3Client:
    """Requests to one endpoint. ``label`` names the storage in errors; every request is counted in ``meter``."""

    begins_after = True

    def __init__(
        self,
        credentials: S3Credentials,
        meter: Meter,
        label: str,
        rules: Requests = DEFAULT_REQUESTS,
        verify_tls: bool | str = True,
    ) -> None:
        self._label, self._meter, self._rules = label, meter, rules
        self.endpoint = credentials.endpoint
        self.server: str | None = None
        with self._errors(self.endpoint or "AWS"):
            session = _session(os.getpid(), credentials.profile)
            signed = credentials.access_key is not None or session.get_credentials() is not None
            if not signed and credentials.endpoint is None:
                raise NoCredentialsError()
            self._client = session.client(
                "s3",
                endpoint_url=credentials.endpoint,
                region_name=credentials.region_name or session.region_name or "us-east-1",
                aws_access_key_id=_reveal(credentials.access_key),
                aws_secret_access_key=_reveal(credentials.secret_key),
                aws_session_token=_reveal(credentials.session_token),
                # Where it is true the AWS chain may name a file.
                verify=None if verify_tls is True else verify_tls,
                config=_boto_config(credentials.endpoint is not None, signed, rules),
            )
        self._call = threading.local()
        events = self._client.meta.events
        events.register("before-call.s3", self._begin_call)
        events.register("before-send.s3", self._count)
        events.register("after-call.s3", self._note_response)

    def pages(self, bucket: str, prefix: str, start_after: str = "") -> Iterator[Sequence[Entry]]:
        """The objects below the prefix, of keys greater than ``start_after``, as the server pages them."""
        after = {"StartAfter": start_after} if start_after else {}
        with self._errors(f"s3://{bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **after)
            for page in pages:
                self._check_page(f"s3://{bucket}/{prefix}", page)
                yield [Entry(item["Key"], item["Size"]) for item in page.get("Contents", ())]

    def _check_page(self, key: str, page: dict[str, Any]) -> None:
        """Raises our error for an answer that the library would take for a listing's last page, and that is none."""
        if "IsTruncated" not in page:
            # Perhaps it broke off within its headers, which http.client takes for their end.
            raise s3_errors.no_page(self._label, key, self.endpoint)
        if page["IsTruncated"] and not page.get("NextContinuationToken"):
            raise CorruptError(self._label, key, s3_errors.CUT_SHORT)
        for item in page.get("Contents", ()):
            if not ("Key" in item and 0 <= item.get("Size", -1) < 1 << 63):
                problem = f"the listing has an object without a name, or of no possible size ({item.get('Key')})"
                raise CorruptError(self._label, key, problem)

    def open(self, bucket: str) -> None:
        """Nothing: one client serves every bucket."""

    def size(self, bucket: str, key: str) -> int:
        with self._errors(f"s3://{bucket}/{key}"):
            answer = self._client.head_object(Bucket=bucket, Key=key)
            self._check_headers(f"s3://{bucket}/{key}", answer)
            return int(answer["ContentLength"])

    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> bytes:
        with self._errors(f"s3://{bucket}/{key}"):
            return self._get(bucket, key)

    def get_verified(self, bucket: str, key: str, size_bytes: int | None = None) -> bytes:
        """As `get`, held against the checksum that the server has of the object.

        Raises `MisconfiguredError` where the answer bears none that is of the whole content. An ETag is none: of what
        came in parts, or lies encrypted, it is no MD5.
        """
        with self._errors(f"s3://{bucket}/{key}"):
            return self._get(bucket, key, ChecksumMode="ENABLED")

    def get_range(self, bucket: str, key: str, start: int, end: int) -> Part:
        """The bytes from ``start`` up to but without ``end``; none where that is past the end of the object."""
        with self._errors(f"s3://{bucket}/{key}"):
            try:
                response = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            except ClientError as exc:
                if exc.response.get("Error", {}).get("Code") in ("InvalidRange", "416"):
                    return Part(b"")
                raise
            told = _CONTENT_RANGE.match(response.get("ContentRange", ""))
            if response["ResponseMetadata"]["HTTPStatusCode"] != PARTIAL or (told and int(told[1]) != start):
                response["Body"].close()
                what = response.get("ContentRange", "the whole object")
                raise s3_errors.not_the_range(self._label, f"s3://{bucket}/{key}", what)
            total_bytes = int(told[2]) if told and told[2] != "*" else None
            return Part(self._content(bucket, key, response), total_bytes, response.get("ETag"))

    def _get(self, bucket: str, key: str, **options: Any) -> bytes:
        return self._content(bucket, key, self._client.get_object(Bucket=bucket, Key=key, **options), **options)

    def _content(self, bucket: str, key: str, response: dict[str, Any], **options: Any) -> bytes:
        # Not `with response["Body"]`: that gives the stream below botocore's, without its checks and errors.
        with closing(response["Body"]) as body:
            self._check_headers(f"s3://{bucket}/{key}", response)
            if "ChecksumMode" in options and not isinstance(body, StreamingChecksumBody):
                why = "no manifest, and the server's answer bears none of the whole content"
                raise MisconfiguredError(self._label, f"s3://{bucket}/{key}", no_checksum(why))
            return bytes(body.read())

    def _check_headers(self, key: str, answer: dict[str, Any]) -> None:
        """Raises our error for an answer that broke off within its headers: http.client takes that for their end."""
        if "ContentLength" not in answer and "transfer-encoding" not in answer["ResponseMetadata"]["HTTPHeaders"]:
            raise s3_errors.broken_off(self._label, key, self.endpoint, "it does not say how long it is")

    def put(self, bucket: str, key: str, data: bytes) -> None:
        with self._errors(f"s3://{bucket}/{key}"):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def create_bucket(self, bucket: str) -> None:
        with self._errors(f"s3://{bucket}"):
            self._client.create_bucket(Bucket=bucket)

    def delete(self, bucket: str, key: str) -> None:
        with self._errors(f"s3://{bucket}/{key}"):
            self._client.delete_object(Bucket=bucket, Key=key)

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def settings() -> dict[str, Any]:
        """Library versions and the settings that govern speed and patience."""
        return {
            "boto3": boto3.__version__,
            "botocore": botocore.__version__,
            "max_connections": MAX_CONNECTIONS,
        }

    def _begin_call(self, model: Any, **_: Any) -> None:
        # After a redirect the library asks by HeadBucket where the bucket is; and again, if that is redirected, ...
        looks = model.name == "HeadBucket"
        if looks and self._call.looks:
            raise _RedirectedAgainError
        self._call.requests, self._call.looks = 0, looks

    def _count(self, request: Any, **_: Any) -> None:
        # Told of every request in the calling thread. Again in one call: the library has found the bucket elsewhere.
        self._call.requests += 1
        if self._call.requests > 1:
            self._meter.retry()
        verb = request.method
        if verb == "GET" and "list-type=2" in request.url:
            verb = "LIST"
        self._meter.request(verb)

    def _note_response(self, parsed: dict[str, Any], **_: Any) -> None:
        metadata = parsed.get("ResponseMetadata", {})
        self.server = metadata.get("HTTPHeaders", {}).get("server", self.server)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except ClientError as exc:
            raise self._from_response(key, exc) from exc
        except FlexibleChecksumError as exc:
            problem = "the content differs from the checksum that the server has of it; write the object again"
            raise CorruptError(self._label, key, problem) from exc
        except ConnectionError as exc:
            raise self._from_connecting(key, exc) from exc
        except (HTTPClientError, IncompleteReadError) as exc:
            if "Invalid header value" in str(exc):
                # Its text shows the value, which is a credential.
                problem = "a credential holds a line break, or another character that no request can carry"
                raise MisconfiguredError(self._label, key, problem) from None
            raise self._from_connection(key, exc) from exc
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as exc:
            problem = f"no credentials ({exc}); set storage.s3…credentials or the AWS environment"
            raise DeniedError(self._label, key, problem) from exc
        except _RedirectedAgainError as exc:
            raise s3_errors.redirected(self._label, key, "whatever is asked for") from exc
        except PaginationError as exc:
            raise CorruptError(self._label, key, f"the listing's pages cannot be trusted ({exc})") from exc
        except (BotoCoreError, ValueError) as exc:
            raise MisconfiguredError(self._label, key, " ".join(str(exc).split())) from exc

    def _from_connecting(self, key: str, exc: ConnectionError) -> StorageError:
        if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return s3_errors.untrusted(self._label, key, self.endpoint, _why_untrusted(str(exc)))
        if f"[Errno {errno.EMFILE}]" in str(exc.kwargs.get("error")):
            return s3_errors.no_more_files(self._label, key)
        why = type(exc).__name__
        if isinstance(exc, ConnectTimeoutError):
            why = f"within {self._rules.connect_timeout_s:g} s"
        return s3_errors.unreachable(self._label, key, self.endpoint, why)

    def _from_connection(self, key: str, exc: Exception) -> StorageError:
        if isinstance(exc, ReadTimeoutError):
            return s3_errors.no_answer(self._label, key, self.endpoint, self._rules.read_timeout_s)
        if isinstance(exc, ConnectionClosedError | IncompleteReadError | ResponseStreamingError):
            return s3_errors.broken_off(self._label, key, self.endpoint, type(exc).__name__)
        return TransientError(self._label, key, f"{type(exc).__name__}: {' '.join(str(exc).split())}")

    def _from_response(self, key: str, exc: ClientError) -> StorageError:
        code = exc.response.get("Error", {}).get("Code", "")
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        retry_after = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after")
        listing = exc.operation_name.startswith("List")
        return s3_errors.from_answer(self._label, key, status, code, listing, retry_after)


@functools.lru_cache
def _session(pid: int, profile: str | None) -> boto3.session.Session:
    """A process's session of a profile: what a client is built from is read from disk once, for all endpoints."""
    return boto3.session.Session(profile_name=profile)


def aws_chain(credentials: S3Credentials, label: str) -> tuple[str | None, Callable[[], dict[str, Any]] | None]:
    """What the standard AWS chain says: (region, a function that gives the keys that are valid now), or Nones.

    For client libraries that know less of the chain. The function's result has ``access_key_id``,
    ``secret_access_key``, ``token`` and ``expires_at``. Raises our errors.
    """
    # It says in our words what is wrong with a profile, and where there are no keys.
    Boto3Client(credentials, Meter(), label).close()
    session = _session(os.getpid(), credentials.profile)
    found = session.get_credentials()

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        # Asked again before what an instance's role lends has run out.
        expires_at = datetime.now(UTC) + timedelta(minutes=5) if hasattr(found, "_expiry_time") else None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expires_at,
        }

    return session.region_name, current if found is not None else None


def _boto_config(own_endpoint: bool, signed: bool, rules: Requests) -> BotoConfig:
    return BotoConfig(
        connect_timeout=rules.connect_timeout_s,
        read_timeout=rules.read_timeout_s,
        # Asked again by `Attempts`.
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=MAX_CONNECTIONS,
        user_agent_extra="dnnbench",
        # Servers that are not AWS seldom have a name per bucket.
        s3={"addressing_style": "path" if own_endpoint else "auto"},
        # Other servers do not all know the newer checksums; `get_verified` asks for one by itself.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version=None if signed else UNSIGNED,
    )


def _why_untrusted(text: str) -> str:
    """What OpenSSL has against a certificate, of its error's text."""
    return text.partition("verify failed: ")[2].partition(" (_ssl")[0] or "it is not trusted"


def _reveal(secret: Any) -> str | None:
    return None if secret is None else str(secret.get_secret_value())

"""The s3torchconnector client (AWS's CRT): one S3 endpoint, any bucket. The only file that imports s3torchconnector."""

from __future__ import annotations

import os
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from dnnbench.config import DEFAULT_REQUESTS, Requests, S3Credentials
from dnnbench.storage import s3_errors
from dnnbench.storage.base import Entry, Meter
from dnnbench.storage.crt import LOG, environment
from dnnbench.storage.errors import MisconfiguredError, StorageError, TransientError
from dnnbench.storage.ranges import Part
from dnnbench.storage.s3_errors import PastTheEndError, UncountedClient

with LOG.kept():
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client
    from s3torchconnectorclient import S3Exception

# The library's default: larger objects come in several ranged requests of this size.
PART_BYTES = 8 * 1024 * 1024
_STATUS = re.compile(r"response_status: (\d+)")
_CRT_ERROR = re.compile(r"AWS_(?:IO|ERROR|S3)_\w+")
# What the library says in words only, as (HTTP status, S3 error code).
_IN_WORDS = {
    "Request throttled": (503, "SlowDown"),
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_TOKEN_EXPIRED": (403, "ExpiredToken"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
    "bucket does not exist": (404, "NoSuchBucket"),
    "key does not exist": (404, "NoSuchKey"),
    "object was not found": (404, "NoSuchKey"),
    "orbidden": (403, "AccessDenied"),
}
# Every write is a multipart upload, and Ceph 16 ends one with an empty ETag.
_NO_ETAG = 'Header "ETag" not found'
# What it says where it asked for a range and got the whole object, or another range.
_NOT_THE_RANGE = re.compile(r"CONTENT_RANGE_HEADER|DEST_COPY_TOO_SMALL|wrong offset")
_PROFILE = "dnnbench"
# Where the library looks for trusted certificates, which may be another place than Python's.
_SYSTEMS_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
# The fewest that the library makes: for 1 it takes its default, which is 4.
_OWN_ATTEMPTS = 2


class TorchConnectorClient(UncountedClient):
    """Requests to one endpoint. ``label`` names the storage in errors; every request is counted in ``meter``."""

    begins_after = False
    library_errors = (S3Exception,)

    def __init__(
        self,
        credentials: S3Credentials,
        meter: Meter,
        label: str,
        rules: Requests = DEFAULT_REQUESTS,
        verify_tls: bool | str = True,
    ) -> None:
        # The library takes no time-outs: a `Watchdog` keeps those of the rules.
        super().__init__(meter, label, credentials.endpoint)
        if not (credentials.endpoint or "").startswith("http://"):
            self._check_certificate(credentials.endpoint, verify_tls, rules.connect_timeout_s)
        self._client = _SignedClient(credentials, label, verify_tls)

    def open(self, bucket: str) -> None:
        """Builds the native client, which serves every bucket."""
        try:
            _ = self._client._client
        except S3Exception as exc:
            raise self._error_of(f"s3://{bucket}", exc) from exc

    def _check_certificate(self, endpoint: str | None, verify_tls: bool | str, timeout_s: float) -> None:
        """Raises our error for a certificate that is not trusted: after one the library waits for half a minute."""
        if verify_tls is False:
            problem = (
                "s3torchconnector cannot go without verifying certificates (storage.s3.verify_tls is false); name the "
                "file of the server's CA there instead, or use the client boto3 or obstore"
            )
            raise MisconfiguredError(self._label, endpoint or "AWS", problem)
        if endpoint is None:
            return
        trusted = ssl.create_default_context()
        for path in [verify_tls] if isinstance(verify_tls, str) else filter(os.path.isfile, _SYSTEMS_CERTIFICATES):
            trusted.load_verify_locations(path)
        parts = urllib.parse.urlsplit(endpoint)
        try:
            with (
                socket.create_connection((parts.hostname, parts.port or 443), timeout_s) as connection,
                trusted.wrap_socket(connection, server_hostname=parts.hostname),
            ):
                """It is trusted."""
        except ssl.SSLCertVerificationError as exc:
            raise s3_errors.untrusted(self._label, endpoint, endpoint, exc.verify_message) from exc
        except OSError:
            """What else is wrong the first request will tell."""

    def _answers(self, bucket: str, prefix: str, start_after: str) -> Iterator[Any]:
        # The library cannot begin a listing in the middle: what comes before is listed and left out.
        yield from self._client.list_objects(bucket, prefix)

    def _entries(self, answer: Any) -> Sequence[Entry]:
        return [Entry(one.key, one.size) for one in answer.object_info]

    def size(self, bucket: str, key: str) -> int:
        return int(self._ask("HEAD", bucket, key, lambda: self._client.head_object(bucket, key).size))

    def get(self, bucket: str, key: str, size_bytes: int | None = None) -> bytes:
        """The object; of more than `PART_BYTES` in several requests."""
        requests = max(-(-(size_bytes or 0) // PART_BYTES), 1)
        try:
            data = bytes(self._ask("GET", bucket, key, lambda: self._client.get_object(bucket, key).read(), requests))
        except PastTheEndError:
            # The library asks for ranges, of which an empty object has none: some servers (Ceph) refuse even the first.
            return b""
        # Where the size was not known before, the requests after the first are known now.
        if size_bytes is None and len(data) > PART_BYTES:
            self._meter.request("GET", -(-len(data) // PART_BYTES) - 1)
        return data

    def get_range(self, bucket: str, key: str, start: int, end: int) -> Part:
        """The bytes from ``start`` up to but without ``end``; none where that is past the end of the object.

        The library tells neither the object's length nor its ETag.
        """
        requests = -(-(end - start) // PART_BYTES)

        def ranged() -> bytes:
            return b"".join(self._client._get_object_stream(bucket, key, start, end))

        try:
            return Part(self._ask("GET", bucket, key, ranged, requests))
        except PastTheEndError:
            return Part(b"")

    def put(self, bucket: str, key: str, data: bytes) -> None:
        def whole() -> None:
            writer = self._client.put_object(bucket, key)
            try:
                writer.write(data)
                writer.close()  # type: ignore[no-untyped-call]
            except S3Exception as exc:
                # The object is there, but for want of an ETag in the last answer the library takes that for a failure.
                if _NO_ETAG not in str(exc) or self.get(bucket, key, len(data)) != data:
                    raise

        self._ask("PUT", bucket, key, whole)

    def close(self) -> None:
        self._client.let_go()

    @staticmethod
    def settings() -> dict[str, Any]:
        """Library version and the settings that govern speed and patience."""
        return {
            "s3torchconnector": version("s3torchconnector"),
            "part_bytes": PART_BYTES,
            "own_attempts": _OWN_ATTEMPTS if LOG.is_kept else f"{_OWN_ATTEMPTS}, not counted: its log is not ours",
        }

    def _count_repeated(self, verb: str) -> None:
        repeated = LOG.repeated()
        if repeated:
            self._meter.request(verb, repeated)
            self._meter.retry(repeated)

    def _error_of(self, key: str, error: Exception, listing: bool = False) -> StorageError:
        told = self._told(key, str(error), listing)
        if isinstance(told, TransientError):
            told.attempts = _OWN_ATTEMPTS
        return told

    def _told(self, key: str, text: str, listing: bool) -> StorageError:
        status, crt = _STATUS.search(text), _CRT_ERROR.search(text)
        if status and status[1] == "416":
            return PastTheEndError(self._label, key, "the range begins behind the object's end")
        answer = next((answer for words, answer in _IN_WORDS.items() if words in text), None)
        if answer or (status and status[1] != "0"):
            number, code = answer or (int(status[1] if status else 0), s3_errors.code_in(text))
            return s3_errors.from_answer(self._label, key, number, code, listing)
        if _NOT_THE_RANGE.search(text):
            return s3_errors.not_the_range(self._label, key, "something else")
        if crt and crt[0].endswith("_CLOSED"):
            return s3_errors.broken_off(self._label, key, self.endpoint, crt[0])
        if crt and crt[0].startswith("AWS_IO_"):
            return s3_errors.unreachable(self._label, key, self.endpoint, crt[0])
        return TransientError(self._label, key, f"s3torchconnector: {crt[0] if crt else text[:200]}")


class _SignedClient(S3Client):
    """The library's client with the configured keys, which it takes from a profile alone.

    The profile is a file that only this process has, in memory; the library builds its native client
    anew after a fork.
    """

    def __init__(self, credentials: S3Credentials, label: str, verify_tls: bool | str) -> None:
        self._profile: int | None = None
        self._certificates = verify_tls if isinstance(verify_tls, str) else None
        region, profile, unsigned = credentials.region_name, credentials.profile, False
        if credentials.access_key is not None:
            self._profile, profile = _profile_in_memory(credentials), _PROFILE
        else:
            from dnnbench.storage.s3_boto3 import aws_chain

            region_of_chain, current = aws_chain(credentials, label)
            region, unsigned = region or region_of_chain, current is None
        config = S3ClientConfig(
            part_size=PART_BYTES,
            unsigned=unsigned,
            # Servers that are not AWS seldom have a name per bucket.
            force_path_style=credentials.endpoint is not None,
            max_attempts=_OWN_ATTEMPTS,
            profile=profile,
        )
        super().__init__(region or "us-east-1", endpoint=credentials.endpoint, s3client_config=config)

    def let_go(self) -> None:
        """Lets go of the native client and of the keys."""
        self._native_client: Any = None
        if self._profile is not None:
            os.close(self._profile)
            self._profile = None

    def _client_builder(self) -> Any:
        variables: dict[str, str] = {}
        if self._profile is not None:
            variables |= {
                "AWS_SHARED_CREDENTIALS_FILE": f"/proc/self/fd/{self._profile}",
                "AWS_CONFIG_FILE": os.devnull,
            }
        if self._certificates is not None:
            variables["SSL_CERT_FILE"] = self._certificates
        with environment(variables):
            return super()._client_builder()


def _profile_in_memory(credentials: S3Credentials) -> int:
    """An open credentials file with the keys as a profile; it is in memory, and ends with this process."""
    lines = [f"[{_PROFILE}]"]
    for name, secret in (
        ("aws_access_key_id", credentials.access_key),
        ("aws_secret_access_key", credentials.secret_key),
        ("aws_session_token", credentials.session_token),
    ):
        if secret is not None:
            lines.append(f"{name}={secret.get_secret_value()}")
    handle = os.memfd_create("dnnbench-credentials")
    os.write(handle, ("\n".join(lines) + "\n").encode())
    return handle

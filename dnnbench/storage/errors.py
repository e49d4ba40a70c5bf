"""What can go wrong with a storage. Each backend maps its library's errors to these, in one place.

StorageError
├── NotFoundError          no such object, bucket or folder
├── DeniedError            the credentials are wrong or do not suffice
├── TransientError         throttled, timed out or a server's error, after all retries
│   └── UnreachableError   no connection could be made, or no answer came in time
├── CorruptError           the content is not what it must be (length, checksum, no image)
└── MisconfiguredError     a setting cannot work
"""

from __future__ import annotations

from dnnbench.errors import DnnbenchError


class StorageError(DnnbenchError):
    """``storage``: its label in messages; ``key``: the object or prefix; ``problem``: what is wrong and what to do."""

    def __init__(self, storage: str, key: str, problem: str) -> None:
        super().__init__(storage, str(key), problem)
        self.storage, self.key, self.problem = storage, str(key), problem

    def reword(self, problem: str) -> None:
        """Says more of what is wrong."""
        self.problem = problem
        self.args = (self.storage, self.key, problem)

    def __str__(self) -> str:
        return f"{self.storage}: {_printable(self.key)}: {_printable(self.problem)}"


def _printable(text: str) -> str:
    # Keys are data, and problems may quote them or a server: both may hold line breaks or terminal codes.
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class NotFoundError(StorageError):
    """No such object, bucket or folder."""


class DeniedError(StorageError):
    """The credentials are wrong or do not suffice."""


class TransientError(StorageError):
    """Throttled, timed out or a server's error, after all retries.

    ``attempts``: how many the client library has made by itself. ``broke_off``: whether a connection was closed on it.
    ``retry_after_s``: the pause that the server asked for, where the library tells of it.
    """

    attempts = 1
    broke_off = False
    retry_after_s = 0.0


class UnreachableError(TransientError):
    """No connection could be made, or no answer came in time."""


class CorruptError(StorageError):
    """The content is not what it must be."""


class MisconfiguredError(StorageError):
    """A setting cannot work."""

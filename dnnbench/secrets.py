"""Keeps secrets out of what is shown of an error. In the configuration they are masked by their type."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType

from dnnbench.errors import DnnbenchError

# Where requests are signed and sent: the values there are keys, tokens, signatures and the server's answers to them.
_INSIDE = ("dnnbench.storage", "dnnbench.config", "boto3", "botocore", "obstore", "s3torchconnector", "urllib3", "http")


def hide_secrets(error: BaseException) -> None:
    """Leaves of an error, and of those behind it, what may be shown together with the values of variables.

    Frames of the storages and of client libraries go, and what a client library said goes where our own error has
    said it in our words. Of the frames the lines stay, as a note.
    """
    for one in _chain(error):
        if isinstance(one, DnnbenchError):
            one.__cause__ = one.__context__ = None
        lines = _cut(one)
        if lines and not isinstance(one, DnnbenchError):
            one.add_note("Inside of the storage, without its values:\n" + "".join(lines).rstrip())


def _chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for behind in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        yield from _chain(behind, seen)


def _cut(error: BaseException) -> list[str]:
    """Ends an error's traceback before the first frame inside; returns the lines of what was cut off."""
    before: TracebackType | None = None
    here = error.__traceback__
    while here is not None and not _is_inside(here):
        before, here = here, here.tb_next
    if here is None:
        return []
    lines = traceback.format_tb(here)
    if before is None:
        error.__traceback__ = None
    else:
        before.tb_next = None
    return lines


def _is_inside(trace: TracebackType) -> bool:
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    return any(module == name or module.startswith(f"{name}.") for name in _INSIDE)

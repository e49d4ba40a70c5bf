"""The kernel's page cache of local files: emptied or filled for a round, and verified page by page.

``posix_fadvise`` only asks; ``mincore(2)`` says what is there. What cannot be verified is
``unknown``: a memory file system, a file of another user, pages that somebody else holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from array import array
from collections.abc import Iterable

COLD, WARM, UNKNOWN = "cold", "warm", "unknown"
# A pipe that has taken a file's place is not waited for.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def make_cold(paths: Iterable[str]) -> str:
    """Drops each file from the page cache. ``cold`` where every page of every file is verified gone.

    A file that is there under two names (as a link, or in a folder behind one) is never cold: it would be read twice.
    """
    cold = True
    devices, inodes = array("Q"), array("Q")
    for path in paths:
        handle = os.open(path, _OPEN_FLAGS)
        try:
            info = os.fstat(handle)
            devices.append(info.st_dev)
            inodes.append(info.st_ino)
            # Pages that are not yet on the disk cannot be dropped. Where this fails, `mincore` will tell.
            with contextlib.suppress(OSError):
                os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            resident, _ = resident_pages(handle)
            cold = cold and resident == 0
        except OSError:
            cold = False
        finally:
            os.close(handle)
    # The second reading of the same file in one round would be memory's, under whichever name.
    if _has_repeated(devices, inodes):
        return UNKNOWN
    return COLD if cold else UNKNOWN


def _has_repeated(devices: array[int], inodes: array[int]) -> bool:
    import numpy as np

    of_device, of_file = np.asarray(devices, dtype=np.uint64), np.asarray(inodes, dtype=np.uint64)
    for device in set(devices):
        # A set of pairs would take a gigabyte for ten million files.
        there = np.sort(of_file[of_device == device])
        if (there[1:] == there[:-1]).any():
            return True
    return False


def make_warm(paths: Iterable[str]) -> str:
    """Reads each file. ``warm`` where every page of every file is verified to be in the cache after all reads."""
    everything = list(paths)
    for path in everything:
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, _OPEN_FLAGS)) as file:
            # A device that has taken a file's place may have no end.
            while stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(1 << 20):
                pass
    return WARM if all(_is_resident(path) for path in everything) else UNKNOWN


def _is_resident(path: str) -> bool:
    handle = os.open(path, _OPEN_FLAGS)
    try:
        resident, pages = resident_pages(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
    return resident == pages


def resident_pages(handle: int) -> tuple[int, int]:
    """(pages in the cache, pages of the file) of an open file. Raises `OSError` where the kernel won't say."""
    size_bytes = os.fstat(handle).st_size
    if size_bytes == 0:
        return 0, 0
    if not _is_told(handle):
        raise PermissionError(errno.EPERM, "mincore(2) calls every page of another user's file resident")
    pages = -(-size_bytes // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    # A private writable mapping, because ctypes takes the address of writable buffers only; nothing is written.
    with mmap.mmap(handle, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        states = (ctypes.c_ubyte * pages)()
        first = ctypes.c_char.from_buffer(mapping)
        try:
            failed = libc.mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size_bytes), ctypes.byref(states)
            )
        finally:
            del first
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return sum(state & 1 for state in states), pages


def _is_told(handle: int) -> bool:
    """Whether ``mincore`` tells us the truth of a file: where it is ours, or we may write it (Linux 5.2 and later)."""
    mine = os.geteuid() in (0, os.fstat(handle).st_uid)
    return mine or os.access(f"/proc/self/fd/{handle}", os.W_OK, effective_ids=True)

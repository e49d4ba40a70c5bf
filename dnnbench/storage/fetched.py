"""What the machine fetched while something was read, by the kernel's counters. The page cache's pages are `page_cache`.

Which counter sees the fetches of a file system is tried out: some files are dropped from the page cache and read, and
a counter that does not rise by their bytes is blind there. A file system that none sees has no audit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence

from dnnbench.calm import Span
from dnnbench.metrics_rounds import PROCESSES
from dnnbench.probe import descendants
from dnnbench.storage import page_cache

# What is read to try out the counters: of so many files, spread over all, so much of each.
TRIED_FILES = 16
TRIED_BYTES = 256 * 1024
# The kernel does not drop a page that it is still busy with.
TRIES = 3
# Over the network, with no counter of their own.
NETWORKED = ("cifs", "smb3", "ceph", "lustre", "beegfs", "afs", "gpfs", "fuse.glusterfs", "fuse.sshfs")
# What these fetch may rightly be less than what they deliver.
COMPRESSING = ("btrfs", "zfs", "bcachefs", "squashfs", "erofs", "ntfs3", "f2fs")
NFS, DEVICE, NETWORK = "nfs", "device", "network"
_SECTOR_BYTES = 512
_READ_BYTES = re.compile(rb"^read_bytes: (\d+)$", re.MULTILINE)
_INTERFACE = re.compile(r"^\s*(\S+):\s*(\d+)", re.MULTILINE)


class FetchAudit:
    """Counts what is fetched between `start` and `stop`, which may come several times; a new one for each round."""

    def __init__(self, audited: Audited | None) -> None:
        self._audited = audited
        self._span = Span(audited.read if audited else dict)

    def start(self) -> None:
        """Counts from now on."""
        self._span.start()

    def stop(self) -> None:
        """Counts no further."""
        self._span.stop()

    def fetched(self) -> tuple[int | None, str | None]:
        """(bytes that were fetched, the counter's name); None where no counter sees them."""
        if not self._span.grown:
            return None, None
        # The data came by one of the network's ways; whatever came by the others was not them.
        name, grown = max(self._span.grown.items(), key=lambda item: item[1])
        return round(grown), name


class Audited:
    """The counters that see what is read. ``stored_share``: how much of the bytes of all files a disk holds."""

    stored_share = 1.0

    def read(self) -> dict[str, float]:
        """The counters now, by name."""
        raise NotImplementedError


class AuditedNetwork(Audited):
    """Each network interface: for object storage. A local server is reached through the loopback."""

    def read(self) -> dict[str, float]:
        return dict(received_bytes())


class AuditedFiles(Audited):
    """The counter that sees fetches from the file systems of ``paths``. `find` tells where there is none.

    ``without`` are processes that are ours but do not read for us.
    """

    def __init__(self, paths: Sequence[str], without: Collection[int] = ()) -> None:
        self._without = frozenset(without)
        self._path = os.path.realpath(paths[0])
        self._types = {mount_of(path)[1] for path in _some_of(paths)}
        # All of them, until one is chosen.
        self._only: str | None = None

    @classmethod
    def find(cls, paths: Sequence[str], without: Collection[int] = ()) -> AuditedFiles | None:
        """The audit of these files, or None where no counter sees what is fetched from them.

        Raises `OSError` where they cannot be read.
        """
        audited = cls(paths, without)
        audited._only = None if audited._types & set(COMPRESSING) else audited._try(paths)
        if audited._only is None:
            return None
        audited.stored_share = _stored_share(paths)
        return audited

    @classmethod
    def chosen(cls, paths: Sequence[str], choice: tuple[str, float], without: Collection[int] = ()) -> AuditedFiles:
        """The audit of these files by the `choice` of another process of this host."""
        audited = cls(paths, without)
        audited._only, audited.stored_share = choice
        return audited

    @property
    def choice(self) -> tuple[str, float]:
        """(the counter's name, ``stored_share``) of an audit that was found."""
        return self._only or "", self.stored_share

    def read(self) -> dict[str, float]:
        readers = {PROCESSES: self._by_processes, NFS: self._by_nfs, DEVICE: self._by_device, NETWORK: self._by_network}
        found: dict[str, float] = {}
        for name, read in readers.items():
            if self._only in (None, name):
                told = read()
                if told is not None:
                    found[name] = told
        return found

    def _try(self, paths: Sequence[str]) -> str | None:
        """The first counter that rises by what is read from files that are not in the page cache."""
        some = _some_of(paths)
        for _ in range(TRIES):
            cold = page_cache.make_cold(some) == page_cache.COLD
            span = Span(self.read)
            span.start()
            read_bytes = sum(_read_some(path) for path in some)
            span.stop()
            seen = [name for name, grown in span.grown.items() if grown >= read_bytes > 0]
            # What others read shows in every counter but our own: where pages stayed, it may be all that rose.
            if PROCESSES in seen or cold:
                return next(iter(seen), None)
        return None

    def _by_processes(self) -> float | None:
        """What this process and those that it started made the kernel read, those that have ended included."""
        total = 0
        for pid in (os.getpid(), *descendants()):
            if pid in self._without:
                continue
            try:
                with open(f"/proc/{pid}/io", "rb") as file:
                    found = _READ_BYTES.search(file.read())
            except (FileNotFoundError, ProcessLookupError):
                # It has ended: whoever waited for it has its bytes now.
                continue
            except OSError:
                return None
            if found is None:
                return None
            total += int(found[1])
        return total

    def _by_nfs(self) -> float | None:
        try:
            with open("/proc/self/mountstats") as file:
                return nfs_read_bytes(file.read(), mount_of(self._path)[0])
        except OSError:
            return None

    def _by_device(self) -> float | None:
        device = os.stat(self._path).st_dev
        try:
            with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
                return int(file.read().split()[2]) * _SECTOR_BYTES
        except OSError:
            # A file system of its own, without a block device.
            return None

    def _by_network(self) -> float | None:
        return max((value for _, value in received_bytes()), default=None) if self._types <= set(NETWORKED) else None


def received_bytes() -> Iterator[tuple[str, int]]:
    """(``network`` and the interface's name, the bytes that it has received) of each network interface."""
    try:
        with open("/proc/net/dev") as file:
            text = file.read()
    except OSError:
        return
    yield from ((f"{NETWORK} {name}", int(count)) for name, count in _INTERFACE.findall(text))


def nfs_read_bytes(mountstats: str, mount: str) -> int | None:
    """Bytes that an NFS mount has read from its server, from the text of ``/proc/self/mountstats``."""
    _, here, rest = mountstats.partition(f" mounted on {mount} with fstype nfs")
    section = rest.partition("\ndevice ")[0]
    found = re.search(r"^\s*bytes:\s+(.+)$", section, re.MULTILINE)
    # By the kernel's order: read and written by calls, the same past the page cache, then from and to the server.
    return int(found[1].split()[4]) if here and found else None


def mount_of(path: str) -> tuple[str, str]:
    """(the place, the file system's type) of the mount that holds a path."""
    real, best = os.path.realpath(path), ("/", "")
    try:
        with open("/proc/self/mounts") as file:
            lines = [line.split() for line in file]
    except OSError:
        return best
    for _, written, kind, *_ in lines:
        # The kernel writes white space as octal numbers; of two mounts on one place the later one counts.
        place = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), written)
        if (real + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best[0]):
            best = place, kind
    return best


def _some_of(paths: Sequence[str]) -> list[str]:
    """A few of them, from the first to the last."""
    count = min(len(paths), TRIED_FILES)
    return [paths[number * (len(paths) - 1) // max(count - 1, 1)] for number in range(count)]


def _read_some(path: str) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stored_bytes = os.fstat(handle).st_blocks * _SECTOR_BYTES
        return min(len(os.pread(handle, TRIED_BYTES, 0)), stored_bytes)
    finally:
        os.close(handle)


def _stored_share(paths: Sequence[str]) -> float:
    """Less than 1 for files with holes, and for small ones that are held in their inodes: nothing is fetched there."""
    size_bytes = stored_bytes = 0
    for path in paths:
        info = os.stat(path)
        size_bytes += info.st_size
        stored_bytes += min(info.st_size, info.st_blocks * _SECTOR_BYTES)
    return stored_bytes / size_bytes if size_bytes else 0.0

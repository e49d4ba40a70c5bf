"""Ends what takes too long: shuts down the connections of this process under a call that its library would wait on.

No library bounds an operation as a whole, and s3torchconnector has no time-outs that can be set. One thread of the
process looks at the calls that are under way, a few times per time-out; a call costs it two entries in a dictionary.
What the kernel knows of a connection (TCP_INFO, of Linux) tells one that is silent from one that is busy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import urllib.parse
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from dnnbench.config import Requests

# Looks per time-out: so much later, at most, than it says does a call end.
LOOKS = 8
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.01, 1.0
# Of linux/tcp.h: the state, and at these bytes of struct tcp_info the milliseconds since data was last sent and came.
_CONNECTED, _CONNECTING = 1, 2
_SENT_AT, _CAME_AT, _INFO_BYTES = 44, 52, 104

CONNECT, READ = "connect", "read"

_now_s, _this_thread = time.monotonic, threading.get_ident


class Connection(NamedTuple):
    """One TCP connection of this process, by an own handle. ``peer``: None while it is being made."""

    handle: socket.socket
    inode: int
    peer: tuple[str, int] | None
    # Since data last went either way.
    silent_s: float


class Watchdog:
    """Watches the calls of one storage in this process. ``silence``: whether its client has no time-outs of its own."""

    def __init__(self, rules: Requests, silence: bool) -> None:
        self._rules, self._silence = rules, silence
        # By thread: when its operation began, and the attempt that is under way.
        self._calls_s: dict[int, tuple[float, float]] = {}
        # By thread: under which time-out its attempt was cut off.
        self._cut: dict[int, str] = {}
        self._places: set[tuple[str, int]] = set()
        # When a connection that is being made was first seen, by its inode.
        self._connecting_s: dict[int, float] = {}
        shortest_s = min(rules.connect_timeout_s, rules.read_timeout_s) if silence else rules.total_timeout_s
        self.look_s = min(max(shortest_s / LOOKS, SHORTEST_LOOK_S), LONGEST_LOOK_S)
        with _starting:
            _watched.add(self)

    def add(self, endpoint: str | None) -> None:
        """Connections to this endpoint (None: AWS) are the storage's."""
        parts = urllib.parse.urlsplit(endpoint or "https://")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        # A name may stand for many addresses that change: then the port is what counts.
        host = parts.hostname or ""
        self._places.add((host if _is_address(host) else "", port))

    def begin(self, operation_s: float | None = None) -> float:
        """The calling thread begins an attempt of the operation that began then (None: now); returns when that was."""
        if _watcher is None:
            _start()
        now_s = _now_s()
        operation_s = operation_s or now_s
        if self._cut:
            self._cut.pop(_this_thread(), None)
        self._calls_s[_this_thread()] = operation_s, now_s
        return operation_s

    def end(self) -> None:
        """The calling thread's attempt is over."""
        self._calls_s.pop(_this_thread(), None)

    def cut(self) -> str:
        """CONNECT or READ where the attempt that the calling thread ended last was cut off for that, or ""."""
        return self._cut.get(_this_thread(), "")

    def forget(self) -> None:
        """A forked child has none of its parent's calls."""
        self._calls_s, self._cut = {}, {}

    def look(self) -> None:
        """Shuts down what has gone on for too long."""
        rules, now_s, calls_s = self._rules, _now_s(), list(self._calls_s.items())
        if any(now_s - operation_s >= rules.total_timeout_s for _, (operation_s, _) in calls_s):
            # Which connection it waits for is not known. The benchmark fails, so others may well have to ask again.
            self._shut_all()
        elif self._silence and calls_s:
            ages_s = {thread: now_s - attempt_s for thread, (_, attempt_s) in calls_s}
            if max(ages_s.values()) >= min(rules.connect_timeout_s, rules.read_timeout_s) - self.look_s:
                self._shut_silent(now_s, ages_s)

    def _shut_all(self) -> None:
        for connection in connections():
            with connection.handle:
                if connection.peer is None or self._is_ours(connection.peer):
                    _shut(connection)

    def _shut_silent(self, now_s: float, ages_s: dict[int, float]) -> None:
        """``ages_s``: how old the attempt of each thread is."""
        rules, connecting_s = self._rules, {}
        is_read_over = max(ages_s.values()) >= rules.read_timeout_s
        for connection in connections():
            with connection.handle:
                if connection.peer is None:
                    first_s = connecting_s[connection.inode] = self._connecting_s.get(connection.inode, now_s)
                    if now_s - first_s >= rules.connect_timeout_s - self.look_s:
                        self._note(CONNECT, rules.connect_timeout_s, ages_s)
                        _shut(connection)
                # One that is idle is shut as well: it is as silent, and opened anew when it is needed.
                elif is_read_over and connection.silent_s >= rules.read_timeout_s and self._is_ours(connection.peer):
                    self._note(READ, rules.read_timeout_s, ages_s)
                    _shut(connection)
        self._connecting_s = connecting_s

    def _note(self, what: str, timeout_s: float, ages_s: dict[int, float]) -> None:
        # Whose connection it was nobody tells: it is one of those that have waited for so long.
        self._cut.update((thread, what) for thread, age_s in ages_s.items() if age_s >= timeout_s - self.look_s)

    def _is_ours(self, peer: tuple[str, int]) -> bool:
        return peer in self._places or ("", peer[1]) in self._places


def connections() -> Iterator[Connection]:
    """The TCP connections of this process that are open or being made. Whoever takes one closes its handle."""
    seen = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            # One socket may have several numbers, and our own handles take those that have become free.
            if not target.startswith("socket:") or target in seen:
                continue
            seen.add(target)
            handle = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            # Closed since, or none that Python knows.
            continue
        found = _look_at(handle)
        if found is None:
            handle.close()
        else:
            yield found


def _look_at(handle: socket.socket) -> Connection | None:
    if handle.family not in (socket.AF_INET, socket.AF_INET6) or handle.type != socket.SOCK_STREAM:
        return None
    try:
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if info[0] not in (_CONNECTED, _CONNECTING):
            return None
        silent_s = min(struct.unpack_from("I", info, at)[0] for at in (_SENT_AT, _CAME_AT)) / 1000
        peer = handle.getpeername()[:2] if info[0] == _CONNECTED else None
        return Connection(handle, os.fstat(handle.fileno()).st_ino, peer, silent_s)
    except OSError:
        return None


def _shut(connection: Connection) -> None:
    try:
        connection.handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        """The other side was faster."""


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


# -- the thread ------------------------------------------------------------------------------------

_watched: weakref.WeakSet[Watchdog] = weakref.WeakSet()
_watcher: threading.Thread | None = None
_starting = threading.Lock()


def _start() -> None:
    global _watcher  # noqa: PLW0603 (one for the process)
    with _starting:
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, daemon=True, name="dnnbench-watchdog")
            _watcher.start()


def _watch() -> None:
    # A look opens a file, and there may be no more to be had, for the very calls that are to be ended. What fails is
    # looked at again: without this thread nothing would bound a call.
    spare = None
    while True:
        if spare is not None:
            os.close(spare)
        spare, look_s = None, SHORTEST_LOOK_S
        with contextlib.suppress(OSError):
            look_s = _look_at_all()
            spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        time.sleep(look_s)


def _look_at_all() -> float:
    """Seconds until the next look."""
    with _starting:
        watched = list(_watched)
    for watchdog in watched:
        watchdog.look()
    return min((watchdog.look_s for watchdog in watched), default=LONGEST_LOOK_S)


def _after_fork() -> None:
    global _watcher, _starting
    _watcher, _starting = None, threading.Lock()
    for watchdog in list(_watched):
        watchdog.forget()


os.register_at_fork(after_in_child=_after_fork)

"""Attempts, their pauses and their end; the watchdog that ends calls; the log in which the CRT tells of its repeats."""

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faulty import Proxy
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.config import Requests, S3Credentials
from dnnbench.storage import TransientError, UnreachableError, attempts, crt, watchdog
from dnnbench.storage.attempts import Attempts
from dnnbench.storage.base import Meter
from dnnbench.storage.s3 import CLIENTS, S3Storage
from dnnbench.storage.watchdog import connections


class Clock:
    """In the place of the module ``time``: it passes where somebody sleeps."""

    def __init__(self):
        self.now_s, self.slept_s = 100.0, []

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attempts, "time", clock)
    return clock


def _error(**told):
    error = TransientError("aws", "k", "the server answered 503 SlowDown")
    error.__dict__.update(told)
    return error


def _all(rules, endpoints=("a",), **told):
    """(the endpoints that are asked after one failure after the other, the last error's text, the retries)."""
    meter, asked = Meter(), []
    left = Attempts(Requests(**rules), meter, endpoints, attempts.time.monotonic())
    try:
        while True:
            asked.append(left.next(_error(**told)))
    except TransientError as exc:
        return asked, str(exc), meter.take().retries


@given(max_attempts=st.integers(1, 6), back_off_s=st.floats(0, 2))
def test_pauses_are_random_and_double(max_attempts, back_off_s):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "time", clock)
        rules = {"max_attempts": max_attempts, "back_off_s": back_off_s, "total_timeout_s": 1000}
        asked, text, retries = _all(rules)
    assert len(asked) == retries == len(clock.slept_s) == max_attempts - 1
    assert all(0 <= pause <= back_off_s * 2**i for i, pause in enumerate(clock.slept_s))
    assert text.endswith(f"given up after {max_attempts} attempt{'s' if max_attempts > 1 else ''}")


def test_every_endpoint_is_asked_before_there_is_a_pause(clock):
    asked, *_ = _all({"max_attempts": 5}, endpoints="abc")
    assert asked == ["b", "c", "a", "b"]
    assert [pause > 0 for pause in clock.slept_s] == [False, False, True, False]
    assert _all({"max_attempts": 1}, endpoints="abc")[0] == ["b", "c"]


def test_what_a_library_has_sent_by_itself_counts(clock):
    assert len(_all({"max_attempts": 3}, attempts=2)[0]) == 1


def test_the_pause_that_a_server_asks_for_is_made(clock):
    _all({"max_attempts": 3, "back_off_s": 0.1}, retry_after_s=7.0)
    assert clock.slept_s == [7.0, 7.0]


def test_no_pause_goes_past_the_total_timeout(clock):
    asked, text, retries = _all({"max_attempts": 9, "back_off_s": 0}, retry_after_s=25.0)
    assert len(asked) == retries == 2
    assert "given up after 3 attempts: a pause of 25 s would pass 60 s (storage.s3.requests.total_timeout_s)" in text


def test_an_operation_ends_with_its_time(clock):
    left = Attempts(Requests(back_off_s=0), Meter(), ["a"], clock.now_s)
    left.next(_error())
    clock.now_s += 60
    with pytest.raises(TransientError, match=r"not done within 60 s .*, in 2 attempts, the first of which: the server"):
        left.next(TransientError("aws", "k", "the answer broke off"))


# -- the watchdog ----------------------------------------------------------------------------------


@pytest.fixture
def silent_port():
    """A port at which connecting gets no answer: as many connections wait there as may."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for one in waiting:
            one.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_no_connection_is_waited_for_longer_than_it_may_take(silent_port, client):
    credentials = S3Credentials(endpoint=f"http://127.0.0.1:{silent_port}", access_key="a", secret_key="b")
    rules = Requests(connect_timeout_s=0.2, max_attempts=1, back_off_s=0)
    with pytest.raises(UnreachableError, match=r"no connection to http://127\.0\.0\.1:\d+ \(within 0\.2 s\)"):
        S3Storage("b", credentials, client, rules=rules).read("k")


def test_the_watchdog_outlives_a_look_that_fails(silent_port, monkeypatch):
    looks = []

    def fails_at_first():
        looks.append(None)
        if len(looks) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return connections()

    monkeypatch.setattr(watchdog, "connections", fails_at_first)
    # A thread of its own: one that has ended would bound nothing in later tests.
    monkeypatch.setattr(watchdog, "_watcher", None)
    credentials = S3Credentials(endpoint=f"http://127.0.0.1:{silent_port}", access_key="a", secret_key="b")
    rules = Requests(connect_timeout_s=0.2, max_attempts=1, back_off_s=0)
    with pytest.raises(UnreachableError, match=r"no connection to .* \(within 0\.2 s\)"):
        S3Storage("b", credentials, "s3torchconnector", rules=rules).read("k")
    assert len(looks) >= 3


FULL = """
import os, resource, sys, threading
from dnnbench.config import Requests, S3Credentials
from dnnbench.storage.s3 import S3Storage

client, endpoint, bucket = sys.argv[1:]
credentials = S3Credentials(endpoint=endpoint, access_key="dnnbench", secret_key="dnnbench-secret")
rules = Requests(connect_timeout_s=1, read_timeout_s=1, total_timeout_s=2, back_off_s=0)
storage = S3Storage(bucket, credentials, client, rules=rules)
storage.read("full/silent")
if client != "s3torchconnector":
    # Without a connection.
    storage = S3Storage(bucket, credentials, client, rules=rules)
    storage.open()
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
handles = []
def fill():
    try:
        while True:
            handles.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
try:
    if client == "s3torchconnector":
        # Within the second call, which is answered no more.
        threading.Timer(0.3, fill).start()
    else:
        fill()
    storage.read("full/silent")
except Exception as exc:
    told = f"{type(exc).__name__}: {exc}"
for handle in handles:
    os.close(handle)
print(told)
"""


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ("boto3", "MisconfiguredError: .*full/silent: .*too many open files; raise ulimit -n"),
        ("obstore", "MisconfiguredError: .*full/silent: .*too many open files; raise ulimit -n"),
        ("s3torchconnector", "UnreachableError: .*full/silent: not done within 2 s"),
    ],
)
def test_where_no_more_files_can_be_opened_it_is_said_or_ends_in_time(local_servers, client, told):
    credentials, bucket = local_servers.aws()
    S3Storage(bucket, credentials).write("full/silent", b"x")
    with Proxy(credentials.endpoint) as proxy:
        proxy.fail("stall", key="silent", after=1, times=None)
        done = subprocess.run(
            [sys.executable, "-c", FULL, client, proxy.endpoint, bucket],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert re.match(told, done.stdout), done.stdout + done.stderr


def test_another_calls_silence_does_not_cut_off_a_slow_answer(local_servers):
    credentials, bucket = local_servers.aws()
    upstream = S3Storage(bucket, credentials)
    for name in ("silent", "slow"):
        upstream.write(f"watched/{name}", b"x" * 40)
    with Proxy(credentials.endpoint) as proxy:
        rules = Requests(connect_timeout_s=0.4, read_timeout_s=0.4, total_timeout_s=20, back_off_s=0)
        there = credentials.model_copy(update={"endpoint": proxy.endpoint})
        storage = S3Storage(bucket, there, "s3torchconnector", rules=rules)
        storage.open()
        proxy.fail("stall", key="silent")
        proxy.fail("trickle", key="slow", seconds=0.05)
        items = [("watched/slow", 40), ("watched/silent", 40)]
        assert [bytes(data) for _, data in storage.read_many(items, 2, in_order=True)] == [b"x" * 40] * 2
        keys = [key for _, key in proxy.seen]
        assert (keys.count("watched/slow"), keys.count("watched/silent")) == (1, 2)


def test_connections_are_those_of_this_process_with_their_silence():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()

        def silent_s():
            found = list(connections())
            for one in found:
                one.handle.close()
            (silent_s,) = (one.silent_s for one in found if one.peer == listener.getsockname())
            return silent_s

        with theirs:
            deadline_s = time.monotonic() + 20
            while silent_s() < 0.05 and time.monotonic() < deadline_s:
                threading.Event().wait(0.01)
            before_s = silent_s()
            theirs.sendall(b"x")
            ours.recv(1)
            assert silent_s() < before_s


# -- the log ---------------------------------------------------------------------------------------

FAILED = "2026-01-01T00:00:00Z ERROR awscrt::S3MetaRequest: id=0x1 Request failed from error 1. Try to setup a retry.\n"
NO_CONNECTION = "ERROR awscrt::S3Endpoint: id=0x1: Could not acquire connection due to error code 1047\n"
GIVEN_UP = "ERROR awscrt::S3Client: id=0x1 Client could not retry request 0x2 for meta request 0x3\n"


@pytest.fixture
def log(monkeypatch):
    """(a log that is kept, its folder)."""
    monkeypatch.delitem(crt.sys.modules, "s3torchconnectorclient", raising=False)
    log = crt.Log()
    with log.kept():
        folder = os.environ["S3_TORCH_CONNECTOR_LOGS_DIR_PATH"]
    assert "S3_TORCH_CONNECTOR_LOGS_DIR_PATH" not in os.environ
    return log, Path(folder)


def _append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_the_log_tells_what_was_repeated_once(log):
    log, folder = log
    assert log.repeated() == 0
    path = folder / "log.2026-01-01-00"
    _append(path, "something else\n" + FAILED)
    assert (log.repeated(), log.repeated()) == (1, 0)
    # Two attempts, no third: one was repeated.
    _append(path, FAILED + NO_CONNECTION + GIVEN_UP)
    assert log.repeated() == 1
    _append(path, FAILED[:50])
    assert log.repeated() == 0
    _append(path, FAILED[50:])
    assert log.repeated() == 1


def test_the_log_goes_on_in_the_next_hours_file(log, monkeypatch):
    log, folder = log
    clock = Clock()
    monkeypatch.setattr(crt, "time", clock)
    _append(folder / "log.2026-01-01-00", FAILED)
    assert log.repeated() == 1
    _append(folder / "log.2026-01-01-01", FAILED * 2)
    clock.now_s += 2
    assert (log.repeated(), log.repeated()) == (2, 0)
    _append(folder / "log.2026-01-01-01", FAILED)
    assert log.repeated() == 1


@pytest.mark.parametrize("kept_by", ["the user", "another import"])
def test_a_log_that_is_not_ours_is_not_read(monkeypatch, kept_by):
    if kept_by == "the user":
        monkeypatch.delitem(crt.sys.modules, "s3torchconnectorclient", raising=False)
        monkeypatch.setenv("S3_TORCH_CONNECTOR_DEBUG_LOGS", "debug")
    else:
        monkeypatch.setitem(crt.sys.modules, "s3torchconnectorclient", crt)
    log = crt.Log()
    with log.kept():
        assert os.environ.get("S3_TORCH_CONNECTOR_DEBUG_LOGS") in ("debug", None)
    assert not log.is_kept
    assert log.repeated() == 0

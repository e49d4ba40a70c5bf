"""Threads that read: as many as there is work for, and none left where they could not all be started."""

import threading

import pytest
from fakes import MemoryStorage, make_catalog, make_contents

from dnnbench.errors import DnnbenchError
from dnnbench.storage import in_flight
from dnnbench.workloads import Reading


@pytest.fixture
def started(monkeypatch):
    """Every thread that is started to read."""
    threads = []

    class Noted(threading.Thread):
        def start(self):
            threads.append(self)
            super().start()

    monkeypatch.setattr(in_flight.threading, "Thread", Noted)
    return threads


def test_there_are_no_more_threads_than_items(started):
    storage = MemoryStorage(make_contents(3), name="aws")
    items = [(key, None) for key in storage.contents]
    storage.fetch_each(items, 3000)
    assert len(list(storage.read_many(items, 3000))) == 3
    assert len(started) == 3
    storage.fetch_each([], 3000)
    assert list(storage.read_many([], 3000)) == []


def test_threads_are_started_and_connected_before_the_clock_runs(started):
    storage = MemoryStorage(make_contents(10), name="aws")
    readers = set()
    read = storage._read
    storage._read = lambda *args: (readers.add(threading.get_ident()), read(*args))[1]
    reading = Reading(storage, make_catalog(storage.contents), 8, 0)
    reading.prepare(0)
    # Each thread has read once: it has its connection.
    assert len(readers) == len(started) == 8
    reading.run()
    assert len(started) == 8
    assert reading.account().tally.requests["GET"] == 10


def test_threads_that_cannot_all_be_started_end_with_one_line(monkeypatch):
    threads = []

    class Few(threading.Thread):
        def start(self):
            if len(threads) == 5:
                raise RuntimeError("can't start new thread")
            threads.append(self)
            super().start()

    monkeypatch.setattr(in_flight.threading, "Thread", Few)
    storage = MemoryStorage(make_contents(10), name="aws")
    with pytest.raises(DnnbenchError, match=r"only 5 could be started.*lower concurrency") as told:
        storage.fetch_each([(key, None) for key in storage.contents], 8)
    assert "\n" not in str(told.value)
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)

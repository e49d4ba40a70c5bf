"""Merging iterators: nothing lost, nothing twice, errors raised, and no thread left behind."""

import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.storage import merge
from dnnbench.storage.merge import merged


@given(st.lists(st.lists(st.integers(), max_size=40), max_size=5))
@settings(deadline=None, max_examples=40)
def test_every_item_of_every_source_comes_once_and_in_its_order(sources):
    tagged = [[(number, item) for item in source] for number, source in enumerate(sources)]
    out = list(merged([iter(source) for source in tagged]))
    for number, source in enumerate(tagged):
        assert [item for item in out if item[0] == number] == source
    assert len(out) == sum(map(len, tagged))


def test_sources_that_never_end_may_be_left_early():
    before = threading.active_count()
    merging = merged([itertools.count(), itertools.count()])
    assert len(list(itertools.islice(merging, 5))) == 5
    merging.close()
    assert threading.active_count() == before


def test_look_ahead_is_bounded():
    taken = itertools.count()
    merging = merged([iter(lambda: next(taken), None)])
    next(merging)
    merging.close()
    assert next(taken) <= (merge.WAITING + 3) * merge.CHUNK


def test_an_error_of_one_source_stops_the_others_and_is_raised():
    def failing():
        yield 1
        raise OSError("broke off")

    before = threading.active_count()
    with pytest.raises(OSError, match="broke off"):
        list(merged([itertools.count(), failing()]))
    assert threading.active_count() == before


def test_a_thread_that_waits_for_room_ends_too():
    merging = merged([itertools.count() for _ in range(8)])
    next(merging)
    merging.close()
    assert not any("drain" in thread.name for thread in threading.enumerate())

"""Listing in key ranges: nothing twice, nothing left out, few requests more, and no thread left behind.

Most of it drives the plan without threads: which request is answered next is a seed's choice.
"""

import hashlib
import math
import random
import threading
import unicodedata
from bisect import bisect_right
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.storage import key_ranges
from dnnbench.storage.base import Entry
from dnnbench.storage.key_ranges import Plan, list_in_ranges

PATIENCE_S = 30


class Bucket:
    """Keys below a prefix, in order; every page is a counted request, and each start a key that may be sent."""

    def __init__(self, keys, page_keys, prefix=""):
        self.keys, self.page_keys, self.prefix = self.ordered(keys), page_keys, prefix
        self.starts, self.requests = [], 0

    def ordered(self, keys):
        return sorted(keys)

    def __call__(self, start_after):
        self.starts.append(start_after)
        keys = self.after(start_after)
        for at in range(0, max(1, len(keys)), self.page_keys):
            self.requests += 1
            self.request(self.requests)
            yield [Entry(key, len(key)) for key in keys[at : at + self.page_keys]]

    def after(self, start_after):
        return self.keys[bisect_right(self.keys, start_after) :]

    def request(self, number):
        """What a request does besides."""

    @property
    def sequential(self):
        return max(1, -(-len(self.keys) // self.page_keys))


class Shuffled(Bucket):
    """A server that keeps keys in an order of its own."""

    def ordered(self, keys):
        return random.Random(len(keys)).sample(sorted(keys), len(keys))

    def after(self, start_after):
        return [key for key in self.keys if key > start_after]


class ShuffledFromTheBeginning(Shuffled):
    """... and does not know start-after."""

    def after(self, start_after):
        return self.keys


class FromTheBeginning(Bucket):
    """A server that does not know start-after."""

    def after(self, start_after):
        return self.keys


class TwoRuns(Shuffled):
    """A server that lists one half of its keys in order, and then the other."""

    def ordered(self, keys):
        return sorted(keys)[::2] + sorted(keys)[1::2]


class WithEmptyPages(Bucket):
    """A server that now and then answers that there is more, and nothing else."""

    def __call__(self, start_after):
        for page in super().__call__(start_after):
            yield page
            yield []


def drive(sources, workers, seed):
    """Every page handed on by a plan of ``workers`` workers whose requests are answered in a seed's order."""
    chance = random.Random(seed)
    plan = Plan([(bucket.prefix, bucket) for bucket in sources], workers)
    listing, handed_on = [], []
    while not plan.is_done:
        while len(listing) < workers and (span := plan.take()) is not None:
            listing.append((span, span.source.pages(span.start)))
        number = chance.randrange(len(listing))
        span, pages = listing[number]
        # A worker may be kept waiting between its last page and its end.
        page = None if span.is_done else next(pages, None)
        if page is None:
            plan.ended(span)
            del listing[number]
        else:
            handed_on.append((span.source.number, plan.arrived(span, page)))
    return handed_on


def rounds(bucket, workers):
    """How many times as long as a request a listing takes where every request takes as long."""
    plan = Plan([(bucket.prefix, bucket)], workers)
    listing, count = [], 0
    while not plan.is_done:
        while len(listing) < workers and (span := plan.take()) is not None:
            pages = span.source.pages(span.start)
            listing.append((span, pages, next(pages)))
        count += 1
        still = []
        for span, pages, page in listing:
            plan.arrived(span, page)
            following = None if span.is_done else next(pages, None)
            if following is None:
                plan.ended(span)
            else:
                still.append((span, pages, following))
        listing = still
    return count


def keys_of(pages, number=0):
    return [entry.key for source, page in pages if source == number for entry in page]


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


ODD_CHARACTERS = "\x00\t\x1f /0a~\x7f\x85é\ud7ff\ue000\ufffd\uffff\U00010000😀\U0010ffff"
FAMILIES = {
    "numbers": [f"p/img_{i:07d}.jpg" for i in range(1, 1500)],
    "numbers without zeros": [f"p/{i}" for i in range(1500)],
    "digests": [f"p/{digest(i)}" for i in range(1500)],
    "long stem": [f"{'p/' + 's' * 200}{i:06d}" for i in range(1500)],
    "longer stem than a float holds": [f"{'p/' + 'stem0' * 180}{i:06d}" for i in range(1500)],
    "two clumps": [f"p/a{i:04d}" for i in range(750)] + [f"p/{'z' * 60}{i:04d}" for i in range(750)],
    "uneven": [f"p/{i:02d}/{j}" for i in range(90) for j in range(2)] + [f"p/57/x{i:05d}" for i in range(1400)],
    "dense at the end": [f"p/{10**12 - int(1.02**i):013d}" for i in range(200, 1300)],
    "classes": [f"p/n{i * i + 1440764:08d}/n{i * i + 1440764:08d}_{j}.JPEG" for i in range(50) for j in range(30)],
    "japanese": [f"p/{chr(0x4E00 + i % 40)}{chr(0x3041 + i // 40 % 40)}{i}" for i in range(1500)],
    "last character": [f"p/x{chr(code)}" for code in range(0x20, 0x800) if chr(code).isprintable()],
    "control characters": [f"p/{a}{b}{c}" for a in ODD_CHARACTERS for b in ODD_CHARACTERS for c in ODD_CHARACTERS[:5]],
    "prefixes of others": ["p/" + "a" * i for i in range(1, 600)] + ["p/" + "a" * i + "b" for i in range(1, 600)],
}


def key_sets():
    odd = st.text(ODD_CHARACTERS, max_size=4)
    few = st.text("ab", max_size=8)
    number = st.integers(0, 10**5).map("{:06d}".format)
    piece = st.one_of(odd, few, number, st.text(max_size=3).filter(encodes))
    stem = st.one_of(st.just(""), st.just("s" * 50), odd)
    # Each set is of one stem and one kind, or of anything at all.
    kinds = [odd, few, number, piece, st.tuples(piece, piece).map("".join)]
    tails = st.one_of([st.sets(kind, max_size=120) for kind in kinds])
    dense = st.tuples(st.integers(0, 5000), st.integers(0, 300)).map(
        lambda some: {f"{i:07d}" for i in range(some[0], some[0] + some[1])}
    )
    return st.tuples(stem, st.one_of(tails, dense), tails).map(
        lambda some: {"p/" + some[0] + tail for tail in some[1]} | {"p/" + tail for tail in some[2]}
    )


def encodes(text):
    return not any(unicodedata.category(char) == "Cs" for char in text)


# -- exactness --------------------------------------------------------------------------------------


@given(keys=key_sets(), page_keys=st.integers(1, 7), workers=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_every_key_comes_once_in_whatever_order_requests_are_answered(keys, page_keys, workers, seed):
    bucket = Bucket(keys, page_keys, "p/")
    pages = drive([bucket], workers, seed)
    assert sorted(keys_of(pages)) == bucket.keys
    assert all(entry.size_bytes == len(entry.key) for _, page in pages for entry in page)
    assert bucket.requests <= 1.25 * bucket.sequential + 1.5 * workers + 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("page_keys", [1, 7, 10])
def test_every_key_of_a_long_listing_comes_once(family, page_keys):
    bucket = Bucket(FAMILIES[family], page_keys, "p/")
    assert sorted(keys_of(drive([bucket], 8, seed=page_keys))) == bucket.keys


@given(keys=key_sets(), page_keys=st.integers(1, 7), workers=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_every_key_comes_once_with_threads(keys, page_keys, workers):
    bucket = Bucket(keys, page_keys, "p/")
    assert sorted(keys_of(list_in_ranges([("p/", bucket)], workers))) == bucket.keys


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_long_listing_comes_once_with_threads(family):
    bucket = Bucket(FAMILIES[family], 7, "p/")
    assert sorted(keys_of(list_in_ranges([("p/", bucket)], 8))) == bucket.keys


def test_pages_are_of_their_source():
    buckets = [Bucket(keys, 10, "p/") for keys in FAMILIES.values()]
    pages = list(list_in_ranges([(bucket.prefix, bucket) for bucket in buckets], 5))
    for number, bucket in enumerate(buckets):
        assert sorted(keys_of(pages, number)) == bucket.keys


def test_no_sources_are_nothing():
    assert list(list_in_ranges([], 3)) == []


@pytest.mark.parametrize("seed", range(10))
def test_empty_pages_end_nothing(seed):
    bucket = WithEmptyPages(FAMILIES["numbers"], 10, "p/")
    assert sorted(keys_of(drive([bucket], 5, seed))) == bucket.keys


def test_an_empty_listing_may_have_no_page_at_all():
    assert list(list_in_ranges([("p/", lambda start_after: iter([]))], 3)) == []


# -- requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 19, 20])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_source_of_one_page_costs_one_request(count, workers):
    buckets = [Bucket(FAMILIES["numbers"][:count], 20, "p/") for _ in range(4)]
    list(list_in_ranges([(bucket.prefix, bucket) for bucket in buckets], workers))
    assert [bucket.requests for bucket in buckets] == [1, 1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_worker_asks_as_often_as_a_listing_does(family):
    bucket = Bucket(FAMILIES[family], 7, "p/")
    drive([bucket], 1, 0)
    assert bucket.requests == bucket.sequential


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pages", [2, 3, 5, 10, 100])
def test_requests_are_a_fourth_more_and_a_few_per_worker(family, pages):
    bucket = Bucket(FAMILIES[family][: 10 * pages], 10, "p/")
    rounds(bucket, 8)
    early = min(bucket.sequential / 4, 8)
    assert bucket.requests <= 1.25 * bucket.sequential + early + 1.5 * min(8, early) + 2


@pytest.mark.parametrize(
    "family", sorted(set(FAMILIES) - {"control characters", "prefixes of others", "last character"})
)
def test_a_long_listing_is_shared_by_its_workers(family):
    bucket = Bucket(FAMILIES[family], 10, "p/")
    assert rounds(bucket, 8) < bucket.sequential / 3


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_can_be_sent(family):
    bucket = Bucket(FAMILIES[family], 10, "p/")
    rounds(bucket, 8)
    for start in filter(None, bucket.starts):
        assert encodes(start)
        assert start.startswith("p/")
        assert not unicodedata.category(start[-1]).startswith("C")
        assert len(start) <= max(map(len, bucket.keys))


def test_distances_stay_finite():
    keys = FAMILIES["longer stem than a float holds"]
    alphabet = key_ranges.Alphabet("p/")
    alphabet.learn([*keys, "p/" + keys[0][6:]])
    assert 0 < alphabet.distance(keys[0], "p/t", unit=len(keys[0]) - 1) < math.inf


# -- servers without order --------------------------------------------------------------------------


@given(
    server=st.sampled_from([Shuffled, ShuffledFromTheBeginning, FromTheBeginning]),
    keys=key_sets(),
    page_keys=st.integers(1, 7),
    workers=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=120)
def test_every_key_comes_once_from_a_server_without_order(server, keys, page_keys, workers, seed):
    bucket = server(keys, page_keys, "p/")
    assert sorted(keys_of(drive([bucket], workers, seed))) == sorted(keys)


@pytest.mark.parametrize("server", [Shuffled, ShuffledFromTheBeginning, FromTheBeginning, TwoRuns])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_comes_once_from_a_server_without_order_with_threads(server, family):
    bucket = server(FAMILIES[family], 10, "p/")
    assert sorted(keys_of(list_in_ranges([("p/", bucket)], 8))) == sorted(FAMILIES[family])


def test_order_by_chance_is_not_believed():
    for seed in range(1500):
        bucket = Shuffled(FAMILIES["digests"][:30], 1, "p/")
        random.Random(seed).shuffle(bucket.keys)
        assert sorted(keys_of(drive([bucket], 8, seed))) == sorted(bucket.keys)


def test_disorder_in_the_first_page_costs_no_request():
    bucket = Shuffled(FAMILIES["numbers"], 10, "p/")
    assert rounds(bucket, 8) == bucket.requests == bucket.sequential
    assert bucket.starts == [""]


@pytest.mark.parametrize("seed", range(10))
def test_disorder_that_shows_late_repeats_nothing(seed):
    bucket = TwoRuns(FAMILIES["numbers"], 10, "p/")
    assert Counter(keys_of(drive([bucket], 8, seed))) == Counter(bucket.keys)
    assert len(set(bucket.starts)) > 2
    assert bucket.starts.count("") == 2


# -- threads ----------------------------------------------------------------------------------------


class Meeting(Bucket):
    """From the third page on, requests are answered two at a time: alone, one is not answered."""

    def __init__(self, *args):
        super().__init__(*args)
        self.barrier = threading.Barrier(2, timeout=PATIENCE_S)

    def request(self, number):
        if number in (3, 4):
            self.barrier.wait()


def test_requests_are_under_way_at_once():
    bucket = Meeting(FAMILIES["numbers"], 10, "p/")
    assert sorted(keys_of(list_in_ranges([("p/", bucket)], 4))) == bucket.keys


class Failing(Bucket):
    fails_at = 1

    def request(self, number):
        if number == self.fails_at:
            raise OSError("broke off")


# At the first request the other workers are waiting; at the twentieth they are listing.
@pytest.mark.parametrize("fails_at", [1, 20])
def test_an_error_stops_all_and_is_raised(fails_at):
    before = threading.active_count()
    bucket = Failing(FAMILIES["numbers"], 10, "p/")
    bucket.fails_at = fails_at
    with pytest.raises(OSError, match="broke off"):
        list(list_in_ranges([("p/", bucket)], 4))
    assert threading.active_count() == before
    assert bucket.requests < bucket.sequential


@pytest.mark.parametrize("workers", [1, 8])
def test_a_listing_left_early_stops_its_threads_and_asks_little_ahead(workers):
    before = threading.active_count()
    bucket = Bucket(FAMILIES["numbers"], 1, "p/")
    listing = list_in_ranges([("p/", bucket)], workers)
    for _ in range(100):
        next(listing)
    listing.close()
    assert threading.active_count() == before
    # Besides what was taken: a queue full of pages, one in the hands of each worker, and guesses that were wrong.
    assert bucket.requests <= 1.25 * 100 + 6 * workers + 2


def test_a_listing_that_nobody_starts_asks_nothing():
    bucket = Bucket(FAMILIES["numbers"], 10, "p/")
    list_in_ranges([("p/", bucket)], 4).close()
    assert bucket.requests == 0


def test_no_workers_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"workers must be at least 1 \(found 0\)"):
        list_in_ranges([], 0)


def test_a_worker_waits_no_longer_than_the_listing_lasts():
    """More workers than there will ever be ranges: all of them end."""
    before = threading.active_count()
    bucket = Bucket(FAMILIES["numbers"][: 2 * key_ranges.ORDERED_KEYS], key_ranges.ORDERED_KEYS, "p/")
    assert len(keys_of(list_in_ranges([("p/", bucket)], 32))) == len(bucket.keys)
    assert threading.active_count() == before

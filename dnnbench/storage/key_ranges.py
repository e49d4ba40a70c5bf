"""One long prefix listed in several key ranges at once: who lists what, and the threads that do it. Knows no S3.

Every page of a listing says where the next one begins, so pages come one after another. But a listing
may also begin after any key at all (``start-after``): keys are guessed at which to divide what is still to
be listed. A wrong guess costs a request and never a key: ranges always join without gap or overlap.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import queue
import threading
import unicodedata
import zlib
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dnnbench.storage.base import Entry

# As many keys in order are no accident (one in 16!): before that, a source is listed from one place.
ORDERED_KEYS = 16
# A range with less to come is listed sooner than divided: a page is under way already.
WORTH_PAGES = 2
# Of every page, as many keys show what characters stand where; all of them would cost more than they tell.
SAMPLED_KEYS = 8
# How many characters past the one that tells one page from the next are looked at: below is less than a page.
FINER_CHARACTERS = 2
# Distances grow by an alphabet with every character of a stem; sums of as large ones are still finite.
FARTHEST = 1e100
# Requests that bring nothing may be this share of those that do; and as much again, up to one per worker.
SPARE_SHARE = 0.25


class Pages(Protocol):
    """One prefix of one bucket."""

    def __call__(self, start_after: str) -> Iterator[Sequence[Entry]]:
        """Pages of the keys that begin with the prefix and are greater than ``start_after`` ("": of all), in order.

        Lazily: one LIST request for each page that is asked for, and none to find out that there are no more.
        """


def list_in_ranges(sources: Sequence[tuple[str, Pages]], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
    """Lists several (prefix, pages) with ``workers`` threads; yields (number of the source, page) as pages come.

    Every key comes once, the pages of a source in no fixed order. A source of one page costs one
    request; a long one about a fourth more than its pages, and a few per worker. A source whose keys
    turn out not to be in order is listed from one place. The first error stops all and is raised; an
    iterator that is left early stops its threads, each after the request that it is at.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1 (found {workers})")
    return _Threads(Plan(sources, workers), workers).pages()


class Alphabet:
    """What characters can stand where in the keys of a source, as far as its keys have told."""

    def __init__(self, prefix: str) -> None:
        self._prefix_length = len(prefix)
        # Characters come in families: where one digit was seen the other nine are likely, but no letter is.
        self._family: dict[str, set[str]] = defaultdict(set, Nd=set("0123456789"))
        self._families_at: dict[int, set[str]] = defaultdict(set)
        self._known: dict[int, list[str]] = {}

    def learn(self, keys: Sequence[str]) -> None:
        for key in keys[:: max(1, len(keys) // SAMPLED_KEYS)]:
            for depth, char in enumerate(key[self._prefix_length :], self._prefix_length):
                family = unicodedata.category(char)
                # No server need take control characters and the like, and some take "/" at the end for a folder.
                if family.startswith("C") or char == "/":
                    continue
                if char not in self._family[family] or family not in self._families_at[depth]:
                    self._family[family].add(char)
                    self._families_at[depth].add(family)
                    self._known.clear()

    def at(self, depth: int) -> list[str]:
        """The characters that may stand at an index of a key, in order."""
        if depth not in self._known:
            families = self._families_at.get(depth, ())
            self._known[depth] = sorted(char for family in families for char in self._family[family])
        return self._known[depth]

    def between(self, low: str, high: str | None, unit: int) -> list[tuple[float, str, int, str]]:
        """Short keys between two keys (``high`` None: above ``low``), in order.

        Each as (distance to the next one, key, depth, char), which is ``key[:depth] + char``: few are ever needed.

        A step of one character at the index ``unit`` is the distance 1, and one of an index before
        it is as many as there are characters. Fine near both ends, ever coarser away from them.
        """
        stem = self._prefix_length if high is None else _common_length(low, high)
        finest = unit + FINER_CHARACTERS
        if low == high or stem > finest:
            return []
        step = self._steps(stem, unit, finest)
        found = []
        for depth in range(min(len(low) - 1, finest), stem - (high is None), -1):
            found += [(step[depth], low, depth, char) for char in self.at(depth) if char > low[depth]]
        if high is None:
            return found
        for char in self.at(stem):
            if low[stem : stem + 1] < char <= high[stem] and low[:stem] + char < high:
                # The way from high's own character to high is that of the finer steps, which follow.
                found.append((step[stem] if char < high[stem] else 0.0, low, stem, char))
        for depth in range(stem + 1, min(len(high) - 1, finest) + 1):
            found += [(step[depth], high, depth, char) for char in self.at(depth) if char < high[depth]]
        return found

    def distance(self, low: str, high: str, unit: int) -> float:
        return sum(step for step, *_ in self.between(low, high, unit))

    def _steps(self, first: int, unit: int, last: int) -> dict[int, float]:
        """How far a step of one character is at each index."""
        steps = {unit: 1.0}
        for depth in range(unit - 1, first - 1, -1):
            steps[depth] = min(FARTHEST, steps[depth + 1] * max(1, len(self.at(depth + 1))))
        for depth in range(unit + 1, last + 1):
            steps[depth] = steps[depth - 1] / max(1, len(self.at(depth)))
        return steps


class _Source:
    """One prefix of one bucket, and what its pages have told."""

    def __init__(self, number: int, prefix: str, pages: Pages) -> None:
        self.number, self.pages = number, pages
        self.alphabet = Alphabet(prefix)
        self.requests = self.kept_keys = self.page_keys = 0
        self.was_split = False
        self.first = ""
        # Where keys are in no order, the only range that still counts, and the keys that came before it.
        self.sequel: KeyRange | None = None
        self.skipped: set[str] = set()
        # What was handed on is kept for that case alone; compressed, it is a few bytes a key.
        self._handed_on: list[bytes] = []

    def hand_on(self, keys: Sequence[str]) -> None:
        self.first = self.first or keys[0]
        self.kept_keys += len(keys)
        self.alphabet.learn(keys)
        self._handed_on.append(zlib.compress(json.dumps(keys).encode(), 1))

    def handed_on(self) -> set[str]:
        return {key for packed in self._handed_on for key in json.loads(zlib.decompress(packed))}

    @property
    def kept_pages(self) -> float:
        """How many requests one place alone would have needed for what was handed on."""
        return self.kept_keys / max(1, self.page_keys)


@dataclass(eq=False)
class KeyRange:
    """The keys of a source after ``start``, up to and with ``end`` (None: to the last), listed by one worker."""

    source: _Source
    start: str = ""
    end: str | None = None
    # Whether there are keys right above the end. Where there are not, they may stop a long way below it.
    goes_on: bool = False
    doubts: int = 0  # splits of this range since one that is known to have found keys
    pages: int = 0
    keys: int = 0
    position: str = field(default="", init=False)  # the last key seen
    # (keys listed so far, last key before it) of every page.
    marks: list[tuple[int, str]] = field(default_factory=list)
    is_done: bool = False
    _outlook: tuple[float, str] | None = None
    _outlook_of: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.position = self.start

    def advance(self, keys: Sequence[str]) -> None:
        # Where a range was guessed to begin says nothing of how dense its keys are: its first key does.
        self.marks.append((self.keys, self.position if self.keys else keys[0]))
        self.keys += len(keys)
        self.position = keys[-1]

    def outlook(self) -> tuple[float, str] | None:
        """How many keys are likely still to come, and a key at which to divide them; None: not worth it."""
        # Workers that wait ask again with every page of any range.
        now = (self.pages, self.end, self.goes_on, self.doubts)
        if self._outlook_of != now:
            self._outlook, self._outlook_of = self._look_out(), now
        return self._outlook

    def _look_out(self) -> tuple[float, str] | None:
        if not self.marks:
            return None
        source, alphabet = self.source, self.source.alphabet
        listed, before = self.marks[-1]
        page_keys = self.keys - listed
        if page_keys < source.page_keys and not self.goes_on:
            return None
        unit = _common_length(before, self.position)
        page_distance = alphabet.distance(before, self.position, unit)
        ahead = alphabet.between(self.position, self.end, unit)
        *distances, total = itertools.accumulate((step for step, *_ in ahead), initial=0.0)
        # What comes before that is under way to this range's worker.
        beyond_next_page = [i for i, distance in enumerate(distances) if distance >= page_distance]
        if not page_distance or not beyond_next_page:
            return None
        target, promised = self._halfway(unit, page_keys, page_distance, total)
        if promised < WORTH_PAGES * source.page_keys:
            return None
        _, key, depth, char = ahead[min(beyond_next_page, key=lambda i: abs(math.log(distances[i] / target)))]
        return promised, key[:depth] + char

    def _halfway(self, unit: int, page_keys: int, page_distance: float, total: float) -> tuple[float, float]:
        """How far away half of the keys to come is likely to be, and how many are to come."""

        def distance_from(key: str) -> float:
            return max(page_distance, self.source.alphabet.distance(key, self.position, unit))

        if self.goes_on:
            # Keys are uneven: how dense they were at first says less than how dense they are by now.
            listed, since = self.marks[len(self.marks) // 2]
            return total / 2, (self.keys - listed) * total / distance_from(since) / 2**self.doubts
        # Unknown even in its magnitude: as far again as keys have come; and once that was too far, the middle of
        # the magnitudes that are left.
        so_far = distance_from(self.source.first)
        target = so_far if self.end is None else math.sqrt(page_distance * total)
        return target, min(2 * page_keys * target / page_distance, self.source.kept_keys / 2**self.doubts)


class Plan:
    """Who lists what. No threads and no requests: whoever drives it tells what came. Not safe for threads."""

    def __init__(self, sources: Sequence[tuple[str, Pages]], workers: int) -> None:
        self._workers = workers
        self._waiting = deque(KeyRange(_Source(i, prefix, pages)) for i, (prefix, pages) in enumerate(sources))
        self._running: list[KeyRange] = []

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    def take(self) -> KeyRange | None:
        """A range to list from now on; None where at the moment there is none."""
        taken = self._waiting.popleft() if self._waiting else self._split()
        if taken is not None:
            self._running.append(taken)
        return taken

    def arrived(self, span: KeyRange, page: Sequence[Entry]) -> Sequence[Entry]:
        """What is to be handed on of a range's next page. Afterwards ``is_done`` says whether to ask for more."""
        source, keys = span.source, [entry.key for entry in page]
        source.requests += 1
        span.pages += 1
        if source.sequel is None and not _in_order(span.position, keys):
            self._list_from_one_place(span)
        if source.sequel is not None:
            span.is_done = span is not source.sequel
            return [] if span.is_done else [entry for entry in page if entry.key not in source.skipped]
        source.page_keys = max(source.page_keys, len(keys))
        cut = len(keys) if span.end is None else bisect_right(keys, span.end)
        # The end may have come down while the page was under way: its rest is the next range's.
        span.is_done = cut < len(keys) or keys[-1:] == [span.end]
        if cut:
            if not span.keys:
                self._found_above(span)
            span.advance(keys[:cut])
            source.hand_on(keys[:cut])
        return page[:cut]

    def ended(self, span: KeyRange) -> None:
        """A range's worker is through with it."""
        self._running.remove(span)
        span.source.requests += not span.pages
        below = self._below(span)
        if below is not None and not span.keys:
            below.goes_on = False

    def _below(self, span: KeyRange) -> KeyRange | None:
        return next((r for r in self._running if r.source is span.source and r.end == span.start), None)

    def _found_above(self, span: KeyRange) -> None:
        below = self._below(span)
        if below is not None:
            below.goes_on, below.doubts = True, 0

    def _split(self) -> KeyRange | None:
        """The upper part of the range that promises most; its worker stops at the key where that begins."""
        outlooks = [
            (*outlook, span)
            for span in self._running
            if not span.is_done and self._can_afford(span.source) and (outlook := span.outlook()) is not None
        ]
        if not outlooks:
            return None
        _, middle, span = max(outlooks, key=operator.itemgetter(0))
        upper = KeyRange(span.source, middle, span.end, span.goes_on)
        span.end = middle
        span.doubts += 1
        span.source.was_split = True
        return upper

    def _can_afford(self, source: _Source) -> bool:
        """Whether one more range keeps the requests that bring nothing to a share of those that do."""
        if source.sequel is not None or source.kept_keys < ORDERED_KEYS:
            return False
        ranges = [span for span in self._running if span.source is source]
        unproven = sum(not span.pages for span in ranges)
        # A range's last page reaches past its end by half a page on average.
        at_stake = source.requests - source.kept_pages + unproven + 1 + (len(ranges) + 1) / 2
        spare = SPARE_SHARE * source.kept_pages
        return at_stake <= 1 + spare + min(spare, self._workers)

    def _list_from_one_place(self, span: KeyRange) -> None:
        """Gives up ranges for a source without order. The same listing goes on where it is the only one so far."""
        source = span.source
        if not source.was_split:
            source.sequel = span
            return
        source.sequel, source.skipped = KeyRange(source), source.handed_on()
        self._waiting.append(source.sequel)


def _common_length(a: str, b: str) -> int:
    """How many characters two keys begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _in_order(after: str, keys: Sequence[str]) -> bool:
    return all(map(operator.lt, itertools.chain([after], keys), keys))


class _Threads:
    """The workers of one listing: each lists a range of the plan, page by page, and takes the next one."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan = plan
        # Held around every use of the plan; notified where it may have something for a worker that waits.
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._pages: queue.Queue[tuple[int, Sequence[Entry]] | BaseException | None] = queue.Queue(workers)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def pages(self) -> Iterator[tuple[int, Sequence[Entry]]]:
        try:
            for thread in self._threads:
                thread.start()
            running = len(self._threads)
            while running:
                page = self._pages.get()
                if page is None:
                    running -= 1
                elif isinstance(page, BaseException):
                    raise page
                else:
                    yield page
        finally:
            with self._changed:
                self._stop.set()
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        try:
            while (span := self._next_range()) is not None:
                self._list(span)
        except BaseException as exc:
            self._put(exc)
            return
        self._put(None)

    def _next_range(self) -> KeyRange | None:
        with self._changed:
            while not self._stop.is_set() and not self._plan.is_done:
                if (span := self._plan.take()) is not None:
                    # There may be one for the next worker, too.
                    self._changed.notify()
                    return span
                self._changed.wait()
        return None

    def _list(self, span: KeyRange) -> None:
        for page in span.source.pages(span.start):
            with self._changed:
                kept = self._plan.arrived(span, page)
                self._changed.notify()
            if kept:
                self._put((span.source.number, kept))
            if span.is_done or self._stop.is_set():
                break
        with self._changed:
            self._plan.ended(span)
            self._changed.notify_all()

    def _put(self, page: tuple[int, Sequence[Entry]] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._pages.put(page, timeout=0.1)
            except queue.Full:
                continue

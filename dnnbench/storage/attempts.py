"""Asking again: which errors are worth another attempt, how many are made, and after what pause. The same for all.

Client libraries are told to make one attempt at a time, so that every request is counted and a retry means the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

from dnnbench.config import Requests
from dnnbench.storage.base import Meter
from dnnbench.storage.errors import TransientError

E = TypeVar("E")


class Attempts(Generic[E]):
    """The attempts of one operation that began at ``begun_s`` (`time.monotonic`), at ``endpoints`` in turn.

    Each endpoint is asked once before there is any pause, even where that is more than ``rules.max_attempts``.
    """

    def __init__(self, rules: Requests, meter: Meter, endpoints: Sequence[E], begun_s: float) -> None:
        self._rules, self._meter, self._endpoints, self._begun_s = rules, meter, endpoints, begun_s
        self._asked = self._made = 0
        self._first = ""

    def next(self, error: TransientError) -> E:
        """The endpoint to ask after this error, now: any pause is over. Raises the error where it was the last.

        What is asked again is counted as a retry.
        """
        rules = self._rules
        self._asked += 1
        self._made += error.attempts
        self._first = self._first or error.problem
        turns, place = divmod(self._asked, len(self._endpoints))
        pause_s = 0.0 if place else random.random() * rules.back_off_s * 2 ** (turns - 1)
        pause_s = max(pause_s, error.retry_after_s)
        left_s = rules.total_timeout_s - (time.monotonic() - self._begun_s)
        made = f"{self._made} attempt{'s' if self._made > 1 else ''}"
        total = f"{rules.total_timeout_s:g} s (storage.s3.requests.total_timeout_s)"
        if left_s <= 0:
            # Of the last attempt no library says whether it was cut off.
            first = f", the first of which: {self._first}" if self._asked > 1 else ""
            error.reword(f"not done within {total}, in {made}{first}")
            raise error
        if self._made >= rules.max_attempts and self._asked >= len(self._endpoints):
            error.reword(f"{error.problem}; given up after {made}")
            raise error
        if pause_s >= left_s:
            error.reword(f"{error.problem}; given up after {made}: a pause of {pause_s:.3g} s would pass {total}")
            raise error
        self._meter.retry()
        time.sleep(pause_s)
        return self._endpoints[place]

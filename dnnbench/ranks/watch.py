"""Signs of life: each rank gives them, each looks for the others', and one that is lost ends the run.

They go through a store of keys that all ranks reach. Whoever watches needs no answer of a rank: a process that was
killed, and a host that is cut off, give none.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dnnbench.ranks import RankError

BEAT_S = 1.0
# A rank that something else says is gone has given no sign of life for so many beats.
SUSPECT_BEATS = 3.0
LOOK_S = 0.2


class Store(Protocol):
    """What is used of ``torch.distributed``'s stores. Values are bytes."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True)
class Loss:
    """Why the run ends: the rank that is the cause, its host, and what became of it."""

    rank: int
    host: str
    reason: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {self.reason}"


class Watch:
    """Gives this rank's signs of life, and looks for those of the others, from `start` to `stop`.

    ``hosts`` names each rank's host. The first rank looks after all others, and they after the first one. ``on_loss``
    is called, from another thread, with what ends the run.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        hosts: Sequence[str],
        timeout_s: float,
        on_loss: Callable[[Loss], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._hosts, self._timeout_s = store, rank, hosts, timeout_s
        self._on_loss, self._clock_s = on_loss, clock_s
        self._others = [r for r in range(len(hosts)) if r != rank] if rank == 0 else [0]
        self._beats = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._reached_s = clock_s()
        self.loss: Loss | None = None
        store.set(f"beat/{rank}", "0")

    def start(self) -> None:
        """Begins; every rank's first sign of life is there."""
        self._reached_s = self._clock_s()
        for target in (self._beat_on, self._look_on):
            thread = threading.Thread(target=target, daemon=True, name="dnnbench-ranks")
            thread.start()
            self._threads.append(thread)

    def tell(self, reason: str) -> None:
        """Says that this rank is the cause, unless another one was before it."""
        if self.loss is None:
            told = Loss(self._rank, self._hosts[self._rank], reason)
            self._store.set("failed", json.dumps(vars(told)))
            self._found(told)

    def suspect(self, patience_s: float = BEAT_S * (SUSPECT_BEATS + 2)) -> Loss | None:
        """The rank that is lost, sought with less patience, since something says that one is. Takes a while."""
        until_s = self._clock_s() + patience_s
        while self.loss is None and self._clock_s() < until_s:
            silent = self._silent(BEAT_S * SUSPECT_BEATS)
            if silent is not None:
                self._found(silent)
                break
            time.sleep(LOOK_S)
        return self.loss

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except Exception as exc:
                # Of what goes wrong there, torch makes many kinds of errors.
                if not self._stop.is_set() and self.loss is None:
                    self._found(self._unreachable(f"({type(exc).__name__})"))
                return

    def beat(self) -> None:
        """Gives a sign of life, and notes those of the others."""
        self._beats += 1
        self._store.set(f"beat/{self._rank}", str(self._beats))
        now_s = self._clock_s()
        if self._store.check(["failed"]):
            told = json.loads(self._store.get("failed"))
            self._found(Loss(int(told["rank"]), str(told["host"]), str(told["reason"])))
        if self._others:
            beats = self._store.multi_get([f"beat/{other}" for other in self._others])
            with self._lock:
                for other, beat in zip(self._others, beats, strict=True):
                    if other not in self._seen or self._seen[other][0] != beat:
                        self._seen[other] = beat, now_s
        self._reached_s = self._clock_s()

    def _look_on(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()
            if self.loss is not None:
                return

    def look(self) -> None:
        """Finds who has given no sign of life for too long."""
        if self._clock_s() - self._reached_s > self._timeout_s:
            self._found(self._unreachable(f"for {self._timeout_s:g} s"))
            return
        silent = self._silent(self._timeout_s)
        if silent is not None:
            self._found(silent)

    def _silent(self, longer_s: float) -> Loss | None:
        with self._lock:
            seen = dict(self._seen)
        # Between two signs of life only the time is known in which this rank could look for them.
        silent_s = {other: self._reached_s - last_s for other, (_, last_s) in seen.items()}
        lost = [other for other, for_s in silent_s.items() if for_s > longer_s and seen[other][0] != b"ended"]
        if not lost:
            return None
        longest = max(lost, key=lambda other: silent_s[other])
        reason = f"gave no sign of life for {silent_s[longest]:.0f} s: it was killed, hangs, or is cut off"
        return Loss(longest, self._hosts[longest], reason)

    def _unreachable(self, how: str) -> Loss:
        return Loss(0, self._hosts[0], f"cannot be reached {how}: it, its launcher or the network to it is gone")

    def _found(self, loss: Loss) -> None:
        with self._lock:
            if self.loss is not None:
                return
            self.loss = loss
        if self._rank == 0 and loss.rank != 0:
            # For the others, who look after the first rank alone.
            threading.Thread(target=self._spread, args=(loss,), daemon=True).start()
        self._on_loss(loss)

    def _spread(self, loss: Loss) -> None:
        self._store.set("failed", json.dumps(vars(loss)))

    def check(self) -> None:
        """Raises `RankError` where a rank was lost or has failed."""
        if self.loss is not None:
            raise RankError(f"{self.loss}; the run ends")

    def say_goodbye(self) -> None:
        """Says that this rank ends as it should: from here on it gives no sign of life, and is not missed."""
        self._stop.set()
        for thread in self._threads:
            # Or its last sign of life would come after this.
            thread.join(2 * BEAT_S)
        with contextlib.suppress(Exception):
            # The first rank may be gone by now, and the store with it.
            self._store.set(f"beat/{self._rank}", "ended")

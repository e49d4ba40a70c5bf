"""The ranks of a run: the processes that a launcher such as ``torchrun`` starts and that measure together.

Here is what the rest of dnnbench knows of them, and the run alone, which is one rank. `torch_ranks` brings several
together, `watch` notices those that are lost.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dnnbench.errors import DnnbenchError

Value = TypeVar("Value")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RankError(DnnbenchError):
    """A rank failed, was lost, or does not fit the others; the message names it and its host."""


@dataclass(frozen=True)
class Launch:
    """What a launcher says to each process that it starts, in the variables that ``torchrun`` sets.

    ``attempt`` counts restarts by the launcher.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    address: str
    port: int
    attempt: str = "0"
    store_is_agents: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """The launch that this process belongs to, or None. Raises `RankError` for one that says only half of it."""
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        try:
            launch = cls(
                rank=int(environment["RANK"]),
                ranks=int(environment["WORLD_SIZE"]),
                local_rank=int(environment.get("LOCAL_RANK", "0")),
                local_ranks=int(environment.get("LOCAL_WORLD_SIZE", "1")),
                address=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
                attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
                store_is_agents=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            )
        except (KeyError, ValueError) as exc:
            wrong = f"{exc.args[0]} is not" if isinstance(exc, KeyError) else f"one of them is no number ({exc})"
            raise RankError(
                f"RANK and WORLD_SIZE are set, as a launcher does, but {wrong}: launch with torchrun, which also sets "
                "MASTER_ADDR and MASTER_PORT; or unset them to run alone"
            ) from exc
        if not 0 <= launch.rank < launch.ranks:
            raise RankError(f"RANK={launch.rank} is none of WORLD_SIZE={launch.ranks}; launch with torchrun")
        return launch


def this_host() -> str:
    """What this machine calls itself."""
    return platform.node() or "localhost"


def clock_id() -> str:
    """The same for processes whose monotonic clocks are one: those of one kernel since it has started."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return this_host()


def check_asked_for(asked: int | None, ranks: int) -> None:
    """Raises `RankError` for more ranks than there are; None asks for all of them."""
    if asked is not None and asked > ranks:
        raise RankError(
            f"execution.ranks: found {asked}, but {ranks} of them run; launch more, "
            f"such as torchrun --nproc-per-node={asked} -m pytest bench/"
        )


class Ranks:
    """The ranks that run a benchmark together, as one of them sees it; this class itself: a run alone.

    ``rank`` of ``ranks``; one that is not ``active`` waits for the others to have run it.
    """

    rank = 0
    ranks = 1
    active = True
    # Of the processes on this host: the first one speaks for it.
    local_rank = 0
    local_ranks = 1
    leads_host = True

    on_one_host = True
    # Whether a launcher started this process, be it as the only rank.
    launched = False

    @property
    def name(self) -> str:
        """How messages name this rank."""
        return f"rank {self.rank} on {this_host()}"

    def first(self, ranks: int | None) -> Ranks:
        """The first so many of them; None: all. Called by every rank. Raises `RankError` for more than there are."""
        check_asked_for(ranks, self.ranks)
        return self

    def sync(self, what: str) -> None:
        """Returns when every active rank has come as far as ``what``. Raises `RankError` where one will not."""

    def gather(self, value: Value) -> list[Value] | None:
        """On the first rank every active rank's value, in their order; None elsewhere."""
        return [value]

    def all_gather(self, value: Value) -> list[Value]:
        """Every active rank's value, in their order."""
        return [value]

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes, on all of them; what goes wrong there as `DnnbenchError` is raised on all."""
        return make()

    def clock_offset_ns(self) -> tuple[int, int]:
        """(what to add to this process's monotonic clock for the first rank's, how far wrong that may be)."""
        return 0, 0

    def failed(self, error: BaseException) -> DnnbenchError | None:
        """Tells the others that this rank failed; returns what was the cause, where that is another rank."""
        return None

    def ended(self, reason: str) -> None:
        """Tells the others that this rank ends before they do, where nothing else has ended the run already."""

    def leave(self) -> None:
        """Ends being one of them."""


ALONE = Ranks()


def cores_of(ranks: Ranks) -> int:
    """The processors that the active ranks may use, on all of their hosts; called by each of them.

    A launcher may have bound each rank to some of its own.
    """
    of_hosts: dict[str, set[int]] = {}
    for host, usable in ranks.all_gather((this_host(), os.sched_getaffinity(0))):
        of_hosts.setdefault(host, set()).update(usable)
    return sum(map(len, of_hosts.values()))


def launch() -> Launch | None:
    """The launch that this process belongs to."""
    return Launch.of(os.environ)

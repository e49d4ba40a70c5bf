"""Ranks that ``torch.distributed`` brings together: a store of keys for who is where, gloo for what they hand over."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dnnbench.errors import DnnbenchError
from dnnbench.probe import HERE
from dnnbench.ranks import Launch, RankError, Ranks, Value, clock_id, this_host
from dnnbench.ranks.watch import Loss, Watch

# All have come by then, or the run does not begin: a host may be slow to import what it needs.
START_S = 120.0
# How long one question to the store may wait before it is asked whether somebody was lost.
ASK = datetime.timedelta(seconds=0.5)
PIECE_BYTES = 16 * 1024 * 1024
PINGS = 4
# A rank that is lost ends the run long before: this is for one that its storage keeps waiting.
PATIENCE = datetime.timedelta(hours=1)
GOODBYE_S = 3.0
GLOO, NCCL = "gloo", "nccl"
_ALL = "all"


class TorchRanks(Ranks):
    """All ranks of a launch, or the first of them. Made by every rank at the same time; `leave` ends it."""

    launched = True

    def __init__(self, launch: Launch, timeout_s: float, on_loss: Callable[[Loss], None]) -> None:
        self.rank, self.ranks = launch.rank, launch.ranks
        self._launch, self._scope = launch, _ALL
        self._counts: dict[str, int] = {}
        self._teams: dict[int, TorchRanks] = {}
        self._store = _store_of(launch)
        self._hosts, self._clocks, self._all_have_gpus = self._meet()
        same = [rank for rank, host in enumerate(self._hosts) if host == self._hosts[self.rank]]
        self.local_rank, self.local_ranks, self.leads_host = same.index(self.rank), len(same), same[0] == self.rank
        self.on_one_host = len(set(self._hosts)) == 1
        # A client of its own: one that waits for a key answers nothing else.
        self._watch = Watch(_store_of(launch), self.rank, self._hosts, timeout_s, on_loss)
        _choose_interface(launch)
        dist.init_process_group(
            GLOO, store=_store_of(launch, GLOO), rank=self.rank, world_size=self.ranks, timeout=PATIENCE
        )
        self._group: Any = dist.group.WORLD
        self._nccl = self._nccl_group()
        self.sync("the start")
        self._watch.start()

    def _meet(self) -> tuple[list[str], list[str], bool]:
        """Each rank's host and clock, when all of them have come, and whether all see GPUs.

        Tells `dnnbench.probe` of those that are on this host.
        """
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        me = f"{this_host()}\n{clock_id()}\n{torch.cuda.device_count()}\n{os.getpid()}\n{cores}"
        self._store.set(f"here/{self.rank}", me)
        keys = [f"here/{rank}" for rank in range(self.ranks)]
        until_s = time.monotonic() + START_S
        while not _are_there(self._store, keys):
            if time.monotonic() > until_s:
                missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
                raise RankError(
                    f"after {START_S:.0f} s rank {', '.join(missing)} of {self.ranks} has not come; "
                    "launch with as many nodes and processes as torchrun was told"
                )
        told = [value.decode().split("\n") for value in self._store.multi_get(keys)]
        hosts, clocks, gpus, pids, usable = ([one[i] for one in told] for i in range(5))
        here = [rank for rank, host in enumerate(hosts) if host == hosts[self.rank]]
        # What they do is none of what other processes take from them.
        HERE.processes = frozenset(int(pids[rank]) for rank in here)
        HERE.cores = frozenset(int(core) for rank in here for core in usable[rank].split(","))
        return hosts, clocks, all(map(int, gpus))

    def _nccl_group(self) -> Any:
        # Every rank of the launch has to come here, also those that are no members. It connects when it is used.
        return dist.new_group(list(range(self.ranks)), PATIENCE, NCCL) if self._all_have_gpus else None

    def group(self, backend: str) -> Any:
        """The active ranks as ``torch.distributed`` has them, over gloo or NCCL."""
        return self._nccl if backend == NCCL else self._group

    def first(self, ranks: int | None) -> Ranks:
        super().first(ranks)
        count = ranks or self.ranks
        if count == self.ranks:
            return self
        if count not in self._teams:
            self._teams[count] = _Team(self, count)
        return self._teams[count]

    # -- what ranks do together ------------------------------------------------------------------

    def sync(self, what: str) -> None:
        if not self.active:
            return
        try:
            self._sync(what)
        except dist.DistNetworkError as exc:
            # The first rank, or its launcher, is gone, and the keys with it.
            self.check()
            raise RankError(f"{self._watch.unreachable('any more')}; the run ends") from exc

    def _sync(self, what: str) -> None:
        number = self._counts[self._scope] = self._counts.get(self._scope, 0) + 1
        here = f"{self._scope}/{number}"
        # With another name they would wait for ever: that is told by the first rank.
        digest = hashlib.sha256(what.encode()).hexdigest()[:12]
        self._store.set(f"at/{self._scope}/{self.rank}", f"{number} {what}")
        if self._store.add(f"{here}/{digest}", 1) == self.ranks:
            self._store.set(f"{here}/go", "")
        while not _are_there(self._store, [f"{here}/go"]):
            self.check()
            if self.rank == 0:
                self._find_strays(number, what)
        if self.rank == 0 and number > 1:
            self._store.delete_key(f"{self._scope}/{number - 1}/go")

    def _find_strays(self, number: int, what: str) -> None:
        for rank in range(self.ranks):
            key = f"at/{self._scope}/{rank}"
            if self._store.check([key]):
                at, _, other = self._store.get(key).decode().partition(" ")
                if int(at) == number and other != what:
                    error = RankError(
                        f"rank {rank} on {self._hosts[rank]} came to {other!r} where the first rank came to {what!r}: "
                        "they do not run the same benchmarks"
                    )
                    self.failed(error)
                    raise error

    def gather(self, value: Value) -> list[Value] | None:
        self.sync("gathering")
        gathered: list[Any] | None = [None] * self.ranks if self.rank == 0 else None
        with self._translated():
            dist.gather_object(value, gathered, dst=0, group=self._group)
        return gathered

    def all_gather(self, value: Value) -> list[Value]:
        self.sync("gathering for all")
        gathered: list[Any] = [None] * self.ranks
        with self._translated():
            dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def broadcast(self, make: Callable[[], Value]) -> Value:
        made: Any = None
        if self.rank == 0:
            try:
                made = make()
            except DnnbenchError as exc:
                # Each of them ends by it, and none has to tell the others.
                exc.is_of_all_ranks = True  # type: ignore[attr-defined]
                made = _Raised(exc)
        self.sync("broadcasting")
        with self._translated():
            made = self._broadcast(made)
        if isinstance(made, _Raised):
            raise made.error
        return made  # type: ignore[no-any-return]

    def _broadcast(self, made: Any) -> Any:
        """Pickled, the arrays in it as they are, piece by piece, and held against their hash."""
        buffers: list[Any] = []
        head = b""
        if self.rank == 0:
            found: list[pickle.PickleBuffer] = []
            head = pickle.dumps(made, protocol=5, buffer_callback=found.append)
            buffers = [np.frombuffer(buffer.raw(), np.uint8) for buffer in found]
        told: list[Any] = [(len(head), [len(b) for b in buffers])]
        dist.broadcast_object_list(told, src=0, group=self._group)
        length, lengths = told[0]
        parts = [np.frombuffer(head, np.uint8), *buffers]
        digest = hashlib.sha256()
        received = []
        for number, count in enumerate([length, *lengths]):
            whole = np.empty(count, np.uint8) if self.rank else parts[number]
            for start in range(0, count, PIECE_BYTES):
                piece = torch.from_numpy(np.array(whole[start : start + PIECE_BYTES]))
                dist.broadcast(piece, src=0, group=self._group)
                digest.update(piece.numpy().data)
                if self.rank:
                    whole[start : start + PIECE_BYTES] = piece.numpy()
            received.append(whole)
        hashes: list[Any] = [digest.digest()]
        dist.broadcast_object_list(hashes, src=0, group=self._group)
        if hashes[0] != digest.digest():
            raise RankError(f"{self.name}: what came from the first rank is not what it sent; check the network")
        if self.rank == 0:
            return made
        # What is sent by our own processes.
        return pickle.loads(received[0].tobytes(), buffers=received[1:])  # noqa: S301

    def clock_offset_ns(self) -> tuple[int, int]:
        self.sync("clocks")
        best = (0, 0)
        with self._translated():
            for rank in range(1, self.ranks):
                is_other = self._clocks[rank] != self._clocks[0]
                first_there = self._clocks.index(self._clocks[rank]) == rank
                if is_other and first_there and self.rank in (0, rank):
                    best = self._ping(rank)
        # Those of one host have one clock.
        offsets = self.all_gather(best)
        return offsets[self._clocks.index(self._clocks[self.rank])] if self.rank else (0, 0)

    def _ping(self, rank: int) -> tuple[int, int]:
        """Of the quickest of some questions for the first rank's time: (offset, half the time that it took)."""
        best = (0, 2**62)
        for _ in range(PINGS):
            if self.rank == rank:
                told = torch.zeros(1, dtype=torch.int64)
                asked_ns = time.perf_counter_ns()
                dist.send(told, 0, group=self._group)
                dist.recv(told, 0, group=self._group)
                took_ns = time.perf_counter_ns() - asked_ns
                if took_ns // 2 < best[1]:
                    best = int(told.item()) - (asked_ns + took_ns // 2), took_ns // 2
            else:
                asked = torch.zeros(1, dtype=torch.int64)
                dist.recv(asked, rank, group=self._group)
                dist.send(torch.tensor([time.perf_counter_ns()]), rank, group=self._group)
        return best if self.rank == rank else (0, 0)

    def free_address(self) -> str:
        """An address of this host, with a port that is free, as the other ranks reach it."""
        host = _own_address(self._launch) or this_host()
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asked:
            asked.bind((host, 0))
            return f"[{host}]:{asked.getsockname()[1]}" if ":" in host else f"{host}:{asked.getsockname()[1]}"

    # -- who is lost -----------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What gloo says of a connection, as what became of the rank at its other end."""
        try:
            yield
        except RuntimeError as exc:
            self._watch.suspect()
            self.check()
            raise RankError(f"{self.name}: the ranks lost touch ({type(exc).__name__}: {exc})") from exc

    def check(self) -> None:
        """Raises `RankError` where a rank was lost or has failed."""
        self._watch.check()

    def failed(self, error: BaseException) -> DnnbenchError | None:
        if isinstance(error, RankError) and self._watch.loss is not None:
            return None
        if getattr(error, "is_of_all_ranks", False):
            return None
        if not isinstance(error, DnnbenchError):
            # A collective of a framework fails in a language of its own where a rank is gone.
            self._watch.suspect()
        loss = self._watch.loss
        if loss is not None and loss.rank != self.rank:
            return RankError(f"{loss}; the run ends")
        text = " ".join(str(error).split())
        self.ended(f"failed: {type(error).__name__}: {text}"[:2000])
        return None

    def ended(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._watch.tell(reason)

    def find_lost(self) -> Loss | None:
        """Who is lost, when this process was told to end: mostly since another one has."""
        return self._watch.suspect()

    def leave(self) -> None:
        """Says goodbye. Sockets end with the process: after a loss nobody answers who would be asked to close them."""
        self._watch.say_goodbye()
        if self._launch.rank == 0:
            # The keys may be in this process, and tell the others why the run ends.
            self._watch.wait_for_goodbyes(GOODBYE_S)
        if self._watch.loss is None:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


class _Team(TorchRanks):
    """The first ranks of a launch; the others have no part in what it does together."""

    def __init__(self, whole: TorchRanks, count: int) -> None:
        self.rank, self.ranks = whole.rank, count
        self.active = whole.rank < count
        self._launch, self._scope = whole._launch, f"first {count}"
        self._counts, self._store, self._watch = whole._counts, whole._store, whole._watch
        self._teams: dict[int, TorchRanks] = {}
        self._hosts, self._clocks = whole._hosts, whole._clocks
        self.on_one_host = len(set(self._hosts[:count])) == 1
        self.local_rank, self.leads_host = whole.local_rank, whole.leads_host
        self.local_ranks = sum(host == whole._hosts[whole.rank] for host in whole._hosts[:count])
        whole.sync(f"the first {count}")
        self._group = dist.new_group(list(range(count)), PATIENCE, GLOO)
        self._all_have_gpus = whole._all_have_gpus
        self._nccl = self._nccl_group()


class _Raised:
    """An error in the place of what was to be made."""

    def __init__(self, error: DnnbenchError) -> None:
        self.error = error


def _store_of(launch: Launch, purpose: str = "dnnbench") -> Any:
    """A client of the launch's store, which is the launcher's, or else the first rank's."""
    # The first rank's first client starts the store; all the later ones of its process share it.
    serves = launch.rank == 0 and not launch.store_is_agents
    store = TCPStore(
        launch.address,
        launch.port,
        launch.ranks,
        serves,
        timeout=datetime.timedelta(seconds=START_S),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"dnnbench/{launch.attempt}/{purpose}", store)


def _are_there(store: Any, keys: list[str]) -> bool:
    """Whether the keys are there, or come within a moment."""
    try:
        store.wait(keys, ASK)
    except dist.DistStoreError:
        return False
    return True


def _own_address(launch: Launch) -> str | None:
    """This host's address in the network that leads to the first rank."""
    try:
        family, _, _, _, address = socket.getaddrinfo(launch.address, launch.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            # Sends nothing: the kernel only chooses the way.
            asked.connect(address)
            return str(asked.getsockname()[0])
    except OSError:
        return None


def _choose_interface(launch: Launch) -> None:
    """Lets gloo use the network that leads to the first rank: it would use that of the host's name."""
    mine = _own_address(launch)
    if "GLOO_SOCKET_IFNAME" in os.environ or mine is None:
        return
    import psutil

    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == mine for one in addresses):
            if not mine.startswith("127."):
                os.environ["GLOO_SOCKET_IFNAME"] = interface
            return

"""Ranks: what a launcher says, who is lost, and real processes that hand each other what they have."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from _pytest.junitxml import LogXML

import fixtures.ranks
from dnnbench.config import Config, Variant
from dnnbench.errors import DnnbenchError
from dnnbench.ranks import ALONE, Launch, RankError, Ranks
from dnnbench.ranks.torch_ranks import TorchRanks
from dnnbench.ranks.watch import BEAT_S, Loss, Watch
from fixtures.measure import _interrupt
from fixtures.options import RUN, Run
from fixtures.ranks import _check_asked_for, _Here, _hush
from fixtures.storages import give_up

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_a_launcher_a_run_is_alone():
    assert Launch.of({}) is None
    assert ALONE.all_gather("a") == ["a"]
    assert ALONE.gather("a") == ["a"]
    assert ALONE.broadcast(lambda: 3) == 3
    assert ALONE.clock_offset_ns() == (0, 0)


def test_a_launch_is_what_torchrun_says():
    launch = Launch.of(LAUNCHED | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert (launch.rank, launch.ranks, launch.local_rank, launch.local_ranks) == (1, 4, 1, 2)
    assert launch.store_is_agents


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"MASTER_PORT": ""}, "one of them is no number"),
        ({"RANK": "x"}, "launch with torchrun"),
        ({"RANK": "4"}, "RANK=4 is none of WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1 is none"),
    ],
)
def test_half_a_launch_is_refused(changed, told):
    with pytest.raises(RankError, match=told):
        Launch.of(LAUNCHED | changed)


def test_a_launch_without_an_address_is_refused():
    with pytest.raises(RankError, match="as a launcher does, but MASTER_ADDR is not: launch with torchrun"):
        Launch.of({"RANK": "0", "WORLD_SIZE": "1"})


def test_alone_there_are_no_more_ranks_to_be_asked_for():
    assert Ranks().first(1).ranks == 1
    with pytest.raises(RankError, match=r"execution\.ranks: found 3, but 1 of them run; .*--nproc-per-node=3"):
        Ranks().first(3)


@pytest.mark.parametrize(
    ("launched", "asked", "refused"), [(1, None, False), (4, 4, False), (1, 2, True), (4, 8, True)]
)
def test_more_ranks_than_there_are_are_refused_before_anything_is_measured(launched, asked, refused):
    configs = [Config.model_validate({"execution": {} if asked is None else {"ranks": ranks}}) for ranks in (1, asked)]
    run = Run(tuple(Variant(config, ()) for config in configs), ("fs",), True, False, "moto", None)
    config = SimpleNamespace(stash={RUN: run})
    if not refused:
        _check_asked_for(config, launched)
        return
    told = rf"execution\.ranks: found {asked}, but {launched} of them run; .*--nproc-per-node={asked}"
    with pytest.raises(pytest.UsageError, match=told):
        _check_asked_for(config, launched)


def test_the_first_rank_alone_writes_files():
    xml, benchmarks = LogXML("junit.xml", None), SimpleNamespace(json="a", save="b", autosave=True, histogram="c")
    plugins = SimpleNamespace(get_plugins=lambda: [xml], get_plugin=lambda name: None)
    _hush(SimpleNamespace(pluginmanager=plugins, _benchmarksession=benchmarks))
    assert xml.logfile == os.devnull
    assert set(vars(benchmarks).values()) == {None}


def test_a_rank_that_is_ending_is_not_interrupted_by_its_launcher(monkeypatch):
    here = _Here()
    monkeypatch.setattr(fixtures.ranks, "_HERE", here)
    # One of pytest-xdist's workers only fails the test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    here.noticed.set()
    # Alone, a run that ends may be told to end at once.
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        _interrupt(signal.SIGTERM, None)
    here.met = True
    _interrupt(signal.SIGTERM, None)
    here.noticed.clear()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        _interrupt(signal.SIGTERM, None)


class Lonely:
    """A rank of two, and what it has told the other one."""

    def __init__(self, loss=None):
        self.told = []
        self.loss, self.tell, self.suspect = loss, self.told.append, lambda: None


def lonely(loss=None):
    ranks = object.__new__(TorchRanks)
    ranks.rank, ranks._watch = 0, Lonely(loss)
    return ranks


def test_what_is_wrong_on_one_rank_alone_is_told_to_the_others_before_it_ends(monkeypatch):
    here, error = _Here(), DnnbenchError("fs: there are no credentials on this host")
    monkeypatch.setattr(fixtures.ranks, "_HERE", here)
    # One of pytest-xdist's workers only fails the test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    here.ranks = lonely()
    with pytest.raises(pytest.exit.Exception, match="no credentials"):
        give_up(error)
    assert here.ranks._watch.told == [f"failed: DnnbenchError: {error}"]
    # All of them end by what the first one has handed out as an error.
    here.ranks, error.is_of_all_ranks = lonely(), True
    with pytest.raises(pytest.exit.Exception, match="no credentials"):
        give_up(error)
    assert here.ranks._watch.told == []


def test_a_rank_that_ends_for_another_one_says_which(monkeypatch):
    here = _Here()
    monkeypatch.setattr(fixtures.ranks, "_HERE", here)
    # One of pytest-xdist's workers only fails the test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    here.ranks = lonely(Loss(1, "b", "failed: NotFoundError: x"))
    with pytest.raises(pytest.exit.Exception, match="rank 1 on b failed: NotFoundError: x; the run ends"):
        give_up(DnnbenchError("broken pipe"))


class KeyStore:
    """A store of keys in this process, which may be cut off."""

    def __init__(self):
        self.keys, self.is_cut = {}, False

    def _reach(self):
        if self.is_cut:
            raise ConnectionError("no route")

    def set(self, key, value):
        self._reach()
        self.keys[key] = value.encode()

    def get(self, key):
        self._reach()
        return self.keys[key]

    def multi_get(self, keys):
        return [self.get(key) for key in keys]

    def check(self, keys):
        self._reach()
        return all(key in self.keys for key in keys)


class Host:
    """Three ranks' watches over one store, on one clock that the test moves."""

    def __init__(self, timeout_s=10.0):
        self.now_s, self.store, self.lost = 0.0, KeyStore(), {}
        self.watches = [
            Watch(self.store, rank, ["a", "a", "b"], timeout_s, self._lost(rank), lambda: self.now_s)
            for rank in range(3)
        ]

    def _lost(self, rank):
        return lambda loss: self.lost.setdefault(rank, loss)

    def live(self, seconds, silent=()):
        """Some seconds in which every rank beats and looks, but for the silent ones."""
        for _ in range(int(seconds / BEAT_S)):
            self.now_s += BEAT_S
            for rank, watch in enumerate(self.watches):
                if rank not in silent:
                    watch.beat()
                    watch.look()


def test_ranks_that_live_lose_nobody():
    host = Host()
    host.live(60)
    assert host.lost == {}
    for watch in host.watches:
        watch.check()


def test_a_silent_rank_is_lost_after_the_time_that_was_set_and_named_with_its_host():
    host = Host(timeout_s=10)
    host.live(5)
    host.live(9, silent=[2])
    assert host.lost == {}
    host.live(4, silent=[2])
    assert host.lost[0].rank == 2
    assert str(host.lost[0]).startswith("rank 2 on b gave no sign of life for 1")
    with pytest.raises(RankError, match="rank 2 on b"):
        host.watches[0].check()


def test_the_others_hear_of_a_loss_from_the_first_rank():
    host = Host(timeout_s=10)
    host.live(5)
    host.store.set("failed", json.dumps({"rank": 2, "host": "b", "reason": "gave no sign of life"}))
    host.live(1, silent=[2])
    assert {rank: loss.rank for rank, loss in host.lost.items()} == {0: 2, 1: 2}


def test_the_loss_of_the_first_rank_is_seen_by_the_others():
    host = Host(timeout_s=10)
    host.live(5)
    host.live(13, silent=[0])
    assert host.lost[1].rank == host.lost[2].rank == 0
    assert "rank 0 on a" in str(host.lost[1])


def test_a_rank_that_cannot_reach_the_others_says_so_itself():
    host = Host(timeout_s=10)
    host.live(3)
    host.store.is_cut = True
    host.now_s += 11
    host.watches[2].look()
    assert "rank 0 on a cannot be reached for 10 s" in str(host.lost[2])


def test_a_rank_that_was_stopped_itself_accuses_nobody():
    host = Host(timeout_s=10)
    host.live(5)
    # All of them stood still, such as on a suspended machine.
    host.now_s += 100
    host.watches[0].beat()
    assert host.watches[0].loss is None or host.watches[0].loss.rank == 0


def test_a_rank_that_said_goodbye_is_not_missed():
    host = Host(timeout_s=10)
    host.live(5)
    host.watches[2].say_goodbye()
    host.live(60, silent=[2])
    assert host.lost == {}


def test_a_failure_is_told_once_with_its_cause():
    host = Host()
    host.live(3)
    host.watches[1].tell("failed: NotFoundError: a.jpg")
    host.watches[1].tell("failed: another one")
    host.live(2)
    assert str(host.lost[0]) == "rank 1 on a failed: NotFoundError: a.jpg"
    assert host.lost[2].rank == 1


# Processes of one launch. They are forked from one that has imported torch, which takes longer than all they do.
LAUNCHER = """
import os, socket, sys
sys.path.insert(0, {root!r})
import numpy as np
from dnnbench.errors import DnnbenchError
from dnnbench.probe import HERE
from dnnbench.ranks import Launch, RankError, cores_of
from dnnbench.ranks.torch_ranks import TorchRanks

def run():
    ranks = TorchRanks(Launch.of(os.environ), 5.0, lambda loss: None)
{body}
    ranks.leave()

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(WORLD_SIZE="{count}", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
started = []
for rank in range({count}):
    started.append(os.fork())
    if not started[-1]:
        os.environ["RANK"] = str(rank)
        sys.stdout = open(f"{folder}/{{rank}}", "w")
        run()
        sys.stdout.close()
        os._exit(0)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started])
"""


def run_ranks(tmp_path, count, body):
    """What each of so many ranks printed, their exit statuses, and what they said of errors."""
    script = tmp_path / "launch.py"
    root = str(Path(__file__).parent.parent)
    script.write_text(LAUNCHER.format(root=root, body=textwrap.indent(body, "    "), count=count, folder=tmp_path))
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(tmp_path / str(rank)).read_text() for rank in range(count)], json.loads(done.stdout), done.stderr


def test_ranks_hand_each_other_what_they_have(tmp_path):
    out, status, errors = run_ranks(
        tmp_path,
        3,
        """
big = np.arange(9_000_000, dtype=np.int64)
got = ranks.broadcast(lambda: {"big": big, "empty": np.empty(0), "text": "x"})
assert (got["big"] == big).all() and not len(got["empty"]) and got["text"] == "x"
assert ranks.all_gather(ranks.rank) == [0, 1, 2]
assert ranks.gather(ranks.rank) == ([0, 1, 2] if ranks.rank == 0 else None)
assert ranks.clock_offset_ns() == (0, 0)
two = ranks.first(2)
if two.active:
    assert two.all_gather(ranks.rank) == [0, 1] and two.ranks == 2
assert ranks.first(2) is two and ranks.first(None) is ranks
try:
    ranks.broadcast(lambda: (_ for _ in ()).throw(DnnbenchError("no such bucket")))
except DnnbenchError as exc:
    print(exc)
assert ranks.leads_host == (ranks.rank == 0) and ranks.local_rank == ranks.rank
# Whatever has launched them: no rank is one of the others that take a rank's processors.
assert HERE.processes == set(ranks.all_gather(os.getpid())) and HERE.cores == os.sched_getaffinity(0)
# A launcher may bind them, each to a processor of its own.
usable = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {usable[ranks.rank % len(usable)]})
assert cores_of(ranks) == min(3, len(usable)), cores_of(ranks)
""",
    )
    assert status == [0, 0, 0], errors
    assert out == ["no such bucket\n"] * 3


def test_ranks_that_do_not_run_the_same_are_told_of_by_the_first_one(tmp_path):
    out, status, errors = run_ranks(
        tmp_path,
        2,
        """
try:
    ranks.sync("test_read[fs]" if ranks.rank == 0 else "test_listing[fs]")
except RankError as exc:
    print(exc)
""",
    )
    assert status == [0, 0], errors
    assert "rank 1 on " in out[0]
    assert "came to 'test_listing[fs]' where the first rank came to 'test_read[fs]'" in out[0]
    assert "they do not run the same benchmarks" in out[1]


def test_a_rank_that_dies_ends_the_waiting_of_the_others_with_its_name(tmp_path):
    out, status, errors = run_ranks(
        tmp_path,
        3,
        """
if ranks.rank == 1:
    os.kill(os.getpid(), 9)
try:
    ranks.sync("never")
except RankError as exc:
    print(exc)
""",
    )
    assert status == [0, -9, 0], errors
    for told in (out[0], out[2]):
        assert "rank 1 on " in told
        assert "gave no sign of life" in told


def test_errors_of_ranks_are_ours():
    assert issubclass(RankError, DnnbenchError)

"""What is judged of single rounds: their page cache by what was fetched, the calm of the machine, a server's cache."""

import os
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest
from endurance import Note, growths

from dnnbench.calm import MachineWatch, Span
from dnnbench.config import Config
from dnnbench.metrics import Round, Tally, record
from dnnbench.metrics_rounds import MIB, NS, Machine, audited_cache, disturbances, is_served_from_cache
from dnnbench.ranks import ALONE
from dnnbench.storage import page_cache
from dnnbench.storage.fetched import AuditedFiles, FetchAudit, nfs_read_bytes
from fixtures import measure


@pytest.mark.parametrize(
    ("verified", "fetched_mib", "state"),
    [
        ("cold", 100, "cold"), ("cold", 300, "cold"), ("cold", 90, "cold"), ("cold", 89, "mixed"),
        ("cold", 10, "warm"), ("cold", 0, "warm"), ("cold", None, "cold"), ("unknown", None, "unknown"),
        ("unknown", 0, "warm"), ("unknown", 100, "unknown"), ("warm", 0, "warm"), ("warm", 10, "warm"),
        ("warm", 50, "mixed"), ("warm", 100, "unknown"),
    ],
)  # fmt: skip
def test_what_was_fetched_says_whose_the_reading_was(verified, fetched_mib, state):
    fetched_bytes = None if fetched_mib is None else fetched_mib * MIB
    assert audited_cache(verified, 100 * MIB, fetched_bytes) == state


def test_a_little_that_a_process_fetches_beside_makes_no_warm_round_anything_else():
    assert audited_cache("warm", 5000, 400_000) == "warm"
    assert audited_cache("cold", 0, 0) == "cold"


@pytest.mark.parametrize(
    ("first_ms", "later_ms", "cached"),
    [(10, (2, 2.1), True), (10, (8, 8), False), (10, (2, 6), False), (2, (10, 10), False), (10, (), None)],
)
def test_a_server_caches_where_later_reads_are_clearly_faster(first_ms, later_ms, cached):
    first, *later = (array("q", [round(ms * 1e6)] * 100) for ms in (first_ms, *later_ms))
    assert is_served_from_cache(first, later) is cached
    assert is_served_from_cache(first[:99], later) is None


def reading(latency_ms, **others):
    return Round(100, Tally(array("q", [latency_ms * 10**6] * 100), 100), wall_ns=NS, **others)


def test_first_and_later_reads_are_kept_apart_only_where_the_first_were_the_first():
    figures = record([reading(10, first_read=True), reading(2), reading(2)], cores=2, peak_memory_bytes=None)
    assert (figures["first_reads"]["latency_p50_ms"], figures["later_reads"]["latency_p50_ms"]) == (10, 2)
    assert (figures["later_reads"]["objects_per_s"], figures["server_cache"]) == (100, True)
    figures = record([reading(10, first_read=False), reading(2)], cores=2, peak_memory_bytes=None)
    assert (figures["first_reads"], figures["server_cache"]) == (None, None)


def test_swapping_disturbs_a_round_as_other_processes_do():
    assert disturbances(0, Machine(swapped_in_bytes=MIB), 2 * NS, 2) == []
    assert disturbances(0, Machine(swapped_in_bytes=2 * MIB, swapped_out_bytes=1), 2 * NS, 2) == ["swapping"]
    assert disturbances(NS, Machine(), 2 * NS, 2) == ["other processes"]


def test_repeated_rounds_are_told_and_in_no_total():
    figures = record([reading(1)], cores=2, peak_memory_bytes=None, repeated=[reading(1, others_cpu_ns=NS)])
    assert (figures["objects"], figures["repeats"], figures["disturbed"]) == (100, 1, False)
    assert figures["repeated_rounds"][0]["disturbed_by"] == ["other processes"]


def test_a_span_adds_up_what_grew_and_forgets_a_counter_that_was_missing_once():
    told = iter([{"a": 1, "b": 1}, {"a": 4, "b": 2}, {"a": 10}, {"a": 11, "b": 9}])
    span = Span(lambda: next(told))
    for _ in range(2):
        span.start()
        span.stop()
    assert span.grown == {"a": 4}


def test_the_machine_is_told_in_numbers_or_none():
    watch = MachineWatch()
    watch.start()
    watch.stop()
    told = watch.seen().record(NS, 2)
    assert told["load_average_1min"] >= 0
    assert all(0 <= share <= 1 for share in told["pressure"].values())


@pytest.fixture
def files(tmp_path):
    """Files on a disk, whose fetches the kernel counts."""
    paths = []
    for number in range(8):
        paths.append(str(tmp_path / str(number)))
        (tmp_path / str(number)).write_bytes(os.urandom(50_000))
    if AuditedFiles.find(paths) is None:
        pytest.skip("the kernel does not count what it fetches from this file system")
    return paths


def fetched(paths):
    """What is fetched while half of the files are read here, and the other half in a process that ends."""
    audit = FetchAudit(AuditedFiles.find(paths))
    state = page_cache.make_cold(paths[2:])
    page_cache.make_warm(paths[:2])
    audit.start()
    for path in paths[:4]:
        with open(path, "rb") as file:
            file.read()
    subprocess.run(
        [sys.executable, "-c", "import sys; [open(p, 'rb').read() for p in sys.argv[1:]]", *paths[4:]], check=True
    )
    audit.stop()
    return state, audit.fetched()


def test_what_a_process_that_has_ended_fetched_is_counted_and_what_memory_gave_is_not(files):
    state, (fetched_bytes, counter) = fetched(files)
    if (state, counter) != ("cold", "processes"):
        pytest.skip("somebody else was at these files, or at this disk, at the same time")
    assert fetched_bytes >= 6 * 50_000
    assert fetched_bytes < 8 * 50_000 + 4 * MIB


def test_a_file_system_in_memory_has_no_audit():
    memory = Path("/dev/shm")  # noqa: S108 (no other place is surely in memory)
    if not memory.is_dir():
        pytest.skip("there is no file system in memory")
    with tempfile.NamedTemporaryFile(dir=memory) as file:
        file.write(b"x" * 5000)
        file.flush()
        assert AuditedFiles.find([file.name]) is None


def test_an_nfs_mount_tells_what_it_read_from_its_server():
    text = (
        "device rootfs mounted on / with fstype rootfs\n"
        "device a:/x mounted on /mnt/a with fstype nfs4 statvers=1.1\n\tage:\t9\n\tbytes:\t1 2 3 4 5 6 7 8\n"
        "device a:/y mounted on /mnt/b with fstype nfs4 statvers=1.1\n\tbytes:\t1 2 3 4 55 6 7 8\n"
    )
    assert [nfs_read_bytes(text, place) for place in ("/mnt/a", "/mnt/b", "/", "/mnt")] == [5, 55, None, None]


class Work:
    """A workload that counts its attempts, each of which takes a second more than the one before, of its own time."""

    what, reads_content, storage = "read", False, SimpleNamespace(name="aws")

    def __init__(self, repeatable=True):
        self.repeatable, self.ran, self.prepared, self.now_ns = repeatable, 0, [], 0

    def prepare(self, number):
        self.prepared.append(number)

    def again(self):
        return self.repeatable

    def run(self):
        self.ran += 1
        self.now_ns += self.ran * NS

    def account(self):
        self.now_ns += 100 * NS
        return reading(self.ran)


def clock_of(work, monkeypatch, disturbed, **execution):
    monkeypatch.setattr(Round, "disturbed_by", lambda one, cores: ["other processes"] if next(disturbed) else [])
    times = SimpleNamespace(perf_counter_ns=lambda: work.now_ns, process_time_ns=lambda: 0)
    monkeypatch.setattr(measure, "time", times)
    execution = Config().execution.model_copy(update=execution)
    return measure._Clock(work, execution, SimpleNamespace(without=(), cpu_ns=0), None, ALONE)


@pytest.mark.parametrize(
    ("most", "disturbed", "ran", "kept_latency_ms"),
    [(2, [1, 1, 0], 3, 3), (1, [1], 2, 2), (0, [], 1, 1), (2, [0], 1, 1)],
)
def test_a_disturbed_round_is_made_again_within_a_bound(monkeypatch, most, disturbed, ran, kept_latency_ms):
    work = Work()
    clock = clock_of(work, monkeypatch, iter(disturbed), max_repeats=most)
    clock.setup()
    before_ns = clock.now_ns()
    clock.run()
    assert (work.ran, work.prepared, len(clock.repeated), len(clock.rounds)) == (ran, [0], ran - 1, 1)
    assert clock.rounds[0].tally.latency_ns[0] == kept_latency_ms * 10**6
    # The clock of pytest-benchmark has seen the attempt that was kept, and nothing else.
    assert clock.now_ns() - before_ns == clock.rounds[0].wall_ns == ran * NS


def test_a_round_that_takes_long_is_not_made_again(monkeypatch):
    work = Work()
    monkeypatch.setattr(measure, "LONGEST_REPEATED_S", 0.5)
    clock = clock_of(work, monkeypatch, iter([1]))
    clock.setup()
    clock.run()
    assert (work.ran, clock.repeated) == (1, [])


def test_what_cannot_run_twice_is_only_flagged(monkeypatch):
    work = Work(repeatable=False)
    clock = clock_of(work, monkeypatch, iter([1]))
    clock.setup()
    clock.run()
    assert (work.ran, clock.repeated, len(clock.rounds)) == (1, [], 1)


def test_endurance_finds_what_grows_and_leaves_the_warm_up_out():
    notes = [Note(60.0 * i, 500 + (i if i > 10 else 100 * i), 900, 50 + i, 3, 9) for i in range(60)]
    found = growths(notes)
    assert found["handles"].per_hour == pytest.approx(60)
    assert found["handles"].passes(4)
    assert found["pss_mib"].per_hour == pytest.approx(60)
    assert not found["threads"].passes(4)

"""Nothing that was measured is lost: the journal, going on from it, and what a full disk leaves."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_benchmark.stats import Metadata

from dnnbench.config import Config, Variant
from dnnbench.journal import Journal, JournalError, differences
from fixtures import journal, measure, session
from fixtures.journal import _restored, plain
from fixtures.options import RUN, Run
from tests.test_bench import ENVIRONMENT, ROOT, make_data


def entry(name, **extra):
    return {"fullname": name, "extra_info": extra}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.json.journal"


def reread(path):
    journal = Journal(path)
    found = journal.read()
    journal.close()
    return found


def test_what_was_added_is_there_by_name_and_run(path):
    for number, names in enumerate((["a", "b"], ["b", "c"])):
        journal = Journal(path)
        journal.read()
        journal.begin({"number": number})
        for name in names:
            journal.add(entry(name, at=number))
        journal.close()
    found = reread(path)
    assert [run["number"] for run in found.runs] == [0, 1]
    assert {name: one["extra_info"]["at"] for name, one in found.benchmarks.items()} == {"a": 0, "b": 1, "c": 1}
    assert found.of_run(0) == [{"at": 0}]


def test_what_was_withdrawn_is_not_there(path):
    journal = Journal(path)
    journal.begin({})
    journal.add(entry("a"))
    journal.add(entry("b"))
    journal.withdraw("a")
    journal.close()
    assert list(reread(path).benchmarks) == ["b"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True), st.data())
def test_a_kill_at_any_byte_loses_only_what_was_being_written(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal(path)
    ends = []
    journal.begin({})
    for name in names:
        journal.add(entry(name))
        ends.append(path.stat().st_size)
    journal.close()
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    whole = [name for name, end in zip(names, ends, strict=True) if end <= cut]
    assert list(reread(path).benchmarks) == whole
    again = Journal(path)
    again.read()
    again.begin({})
    again.add(entry("after the kill"))
    again.close()
    assert list(reread(path).benchmarks) == [*whole, "after the kill"]


def test_a_last_line_of_nothing_is_what_a_power_cut_leaves(path):
    path.write_bytes(b'{"run": {}}\n{"benchmark": {"fullname": "a"}}\n' + b"\0" * 9 + b"\n")
    assert list(reread(path).benchmarks) == ["a"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"run": {}}\nnot json\n{"withdrawn": "a"}\n', ":2: is damaged"),
        (b'{"benchmarks": []}\n{}\n', "no journal"),
        (b'{"run": {}}\n{"what": 1}\n{"withdrawn": "a"}\n', ":2: is damaged"),
    ],
)
def test_other_damage_is_an_error(path, content, word):
    path.write_bytes(content)
    with pytest.raises(JournalError, match=word):
        Journal(path).read()


def test_another_process_cannot_have_the_same_journal(path):
    journal = Journal(path)
    journal.begin({})
    code = (
        "import sys, pathlib; from dnnbench.journal import *\n"
        "try: Journal(pathlib.Path(sys.argv[1]))\n"
        "except JournalError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "another run is writing it" in done.stdout
    journal.close()


def test_a_journal_that_is_set_aside_gets_a_free_name(path):
    for number in (1, 2):
        journal = Journal(path)
        journal.begin({"number": number})
        kept = journal.set_aside()
        assert kept.name == f"out.json.journal.{number}"
        assert reread(kept).runs == [{"number": number}]
    assert not path.exists()


def test_differences_are_named_with_both_values():
    then = {"schema": 1, "machine": {"packages": {"torch": "2.1", "moto": "5"}}, "storages": ["fs"]}
    now = {"schema": 1, "machine": {"packages": {"torch": "2.2"}}, "storages": ["fs", "aws"]}
    told = differences(then, now)
    assert "machine.packages.torch was 2.1, is 2.2" in told
    assert "machine.packages.moto was 5, is nothing" in told
    assert 'storages was ["fs"], is ["fs", "aws"]' in told
    assert differences(then, then) == ""


@given(st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=5))
def test_a_benchmark_comes_back_as_it_was(durations):
    described = {"name": "t[a]", "fullname": "f::t[a]", "group": None, "param": "a", "params": {"x": "a"}}
    fixture = SimpleNamespace(**described, extra_info={"schema": 1}, cprofile_stats=None, has_error=False)
    before = Metadata(fixture, 1, {"timer": len, "min_time": 0.1})
    for duration in durations:
        before.update(duration)
    written = plain(before.as_dict())
    after = plain(_restored(json.loads(json.dumps(written))).as_dict())
    assert after == written | {"extra_info": {"schema": 1, "resumed": True}}


def _identity_of(monkeypatch, names, server="moto"):
    configs = [Config.model_validate({"dataset": {"name": name}}) for name in names]
    variants = tuple(Variant(config, ()) for config in configs)
    described = Run(variants, ("fs",), embedded=True, storages_by_name=False, server=server, config_path=None)
    monkeypatch.setattr(journal, "machine", lambda config: {})
    return journal._identity(
        SimpleNamespace(
            stash={RUN: described, journal._ORDER: []},
            getoption=lambda name: None,
            _benchmarksession=SimpleNamespace(options={"disable_gc": False}),
        )
    )


@pytest.mark.parametrize("changed", ["first.py", "second.py", "third_of_mine.py"])
def test_a_run_with_another_class_or_server_is_another_run(tmp_path, monkeypatch, changed):
    for name in ("first.py", "second.py", "third_of_mine.py"):
        (tmp_path / name).write_text("class Mine: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f"{tmp_path}/first.py:Mine", f"{tmp_path}/second.py:Mine", "third_of_mine:Mine"]
    before = _identity_of(monkeypatch, names)
    assert differences(before, _identity_of(monkeypatch, names)) == ""
    assert "--dnn-server was moto, is ceph" in differences(before, _identity_of(monkeypatch, names, "ceph"))
    (tmp_path / changed).write_text("class Mine: x = 1")
    assert changed in differences(before, _identity_of(monkeypatch, names))


def test_a_run_of_another_number_of_ranks_is_another_run(monkeypatch):
    def launched(**environment):
        for name, value in {"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", **environment}.items():
            monkeypatch.setenv(name, value)
        return _identity_of(monkeypatch, [])

    alone = _identity_of(monkeypatch, [])
    two = launched(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    assert differences(two, launched(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")) == ""
    assert "ranks.in all was nothing, is 2" in differences(alone, two)
    assert "ranks.in all was 2, is 4" in differences(two, launched(WORLD_SIZE="4", LOCAL_WORLD_SIZE="2"))
    assert "ranks.on a host was 2, is 1" in differences(two, launched(WORLD_SIZE="2", LOCAL_WORLD_SIZE="1"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_to_end_ends_as_with_ctrl_c(number):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        # As nohup has it.
        signal.signal(number, signal.SIG_IGN)
        measure.pytest_sessionstart(None)
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        measure.pytest_sessionstart(None)
        with pytest.raises(KeyboardInterrupt):
            signal.getsignal(number)(number, None)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_as_many_files_as_reads_in_flight_may_be_open(monkeypatch):
    told = []
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: told.append(limits))
    for limits in [(1024, 1 << 20), (1024, resource.RLIM_INFINITY), (1024, 2048), (8192, 1 << 20), (1024, 1024)]:
        monkeypatch.setattr(resource, "getrlimit", lambda what, limits=limits: limits)
        session._allow_connections()
    assert told == [(4096, 1 << 20), (4096, resource.RLIM_INFINITY), (2048, 2048)]


# -- runs ----------------------------------------------------------------------------------------------

KILLING = """
import os, signal

def pytest_runtest_setup(item):
    if {word!r} in item.name:
        os.kill(os.getpid(), signal.{signal})
"""


def run(tmp_path, *arguments, plugin=None, **options):
    command = [sys.executable, "-m", "pytest", "-q", "bench", f"--dnn-config={tmp_path}/config.json"]
    environment = dict(ENVIRONMENT)
    if plugin:
        (tmp_path / "killing.py").write_text(plugin)
        command += ["-p", "killing"]
        environment["PYTHONPATH"] = str(tmp_path)
    command += [f"--benchmark-json={tmp_path}/out.json", f"--dnn-set=metrics.path={tmp_path}/all.csv", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120, **options
    )


READS = ("-k", "read or listing")


def test_a_killed_run_is_gone_on_from_as_if_it_were_one(tmp_path):
    make_data(tmp_path)
    out, journal = tmp_path / "out.json", tmp_path / "out.json.journal"
    killed = run(tmp_path, *READS, plugin=KILLING.format(word="c8", signal="SIGKILL"))
    assert killed.returncode == -signal.SIGKILL
    assert len(reread(journal).benchmarks) == 3
    assert not out.exists()
    with journal.open("ab") as file:
        file.write(b'{"benchmark": {"fullna')
    # Another selection of benchmarks is another run.
    refused = run(tmp_path, "-k", "read", "--dnn-resume")
    assert refused.returncode == 4
    assert "is of another run: selected.bench/test_listing.py" in refused.stderr + refused.stdout
    assert "there is no" not in refused.stdout

    stopped = run(tmp_path, *READS, "--dnn-resume", plugin=KILLING.format(word="c32", signal="SIGTERM"))
    assert stopped.returncode == 2
    assert f"--dnn-resume goes on from {journal}" in stopped.stdout
    assert len(json.loads((tmp_path / "out.json.partial").read_text())["benchmarks"]) == 4

    done = run(tmp_path, *READS, "--dnn-resume")
    assert done.returncode == 0, done.stdout
    assert f"resumed: 4 from {journal}" in done.stdout
    result = json.loads(out.read_text())
    assert [one["name"].partition("[")[2] for one in result["benchmarks"]] == [
        "fs-posix]", *(f"fs-posix-{reads}]" for reads in ("serial", "c1", "c8", "c32")),
    ]  # fmt: skip
    assert [one["extra_info"].get("resumed", False) for one in result["benchmarks"]] == [True] * 4 + [False]
    assert [one["benchmarks"] for one in result["dnnbench"]["runs"]] == [3, 1, 1]
    assert result["dnnbench"]["complete"] is True
    assert result["dnnbench"]["skipped"] == []
    assert sorted(file.name for file in tmp_path.glob("out.json*")) == ["out.json"]
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = [row["benchmark"] for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(one["name"] for one in result["benchmarks"])


TWICE = """
import pytest

def pytest_runtest_setup(item):
    if "c8" in item.name:
        raise KeyboardInterrupt

@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo):
    raise KeyboardInterrupt
"""


def test_ctrl_c_twice_leaves_no_result_that_looks_whole(tmp_path):
    make_data(tmp_path)
    assert run(tmp_path, *READS, plugin=TWICE).returncode != 0
    assert sorted(file.name for file in tmp_path.glob("out.json*")) == ["out.json.journal", "out.json.partial"]
    assert json.loads((tmp_path / "out.json.partial").read_text())["dnnbench"]["complete"] is False
    assert len(reread(tmp_path / "out.json.journal").benchmarks) == 3


def test_another_machine_is_refused_and_a_changed_data_set_is_an_error(tmp_path):
    make_data(tmp_path)
    journal = tmp_path / "out.json.journal"
    run(tmp_path, *READS, plugin=KILLING.format(word="c8", signal="SIGKILL"))
    lines = journal.read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["run"]["identity"]["machine"]["cpu"] = "Another One"
    header["run"]["identity"]["schema"] = 0
    journal.write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    refused = run(tmp_path, *READS, "--dnn-resume")
    assert refused.returncode == 4
    (line,) = [line for line in (refused.stdout + refused.stderr).splitlines() if "another run" in line]
    assert "schema was 0, is 1" in line
    assert "machine.cpu was Another One, is " in line

    journal.write_text("".join(lines))
    (tmp_path / "flowers" / "roses" / "0.jpg").unlink()
    changed = run(tmp_path, *READS, "--dnn-resume")
    assert changed.returncode == 1
    assert "the data set changed since the run that is resumed" in changed.stdout
    # A run that does not resume keeps the journal.
    anew = run(tmp_path, "-k", "listing")
    assert anew.returncode == 0
    assert f"is kept in {journal}.1" in anew.stdout
    assert len(reread(tmp_path / "out.json.journal.1").benchmarks) == 3


def test_a_full_disk_is_one_line_and_the_table_is_shown(tmp_path):
    make_data(tmp_path)
    out = tmp_path / "out.json"
    out.write_text("mine")

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))

    done = run(tmp_path, *READS, "-p", "no:cacheprovider", preexec_fn=little_room)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if f"{out}: cannot be written" in line]
    assert "File too large" in line
    assert "fs       posix   read c32" in done.stdout
    assert not out.exists()
    assert (tmp_path / "out.json.old").read_text() == "mine"
    assert not (tmp_path / "out.json.tmp").exists()
    # What fitted is there, and the rest is measured when there is room again.
    held = len(reread(tmp_path / "out.json.journal").benchmarks)
    assert 0 < held < 5
    again = run(tmp_path, *READS, "--dnn-resume")
    assert again.returncode == 0
    assert len(json.loads(out.read_text())["benchmarks"]) == 5
    assert not (tmp_path / "out.json.old").exists()


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    make_data(tmp_path)
    done = run(tmp_path, "-k", "listing", "--benchmark-json=/dev/stdout")
    assert done.returncode == 0
    assert '"complete": true' in done.stdout
    full = run(tmp_path, "-k", "listing", "--benchmark-json=/dev/full")
    assert full.returncode == 1
    assert "/dev/full: cannot be written (No space left on device)" in full.stdout


def test_to_resume_a_file_is_needed_and_no_journal_means_all_is_measured(tmp_path):
    make_data(tmp_path)
    done = run(tmp_path, "-k", "listing", "--dnn-resume", "--benchmark-json=/dev/stdout")
    assert "needs a --benchmark-json=FILE" in done.stdout + done.stderr
    done = run(tmp_path, "-k", "listing", "--dnn-resume")
    assert done.returncode == 0
    assert "resumed: nothing, there is no" in done.stdout

"""The probe and the provenance: what the client's processes hold and cost, and where a figure comes from."""

import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dnnbench import __version__, probe, provenance
from dnnbench.probe import OtherWork, PeakMemory, cores
from dnnbench.provenance import describe_machine

SIZE = 64 * 1024 * 1024
WAIT_S = 30
ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def child(code):
    """A Python process that has run ``code``, until its standard input closes."""
    code += "; import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.stdin.close()


def sampled(**options):
    """The bytes that one sample finds."""
    memory = PeakMemory(**options)
    memory.sample()
    return memory.peak_bytes


def test_an_allocation_shows_and_the_peak_remembers_it():
    with PeakMemory() as memory:
        block = b"\1" * SIZE
        memory.sample()
        del block
    assert memory.peak_bytes - memory.start_bytes >= SIZE * 0.9
    assert memory.peak_bytes - sampled() >= SIZE * 0.5


def test_what_was_there_before_is_the_start_and_no_more():
    block = b"\1" * SIZE
    with PeakMemory() as memory:
        del block
    assert memory.peak_bytes == memory.start_bytes >= SIZE


def test_the_last_moment_is_sampled_without_the_watcher():
    with PeakMemory() as memory:
        block = b"\1" * SIZE
    del block
    assert memory.peak_bytes - memory.start_bytes >= SIZE * 0.9


HUNGRY = f"block = b'x' * {SIZE}"
# The parent does nothing but wait; what comes after this happens in a child of it.
FORKED = "import os, sys\nif os.fork():\n    sys.stdin.read()\n    os._exit(0)\n"


@pytest.mark.parametrize("code", [HUNGRY, FORKED + HUNGRY], ids=["child", "grandchild"])
def test_a_child_process_counts(code):
    before = sampled()
    with child(code):
        assert sampled() - before >= SIZE * 0.9


def test_processes_that_are_not_the_clients_are_left_out():
    with child(HUNGRY) as server:
        assert sampled() - sampled(without=[server.pid]) >= SIZE * 0.9


def _answer(pipe):
    pipe.send("here")
    pipe.recv()


def test_pages_that_a_forked_worker_shares_are_counted_once():
    block = b"\1" * SIZE
    before = sampled()
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_answer, args=(theirs,))
    worker.start()
    assert ours.recv() == "here"
    assert sampled() - before < SIZE * 0.9
    ours.send("go")
    worker.join()
    assert len(block) == SIZE


def test_a_process_that_has_ended_is_no_error():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as ended:
        ended.stdout.read()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert sampled() > 0


def test_where_the_kernel_tells_nothing_there_is_no_peak(monkeypatch):
    monkeypatch.setattr(probe, "_PSS", re.compile(b"no such line"))
    with PeakMemory() as memory:
        pass
    assert (memory.start_bytes, memory.peak_bytes) == (None, None)


def test_the_watching_tells_what_it_costs(monkeypatch):
    monkeypatch.setattr(probe, "INTERVAL_S", 0.001)
    taken = threading.Semaphore(0)

    class Counted(PeakMemory):
        def sample(self):
            super().sample()
            if threading.current_thread() is not threading.main_thread():
                taken.release()

    cpu_ns = time.process_time_ns()
    with Counted() as memory:
        # The cost is told after each sample: the second shows that the first was.
        assert all(taken.acquire(timeout=WAIT_S) for _ in range(2))
        assert memory.cpu_ns > 0
    assert memory.cpu_ns <= time.process_time_ns() - cpu_ns


def test_the_watcher_ends_with_the_benchmark():
    with PeakMemory():
        assert "dnnbench-memory" in [thread.name for thread in threading.enumerate()]
    assert "dnnbench-memory" not in [thread.name for thread in threading.enumerate()]


BURN_S = 0.5
BURN = f"import time\nwhile time.process_time() < {BURN_S}: pass\n0"


def test_work_of_a_process_that_is_not_ours_is_others():
    if os.getpid() == 1:
        pytest.skip("as the first process of a container every orphan is ours")
    others = OtherWork()
    others.start()
    # Its parent ends at once, so that it descends from this process no longer; it ends with its pipe.
    code = f"import os, sys\nif os.fork(): os._exit(0)\n{BURN}; print('burnt', flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"burnt\n"
    others.stop()
    assert others.cpu_ns >= BURN_S * 0.7e9


def test_our_own_work_and_that_of_our_children_is_ours():
    before_s = probe._own_cpu_s()
    end_s = time.process_time() + BURN_S
    while time.process_time() < end_s:
        pass
    with child(BURN):
        assert probe._own_cpu_s() - before_s >= 2 * BURN_S * 0.9
    # And it stays ours when the child is gone.
    assert probe._own_cpu_s() - before_s >= 2 * BURN_S * 0.9


def test_what_others_do_between_stop_and_start_does_not_count(monkeypatch):
    busy_s, own_s = iter([0, 10, 100, 101, 200, 201]), iter([0, 4, 50, 50, 60, 65])
    monkeypatch.setattr(probe, "cores_busy_s", lambda: next(busy_s))
    monkeypatch.setattr(probe, "_own_cpu_s", lambda: next(own_s))
    others = OtherWork()
    others.stop()
    for total_s in (6, 7, 7):
        others.start()
        others.stop()
        others.stop()
        assert others.cpu_ns == total_s * 10**9


def test_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert (cores(), describe_machine(0.5)["cores"]) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)
    assert cores() == len(before)


def test_a_machine_is_described_in_json_types_with_its_versions():
    machine = describe_machine(0.5)
    assert json.loads(json.dumps(machine)) == machine
    assert (machine["dnnbench"], machine["python"]) == (__version__, platform.python_version())
    for package in ("numpy", "pillow", "pydantic", "pytest", "pytest-benchmark"):
        assert machine["packages"][package] == importlib.metadata.version(package)
    assert machine["memory_mib"] == psutil.virtual_memory().total // 2**20
    assert platform.release() in machine["kernel"]
    assert machine["load_average_1min_before"] == 0.5


def test_a_machine_has_no_host_name_and_nothing_of_the_environment(monkeypatch):
    names = os.uname()
    hidden = os.uname_result((names.sysname, "hidden-name", *names[2:]))
    monkeypatch.setattr(os, "uname", lambda: hidden)
    monkeypatch.setattr(platform, "_uname_cache", None)
    monkeypatch.setattr(socket, "gethostname", lambda: "hidden-name")
    for variable in ("HOSTNAME", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MY_TOKEN", "USER", "LOGNAME", "HOME"):
        monkeypatch.setenv(variable, "hidden-name")
    assert platform.node() == "hidden-name"
    assert "hidden-name" not in json.dumps(describe_machine(0.5))


def test_describing_a_machine_loads_no_framework():
    code = (
        "import sys, dnnbench.provenance as p; p.describe_machine(0.5); print({'torch', 'tensorflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """A function (shell lines) that puts a tool of NVIDIA's name into the path."""

    def make(lines):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{lines}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


def test_each_gpu_is_one_line(nvidia_smi):
    nvidia_smi("echo 'A100, 550.1, 81920 MiB'; echo 'A100, 550.1, 81920 MiB'")
    assert describe_machine(0.5)["gpu"] == ["A100, 550.1, 81920 MiB"] * 2


def test_a_gpu_tool_that_fails_leaves_no_gpu_and_fails_nothing(nvidia_smi):
    nvidia_smi("echo 'no devices were found'; exit 9")
    assert not describe_machine(0.5)["gpu"]


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("nvidia-smi", 30), OSError(8, "Exec format error")])
def test_a_gpu_tool_that_hangs_or_cannot_run_costs_no_result_file(nvidia_smi, monkeypatch, error):
    def run(*_, **__):
        raise error

    nvidia_smi("exit 0")
    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert not describe_machine(0.5)["gpu"]

"""``python -m dnnbench run CONFIG``: the one-command way, a thin front to ``pytest bench/``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dnnbench.config import expand_settings, load_config, without_secrets

INTERRUPT_PATIENCE_S = 10.0
ROOT = Path(__file__).resolve().parent.parent


def run_benchmarks(options: argparse.Namespace) -> int:
    """Measures what the configuration names; returns pytest's exit status.

    The JSON goes to ``CONFIG.out.json`` and, unless ``metrics.path`` says otherwise or
    ``execution.steps.metrics`` is false, the figures per epoch to ``CONFIG.metrics.csv``, both here.
    """
    path = Path(options.config)
    # Read here too, so that a mistake is told before pytest begins.
    config = expand_settings(load_config(path), [], str(path))[0].config
    json_path = Path(f"{path.stem}.out.json").absolute()
    arguments: list[str] = []
    if config.execution.steps.metrics and not config.metrics.path:
        # Quoted, so that a comma in it makes no second value.
        arguments.append("--dnn-set=metrics.path=" + json.dumps(f"{path.stem}.metrics.csv"))
    before_ns = _modified_ns(json_path)
    status = measure(path, json_path, [*arguments, *options.pytest_arguments])
    if status == 0 and _modified_ns(json_path) != before_ns:
        print(f"figures: {json_path}")
    return status


def measure(config: Path, json_path: Path, pytest_arguments: Sequence[str]) -> int:
    """Runs ``pytest bench/`` over a configuration, in a process of its own; returns its exit status."""
    command = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", "-c", str(ROOT / "pytest.ini"), str(ROOT / "bench")]
    command += [f"--dnn-config={config}", f"--benchmark-json={json_path}"]
    arguments, hidden = _hide(pytest_arguments)
    return _wait(subprocess.Popen([*command, *arguments], pass_fds=hidden))  # noqa: S603 (our own tests)


def _hide(arguments: Sequence[str]) -> tuple[list[str], list[int]]:
    """The arguments as a command line may show them, and open files that go with it.

    Where one sets a secret, all are in a file in memory, which pytest reads.
    """
    if all(word == without_secrets(word) for word in arguments):
        return list(arguments), []
    handle = os.memfd_create("dnnbench-arguments")
    os.write(handle, "\n".join(arguments).encode())
    return [f"@/proc/self/fd/{handle}"], [handle]


def _modified_ns(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for pytest to end, after Ctrl-C too: then it is ending its workers and servers."""
    patience_s: float | None = None
    while True:
        try:
            return process.wait(patience_s)
        except KeyboardInterrupt:
            patience_s = INTERRUPT_PATIENCE_S
        except subprocess.TimeoutExpired:
            # Ctrl-C reaches both; a signal to this process alone is passed on.
            process.send_signal(signal.SIGINT)
            patience_s = None

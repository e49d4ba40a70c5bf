"""``python -m dnnbench run CONFIG``: the one-command way, a thin front to ``pytest bench/``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dnnbench.config import expand_settings, load_config

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
    command = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", "-c", str(ROOT / "pytest.ini"), str(ROOT / "bench")]
    command += [f"--dnn-config={path}", f"--benchmark-json={json_path}"]
    if config.execution.steps.metrics and not config.metrics.path:
        command.append(f"--dnn-set=metrics.path={path.stem}.metrics.csv")
    status = subprocess.run([*command, *options.pytest_arguments], check=False).returncode  # noqa: S603 (our own tests)
    if status == 0:
        print(f"figures: {json_path}")
    return status

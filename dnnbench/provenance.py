"""Where a figure comes from: versions, processor, memory, GPU, kernel. No secrets, no host names."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dnnbench import __version__
from dnnbench.probe import cores

PACKAGES = (
    "torch", "tensorflow", "keras", "boto3", "botocore", "obstore", "s3torchconnector", "webdataset",
    "numpy", "pillow", "pydantic", "pytest", "pytest-benchmark", "moto",
)  # fmt: skip


def describe_machine(load_average: float) -> dict[str, Any]:
    """Versions and hardware as JSON types; what cannot be learnt is None.

    ``load_average`` is that of the minute before the run: at its end it would be the run's own.
    """
    return {
        "dnnbench": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": _first_match("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        "cores": cores(),
        "memory_mib": _memory_mib(),
        "gpu": _gpus(),
        "load_average_1min_before": load_average,
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_match(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def _memory_mib() -> int | None:
    text = _first_match("/proc/meminfo", r"^MemTotal:\s*(\d+) kB$")
    return int(text) // 1024 if text else None


def _gpus() -> list[str] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 (fixed words)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines() if answer.returncode == 0 else None

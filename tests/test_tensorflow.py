"""Runs what is about TensorFlow in a process of its own: once it has started, no process can safely fork."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("cases", sorted(path.name for path in HERE.glob("tensorflow_*cases.py")))
def test_cases_hold_in_a_process_of_their_own(cases):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={HERE.parent}", cases]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr

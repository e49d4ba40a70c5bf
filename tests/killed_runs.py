"""Kills runs at random moments, goes on from each, and says whether a benchmark that had passed was lost.

``python tests/killed_runs.py [MOMENTS]``, some ten seconds for each of ten. Exit status 1 where one was.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SELECTED = "listing or read"
LONGEST_S = 600


def command(out, *more):
    fixed = [sys.executable, "-m", "pytest", "bench", "-v", "-k", SELECTED, f"--benchmark-json={out}"]
    return [*fixed, "--dnn-storage=fs", *more]


def passed(text):
    """The benchmarks that a run's output says have passed."""
    return set(re.findall(r"^(bench/\S+\[.*\]) PASSED", text, re.MULTILINE))


def await_journal(process, out):
    """Waits until a run begins to measure."""
    while process.poll() is None and not Path(f"{out}.journal").exists():
        time.sleep(0.01)


def killed(out, after_s):
    """What a run said before it was killed, so long after it began to measure, and what its journal holds."""
    with tempfile.TemporaryFile("w+") as told:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command(out), cwd=ROOT, stdout=told, stderr=told, env=environment)
        await_journal(process, out)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        told.seek(0)
        text = told.read()
    journal = Path(f"{out}.journal")
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return passed(text), {entry["benchmark"]["fullname"] for entry in entries if "benchmark" in entry}


def main(moments):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "whole.json"
        process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL)
        await_journal(process, out)
        start_s = time.monotonic()
        if process.wait(LONGEST_S):
            sys.exit("the run fails even where nobody kills it")
        whole_s = time.monotonic() - start_s
        expected = [one["fullname"] for one in json.loads(out.read_text())["benchmarks"]]
        bad = 0
        for number in range(moments):
            out = Path(folder) / f"{number}.json"
            after_s = random.uniform(0, whole_s)
            told, held = killed(out, after_s)
            whole = out.exists()
            if not whole:
                resume = command(out, "--dnn-resume")
                subprocess.run(resume, cwd=ROOT, check=True, capture_output=True, timeout=LONGEST_S)
            result = json.loads(out.read_text())["benchmarks"]
            resumed = {one["fullname"] for one in result if one["extra_info"].get("resumed")}
            well = whole or (told <= held == resumed)
            well = well and [one["fullname"] for one in result] == expected
            bad += not well
            print(
                f"killed after {after_s:5.1f} s of {whole_s:.1f}: {len(told)} had passed, {len(held)} in the journal, "
                f"{len(resumed)} resumed, {len(result)} of {len(expected)} in the end: {'well' if well else 'LOST'}"
            )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))

"""The workflow for CI: what it runs is there, parses, and gates; where it is not run, it cannot be seen to break."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from dnnbench.__main__ import _parser

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "benchmarks.yml").read_text())
JOBS = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
OURS = "python -m dnnbench "
GATE = next(step["run"] for step in STEPS if step.get("name") == "Compare with the baseline")


def commands(start):
    """The commands of a workflow that begin with ``start``, as words; variables stay as they are written."""
    scripts = [step["run"] for step in STEPS if "run" in step]
    comments = re.findall(
        rf"^# +({re.escape(start)}.*)$", (ROOT / ".github/workflows/benchmarks.yml").read_text(), re.M
    )
    lines = [line.strip() for script in scripts for line in script.splitlines()] + comments
    # What follows is the shell's: redirections, and what is done where the command fails.
    return [shlex.split(re.split(r" 2?>| \|\| ", line)[0]) for line in lines if line.startswith(start)]


@pytest.mark.parametrize("words", commands(OURS), ids=" ".join)
def test_each_command_of_ours_is_one(words):
    assert _parser().parse_args(words[3:]).command


def test_the_workflow_measures_compares_and_shows():
    assert {words[3] for words in commands(OURS)} == {"baseline", "compare", "report"}
    assert any("bench/" in words for words in commands("pytest "))


def test_the_files_that_it_names_are_there():
    named = [word for words in commands("pytest ") for word in words if word.endswith("/")]
    named += [word for words in commands("pip ") for word in words if word.endswith(".txt")]
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name


def test_pytest_knows_every_option_that_it_is_given(pytestconfig):
    given = {word for words in commands("pytest ") for word in re.findall(r"--[a-z-]+", " ".join(words))}
    assert given == {"--dnn-config", "--benchmark-json"}
    for option in given:
        # Raises for one that is not known.
        pytestconfig.getoption(option)


def test_it_may_read_and_no_more_and_ends_in_time():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in JOBS.values())
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash -euo pipefail {0}"
    for job in JOBS.values():
        assert 0 < job["timeout-minutes"] <= 120


def test_it_uses_actions_of_github_alone_each_of_one_major_version():
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/(checkout|setup-python|upload-artifact|cache)@v\d+", action)


@pytest.fixture
def gate(tmp_path):
    """A function (status of the comparison) -> (status of the step, its output, the job's summary)."""

    def run(status, baseline=True):
        if baseline:
            (tmp_path / "baselines" / "main").mkdir(parents=True)
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\necho "$@"\necho "told on stderr" >&2\nexit {status}\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        summary = tmp_path / "summary.md"
        summary.write_text("before\n")
        step = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", GATE],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "BASELINE": "main", "GITHUB_STEP_SUMMARY": str(summary)},
        )  # fmt: skip
        return step.returncode, step.stdout, summary.read_text()

    return run


@pytest.mark.parametrize(
    ("status", "told"),
    [(0, "No regression"), (1, "::error::Slower"), (2, "::error::Not judged"), (130, "itself failed (status 130)")],
)
def test_the_gate_passes_on_the_status_of_the_comparison_and_shows_all_of_it(gate, status, told):
    found, output, summary = gate(status)
    assert found == status
    assert told in output
    assert summary.startswith("before\n")
    for shown in (output, summary):
        assert "dnnbench compare main --candidate runs --format markdown" in shown
        assert "told on stderr" in shown


def test_where_there_is_no_baseline_the_gate_warns_and_compares_nothing(gate):
    found, output, summary = gate(1, baseline=False)
    assert found == 0
    assert output.startswith("::warning::There is no baseline yet")
    assert summary == "before\n"

"""``python -m dnnbench ab A.json B.json``: two configurations, measured in turns, then compared.

A drift of the machine or of the storage hits runs that lie side by side alike. The turns change places (AB, BA, AB, …),
so that whoever comes second is not always the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from dnnbench.compare import UNUSABLE, Compared, CompareError, allowed_kinds, compare
from dnnbench.compare_text import FORMATS, as_text
from dnnbench.config import expand_settings, load_config, without_secrets
from dnnbench.effect import Rules
from dnnbench.outputs import write_whole
from dnnbench.results import Result, ResultError, read_result
from dnnbench.run import measure

# What the two configurations may differ in: that is what they are for.
ALLOWED = ("configuration", "storage", "client", "server")
LEAST_RUNS = 3
# What decides here what is measured, and where the figures go.
OURS = ("--dnn-config", "--benchmark-json", "--dnn-baseline")


def turns(runs: int) -> Iterator[tuple[str, int]]:
    """(side, number of its run), in the order of measuring."""
    for number in range(1, runs + 1):
        for side in ("a", "b") if number % 2 else ("b", "a"):
            yield side, number


def ab_command(options: argparse.Namespace) -> int:
    """Measures both in turns, compares B with A, and each of them with itself. Returns as `compare` does."""
    configs = {"a": Path(options.a), "b": Path(options.b)}
    settings = {"a": options.set + options.set_a, "b": options.set + options.set_b}
    if options.runs < LEAST_RUNS:
        raise CompareError(f"--runs: expected at least {LEAST_RUNS} (found {options.runs})")
    rules, also_allowed = Rules(options.confidence, options.tolerance), allowed_kinds(options.allow)
    for word in options.passed_on:
        if word.partition("=")[0] in OURS:
            raise CompareError(f"{word.partition('=')[0]}: is ab's own to say, so it cannot be passed on to pytest")
    # Before hours of measuring.
    hashes = {
        side: [one.config.hash() for one in expand_settings(load_config(path), settings[side], str(path))]
        for side, path in configs.items()
    }
    folder = Path(options.folder)
    _begin(folder, {**hashes, "passed on": [without_secrets(word) for word in options.passed_on]}, options.resume)
    for number, (side, run) in enumerate(turns(options.runs), 1):
        target = folder / f"{side}{run}.json"
        if target.exists() and _is_whole(target):
            continue
        print(f"dnnbench: ab: {number} of {2 * options.runs}: {side.upper()}, run {run}", flush=True)
        arguments = [f"--dnn-set={setting}" for setting in settings[side]] + options.passed_on
        status = measure(configs[side], target.absolute(), arguments)
        if status:
            raise CompareError(f"{target}: not measured (pytest's exit status {status}); --resume goes on from here")
        if not _is_whole(target):
            raise CompareError(f"{target}: pytest left no figures there; does what follows -- select a benchmark?")
    sides = {
        side: [read_result(folder / f"{side}{run}.json") for run in range(1, options.runs + 1)] for side in configs
    }
    allowed = {*ALLOWED, *also_allowed}
    if sides["a"][0].benchmarks[0].storage != sides["b"][0].benchmarks[0].storage:
        # Files have a page cache here, and objects have none.
        allowed.add("cache")
    compared = compare(sides["a"], sides["b"], rules, allowed)
    text = FORMATS[options.format](compared)
    print(text)
    controls = [(side.upper(), control(runs, rules, also_allowed)) for side, runs in sides.items()]
    disturbed = [side for side, one in controls if not _tell_control(side, one)]
    status = UNUSABLE if disturbed else compared.exit_status
    whole = {**json.loads(FORMATS["json"](compared)), "exit_status": status, "disturbed": disturbed}
    # Beside the folder, which holds results and nothing else: report and compare take it as it is.
    place = folder.resolve()
    write_whole(place.with_name(f"{place.name}.compared.json"), json.dumps(whole, indent=2).encode())
    return status


def _begin(folder: Path, asked: dict[str, list[str]], resume: bool) -> None:
    """Makes the folder, and notes in it what is measured. Raises `CompareError` where it holds runs of others."""
    note, text = folder / "measured.txt", json.dumps(asked, indent=1)
    if folder.is_dir() and any(folder.glob("[ab][0-9]*.json")):
        if not resume:
            raise CompareError(f"{folder}: holds runs; --resume goes on from them, or name another folder with -o")
        if not note.is_file() or note.read_text() != text:
            raise CompareError(
                f"{folder}: holds runs of other configurations, or with other arguments to pytest; name another folder "
                "with -o"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, text.encode())


def control(runs: Sequence[Result], rules: Rules, allowed: Sequence[str]) -> Compared:
    """One side against itself: every other run against the rest, which differ in nothing but their moment."""
    first, second = runs[::2], runs[1::2]
    return compare(first, second, rules, {*allowed, "undecided"})


def _tell_control(side: str, compared: Compared) -> bool:
    """Says what an A/A comparison found; False where it found a difference that cannot be, or that must not."""
    if compared.refused:
        print(f"control: {side} against itself: its runs are not alike, so trust no verdict")
        print("\n".join(compared.problems))
        return False
    if all(one.low is None for one in compared.comparisons):
        print(f"control: {side} against itself: too few runs for a control")
        return True
    found = [*compared.having("slower"), *compared.having("faster")]
    total = len(compared.comparisons)
    if not found:
        print(f"control: {side} against itself: {total} comparisons, none slower or faster")
        return True
    print(
        f"control: {side} against itself: {len(found)} of {total} comparisons say slower or faster, where nothing "
        "differs: the noise of this machine or storage is not of the kind that the method allows for; trust no verdict"
    )
    print(as_text(compared))
    return False


def _is_whole(path: Path) -> bool:
    try:
        read_result(path)
    except ResultError:
        return False
    return True

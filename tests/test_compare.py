"""Comparing runs: what is compared, what is refused and by which name, and what the exit status says."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_results import MACHINE, RESOLVED, record, result, write

from dnnbench import ab
from dnnbench.__main__ import main
from dnnbench.comparable import KINDS
from dnnbench.compare import CompareError, compare, compare_files
from dnnbench.compare_text import as_markdown, as_text
from dnnbench.results import ResultError, find_files, read_result

NAME = "test_read[aws-obstore-c8]"
# Six runs that spread by one percent.
CALM = (1.0, 1.01, 0.99, 1.005, 0.995, 1.0)


def runs(folder, side, factors=CALM, first=0, benchmarks=None, **about):
    """Result files of runs whose rates are multiplied, and latencies divided, by these factors."""
    paths = []
    for number, factor in enumerate(factors):
        made = {
            name: {**one, **{key: one[key] * factor for key in one if key.endswith("_per_s")}}
            for name, one in (benchmarks or {NAME: record()}).items()
        }
        for one in made.values():
            for key in ("latency_p50_ms", "latency_p99_ms"):
                if key in one:
                    one[key] /= factor
        paths.append(write(folder, f"{side}{number}.json", result(first + number, made, **about)))
    return paths


@pytest.fixture
def baseline(tmp_path):
    return runs(tmp_path / "baseline", "a")


def slowed(tmp_path, by=0.8, **about):
    return runs(tmp_path / "slow", "b", [factor * by for factor in CALM], first=20, **about)


def test_equal_runs_are_the_same(tmp_path, baseline):
    compared = compare_files(baseline, runs(tmp_path / "b", "b", CALM[::-1], first=20))
    assert {(one.metric, one.verdict) for one in compared.comparisons} == {
        ("throughput", "same"),
        ("p50", "same"),
        ("p99", "same"),
    }
    assert compared.exit_status == 0
    assert compared.sentence == "no regression: of 3 comparisons 3 same (6 runs against 6 runs)"


def test_a_regression_is_one_however_often_it_is_measured(tmp_path, baseline, capsys):
    for time in range(2):
        slow = runs(tmp_path / f"slow{time}", "b", [factor * 0.8 for factor in CALM], first=20 * (time + 1))
        arguments = ["compare", *map(str, baseline), "--candidate", *map(str, slow)]
        assert main(arguments) == 1
    told = capsys.readouterr().out
    assert re.search(r"slower +test_read\[aws-obstore-c8\] +throughput +1,000 objects/s +800 objects/s +-20\.0%", told)
    assert "regression: of 3 comparisons 3 slower" in told


def test_a_higher_latency_alone_is_a_regression(tmp_path, baseline):
    slow = [
        write(tmp_path / "b", f"{i}.json", result(20 + i, {NAME: record(latency_p99_ms=12.0 + i / 20)}))
        for i in range(6)
    ]
    compared = compare_files(baseline, slow)
    assert [(one.metric, round(one.estimate, 1)) for one in compared.having("slower")] == [("p99", 1.3)]
    assert compared.exit_status == 1


def test_a_share_of_time_is_compared_in_points(tmp_path):
    sides = [
        runs(tmp_path / side, side, first=first, benchmarks={NAME: record(waiting_share=share)})
        for side, first, share in (("a", 0, 0.05), ("b", 20, 0.25))
    ]
    (one,) = compare_files(*sides).having("slower")
    assert (one.metric, one.scale, round(one.estimate, 2)) == ("waiting share", "difference", 0.2)


def test_a_listing_is_compared_by_its_rate_only(tmp_path, baseline):
    listed = {"test_listing[aws-obstore]": record(listed_bytes=5)}
    compared = compare_files(
        runs(tmp_path / "a", "a", benchmarks=listed), runs(tmp_path / "b", "b", first=20, benchmarks=listed)
    )
    assert [(one.metric, one.unit) for one in compared.comparisons] == [("listing rate", "keys/s")]


def test_at_a_higher_knee_latencies_are_no_regression(tmp_path):
    name = "test_autoscale_read[aws-obstore]"
    sides = [
        runs(tmp_path / side, side, first=first, benchmarks={
            name: record(knee={"concurrency": reads}, objects_per_s=100.0 * reads, latency_p50_ms=1.0 * reads)
        })
        for side, first, reads in (("a", 0, 8), ("b", 20, 32))
    ]  # fmt: skip
    assert [(one.metric, one.verdict) for one in compare_files(*sides).comparisons] == [("throughput", "faster")]


def test_too_few_runs_are_no_verdict_and_say_how_many_would_do(tmp_path, baseline):
    compared = compare_files(baseline[:2], slowed(tmp_path)[:1])
    assert compared.exit_status == 2
    assert compared.problems == ["not enough data for 1 comparison; about 4 more runs a side would probably do"]
    assert compare_files(baseline[:2], slowed(tmp_path)[:1], allowed=["undecided"]).exit_status == 0


OTHER = {
    "catalog": {"catalog": {"part": "all", "hash": "bbbb", "objects": 100, "bytes": 1000, "left_out": {}}},
    "cache": {"cache": "warm"},
    "server": {"settings": {"endpoint": "http://10.0.0.8:9000", "bucket": "b", "server": "S", "obstore": "0.12.1"}},
    "client": {"settings": {"endpoint": "http://10.0.0.7:9000", "bucket": "b", "server": "S", "obstore": "0.13.0"}},
}


def different(kind):
    """(figures, facts about the run) that differ in this kind only."""
    if kind in OTHER:
        return OTHER[kind], {}
    if kind == "configuration":
        resolved = {"storage": {"s3": {"bucket": "b", "client_lib": "obstore"}}, "execution": {"rounds": 9}}
        return {"config_hash": "dddd"}, {"configuration": [{"swept": {}, "hash": "dddd", "resolved": resolved}]}
    machine = {"hardware": {"cores": 4}, "software": {"kernel": "Linux 6.2"}}[kind]
    return {}, {"machine": {**MACHINE, **machine}}


@pytest.mark.parametrize("kind", [*OTHER, "configuration", "hardware", "software"])
def test_what_differs_is_refused_by_name_unless_it_is_allowed(tmp_path, baseline, kind):
    figures, about = different(kind)
    other = runs(tmp_path / "other", "b", first=20, benchmarks={NAME: record(**figures)}, **about)
    refused = compare_files(baseline, other)
    assert {one.kind for one in refused.refused} == {kind}
    assert refused.exit_status == 2
    assert not refused.comparisons
    assert f"refused: {kind}: " in as_text(refused)
    allowed = compare_files(baseline, other, allowed=[kind])
    assert not allowed.refused
    assert allowed.exit_status == 0
    assert any(note.startswith(f"allowed: {kind}: ") for note in allowed.notes)


@pytest.mark.parametrize(
    ("more", "same"),
    [
        # No figure that is compared depends on what a request costs.
        ({"prices": {"currency": "EUR", "get_per_1000": 7.0}}, True),
        # A key that an earlier version did not have, and that is as if it were not there.
        ({"execution": {"rounds": 3, "ranges": {"concurrency": 8}}}, True),
        ({"execution": {"rounds": 3, "ranges": {"concurrency": 9}}}, False),
    ],
)
def test_prices_and_keys_that_are_new_and_unset_are_no_difference(tmp_path, baseline, more, same):
    configuration = [{"swept": {}, "hash": "cccc", "resolved": {**RESOLVED, **more}}]
    other = runs(tmp_path / "other", "b", first=20, configuration=configuration)
    refused = compare_files(baseline, other).refused
    assert [one.kind for one in refused] == ([] if same else ["configuration"])


@pytest.mark.parametrize("kind", [*OTHER, "hardware"])
def test_runs_of_one_side_must_be_alike_too(tmp_path, baseline, kind):
    figures, about = different(kind)
    odd = runs(tmp_path / "odd", "b", CALM[:1], first=20, benchmarks={NAME: record(**figures)}, **about)
    candidate = runs(tmp_path / "c", "c", first=40)
    assert any("within the baseline" in one.text for one in compare_files([*baseline, *odd], candidate).refused)
    assert any("within the candidate" in one.text for one in compare_files(baseline, [*candidate, *odd]).refused)


@pytest.mark.parametrize("side", [0, 1])
def test_a_missing_benchmark_is_a_failure_unless_it_is_allowed(tmp_path, side):
    both = {NAME: record(), "test_read[aws-obstore-c32]": record()}
    sides = [
        runs(tmp_path / str(i), "r", first=20 * i, benchmarks=both if i == side else {NAME: record()}) for i in (0, 1)
    ]
    compared = compare_files(*sides)
    assert [one.kind for one in compared.refused] == ["missing"]
    assert "test_read[aws-obstore-c32]" in compared.refused[0].text
    assert compared.exit_status == 2
    assert compare_files(*sides, allowed=["missing"]).exit_status == 0


def test_of_many_that_are_missing_some_are_named(tmp_path):
    many = {f"test_read[aws-obstore-c{i}]": record() for i in range(20)}
    sides = runs(tmp_path / "a", "a", benchmarks=many), runs(tmp_path / "b", "b", first=20, benchmarks={NAME: record()})
    compared = compare_files(*sides)
    assert len(compared.refused) == 19
    assert len(compared.problems) == 4
    assert compared.problems[-1] == "refused: missing: 16 more like these"


def test_a_regression_counts_more_than_what_is_missing(tmp_path):
    both = {NAME: record(), "test_read[aws-obstore-c32]": record()}
    slow = [factor * 0.8 for factor in CALM]
    sides = runs(tmp_path / "a", "a", benchmarks=both), runs(tmp_path / "b", "b", slow, first=20)
    assert compare_files(*sides).exit_status == 1


def test_a_port_of_a_local_server_is_no_difference(tmp_path):
    settings = {"bucket": "b", "server": "S", "obstore": "0.12.1"}
    sides = [
        runs(
            tmp_path / str(port),
            "r",
            first=port,
            benchmarks={NAME: record(settings={**settings, "endpoint": f"http://127.0.0.1:{port}"})},
            embedded_default=True,
            embedded_server={"kind": "moto", "version": "5"},
        )
        for port in (10, 30)
    ]
    assert compare_files(*sides).exit_status == 0


@pytest.mark.parametrize(("memory_mib", "same"), [(24321, True), (24319 - 256, True), (24319 + 257, False)])
def test_a_few_mib_more_or_less_are_no_other_machine(tmp_path, memory_mib, same):
    sides = [
        runs(tmp_path / str(first), "r", first=first, machine={**MACHINE, "memory_mib": mib})
        for first, mib in ((0, 24319), (20, memory_mib))
    ]
    assert [str(one) for one in compare_files(*sides).refused] == (
        [] if same else ["hardware: memory_mib: 24319, now 24576 (in 1 benchmark)"]
    )


def test_another_storage_or_client_is_matched_by_what_remains_of_the_names(tmp_path):
    names = {"test_read[aws-obstore-c8]": record(), "test_ladder[aws-obstore-torch-random]": record()}
    others = {
        "test_read[aws-boto3-c8]": record(client="boto3"),
        "test_ladder[aws-boto3-torch-random]": record(client="boto3"),
    }
    sides = runs(tmp_path / "a", "a", benchmarks=names), runs(tmp_path / "b", "b", first=20, benchmarks=others)
    assert {one.kind for one in compare_files(*sides).refused} == {"missing"}
    compared = compare_files(*sides, allowed=["client"])
    assert compared.exit_status == 0
    assert {one.benchmark.rpartition("::")[2] for one in compared.comparisons} == {
        "test_read[aws-c8]",
        "test_ladder[aws-torch-random]",
    }


def test_the_same_run_does_not_count_twice(tmp_path, baseline):
    copy = write(tmp_path, "copy.json", json.loads(baseline[0].read_text()))
    with pytest.raises(CompareError, match="is the same run as"):
        compare_files([*baseline, copy], slowed(tmp_path))
    with pytest.raises(CompareError, match="is the same run as"):
        compare_files(baseline, [copy])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not JSON"),
        ("[1]", "is no result of dnnbench"),
        ('{"benchmarks": []}', "is no result of dnnbench"),
        (json.dumps(result(complete=False)), "was not complete"),
        (json.dumps(result(schema=99)), "has schema 99"),
        (json.dumps({**result(), "benchmarks": []}), "holds no benchmark"),
        (json.dumps({**result(), "benchmarks": [{"fullname": "x", "extra_info": {"schema": 1}}]}), "is damaged"),
        (json.dumps(result(runs=[])), "is damaged"),
        (json.dumps(result(runs=[{"started_utc": None, "ended_utc": None}])), "is damaged"),
        (json.dumps(result(runs=[{"started_utc": "2026-01-05T08:00:00+00:00"}])), "is damaged"),
    ],
)  # fmt: skip
def test_files_that_are_no_results(tmp_path, content, told, capsys):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ResultError, match=told):
        read_result(path)
    assert main(["compare", str(path), "--candidate", str(path)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figures", "about"), [({"objects_per_s": 10**400}, {}), ({}, {"machine": {**MACHINE, "memory_mib": "much"}})]
)
def test_a_record_that_is_no_record_is_no_regression(tmp_path, baseline, figures, about, capsys):
    odd = write(tmp_path, "odd.json", result(20, {NAME: record(**figures)}, **about))
    assert main(["compare", *map(str, baseline), "--candidate", str(odd)]) == 2
    assert "a record is damaged" in capsys.readouterr().err


def test_names_of_files_that_are_not_there(tmp_path):
    for pattern in (tmp_path / "none.json", tmp_path / "*.json", tmp_path):
        with pytest.raises(ResultError, match="no such result file"):
            find_files([str(pattern)])


@pytest.mark.parametrize("arguments", [["--allow", "hadrware"], ["--metrics", "p51"]])
def test_an_unknown_kind_or_metric_names_the_known_ones(tmp_path, baseline, arguments, capsys):
    slow = slowed(tmp_path)
    assert main(["compare", str(baseline[0]), "--candidate", str(slow[0]), *arguments]) == 2
    assert "expected some of" in capsys.readouterr().err


def test_only_some_metrics(tmp_path, baseline):
    compared = compare_files(baseline, slowed(tmp_path), metrics=["p99"])
    assert [one.metric for one in compared.comparisons] == ["p99"]


def test_what_is_asked_for_by_name_needs_a_verdict(tmp_path, baseline, capsys):
    arguments = ["compare", str(baseline[0]), "--candidate", str(slowed(tmp_path)[0]), "--metrics"]
    assert main([*arguments, "p50,p99"]) == 2
    assert "not enough data for 2 comparisons" in capsys.readouterr().out
    assert main([*arguments, "waiting share"]) == 2
    assert "no benchmark in common that has any of the metrics" in capsys.readouterr().err


@pytest.mark.parametrize("nothing", [None, 0.0, float("nan"), float("inf"), "gone"])
@pytest.mark.parametrize(
    ("key", "metric"),
    [("objects_per_s", "throughput"), ("latency_p99_ms", "p99"), ("waiting_share", "waiting share")],
)
def test_a_figure_that_vanishes_is_refused(tmp_path, key, metric, nothing):
    has = runs(tmp_path / "a", "a", benchmarks={NAME: record(waiting_share=0.2)})
    some = [json.loads(path.read_text()) for path in runs(tmp_path / "b", "b", first=20, benchmarks={
        NAME: record(waiting_share=0.2)
    })]  # fmt: skip
    figures = some[3]["benchmarks"][0]["extra_info"]
    if nothing == "gone":
        del figures[key]
    else:
        figures[key] = nothing
    lacks = [write(tmp_path / "c", f"{i}.json", one) for i, one in enumerate(some)]
    for sides, title in (((has, lacks), "candidate"), ((lacks, has), "baseline")):
        compared = compare_files(*sides)
        if metric == "waiting share" and nothing == 0.0:
            assert not compared.refused
            continue
        (refused,) = compared.refused
        assert refused.kind == "missing"
        assert f"no {metric} in 1 of the 6 runs of the {title}" in refused.text
        assert compared.exit_status == 2
        assert metric not in {one.metric for one in compared.comparisons}
        assert len(compared.comparisons) == 3
        assert compare_files(*sides, allowed=["missing"]).exit_status == 0


def test_a_rate_that_no_run_has_is_refused_and_another_figure_is_not(tmp_path):
    for key, kinds in (("objects_per_s", ["missing"]), ("latency_p99_ms", [])):
        sides = [
            [
                write(tmp_path / key / side, f"{i}.json", result(first + i, {NAME: record(**{key: None})}))
                for i in range(6)
            ]
            for side, first in (("a", 0), ("b", 20))
        ]
        assert [one.kind for one in compare_files(*sides).refused] == kinds


def test_an_interval_beyond_any_float_is_told(tmp_path, baseline, capsys):
    odd = [
        write(tmp_path / "odd", f"{i}.json", result(20 + i, {NAME: record(objects_per_s=rate)}))
        for i, rate in enumerate((1.0, 1e9))
    ]
    for kind in ("text", "markdown", "json"):
        arguments = ["compare", *map(str, baseline), "--candidate", *map(str, odd), "--confidence", "0.9999"]
        assert main([*arguments, "--format", kind]) == 2
        assert max(map(len, capsys.readouterr().out.splitlines())) < 250


def test_what_spoils_figures_is_told(tmp_path, baseline):
    bound = runs(tmp_path / "b", "b", first=20, benchmarks={NAME: record(client_bound=True, disturbed=True)})
    notes = compare_files(baseline, bound).notes
    assert any("6 of 12 figures were limited by the client" in note for note in notes)
    assert any("disturbed machine" in note for note in notes)
    assert any("measured after the other" in note for note in notes)
    in_turns = [result(i, {NAME: record(wall_s=float(i))}) for i in range(12)]
    paths = [write(tmp_path / "turns", f"{i}.json", one) for i, one in enumerate(in_turns)]
    assert not any("after the other" in note for note in compare_files(paths[::2], paths[1::2]).notes)


def test_markdown_is_at_most_a_screen_and_shows_names_as_they_are(tmp_path):
    hostile = "test_read[aws-obstore-a|b`<img src=x>_*]"
    many = {hostile: record(), **{f"test_read[aws-obstore-c{i}]": record() for i in range(60)}}
    slow = [factor * 0.7 for factor in CALM]
    compared = compare_files(
        runs(tmp_path / "a", "a", benchmarks=many), runs(tmp_path / "b", "b", slow, first=20, benchmarks=many)
    )
    text = as_markdown(compared)
    assert len(text.splitlines()) <= 40
    assert "<img" not in text
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in text.splitlines() if line.startswith("| "))
    assert text.startswith("### ❌ dnnbench: regression")
    shown = r"test\_read\[aws-obstore-a\|b\`&#60;img src=x&#62;\_\*\]"
    alone = {hostile: record()}
    few = runs(tmp_path / "c", "c", first=40, benchmarks=alone), runs(tmp_path / "d", "d", slow, 60, alone)
    assert f"| {shown} |" in as_markdown(compare_files(*few))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
@example(["\r\r\r\r\r\x85\u2028\u2028", "\x1b[2J", "\ud800"])
def test_any_name_is_shown_in_one_line(names):
    benchmarks = {f"test_read[{name}{i}]": record(objects_per_s=1.0 + i) for i, name in enumerate(names)}
    made = [read_back(number, benchmarks) for number in (0, 1)]
    for text in (as_text(compare(made[:1], made[1:]), everything=True), as_markdown(compare(made[:1], made[1:]))):
        assert len(text.splitlines()) < 30
        assert "\x1b" not in text
        text.encode()


def read_back(number, benchmarks):
    from dnnbench.results import result_of

    return result_of(result(number, benchmarks), Path("x.json"))


def test_json_holds_all(tmp_path, baseline, capsys):
    status = main(["compare", *map(str, baseline), "--candidate", *map(str, slowed(tmp_path)), "--format", "json"])
    told = json.loads(capsys.readouterr().out)
    assert told["exit_status"] == status == 1
    assert [one["effect"]["verdict"] for one in told["comparisons"]] == ["slower"] * 3


# -- pinned baselines --------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_baseline_is_moved_by_nobody_but_its_owner(here, baseline, capsys):
    assert main(["baseline", "list"]) == 0
    assert "there is no baseline" in capsys.readouterr().out
    assert main(["baseline", "add", "main", *map(str, baseline)]) == 0
    held = sorted((here / "baselines" / "main").iterdir())
    assert len(held) == 6
    slow = [str(path) for path in slowed(here)]
    before = [path.read_bytes() for path in held]
    for _ in range(2):
        assert main(["compare", "main", "--candidate", *slow]) == 1
    assert [path.read_bytes() for path in sorted((here / "baselines" / "main").iterdir())] == before
    # Once more changes nothing.
    assert main(["baseline", "add", "main", *map(str, baseline)]) == 0
    assert "0 added, 6 runs" in capsys.readouterr().out
    assert main(["baseline", "list"]) == 0
    assert re.search(r"main: 6 runs, 1 benchmarks, 2026-01-05T08:00", capsys.readouterr().out)
    assert main(["baseline", "show", "main"]) == 0
    assert re.search(r"c8\]: 1,000 objects/s, run-to-run spread 0\.7%", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a b"])
def test_names_that_are_none(here, baseline, name, capsys):
    assert main(["baseline", "add", "--", name, str(baseline[0])]) == 2
    assert not (here / "baselines").exists()
    assert "expected letters" in capsys.readouterr().err


def test_a_baseline_holds_runs_of_one_kind_only(here, baseline, capsys):
    figures, about = different("hardware")
    other = runs(here / "o", "o", CALM[:1], first=40, benchmarks={NAME: record(**figures)}, **about)
    assert main(["baseline", "add", "main", str(baseline[0])]) == 0
    assert main(["baseline", "add", "main", str(other[0])]) == 2
    assert "hardware: cores: 2, now 4" in capsys.readouterr().err
    assert main(["baseline", "add", "main", str(other[0]), "--allow", "software,hardware"]) == 0
    assert main(["baseline", "show", "none"]) == 2
    assert 'there is no "none"' in capsys.readouterr().err


def test_a_baseline_without_figures_is_shown(here, capsys):
    made = [
        write(here / "x", f"{i}.json", result(i, {NAME: record(objects_per_s=None), f"{NAME[:-1]}0]": record()}))
        for i in range(2)
    ]
    assert main(["baseline", "add", "main", *map(str, made)]) == 0
    assert main(["baseline", "show", "main"]) == 0
    told = capsys.readouterr().out
    assert "c8]: no throughput" in told
    assert "c80]: 1,000 objects/s" in told


def test_a_name_that_is_neither_a_baseline_nor_a_file(here, baseline, capsys):
    assert main(["compare", "mian", "--candidate", str(baseline[0])]) == 2
    assert "mian: there is no such baseline in baselines, and no such result file" in capsys.readouterr().err


def test_where_a_comparison_cannot_be_written_is_told_first(here, baseline, capsys):
    files = [*map(str, baseline), "--candidate", *map(str, slowed(here))]
    assert main(["compare", *files, "-o", "none/x.md"]) == 2
    assert "there is no folder" in capsys.readouterr().err


# -- two sides in turns ------------------------------------------------------------------------------


def test_the_turns_change_places():
    assert list(ab.turns(3)) == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


@pytest.fixture
def measured(here, monkeypatch):
    """Measures nothing: writes results whose rates are as ``rates`` has them for a side; notes what was asked for."""
    asked = []
    rates = {"a": 1000.0, "b": 1000.0}
    noise = iter([0.99, 1.0, 1.01, 1.005, 0.995, 1.003, 0.997, 1.01] * 10)

    def measure(config, json_path, arguments):
        side = json_path.name[0]
        asked.append((json_path.stem, arguments))
        made = result(len(asked), {NAME: record(objects_per_s=rates[side] * next(noise), wall_s=float(len(asked)))})
        json_path.write_text(json.dumps(made))
        return 0

    monkeypatch.setattr(ab, "measure", measure)
    for name in ("A.json", "B.json"):
        (here / name).write_text("{}")
    return asked, rates


def test_two_sides_are_measured_in_turns_and_compared(measured, capsys):
    asked, rates = measured
    rates["b"] = 800.0
    arguments = [
        "ab",
        "A.json",
        "B.json",
        "--runs",
        "6",
        "--set-b",
        "storage.s3.client_lib=obstore",
        "--",
        "-k",
        "read",
    ]
    assert main(arguments) == 1
    assert [name for name, _ in asked][:4] == ["a1", "b1", "b2", "a2"]
    assert asked[0][1] == ["-k", "read"]
    assert asked[1][1] == ["--dnn-set=storage.s3.client_lib=obstore", "-k", "read"]
    told = capsys.readouterr().out
    assert "slower" in told
    assert "control: A against itself: 3 comparisons, none slower or faster" in told
    # What is there is not measured again, nor mixed with by mistake.
    assert main(arguments) == 2
    assert "holds runs" in capsys.readouterr().err
    assert main([*arguments[:3], "--resume", *arguments[3:]]) == 1
    assert len(asked) == 12


def test_what_was_measured_of_another_thing_is_not_gone_on_from(measured, capsys):
    asked, _ = measured
    arguments = ["ab", "A.json", "B.json", "--runs", "3", "--set-b", "execution.rounds=4"]
    main(arguments)
    for other in (
        [*arguments[:-1], "execution.rounds=5", "--resume"],
        [*arguments, "--resume", "--", "-k", "read"],
    ):
        assert main(other) == 2
        assert "holds runs of other configurations" in capsys.readouterr().err
    main([*arguments, "--resume"])
    assert "holds runs" not in capsys.readouterr().err
    assert len(asked) == 6


def test_runs_of_a_side_that_are_not_alike_have_no_control(measured, monkeypatch, capsys):
    asked, _ = measured
    real = ab.measure

    def measure(config, json_path, arguments):
        real(config, json_path, arguments)
        data = json.loads(json_path.read_text())
        # As after an upgrade between two runs; that of a client may differ between the sides.
        data["benchmarks"][0]["extra_info"]["settings"]["obstore"] = "0.12.1" if len(asked) < 8 else "0.13.0"
        json_path.write_text(json.dumps(data))
        return 0

    monkeypatch.setattr(ab, "measure", measure)
    assert main(["ab", "A.json", "B.json", "--runs", "7"]) == 2
    told = capsys.readouterr().out
    assert "control: A against itself: its runs are not alike, so trust no verdict" in told
    assert "refused: client: obstore: 0.12.1, now 0.13.0" in told


def test_a_control_of_too_few_runs_says_so(measured, capsys):
    main(["ab", "A.json", "B.json", "--runs", "3"])
    told = capsys.readouterr().out
    assert "control: B against itself: too few runs for a control" in told
    assert "none slower or faster" not in told


def test_a_folder_of_runs_holds_results_only(measured, here):
    main(["ab", "A.json", "B.json", "--runs", "3"])
    assert [read_result(path).path.name for path in find_files([str(here / "ab")])][:2] == ["a1.json", "a2.json"]
    assert len(find_files([str(here / "ab" / "[ab]*")])) == 6
    assert json.loads((here / "ab.compared.json").read_text())["comparisons"]


def test_a_run_that_leaves_no_figures_ends_it_at_once(measured, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(ab, "measure", lambda *_: asked.append(1) or 0)
    assert main(["ab", "A.json", "B.json"]) == 2
    assert "pytest left no figures there" in capsys.readouterr().err
    assert len(asked) == 1


def test_noise_that_is_none_spoils_the_verdict(measured, monkeypatch, capsys):
    asked, rates = measured

    class Odd(dict):
        """Every other run of A is half as fast."""

        def __getitem__(self, side):
            return 500.0 if side == "a" and int(asked[-1][0][1:]) % 2 else 1000.0

    real = ab.measure
    monkeypatch.setitem(rates, "a", 0)
    odd = Odd()

    def measure(config, json_path, arguments):
        status = real(config, json_path, arguments)
        data = json.loads(json_path.read_text())
        data["benchmarks"][0]["extra_info"]["objects_per_s"] = odd[json_path.name[0]] + len(asked) / 10
        json_path.write_text(json.dumps(data))
        return status

    monkeypatch.setattr(ab, "measure", measure)
    assert main(["ab", "A.json", "B.json", "--runs", "12"]) == 2
    assert "trust no verdict" in capsys.readouterr().out
    told = json.loads(Path("ab.compared.json").read_text())
    assert (told["exit_status"], told["disturbed"]) == (2, ["A"])


def test_a_run_that_fails_ends_it(measured, monkeypatch, capsys):
    monkeypatch.setattr(ab, "measure", lambda *_: 1)
    assert main(["ab", "A.json", "B.json"]) == 2
    assert "--resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs", "2"], "at least 3"),
        (["--set", "storage.s3.clent_lib=boto3"], "client_lib"),
        (["--allow", "hardware,sofware"], 'found "sofware", expected some of'),
        (["--", "--dnn-config=C.json"], "--dnn-config: is ab's own to say"),
        (["--", "--benchmark-json", "x.json"], "--benchmark-json: is ab's own to say"),
        (["--", "-k", "read", "--dnn-baseline=main"], "--dnn-baseline: is ab's own to say"),
    ],
)
def test_what_two_sides_cannot_be_asked(measured, arguments, told, capsys):
    assert main(["ab", "A.json", "B.json", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not measured[0]


def test_every_kind_is_documented():
    text = (Path(__file__).parent.parent / "docs" / "comparing.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []

"""The report: what is shown of which results. The page itself is opened in `test_report_browser`."""

import copy
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_results import result

from dnnbench import report
from dnnbench.__main__ import main
from dnnbench.compare import compare as compare_results
from dnnbench.report_charts import Bar, Style, bars, plot_text, tick_text
from dnnbench.report_data import Chart, Section, Table, number, visible
from dnnbench.report_page import page
from dnnbench.results import result_of


def results(*several):
    return [result_of(one, Path(f"out{at}.json"), partial=True) for at, one in enumerate(several, start=1)]


def sections(*several, compared=None):
    return {one.id: one for one in report.sections_of(results(*several), compared)}


def texts(section):
    return [line if isinstance(line, str) else "".join(line) for line in section.lead]


def records(one, test):
    return [entry["extra_info"] for entry in one["benchmarks"] if f"::test_{test}[" in entry["fullname"]]


def compare(**changes):
    given = {
        "benchmark": "bench/test_read.py::test_read[fs-posix-c8]", "metric": "throughput", "unit": "MiB/s",
        "baseline": (10.0, 11.0), "candidate": (8.0, 9.0), "scale": "ratio", "estimate": 0.8, "low": 0.7, "high": 0.9,
        "smallest": 0.05, "verdict": "slower", "more_runs": None, "higher_is_better": True,
    }  # fmt: skip
    return SimpleNamespace(**given | changes)


def test_the_first_thing_said_is_what_limits_each_ladder():
    section, *_ = report.sections_of(results(result(places=[("aws", "boto3")])), None)
    first = texts(section)[0]
    assert first.startswith("aws · boto3, torch ladder: storage latency limits, at ")
    assert "try first: framework.PyTorch.reading=concurrent" in first


def test_the_rungs_are_those_of_the_record():
    one = result(places=[("fs", "posix")])
    told = records(one, "ladder")[0]["ladder"]
    chart = sections(one)["limit"].charts[0]
    bar = next(trace for trace in chart.data if trace["type"] == "bar")
    reads = [told["reads"][name]["objects_per_s"] for name in ("one reader", "loader", "more")]
    rungs = [told[f"{name}_per_s"] for name in ("overhead", "memory", "loader", "compute", "epoch")]
    assert bar["x"] == reads + rungs
    # Far above the epoch's rate is drawn in part, and says so.
    assert chart.layout["xaxis"]["range"] == [0, 8 * told["epoch_per_s"]]
    assert [note["text"] for note in chart.layout["annotations"]] == ["30,000 ▸"]


def drawn(values, cut=math.inf, points=()):
    data, layout, _ = bars([Bar(("a",), value, Style(0), points=points) for value in values], "samples/s", cut)
    beside = {place: text.strip("\u00a0") for place, text in zip(data[-1]["y"], data[-1]["text"], strict=True)}
    within = {note["y"]: (note["text"], note["x"]) for note in layout["annotations"]}
    return layout["xaxis"]["range"], beside, within


def test_bars_begin_at_zero_and_each_has_its_figure_beside_it():
    (start, end), beside, within = drawn([10.0, 2000.0])
    assert start == 0
    assert end > 2000
    assert (beside, within) == ({0: "10", 1: "2,000"}, {})


def test_a_bar_beyond_the_cut_leaves_the_plot_and_says_so():
    (_, end), beside, within = drawn([10.0, 75.0, 2000.0], cut=80.0)
    assert end == 80
    # There is no room beside the second one.
    assert (beside, within) == ({0: "10"}, {1: ("75", 75.0), 2: ("2,000 ▸", 80.0)})


def test_a_single_run_is_never_out_of_sight_beside_a_bar_that_is_not():
    (_, end), beside, within = drawn([10.0, 2000.0], cut=80.0, points=(5.0, 200.0))
    assert end > 200
    # Beside a point, a figure would pass for that point's.
    assert (beside, within) == ({}, {0: ("10", end), 1: ("2,000 ▸", end)})


def test_bars_of_nothing_are_drawn():
    assert drawn([0.0])[0] == [0, 1]


def test_runs_are_medians_with_a_point_each_and_each_run_says_what_limits():
    runs = [result(run, places=[("fs", "posix")]) for run in (1, 2, 3)]
    told = sections(*runs)
    bar, points, _ = told["throughput"].charts[0].data
    rates = [[record["mib_per_s"] for record in records(run, "read")] for run in runs]
    assert bar["x"][:4] == [sorted(several)[1] for several in zip(*rates, strict=True)]
    assert points["x"][:3] == [several[0] for several in rates]
    assert "the same limit in 3 of 3 runs" in texts(told["limit"])[0]
    assert "(3 runs: a point each, and the median)" in told["throughput"].charts[0].title


def test_the_order_of_the_files_is_that_in_which_the_runs_began():
    runs = [result(run, places=[("fs", "posix")]) for run in (2, 1)]
    one, other = (report.build(results(*several)) for several in (runs, runs[::-1]))
    # But for the names of the files, which this test gives by position.
    assert re.sub(rb"out\d", b"", one) == re.sub(rb"out\d", b"", other)


def test_runs_of_another_configuration_or_data_are_no_repetitions():
    one, other = result(1, places=[("fs", "posix")]), result(2, places=[("fs", "posix")])
    for entry in other["benchmarks"]:
        entry["extra_info"]["config_hash"] = "feedfeedfeedfeed"
    told = sections(one, other)
    bar = told["throughput"].charts[0].data[0]
    assert bar["x"][:2] == [records(run, "read")[0]["mib_per_s"] for run in (one, other)]
    assert "configuration" in told["throughput"].charts[0].layout["yaxis"]["ticktext"][1]
    assert "one run" in told["throughput"].charts[0].title


def ranks_of(count, hosts=1, slowest_per_s=90.0):
    """The part of a record that tells of ranks."""
    ends = {"slowest": (count - 1, slowest_per_s), "fastest": (0, 100.0)}
    told = {which: {"rank": rank, "host": "h", "objects_per_s": rate} for which, (rank, rate) in ends.items()}
    return {"count": count, "hosts": hosts, **told}


def ranked(one, count, hosts=1, **swept):
    """A result's JSON, as one of so many ranks."""
    for entry in one["benchmarks"]:
        entry["extra_info"] |= {"ranks": ranks_of(count, hosts), "swept": swept}
    return one


def test_runs_of_other_numbers_of_ranks_are_no_repetitions():
    runs = [result(run, places=[("fs", "posix")]) for run in (1, 2, 3, 4)]
    told = sections(runs[0], ranked(runs[1], 2), ranked(runs[2], 4), ranked(runs[3], 4, 2))
    names = [name.replace("<br>", " ") for name in told["throughput"].charts[0].layout["yaxis"]["ticktext"]]
    for text in ("1 process", "2 ranks", "4 ranks", "4 ranks on 2 hosts"):
        assert any(name.endswith(f"· {text}") for name in names), names
    assert "one run" in told["throughput"].charts[0].title


def test_ranks_of_one_launch_are_a_curve_with_their_efficiency():
    one = result(places=[("aws", "boto3")], tests=["loader"])
    entries = []
    for count in (1, 2, 4):
        entry = copy.deepcopy(one["benchmarks"][0])
        entry["fullname"] = entry["fullname"].replace("]", f"-r{count}]")
        entry["extra_info"] |= {
            "config_hash": f"hash {count}", "swept": {"execution.ranks": str(count)}, "samples_per_s": 10.0 * count,
            "objects_per_s": 10.0 * count, "ranks": ranks_of(count),
        }  # fmt: skip
        entries.append(entry)
    one["benchmarks"] = entries
    told = sections(one)
    (chart,) = told["knee"].charts
    assert (chart.data[0]["x"], chart.data[0]["y"]) == ([1, 2, 4], [10, 20, 40])
    assert chart.title == "torch loader random: rate and p99 against ranks"
    assert "aws (boto3), torch loader random: by ranks (and efficiency) 1: 10/s, 2: 20/s (100%)" in str(
        texts(told["knee"])
    )
    assert [row[-1].partition(",")[0] for row in told["benchmarks"].tables[0][1].rows] == [
        "1 rank",
        "2 ranks",
        "4 ranks",
    ]


def test_a_distribution_ends_with_what_the_reads_can_tell():
    one = result(places=[("fs", "posix")])
    record = records(one, "read")[0]
    curve, marks = sections(one)["latency"].charts[0].data
    assert (curve["x"][0], curve["x"][-1]) == (record["latency_curve"][0][1], record["latency_max_ms"])
    assert curve["x"][:-1] == [ms for share, ms in record["latency_curve"]][: len(curve["x"]) - 1]
    # 1,200 reads: the last one that is told apart is one of 1,200.
    assert curve["y"][-1] == record["latency_count"] == 1200
    assert curve["y"] == sorted(curve["y"])
    assert marks["x"] == [record[f"latency_{name}_ms"] for name in ("p50", "p99", "p99_9")]
    assert marks["y"] == pytest.approx([2, 100, 1000])


def test_few_reads_have_no_place_beyond_the_slowest():
    one = result(places=[("fs", "posix")])
    for entry in one["benchmarks"]:
        entry["extra_info"]["latency_count"] = 50
    curve, marks = sections(one)["latency"].charts[0].data
    assert max(curve["y"]) == max(marks["y"]) == 50


def test_an_epoch_is_drawn_as_it_was_recorded():
    one = result(places=[("fs", "posix")])
    told = records(one, "training")[0]
    computing, waiting = sections(one)["epochs"].charts[0].data
    for key, trace in (("computing_s", computing), ("waiting_s", waiting)):
        total_s = sum(ms * batches / 1e3 for ms, batches in zip(trace["y"], trace["width"], strict=True))
        assert total_s == pytest.approx(told[key])
    assert len(waiting["x"]) == 3 * 12
    assert (waiting["x"][0], waiting["x"][-1]) == (0.5, 35.5)


def test_the_knee_is_marked_and_what_the_client_limits_is_hollow():
    one = result(places=[("fs", "posix")])
    told = records(one, "autoscale_read")[0]["knee"]
    rate, p99, star = sections(one)["knee"].charts[0].data
    levels = [point["level"] for point in told["curve"]]
    assert rate["x"] == p99["x"] == levels
    assert rate["y"] == [point["per_s"] for point in told["curve"]]
    assert p99["y"] == [point["latency_p99_ms"] for point in told["curve"]]
    assert (star["x"], star["y"]) == ([told["concurrency"]], [told["per_s"]])
    assert [symbol.endswith("-open") for symbol in rate["marker"]["symbol"]] == [level > 8 for level in levels]


def test_no_knee_is_marked_where_none_was_within_the_bound():
    one = result(places=[("fs", "posix")], tests=["autoscale_read"])
    records(one, "autoscale_read")[0]["knee"].update(concurrency=None, per_s=None, latency_p99_ms=None)
    assert len(sections(one)["knee"].charts[0].data) == 2


def test_swept_workers_are_a_curve():
    one = result(places=[("fs", "posix")], tests=["loader"])
    entries = []
    for workers in ("16", "1", "4"):
        entry = copy.deepcopy(one["benchmarks"][0])
        entry["fullname"] = entry["fullname"].replace("]", f"-w{workers}]")
        entry["extra_info"]["swept"] = {"framework.PyTorch.DataLoader.num_workers": workers, "dataset.decode": "full"}
        entry["extra_info"]["config_hash"] = f"hash {workers}"
        entry["extra_info"]["samples_per_s"] = 10.0 * int(workers)
        entries.append(entry)
    one["benchmarks"] = entries
    (chart,) = sections(one)["knee"].charts
    rate, _ = chart.data
    assert (rate["x"], rate["y"]) == ([1, 4, 16], [10, 40, 160])
    assert chart.title == "torch loader random decode=full: rate and p99 against loader workers"


def test_reads_with_fixed_numbers_in_flight_are_a_curve_too():
    one = result(places=[("aws", "boto3")], tests=["read"])
    section = sections(one)["knee"]
    rate, p99 = section.charts[0].data
    told = records(one, "read")[1:]
    assert (rate["x"], rate["y"]) == ([1, 8, 32], [record["objects_per_s"] for record in told])
    assert p99["y"] == [record["latency_p99_ms"] for record in told]
    assert any("--dnn-autoscale" in line for line in texts(section))


def test_accelerators_are_by_their_speed():
    one = result(places=[("fs", "posix")])
    told = records(one, "accelerator")[0]["accelerator"]
    tried, timed = sections(one)["accelerator"].charts[0].data
    rates = [told["samples_per_s"] * told["batch_compute_ms"] / trial["batch_compute_ms"] for trial in told["trials"]]
    busy = [trial["utilization"] for trial in told["trials"]]
    assert tried["x"] == sorted(tried["x"]) == pytest.approx(sorted(rates))
    assert tried["y"] == sorted(busy, reverse=True)
    assert (timed["x"], timed["y"]) == ([told["samples_per_s"]], [told["utilization"]])


def test_a_comparison_shows_each_interval_and_what_could_not_be_compared():
    several = [
        compare(verdict="same", estimate=1.01, low=0.99, high=1.03),
        compare(),
        compare(verdict="not enough data", estimate=None, low=None, high=None, more_runs=4),
        compare(scale="difference", metric="waiting", estimate=0.1, low=0.05, high=0.2),
    ]
    compared = SimpleNamespace(comparisons=several, sentence="2 are slower.", problems=["refused: test_x"], notes=["n"])
    section = sections(result(places=[("fs", "posix")]), compared=compared)["comparison"]
    assert texts(section) == ["2 are slower.", "refused: test_x", "n"]
    ratios, differences = section.charts
    slower, same, unknown = ratios.data
    assert (slower["x"], slower["y"], slower["name"]) == ([0.8], [0], "slower")
    assert slower["x"][0] + slower["error_x"]["array"][0] == pytest.approx(0.9)
    assert slower["x"][0] - slower["error_x"]["arrayminus"][0] == pytest.approx(0.7)
    assert (same["x"], same["y"]) == ([1.01], [2])
    assert (unknown["text"], unknown["y"]) == (["no estimate"], [1])
    assert differences.data[0]["x"] == [0.1]
    assert ratios.table.rows[1][8] == 4


def test_a_real_comparison_is_drawn_as_it_is():
    sides = [
        [result(run, places=[("fs", "posix")], tests=["read", "loader"]) for run in runs]
        for runs in ((1, 2, 3), (4, 5, 6))
    ]
    compared = compare_results(*(results(*side) for side in sides))
    section = sections(*sides[1], compared=compared)["comparison"]
    assert texts(section) == [compared.sentence, *compared.problems, *compared.notes]
    estimates = [x for chart in section.charts for trace in chart.data if "error_x" in trace for x in trace["x"]]
    wanted = [one.estimate for one in compared.comparisons if one.estimate is not None]
    assert len(wanted) > 10
    assert sorted(estimates) == sorted(wanted)
    assert sum(len(chart.table.rows) for chart in section.charts) == len(compared.comparisons)


@pytest.mark.parametrize(
    ("tests", "missing", "run"),
    [
        (["listing"], ["limit", "latency", "epochs", "knee", "accelerator", "comparison"], "pytest bench/ -k "),
        (["ladder"], ["throughput", "latency", "epochs", "knee", "accelerator", "comparison"], "pytest bench/ -k "),
    ],
)
def test_what_there_is_not_says_what_to_run(tests, missing, run):
    told = sections(result(places=[("fs", "posix")], tests=tests))
    assert [name for name, one in told.items() if one.missing] == [*missing, *(["warnings"] * (tests is None))] + (
        ["warnings"] if told["warnings"].missing else []
    )
    for name in missing:
        assert run in told[name].missing or "--baseline" in told[name].missing
        assert not told[name].charts


def test_warnings_are_told_once_and_of_which_runs():
    one, two = (result(run, places=[("aws", "boto3")]) for run in (1, 2))
    for record in records(two, "read"):
        record.update(retries=2, client_bound=True, settings={"verify_tls": False})
    two["dnnbench"].update(complete=False, failed=["bench/test_x.py::test_x"])
    two["dnnbench"]["machine"] = two["dnnbench"]["machine"] | {"kernel": "Linux 6.2"}
    lines = texts(sections(one, two)["warnings"])
    for words in (
        "figures of moto 5.2.5, a mock",
        "client-bound: 4",
        "not verified",
        "incomplete",
        "failed: bench/test_x",
    ):
        assert sum(words in line for line in lines) == 1
    assert any(line.startswith("retries: ") and line.endswith("(run 2)") for line in lines)
    assert any("mock" in line and line.endswith("(every run)") for line in lines)
    assert any("different machines or versions, in: kernel" in line for line in lines)


def test_nothing_to_warn_of_says_so():
    one = result(places=[("fs", "posix")])
    assert sections(one)["warnings"].missing
    assert b"no warnings" in report.build(results(one))


def test_every_benchmark_of_every_run_has_a_row():
    runs = [result(run) for run in (1, 2)]
    ((_, table),) = sections(*runs)["benchmarks"].tables
    assert len(table.rows) == sum(len(run["benchmarks"]) for run in runs)
    rate = table.header.index("MiB/s")
    expected = [entry["extra_info"].get("mib_per_s") for run in runs for entry in run["benchmarks"]]
    assert sorted(map(str, expected)) == sorted(str(row[rate]) for row in table.rows)


def test_what_is_no_number_is_a_dash():
    one = result(places=[("fs", "posix")], tests=["read"])
    one["benchmarks"][0]["extra_info"]["mib_per_s"] = math.nan
    page = report.build(results(one)).decode()
    assert 'data-value="nan"' not in page
    assert "NaN" not in page.partition('id="figures">')[2].partition("</script>")[0]


def test_the_page_says_where_the_figures_come_from():
    told = dict(sections(result())["provenance"].tables[0][1].rows)
    for words in ("765e9337c4881ce1", "moto 5.2.5", "Linux 6.1", "A Processor", "torch 2.13.0", "out1.json"):
        assert any(words in str(value) for value in told.values())


HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u2028\u2029", "\u202egnp.exe", "\ud800",
    "a & b", '" onclick="x', "%{x}", "\x00\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_is_a_tag_or_out_of_sight(text):
    for shown in (plot_text(text), tick_text(text)):
        assert not re.search(r"<(?!br>)|>(?<!<br>)", shown)
        assert not re.search("[\x00-\x1f\u2028\u2029\u202e\ud800]", shown)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_texts_make_a_file_of_the_same_elements(text):
    one = result(places=[("fs", "posix")], tests=["read", "ladder"])
    plain = report.build(results(one)).decode()
    for entry in one["benchmarks"]:
        record = entry["extra_info"]
        record.update(what=record["what"] + text, storage_label=text, client=text, swept={f"a.{text}": text})
        entry["fullname"] += text
        record["settings"] = {text: text}
    hostile = report.build(results(one)).decode()
    count = lambda page: [page.count(f"<{tag}") for tag in ("script", "style", "img", "figure", "section", "meta")]  # noqa: E731
    assert count(hostile) == count(plain)
    assert "\ud800" not in hostile


def test_what_is_plotted_ends_no_script():
    def made(name):
        chart = Chart("a", [{"name": name}], {}, Table((), []))
        return page("a", "b", [Section("c", "d", charts=[chart])]).decode()

    hostile = made("</script><!--<script>\u2028")
    assert hostile.count("</script") == made("a").count("</script")
    assert "<!--<script>" not in hostile
    figures = hostile.partition('id="figures">')[2].partition("</script>")[0]
    assert json.loads(figures)[0]["data"] == [{"name": "</script><!--<script>\u2028"}]


def test_secrets_are_what_is_in_the_json_alone(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    assert b"planted-secret" not in report.build(results(result(places=[("fs", "posix")])))


def test_numbers_are_for_people():
    assert [number(value) for value in (0, 0.01234, 12.345, 1234.5, None, math.nan)] == [
        "0", "0.0123", "12.3", "1,234", "–", "–",
    ]  # fmt: skip
    assert visible("x" * 10, 5) == "xxxx…"


def test_the_command_writes_one_file(tmp_path, capsys):
    (tmp_path / "out.json").write_text(json.dumps(result(places=[("fs", "posix")])))
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "*.json"), "-o", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert output.read_bytes().startswith(b"<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "report.html"]


def test_the_command_compares_with_a_baseline(tmp_path, monkeypatch):
    asked = []

    def compare_files(baseline, candidate):
        asked.append((baseline, candidate))
        return SimpleNamespace(comparisons=[compare()], sentence="It is slower.", problems=[], notes=[])

    monkeypatch.setattr("dnnbench.compare.compare_files", compare_files)
    monkeypatch.chdir(tmp_path)
    for name in ("old1.json", "old2.json", "new.json"):
        Path(name).write_text(json.dumps(result(places=[("fs", "posix")], tests=["read"])))
    assert main(["report", "new.json", "--baseline", "old*.json"]) == 0
    assert asked == [([Path("old1.json"), Path("old2.json")], [Path("new.json")])]
    assert b"It is slower." in Path("report.html").read_bytes()


def test_an_incomplete_run_is_shown_and_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out.json.partial").write_text(json.dumps(result(places=[("fs", "posix")], complete=False)))
    assert main(["report", "out.json.partial"]) == 0
    assert b"incomplete: the run was interrupted" in Path("report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.json"], "missing.json: there is no such result file"),
        (["broken.json"], "broken.json: is not JSON"),
        (["other.json"], "other.json: is no result of dnnbench"),
        (["damaged.json"], "damaged.json: a record is damaged"),
        (["good.json", "-o", "no/such/folder.html"], "-o: no/such/folder.html: there is no folder"),
        (["good.json", "-o", "."], "is a folder; name a file"),
    ],
    ids=["missing", "broken", "other", "damaged", "no folder", "folder"],
)
def test_what_cannot_be_read_or_written_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = result(places=[("fs", "posix")], tests=["read", "ladder"])
    Path("good.json").write_text(json.dumps(good))
    Path("broken.json").write_text("{")
    Path("other.json").write_text("{}")
    records(good, "ladder")[0]["ladder"] = {}
    Path("damaged.json").write_text(json.dumps(good))
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("report.html").exists()

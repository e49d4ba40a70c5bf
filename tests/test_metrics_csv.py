"""The spreadsheet: a row per benchmark and epoch, appended to what was there, of which nothing is ever lost."""

import csv
import datetime
from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.metrics import EpochFigures, Inference, Round, Tally, record
from dnnbench.metrics_csv import COLUMNS, PER_EPOCH, append, missing, rows

S = 1_000_000_000
MIB = 1024 * 1024
IDENTITY = {
    "what": "torch train random", "storage": "fs", "storage_label": "nfs1", "client": "posix", "settings": {},
    "swept": {}, "catalog": {"hash": "0123456789abcdef", "objects": 10}, "config_hash": "fedcba9876543210",
    "finished_utc": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def figures(learned=(), listed_bytes=None, inference=None, of_round=None, **identity):
    """A record of one round; each of ``learned`` is an epoch's loss and accuracy. Epoch ``i`` (from 0) took i + 1 s.

    ``of_round``: what else the round has.
    """
    epochs = [EpochFigures(10, 10 * MIB, (i + 1) * S, S, i * S, S // 2, **one) for i, one in enumerate(learned)]
    passes = max(len(epochs), 1)
    tally = Tally(array("q", [10**6] * 10 * passes), 10 * MIB * passes, Counter(GET=10 * passes))
    one = Round(10 * passes, tally, listed_bytes, epochs, inference, wall_ns=8 * S, cache="cold", **of_round or {})
    return IDENTITY | identity | record([one], cores=2, peak_memory_bytes=MIB)


LEARNED = [{"loss": 3.0, "accuracy": 0.2}, {"loss": 2.0, "accuracy": 0.4}, {"loss": 1.0, "accuracy": 0.6}]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_a_benchmark_without_epochs_is_one_row_of_its_totals():
    (row,) = rows("test_read[fs]", figures())
    assert "epoch" not in row
    expected = {"benchmark": "test_read[fs]", "objects": 10, "bytes": 10 * MIB, "wall_s": 8, "mib_per_s": 1.25}
    assert {key: row[key] for key in expected} == expected
    assert (row["catalog_hash"], row["config_hash"]) == ("0123456789abcdef", "fedcba9876543210")
    assert (row["storage_label"], row["cache"], row["latency_p50_ms"], row["peak_memory_mib"]) == ("nfs1", "cold", 1, 1)


def test_rows_tell_of_how_many_ranks_they_are():
    assert [row["ranks"] for row in rows("test_training[fs]", figures(LEARNED, ranks={"count": 4}))] == [4] * 3
    assert rows("test_read[fs]", figures())[0]["ranks"] == ""


@pytest.mark.parametrize("verify_tls", [True, False, "/etc/ca.pem"])
def test_whether_certificates_were_verified_is_in_each_row(verify_tls):
    written = rows("test_training[aws]", figures(LEARNED, settings={"verify_tls": verify_tls}))
    assert [row["verify_tls"] for row in written] == [verify_tls] * 3
    assert "verify_tls" not in rows("test_read[fs]", figures())[0]


def test_a_listing_is_one_row_without_bytes_read():
    (row,) = rows("test_listing[fs]", figures(listed_bytes=7))
    assert not {"bytes", "mib_per_s", "latency_p50_ms"} & set(row)


def test_a_benchmark_with_epochs_is_a_row_for_each_with_the_figures_of_that_epoch():
    found = rows("test_training[fs]", figures(LEARNED))
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert [(row["loss"], row["accuracy"]) for row in found] == [(3.0, 0.2), (2.0, 0.4), (1.0, 0.6)]
    assert [(row["wall_s"], row["samples"], row["bytes"]) for row in found] == [(i, 10, 10 * MIB) for i in (1, 2, 3)]
    assert [(row["computing_s"], row["mib_per_s"]) for row in found] == [(0, 10), (1, 5), (2, pytest.approx(10 / 3))]
    assert {row["benchmark"] for row in found} == {"test_training[fs]"}


SOME_LEARNED = st.fixed_dictionaries({}, optional={"loss": st.floats(0, 9), "accuracy": st.floats(0, 1)})


@given(st.lists(SOME_LEARNED, min_size=1, max_size=4))
def test_a_total_is_never_put_in_the_row_of_an_epoch(learned):
    whole = figures(learned)
    for row, epoch in zip(rows("test_training[fs]", whole), whole["epochs"], strict=True):
        assert {key: row[key] for key in PER_EPOCH if key in row} == {k: epoch[k] for k in PER_EPOCH if k in epoch}


def test_the_accuracy_of_an_inference_is_that_of_all_its_predictions():
    whole = figures([{}, {}], inference=Inference([[3, 1], [0, 0]], array("q", [S])))
    assert [row["accuracy"] for row in rows("test_inference[fs]", whole)] == [0.75, 0.75]


def test_swept_settings_are_words():
    (row,) = rows("test_read[fs]", figures(swept={"execution.workers": "4", "framework.batch_size": "32"}))
    assert row["swept"] == "execution.workers=4 framework.batch_size=32"


def test_a_row_tells_when_in_utc():
    (row,) = rows("test_read[fs]", figures())
    assert datetime.datetime.fromisoformat(row["time_utc"]).utcoffset() == datetime.timedelta(0)


@pytest.mark.parametrize(("cpu_ns", "text"), [(0, "False"), (16 * S, "True")])
def test_a_raw_read_tells_whether_the_client_limits_it(path, cpu_ns, text):
    of_round = {"in_flight": 8, "process_cpu_ns": cpu_ns}
    append(path, rows("test_read[fs]", figures(of_round=of_round)) + rows("test_training[fs]", figures(LEARNED)))
    assert [row["client_bound"] for row in read(path)] == [text, "", "", ""]


@pytest.mark.parametrize("client_bound", [False, True])
def test_a_ladder_tells_what_limits_and_whether_the_client_does(path, client_bound):
    verdict = {"limit": "storage latency", "gain": 2.0, "client_bound": client_bound}
    of_round = {"ladder": {"samples": 10, "verdict": verdict}}
    (row,) = rows("test_ladder[fs]", figures([{}], of_round=of_round))
    append(path, [row, *rows("test_read[fs]", figures())])
    assert [row["limit"] for row in read(path)] == ["storage latency", ""]
    assert read(path)[0]["client_bound"] == str(client_bound)
    assert set(row) <= set(COLUMNS)


def test_every_figure_of_a_row_has_its_column():
    for whole in (figures(), figures(LEARNED), figures(listed_bytes=7)):
        for row in rows("test", whole):
            assert set(row) <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_runs_are_appended_below_one_header(path):
    for number in range(3):
        assert append(path, rows(f"test_read[{number}]", figures()) + rows("test_training", figures(LEARNED))) is None
    with path.open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    assert path.read_text().count("time_utc") == 1
    assert [row["benchmark"] for row in read(path)] == [
        name for number in range(3) for name in (f"test_read[{number}]", *["test_training"] * 3)
    ]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_any_text_survives_the_way_through_the_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    for name, label in texts:
        append(path, rows(name, figures(storage_label=label)))
    assert [(row["benchmark"], row["storage_label"]) for row in read(path)] == texts


@pytest.mark.parametrize("text", ["a,b", 'a "b" c', '"', "a\nb", "a\r\nb", "a\rb", "\r", " a ", "日本"])
def test_commas_quotes_and_line_breaks_are_no_cells_and_no_rows_of_their_own(path, text):
    for _ in range(2):
        append(path, rows(text, figures(LEARNED, storage_label=text)))
    found = read(path)
    assert [(row["benchmark"], row["storage_label"]) for row in found] == [(text, text)] * 6
    assert all(None not in row and None not in row.values() for row in found)


def test_numbers_come_back_as_they_were(path):
    new = rows("test_training[fs]", figures(LEARNED))
    append(path, new)
    for row, back in zip(new, read(path), strict=True):
        assert back == {key: "" if row.get(key) is None else str(row[key]) for key in COLUMNS}
        assert float(back["mib_per_s"]) == row["mib_per_s"]


def test_an_empty_file_gets_a_header(path):
    path.touch()
    assert append(path, rows("test_read[fs]", figures())) is None
    assert [row["benchmark"] for row in read(path)] == ["test_read[fs]"]


OLDER = {
    "fewer columns": b"time_utc,benchmark\n2024-01-01,test\n",
    "more columns": ",".join((*COLUMNS, "more")).encode() + b"\n",
    "another order": ",".join(reversed(COLUMNS)).encode() + b"\n",
    "no line break": b"notes",
    "no header": b"\n1,2,3\n",
    "no text in UTF-8": "Größe;\n1;\n".encode("latin-1"),
    "a spreadsheet's own UTF-16": (",".join(COLUMNS) + "\r\n").encode("utf-16"),
}


@pytest.mark.parametrize("content", OLDER.values(), ids=OLDER)
def test_a_file_with_another_header_is_kept_as_it_is_under_another_name(path, content):
    path.write_bytes(content)
    kept = append(path, rows("test_read[fs]", figures()))
    assert kept == path.with_name("metrics.1.csv")
    assert kept.read_bytes() == content
    assert [row["benchmark"] for row in read(path)] == ["test_read[fs]"]


def test_the_other_name_is_a_free_one(path):
    contents = [b"first\n", b"second\n", b"third\n"]
    kept = []
    for content in contents:
        path.write_bytes(content)
        kept.append(append(path, rows("test_read[fs]", figures())))
    assert [file.name for file in kept] == ["metrics.1.csv", "metrics.2.csv", "metrics.3.csv"]
    assert [file.read_bytes() for file in kept] == contents


def test_text_that_is_not_utf_8_below_our_header_is_not_lost(path):
    append(path, rows("test_read[Größe]", figures()))
    saved = path.read_text(encoding="utf-8").encode("latin-1")
    path.write_bytes(saved)
    kept = append(path, rows("test_read[fs]", figures()))
    assert (kept or path).read_bytes().startswith(saved)
    assert path.read_bytes().splitlines()[-1].count(b"test_read[fs]") == 1


def test_a_last_line_without_its_end_stays_a_line_of_its_own(path):
    append(path, rows("before", figures()))
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    append(path, rows("after", figures()))
    assert [row["benchmark"] for row in read(path)] == ["before", "after"]
    assert all(None not in row for row in read(path))


@pytest.mark.parametrize("there", ["header and rows", "empty", "missing"])
def test_nothing_to_append_adds_no_row_and_loses_none(path, there):
    if there == "header and rows":
        append(path, rows("before", figures()))
    elif there == "empty":
        path.touch()
    before = path.read_bytes() if path.exists() else b""
    for _ in range(2):
        assert append(path, []) is None
    assert path.read_bytes().startswith(before)
    append(path, rows("after", figures()))
    assert [row["benchmark"] for row in read(path)] == ["before"] * (there == "header and rows") + ["after"]
    assert path.read_text().count("time_utc") == 1


def test_what_a_killed_run_wrote_is_not_written_again(path):
    new = rows("test_training[fs]", figures(LEARNED)) + rows("test_read[fs]", figures())
    assert missing(path, new) == new
    append(path, new[1:])
    assert missing(path, new) == new[:1]
    later = rows("test_read[fs]", figures(finished_utc="2026-01-02T03:04:06+00:00"))
    assert missing(path, later) == later

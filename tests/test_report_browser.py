"""The report in a real browser: nothing but the file is asked for, nothing of it executes, and it works by keyboard."""

import json
import shutil
from pathlib import Path

import pytest
from report_results import result
from test_report import HOSTILE, compare

from dnnbench.report import build, sections_of
from dnnbench.results import result_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
READY = "html[data-drawn=all]"
WIDE = {"width": 1280, "height": 900}


class Compared:
    comparisons = (compare(), compare(verdict="same", estimate=1.0, low=0.98, high=1.02))
    sentence = "1 of 2 is slower."
    problems = ()
    notes = ()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as driver:
        # As root, as in a container, Chromium has no sandbox.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page, and what it told and asked for."""

    def __init__(self, browser, path, **options):
        self.told, self.asked = [], []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.told.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.told.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(READY, state="attached")

    def run(self, script, *arguments):
        return self.page.evaluate(script, *arguments)


def written(folder, *several, compared=None):
    path = folder / "report.html"
    runs = [result_of(one, Path(f"{at}.json")) for at, one in enumerate(several, start=1)]
    path.write_bytes(build(runs, compared))
    return path, runs


RUNS = [result(run, places=[("fs", "posix"), ("aws", "boto3")]) for run in (1, 2)]


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), *RUNS, compared=Compared)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A page that draws in no time, for what is done to it."""
    one = result(places=[("fs", "posix"), ("aws", "boto3")], tests=["listing", "read"])
    return written(tmp_path_factory.mktemp("small"), one, compared=Compared)


@pytest.fixture(scope="module")
def opened(browser, report_file):
    """A page that tests only look at."""
    return Opened(browser, report_file[0], viewport=WIDE)


@pytest.fixture(scope="module")
def small_page(browser, small_file):
    return Opened(browser, small_file[0], viewport=WIDE)


@pytest.fixture
def small(small_page):
    """A page that each test finds as it was opened, but for its table's order."""
    small_page.run("() => { document.body.tabIndex = -1; document.body.focus(); }")
    yield small_page
    small_page.page.emulate_media(media="screen", color_scheme="light")
    small_page.page.set_viewport_size(WIDE)
    small_page.page.fill("#benchmarks-table-filter", "")
    assert small_page.told == []


def test_it_opens_without_a_word_and_asks_for_nothing(opened, report_file):
    assert opened.told == []
    assert opened.asked == [report_file[0].as_uri()]


def test_its_policy_forbids_every_request_and_any_other_script(browser, small_file):
    opened = Opened(browser, small_file[0])
    reached = opened.run("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')")
    opened.run(
        """() => {
          const image = new Image(); image.src = "http://127.0.0.1:9/x.png"; document.body.append(image);
          const script = document.createElement("script"); script.textContent = "window.added = 1";
          document.body.append(script);
        }"""
    )
    assert reached == "refused"
    assert opened.run("window.added") is None
    assert all("Content Security Policy" in line for line in opened.told)
    assert len(opened.told) >= 3
    opened.page.close()


def test_what_is_plotted_is_what_was_chosen(opened, report_file):
    charts = [chart for section in sections_of(report_file[1], Compared) for chart in section.charts]
    plotted = opened.run(
        """() => [...document.querySelectorAll(".js-plotly-plot")].map((plot) => plot.data.map(
             ({x, y, width, text}) => ({x, y, width, text})))"""
    )
    assert len(plotted) == len(charts) > 20
    for traces, chart in zip(plotted, charts, strict=True):
        wanted = [{key: trace.get(key) for key in ("x", "y", "width", "text")} for trace in chart.data]
        assert [{key: trace.get(key) for key in wanted[0]} for trace in traces] == wanted
    drawn = opened.run(
        "() => [...document.querySelectorAll('.chart')].map((c) => c.querySelectorAll('svg.main-svg').length)"
    )
    assert min(drawn) >= 1


def test_rates_and_latencies_are_those_of_the_json(opened):
    record = RUNS[1]["benchmarks"][1]["extra_info"]
    xs = opened.run(
        "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap((plot) => plot.data.flatMap((one) => one.x))"
    )
    for key in ("mib_per_s", "objects_per_s", "latency_p50_ms", "latency_p99_ms", "latency_p99_9_ms", "latency_max_ms"):
        assert record[key] in xs or key == "objects_per_s"
    assert {ms for share, ms in record["latency_curve"] if share < 0.999} <= set(xs)


def test_each_chart_has_a_title_and_its_numbers_as_a_table(opened):
    told = opened.run(
        """() => [...document.querySelectorAll("figure")].map((figure) => [
             document.getElementById(figure.querySelector(".chart").getAttribute("aria-labelledby")).textContent,
             figure.querySelectorAll("details table tbody tr").length])"""
    )
    assert all(title and rows for title, rows in told)
    assert len({title for title, _ in told}) == len(told)


def cells(opened, column):
    return opened.run(
        """(column) => [...document.querySelectorAll("table.sortable tbody tr")].filter((row) => !row.hidden)
             .map((row) => row.cells[column].dataset.value ?? row.cells[column].textContent)""",
        column,
    )


def test_the_table_is_sorted_by_keyboard(small):
    headers = small.page.locator("table.sortable th button")
    column = headers.all_text_contents().index("p99 ms")
    # By keys alone: from the field before the table on.
    small.page.focus("#benchmarks-table-filter")
    for _ in range(2 + column):
        small.page.keyboard.press("Tab")
    assert small.run("document.activeElement.textContent") == "p99 ms"
    orders = []
    for key, order in (("Enter", "ascending"), ("Space", "descending")):
        small.page.keyboard.press(key)
        states = small.run("[...document.querySelectorAll('table.sortable th')].map((th) => th.ariaSort)")
        assert [at for at, state in enumerate(states) if state != "none"] == [column]
        assert states[column] == order
        values = cells(small, column)
        known = [float(value) for value in values if value != "–"]
        # What is missing comes last, either way.
        assert values[len(known) :] == ["–"] * (len(values) - len(known)) != []
        orders.append(known)
    assert orders[0] == sorted(orders[0])
    assert orders[1] == sorted(orders[0], reverse=True)


def test_the_table_is_filtered(small):
    small.page.fill("#benchmarks-table-filter", "BOTO3 read c8")
    assert set(cells(small, 0)) == {"read c8"}
    assert small.page.text_content("#benchmarks-table-shown").startswith("1 of ")
    small.page.fill("#benchmarks-table-filter", "nothing like it")
    assert cells(small, 0) == []


def test_one_may_skip_to_the_figures_and_see_where_one_is(small):
    small.page.keyboard.press("Tab")
    assert small.run("document.activeElement.textContent") == "Skip to the figures"
    assert small.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    assert small.run("document.activeElement.getBoundingClientRect().left") >= 0
    small.page.keyboard.press("Enter")
    assert small.run("document.activeElement.id") == "main"


@pytest.mark.parametrize(
    ("media", "text", "page"),
    [
        ({"color_scheme": "light"}, "rgb(27, 31, 36)", "rgb(255, 255, 255)"),
        ({"color_scheme": "dark"}, "rgb(230, 237, 243)", "rgb(13, 17, 23)"),
        ({"color_scheme": "dark", "media": "print"}, "rgb(0, 0, 0)", "rgb(255, 255, 255)"),
    ],
    ids=["light", "dark", "paper"],
)
def test_plots_follow_the_readers_scheme_and_are_light_on_paper(small, media, text, page):
    small.page.emulate_media(**media)
    told = small.run(
        """() => [getComputedStyle(document.querySelector(".chart .ytick text")).fill,
                  getComputedStyle(document.body).backgroundColor]"""
    )
    assert told == [text, page]


WIDTH = "document.querySelector('.js-plotly-plot')._fullLayout.width"


def comes_true(opened, condition, frames=300):
    """Whether a condition holds within so many frames; the page's policy lets Playwright's own wait do nothing."""
    frame = "() => new Promise((done) => requestAnimationFrame(() => done()))"
    return any(opened.run(condition) or opened.run(frame) for _ in range(frames))


def test_plots_take_the_width_that_there_is(small):
    assert 500 < small.run(WIDTH) < 640
    small.page.set_viewport_size({"width": 320, "height": 600})
    assert comes_true(small, f"{WIDTH} < 320")
    assert small.run("document.documentElement.scrollWidth") <= 320
    small.page.emulate_media(media="print")
    small.page.set_viewport_size({"width": 700, "height": 900})
    small.run("window.dispatchEvent(new Event('beforeprint'))")
    assert small.run(WIDTH) == 640
    # Nor does a frame that was asked for before it change that.
    assert not comes_true(small, f"{WIDTH} !== 640", frames=20)
    assert small.run("document.documentElement.scrollWidth") <= 700
    small.page.emulate_media(media="screen")
    small.page.set_viewport_size({"width": 320, "height": 600})
    small.run("window.dispatchEvent(new Event('afterprint'))")
    assert comes_true(small, f"{WIDTH} < 320")


def test_series_differ_without_their_colours(opened):
    kinds = opened.run(
        """() => [...document.querySelectorAll(".js-plotly-plot")].map((plot) => plot._fullData
             .filter((one) => one.mode === "lines" && one.showlegend).map((one) => one.line.dash))"""
    )
    assert max(map(len, kinds)) == 2
    assert all(len(set(dashes)) == len(dashes) for dashes in kinds)


def test_hostile_texts_do_nothing_and_are_shown_as_they_are_on_a_narrow_screen(browser, tmp_path):
    one = result(places=[("fs", "posix")], tests=["read", "ladder", "accelerator", "autoscale_read", "training"])
    for at, entry in enumerate(one["benchmarks"]):
        text = HOSTILE[at % len(HOSTILE)]
        record = entry["extra_info"]
        record.update(
            what=record["what"] + text, client=text, storage_label=text + "x" * 300, swept={f"a.{text}": text}
        )
        record["settings"] = {text: text}
        entry["fullname"] += text
    one["dnnbench"]["failed"] = HOSTILE
    one["dnnbench"]["machine"] = one["dnnbench"]["machine"] | {"cpu": HOSTILE[1]}
    hostile = Compared()
    hostile.sentence, hostile.problems = HOSTILE[0], HOSTILE
    hostile.comparisons = [compare(benchmark=text, metric=text, unit=text) for text in HOSTILE]
    path, _ = written(tmp_path, json.loads(json.dumps(one)), compared=hostile)
    opened = Opened(browser, path, viewport={"width": 320, "height": 600})
    assert opened.told == []
    assert opened.asked == [path.as_uri()]
    assert opened.run("document.documentElement.scrollWidth") <= 320
    assert opened.run("document.querySelectorAll('img, [onclick], [onerror], figure a, main script').length") == 0
    assert "<img src=x onerror=alert(1)>" in opened.page.text_content("#provenance")
    drawn = "".join(opened.run("[...document.querySelectorAll('.chart .ytick text')].map((one) => one.textContent)"))
    assert "<img src=x" in drawn
    assert "a & b" in drawn
    opened.page.close()


def test_a_report_without_a_plot_opens_too(browser, tmp_path):
    one = result(places=[("fs", "posix")], tests=["listing"])
    one["benchmarks"][0]["fullname"] = "mine/test_mine.py::test_mine"
    path, _ = written(tmp_path, one)
    opened = Opened(browser, path)
    assert opened.told == []
    assert opened.page.locator(".chart").count() == 0
    # Without plots the library for them is not needed.
    assert path.stat().st_size < 100_000
    opened.page.close()

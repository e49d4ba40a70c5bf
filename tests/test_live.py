"""The live line: progress on a terminal while a benchmark runs, wiped at the end, and nothing elsewhere."""

import os
import select
from types import SimpleNamespace

import pytest

from fixtures import live
from fixtures.live import LiveLine

WORKLOAD = SimpleNamespace(total=3457, done=lambda: 1200)


def _request(isatty):
    reporter = SimpleNamespace(isatty=isatty)
    plugins = SimpleNamespace(get_plugin=lambda name: reporter)
    return SimpleNamespace(node=SimpleNamespace(name="test_read[aws]"), config=SimpleNamespace(pluginmanager=plugins))


@pytest.fixture
def terminal(monkeypatch):
    """The reading end of a terminal of 80 columns that the live line writes to."""
    reader, writer = os.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setattr(live, "_open_terminal", lambda: os.dup(writer))
    yield reader
    os.close(reader)
    os.close(writer)


def _shown(reader):
    ready, _, _ = select.select([reader], [], [], 0)
    return os.read(reader, 10_000).decode() if ready else ""


def test_a_long_benchmark_shows_its_progress_and_wipes_it(terminal, monkeypatch):
    monkeypatch.setattr(live, "DELAY_S", 0)
    with LiveLine(_request(isatty=True), WORKLOAD):
        select.select([terminal], [], [], 20)
        text = _shown(terminal)
    assert "test_read[aws]  1,200/3,457" in text
    assert "\n" not in text
    assert _shown(terminal).endswith(live._CLEAR)


def test_a_short_one_shows_nothing(terminal):
    with LiveLine(_request(isatty=True), WORKLOAD):
        pass
    assert _shown(terminal) == ""


def test_the_line_fits_the_terminal(terminal, monkeypatch):
    monkeypatch.setattr(live, "DELAY_S", 0)
    request = _request(isatty=True)
    request.node.name = "x" * 200
    with LiveLine(request, WORKLOAD):
        select.select([terminal], [], [], 20)
        text = _shown(terminal)
    assert len(text.removeprefix(live._CLEAR).split(live._CLEAR)[0]) <= 79


def test_where_the_output_is_no_terminal_nothing_is_opened(monkeypatch):
    monkeypatch.setattr(live, "DELAY_S", 0)
    monkeypatch.setattr(live, "_open_terminal", lambda: pytest.fail("opened a terminal"))
    with LiveLine(_request(isatty=False), WORKLOAD):
        pass

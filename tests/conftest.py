"""What several test files share: local servers, and a server that always answers the same."""

import http.server
import threading

import pytest

from dnnbench.servers import LocalServers


@pytest.fixture(scope="session")
def local_servers(pytestconfig):
    """Local S3 servers of the kind that ``--dnn-server`` names, one set per test process."""
    with LocalServers(pytestconfig.getoption("--dnn-server") or "moto") as servers:
        yield servers


@pytest.fixture
def answering_server():
    """A function (status, body) -> URL of a server that gives this answer to everything.

    The body is a text, or a function that makes it of the request (http.server's handler), of which ``extra`` is then
    what headers it wants to send besides.
    """
    running = []

    def start(status, body):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                text = body if isinstance(body, str) else body(self)
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                for name, value in getattr(self, "extra", {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text.encode())

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 (http.server's names)

            def log_message(self, *_):
                """Nothing: the test's output is pytest's."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def pytest_collection_modifyitems(config, items):
    """Begins with what takes longest: at the end, one process would wait for the other.

    With ``--dnn-server`` what asks no server is left out: it is the same with any. The tests of servers start theirs.
    """
    items.sort(key=lambda item: not item.path.name.startswith("test_tensorflow"))
    if config.getoption("--dnn-server"):
        asks = [i for i in items if "local_servers" in i.fixturenames or i.path.name == "test_servers.py"]
        without = [item for item in items if item not in set(asks)]
        items[:] = asks
        config.hook.pytest_deselected(items=without)

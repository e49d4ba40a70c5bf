"""The child that serves with moto, a mock of S3: ``python -m dnnbench.servers.moto NAME=PORTS`` for one name space."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import threading
from typing import Any

from dnnbench.servers import HOST, ServerError
from dnnbench.servers.child import spaces, tell

INSTALL = "pip install -r requirements.txt brings what it needs"


def version() -> str:
    """The version that is installed. Raises `ServerError` with what to install."""
    try:
        return importlib.metadata.version("moto")
    except importlib.metadata.PackageNotFoundError:
        raise ServerError(f"moto is not installed; {INSTALL}") from None


def _serve(name: str, ports: int) -> None:
    """Serves on free ports, tells them, and ends when standard input does."""
    try:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server
    except ImportError as exc:
        sys.exit(f"{exc}; {INSTALL}")

    class Quiet(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as on any real server

        def log(self, type: str, message: str, *args: Any) -> None:
            """Says nothing: the run's output is the user's."""

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    servers = [make_server(HOST, 0, app, threaded=True, request_handler=Quiet) for _ in range(ports)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    tell({name: [server.server_port for server in servers]}, version())
    sys.stdin.buffer.read()
    # Requests under way have nobody left to answer.
    os._exit(0)


if __name__ == "__main__":
    ((_name, _ports),) = spaces(sys.argv[1:]).items()
    _serve(_name, _ports)

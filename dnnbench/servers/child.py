"""What the children that serve have in common: their arguments, what they tell, and their end with the run."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence


def spaces(arguments: Sequence[str]) -> dict[str, int]:
    """The name spaces to serve, and on how many ports each, from ``NAME=PORTS`` arguments."""
    return {name: int(ports) for name, _, ports in (argument.partition("=") for argument in arguments)}


def tell(ports: Mapping[str, Sequence[int]], version: str, pids: Sequence[int] = ()) -> None:
    """Says, in one line, that all is up: the ports of each name space, the version, and further processes."""
    print(json.dumps({"ports": ports, "version": version, "pids": pids}), flush=True)


def end_with_the_run() -> None:
    """From now on SIGTERM raises SystemExit in the main thread; and comes when standard input ends.

    That is a pipe from the run: the kernel closes it when the run is gone, for any reason.
    """

    def end(*_: object) -> None:
        # Once: cleaning up must not be broken off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit()

    signal.signal(signal.SIGTERM, end)

    def watch() -> None:
        # Not sys.stdin: a thread that waits in it hinders the interpreter's end.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()

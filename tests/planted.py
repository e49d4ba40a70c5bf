"""Known secrets that are planted for a run, and the search for them in all that it says, writes and starts."""

import base64
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.test_bench import ENVIRONMENT, ROOT

CLIENTS = ("boto3", "obstore", "s3torchconnector")
PLANTED = {
    "access_key": "AKIAPLANTEDKEY234567",
    "secret_key": "planted/secret+key9876543210",
    "session_token": "plantedtoken4711",
}
# What is made of them to sign requests.
SIGNED = ("AWS4-HMAC", "Signature=", "X-Amz-Signature", "x-amz-security-token", "X-Amz-Credential")
_SIGNATURE = re.compile(r"Signature=([0-9a-f]{64})")
_LOOK_S = 0.2
LONGEST_S = 300
MOST_TOLD = 5


def forms_of(secret):
    """Parts of a secret, as they are and as they are commonly written elsewhere."""
    half = len(secret) // 2
    for part in (secret[:half], secret[half:]):
        yield from (part, urllib.parse.quote(part, safe=""), part.encode().hex(), part.encode().hex().upper())
    for before in range(3):
        # What stands before it in what is encoded decides which of three ways it looks, but for its ends.
        text = base64.b64encode(b"x" * before + secret.encode()).decode()
        inner = text[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6]
        yield from (inner, inner.translate(str.maketrans("+/", "-_")))


TRACES = tuple(dict.fromkeys([*SIGNED, *(form for secret in PLANTED.values() for form in forms_of(secret))]))


class Refusals:
    """What a server answers that knows no better than to tell all that it was sent, and the signatures of that."""

    def __init__(self, code):
        self.code, self.signatures = code, set()

    def __call__(self, request):
        sent = "\n".join([request.requestline, *(f"{name}: {value}" for name, value in request.headers.items())])
        self.signatures.update(_SIGNATURE.findall(sent))
        told = f"<AWSAccessKeyId>{PLANTED['access_key']}</AWSAccessKeyId><CanonicalRequest>{sent}</CanonicalRequest>"
        return f"<Error><Code>{self.code}</Code><Message>{sent}</Message>{told}</Error>"


def run(folder, *arguments, interrupt=None, **environment):
    """Runs a command with all that it writes in a folder; returns its status and, by place, all that could be read.

    That is what it says and writes, at its end and while it runs, and the command lines and environments of what it
    starts, without the variables that it was given itself. ``interrupt(process)`` is called when it runs.
    """
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", *map(str, arguments)]
    env = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("AWS_")} | environment
    # By a short name: a socket's name is to have no more than 107 letters.
    with tempfile.TemporaryDirectory() as short:
        (Path(short) / "t").symlink_to(folder.absolute(), target_is_directory=True)
        env |= {"TMPDIR": f"{short}/t", "AWS_EC2_METADATA_DISABLED": "true", "PYTHONUNBUFFERED": "1"}
        seen = {}
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        ended = threading.Event()
        watching = threading.Thread(target=_watch, args=(process.pid, env, folder, ended, seen))
        watching.start()
        try:
            if interrupt:
                threading.Thread(target=interrupt, args=(process,), daemon=True).start()
            written, _ = process.communicate(timeout=LONGEST_S)
        finally:
            process.kill()
            ended.set()
            watching.join()
    return process.returncode, {"output": written, **seen, **files_below(folder)}


def _watch(pid, given, folder, ended, seen):
    me, before = psutil.Process(pid), {}
    while not ended.wait(_LOOK_S):
        with contextlib.suppress(psutil.Error):
            for child in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    line = " ".join(child.cmdline())
                    seen[f"command line of {child.pid}: {line}"] = line
                    own = [f"{k}={v}" for k, v in child.environ().items() if given.get(k) != v]
                    seen[f"environment of {child.pid}: {line}"] = "\n".join(own)
        seen.update({f"{path}, for a while": text for path, text in files_below(folder, before).items()})


def files_below(folder, before=None):
    """The files below a folder: path -> content, of packed ones also that of what is packed.

    Of those in ``before`` (path -> size in bytes), which is kept, only those that have another size now.
    """
    found, sizes = {}, {} if before is None else before
    for file in Path(folder).rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and file.stat().st_size != sizes.get(file):
                sizes[file] = file.stat().st_size
                found[str(file)] = file.read_bytes().decode(errors="replace")
                if zipfile.is_zipfile(file):
                    found.update(_packed(file))
    return found


def _packed(file):
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as packed:
        return {f"{file}/{name}": packed.read(name).decode(errors="replace") for name in packed.namelist()}
    return {}


def command_lines(written):
    """Of all processes that were seen."""
    return "\n".join(text for place, text in written.items() if place.startswith("command line of"))


def assert_no_trace(written, also=()):
    """Fails where something planted, or one of ``also``, is in what was written (place -> text)."""
    found = [
        f"{place}: {trace}: …{text[max(text.index(trace) - 150, 0) : text.index(trace) + 100]}…"
        for place, text in written.items()
        for trace in (*TRACES, *also)
        if trace in text
    ]
    if found:
        pytest.fail(f"{len(found)} found\n" + "\n".join(found[:MOST_TOLD]), pytrace=False)

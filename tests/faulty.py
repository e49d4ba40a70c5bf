"""A proxy in front of a real S3 server that breaks what goes through it, exactly and when it is told to.

It speaks raw HTTP to the client and passes requests on as they came, so that signatures hold on any server.
"""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

HOST = "127.0.0.1"
# No stall is meant to end by itself.
LONG_S = 60
_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_TOKEN = re.compile(rb"<NextContinuationToken>.*?</NextContinuationToken>")


@dataclass
class Fault:
    """What is done to requests of a ``verb`` (or LIST) whose key matches: ``times`` (None: always), ``after`` some.

    ``token``: only to those for the page that it stands for.
    """

    kind: str
    verb: str = "GET"
    key: str = ""
    token: str = ""
    after: int = 0
    times: int | None = 1
    seconds: float = 0
    status: int = 0
    code: str = ""
    headers: dict = field(default_factory=dict)

    def takes(self, verb, key, token):
        """Whether it is this request's turn."""
        if verb != self.verb or not re.search(self.key, key) or self.token not in ("", token):
            return False
        self.after -= 1
        if self.after >= 0 or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Request:
    """One request as it came."""

    method: str
    target: str
    headers: list
    body: bytes

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.target)
        self.query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        self.bucket, _, self.key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        self.verb = "LIST" if "list-type" in self.query else self.method

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass
class Answer:
    """An answer, whole; ``headers`` without its length."""

    status: int
    headers: list
    body: bytes
    length: int

    def head(self):
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, f"Content-Length: {self.length}", "", ""]).encode("latin-1")


def told(status, code, headers=()):
    """An S3 server's error."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    return Answer(status, [("Content-Type", "application/xml"), *headers], body, len(body))


class Broken(Exception):  # noqa: N818 (no error of ours)
    """The connection is to be closed."""


class Proxy:
    """Stands before ``upstream``, a URL. ``page_keys``: listings come in pages of so many. ``tls``: (certificate, key).

    ``seen`` is every request that came: (verb, key). ``rewrite`` changes an answer's body: (key, body) -> body.
    """

    def __init__(self, upstream, page_keys=None, tls=None, rewrite=None):
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._page_keys, self._rewrite = page_keys, rewrite
        self._tls = _tls_context(*tls) if tls else None
        self._lock = threading.Lock()
        self._faults, self.seen = [], []
        self._connections, self._listings = set(), {}
        self._let_go = threading.Event()
        self.port = 0
        self.listen()
        self.endpoint = f"http{'s' if tls else ''}://{HOST}:{self.port}"

    # -- control -----------------------------------------------------------------------------------

    def fail(self, kind, **options):
        """From now on; see `Fault`."""
        fault = Fault(kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def mend(self):
        """No more faults; what was stalled is closed."""
        with self._lock:
            self._faults.clear()
            self.seen.clear()
            self._listings.clear()
        self._let_go.set()
        self._let_go = threading.Event()
        if self._listener is None:
            self.listen()

    def refuse(self):
        """Closes every connection, and takes no more."""
        # A thread that waits in accept would hold the port.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        for connection in list(self._connections):
            # Whoever serves it reads from it, and so would hold it open after a mere `close`.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def listen(self):
        self._listener = socket.create_server((HOST, self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self):
        self._let_go.set()
        if self._listener is not None:
            self.refuse()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- connections -------------------------------------------------------------------------------

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upstream = http.client.HTTPConnection(self._upstream, timeout=LONG_S)
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._connections.add(connection)
            with connection.makefile("rb") as stream:
                while (request := _receive(stream, connection)) is not None:
                    self._answer(connection, upstream, request)
        except (Broken, OSError, http.client.HTTPException):
            """The client went away, or is meant to think that the server has."""
        finally:
            self._connections.discard(connection)
            connection.close()
            upstream.close()

    def _answer(self, connection, upstream, request):
        token = request.query.get("continuation-token", "")
        with self._lock:
            self.seen.append((request.verb, request.key))
            fault = next((one for one in self._faults if one.takes(request.verb, request.key, token)), None)
        if fault is None:
            connection.sendall(_bytes_of(self._pass_on(upstream, request)))
        else:
            getattr(self, f"_{fault.kind}")(connection, upstream, request, fault)

    def _pass_on(self, upstream, request, skew=0):
        if request.verb == "LIST" and self._page_keys:
            return self._page(upstream, request, skew)
        return self._ask(upstream, request)

    def _ask(self, upstream, request):
        upstream.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(request.body)
        answer = upstream.getresponse()
        body = answer.read()
        if self._rewrite:
            body = self._rewrite(request.key, body)
        skipped = ("content-length", "transfer-encoding", "connection", "keep-alive")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
        length = int(answer.getheader("Content-Length", 0)) if request.method == "HEAD" else len(body)
        return Answer(answer.status, headers, body, length)

    def _page(self, upstream, request, skew):
        """A page of a listing that the server gives whole; ``skew``: as many pages away from the right one."""
        key = request.bucket, request.query.get("prefix")
        token = request.query.get("continuation-token", "")
        if token:
            whole, number = self._listings[key], int(token.removeprefix("page-"))
        else:
            whole, number = self._ask(upstream, request), 0
            self._listings[key] = whole
        found = _CONTENTS.findall(whole.body)
        number = max(number + skew, 0)
        first, last = number * self._page_keys, (number + 1) * self._page_keys
        body = _TOKEN.sub(b"", _CONTENTS.sub(b"", whole.body))
        more = b"true" if last < len(found) else b"false"
        body = re.sub(rb"<IsTruncated>.*?</IsTruncated>", b"<IsTruncated>" + more + b"</IsTruncated>", body)
        extra = b"".join(found[first:last])
        if last < len(found):
            extra += b"<NextContinuationToken>page-%d</NextContinuationToken>" % (number + 1)
        body = body.replace(b"</ListBucketResult>", extra + b"</ListBucketResult>")
        return Answer(whole.status, whole.headers, body, len(body))

    # -- faults ------------------------------------------------------------------------------------

    def _delay(self, connection, upstream, request, fault):
        time.sleep(fault.seconds)
        connection.sendall(_bytes_of(self._pass_on(upstream, request)))

    def _stall(self, connection, upstream, request, fault):
        """Says nothing."""
        self._let_go.wait(LONG_S)
        raise Broken

    def _stall_within(self, connection, upstream, request, fault):
        """Says nothing more in the middle of the body."""
        self._half(connection, upstream, request)
        self._let_go.wait(LONG_S)
        raise Broken

    def _trickle(self, connection, upstream, request, fault):
        """Sends the body byte by byte, each ``seconds`` after the one before: never silent, and never through."""
        answer = self._ask(upstream, request)
        connection.sendall(answer.head())
        for number in range(len(answer.body)):
            if self._let_go.wait(fault.seconds):
                raise Broken
            connection.sendall(answer.body[number : number + 1])

    def _reset(self, connection, upstream, request, fault):
        _reset(connection)
        raise Broken

    def _reset_within(self, connection, upstream, request, fault):
        self._half(connection, upstream, request)
        _reset(connection)
        raise Broken

    def _cut_headers(self, connection, upstream, request, fault):
        """Closes the connection in the middle of the headers."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nServer: faulty\r\n")
        raise Broken

    def _truncate(self, connection, upstream, request, fault):
        """Half of the body under the whole one's length."""
        self._half(connection, upstream, request)
        raise Broken

    def _half(self, connection, upstream, request):
        answer = self._ask(upstream, request)
        connection.sendall(answer.head() + answer.body[: len(answer.body) // 2])

    def _flip(self, connection, upstream, request, fault):
        answer = self._ask(upstream, request)
        middle = len(answer.body) // 2
        answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
        connection.sendall(_bytes_of(answer))

    def _etag(self, connection, upstream, request, fault):
        """Says that it is another object's content."""
        answer = self._ask(upstream, request)
        others = [(name, value) for name, value in answer.headers if name.lower() != "etag"]
        answer.headers = [*others, ("ETag", '"00000000000000000000000000000000"')]
        connection.sendall(_bytes_of(answer))

    def _error(self, connection, upstream, request, fault):
        path = request.target.partition("?")[0]
        headers = [(name, value.format(path=path)) for name, value in fault.headers.items()]
        answer = told(fault.status, fault.code, headers)
        if request.method == "HEAD":
            answer.body = b""
        connection.sendall(_bytes_of(answer))

    def _repeat_page(self, connection, upstream, request, fault):
        """Gives the page before once more."""
        connection.sendall(_bytes_of(self._pass_on(upstream, request, skew=-1)))

    def _drop_page(self, connection, upstream, request, fault):
        """Gives the page after the one that is asked for."""
        connection.sendall(_bytes_of(self._pass_on(upstream, request, skew=1)))


def _receive(stream, connection):
    """The next request of a connection; None where there is no more."""
    words = stream.readline().decode("latin-1").split(" ", 2)
    if len(words) < 3:
        # It is gone, or broke off in mid-line.
        return None
    method, target, _ = words
    headers = []
    while (line := stream.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    request = Request(method, target, headers, b"")
    if request.header("expect"):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.body = stream.read(int(request.header("content-length") or 0))
    return request


def _bytes_of(answer):
    return answer.head() + answer.body


def _reset(connection):
    with contextlib.suppress(OSError):
        # Closed with unsent data thrown away: the other side sees a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def _tls_context(certificate, key):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context

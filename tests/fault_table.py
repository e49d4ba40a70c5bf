"""What each client library makes of each fault: the table of `test_faults` and of docs/faults.md.

``python tests/fault_table.py`` prints the table of the docs.
"""

from dataclasses import dataclass, field

CLIENTS = ("boto3", "obstore", "s3torchconnector")

# What comes of a fault. What is asked again fails in the end where the fault stays; both are tested.
RIGHT = "read right"
AGAIN = "asked again"
FAILS = "fails"
UNSEEN = "CorruptError with `dataset.verify=checksum`; **undetected without**"
FOLLOWED = "followed, counted as one request"
COMPARED = "not seen in one listing; against another one of the run"


@dataclass(frozen=True)
class Row:
    """One fault. ``options`` are those of `faulty.Fault`; ``error``, with ``words``, is what it ends in.

    ``other`` has what is otherwise with a client: {client: {field: value}}.
    """

    what: str
    options: dict
    outcome: str
    error: str = ""
    words: str = ""
    rules: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict)

    def of(self, client):
        """The row as it is for one client."""
        return Row(**{**self.__dict__, **self.other.get(client, {}), "other": {}})


def _status(status, code, **headers):
    return {
        "kind": "error",
        "status": status,
        "code": code,
        "headers": {key.replace("_", "-"): value for key, value in headers.items()},
    }


# A silence that is soon over, where one is waited for.
SILENT = {"read_timeout_s": 0.4}
ONCE_BY_ITSELF = {"s3torchconnector": {"outcome": AGAIN}}

READING = {
    "delay": Row("delay, shorter than the time-outs", {"kind": "delay", "seconds": 0.05}, RIGHT),
    "stall": Row("no answer", {"kind": "stall"}, AGAIN, "UnreachableError", "no answer from", SILENT),
    "stall within": Row(
        "silence in the middle of the body",
        {"kind": "stall_within"},
        AGAIN,
        "UnreachableError",
        "no answer from",
        SILENT,
    ),
    "trickle": Row(
        "a body that comes byte by byte, for longer than the total time-out",
        {"kind": "trickle", "seconds": 0.02},
        FAILS,
        "TransientError",
        "not done within 1 s (storage.s3.requests.total_timeout_s)",
        {"total_timeout_s": 1, "read_timeout_s": 1, "connect_timeout_s": 1},
    ),
    "reset": Row("reset before the answer", {"kind": "reset"}, AGAIN, "TransientError", "broke off"),
    "reset within": Row("reset within the body", {"kind": "reset_within"}, AGAIN, "TransientError", "broke off"),
    "cut headers": Row(
        "an answer that ends within its headers",
        {"kind": "cut_headers"},
        AGAIN,
        "TransientError",
        "broke off",
        other={"obstore": {"error": "UnreachableError", "words": "no connection to"}},
    ),
    "truncated": Row(
        "half of the body under the whole one's length", {"kind": "truncate"}, AGAIN, "TransientError", "broke off"
    ),
    "500": Row(
        "500 InternalError", _status(500, "InternalError"), AGAIN, "TransientError", "answered 500 InternalError"
    ),
    "503": Row("503 SlowDown", _status(503, "SlowDown"), AGAIN, "TransientError", "answered 503 SlowDown"),
    "503 for long": Row(
        "503 SlowDown with a `Retry-After` longer than the total time-out",
        _status(503, "SlowDown", Retry_After="120"),
        AGAIN,
        "TransientError",
        "answered 503 SlowDown",
        other={"boto3": {"outcome": FAILS, "words": "a pause of 120 s would pass"}},
    ),
    "301": Row(
        "301 PermanentRedirect, to nowhere",
        _status(301, "PermanentRedirect"),
        FAILS,
        "MisconfiguredError",
        "redirects to another place",
        other={"boto3": {"outcome": AGAIN}},
    ),
    "307": Row(
        "307 TemporaryRedirect, to the same place",
        _status(307, "TemporaryRedirect", Location="{path}"),
        FAILS,
        "MisconfiguredError",
        "redirects to another place",
        other={"boto3": {"outcome": AGAIN}, "obstore": {"outcome": FOLLOWED}},
    ),
    "403": Row(
        "403 ExpiredToken",
        _status(403, "ExpiredToken"),
        FAILS,
        "DeniedError",
        "the credentials have expired",
        other=ONCE_BY_ITSELF,
    ),
    "flipped": Row("one flipped bit", {"kind": "flip"}, UNSEEN),
    "ETag": Row("another object's ETag", {"kind": "etag"}, RIGHT),
}

REFUSED = {
    "refused": Row("refused connection", {}, AGAIN, "UnreachableError", "no connection to"),
}

CHANGED = {
    "deleted": Row("deleted", {}, FAILS, "NotFoundError", "there is no such object; was it deleted"),
    "shorter": Row("shorter", {}, FAILS, "CorruptError", "when it was listed"),
    "longer": Row("longer", {}, FAILS, "CorruptError", "when it was listed"),
    "same length": Row("another content of the same length", {}, UNSEEN),
}

LISTING = {
    "stall": Row("no answer to a page", {"kind": "stall"}, AGAIN, "UnreachableError", "no answer from", SILENT),
    "500": Row(
        "500 InternalError for a page",
        _status(500, "InternalError"),
        AGAIN,
        "TransientError",
        "answered 500 InternalError",
    ),
    "cut headers": Row(
        "an answer to a page that ends within its headers",
        {"kind": "cut_headers"},
        AGAIN,
        "TransientError",
        "broke off",
        other={
            "boto3": {"words": "is no page of a listing"},
            "obstore": {"error": "UnreachableError", "words": "no connection to"},
        },
    ),
    "repeated": Row(
        "a page comes twice",
        {"kind": "repeat_page"},
        FAILS,
        "CorruptError",
        "cannot be trusted",
        # It hands on a thousand keys at a time, whatever the pages are.
        other={"obstore": {"error": "CatalogError", "words": "is listed twice"}},
    ),
    "dropped": Row("a page is left out", {"kind": "drop_page"}, COMPARED, "MeasurementError", "left out a page"),
}

DSS = {
    "endpoint": Row("an endpoint of a cluster is down", {}, AGAIN, "", "asked at the cluster's other endpoint"),
    "cluster": Row("all endpoints of a cluster are down", {}, FAILS, "UnreachableError", "no connection to"),
    "conf.json": Row("`conf.json` is gone in mid-run", {}, RIGHT),
}

SECTIONS = (
    ("Reading an object", READING | REFUSED),
    ("The object changed after it was listed", CHANGED),
    ("Listing", LISTING),
    ("DSS", DSS),
)


def cell(row):
    """What the docs say of a row and a client."""
    ends_in = f"`{row.error}`" if row.error else row.words
    if row.outcome == FAILS:
        return ends_in
    return (
        f"{row.outcome}, {'then ' if row.error else ''}{ends_in}"
        if row.outcome == AGAIN
        else (f"{row.outcome} `{row.error}`" if row.outcome == COMPARED else row.outcome)
    )


def table():
    """The lines of the docs' table."""
    lines = [f"| fault | {' | '.join(f'`{client}`' for client in CLIENTS)} |", "|---" * (1 + len(CLIENTS)) + "|"]
    for title, rows in SECTIONS:
        lines.append(f"| **{title}** |" + " |" * len(CLIENTS))
        lines += [f"| {row.what} | {' | '.join(cell(row.of(client)) for client in CLIENTS)} |" for row in rows.values()]
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

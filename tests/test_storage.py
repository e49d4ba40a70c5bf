"""The protocol of a storage, held against every storage and client. What is special to one has a test of its own."""

import gc
import itertools
import os
import pickle
import socket
import threading
import uuid

import pytest

from dnnbench.config import ConfigError, Requests, S3Credentials, expand_settings
from dnnbench.storage import (
    CorruptError,
    DeniedError,
    MisconfiguredError,
    NotFoundError,
    StorageError,
    TransientError,
    UnreachableError,
)
from dnnbench.storage.base import Entry
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.open import open_storage
from dnnbench.storage.s3 import CLIENTS, NOT_FORKED, S3Storage

KINDS = ["fs-posix", *(f"{name}-{client}" for name in ("aws", "dss") for client in CLIENTS)]
GETS = {"fs": "READ", "aws": "GET", "dss": "GET"}
# Asked again without a pause.
AT_ONCE = Requests(back_off_s=0)
SIZES = {"fs": "STAT", "aws": "HEAD", "dss": "HEAD"}


@pytest.fixture(params=KINDS)
def place(request, local_servers, tmp_path):
    """(storage, a prefix of its own that ends in "/")."""
    name, client = request.param.split("-")
    if name == "fs":
        storage, prefix = FsStorage(), f"{tmp_path}/"
    elif name == "aws":
        credentials, bucket = local_servers.aws()
        storage, prefix = S3Storage(bucket, credentials, client), f"{uuid.uuid4()}/"
    else:
        storage, prefix = DssStorage(local_servers.dss(), client=client), f"{uuid.uuid4()}/"
    yield storage, prefix
    storage.close()


def _fill(storage, prefix, contents):
    for key, data in contents.items():
        storage.write(prefix + key, data)
    storage.meter.take()


CONTENTS = {"a/1.jpg": b"one", "a/2.jpg": b"", "a/deep/3.jpg": b"three" * 1000, "ab/4 ü%&+日.jpg": b"four"}


def test_lists_every_object_below_a_prefix_with_its_size(place):
    storage, prefix = place
    _fill(storage, prefix, CONTENTS)
    assert sorted(storage.list(prefix)) == sorted((prefix + key, len(data)) for key, data in CONTENTS.items())
    assert sorted(e.key for e in storage.list(f"{prefix}a/")) == [
        prefix + k for k in ("a/1.jpg", "a/2.jpg", "a/deep/3.jpg")
    ]
    # A prefix is literal: without the "/" it reaches the neighbour too.
    assert len(list(storage.list(f"{prefix}a"))) == len(CONTENTS)


def test_lists_more_than_one_page(place):
    storage, prefix = place
    if storage.name == "dss":
        pytest.skip("pages are the S3 client's, and the next two thousand writes would show nothing new")
    keys = {f"many/{i:05d}.jpg" for i in range(1050)}
    for _ in storage.read_many([], 1):
        raise AssertionError("nothing was asked for")
    # Of the three, boto3 writes a small object with the fewest requests.
    writer = S3Storage(storage.bucket, storage.credentials) if storage.name == "aws" else storage
    for _ in writer.in_flight(lambda key: writer.write(prefix + key, b""), keys, 8):
        pass
    assert {entry.key for entry in storage.list(f"{prefix}many/")} == {prefix + key for key in keys}


@pytest.mark.parametrize("workers", [1, 4])
def test_several_prefixes_are_listed_at_once(place, workers):
    storage, prefix = place
    contents = {f"{part}/{i}.jpg": b"x" * i for part in "abc" for i in range(1, 8)}
    _fill(storage, prefix, contents)
    prefixes = [f"{prefix}{part}/" for part in "abc"]
    found = [(n, entry) for n, page in storage.list_many(prefixes, workers) for entry in page]
    expected = [("abc".index(key[0]), (prefix + key, len(data))) for key, data in contents.items()]
    assert sorted(found) == sorted(expected)
    lists = 3 * (len(storage.clusters) if storage.name == "dss" else 1)
    assert storage.meter.take().requests["LIST"] == lists


def test_a_listing_begins_after_any_key(place):
    storage, prefix = place
    if storage.name != "aws":
        pytest.skip("it is the S3 client's")
    keys = [f"{prefix}{key}" for key in sorted(["a", "b/1", "b/2", "b!", "ü", "日"])]
    for key in keys:
        storage.write(key, b"")
    for after in ["", prefix, *keys, prefix + "b", prefix + "b/", prefix + "zz"]:
        pages = storage.connection().pages(storage.bucket, prefix, after)
        assert [entry.key for page in pages for entry in page] == [key for key in keys if key > after]


def test_reads_what_was_written_with_one_request_each(place):
    storage, prefix = place
    _fill(storage, prefix, CONTENTS)
    for key, data in CONTENTS.items():
        assert storage.read(prefix + key, len(data)) == data
        assert storage.read(prefix + key) == data
    tally = storage.meter.take()
    assert dict(tally.requests) == {GETS[storage.name]: 2 * len(CONTENTS)}
    assert tally.read_bytes == 2 * sum(map(len, CONTENTS.values()))
    assert len(tally.latency_ns) == 2 * len(CONTENTS)
    assert min(tally.latency_ns) > 0
    assert (tally.retries, tally.errors) == (0, 0)


def test_size_is_one_request_and_no_read(place):
    storage, prefix = place
    _fill(storage, prefix, CONTENTS)
    assert storage.size(f"{prefix}a/deep/3.jpg") == 5000
    tally = storage.meter.take()
    assert dict(tally.requests) == {SIZES[storage.name]: 1}
    assert not tally.latency_ns


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, b"abc"), (2, 5, b"cde"), (4, 100, b"ef"), (3, 3, b""), (6, 9, b""), (100, 101, b""), (0, 6, b"abcdef")],
)
def test_a_range_has_an_exclusive_end(place, start, end, expected):
    storage, prefix = place
    _fill(storage, prefix, {"r.bin": b"abcdef"})
    assert storage.read_range(f"{prefix}r.bin", start, end) == expected


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 2)])
def test_an_impossible_range_is_refused(place, start, end):
    with pytest.raises(ValueError, match="0 <= start <= end"):
        place[0].read_range("x", start, end)


@pytest.mark.parametrize(("range_bytes", "concurrency"), [(7, 40), (4999, 3), (5000, 1), (5001, 2)])
def test_an_object_in_parallel_ranges_is_the_object(place, range_bytes, concurrency):
    storage, prefix = place
    content = os.urandom(5000 if range_bytes > 7 else 100)
    _fill(storage, prefix, {"large.bin": content})
    found = storage.read_parallel(f"{prefix}large.bin", len(content), range_bytes, concurrency)
    assert bytes(found) == content
    ranges = -(-len(content) // range_bytes)
    tally = storage.meter.take()
    assert dict(tally.requests) == {GETS[storage.name]: ranges}
    # Each range is a read, held against the length that the object has.
    assert (len(tally.latency_ns), tally.read_bytes, tally.verified) == (ranges, len(content), {"length": ranges})
    assert min(tally.latency_ns) > 0


def test_an_empty_object_in_ranges_is_no_request(place):
    storage, prefix = place
    _fill(storage, prefix, {"empty.bin": b""})
    assert bytes(storage.read_parallel(f"{prefix}empty.bin", 0, 10, 2)) == b""
    assert not storage.meter.take().requests


def test_a_range_without_a_byte_is_refused(place):
    with pytest.raises(ValueError, match="a byte at least"):
        place[0].read_parallel("x", 10, 0, 1)


@pytest.mark.parametrize("listed_bytes", [99, 101, 150])
def test_an_object_of_another_length_than_listed_is_corrupt_in_ranges(place, listed_bytes):
    storage, prefix = place
    _fill(storage, prefix, {"x.bin": b"x" * 100})
    if storage.client == "s3torchconnector" and listed_bytes < 100:
        pytest.skip("it does not tell how long the object is, and each of the ranges is as long as it must be")
    with pytest.raises(CorruptError, match=r"x\.bin.*list again"):
        storage.read_parallel(f"{prefix}x.bin", listed_bytes, 40, 2)
    assert storage.meter.take().errors >= 1


def test_a_missing_object_is_named_in_ranges(place):
    storage, prefix = place
    _fill(storage, prefix, {"there.bin": b"x"})
    with pytest.raises(NotFoundError, match=r"gone\.bin"):
        storage.read_parallel(f"{prefix}gone.bin", 100, 10, 4)


def test_fs_a_file_that_is_written_while_it_is_read_in_ranges_is_corrupt(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"a" * 100)

    class Changing(FsStorage):
        def _read_into(self, key, start, into):
            if start == 40:
                path.write_bytes(b"b" * 100)
                os.utime(path, ns=(1, 1))
            return super()._read_into(key, start, into)

    with pytest.raises(CorruptError, match="changed while its ranges were read"):
        Changing().read_parallel(str(path), 100, 10, 1)


def test_fs_a_range_that_the_kernel_gives_in_pieces_is_put_together(tmp_path, monkeypatch):
    content = os.urandom(100)
    (tmp_path / "x.bin").write_bytes(content)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, place: whole(handle, [buffers[0][:7]], place))
    assert bytes(FsStorage().read_parallel(str(tmp_path / "x.bin"), 100, 40, 2)) == content


def _answer(handler):
    """What a server of one object answers to a ranged request: (start, end, total)."""
    start, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
    end = min(int(last) + 1, 1000)
    handler.extra = {
        "Content-Range": f"bytes {start}-{end - 1}/1000",
        "ETag": '"one"',
        "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
    }
    return int(start), end


def _another_object(handler):
    start, end = _answer(handler)
    handler.extra["ETag"] = '"one"' if start < 500 else '"two"'
    return "x" * (end - start)


def _another_range(handler):
    start, end = _answer(handler)
    handler.extra["Content-Range"] = f"bytes {start + 1}-{end}/1000"
    return "x" * (end - start)


def _grown(handler):
    start, end = _answer(handler)
    handler.extra["Content-Range"] = f"bytes {start}-{end - 1}/1001"
    return "x" * (end - start)


def _short(handler):
    start, end = _answer(handler)
    handler.extra["Content-Range"] = f"bytes {start}-{end - 2}/1000"
    return "x" * (end - start - 1)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "body"),
    [(206, _another_object), (206, _another_range), (206, _grown), (206, _short), (200, "x" * 1000)],
    ids=["another object", "another range", "grown", "short", "whole"],
)
def test_what_is_no_range_of_the_object_is_corrupt(answering_server, client, status, body):
    if client == "s3torchconnector" and body in (_another_object, _another_range, _grown):
        pytest.skip("it tells neither the object's ETag nor its length, and looks at no range's place")
    credentials = S3Credentials(endpoint=answering_server(status, body), access_key="a", secret_key="s")
    rules = Requests(back_off_s=0, max_attempts=1)
    with pytest.raises(CorruptError, match=r"aws \(\w+\): (s3://b/)?k: "):
        S3Storage("b", credentials, client, rules=rules).read_parallel("k", 1000, 100, 1)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_whole_object_is_not_taken_for_a_range_that_is_longer(answering_server, client):
    credentials = S3Credentials(endpoint=answering_server(200, "x" * 1000), access_key="a", secret_key="s")
    rules = Requests(back_off_s=0, max_attempts=1)
    with pytest.raises(CorruptError, match="does it know ranges"):
        S3Storage("b", credentials, client, rules=rules).read_range("k", 500, 1600)


def test_a_missing_object_is_named_and_counted(place):
    storage, prefix = place
    _fill(storage, prefix, {"there.jpg": b"x"})
    for call in (storage.read, storage.size):
        with pytest.raises(NotFoundError) as caught:
            call(f"{prefix}gone.jpg")
        assert f"{prefix}gone.jpg" in str(caught.value)
        assert storage.name in str(caught.value)
        assert "\n" not in str(caught.value)
    tally = storage.meter.take()
    assert (tally.errors, len(tally.latency_ns)) == (2, 0)


@pytest.mark.parametrize("listed", [2, 4, 0])
def test_another_length_than_listed_is_corrupt(place, listed):
    storage, prefix = place
    _fill(storage, prefix, {"x.jpg": b"abc"})
    with pytest.raises(CorruptError, match=f"but {listed} when it was listed"):
        storage.read(f"{prefix}x.jpg", listed)
    assert not storage.meter.take().latency_ns, "a corrupt read is no figure"


@pytest.mark.parametrize("concurrency", [1, 3, 40])
def test_read_many_reads_each_once(place, concurrency):
    storage, prefix = place
    contents = {f"m/{i}.bin": bytes([i]) * i for i in range(30)}
    _fill(storage, prefix, contents)
    items = [(prefix + key, len(data)) for key, data in contents.items()]
    results = dict(storage.read_many(items, concurrency))
    assert [bytes(results[i]) for i in range(30)] == list(contents.values())
    assert storage.meter.take().requests[GETS[storage.name]] == 30


def test_read_many_stops_at_the_first_error_and_leaves_no_thread(place):
    storage, prefix = place
    _fill(storage, prefix, {"x": b"1"})
    before = set(threading.enumerate())
    items = [(f"{prefix}x", 1), (f"{prefix}gone", None), *[(f"{prefix}x", 1)] * 200]
    with pytest.raises(NotFoundError):
        list(storage.read_many(items, 4))
    tally = storage.meter.take()
    readers = [one for one in threading.enumerate() if one.name == "dnnbench-read" and one not in before]
    storage.close()
    for reader in readers:
        reader.join(10)
    assert readers
    assert not any(reader.is_alive() for reader in readers)
    assert tally.requests[GETS[storage.name]] < 200


def test_read_many_in_order_of_the_items(place):
    storage, prefix = place
    contents = {f"o/{i}.bin": bytes([i]) * (1 + 100 * (i % 3)) for i in range(30)}
    _fill(storage, prefix, contents)
    items = [(prefix + key, len(data)) for key, data in contents.items()]
    results = list(storage.read_many(items, 4, in_order=True))
    assert [position for position, _ in results] == list(range(30))
    assert [bytes(data) for _, data in results] == list(contents.values())


def test_read_many_may_be_left_early(place):
    storage, prefix = place
    _fill(storage, prefix, {"x": b"1"})
    reading = storage.read_many([(f"{prefix}x", 1)] * 200, 4)
    assert bytes(next(reading)[1]) == b"1"
    reading.close()
    assert storage.meter.take().requests[GETS[storage.name]] < 200


def test_an_object_is_replaced_whole(place):
    storage, prefix = place
    storage.write(f"{prefix}w.bin", b"long content")
    storage.write(f"{prefix}w.bin", b"new")
    assert storage.read(f"{prefix}w.bin") == b"new"
    assert [entry.size_bytes for entry in storage.list(prefix)] == [3]


def test_a_copy_by_pickle_reads_and_counts_for_itself(place):
    storage, prefix = place
    _fill(storage, prefix, {"p.bin": b"abc"})
    copy = pickle.loads(pickle.dumps(storage))  # noqa: S301 (our own bytes)
    assert copy.read(f"{prefix}p.bin") == b"abc"
    assert copy.meter.take().read_bytes == 3
    assert storage.meter.take().read_bytes == 0
    copy.close()


def test_a_forked_child_has_its_own_client_and_counts(place):
    storage, prefix = place
    _fill(storage, prefix, {"f.bin": b"abc"})
    storage.read(f"{prefix}f.bin")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        good = b"no"
        try:
            before = storage.meter.reads
            if storage.read(f"{prefix}f.bin") == b"abc" and (before, storage.meter.reads) == (0, 1):
                good = b"ok"
        except MisconfiguredError as exc:
            # What cannot be done must be said, not hang.
            good = b"ok" if storage.client in NOT_FORKED and "forkserver" in str(exc) else b"no"
        finally:
            os.write(writer, good)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 2) == b"ok"
    os.close(reader)
    os.close(writer)
    assert storage.meter.take().read_bytes == 3


def test_a_closed_storage_opens_again(place):
    storage, prefix = place
    _fill(storage, prefix, {"c.bin": b"abc"})
    storage.close()
    assert storage.read(f"{prefix}c.bin") == b"abc"


def test_settings_name_no_secret(place):
    storage, _ = place
    text = repr(storage.settings()) + repr(storage.__dict__)
    assert "dnnbench-secret" not in text


def test_settings_say_what_was_in_force_alike_for_every_client(place):
    storage, _ = place
    if storage.name == "fs":
        pytest.skip("files are asked for once")
    told = storage.settings()
    assert {key: told[key] for key in Requests.model_fields} == Requests().model_dump()
    assert told["verify_tls"] is True


@pytest.mark.parametrize("name", ["aws", "dss"])
def test_a_storage_has_the_configurations_rules_and_takes_them_along(name, tmp_path):
    (tmp_path / "ca.pem").touch()
    text = [f"storage.s3.verify_tls={tmp_path}/ca.pem", "storage.s3.requests.max_attempts=7", "storage.s3.bucket=b"]
    config = expand_settings({}, [*text, f"storage.s3.{name}.credentials.endpoint=http://127.0.0.1:9"])[0].config
    storage = pickle.loads(pickle.dumps(open_storage(config, name)))  # noqa: S301 (our own bytes)
    assert (storage.rules.max_attempts, storage.verify_tls) == (7, f"{tmp_path}/ca.pem")
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"verify_tls: .*ca\.pem: there is no such file"):
        open_storage(config, name)


def test_fs_follows_links_and_survives_a_loop(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [e.key for e in FsStorage().list(f"{tmp_path}/link/")] == [f"{tmp_path}/link/a.jpg"]


def test_fs_names_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(NotFoundError, match=r"dangling\.jpg"):
        list(FsStorage().list(f"{tmp_path}/"))


def test_fs_reads_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"abc")
    (entry,) = FsStorage().list(f"{tmp_path}/")
    assert FsStorage().read(entry.key, entry.size_bytes) == b"abc"


def test_fs_a_folder_is_no_object(tmp_path):
    with pytest.raises(NotFoundError, match="folder"):
        FsStorage().read(str(tmp_path))
    with pytest.raises(NotFoundError, match="no such"):
        list(FsStorage().list(f"{tmp_path}/gone/"))


@pytest.mark.parametrize("client", CLIENTS)
def test_s3_a_missing_bucket_is_named(local_servers, client):
    credentials, _ = local_servers.aws()
    storage = S3Storage("no-such-bucket", credentials, client)
    for call in (lambda: list(storage.list("x/")), lambda: storage.read("x")):
        with pytest.raises(NotFoundError, match="no such bucket"):
            call()


@pytest.mark.parametrize("client", CLIENTS)
def test_s3_a_refused_connection_is_unreachable(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    credentials = S3Credentials(endpoint=f"http://127.0.0.1:{port}", access_key="a", secret_key="b")
    with pytest.raises(UnreachableError, match="no connection") as caught:
        S3Storage("bucket", credentials, client, rules=AT_ONCE).read("x")
    assert str(port) in str(caught.value)


def test_no_read_pays_for_building_the_clients(place):
    storage, prefix = place
    _fill(storage, prefix, {"x.bin": b"abc"})
    storage.close()
    built = []
    storage.clock_ns = lambda: built.append(dict(storage._clients)) or 0
    storage.read(f"{prefix}x.bin")
    before, after = built
    assert before.keys() == after.keys()
    if storage.name == "dss":
        assert len(before) >= sum(len(cluster.endpoints) for cluster in storage.clusters)


@pytest.mark.parametrize("client", CLIENTS)
def test_s3_retries_are_counted_where_no_answer_ever_comes(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    credentials = S3Credentials(endpoint=f"http://127.0.0.1:{port}", access_key="a", secret_key="b")
    storage = S3Storage("b", credentials, client, rules=AT_ONCE)
    with pytest.raises(UnreachableError):
        storage.read("x")
    tally = storage.meter.take()
    assert tally.requests["GET"] == tally.retries + 1 > 1


def test_s3_a_credential_that_no_request_can_carry_is_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "SECRET-TOKEN\n")
    from dnnbench.storage import s3_boto3

    s3_boto3._session.cache_clear()
    try:
        with pytest.raises(MisconfiguredError, match="a credential holds a line break") as caught:
            S3Storage("b", S3Credentials(endpoint="http://127.0.0.1:9")).read("x")
    finally:
        s3_boto3._session.cache_clear()
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "InvalidAccessKeyId", DeniedError),
        (403, "SignatureDoesNotMatch", DeniedError),
        (404, "NoSuchKey", NotFoundError),
        (503, "SlowDown", StorageError),
    ],
)
def test_s3_answers_become_our_errors(answering_server, status, code, error, client):
    url = answering_server(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>")
    credentials = S3Credentials(endpoint=url, access_key="AKIDEXAMPLE", secret_key="verysecret")
    storage = S3Storage("bucket", credentials, client, rules=AT_ONCE)
    with pytest.raises(error) as caught:
        storage.read("k")
    assert "verysecret" not in str(caught.value)
    tally = storage.meter.take()
    # Every attempt is a request, and what was tried again is a retry.
    assert tally.requests["GET"] == tally.retries + 1
    assert (tally.retries > 0) == (status == 503)
    with pytest.raises(error):
        list(storage.list("k/"))
    tally = storage.meter.take()
    assert tally.requests["LIST"] == tally.retries + 1
    assert (tally.retries > 0) == (status == 503)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_redirects_all_that_is_asked_is_told_in_one_line(answering_server, client):
    # boto3 asks the server where the bucket is, and is redirected by that, too.
    url = answering_server(301, "<Error><Code>PermanentRedirect</Code><Message>m</Message></Error>")
    storage = S3Storage("bucket", S3Credentials(endpoint=url, access_key="a", secret_key="b"), client, rules=AT_ONCE)
    for ask in (lambda: storage.read("k"), lambda: storage.size("k"), lambda: list(storage.list("k/"))):
        with pytest.raises(MisconfiguredError, match="redirects to another place"):
            ask()


@pytest.mark.parametrize("key", ["/lead.jpg", "folder/", "a//b.jpg", "a/../b.jpg"])
def test_obstore_refuses_a_key_that_it_would_take_for_another(local_servers, key):
    credentials, bucket = local_servers.aws()
    S3Storage(bucket, credentials).write(key, b"abc")
    with pytest.raises(MisconfiguredError, match="use the client boto3"):
        S3Storage(bucket, credentials, "obstore").read(key)


def test_s3torchconnector_counts_the_parts_of_a_large_object(local_servers):
    credentials, bucket = local_servers.aws()
    storage = S3Storage(bucket, credentials, "s3torchconnector")
    content = os.urandom(2 * 1024 * 1024) * 9
    storage.write("large.bin", content)
    storage.meter.take()
    for listed_bytes in (len(content), None):
        assert storage.read("large.bin", listed_bytes) == content
        assert storage.meter.take().requests["GET"] == 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_is_not_installed_is_named_with_its_install_line(monkeypatch, client):
    import sys

    from dnnbench.storage.s3 import client_class

    monkeypatch.delitem(sys.modules, CLIENTS[client].partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(ConfigError, match=f"pip install {client}$"):
        client_class(client)


@pytest.mark.parametrize("client", CLIENTS)
def test_keys_come_from_the_aws_chain(local_servers, monkeypatch, client):
    credentials, bucket = local_servers.aws()
    S3Storage(bucket, credentials).write("chain.bin", b"abc")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key.get_secret_value())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key.get_secret_value())
    storage = S3Storage(bucket, S3Credentials(endpoint=credentials.endpoint), client)
    assert storage.read("chain.bin") == b"abc"


class Listed:
    """In the place of a client: ``pages(start_after)`` are its listing's."""

    server = endpoint = None

    def __init__(self, pages):
        self._pages = pages

    def pages(self, bucket, prefix, start_after):
        return self._pages(start_after)


def _listed(monkeypatch, pages):
    """A storage whose listings are these."""
    storage = S3Storage("b", S3Credentials(endpoint="http://127.0.0.1:9"), rules=AT_ONCE)
    monkeypatch.setattr(storage, "_connect", lambda endpoint: Listed(pages))
    return storage


def test_a_listing_that_breaks_off_is_begun_anew_after_its_last_key(monkeypatch):
    keys, asked = [f"{i:03d}" for i in range(20)], []

    def pages(start_after):
        asked.append(start_after)
        later = [key for key in keys if key > start_after]
        for number, start in enumerate(range(0, len(later), 3)):
            if number == 2 and len(asked) < 4:
                raise TransientError("aws", "k/", "broke off")
            yield [Entry(key, 1) for key in later[start : start + 3]]

    storage = _listed(monkeypatch, pages)
    assert [entry.key for entry in storage.list("")] == keys
    assert asked == ["", "005", "011", "017"]
    assert storage.meter.take().retries == 3


@pytest.mark.parametrize("pages", [[["b", "a"]], [["b"], ["a"]], [["a", "d", "b", "e"]]])
def test_a_listing_in_no_order_is_not_begun_anew(monkeypatch, pages):
    def broken(start_after):
        yield from ([Entry(key, 1) for key in page] for page in pages)
        raise TransientError("aws", "k/", "broke off")

    storage = _listed(monkeypatch, broken)
    with pytest.raises(CorruptError, match="broke off, in a listing without order"):
        list(storage.list(""))
    assert storage.meter.take().retries == 0


@pytest.mark.parametrize("period", [1, 2])
def test_a_listing_that_goes_round_in_circles_ends(monkeypatch, period):
    def endless(start_after):
        for number in itertools.count():
            yield [Entry(f"{number % period}{letter}", 1) for letter in "ab"]

    with pytest.raises(CorruptError, match="comes to the page from 0a to 0b again"):
        list(_listed(monkeypatch, endless).list(""))


def _page(keys, truncated, token="", size="1"):
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    return (
        f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
        f"<Prefix></Prefix><KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>{truncated}</IsTruncated>{token}{contents}</ListBucketResult>"
    )


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "body",
    [
        # As a server answers that knows only the first version of ListObjects.
        _page([f"k/{i:04}.jpg" for i in range(1000)], "true"),
        # Pages without end, and without a key.
        _page([], "true", "<NextContinuationToken>t</NextContinuationToken>"),
        _page(["k/1.jpg"], "false").replace("<Key>k/1.jpg</Key>", ""),
        _page(["k/1.jpg"], "false", size="-1"),
        _page(["k/1.jpg"], "false", size="9" * 20),
    ],
    ids=["version 1", "endless", "nameless", "negative", "too large"],
)
def test_what_is_no_whole_listing_is_an_error(answering_server, client, body):
    credentials = S3Credentials(endpoint=answering_server(200, body), access_key="a", secret_key="s")
    rules = Requests(back_off_s=0, connect_timeout_s=1, read_timeout_s=1, total_timeout_s=1)
    with pytest.raises(StorageError):
        list(S3Storage("b", credentials, client, rules=rules).list("k/"))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_whole_listing_of_one_full_page_is_none(answering_server, client):
    keys = [f"k/{i:04}.jpg" for i in range(1000)]
    credentials = S3Credentials(endpoint=answering_server(200, _page(keys, "false")), access_key="a", secret_key="s")
    storage = S3Storage("b", credentials, client, rules=AT_ONCE)
    assert [entry.key for entry in storage.list("k/")] == keys


def test_a_stream_gives_results_in_the_order_asked_for_and_holds_few():
    storage = FsStorage()
    begun = []

    def call(item):
        begun.append(item)
        return -item

    stream = storage.stream(call, 3)
    stream.ask(range(20))
    assert stream.take() == 0
    stream.ask([100])
    assert [stream.take() for _ in range(5)] == [-1, -2, -3, -4, -5]
    # Six were taken, and twice three may be begun beyond them.
    assert max(begun) < 6 + 6
    assert [stream.take() for _ in range(15)] == [*range(-6, -20, -1), -100]
    with pytest.raises(LookupError, match="nothing was asked for"):
        stream.take()
    stream.stop()


def test_a_stream_raises_an_error_in_its_place_and_goes_on():
    storage = FsStorage()
    stream = storage.stream(lambda item: 1 // item, 2)
    stream.ask([1, 0, 1])
    assert stream.take() == 1
    with pytest.raises(ZeroDivisionError):
        stream.take()
    assert stream.take() == 1
    stream.ask([1] * 100)
    stream.stop()


@pytest.mark.parametrize("stopped", [True, False])
def test_a_stream_that_is_let_go_leaves_no_thread(stopped):
    before = set(threading.enumerate())
    storage = FsStorage()
    stream = storage.stream(lambda item: item, 4)
    stream.ask(range(8))
    assert stream.take() == 0
    readers = [one for one in threading.enumerate() if one not in before]
    if stopped:
        stream.stop()
        storage.close()
    del stream, storage
    gc.collect()
    for reader in readers:
        reader.join(10)
    assert len(readers) == 4
    assert not any(reader.is_alive() for reader in readers)

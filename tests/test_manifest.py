"""Checksums: the manifest that sha256sum reads, what is held against it in every way to read, and what is refused."""

import base64
import hashlib
import http.server
import json
import os
import pickle
import shutil
import subprocess
import threading
import uuid
import zlib
from hashlib import sha256

import numpy as np
import pytest
from fakes import LABELS, MemoryStorage, image_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnnbench.__main__ import main
from dnnbench.catalog import CatalogError, list_catalog
from dnnbench.config import S3Credentials, expand_settings
from dnnbench.datasets.samples import ListedKey
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.errors import MeasurementError
from dnnbench.manifest import NAME, check_verifiable, decode, encode, expecting, read_manifest
from dnnbench.storage import CorruptError, MisconfiguredError
from dnnbench.storage.base import OF_SERVER
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.held import HeldStorage
from dnnbench.storage.s3 import CLIENTS, S3Storage
from dnnbench.training import torch_build
from dnnbench.workloads import Loading, Reading

PATHS = st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path and not path.startswith(b"./"))


# -- the file ----------------------------------------------------------------------------------------


@given(st.dictionaries(PATHS, st.binary(min_size=32, max_size=32)))
@example({b"a\nb": bytes(32), b"a\\nb": bytes(32), b"\\": bytes(32), b"\r": bytes(32), b" *x": bytes(32)})
def test_what_is_written_is_read_again_sorted_by_path(digests):
    assert list(decode(encode(digests))) == sorted(digests.items())


ODD_NAMES = ["plain.jpg", "with blank.jpg", " *.jpg", "new\nline.jpg", "back\\slash.jpg", "\\n.jpg", "日.jpg", "#.jpg"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_reads_ours_and_we_read_its(tmp_path):
    contents = {
        os.fsencode(name): os.fsencode(name) * 3 for name in [*ODD_NAMES, os.fsdecode(b"caf\xe9.jpg"), "cr\r.jpg"]
    }
    for name, content in contents.items():
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    digests = {name: sha256(content).digest() for name, content in contents.items()}
    (tmp_path / NAME).write_bytes(encode(digests))
    checked = subprocess.run(["sha256sum", "--strict", "-c", NAME], cwd=tmp_path, capture_output=True, check=False)  # noqa: S607
    # Only newer ones escape a carriage return, and the older ones then take "\r" for its two characters.
    wrong = [line for line in checked.stdout.splitlines() if not line.endswith(b": OK") and b"cr" not in line]
    assert wrong == []
    (tmp_path / NAME).unlink()
    command = ["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"]
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert dict(decode(theirs)) == digests


BAD_LINES = {
    "no checksum": b"roses/a.jpg\n",
    "an MD5": b"d41d8cd98f00b204e9800998ecf8427e  a.jpg\n",
    "one blank": b"0" * 64 + b" a.jpg\n",
    "no path": b"0" * 64 + b"  \n",
    "capitals": b"A" * 64 + b"  a.jpg\n",
    "an error page": b"<html>not here</html>",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_what_is_no_manifest_is_one_line_that_names_it(case):
    storage = MemoryStorage({f"s/{NAME}": encode({b"roses/b.jpg": bytes(32)}) + BAD_LINES[case]})
    with pytest.raises(
        CorruptError, match=rf"s/{NAME}: is no manifest: line 2 .* python -m dnnbench manifest"
    ) as caught:
        read_manifest(storage, "s/")
    assert "\n" not in str(caught.value)


def test_a_manifest_may_be_in_any_order_and_tell_something_twice_but_not_two_things():
    lines = [b"%064x  ./roses/%d.jpg\n" % (number, number) for number in (3, 1, 2, 1, 1)]
    manifest = read_manifest(MemoryStorage({NAME: b"".join(lines)}), "")
    assert list(manifest.names) == [b"roses/1.jpg", b"roses/2.jpg", b"roses/3.jpg"]
    assert [int.from_bytes(bytes(row), "big") for row in manifest.sha256] == [1, 2, 3]
    with pytest.raises(CorruptError, match=r"two lines differ about 'roses/1\.jpg'"):
        read_manifest(MemoryStorage({NAME: b"".join([*lines, b"f" * 64 + b"  roses/1.jpg"])}), "")


# -- the catalog -------------------------------------------------------------------------------------


def _data_set(sources=("one/", "two/")):
    """Images with manifests. In BMP one byte more or less is an image still."""
    contents = {
        f"{source}{label}/{name}": image_bytes(len(source + label + name), (9, 7), "BMP")
        for source in sources
        for label in LABELS
        for name in ("a.png", "b c.png", "deep/日.png", "z\n.png")
    }
    return contents | _manifests(contents, sources)


def _manifests(contents, sources):
    def of(source):
        below = {key[len(source) :]: data for key, data in contents.items() if key.startswith(source)}
        return encode({key.encode(): sha256(data).digest() for key, data in below.items()})

    return {source + NAME: of(source) for source in sources}


def _catalog(storage, sources=("one/", "two/"), verify="checksum"):
    return expecting(verify, storage, sources, list_catalog(storage, sources, LABELS, 2))


def test_each_sample_has_its_own_checksum_whatever_becomes_of_the_catalog():
    contents = _data_set()
    catalog = _catalog(MemoryStorage(contents))
    some = catalog.select(np.array([11, 3, 4]))
    parts = catalog.split(0.5, 0)
    for one in (catalog, some, *parts, pickle.loads(pickle.dumps(catalog)), pickle.loads(pickle.dumps(some))):  # noqa: S301
        assert len(one)
        for index, (key, size_bytes, checksum) in enumerate(one.items(range(len(one)))):
            assert (size_bytes, checksum) == (len(contents[key]), sha256(contents[key]).digest())
            assert one.item(index) == (key, size_bytes, checksum)


def test_a_checksum_takes_32_bytes_an_object_and_changes_no_hash():
    storage = MemoryStorage(_data_set())
    plain, unchecked, checked = (_catalog(storage, verify=verify) for verify in ("length", "none", "checksum"))
    assert checked.nbytes == plain.nbytes + 32 * len(plain)
    assert unchecked.nbytes == plain.nbytes
    assert {one.hash() for one in (plain, unchecked, checked)} == {plain.hash()}
    assert plain.item(0) == (plain.key(0), plain.size_bytes(0))
    assert unchecked.item(0) == (plain.key(0), None)


def test_an_object_that_the_manifest_lacks_is_named():
    contents = _data_set()
    contents["two/roses/aa.png"] = b"new"
    with pytest.raises(
        CatalogError, match=r"two/roses/aa\.png.*is not in the manifest two/dnnbench\.sha256.*--overwrite"
    ):
        _catalog(MemoryStorage(contents))


@pytest.mark.parametrize("name", ["a.png", "b c.png", "z\n.png"])
def test_an_object_that_the_listing_lacks_is_named_unless_only_a_part_was_listed(name):
    contents = _data_set()
    del contents[f"one/tulips/{name}"]
    storage = MemoryStorage(contents)
    with pytest.raises(CatalogError, match="was not listed, but is in the manifest one/") as caught:
        _catalog(storage)
    assert repr(f"one/tulips/{name}") in str(caught.value)
    listed = list_catalog(storage, ["one/", "two/"], LABELS, 1)
    assert expecting("checksum", storage, ["one/", "two/"], listed, whole=False).first_without_sha256() is None


def test_what_is_no_sample_may_be_in_the_manifest_and_other_categories_too():
    contents = _data_set(("one/",))
    more = {
        "one/roses/.hidden.png": b"x",
        "one/roses/notes.txt": b"x",
        "one/roses/empty.png": b"",
        "one/weeds/a.png": b"x",
    }
    contents |= more
    contents |= _manifests({key: data for key, data in contents.items() if not key.endswith(NAME)}, ("one/",))
    for gone in (set(), set(more)):
        left = {key: data for key, data in contents.items() if key not in gone}
        assert len(_catalog(MemoryStorage(left), ("one/",))) == 8


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_keys_get_the_checksums_of_their_own_content(data):
    names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
    keys = data.draw(st.sets(st.tuples(st.sampled_from(LABELS), names), max_size=12)) | {
        (label, "x") for label in LABELS
    }
    contents = {f"{label}/-{name}.png": os.urandom(3) for label, name in keys}
    digests = {key.encode(): sha256(content).digest() for key, content in contents.items()}
    lines = data.draw(st.permutations(encode(digests).splitlines(keepends=True)))
    storage = MemoryStorage(contents | {NAME: b"".join(lines)})
    catalog = _catalog(storage, ("",))
    read = {catalog.key(i): storage.fetch(*catalog.item(i)) for i in range(len(catalog))}
    assert read == {key: content for key, content in contents.items() if "/." not in key}


# -- reading -----------------------------------------------------------------------------------------


KEY = "two/tulips/b c.png"


def _flipped(contents):
    changed = bytearray(contents[KEY])
    changed[-20] ^= 1
    return contents | {KEY: bytes(changed)}


def _serial(storage, catalog):
    return Reading(storage, catalog, None, 0)


def _concurrent(storage, catalog):
    return Reading(storage, catalog, 3, 0)


def _loader(access, *arguments):
    def make(storage, catalog):
        fixed = [
            "framework.PyTorch.DataLoader.num_workers=0",
            "framework.batch_size=3",
            f"dataset.label=[{','.join(LABELS)}]",
        ]
        config = expand_settings({}, [*fixed, *arguments])[0].config
        return Loading(storage, catalog, torch_build.make_loader(config, storage, catalog, access), "load")

    return make


PLAIN, CONCURRENT = "framework.PyTorch.reading=plain", "framework.PyTorch.reading=concurrent"
WAYS = {
    "serial": _serial,
    "concurrent": _concurrent,
    **{
        f"{access} {how.rpartition('=')[2]}": _loader(access, how)
        for access in ("random", "sequential")
        for how in (PLAIN, CONCURRENT)
    },
    "workers": _loader("random", CONCURRENT, "framework.PyTorch.DataLoader.num_workers=2"),
    "own class": _loader("random", PLAIN, "dataset.name=test_manifest:Own"),
    "own class, concurrent": _loader("sequential", CONCURRENT, "dataset.name=test_manifest:Own"),
}


class Own(RandomAccessDataset):
    """As the README has it: it hands the key on."""

    def read_s3_object(self, image):
        return self.decode(self.storage.read(image))


class Stripping(RandomAccessDataset):
    """It hands on a plain string."""

    def read_s3_object(self, image):
        return self.decode(self.storage.read(str(image), image.size_bytes))


class PastTheStorage(RandomAccessDataset):
    """It opens its files by itself."""

    def read_file_system_data(self, image):
        with open(image, "rb") as file:
            return self.decode(file.read())


def _round(workload):
    workload.prepare(0)
    try:
        workload.run()
        return workload.account()
    finally:
        if hasattr(workload, "loader"):
            workload.loader.close()


@pytest.mark.parametrize("verify", ["none", "length", "checksum"])
@pytest.mark.parametrize("way", WAYS)
def test_a_flipped_byte_is_an_error_in_every_way_to_read_where_checksums_are_asked_for(way, verify):
    contents = _data_set()
    catalog = _catalog(MemoryStorage(contents), verify=verify)
    tally = _round(WAYS[way](MemoryStorage(contents, name="aws"), catalog)).tally
    against = {"none": {}, "length": {"length": 16}, "checksum": {"manifest": 16}}
    assert tally.verified == against[verify]
    broken = MemoryStorage(_flipped(contents), name="aws")
    if verify != "checksum":
        assert len(_round(WAYS[way](broken, catalog)).tally.latency_ns) == 16
        return
    with pytest.raises(CorruptError, match=rf"^aws \(memory\): {KEY}: the content's SHA-256 is") as caught:
        _round(WAYS[way](broken, catalog))
    assert "\n" not in str(caught.value)


def test_without_a_check_of_each_object_the_total_is_still_held_against_the_catalog():
    contents = _data_set()
    catalog = _catalog(MemoryStorage(contents), verify="none")
    longer = MemoryStorage(contents | {KEY: contents[KEY] + b"x"})
    with pytest.raises(MeasurementError, match="bytes were read, but the catalog says"):
        _round(Reading(longer, catalog, None, 0))
    with pytest.raises(CorruptError, match="when it was listed"):
        _round(Reading(longer, catalog.expecting("length"), None, 0))


def test_a_corrupt_read_is_no_figure():
    contents = _data_set()
    storage = MemoryStorage(_flipped(contents))
    with pytest.raises(CorruptError):
        storage.read(KEY, sha256=sha256(contents[KEY]).digest())
    tally = storage.meter.take()
    assert (len(tally.latency_ns), tally.errors, tally.verified) == (0, 1, {})


def test_a_dataset_that_strips_the_key_of_its_checksum_gives_no_figure():
    contents = _data_set()
    catalog = _catalog(MemoryStorage(contents))
    workload = _loader("random", "dataset.name=test_manifest:Stripping")(MemoryStorage(contents, name="aws"), catalog)
    with pytest.raises(MeasurementError, match=r"0 of 16 objects were held against a checksum.*self\.storage\.read"):
        _round(workload)


def test_what_is_read_past_the_storage_gives_no_figure(tmp_path):
    contents = _data_set(("one/",))
    for key, data in contents.items():
        FsStorage().write(f"{tmp_path}/{key}", data)
    catalog = _catalog(FsStorage(), (f"{tmp_path}/one/",))
    workload = _loader("random", "dataset.name=test_manifest:PastTheStorage")(FsStorage(), catalog)
    with pytest.raises(MeasurementError, match="0 of 8 objects were held against a checksum"):
        _round(workload)


def test_what_is_held_in_memory_was_verified_and_is_again():
    contents = _data_set()
    storage = MemoryStorage(contents)
    catalog = _catalog(storage)
    held = HeldStorage(storage, catalog.items(range(len(catalog))), 2)
    assert storage.meter.take().verified["manifest"] == len(catalog)
    assert _round(Reading(held, catalog, 2, 0)).tally.verified == {"manifest": len(catalog)}
    assert held.read(KEY, len(contents[KEY]), OF_SERVER) == contents[KEY]
    with pytest.raises(CorruptError, match=KEY):
        HeldStorage(MemoryStorage(_flipped(contents)), catalog.items(range(len(catalog))), 2)


def test_a_listed_key_travels_with_what_it_is_held_against():
    key = ListedKey("k", 3, ("k", 3, b"x" * 32))
    for copied in (key, pickle.loads(pickle.dumps(key))):  # noqa: S301 (our own bytes)
        assert (copied, copied.size_bytes, copied.expected) == ("k", 3, ("k", 3, b"x" * 32))
    assert ListedKey("k", 3).expected == ("k", 3, None)
    assert ListedKey("k", 3, ("k", None)).expected == ("k", None, None)


# -- the server's checksum ---------------------------------------------------------------------------


@pytest.fixture
def bearing_server():
    """A function (content, headers) -> a storage over a server that answers with them; by the client's name."""
    running = []

    def start(content, headers, client="boto3"):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.headers)
                self.send_response(200)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                """Nothing: the test's output is pytest's."""

        asked = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        url = f"http://127.0.0.1:{server.server_port}"
        return S3Storage("b", S3Credentials(endpoint=url, access_key="a", secret_key="b"), client), asked

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


CONTENT = b"some content" * 100
CRC32 = {"x-amz-checksum-crc32": base64.b64encode(zlib.crc32(CONTENT).to_bytes(4, "big")).decode()}
SHA256 = {"x-amz-checksum-sha256": base64.b64encode(sha256(CONTENT).digest()).decode()}


@pytest.mark.parametrize("headers", [CRC32, SHA256], ids=["crc32", "sha256"])
def test_boto3_holds_what_it_reads_against_the_servers_checksum(bearing_server, headers):
    storage, asked = bearing_server(CONTENT, headers)
    assert storage.read("k", len(CONTENT), OF_SERVER) == CONTENT
    tally = storage.meter.take()
    assert (tally.verified, dict(tally.requests)) == ({"server": 1}, {"GET": 1})
    assert asked[0]["x-amz-checksum-mode"] == "ENABLED"
    storage, _ = bearing_server(CONTENT[:-1] + b"?", headers)
    with pytest.raises(CorruptError, match=r"s3://b/k: the content differs from the checksum that the server has"):
        storage.read("k", len(CONTENT), OF_SERVER)
    assert storage.meter.take().verified == {}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        # An MD5, as many servers have it; and what a server makes of parts, which is of no content.
        {"ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"'},  # noqa: S324
        {"x-amz-checksum-crc32": CRC32["x-amz-checksum-crc32"] + "-2", "x-amz-checksum-type": "COMPOSITE"},
    ],
    ids=["nothing", "an ETag", "of parts"],
)
def test_an_answer_without_a_checksum_of_the_content_is_never_passed(bearing_server, headers):
    storage, _ = bearing_server(CONTENT, headers)
    with pytest.raises(MisconfiguredError, match=r"s3://b/k: there is no checksum .*python -m dnnbench manifest"):
        storage.read("k", len(CONTENT), OF_SERVER)
    assert storage.meter.take().verified == {}
    assert storage.read("k", len(CONTENT)) == CONTENT


@pytest.mark.parametrize("client", [client for client in CLIENTS if client != "boto3"])
def test_a_client_that_asks_no_server_says_so(bearing_server, client):
    storage, _ = bearing_server(CONTENT, CRC32 | SHA256, client)
    with pytest.raises(MisconfiguredError, match=r"s3://b/k: there is no checksum .*boto3 alone") as caught:
        storage.read("k", len(CONTENT), OF_SERVER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["aws", "dss"])
def test_without_a_manifest_objects_are_held_against_what_the_server_has_of_them(local_servers, name):
    import boto3

    aws, bucket = local_servers.aws()
    credentials = aws if name == "aws" else local_servers.dss()
    storage = S3Storage(bucket, aws) if name == "aws" else DssStorage(credentials)
    source = f"{uuid.uuid4()}/"
    contents = {f"{source}{label}/{i}.png": image_bytes(i, (5, 5)) for label in LABELS for i in range(3)}
    for key, data in contents.items():
        endpoint, where = credentials.endpoint, bucket
        if name == "dss":
            cluster, (endpoint, *_) = storage.locate(key)
            where = cluster.bucket
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=credentials.access_key.get_secret_value(),
            aws_secret_access_key=credentials.secret_key.get_secret_value(),
        )
        client.put_object(Bucket=where, Key=key, Body=data, ChecksumAlgorithm="SHA256")
        keeps = "ChecksumSHA256" in client.head_object(Bucket=where, Key=key, ChecksumMode="ENABLED")
    catalog = _catalog(storage, (source,))
    check_verifiable(storage, catalog)
    if keeps:
        assert _round(Reading(storage, catalog, 3, 0)).tally.verified == {"server": 6}
    # Written without one; older servers keep none at all.
    storage.write(f"{source}roses/1.png", contents[f"{source}roses/1.png"])
    with pytest.raises(MisconfiguredError, match=r"roses/1\.png: there is no checksum" if keeps else "no checksum"):
        _round(Reading(storage, catalog, 3, 0))
    storage.close()


def test_where_neither_is_to_be_had_the_first_object_is_named_before_anything_is_measured():
    storage = MemoryStorage({key: data for key, data in _data_set().items() if key != f"two/{NAME}"})
    catalog = _catalog(storage)
    with pytest.raises(
        MisconfiguredError, match=r"two/roses/a\.png: there is no checksum.*python -m dnnbench manifest"
    ):
        check_verifiable(storage, catalog)
    with pytest.raises(MisconfiguredError, match="png: there is no checksum"):
        _round(Reading(storage, catalog, None, 0))
    check_verifiable(storage, catalog.expecting("length"))


# -- the commands ------------------------------------------------------------------------------------


SMALL = ["--images-per-category", "2", "--median-bytes", "2000"]


def _labelled(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"dataset": {"label": ["roses", "tulips"]}}')
    return ["--config", str(path)]


def _sound(folder):
    """Whether each source's manifest is of just what is there."""
    for source in folder.iterdir():
        there = {
            os.fsencode(path.relative_to(source)): sha256(path.read_bytes()).digest() for path in source.rglob("*.jpg")
        }
        assert dict(decode((source / NAME).read_bytes())) == there
        assert there


def test_generate_writes_manifests_and_keeps_them_up_to_date(tmp_path, capsys):
    where, options = tmp_path / "d", _labelled(tmp_path)
    assert main(["generate", str(where), *SMALL, *options]) == 0
    _sound(where)
    before = (where / "source1" / NAME).stat()
    assert main(["generate", str(where), *SMALL, *options]) == 0
    assert (where / "source1" / NAME).stat().st_mtime_ns == before.st_mtime_ns
    more = ["--images-per-category", "3", "--median-bytes", "2000"]
    assert main(["generate", str(where), *more, *options]) == 0
    _sound(where)
    # Objects that were there already, and no manifest.
    (where / "source2" / NAME).unlink()
    assert main(["generate", str(where), *more, *options]) == 0
    _sound(where)
    # What it says of others stays, and what it says of an object that another was made over does not.
    own = b"%064x  roses/own.jpg\n" % 7
    (where / "source1" / NAME).write_bytes(own + (where / "source1" / NAME).read_bytes())
    assert main(["generate", str(where), *more, *options, "--seed", "1", "--overwrite"]) == 0
    lines = (where / "source1" / NAME).read_bytes()
    assert own in lines
    (where / "source1" / NAME).write_bytes(lines.replace(own, b""))
    _sound(where)
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["fs", "aws", "dss"])
def test_manifest_says_of_what_is_there_what_generate_said_and_copy_brings_it(kind, local_servers, tmp_path, capsys):
    aws, bucket = local_servers.aws()
    account = {key: getattr(aws, key).get_secret_value() for key in ("access_key", "secret_key")}
    s3 = {
        "bucket": bucket,
        "aws": {"credentials": {**account, "endpoint": aws.endpoint}},
        "dss": {"credentials": {**account, "endpoint": local_servers.dss().endpoint}},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"storage": {"s3": s3}, "dataset": {"label": list(LABELS)}}))
    options = ["--config", str(path)]
    assert main(["generate", f"{tmp_path}/made", *SMALL, *options]) == 0
    expected = (tmp_path / "made/source1" / NAME).read_bytes()
    unique = str(uuid.uuid4())
    place = {"fs": f"{tmp_path}/copied", "aws": f"s3://{bucket}/{unique}", "dss": f"dss:{unique}"}[kind]
    assert main(["copy", f"{tmp_path}/made/source1", place, *options]) == 0
    assert main(["copy", place, f"{tmp_path}/back", *options]) == 0
    assert (tmp_path / "back" / NAME).read_bytes() == expected
    capsys.readouterr()
    assert main(["manifest", place, *options]) == 2
    assert f"{NAME}: exists; use --overwrite" in capsys.readouterr().err
    (tmp_path / "made/source1" / NAME).unlink()
    assert main(["manifest", place, f"{tmp_path}/made/source1", "--overwrite", *options]) == 0
    assert capsys.readouterr().out.count("the checksums of 4 objects") == 2
    assert main(["copy", place, f"{tmp_path}/again", *options]) == 0
    assert (tmp_path / "again" / NAME).read_bytes() == (tmp_path / "made/source1" / NAME).read_bytes() == expected


def test_a_manifest_of_nothing_is_refused(tmp_path, capsys):
    assert main(["manifest", str(tmp_path)]) == 2
    assert "nothing to make a manifest of" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_places_below_the_current_folder_keep_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roses").mkdir()
    (tmp_path / "roses/a.jpg").write_bytes(b"a")
    for place in (".", "./", "./."):
        (tmp_path / NAME).unlink(missing_ok=True)
        assert main(["manifest", place]) == 0
        assert dict(decode((tmp_path / NAME).read_bytes())) == {b"roses/a.jpg": sha256(b"a").digest()}
    assert main(["copy", "./roses", "./to/there"]) == 0
    (tmp_path / "roses/a.jpg").write_bytes(b"another")
    # What is there is seen to be there.
    assert main(["copy", "./roses", "./to/there"]) == 2
    assert (tmp_path / "to/there/a.jpg").read_bytes() == b"a"


def test_check_holds_against_the_manifest_and_says_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "c.json"
    options = '"dataset": {"label": ["roses", "tulips"], "verify": "checksum"}, "framework": {"name": "PyTorch"}'
    steps = '"execution": {"steps": {"training": false, "inference": false}}'
    path.write_text(f'{{"storage": {{"fs": {{"data_dir": ["{tmp_path}/d/source1"]}}}}, {options}, {steps}}}')
    assert main(["generate", f"{tmp_path}/d", *SMALL, "--config", str(path)]) == 0
    assert main(["check", str(path)]) == 0
    first = tmp_path / "d/source1/roses/000000.jpg"
    content = first.read_bytes()
    first.write_bytes(content[:-1] + b"?")
    assert main(["check", str(path)]) == 1
    assert "roses/000000.jpg: the content's SHA-256 is" in capsys.readouterr().out
    (tmp_path / "d/source1" / NAME).unlink()
    assert main(["check", str(path)]) == 1
    assert "roses/000000.jpg: there is no checksum" in capsys.readouterr().out

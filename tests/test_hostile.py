"""Data that nobody would wish for: each has a defined outcome, which docs/hostile-data.md tells too."""

import contextlib
import io
import os
import re
import socket
import struct
import threading
import uuid
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnnbench.catalog import list_catalog
from dnnbench.images import DecodeError, decode
from dnnbench.storage import CorruptError, DeniedError, MisconfiguredError, NotFoundError, StorageError, page_cache
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.dss_placement import murmur_hash_64a, place, weight
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.s3 import CLIENTS, S3Storage

DOCS = Path(__file__).parent.parent / "docs" / "hostile-data.md"
RED, BLUE = (200, 30, 30), (30, 30, 200)


def told(section):
    """The rows of a table in the docs: what is in the first column -> what is in the second."""
    text = DOCS.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|", text, re.MULTILINE)[1:])


# -- images ------------------------------------------------------------------------------------------


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(colour=RED, mode="RGB", size=(16, 12)):
    return Image.new("RGB", size, colour).convert(mode)


def frames(form):
    return encoded(plain(), form, save_all=True, append_images=[plain(BLUE)])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, pixel, bits=8, kind=0, extra=b""):
    """A PNG of one pixel's bytes, whatever Pillow could write; for a large ``size`` its data end early."""
    width, height = size
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    rows = (b"\0" + pixel * min(width, 100)) * min(height, 100)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def resized(data, at, form, size):
    """An image whose header tells another size."""
    return data[:at] + struct.pack(form, *size) + data[at + struct.calcsize(form) :]


def jpeg(size=None, **options):
    data = encoded(plain(**({"mode": options.pop("mode")} if "mode" in options else {})), "JPEG", quality=95, **options)
    return data if size is None else resized(data, data.index(b"\xff\xc0") + 5, ">HH", size)


def halves():
    """The upper half red: turned, its first row would be red and blue."""
    picture = Image.new("RGB", (16, 16), BLUE)
    picture.paste(RED, (0, 0, 16, 8))
    return picture


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(halves(), "JPEG", quality=95, exif=exif, subsampling=0)


GREY16 = struct.pack(">H", 0x6412)
TOO_LARGE, NO_IMAGE, NOT_DECODED = "is too large an image", "is no image of JPEG, PNG", "cannot be decoded"
HTML = b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>\n"
# Name -> (bytes, the colour that comes out, or what the error says).
IMAGES = {
    "decompression bomb: a PNG of 50,000 x 50,000": (png((50_000, 50_000), b"\0", 1), TOO_LARGE),
    "a JPEG of 65,500 x 65,500": (jpeg((65_500, 65_500)), TOO_LARGE),
    "a GIF of 65,535 x 65,535": (resized(encoded(plain(), "GIF"), 6, "<HH", (65_535, 65_535)), TOO_LARGE),
    "a BMP of negative width": (resized(encoded(plain(), "BMP"), 18, "<i", (-5,)), TOO_LARGE),
    "an image of no height": (png((10, 0), b"\0"), NO_IMAGE),
    "decompression bomb: a text in a PNG": (
        png((4, 4), b"\x64", extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20)))), NOT_DECODED,
    ),
    "decompression bomb: a colour profile in a PNG": (
        png((4, 4), b"\x64", extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 << 20)))), NOT_DECODED,
    ),
    "truncated JPEG": (jpeg()[:-40], NOT_DECODED),
    "truncated PNG": (encoded(plain(), "PNG")[:-20], NOT_DECODED),
    "truncated PNG, its pixels all there": (encoded(plain(), "PNG")[:-1], NOT_DECODED),
    "truncated GIF, the first frame all there": (frames("GIF")[:-20], RED),
    "progressive JPEG": (jpeg(progressive=True), RED),
    "progressive JPEG, truncated": (jpeg(progressive=True)[:-40], NOT_DECODED),
    "CMYK JPEG": (jpeg(mode="CMYK"), RED),
    "CMYK TIFF": (encoded(plain(mode="CMYK"), "TIFF"), RED),
    "16-bit grey PNG": (png((9, 7), GREY16, 16), (0x64,) * 3),
    "16-bit grey PNG with alpha": (png((9, 7), GREY16 + b"\0\0", 16, 4), (0x64,) * 3),
    "16-bit colour PNG": (png((9, 7), struct.pack(">HHH", *(256 * part + 255 for part in RED)), 16, 2), RED),
    "16-bit grey TIFF": (encoded(Image.fromarray(np.full((7, 9), 0x6412, np.uint16)), "TIFF"), (0x64,) * 3),
    "32-bit TIFF, whole numbers": (encoded(Image.new("I", (9, 7), 100), "TIFF"), "has pixels of 32 bits"),
    "32-bit TIFF, floating point": (encoded(Image.new("F", (9, 7), 0.5), "TIFF"), "has pixels of 32 bits"),
    "Lab TIFF": (encoded(Image.new("LAB", (9, 7)), "TIFF"), NOT_DECODED),
    "black and white": (encoded(Image.new("1", (9, 7), 1), "PNG"), (255, 255, 255)),
    "palette": (encoded(halves().quantize(4), "PNG"), RED),
    "palette with a transparent colour": (encoded(halves().quantize(4), "PNG", transparency=0), RED),
    "palette with degrees of transparency": (
        encoded(halves().quantize(4), "PNG", transparency=bytes([128, 9])), RED,
    ),
    "transparent PNG": (encoded(Image.new("RGBA", (9, 7), (*RED, 0)), "PNG"), RED),
    "transparent WebP": (encoded(Image.new("RGBA", (9, 7), (*RED, 0)), "WEBP", lossless=True, exact=True), RED),
    "animated GIF": (frames("GIF"), RED),
    "animated WebP": (frames("WEBP"), RED),
    "animated PNG": (frames("PNG"), RED),
    "TIFF of several pages": (frames("TIFF"), RED),
    "JPEG of several pictures (MPO)": (frames("MPO"), RED),
    "orientation in EXIF": (turned(), RED),
    "PNG that is called .jpg": (encoded(plain(), "PNG"), RED),
    "bytes behind the image": (jpeg() + b"\0" * 1000, RED),
    "zero bytes": (b"", NO_IMAGE),
    "HTML error page that is called .jpg": (HTML, NO_IMAGE),
    "EPS, which Pillow would hand to Ghostscript": (encoded(plain(), "EPS"), NO_IMAGE),
    "AVIF, or another format": (encoded(plain(), "AVIF"), NO_IMAGE),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("reduced", [False, True], ids=["full", "reduced"])
@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image_has_defined_pixels_or_an_error_that_says_why(name, reduced, colour):
    data, outcome = IMAGES[name]
    if isinstance(outcome, str):
        with pytest.raises(DecodeError, match=outcome) as caught:
            decode(data, (4, 4), colour, reduced)
        assert str(caught.value).isprintable()
        return
    pixels = decode(data, (4, 4), colour, reduced)
    assert pixels.shape == ((4, 4, 3) if colour else (4, 4))
    expected = np.array(outcome) if colour else np.dot(outcome, [0.299, 0.587, 0.114])
    # Of one that EXIF turns, the first row; JPEG and WebP lose a little.
    assert np.abs(pixels[0] - expected).max() <= 4


def test_an_orientation_that_was_applied_would_show():
    pixels = decode(turned(), (4, 4), colour=True)
    assert np.abs(pixels[3] - np.array(BLUE)).max() <= 4


def test_the_docs_tell_the_outcome_of_each_image():
    rows = told("Images")
    assert list(rows) == list(IMAGES)
    for name, (_, outcome) in IMAGES.items():
        assert rows[name].startswith("error") == isinstance(outcome, str), name


def test_what_pillow_raises_of_any_kind_is_a_decode_error(monkeypatch):
    class SomeError(Exception):
        pass

    def load(self):
        raise SomeError("first\nsecond")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(DecodeError, match=r"cannot be decoded \(first second\)"):
        decode(jpeg(), (2, 2))


# -- keys --------------------------------------------------------------------------------------------

# What obstore can name, and what a client that took it for another would read instead. "other" is a key that it
# lists under another name.
READ, REFUSED, OTHER = "read", "refused by obstore", "refused by obstore, which lists it without the slash"
# Name -> (key, outcome, keys that a careless client or server would take for the same).
KEYS = {
    "blanks": (" a  b.jpg ", READ, ["a b.jpg", "+a++b.jpg+", "%20a%20%20b.jpg%20"]),
    "plus": ("a+b.jpg", READ, ["a b.jpg", "a%2Bb.jpg"]),
    "percent": ("100%.jpg", READ, ["100%25.jpg"]),
    "what looks like an escape": ("a%20b%2Fc.jpg", READ, ["a b/c.jpg", "a%2520b%252Fc.jpg"]),
    "what ends a path in a URL": ("a?b#c;d&e=f.jpg", READ, ["a"]),
    "quotes, brackets, a backslash": ("a'\"<b>\\[c]{d}|^`.jpg", READ, ["a'\"<b>/[c]{d}|^`.jpg"]),
    "unicode": ("日本/é😀.jpg", READ, ["日本/e😀.jpg"]),
    "unicode that is not normalised": ("u\u0308.jpg", READ, ["\u00fc.jpg"]),
    "1,024 bytes": ("n/" * 100 + "é" * 100 + "x" * 583 + ".jpg", READ, ["n/" * 100 + "é" * 100 + "x" * 582 + ".jpg"]),
    "capital letters": ("A.jpg", READ, ["a.jpg"]),
    "a slash at the beginning": ("/a.jpg", OTHER, ["a.jpg"]),
    "a slash at the end": ("a.jpg/", OTHER, ["a.jpg"]),
    "an empty part": ("a//b.jpg", REFUSED, ["a/b.jpg"]),
    "the part ..": ("a/../b.jpg", REFUSED, ["b.jpg", "a/b.jpg"]),
    "the part .": ("a/./b.jpg", REFUSED, ["a/b.jpg"]),
    "a tab": ("a\tb.jpg", REFUSED, ["a b.jpg"]),
    "a carriage return": ("a\rb.jpg", REFUSED, ["a b.jpg", "ab.jpg"]),
    "a line break": ("a\nb.jpg", REFUSED, ["ab.jpg", "a b.jpg", "a"]),
}


def content(key):
    """Of one length for all keys, so that no length tells them apart."""
    return sha256(key.encode()).digest()


@pytest.fixture(scope="module")
def hostile_keys(local_servers):
    """A function from a storage's name and a row of `KEYS` to (its keys, of which the first is the row's; those that
    the server took), written once.
    """
    aws, bucket = local_servers.aws()
    writers = {"aws": S3Storage(bucket, aws), "dss": DssStorage(local_servers.dss())}
    filled = {}

    def fill(storage, name):
        if (storage, name) not in filled:
            key, _, twins = KEYS[name]
            # A leading slash is one only at the very beginning.
            folder = f"{str(uuid.uuid4())[:8]}/"
            folder = ("/" + folder, folder) if key.startswith("/") else (folder, folder)
            keys = [folder[0] + key.removeprefix("/"), *(folder[1] + twin for twin in twins)]
            if name == "1,024 bytes":
                keys = [one.replace("x" * len(folder[0]), "", 1) for one in keys]
            taken = []
            for one in keys:
                with contextlib.suppress(StorageError):
                    writers[storage].write(one, content(one))
                    taken.append(one)
            filled[storage, name] = keys, taken
        return filled[storage, name]

    yield fill
    for writer in writers.values():
        writer.close()


@pytest.fixture(scope="module", params=[f"{name}-{client}" for name in ("aws", "dss") for client in CLIENTS])
def reader(request, local_servers):
    name, client = request.param.split("-")
    if name == "aws":
        credentials, bucket = local_servers.aws()
        storage = S3Storage(bucket, credentials, client)
    else:
        storage = DssStorage(local_servers.dss(), client=client)
    yield storage
    storage.close()


def _one_line(error):
    assert str(error).isprintable()


@pytest.mark.parametrize("name", KEYS)
def test_a_hostile_key_is_read_right_or_refused_and_never_taken_for_another(name, reader, hostile_keys):
    keys, taken = hostile_keys(reader.name, name)
    refused = reader.client == "obstore" and KEYS[name][1] != READ
    for key in keys:
        # A mock that cannot take a key has no object of that name.
        if key not in taken or (refused and key == keys[0]):
            with pytest.raises((MisconfiguredError, NotFoundError)) as caught:
                reader.read(key, 32)
            _one_line(caught.value)
            assert "boto3" in str(caught.value) or key not in taken
        elif reader.client != "obstore" or KEYS[name][1] == READ or key == keys[1]:
            assert bytes(reader.read(key, 32)) == content(key)


@pytest.mark.parametrize("name", KEYS)
def test_a_listing_names_hostile_keys_right_or_is_refused(name, reader, hostile_keys):
    keys, taken = hostile_keys(reader.name, name)
    outcome = KEYS[name][1]
    for folder in {key[: key.index("/", 1) + 1] for key in taken}:
        below = sorted(key for key in taken if key.startswith(folder))
        if reader.client != "obstore" or outcome == READ or not {keys[0], "//"} & {*below, folder}:
            assert sorted(entry.key for entry in reader.list(folder)) == below
        elif outcome == OTHER:
            assert keys[0] not in [entry.key for entry in reader.list(folder)]
        else:
            with pytest.raises(MisconfiguredError, match=r"a key in this listing .* use the client boto3") as caught:
                list(reader.list(folder))
            _one_line(caught.value)


@pytest.mark.parametrize("name", KEYS)
def test_a_hostile_name_of_a_file_is_read_right(name, tmp_path):
    key, _, twins = KEYS[name]
    if any(part in ("", ".", "..") for part in key.split("/")):
        pytest.skip("no file can have this name")
    # A file's name has 255 bytes.
    keys = [
        re.sub(r"x{200,}", "x" * 40, f"{tmp_path}/{one}") for one in (key, *twins) if not one.startswith(("/", "a/../"))
    ]
    for one in keys:
        if not Path(one).is_dir():
            FsStorage().write(one, content(one))
    there = [one for one in dict.fromkeys(keys) if Path(one).is_file()]
    assert sorted(entry.key for entry in FsStorage().list(f"{tmp_path}/")) == sorted(there)
    for one in there:
        assert FsStorage().read(one, 32) == content(one)


def test_a_name_as_long_as_names_can_be_is_written_and_a_longer_one_refused(tmp_path):
    longest = f"{tmp_path}/{'x' * 251}.jpg"
    FsStorage().write(longest, b"abc")
    assert FsStorage().read(longest, 3) == b"abc"
    assert [entry.key for entry in FsStorage().list(f"{tmp_path}/")] == [longest]
    for call in (lambda: FsStorage().write(longest + "x", b""), lambda: FsStorage().read(longest + "x")):
        with pytest.raises(NotFoundError, match="too long"):
            call()


def test_the_docs_tell_the_outcome_of_each_key():
    rows = told("Keys")
    assert list(rows) == list(KEYS)
    for name, (_, outcome, _) in KEYS.items():
        assert rows[name] == outcome


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=40), st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_no_error_about_a_key_has_more_than_one_printable_line(key, problem):
    for error in (StorageError, MisconfiguredError, CorruptError):
        _one_line(error("aws (boto3)", key, problem.decode("utf-8", "surrogateescape")))


any_key = st.text(st.characters(exclude_categories=[]), max_size=40) | st.binary(max_size=40).map(os.fsdecode)


@given(any_key, st.sets(st.integers(0, 2**31), min_size=1, max_size=9), st.integers(1, 7))
def test_any_key_at_all_has_a_place_among_the_endpoints(key, ids, endpoints):
    try:
        cluster, its_weight = place(sorted(ids), key)
    except UnicodeEncodeError:
        # Half a surrogate pair is no text, and no server has it: S3 has UTF-8, and files any bytes.
        assert any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in key)
        return
    assert (cluster in ids, 0 <= its_weight < 2**32, 0 <= its_weight % endpoints < endpoints) == (True, True, True)
    assert its_weight == weight(cluster, key) == max(weight(one, key) for one in ids)


def _words(data):
    """MurmurHash64A as its author has it for 64-bit machines, by the words of a struct and the bytes of a switch."""
    m, mask = 0xC6A4A7935BD1E995, 2**64 - 1
    value = (0xC70F6907 ^ (len(data) * m)) & mask
    whole, tail = divmod(len(data), 8)
    for (word,) in struct.iter_unpack("<Q", data[: 8 * whole]):
        mixed = word * m & mask
        mixed = (mixed ^ mixed >> 47) * m & mask
        value = ((value ^ mixed) * m) & mask
    for i in reversed(range(tail)):
        value ^= data[8 * whole + i] << (8 * i)
        if i == 0:
            value = value * m & mask
    value = ((value ^ value >> 47) * m) & mask
    return value ^ value >> 47


@given(st.binary(max_size=70))
def test_the_hash_is_its_authors_for_any_bytes(data):
    assert murmur_hash_64a(data) == _words(data)


# -- folders -----------------------------------------------------------------------------------------


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        # A socket's path has 107 bytes.
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def _device(path):
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    except OSError:
        pytest.skip("only root may make a device, where containers may at all")


# Name -> what makes it in the category's folder, at a path; what lists as nothing is no object.
NOTHING, ERROR = "not listed", "error"
FOLDERS = {
    "a fifo": (_fifo, NOTHING),
    "a socket": (_socket, NOTHING),
    "a device": (_device, NOTHING),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), NOTHING),
    "a link to a fifo": (lambda path: (_fifo(path.parent.parent / "fifo"), path.symlink_to("../fifo")), NOTHING),
    "a link to the folder it lies in": (lambda path: path.symlink_to("."), NOTHING),
    "a link to a folder above the category": (lambda path: path.symlink_to(".."), ERROR),
    "a link to the root": (lambda path: path.symlink_to("/"), ERROR),
    "a link that leads nowhere": (lambda path: path.symlink_to("gone"), ERROR),
    "a link that leads to itself": (lambda path: path.symlink_to(path.name), ERROR),
    "a folder without permission": (lambda path: path.mkdir(mode=0), ERROR),
}
SAYS = {
    "a link to a folder above the category": "leads back to .*, which it lies in; remove it",
    "a link to the root": "leads back to /, which it lies in; remove it",
    "a link that leads nowhere": "no such file",
    "a link that leads to itself": "leads to itself",
    "a folder without permission": "permission denied",
}


@contextlib.contextmanager
def _as_nobody(folder):
    """Without root's rights, where we have them; the way to the folder is opened."""
    if os.geteuid():
        yield
        return
    opened = [path for path in (folder, *folder.parents) if not path.stat().st_mode & 0o1]
    modes = [path.stat().st_mode for path in opened]
    for path in opened:
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode)


def _in_time(call):
    """What ``call`` returns, or raises; an `AssertionError` where it hangs."""
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except Exception as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "it hangs"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_no_file_in_a_folder_is_left_out_or_an_error_that_names_it(name, tmp_path):
    make, outcome = FOLDERS[name]
    folder = tmp_path / "source" / "roses"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"abc")
    make(folder / "odd.jpg")

    def listed():
        return list_catalog(FsStorage(), [f"{tmp_path}/source/"], ["roses"], 2)

    with _as_nobody(folder):
        if outcome == NOTHING:
            catalog = _in_time(listed)
            assert [catalog.item(i) for i in range(len(catalog))] == [(f"{folder}/a.jpg", 3)]
            assert not catalog.left_out
        else:
            with pytest.raises(StorageError, match=SAYS[name]) as caught:
                _in_time(listed)
            assert f"{folder}/odd.jpg" in str(caught.value)
            _one_line(caught.value)


# Name -> what makes it in the place of a file that was listed; what the error says.
SWAPPED = {
    "a fifo in its place": (_fifo, NotFoundError, "is no regular file"),
    "a socket in its place": (_socket, NotFoundError, "is no regular file"),
    "a device in its place": (_device, NotFoundError, "is no regular file"),
    "a link to a device in its place": (lambda path: path.symlink_to("/dev/zero"), NotFoundError, "is no regular file"),
    "a folder in its place": (Path.mkdir, NotFoundError, "is a folder"),
    "a link that leads to itself in its place": (lambda path: path.symlink_to(path), NotFoundError, "to itself"),
    "nothing in its place": (lambda path: None, NotFoundError, "no such file"),
    "a file without permission in its place": (lambda path: path.touch(0), DeniedError, "permission denied"),
    "a shorter file in its place": (lambda path: path.write_bytes(b"ab"), CorruptError, "2 bytes read, but 3"),
    "a longer file in its place": (lambda path: path.write_bytes(b"x" * 10**6), CorruptError, "4 bytes read, but 3"),
}


@pytest.mark.parametrize("listed_bytes", [3, None], ids=["listed", "no length asked for"])
@pytest.mark.parametrize("name", SWAPPED)
def test_what_takes_a_files_place_after_the_listing_is_an_error_and_never_waited_for(name, listed_bytes, tmp_path):
    make, kind, says = SWAPPED[name]
    path = tmp_path / "a.jpg"
    make(path)
    if kind is CorruptError and listed_bytes is None:
        assert len(_in_time(lambda: FsStorage().read(str(path)))) == path.stat().st_size
        return
    with _as_nobody(tmp_path):
        calls = [lambda: FsStorage().read(str(path), listed_bytes)]
        calls += [lambda: FsStorage().read_range(str(path), 0, 3)] if kind is not CorruptError else []
        for call in calls:
            with pytest.raises(kind, match=says) as caught:
                _in_time(call)
            assert str(path) in str(caught.value)
            _one_line(caught.value)


@pytest.mark.parametrize("make_ready", [page_cache.make_cold, page_cache.make_warm])
@pytest.mark.parametrize("name", ["a fifo in its place", "a device in its place", "a link to a device in its place"])
def test_nor_is_it_waited_for_where_the_page_cache_is_made_ready(name, make_ready, tmp_path):
    path = tmp_path / "a.jpg"
    SWAPPED[name][0](path)
    with contextlib.suppress(OSError):
        assert _in_time(lambda: make_ready([str(path)])) in (page_cache.UNKNOWN, page_cache.COLD, page_cache.WARM)


def test_the_docs_tell_the_outcome_of_each_thing_in_a_folder():
    rows = told("Folders")
    assert list(rows) == [*FOLDERS, *SWAPPED]
    for name, (_, outcome) in FOLDERS.items():
        assert rows[name].startswith(outcome), name
    for name in SWAPPED:
        assert rows[name].startswith("error")

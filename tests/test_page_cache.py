"""The page cache: made cold or warm, and called so only where the kernel says that it is."""

import contextlib
import ctypes
import mmap
import os
import tempfile
from pathlib import Path

import pytest

from dnnbench.storage.page_cache import COLD, UNKNOWN, WARM, make_cold, make_warm, resident_pages

PAGE = mmap.PAGESIZE
NOBODY = 65534
MEMORY = Path("/dev/shm")  # noqa: S108 (a memory file system is what these tests need)


def file_system(path):
    """The kind of file system that holds a path: the mount with the longest name above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if Path(point) in (path, *path.parents)]
    return max(above)[1]


@pytest.fixture
def disk(tmp_path):
    """A folder whose files the kernel can drop from memory."""
    if file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} is in memory; run with --basetemp=FOLDER on a disk")
    return tmp_path


@pytest.fixture
def files(disk):
    """Five files of different sizes, just written."""
    sizes = [1, PAGE, PAGE + 1, 3 * PAGE, 10 * PAGE - 1]
    paths = [disk / f"{number}.jpg" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"x" * size)
    return [str(path) for path in paths]


def pages(path):
    with open(path, "rb") as file:
        return resident_pages(file.fileno())


@contextlib.contextmanager
def locked(path):
    """Holds the file's first page in memory, as a process does that has locked its mapping of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 1) as mapping:
        first = ctypes.c_char.from_buffer(mapping)
        try:
            if libc.mlock(ctypes.byref(first), ctypes.c_size_t(1)):
                pytest.skip(f"mlock: {os.strerror(ctypes.get_errno())}; raise `ulimit -l`")
            yield
        finally:
            del first


@contextlib.contextmanager
def another_user():
    """Not root for a while: root may read everything, and owns what belongs to nobody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public_folder(disk):
    """A folder that every user may enter; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory() as folder:
        if file_system(Path(folder)) in ("tmpfs", "ramfs"):
            pytest.skip(f"{folder} is in memory; set TMPDIR to a folder on a disk")
        os.chmod(folder, 0o755)  # noqa: S103 (it is to be entered)
        yield Path(folder)


@pytest.fixture
def foreign(public_folder):
    """A file that another user owns, and that `another_user` may only read."""
    if os.geteuid() != 0:
        path = Path(os.__file__)
        if path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK):
            pytest.skip("needs a file of another user: run as root, or with a Python that root installed")
        return str(path)
    path = public_folder / "foreign.jpg"
    path.write_bytes(b"x" * 5 * PAGE)
    path.chmod(0o644)
    return str(path)


def test_a_file_just_read_is_in_the_cache_to_its_last_page(files):
    for path, count in zip(files, [1, 1, 2, 3, 10], strict=True):
        Path(path).read_bytes()
        assert pages(path) == (count, count)


def test_dropped_files_are_cold_and_none_of_their_pages_is_left(files):
    content = [Path(path).read_bytes() for path in files]
    assert make_cold(files) == COLD
    assert [pages(path)[0] for path in files] == [0] * len(files)
    assert [Path(path).read_bytes() for path in files] == content


def test_what_is_not_yet_on_the_disk_is_written_and_then_dropped(disk):
    path = disk / "dirty.jpg"
    path.write_bytes(b"x" * 100 * PAGE)
    assert make_cold([str(path)]) == COLD
    assert path.read_bytes() == b"x" * 100 * PAGE


def test_read_files_are_warm_to_their_last_page(files):
    make_cold(files)
    assert make_warm(iter(files)) == WARM
    for path in files:
        resident, count = pages(path)
        assert resident == count > 0


def test_files_are_left_warm_or_cold_again_and_again(files):
    assert [make(iter(files)) for make in (make_cold, make_warm) * 2] == [COLD, WARM] * 2


def test_a_file_system_in_memory_is_never_cold():
    if not MEMORY.is_dir() or file_system(MEMORY) != "tmpfs":
        pytest.skip(f"{MEMORY} is no tmpfs here")
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        file.write(b"x" * 3 * PAGE)
        file.flush()
        assert make_cold([file.name]) == UNKNOWN
        assert pages(file.name) == (3, 3)


def test_an_empty_file_has_no_pages_and_changes_no_state(disk, files):
    empty = disk / "empty.jpg"
    empty.touch()
    assert pages(empty) == (0, 0)
    assert make_cold([str(empty), *files]) == COLD
    assert make_warm([str(empty), *files]) == WARM


def test_a_page_that_somebody_holds_is_not_cold(files):
    with locked(files[2]):
        assert make_cold([files[2]]) == UNKNOWN
        assert pages(files[2])[0] >= 1
    assert make_cold([files[2]]) == COLD


@pytest.mark.parametrize("held", [0, 2, 4], ids=["first", "middle", "last"])
def test_one_file_that_stays_makes_all_of_them_unknown_and_the_others_are_dropped(files, held):
    with locked(files[held]):
        assert make_cold(iter(files)) == UNKNOWN
        assert [path for path in files if pages(path)[0]] == [files[held]]


@pytest.mark.parametrize("make", [make_cold, make_warm])
def test_a_missing_file_is_an_error_and_leaves_no_file_open(files, make):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        make([*files, f"{files[0]}.gone.jpg"])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("make", [make_cold, make_warm])
def test_a_file_that_may_not_be_read_is_an_error(public_folder, make):
    path = public_folder / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with another_user(), pytest.raises(PermissionError, match=r"secret\.jpg"):
        make([str(path)])


def test_a_folder_is_never_cold(disk):
    assert make_cold([str(disk)]) == UNKNOWN


# For a file that is neither ours nor ours to write, mincore(2) says that every page is there, whatever is true.


def test_a_file_of_another_user_is_never_cold(foreign):
    with another_user():
        assert make_cold([foreign]) == UNKNOWN


def test_a_file_of_another_user_is_never_warm(foreign):
    with another_user():
        assert make_warm(iter([foreign])) == UNKNOWN


def test_the_pages_of_a_file_of_another_user_are_not_told(foreign):
    with another_user(), open(foreign, "rb") as file, pytest.raises(OSError):  # noqa: PT011 (any)
        resident_pages(file.fileno())


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_of_two_names_is_not_called_cold(files, disk, link):
    link(files[3], disk / "again.jpg")
    assert make_cold([*files, str(disk / "again.jpg")]) == UNKNOWN
    assert make_cold([*files[:3], str(disk / "again.jpg")]) == COLD


def test_files_below_a_folder_of_two_names_are_not_called_cold(files, disk):
    os.symlink(disk, disk / "again")
    assert make_cold(files) == COLD
    assert make_cold([*files, *(str(disk / "again" / Path(path).name) for path in files)]) == UNKNOWN

"""A name in the configuration -> a class: what can be named, what an error says, and what a constructor is given."""

import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.plugins import USER_MODULE, PluginError, construct, load_class
from dnnbench.storage.base import Storage
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.fs import FsStorage

BUILTINS = {"FsStorage": "dnnbench.storage.fs:FsStorage", "DssStorage": "dnnbench.storage.dss:DssStorage"}
BASE = "dnnbench.storage.base.Storage"
GOOD = "from dnnbench.storage.base import Storage\n\nclass Tape(Storage):\n    pass\n"
# Packages that these tests write are called so, and are forgotten after each of them.
PACKAGE = "their_tapes"


def load(name):
    return load_class("model.name", str(name), BUILTINS, Storage)


def user_modules():
    return {name for name in sys.modules if name.startswith((USER_MODULE, PACKAGE))}


@pytest.fixture(autouse=True)
def _forget_modules():
    before = user_modules()
    yield
    for name in user_modules() - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a Python file into a folder that is on the path, and gives back the file."""
    monkeypatch.syspath_prepend(tmp_path)

    def file(text, name="tape.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return file


def test_a_built_in_name_and_a_module_name_the_same_class():
    assert load("FsStorage") is load("dnnbench.storage.fs:FsStorage") is FsStorage
    assert load("DssStorage") is DssStorage


def test_a_module_of_a_package_on_the_path(write):
    write("", f"{PACKAGE}/__init__.py")
    write(GOOD, f"{PACKAGE}/reel.py")
    assert load(f"{PACKAGE}.reel:Tape").__module__ == f"{PACKAGE}.reel"


def test_a_file_is_the_same_module_however_its_path_is_spelt(write, tmp_path, monkeypatch):
    file = write(GOOD, "sub/tape.py")
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = [file, "sub/tape.py", "./link/../sub/tape.py", "~/sub/tape.py", "link/tape.py"]
    assert {load(f"{path}:Tape") for path in spellings} == {load(f"{file}:Tape")}


def test_a_file_is_imported_once(write):
    count = write("", "count.txt")
    file = write(f"{GOOD}\nclass Reel(Tape):\n    pass\n\nopen({str(count)!r}, 'a').write('x')\n")
    assert issubclass(load(f"{file}:Reel"), load(f"{file}:Tape"))
    assert count.read_text() == "x"


def test_files_of_one_name_in_two_folders_are_two_modules(write):
    assert load(f"{write(GOOD, 'a/tape.py')}:Tape") is not load(f"{write(GOOD, 'b/tape.py')}:Tape")


def test_a_file_may_bear_the_name_of_a_module(write):
    before = sys.modules["json"]
    assert load(f"{write(GOOD, 'elsewhere/json.py')}:Tape").__name__ == "Tape"
    assert sys.modules["json"] is before


def test_a_class_of_a_file_pickles(write):
    kind = load(f"{write(GOOD)}:Tape")
    assert pickle.loads(pickle.dumps(kind)) is kind  # noqa: S301 (our own bytes)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Fsstorage", r'model\.name: found "Fsstorage", expected one of FsStorage, .*did you mean "FsStorage"\?'),
        ("xyz", r'"package\.module:Class" or "path/to/file\.py:Class"$'),
        ("tape.py", r'found "tape\.py", expected .*"path/to/file\.py:Class"'),
        ("nowhere.py:Tape", r"model\.name: .*/nowhere\.py: there is no such file"),
        ("folder.py:Tape", r"model\.name: .*/folder\.py: there is no such file"),
        ("~no_such_user_here/tape.py:Tape", r"model\.name: .*no_such_user_here"),
        (f"{'x' * 300}.py:Tape", r"model\.name: .*x\.py"),
        ("no_such_package:Tape", r'model\.name: there is no module "no_such_package"'),
        ("dnnbench.storage.tape:Tape", r'there is no module "dnnbench\.storage\.tape"'),
        ("dnnbench.storage.fs.tape:Tape", r'there is no module "dnnbench\.storage\.fs\.tape"'),
        ("dnnbench.storage.fs:FsStorag", r'"dnnbench\.storage\.fs" has no class "FsStorag"; did .*"FsStorage"\?'),
        ("dnnbench.storage.fs:", r'"dnnbench\.storage\.fs" has no class ""'),
        ("pathlib:Path", rf'"pathlib:Path" must be a subclass of {BASE}'),
        ("os:getcwd", rf'"os:getcwd" must be a subclass of {BASE}'),
        ("tape.py:Tapp", r'tape\.py" has no class "Tapp"; did you mean "Tape"\?'),
        ("tape.py:Storagee", r'tape\.py" has no class "Storagee"'),
        (":Tape", r"model\.name: "),
        ("./tape:Tape", r"model\.name: .*\./tape"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_name_of_nothing_says_what_is_wrong(write, tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    write(GOOD)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(PluginError, match=says):
        load(name)


def test_another_frameworks_class_is_told_apart(write):
    file = write("class Base:\n    __module__ = 'shop.models.torch'\n\nclass Net(Base):\n    pass\n")
    base = type("Base", (), {"__module__": "shop.models.tensorflow"})
    with pytest.raises(PluginError, match=r"subclass of shop\.models\.tensorflow\.Base.*framework\.name"):
        load_class("model.name", f"{file}:Net", {}, base)


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_a_name_is_never_evaluated(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "sprung"
    for text in (f"__import__('os').system('touch {trap}')", f"open('{trap}','w')"):
        for name in (f"{text}{suffix}:Tape", f"os:{text}", f"{text}{suffix}"):
            with pytest.raises(PluginError):
                load(name)
    assert not trap.exists()


# No letters, so that nothing that exists can be named by chance.
NAMES = st.builds(
    "{}{}{}".format, st.text(":./~\\-_ ()'\"\0\n"), st.sampled_from(["", ".py"]), st.sampled_from(["", ":"])
)


@given(NAMES)
def test_any_name_of_nothing_is_an_error_of_ours(name):
    with pytest.raises(PluginError):
        load(name)


@pytest.mark.parametrize("spelling", ["{file}:Tape", f"{PACKAGE}_broken:Tape"])
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        ("import no_such_library", ModuleNotFoundError),
        ("from os import no_such_name", ImportError),
        ("raise SystemExit('no licence')", SystemExit),
        ("raise KeyboardInterrupt", KeyboardInterrupt),
    ],
)
def test_what_the_users_code_raises_comes_through_and_leaves_nothing_behind(write, spelling, line, error):
    file = write(f"{GOOD}\n{line}\n", f"{PACKAGE}_broken.py")
    before = user_modules()
    with pytest.raises(error) as caught:
        load(spelling.format(file=file))
    # Type and place are the user's: the last line of the traceback is the one that is wrong.
    assert type(caught.value) is error
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(file), GOOD.count("\n") + 2)
    assert user_modules() == before


def test_a_syntax_error_names_the_users_line(write):
    file = write("class Tape(:\n")
    with pytest.raises(SyntaxError) as caught:
        load(f"{file}:Tape")
    assert (caught.value.filename, caught.value.lineno) == (str(file), 1)


def test_a_file_that_was_mended_loads(write):
    file = write("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load(f"{file}:Tape")
    write(f"{GOOD}# mended, and of another size than what was compiled\n")
    assert load(f"{file}:Tape").__name__ == "Tape"


class Nothing:
    def __init__(self):
        self.got = ()


class Some:
    def __init__(self, dimension, classes=10):
        self.got = (dimension, classes)


class All:
    def __init__(self, dimension, classes=10, *, channels=1):
        self.got = (dimension, classes, channels)


class Inherits(All):
    pass


class HandsOn(All):
    def __init__(self, dimension, **options):
        super().__init__(dimension, **options)


class Keeps:
    def __init__(self, dimension, **options):
        self.got = (dimension, options)


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        (Some, ((4, 6), 5)),
        (All, ((4, 6), 5, 3)),
        (Inherits, ((4, 6), 5, 3)),
        # What it hands on, its base names: with the defaults the network would silently be another one.
        (HandsOn, ((4, 6), 5, 3)),
        # Nobody names them: Keras's own constructor, to which such options go, would refuse them.
        (Keeps, ((4, 6), {})),
        (lambda dimension: Keeps(dimension, name="x"), ((4, 6), {"name": "x"})),
    ],
    ids=["some", "all", "inherited", "handed on", "kept", "function"],
)
def test_a_constructor_is_given_what_it_names(kind, got):
    assert construct(kind, (4, 6), classes=5, channels=3).got == got


def test_a_constructor_that_names_nothing_is_given_nothing():
    assert construct(Nothing, classes=5, channels=3).got == ()


def test_what_a_constructor_raises_comes_through():
    with pytest.raises(TypeError, match="dimension"):
        construct(Some, classes=5)

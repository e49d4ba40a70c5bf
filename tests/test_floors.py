"""DESIGN.md's floors: imports run downwards only, and each heavy library is imported by its own files alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("dnnbench", "fixtures", "bench")
# From the lowest floor up. A name covers what is below it, and the longest one that fits counts.
FLOORS = [
    "dnnbench dnnbench.errors",
    # What knows no storage: figures and how they are written, and what the machine says of itself.
    "dnnbench.metrics dnnbench.metrics_rounds dnnbench.metrics_curves dnnbench.metrics_csv dnnbench.journal"
    " dnnbench.metrics_ranks dnnbench.metrics_money dnnbench.ranks dnnbench.secrets dnnbench.outputs dnnbench.config"
    " dnnbench.plugins dnnbench.probe dnnbench.calm dnnbench.provenance dnnbench.packed_names dnnbench.tfrecord",
    "dnnbench.storage dnnbench.images",
    "dnnbench.catalog dnnbench.manifest dnnbench.synth dnnbench.servers dnnbench.transfer dnnbench.shards"
    " dnnbench.shard_scan"
    " dnnbench.pack",
    # Beside what trains: what is timed of it, and what it leaves behind.
    "dnnbench.datasets dnnbench.models dnnbench.training dnnbench.diagnosis dnnbench.workloads dnnbench.trained"
    " dnnbench.sampling dnnbench.ranged dnnbench.ladder dnnbench.knee dnnbench.accelerator",
    "dnnbench.notes dnnbench.results dnnbench.effect dnnbench.compare dnnbench.comparable dnnbench.compare_text"
    " dnnbench.baseline dnnbench.ab dnnbench.report dnnbench.report_sections dnnbench.report_curves"
    " dnnbench.report_runs dnnbench.report_charts dnnbench.report_data dnnbench.report_page dnnbench.check dnnbench.run"
    " dnnbench.plan dnnbench.plan_model dnnbench.plan_text dnnbench.__main__",
    "fixtures",
    "bench",
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
TOP_OF_LIBRARY = FLOOR_OF["dnnbench.__main__"]
FRAMEWORKS = {
    **dict.fromkeys(["torch", "torchvision", "torchdata"], "torch"),
    **dict.fromkeys(["tensorflow", "keras", "tf_keras"], "tensorflow"),
}
CLIENTS = {
    "boto3": "dnnbench.storage.s3_boto3",
    "botocore": "dnnbench.storage.s3_boto3",
    "obstore": "dnnbench.storage.s3_obstore",
    "s3torchconnector": "dnnbench.storage.s3_torchconnector",
}
PYTEST = {"pytest", "_pytest", "pytest_benchmark", "xdist", "hypothesis"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))}


def imports(module, source, is_package=False):
    """Every module that a source imports, wherever in it: (its full name, line)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*package, base]).rstrip(".")
            # "from dnnbench import x" names the module x, where there is one.
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from ((name if name in FILES else base, node.lineno) for name in inner)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((arg.value, node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def floor_of(module):
    """The floor of a module of ours; None for other people's. Raises KeyError for one that has none yet."""
    if module.partition(".")[0] not in PARTS:
        return None
    fitting = [name for name in FLOOR_OF if name == module or module.startswith(f"{name}.")]
    if fitting in ([], ["dnnbench"]) and module not in FLOOR_OF:
        raise KeyError(f"{module} has no floor: put it into FLOORS, and into DESIGN.md")
    return FLOOR_OF[max(fitting, key=len)]


def violations(module, source, is_package=False):
    """What in a source breaks the floors, one line each."""
    own_floor, file_name = floor_of(module), module.rpartition(".")[2]
    found = []
    for imported, line in imports(module, source, is_package):
        top, floor = imported.partition(".")[0], floor_of(imported)
        reasons = []
        if floor is not None and floor > own_floor:
            reasons.append("is on a floor above")
        if top in FRAMEWORKS and not (own_floor <= TOP_OF_LIBRARY and file_name.startswith(FRAMEWORKS[top])):
            reasons.append(f"is for files called {FRAMEWORKS[top]}* alone")
        if top in CLIENTS and module != CLIENTS[top]:
            reasons.append(f"is for {CLIENTS[top]} alone")
        if top in PYTEST and own_floor <= TOP_OF_LIBRARY:
            reasons.append("is for fixtures and bench alone")
        if top == "fixtures" and module.startswith("bench."):
            reasons.append("is taken by a fixture's name")
        found += [f"{module}:{line}: {imported} {reason}" for reason in reasons]
    return found


def test_every_part_was_read():
    assert {"dnnbench", "dnnbench.storage.s3_boto3", "fixtures.measure", "bench.test_read"} <= set(FILES)


@pytest.mark.parametrize("module", FILES)
def test_a_module_keeps_to_its_floor(module):
    path = FILES[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "line", "imported"),
    [
        ("dnnbench.errors", "from dnnbench.config import Config", "dnnbench.config"),
        ("dnnbench.metrics", "import dnnbench.storage.base", "dnnbench.storage.base"),
        ("dnnbench.metrics", "from dnnbench import catalog", "dnnbench.catalog"),
        ("dnnbench.storage.fs", "from dnnbench.catalog import Catalog", "dnnbench.catalog"),
        ("dnnbench.storage.fs", "from .. import catalog", "dnnbench.catalog"),
        ("dnnbench.storage.fs", "from ..datasets import torch", "dnnbench.datasets.torch"),
        ("dnnbench.catalog", "from dnnbench.workloads import Reading", "dnnbench.workloads"),
        ("dnnbench.datasets.samples", "from dnnbench.__main__ import main", "dnnbench.__main__"),
        ("dnnbench.run", "from fixtures.options import RUN", "fixtures.options"),
        ("fixtures.measure", "from bench import test_read", "bench.test_read"),
        ("dnnbench.datasets.samples", "import torch.utils.data", "torch.utils.data"),
        ("dnnbench.datasets.tensorflow", "import torch", "torch"),
        ("dnnbench.datasets.torch", "from tensorflow import data", "tensorflow"),
        ("dnnbench.models.torch", "import keras", "keras"),
        ("dnnbench.compare", "from torch import nn", "torch"),
        ("dnnbench.report", "import boto3", "boto3"),
        ("fixtures.torch_things", "import torch", "torch"),
        ("bench.test_loader", "import torch", "torch"),
        ("bench.test_read", "from boto3 import client", "boto3"),
        ("bench.test_read", "from fixtures.measure import measure", "fixtures.measure"),
        ("dnnbench.storage.s3", "from botocore.config import Config", "botocore.config"),
        ("dnnbench.storage.s3_boto3", "import obstore", "obstore"),
        ("dnnbench.trained", "importlib.import_module('torch.nn')", "torch.nn"),
        ("dnnbench.workloads", "import pytest", "pytest"),
        ("dnnbench.run", "from _pytest.config import Config", "_pytest.config"),
    ],
)
@pytest.mark.parametrize(
    "where", ["{}", "def f():\n    {}", "class A:\n    def f(self):\n        if self:\n            {}"]
)
def test_a_wrong_import_is_found_wherever_it_stands(module, line, imported, where):
    source = where.format(line)
    (found,) = violations(module, f"import os\n{source}\n")
    assert found.startswith(f"{module}:{source.count(chr(10)) + 2}: {imported} ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dnnbench.storage.s3_boto3", "import boto3, botocore.config\nfrom dnnbench.config import Config"),
        ("dnnbench.training.torch_build", "import torch\nfrom ..datasets.torch_loader import MeteredLoader"),
        ("dnnbench.models.tensorflow", "import keras, tensorflow.data"),
        ("fixtures.measure", "import pytest\nfrom dnnbench.probe import cores\nfrom .storages import Workbench"),
        ("bench.test_read", "import pytest\nfrom dnnbench.workloads import Reading"),
    ],
)
def test_a_right_import_is_left_alone(module, source):
    assert violations(module, source) == []


def test_a_package_imports_from_itself():
    assert list(imports("dnnbench.storage", "from . import fs\nfrom .. import catalog", is_package=True)) == [
        ("dnnbench.storage.fs", 1),
        ("dnnbench.catalog", 2),
    ]


def test_a_module_without_a_floor_is_an_error():
    with pytest.raises(KeyError, match=r"dnnbench\.attic has no floor"):
        violations("dnnbench.attic", "import os")


# A plugin that says what is loaded once everything is collected.
TELL = """
import sys

def pytest_collection_finish(session):
    with open({path!r}, "w") as file:
        file.write("\\n".join(["collected " + item.name for item in session.items] + sorted(sys.modules)))
"""


@pytest.mark.parametrize("selected", [[], ["-k", "torch"], ["-k", "tf"], ["-k", "aws and torch"]], ids=" ".join)
def test_collecting_the_benchmarks_loads_no_framework_and_no_client(tmp_path, selected):
    (tmp_path / "tell_modules.py").write_text(TELL.format(path=str(tmp_path / "loaded")))
    # A run of its own must not know that it was started from inside of one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "tell_modules", *selected, "bench/"],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = (tmp_path / "loaded").read_text().splitlines()
    assert any(line.startswith("collected test_loader[") for line in loaded)
    assert "dnnbench.workloads" in loaded
    assert set(loaded) & {*FRAMEWORKS, *CLIENTS, "moto", "plotly"} == set()


def test_a_file_of_tests_has_a_name_of_its_own_so_that_all_of_them_can_be_collected_at_once():
    names = [path.name for folder in ("bench", "tests") for path in (ROOT / folder).glob("test_*.py")]
    assert sorted(names) == sorted(set(names))

"""How fast decoded batches come out of a framework's loader, with nothing to compute in between."""

from dnnbench.workloads import Loading


def test_loader(measure, storage, catalog, loader, framework, access):
    measure(Loading(storage, catalog, loader, f"{framework} loader {access}"))

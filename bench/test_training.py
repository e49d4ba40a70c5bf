"""How fast a network trains from the storage, and how much of that time it waits for data."""

from dnnbench.workloads import Training


def test_training(measure, storage, catalog, loader, trainer, framework, access):
    measure(Training(storage, catalog, loader, trainer, f"{framework} train {access}"))

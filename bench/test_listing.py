"""How fast the storage lists the data set: sources x categories, in parallel."""

from dnnbench.workloads import Listing


def test_listing(measure, storage, objects, sources, labels, listing_workers):
    measure(Listing(storage, objects, sources, labels, listing_workers))

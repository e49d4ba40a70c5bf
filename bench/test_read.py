"""How fast single objects come: one at a time, then with several reads in flight. Nothing is decoded."""

import pytest

from dnnbench.workloads import Reading

IN_FLIGHT = {"serial": None, "c1": 1, "c8": 8, "c32": 32}


@pytest.mark.parametrize("concurrency", IN_FLIGHT)
def test_read(measure, storage, objects, concurrency, order_seed, share):
    measure(Reading(storage, objects, IN_FLIGHT[concurrency], order_seed, share))

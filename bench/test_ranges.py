"""How fast large objects come in ranges: of all of them in random order, and one whole, beside a plain read of it."""

from dnnbench.ranged import RangedReading, WholeObject


def test_ranges(measure, storage, large_objects, large_part, ranges, range_seed, share):
    measure(RangedReading(storage, large_objects, *ranges, range_seed, large_part, share))


def test_ranges_whole(measure, storage, largest_object, large_part, ranges):
    measure(WholeObject(storage, largest_object, ranges, large_part))


def test_ranges_plain(measure, storage, largest_object, large_part):
    measure(WholeObject(storage, largest_object, None, large_part))

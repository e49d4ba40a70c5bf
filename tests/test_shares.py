"""A rank's share: with the others' it is everything, nothing twice, and all ranks have as many batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.datasets.shares import ALONE, RankShare

counts, ranks, sizes = st.integers(0, 5000), st.integers(1, 40), st.integers(1, 70)


@given(counts, ranks)
def test_all_shares_together_are_everything_once_in_order(count, ranks):
    together = [position for rank in range(ranks) for position in RankShare(rank, ranks).of(count)]
    assert together == list(range(count))


@given(counts, ranks)
def test_no_share_is_more_than_one_sample_larger_than_another(count, ranks):
    lengths = {len(RankShare(rank, ranks).of(count)) for rank in range(ranks)}
    assert max(lengths) - min(lengths) <= 1


@given(counts, ranks, sizes)
def test_the_batches_of_a_rank_are_its_share(count, ranks, batch_size):
    for rank in range(ranks):
        share = RankShare(rank, ranks)
        made = share.batch_sizes(count, batch_size)
        assert sum(made) == len(share.of(count))
        assert all(0 < size <= batch_size for size in made)


@given(counts, ranks, st.integers(2, 70))
def test_every_rank_has_as_many_batches_where_each_has_samples_enough(count, ranks, batch_size):
    made = [len(RankShare(rank, ranks).batch_sizes(count, batch_size)) for rank in range(ranks)]
    assert len(set(made)) == 1 or count < ranks


@given(counts, ranks, sizes)
def test_with_drop_last_there_are_whole_batches_only_and_as_many_on_every_rank(count, ranks, batch_size):
    made = [RankShare(rank, ranks).batch_sizes(count, batch_size, drop_last=True) for rank in range(ranks)]
    assert all(sizes == made[0] for sizes in made)
    assert set(made[0]) <= {batch_size}
    assert ranks * batch_size * (len(made[0]) + 1) > count - ranks


@pytest.mark.parametrize(("count", "batch_size", "expected"), [(65, 32, [32, 32, 1]), (64, 32, [32, 32]), (0, 32, [])])
def test_alone_the_last_batch_is_what_is_left(count, batch_size, expected):
    assert ALONE.batch_sizes(count, batch_size) == expected


def test_where_one_rank_begins_another_batch_the_others_make_two_of_their_last_one():
    assert [RankShare(rank, 2).batch_sizes(65, 16) for rank in range(2)] == [[16, 15, 1], [16, 16, 1]]

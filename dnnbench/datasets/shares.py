"""Which samples one rank of a distributed run reads, and in how many batches. Of a run alone: all of them."""

from __future__ import annotations

from dataclasses import dataclass


def even_part(count: int, number: int, parts: int) -> range:
    """Which of ``count`` things, in their order, are part ``number`` (from 0): no part has two more than another."""
    return range(count * number // parts, count * (number + 1) // parts)


@dataclass(frozen=True)
class RankShare:
    """The part of every pass that rank ``rank`` of ``ranks`` reads: with the others' it is the whole, nothing twice."""

    rank: int = 0
    ranks: int = 1

    def of(self, count: int) -> range:
        """The positions, in an order of ``count`` samples that is the same on all ranks, that this rank reads."""
        return even_part(count, self.rank, self.ranks)

    def batch_sizes(self, count: int, batch_size: int, drop_last: bool = False) -> list[int]:
        """The sizes of this rank's batches: as many as every other rank has, whatever its share.

        Ranks that train together take every step together. Where one has a sample more and it begins a batch, the
        others' last batch is made of two. With ``drop_last`` there are whole batches only, as many as the smallest
        share has. A share that is too small for this (batches of one sample) has a batch less.
        """
        share = len(self.of(count))
        if drop_last:
            return [batch_size] * (count // self.ranks // batch_size)
        most = -(-count // self.ranks)
        sizes = [batch_size] * (share // batch_size) + ([share % batch_size] if share % batch_size else [])
        if len(sizes) < -(-most // batch_size) and sizes and sizes[-1] > 1:
            sizes[-1:] = [sizes[-1] - 1, 1]
        return sizes


ALONE = RankShare()

"""Reading samples from shards, for any framework: who reads what of a pass, and what parses it.

The order of a pass is that of the shards, reshuffled by seed, one after the other. A rank has a contiguous part of it,
and each of its workers whole batches of that: nearly always whole shards, and of one shard a range of its samples where
a part begins or ends in it. So all have as much to do, and nothing is read twice, however few shards there are.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dnnbench import tfrecord
from dnnbench.catalog import Catalog
from dnnbench.config import Config, ConfigError
from dnnbench.datasets.passes import epoch_order
from dnnbench.datasets.shares import RankShare, even_part
from dnnbench.images import EXTENSIONS
from dnnbench.metrics_rounds import MIB
from dnnbench.shards import TAR, Run, Shards
from dnnbench.storage.base import Storage
from dnnbench.storage.errors import CorruptError
from dnnbench.tfrecord import FormatError

_IMAGES = tuple(extension.removeprefix(".") for extension in EXTENSIONS)
LABEL, ENCODED = "image/class/label", "image/encoded"


class Parsed(NamedTuple):
    """One sample as it came out of a shard: the image's bytes, and the label that is written beside it."""

    content: Any
    label: int


# The samples in the bytes of a run. Raises `FormatError`, whose offset is from the run's beginning; the samples that
# come before one that is wrong may be yielded.
Parse = Callable[[Any], Iterator[Parsed]]


def parse_tar(data: Any, strict: bool = True) -> Iterator[Parsed]:
    """The samples of a WebDataset's tar, by webdataset; ``strict``: any other member is an error."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    failed: list[Exception] = []

    def files() -> Iterator[dict[str, Any]]:
        try:
            for file in tar_file_iterator(io.BytesIO(data)):
                yield {**file, "__url__": ""}
        # What tarfile raises for a stream that it does not understand.
        except (tarfile.TarError, EOFError, ValueError, OSError) as exc:
            # Raised after the sample before it, which is whole and not yet yielded.
            failed.append(exc)

    try:
        for sample in group_by_keys(files()):
            problem = _problem_of(sample, strict)
            if problem:
                # A sample that lacks something because the archive ends in it.
                raise FormatError(-1, _no_tar(failed[0]) if failed else problem)
            (content,) = (sample[name] for name in sample if name in _IMAGES)
            yield Parsed(content, int(sample["cls"]))
    except ValueError as exc:
        raise FormatError(-1, _no_tar(exc)) from exc
    if failed:
        raise FormatError(-1, _no_tar(failed[0])) from failed[0]


def _no_tar(error: Exception) -> str:
    # webdataset puts the stream's description behind some.
    return f"cannot be read as a tar archive ({str(error).partition(' @ ')[0]})"


def _problem_of(sample: dict[str, Any], strict: bool) -> str:
    """What is wrong with the members of one key, if anything is."""
    key = sample["__key__"]
    names = [name for name in sample if not name.startswith("__")]
    images = [name for name in names if name in _IMAGES]
    unknown = [name for name in names if name not in (*_IMAGES, "cls")]
    if unknown and strict:
        return f"{key}.{unknown[0]} is an unknown member"
    if len(images) != 1:
        return f"the sample {key} has {'several images' if images else 'no image'}"
    if "cls" not in names:
        return f"the sample {key} has no label (there is no member {key}.cls)"
    if not sample["cls"].strip().isdigit():
        return f"the label in {key}.cls is no number ({sample['cls'][:20]!r})"
    return ""


def parse_tfrecords(data: Any) -> Iterator[Parsed]:
    """The samples of TFRecords, without TensorFlow."""
    for offset, record in tfrecord.records(data):
        try:
            features = tfrecord.parse_example(record)
        except ValueError as exc:
            raise FormatError(offset, f"a record is no tf.train.Example ({exc})") from exc
        for name, kind in ((ENCODED, memoryview), (LABEL, int)):
            if not isinstance(features.get(name), kind):
                raise FormatError(offset, f"a record has no {name}")
        # A copy: a sample that waits in a shuffle buffer would hold all that was read with it.
        yield Parsed(bytes(features[ENCODED]), features[LABEL])


def parser_of(shards: Shards) -> Parse:
    """What parses shards, whatever the framework."""
    return partial(parse_tar, strict=shards.strict) if shards.kind == TAR else parse_tfrecords


def read_run(storage: Storage, shards: Shards, run: Run) -> Any:
    """The bytes of a run, by one request. Raises `CorruptError` where there are fewer, and the storage's errors."""
    key = shards.keys[run.shard]
    if run.whole:
        return storage.fetch(key, run.end)
    data = storage.read_range(key, run.begin, run.end)
    if len(data) != run.end - run.begin:
        problem = f"is cut off at byte {run.begin + len(data):,}: {run.end:,} were expected at least"
        raise CorruptError(storage.label, key, f"{problem}; copy or pack it again")
    return data


def samples_of(
    storage: Storage, shards: Shards, run: Run, data: Any, parse: Parse, sizes_bytes: Any
) -> Iterator[tuple[int, Any]]:
    """(catalog index, image bytes) of each sample of a run, held against the index.

    ``sizes_bytes`` are the catalog's. Raises `CorruptError`, which names the shard and the byte at which it is wrong.
    """
    position = run.first
    parsed = parse(data)

    def corrupt(offset: int, problem: str) -> CorruptError:
        return CorruptError(storage.label, shards.keys[run.shard], f"at byte {offset:,}: {problem}; pack it again")

    while position < run.last:
        begin = int(shards.begins[position])
        try:
            sample = next(parsed, None)
        except FormatError as exc:
            # A parser that cannot tell where it is has come as far as this sample.
            raise corrupt(begin if exc.offset < 0 else run.begin + exc.offset, exc.problem) from exc
        if sample is None:
            raise corrupt(begin, "a sample belongs here, and there is none")
        index = int(shards.order[position])
        if len(sample.content) != sizes_bytes[index]:
            found = f"{len(sample.content):,} bytes, and the index says {int(sizes_bytes[index]):,}"
            raise corrupt(begin, f"the image of the sample has {found}")
        if sample.label != shards.written_labels[position]:
            raise corrupt(begin, f"the sample has the label {sample.label}, and the index says "
                          f"{shards.written_labels[position]}")  # fmt: skip
        yield index, sample.content
        position += 1
    try:
        more = next(parsed, None)
    except FormatError as exc:
        raise corrupt(run.end if exc.offset < 0 else run.begin + exc.offset, exc.problem) from exc
    if more is not None:
        raise corrupt(run.end, "more samples follow than the index knows")


def read_sample(storage: Storage, catalog: Catalog, index: int) -> Any:
    """The image's bytes of one sample of a catalog, by a range of its shard."""
    shards: Shards = catalog.shards
    position = shards.position_of(index)
    run = shards.run(shards.shard_of(position), position, position + 1)
    ((_, content),) = samples_of(
        storage, shards, run, read_run(storage, shards, run), parser_of(shards), catalog.sizes_bytes
    )
    return content


@dataclass(frozen=True)
class ShardPlan:
    """Who reads what: the passes over shards, for every rank and worker alike.

    ``range_bytes`` None reads shards whole, where a worker has all of one; ``parallel`` None: one reading after the
    other. ``buffer``: samples held back to shuffle them, where ``shuffle``.
    """

    shards: Shards
    share: RankShare
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int
    range_bytes: int | None
    parallel: int | None
    buffer: int

    @classmethod
    def of(
        cls, config: Config, shards: Shards, share: RankShare, shuffle: bool, drop_last: bool, reading: str
    ) -> ShardPlan:
        """As configured; ``reading`` is the framework's."""
        wanted = config.dataset.shards
        return cls(
            shards=shards,
            share=share,
            batch_size=config.framework.batch_size,
            drop_last=drop_last,
            shuffle=shuffle,
            seed=config.execution.seed,
            range_bytes=int(max(wanted.range_mib * MIB, 1)) if wanted.read == "ranges" else None,
            parallel=wanted.parallel if reading == "concurrent" else None,
            buffer=wanted.shuffle_buffer,
        )

    def batch_sizes(self) -> list[int]:
        """This rank's batches in a pass: as many as every other rank's."""
        return self.share.batch_sizes(len(self.shards.order), self.batch_size, self.drop_last)

    def worker_batches(self, worker: int, workers: int) -> list[int]:
        """Those of them that one worker makes."""
        sizes = self.batch_sizes()
        return [sizes[number] for number in even_part(len(sizes), worker, workers)]

    def runs(self, number: int, worker: int, workers: int) -> list[Run]:
        """What one worker reads in pass ``number``, in its order."""
        sizes = self.batch_sizes()
        ends = [0, *itertools.accumulate(sizes)]
        start = self.share.of(len(self.shards.order)).start
        batches = even_part(len(sizes), worker, workers)
        first, last = start + ends[batches.start], start + ends[batches.stop]
        shards = self.shards
        count = len(shards)
        order = epoch_order(count, self.seed, number) if self.shuffle else np.arange(count)
        counts = np.diff(shards.firsts)[order]
        begins = np.concatenate([[0], np.cumsum(counts)])
        runs: list[Run] = []
        place = int(np.searchsorted(begins, first, side="right")) - 1
        while first < last:
            shard, in_shard = int(order[place]), first - int(begins[place])
            until = min(last, int(begins[place + 1]))
            at = int(shards.firsts[shard])
            runs += shards.runs(shard, at + in_shard, at + until - int(begins[place]), self.range_bytes)
            first, place = until, place + 1
        return runs

    def readings(self, number: int, workers: int) -> tuple[int, int]:
        """(readings, their bytes) of all workers of this rank in a pass."""
        runs = [run for worker in range(workers) for run in self.runs(number, worker, workers)]
        return len(runs), sum(run.end - run.begin for run in runs)

    def samples(
        self, storage: Storage, sizes_bytes: Any, parse: Parse, number: int, worker: int = 0, workers: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """(catalog index, image bytes) of a worker's samples in pass ``number``, shuffled as planned."""
        runs = self.runs(number, worker, workers)
        shards = self.shards

        def in_order() -> Iterator[tuple[int, Any]]:
            if self.parallel is None:
                read = ((i, read_run(storage, shards, run)) for i, run in enumerate(runs))
            else:
                threads = max(min(self.parallel, len(runs)), 1)
                read = storage.in_flight(lambda run: read_run(storage, shards, run), runs, threads, in_order=True)  # type: ignore[assignment]
            for i, data in read:
                yield from samples_of(storage, shards, runs[i], data, parse, sizes_bytes)

        if not self.shuffle or self.buffer < 2:
            return in_order()
        return shuffled(in_order(), self.buffer, np.random.default_rng([self.seed, number, self.share.rank, worker]))


def shuffled(samples: Iterator[Any], buffer: int, rng: np.random.Generator) -> Iterator[Any]:
    """Each sample once: any of the ``buffer`` that are held, in the place of which the next one is."""
    held = list(itertools.islice(samples, buffer))
    for sample in samples:
        chosen = int(rng.integers(len(held)))
        yield held[chosen]
        held[chosen] = sample
    for chosen in rng.permutation(len(held)):
        yield held[chosen]


def check_reads_shards(dataset: Any) -> None:
    """Raises `ConfigError` for a dataset of the user's that reads its objects by itself."""
    if not dataset._reads_the_usual_way():
        raise ConfigError(
            f"dataset.format: {type(dataset).__name__} reads each object by a method of its own, and in shards there "
            "are none; override decode(data) alone, or set dataset.format to files"
        )

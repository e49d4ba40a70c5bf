"""What a dataset of any framework does to make a sample: read an object through the storage and decode it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dnnbench.catalog import Catalog
from dnnbench.config import Config
from dnnbench.datasets.own_reads import metered
from dnnbench.datasets.shard_reads import read_sample
from dnnbench.datasets.shares import even_part
from dnnbench.images import DecodeError, decode
from dnnbench.storage.base import ListedKey, Storage
from dnnbench.storage.errors import CorruptError, StorageError
from dnnbench.storage.in_flight import Stream


class ImageSamples:
    """Sample ``i`` of the catalog as ``(image, label)``; the base of every framework's dataset.

    Subclasses override `read_file_system_data` or `read_s3_object`; each gets the object's key and
    returns the image (tensor, array or PIL image). What they read through ``self.storage`` is
    counted and timed; a file may also be opened by its path, which is metered from outside
    (`dnnbench.datasets.own_reads`). ``config`` is the configuration as a dictionary,
    ``config["dataset"]["image_dimension"]`` and so on; secrets are masked in it, and
    ``self.storage`` is signed in. ``transform`` is applied to what was read.
    """

    storage: Storage
    catalog: Catalog
    # How many objects `read_samples` reads at a time; None: one after the other.
    concurrency: int | None = None
    # What every sample is, where a loader is to be measured without reading and decoding.
    fixed_image: Any = None

    def __init__(self, transform: Callable[[Any], Any] | None = None, config: dict[str, Any] = {}) -> None:  # noqa: B006 (the seed's signature; never changed)
        super().__init__()
        dataset = Config().resolved()["dataset"] | dict(config.get("dataset", {}))
        self.transform = transform
        self.config = config
        self.label = self.labels = list(dataset["label"])
        self.image_dimension = tuple(dataset["image_dimension"])
        self.image_height, self.image_width = self.image_dimension
        self.colour: bool = dataset["image_mode"] == "colour"
        self.reduced: bool = dataset["decode"] == "reduced"

    def bind(self, storage: Storage, catalog: Catalog) -> None:
        """Says where the samples are; called once, before the first read."""
        self.storage, self.catalog = storage, catalog

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.catalog.shards is not None:
            return self.sample_of(index, read_sample(self.storage, self.catalog, index))
        try:
            image = self._read(self._key(index))
            if self.transform is not None:
                image = self.transform(image)
        except Exception as exc:
            self._tell_which(index, exc)
            raise
        return image, self.catalog.label(index)

    def loader_sample(self, index: int) -> tuple[Any, int]:
        """Sample ``index`` as a loader asks for it: whatever a subclass makes of ``[index]``, or `fixed_image`."""
        return self[index] if self.fixed_image is None else (self.fixed_image, self.catalog.label(index))

    def read_samples(
        self, indices: Sequence[int], in_order: bool = False, concurrency: int | None = None
    ) -> Iterator[tuple[int, tuple[Any, int]]]:
        """(position in ``indices``, sample), with `concurrency` objects read at a time, each decoded as it arrives.

        In order of arrival, or with ``in_order`` of the indices. What a subclass reads by a method of its own is
        read by that method, in threads.
        """
        concurrency = concurrency or self.concurrency
        if concurrency is not None:
            # Each is a thread.
            concurrency = min(concurrency, max(len(indices), 1))
        if concurrency is None or self.fixed_image is not None:
            yield from ((position, self.loader_sample(index)) for position, index in enumerate(indices))
        elif not self._reads_the_usual_way():
            yield from self.storage.in_flight(self.__getitem__, indices, concurrency, in_order)
        else:
            items = self.catalog.items(indices)
            for position, data in self.storage.read_many(items, concurrency, in_order):
                yield position, self.sample_of(indices[position], data)

    def sample_of(self, index: int, content: Any) -> tuple[Any, int]:
        """A sample of what was read."""
        try:
            image = self.decode(bytes(content))
            if self.transform is not None:
                image = self.transform(image)
        except Exception as exc:
            self._tell_which(index, exc)
            raise
        return image, self.catalog.label(index)

    def _reads_the_usual_way(self) -> bool:
        """Whether a sample is its object's bytes, decoded: then reading and decoding can be taken apart."""
        usual = ("__getitem__", "_read", "read_bytes")
        reading = "read_file_system_data" if self.storage.name == "fs" else "read_s3_object"
        return all(getattr(type(self), name) is getattr(ImageSamples, name) for name in (*usual, reading))

    def _key(self, index: int) -> ListedKey:
        expected = self.catalog.item(index)
        return ListedKey(expected[0], self.catalog.size_bytes(index), expected)

    def _tell_which(self, index: int, error: Exception) -> None:
        """Says of which object an error is; raises what is wrong with the object itself as the storage's."""
        key: str = self._key(index)
        where, shards = "", self.catalog.shards
        if shards is not None:
            position = shards.position_of(index)
            key = shards.keys[shards.shard_of(position)]
            where = f"at byte {shards.begins[position]:,}: the sample packed of {self.catalog.key(index)} "
        if isinstance(error, DecodeError):
            raise CorruptError(self.storage.label, key, f"{where}{error}") from error
        if not isinstance(error, StorageError):
            # A mistake of the user's own code, or an image that it cannot take: of which object, it seldom says.
            error.add_note(f"dnnbench: this happened with {key!r}{where and ' ' + where}".rstrip())

    def _read(self, key: ListedKey) -> Any:
        if self.storage.name != "fs":
            return self.read_s3_object(key)
        if type(self).read_file_system_data is ImageSamples.read_file_system_data:
            return self.read_file_system_data(key)
        return metered(self.storage.meter, self.read_file_system_data, key)

    def read_file_system_data(self, image: str) -> Any:
        """Reads and decodes the file ``image`` (its path)."""
        return self.decode(self.read_bytes(image))

    def read_s3_object(self, image: str) -> Any:
        """Reads and decodes the object ``image`` (its key)."""
        return self.decode(self.read_bytes(image))

    def read_bytes(self, image: str) -> bytes:
        """The object's content, through the storage: counted, timed and held against what ``dataset.verify`` says."""
        return self.storage.read(image)

    def decode(self, data: bytes) -> Any:
        """Image bytes -> uint8 array [height, width], or [height, width, 3] where ``dataset.image_mode`` is colour."""
        return decode(data, self.image_dimension, self.colour, self.reduced)


class ReadAhead:
    """A dataset's samples batch by batch: while one is decoded, the objects of the next are read.

    `ImageSamples.concurrency` objects are read at a time, across the ends of batches. Belongs to one process.
    """

    def __init__(self, dataset: ImageSamples) -> None:
        self._dataset = dataset
        self._stream: Stream[Any] | None = None
        self._asked: deque[list[int]] = deque()
        self._usual = True

    def samples(self, indices: list[int], upcoming: list[int] | None) -> Iterator[tuple[int, tuple[Any, int]]]:
        """(index, sample) of a batch, in its order; ``upcoming`` is the one that will be asked for next, if any."""
        if self._stream is None or not self._asked or self._asked[0] != indices:
            # The first batch of a pass, or another one than was announced, after a pass that broke off.
            self._restart(max(len(indices), len(upcoming or ())))
            self._ask(indices)
        if upcoming:
            self._ask(upcoming)
        self._asked.popleft()
        try:
            for index in indices:
                result = self._stream.take()  # type: ignore[union-attr]
                yield index, self._dataset.sample_of(index, result) if self._usual else result
        except BaseException:
            self._asked.clear()
            raise

    def _ask(self, indices: list[int]) -> None:
        self._asked.append(indices)
        items: Iterable[Any] = self._dataset.catalog.items(indices) if self._usual else indices
        self._stream.ask(items)  # type: ignore[union-attr]

    def _restart(self, batch: int) -> None:
        dataset = self._dataset
        if self._stream is not None:
            self._stream.stop()
        self._asked.clear()
        self._usual = dataset._reads_the_usual_way()
        storage = dataset.storage
        call = (lambda item: storage.fetch(*item)) if self._usual else dataset.__getitem__
        # Each is a thread, and no more than two batches are asked for.
        self._stream = storage.stream(call, min(dataset.concurrency or 1, 2 * batch))


def share_of(count: int, worker: int, workers: int, batch_size: int, drop_last: bool) -> range:
    """The contiguous share of ``count`` samples that one of ``workers`` reads in sequential order.

    With ``drop_last`` without the end that makes no whole batch, so that nothing is read in vain.
    """
    part = even_part(count, worker, workers)
    return part[: len(part) - len(part) % batch_size] if drop_last else part

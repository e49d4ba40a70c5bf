"""A dataset's samples from shards in a metered ``tf.data`` pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from dnnbench.datasets.passes import Epoch
from dnnbench.datasets.shard_reads import ENCODED, LABEL, Parse, Parsed, ShardPlan, check_reads_shards, parser_of
from dnnbench.datasets.tensorflow import MeteredPipeline, RandomAccessDataset, weakly
from dnnbench.shards import TFRECORD
from dnnbench.tfrecord import FormatError


def parse_by_tensorflow(data: Any) -> Iterator[Parsed]:
    """The samples of TFRecords, by TensorFlow's own reader, which reads files: this one is in memory.

    Not by a `tf.data.TFRecordDataset` for each reading: to make one costs as much as decoding ten pictures.
    """
    handle = os.memfd_create("dnnbench-shard", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        for record in tf.compat.v1.io.tf_record_iterator(f"/proc/self/fd/{handle}"):
            features = tf.train.Example.FromString(record).features.feature
            content, label = features[ENCODED].bytes_list.value, features[LABEL].int64_list.value
            for name, values in ((ENCODED, content), (LABEL, label)):
                if not values:
                    raise FormatError(-1, f"a record has no {name}")
            yield Parsed(content[0], label[0])
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as exc:
        # Where in what it was given TensorFlow tells, but not always of the record's beginning.
        raise FormatError(-1, "a record is cut off, or its CRC is wrong") from exc
    except DecodeError as exc:
        raise FormatError(-1, f"a record is no tf.train.Example ({exc})") from exc
    finally:
        os.close(handle)


class ShardPipeline(MeteredPipeline):
    """Batches ``(images, labels)`` of samples in shards, parsed in one thread and decoded in several.

    The order, the rank's share and the batches are the plan's. ``section`` is ``framework.TensorFlow``.
    """

    def __init__(self, dataset: RandomAccessDataset, plan: ShardPlan, section: Any) -> None:
        check_reads_shards(dataset)
        self._plan = plan
        self._parse: Parse = parse_by_tensorflow if plan.shards.kind == TFRECORD else parser_of(plan.shards)
        self._held: dict[int, Any] = {}
        self._used_bytes = 0
        dataset.concurrency = None
        super().__init__(dataset, plan.batch_size, section, plan.seed, share=plan.share)

    def _indices(self) -> tf.data.Dataset:
        """The samples' numbers, as they come out of the shards; their bytes are held until they are decoded."""
        return tf.data.Dataset.from_generator(weakly(self._samples), output_signature=tf.TensorSpec((), tf.int64))

    def _samples(self) -> Iterator[Any]:
        dataset, held = self.dataset, self._held
        read = self._plan.samples(dataset.storage, dataset.catalog.sizes_bytes, self._parse, self._passes - 1)
        try:
            for index, content in read:
                held[index] = content
                self._used_bytes += len(content)
                yield np.int64(index)
        except Exception as exc:
            # As in `_read`: raised by `_next` as it is, and not as TensorFlow's retelling.
            self._error = self._error or exc

    def _read(self, index: Any) -> tuple[Any, Any]:
        try:
            number = int(index)
            image, label = self.dataset.sample_of(number, self._held.pop(number))
            return self._pixels(number, image), np.int64(label)
        except Exception as exc:
            self._error = self._error or exc
            return np.zeros(self._image_shape, self._image_dtype), np.int64(-1)

    def _next(self, iterator: Iterator[Any]) -> Any:
        try:
            return super()._next(iterator)
        except tf.errors.OpError:
            # Where samples are missing TensorFlow says that, and not why.
            if self._error is not None:
                raise self._error from None
            raise

    def _begin(self) -> None:
        self._held, self._used_bytes = {}, 0
        super()._begin()

    def _end_pass(self, epoch: Epoch) -> None:
        super()._end_pass(epoch)
        epoch.used_bytes = self._used_bytes
        epoch.readings = partial(self._plan.readings, self._passes - 1, 1)

"""PyTorch's loader over shards: each sample once, by every worker, with an exact account; damage and ranks."""

import contextlib

import numpy as np
import pytest
from fakes import LABELS, MemoryStorage, make_contents, shades

from dnnbench.config import ConfigError, expand_settings
from dnnbench.datasets.shares import RankShare
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.errors import MeasurementError
from dnnbench.metrics import ShardReadings as Readings
from dnnbench.metrics import Tally, check_pass
from dnnbench.pack import pack
from dnnbench.shards import FORMATS, list_shards, sharded_catalog
from dnnbench.storage.errors import CorruptError
from dnnbench.training import torch_build
from dnnbench.workloads import Loading, Reading

COUNT = 23


def in_shards(kind="tar", shard_bytes=9000, **storage):
    """(storage, catalog) of samples in a few shards."""
    held = MemoryStorage(make_contents(COUNT), **storage)
    pack(held, "", held, "", LABELS, kind=kind, shard_bytes=shard_bytes, progress=False)
    return held, sharded_catalog(held, [""], LABELS, list_shards(held, [""], kind, 2))


@contextlib.contextmanager
def loading(storage, catalog, access="random", share=None, **settings):
    """The configured loader, closed at the end; keys of the DataLoader are given by their name."""
    chosen = {"num_workers": 2, "persistent_workers": False, "multiprocessing_context": "fork"}
    chosen |= settings.pop("loader", {})
    texts = [
        "dataset.image_dimension=[2,3]", "framework.batch_size=4", f"dataset.label=[{','.join(LABELS)}]",
        *(f"framework.PyTorch.DataLoader.{k}={str(v).lower()}" for k, v in chosen.items()),
        *(f"{key.replace('__', '.')}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    config = expand_settings({}, texts)[0].config
    loader = torch_build.make_loader(config, storage, catalog, access, share or RankShare())
    try:
        yield loader
    finally:
        loader.close()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("read", ["whole", "ranges"])
@pytest.mark.parametrize("reading", ["plain", "concurrent"])
def test_a_round_accounts_for_exactly_what_came_through(kind, num_workers, read, reading):
    storage, catalog = in_shards(kind)
    chosen = {
        "dataset__shards__read": read,
        "dataset__shards__range_mib": 0.003,
        "framework__PyTorch__reading": reading,
    }
    with loading(storage, catalog, loader={"num_workers": num_workers}, **chosen) as loader:
        workload = Loading(storage, catalog, loader, "torch loader random")
        orders = []
        for number in range(2):
            workload.prepare(number)
            batches = list(loader)
            orders.append(shades(batches))
            one = workload.account()
            assert len(batches) == len(loader)
            assert one.objects == COUNT
            assert one.used_bytes == catalog.total_bytes < one.tally.read_bytes
        assert [sorted(order) for order in orders] == [list(range(COUNT))] * 2
        assert orders[0] != orders[1]
        for images, labels in batches:
            assert (np.asarray(images)[:, 0, 0] % 2 == np.asarray(labels)).all()


def test_workers_that_persist_read_a_new_order_in_each_pass():
    storage, catalog = in_shards()
    section = {"persistent_workers": True, "multiprocessing_context": "forkserver"}
    with loading(storage, catalog, loader=section) as loader:
        assert loader.start_workers() > 0
        orders = [shades(list(loader)) for _ in range(2)]
        for epoch in loader.take_epochs():
            assert (len(epoch.tally.latency_ns), epoch.tally.read_bytes) == epoch.readings()
        loader.rewind(0)
        again = shades(list(loader))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT))
    assert orders[0] != orders[1]
    assert orders[0] == again


@pytest.mark.parametrize(("ranks", "num_workers"), [(2, 2), (3, 0), (5, 3)])
@pytest.mark.parametrize("shard_bytes", [9000, 10**6])
def test_ranks_share_even_a_single_shard_and_have_as_many_batches(ranks, num_workers, shard_bytes):
    storage, catalog = in_shards(shard_bytes=shard_bytes)
    came, lengths = [], set()
    for rank in range(ranks):
        with loading(storage, catalog, share=RankShare(rank, ranks), loader={"num_workers": num_workers}) as loader:
            mine = shades(list(loader))
            assert len(mine) == loader.expected_samples
            lengths.add(len(loader))
        came += mine
    assert sorted(came) == list(range(COUNT))
    assert len(lengths) == 1


def test_in_sequence_the_samples_come_as_they_lie_in_the_shards():
    storage, catalog = in_shards()
    with loading(storage, catalog, "sequential", loader={"num_workers": 0}) as loader:
        list(loader)
        (epoch,) = loader.take_epochs()
    assert epoch.indices.tolist() == catalog.shards.order.tolist()


def test_an_image_that_does_not_decode_is_named_by_shard_byte_and_sample():
    storage, catalog = in_shards()
    position = 5
    key = catalog.shards.keys[catalog.shards.shard_of(position)]
    begin = int(catalog.shards.begins[position])
    data = bytearray(storage.contents[key])
    data[begin + 512 + 20 : begin + 512 + 40] = bytes(20)
    storage.contents[key] = bytes(data)
    with loading(storage, catalog) as loader, pytest.raises(CorruptError) as caught:
        list(loader)
    assert caught.value.key == key
    assert f"at byte {begin:,}" in str(caught.value)
    assert catalog.key(int(catalog.shards.order[position])) in str(caught.value)


def test_a_dataset_that_reads_by_itself_is_refused_and_one_that_decodes_is_not(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dnnbench.datasets.torch import RandomAccessDataset\n"
        "class Reads(RandomAccessDataset):\n    def read_file_system_data(self, image):\n        return 0\n"
        "class Decodes(RandomAccessDataset):\n    def decode(self, data):\n        return len(data)\n"
    )
    storage, catalog = in_shards()
    with (
        pytest.raises(ConfigError, match=r"dataset\.format: Reads reads each object"),
        loading(storage, catalog, dataset__name=f"{file}:Reads"),
    ):
        pass  # fmt: skip
    with loading(storage, catalog, dataset__name=f"{file}:Decodes", loader={"num_workers": 0}) as loader:
        lengths = [int(value) for images, _ in loader for value in images]
    assert sorted(lengths) == sorted(catalog.sizes_bytes.tolist())


def test_a_single_sample_is_read_by_a_range_of_its_shard():
    storage, catalog = in_shards()
    dataset = RandomAccessDataset()
    dataset.bind(storage, catalog)
    storage.meter.take()
    image, label = dataset[9]
    tally = storage.meter.take()
    assert (int(image[0, 0]), label) == (int(image[0, 0]), catalog.label(9))
    assert len(tally.latency_ns) == 1
    assert tally.read_bytes < 3000


def test_shards_are_read_as_objects():
    storage, _ = in_shards()
    objects = list_shards(storage, [""], "tar", 2)
    workload = Reading(storage, objects, 2, 0)
    workload.prepare(0)
    workload.run()
    one = workload.account()
    assert one.objects == len(objects) > 1
    assert one.tally.read_bytes == sum(len(d) for k, d in storage.contents.items() if k.endswith(".tar"))
    assert workload.part == "shards-tar"


@pytest.mark.parametrize(
    ("of_shards", "told"),
    [
        (Readings(29, 2, 70), "samples of 29 bytes came out"),
        (Readings(None, 2, 70), "samples of None bytes"),
        (Readings(30, 3, 70), "2 readings of 70 bytes were made of the shards, but 3 of 70"),
        (Readings(30, 2, 71), "but 2 of 71 were planned"),
    ],
)
def test_a_pass_that_is_not_as_planned_gives_no_figure(of_shards, told):
    tally = Tally(read_bytes=70)
    tally.latency_ns.extend([1, 2])
    sizes = np.array([10, 10, 10])
    check_pass("x", np.arange(3), tally, sizes, 3, of_shards=Readings(30, 2, 70))
    with pytest.raises(MeasurementError, match=told):
        check_pass("x", np.arange(3), tally, sizes, 3, of_shards=of_shards)
    with pytest.raises(MeasurementError, match="more than once"):
        check_pass("x", np.array([0, 1, 1]), tally, sizes, 3, of_shards=Readings(30, 2, 70))

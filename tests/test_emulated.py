"""The emulated accelerator: what it takes and how busy it was; and the fastest one that a loader keeps busy."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import MemoryStorage, VirtualLoader, VirtualTime, make_catalog, make_contents, one_category
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.accelerator import MOST_TRIALS, NEAR, TARGET, FastestAccelerator
from dnnbench.config import Config, ConfigError, expand_settings
from dnnbench.datasets import passes
from dnnbench.datasets.passes import MemoryBatches
from dnnbench.errors import MeasurementError
from dnnbench.knee import LoaderKnee
from dnnbench.ladder import Ladder
from dnnbench.metrics import per_second, record, utilization
from dnnbench.training import emulated
from dnnbench.training.base import Trainer
from dnnbench.training.emulated import Emulation
from dnnbench.workloads import Training

MS = 1_000_000


class Accelerator(Emulation, Trainer):
    """One of no framework."""


def accelerator(loader, step_ms, epochs=1):
    config = {"framework": {"epochs": epochs}, "training": {"batch_compute_ms": step_ms}}
    return Accelerator(config=config, dataloader=loader, model=None, device=None)


def batches(count, samples=2):
    return [(np.zeros((samples, 1, 1), np.uint8), np.zeros(samples, np.int64))] * count


def made(clock, count, making_ns, **others):
    """A loader of so many batches of one sample each."""
    return VirtualLoader(clock, one_category({f"{i:04d}": 1 for i in range(count)}), 1, making_ns, **others)


def trained(loader, step_ms, epochs=1):
    """What an accelerator says of its epochs over a loader, after its warm-up; time is virtual."""
    trainer = accelerator(loader, step_ms, epochs)
    trainer.warm_up()
    trainer.train()
    return trainer.accelerator(loader.take_epochs())


# -- the trainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("step_ms", [0.001, 3, 50.5])
def test_a_step_takes_the_given_time_also_where_a_sleep_ends_early(step_ms, early):
    with VirtualTime(early=early).passing() as clock:
        loader = MemoryBatches(batches(7))
        accelerator(loader, step_ms).train()
        (epoch,) = loader.take_epochs()
    assert epoch.compute_ns == clock.now_ns == 7 * round(step_ms * MS)


def test_every_epoch_is_run_and_every_batch_taken():
    with VirtualTime().passing():
        loader = MemoryBatches(batches(5))
        trainer = accelerator(loader, 1, epochs=3)
        trainer.train()
    assert [epoch.batches for epoch in loader.take_epochs()] == [5, 5, 5]
    assert trainer.history == []


def test_what_the_configuration_leaves_out_has_a_default():
    trainer = Accelerator(config={}, dataloader=[], model=None, device=None)
    assert trainer.batch_compute_ms == Config().training.batch_compute_ms == 50
    assert trainer.epochs == Config().framework.epochs


def test_warming_up_asks_nothing_of_the_loader_and_finds_what_a_step_takes_too_long():
    with VirtualTime(late_ns=MS // 4).passing() as clock:
        loader = made(clock, 9, 0)
        trainer = accelerator(loader, 2)
        trainer.warm_up()
        assert (loader.samples_done, loader.take_epochs()) == (0, [])
        trainer.train()
        told = trainer.accelerator(loader.take_epochs())
    assert (told["step_overhead_ms"], told["steps"], told["warm_up_steps"]) == (pytest.approx(0.25), 8, 1)


def test_the_harnesss_own_time_is_taken_off_and_told():
    with VirtualTime(late_ns=MS).passing() as clock:
        told = trained(made(clock, 9, 0), 2)
    assert told["step_overhead_ms"] == pytest.approx(1)
    assert told["utilization"] == 1
    assert told["utilization_uncorrected"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("step_ms", "steps"), [(1e-320, 20), (1e-9, 20), (25, 20), (100, 5), (60_000, 3)])
def test_a_step_of_any_length_is_warmed_up_by_some_and_long_ones_by_few(step_ms, steps):
    with VirtualTime().passing() as clock:
        accelerator([], step_ms).warm_up()
    assert clock.now_ns == steps * round(step_ms * MS)


def test_of_several_epochs_the_first_is_the_warm_up():
    with VirtualTime().passing() as clock:
        loader = made(clock, 4, 8 * MS)
        making_ms = iter((8, 5, 10))
        loader.before_epoch = lambda: setattr(loader, "making_ns", next(making_ms) * MS)
        trainer = accelerator(loader, 4, epochs=3)
        trainer.train()
        epochs = loader.take_epochs()
    told = trainer.accelerator(epochs)
    # Of the others the first step is left out too.
    assert (told["steps"], told["warm_up_steps"]) == (6, 1)
    assert told["utilization"] == pytest.approx(6 * 4 / (3 * 5 + 3 * 10))


def test_without_a_batch_there_is_nothing_to_say():
    with VirtualTime().passing() as clock, pytest.raises(MeasurementError, match="got no batch"):
        trained(made(clock, 0, MS), 1)
    with pytest.raises(MeasurementError, match="got no batch"):
        accelerator([], 1).accelerator([])


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1e400", "fast", "true", '"5"', "null", "[1]"])
def test_a_step_that_takes_no_time_of_this_world_is_one_line(value):
    with pytest.raises(ConfigError, match=r"^training\.batch_compute_ms: found .*, expected ") as caught:
        expand_settings({}, [f"training.batch_compute_ms={value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "step_ms"), [("5", 5.0), ("0.25", 0.25)])
def test_a_step_may_be_a_whole_number_or_a_part(value, step_ms):
    config = expand_settings({}, [f"training.batch_compute_ms={value}"])[0].config
    assert config.training.batch_compute_ms == step_ms
    assert config.resolved()["training"]["batch_compute_ms"] == step_ms


def test_torchs_is_built_in_by_its_name_and_its_figures_go_into_the_record():
    from dnnbench.training import torch_build
    from dnnbench.training.torch import DNNTrain

    settings = ["training.name=EmulatedAccelerator", "training.batch_compute_ms=2", "framework.epochs=2"]
    config = expand_settings({}, [*settings, "framework.batch_size=8", "framework.PyTorch.DataLoader.num_workers=0"])
    contents = make_contents(32)
    storage, catalog = MemoryStorage(contents, name="aws"), make_catalog(contents)
    loader = torch_build.make_loader(config[0].config, storage, catalog, "random")
    trainer = torch_build.make_trainer(config[0].config, loader, 2)
    assert isinstance(trainer, Emulation)
    assert isinstance(trainer, DNNTrain)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    workload = Training(storage, catalog, loader, trainer, "train")
    workload.prepare(0)
    workload.run()
    finished = workload.account()
    finished.wall_ns = sum(epoch.wall_ns for epoch in finished.epochs)
    told = record([finished], cores=2, peak_memory_bytes=None)["accelerator"]
    assert (told["batch_compute_ms"], told["steps"]) == (2, 3)
    assert 0 < told["utilization_uncorrected"] <= told["utilization"] <= 1
    assert all(epoch.compute_ns >= 4 * 2 * MS for epoch in finished.epochs)
    assert all((now == then).all() for now, then in zip(trainer.model.parameters(), before, strict=True))


def test_another_trainer_is_no_accelerator():
    class Looks(Trainer):
        def train(self):
            for _ in loader:
                pass

    with VirtualTime().passing() as clock:
        loader = made(clock, 3, MS)
        workload = Training(MemoryStorage({}), loader.catalog, loader, Looks({}, None, None), "train")
        workload.prepare(0)
        workload.run()
        assert workload.account().accelerator is None


# -- how busy it was -------------------------------------------------------------------------------

times_ms = st.floats(1e-6, 1e6)


@given(st.integers(1, 10**9), times_ms, st.integers(1, 10**18), st.just(0.0) | times_ms)
def test_how_busy_is_a_share_and_no_less_without_the_harnesss_part(steps, step_ms, window_ns, overhead_ms):
    uncorrected = utilization(steps, step_ms, window_ns)
    assert 0 < uncorrected <= utilization(steps, step_ms, window_ns, overhead_ms) <= 1


@pytest.mark.parametrize(("steps", "window_ns"), [(0, 1), (0, 0), (1, 0), (3, -1)])
def test_of_nothing_there_is_nothing_to_say(steps, window_ns):
    with pytest.raises(MeasurementError, match="got no batch"):
        utilization(steps, 1.0, window_ns)


def test_all_of_a_short_epoch_is_its_steps_over_its_time():
    """One reader, no worker: seven steps of 350 ms in 4.146 s are 0.591; of one batch, half of the time is reading."""
    making_ns = (4146 - 7 * 350) * MS // 7
    with VirtualTime().passing() as clock:
        seven = trained(made(clock, 7, making_ns, ahead=0), 350)
        one = trained(made(clock, 1, 350 * MS, ahead=0), 350)
    assert seven["utilization"] == pytest.approx(0.591, abs=5e-4)
    assert (one["utilization"], one["steps"], one["warm_up_steps"]) == (pytest.approx(0.5), 1, 0)


pipelines = {
    "count": st.integers(1, 40),
    "workers": st.integers(1, 5),
    "making_ms": st.integers(1, 50),
    "share": st.floats(0.01, 1),
}


def all_but_the_start(count, workers, step_ms, arrivals_ms):
    """Step time over wall time, from the end of the workers' first batches on, of an accelerator that begins late."""
    ends_ms, now_ms = [], 0.0
    for arrival_ms in arrivals_ms:
        now_ms = max(now_ms, arrival_ms) + step_ms
        ends_ms.append(now_ms)
    left_out = workers if count >= 2 * workers else 0
    return (count - left_out) * step_ms / (ends_ms[-1] - (ends_ms[left_out - 1] if left_out else 0))


@pytest.mark.parametrize("steady", [False, True])
@given(**pipelines)
def test_the_start_of_the_loader_is_left_out_with_its_steps_where_more_than_half_is_left(
    steady, count, workers, making_ms, share
):
    step_ms = making_ms * share
    with VirtualTime().passing() as clock:
        told = trained(made(clock, count, making_ms * workers * MS, workers=workers, steady=steady), step_ms)
    if steady:
        arrivals_ms = [making_ms * (i + 1) for i in range(count)]
    else:
        arrivals_ms = [making_ms * workers * (i // workers + 1) for i in range(count)]
    expected = all_but_the_start(count, workers, step_ms, arrivals_ms)
    assert told["utilization"] == pytest.approx(expected, rel=1e-5)
    assert told["warm_up_steps"] in (0, workers)
    if count >= 2 * workers and count % workers == 0:
        # Then it is what it would be in an epoch without end.
        assert told["utilization"] == pytest.approx(share, rel=1e-5)


@given(**pipelines, ahead=st.integers(1, 8))
def test_where_it_never_waits_it_is_busy_all_the_time(count, workers, making_ms, share, ahead):
    # Where the loader's start is left out; else the first batch is waited for.
    count = max(count, 2 * workers)
    with VirtualTime().passing() as clock:
        told = trained(made(clock, count, making_ms * MS, workers=workers, ahead=ahead), making_ms / share)
    assert (told["utilization"], told["utilization_uncorrected"]) == pytest.approx((1, 1))


@given(count=st.integers(1, 40), making_ms=st.integers(1, 50), share=st.floats(0.1, 10))
def test_where_nothing_is_made_in_advance_it_waits_for_every_batch(count, making_ms, share):
    with VirtualTime().passing() as clock:
        told = trained(made(clock, count, making_ms * MS, ahead=0), making_ms * share)
    assert told["utilization"] == pytest.approx(share / (1 + share), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({}, 1),
        ({"num_parallel_calls": 16}, 2),
        ({"num_parallel_calls": 0}, 1),
        ({"reading": "concurrent", "concurrency": 1}, 1),
        ({"reading": "concurrent", "concurrency": 16}, 3),
        ({"reading": "concurrent", "concurrency": 32}, 4),
    ],
)
def test_a_pipeline_without_workers_makes_as_many_batches_at_a_time_as_it_reads(settings, left_out, monkeypatch):
    monkeypatch.setattr(emulated, "cores", lambda: 3)
    monkeypatch.setattr(passes, "cores", lambda: 3)
    tensorflow = [f"framework.TensorFlow.{key}={value}" for key, value in settings.items()]
    config = expand_settings({}, [*tensorflow, "framework.batch_size=8", "framework.epochs=1"])[0].config.resolved()
    with VirtualTime().passing():
        loader = MemoryBatches(batches(8))
        trainer = Accelerator(config=config, dataloader=loader, model=None, device=None)
        trainer.train()
        assert trainer.accelerator(loader.take_epochs())["warm_up_steps"] == left_out


# -- the fastest that is kept busy -----------------------------------------------------------------

SAMPLES, BATCH = 128, 2


class Search:
    """One search over a `VirtualLoader`: the round's record, and what was made on the way."""

    def __init__(self, count=SAMPLES, making_ms=20, late_ns=0, **loader):
        from dnnbench.training import torch_build

        self.contents = make_contents(count)
        self.storage, self.made = MemoryStorage(self.contents, name="aws"), []
        self.catalog = make_catalog(self.contents)
        settings = [f"framework.batch_size={BATCH}", "framework.epochs=7", "dataset.image_dimension=[4,4]"]
        self.config = expand_settings({}, settings)[0].config
        self.clock = VirtualTime(late_ns)

        def make_loader(config, storage, catalog, access):
            self.made.append(VirtualLoader(self.clock, catalog, BATCH, making_ms * MS, **loader))
            return self.made[-1]

        build = SimpleNamespace(
            make_loader=make_loader,
            make_model=torch_build.make_model,
            TRAININGS=torch_build.TRAININGS,
            DNNTrain=torch_build.DNNTrain,
        )
        workload = FastestAccelerator(self.storage, self.catalog, self.config, build, "torch", "random")
        assert workload.done() == 0
        with self.clock.passing():
            try:
                workload.prepare(0)
                start_ns = self.clock.now_ns
                workload.run()
                wall_ns = self.clock.now_ns - start_ns
                self.finished = workload.account()
            finally:
                workload.close()
        self.finished.wall_ns = wall_ns
        self.figures = record([self.finished], cores=2, peak_memory_bytes=None)
        self.told = self.figures["accelerator"]


PIPELINES = {
    "one worker": {},
    "two": {"workers": 2, "ahead": 4},
    "two that take turns": {"workers": 2, "ahead": 4, "steady": True},
    "five": {"workers": 5},
    "two, little data": {"workers": 2, "count": 16},
    "five, two batches each": {"workers": 5, "count": 20},
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_fastest_is_as_fast_as_the_loader_to_the_target(name):
    search = Search(**PIPELINES[name])
    assert search.told["kept_busy"] is True
    assert TARGET <= search.told["utilization"] <= TARGET + 2 * NEAR
    workers = PIPELINES[name].get("workers", 1)
    rate_per_s = BATCH * workers * 1e3 / 20
    # One that waits a tenth of its time for a loader is by a tenth faster than that, less what its epoch's end takes.
    assert 0.9 <= search.told["samples_per_s"] / rate_per_s <= 1 / TARGET + 0.01
    assert search.told["samples_per_s"] == pytest.approx(BATCH * 1e3 / search.told["batch_compute_ms"])


def test_the_rate_is_that_of_the_samples_that_there_were():
    """A batch may be smaller than is configured, such as an only one."""
    search = Search(count=1)
    assert [epoch.samples for epoch in search.finished.epochs] == [1]
    assert search.told["samples_per_s"] == pytest.approx(1e3 / search.told["batch_compute_ms"])


def test_of_one_batch_the_wait_for_it_counts():
    told = Search(count=1).told
    assert (told["steps"], told["warm_up_steps"], told["kept_busy"]) == (1, 0, False)
    # At the loader's own rate; a step that is nine times as long would be kept busy, and tell nothing.
    assert [trial["utilization"] for trial in told["trials"]] == [pytest.approx(0.5)]
    assert told["batch_compute_ms"] == told["trials"][0]["batch_compute_ms"] == pytest.approx(20)


@given(making_ms=st.integers(1, 40), workers=st.integers(1, 4), ahead=st.integers(4, 9))
def test_what_is_called_kept_busy_was(making_ms, workers, ahead):
    told = Search(count=32, making_ms=making_ms, workers=workers, ahead=ahead).told
    tried = [*told["trials"], {key: told[key] for key in ("batch_compute_ms", "utilization")}]
    assert told["kept_busy"] == any(trial["utilization"] >= TARGET for trial in tried)
    busy = [trial["batch_compute_ms"] for trial in tried if trial["utilization"] >= TARGET]
    if busy:
        assert told["batch_compute_ms"] == min(busy)


def test_the_trials_and_the_target_are_in_the_record():
    search = Search()
    assert search.told["target"] == TARGET
    assert 1 <= len(search.told["trials"]) <= MOST_TRIALS
    # The first is tried at the loader's own rate.
    assert search.told["trials"][0] == {
        "batch_compute_ms": pytest.approx(20), "utilization": pytest.approx(1), "warm_up_steps": 1,
    }  # fmt: skip
    assert search.told["batch_compute_ms"] in [trial["batch_compute_ms"] for trial in search.told["trials"]]
    assert json.loads(json.dumps(search.figures["accelerator"])) == search.told


def test_where_none_is_kept_busy_that_is_told_with_how_busy_one_was():
    told = Search(ahead=0).told
    assert told["kept_busy"] is False
    assert len(told["trials"]) == MOST_TRIALS
    assert all(trial["utilization"] < TARGET for trial in told["trials"])
    assert 0 < told["utilization"] < TARGET
    # Longer and longer ones were tried, the last of them longest.
    steps = [trial["batch_compute_ms"] for trial in told["trials"]] + [told["batch_compute_ms"]]
    assert steps == sorted(set(steps))


def test_one_epoch_is_timed_whatever_is_configured_and_its_loader_is_closed():
    search = Search()
    assert [epoch.samples for epoch in search.finished.epochs] == [SAMPLES]
    assert (search.figures["objects"], search.figures["bytes"]) == (SAMPLES, search.catalog.total_bytes)
    (loader,) = search.made
    assert loader.started >= 1
    assert loader.closed == 1


def test_a_late_clock_is_taken_off():
    told = Search(late_ns=2 * MS).told
    assert told["step_overhead_ms"] == pytest.approx(2)
    assert told["utilization_uncorrected"] < told["utilization"]


def test_closing_before_anything_was_made_is_nothing():
    workload = FastestAccelerator(MemoryStorage({}), one_category({"a": 1}), Config(), None, "torch", "random")
    workload.close()
    assert workload.done() == 0


@pytest.mark.parametrize("kind", ["accelerator", "ladder", "knee"])
def test_what_is_not_made_yet_has_done_nothing(kind):
    """A live display asks while a workload prepares, before it has a loader."""
    parts = MemoryStorage({}), one_category({"a": 1}), Config()
    workload = {
        "accelerator": lambda: FastestAccelerator(*parts, None, "torch", "random"),
        "ladder": lambda: Ladder(*parts, None, "torch", "random"),
        "knee": lambda: LoaderKnee(*parts, None, "torch", None),
    }[kind]()
    assert workload.done() == 0
    assert workload.total == 1


class FarStorage(MemoryStorage):
    """Each read takes a while."""

    def _read(self, key, size_bytes):
        time.sleep(0.004)
        return super()._read(key, size_bytes)


def test_a_real_loader_keeps_busy_what_is_about_as_fast_as_it_is_and_its_workers_end():
    import psutil

    from dnnbench.training import torch_build

    contents = make_contents(48)
    storage, catalog = FarStorage(contents, name="aws"), make_catalog(contents)
    settings = ["framework.batch_size=4", "framework.PyTorch.DataLoader.num_workers=1"]
    config = expand_settings({}, settings)[0].config
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    workload = FastestAccelerator(storage, catalog, config, torch_build, "torch", "random")
    try:
        workload.prepare(0)
        start_ns = time.perf_counter_ns()
        workload.run()
        wall_ns = time.perf_counter_ns() - start_ns
        finished = workload.account()
        finished.wall_ns = wall_ns
        for _ in workload.loader:
            pass
        (alone,) = workload.loader.take_epochs()
    finally:
        workload.close()
    told = record([finished], cores=os.cpu_count(), peak_memory_bytes=None)["accelerator"]
    assert finished.objects == len(catalog)
    assert 0.4 <= told["samples_per_s"] / per_second(alone.samples, alone.wall_ns) <= 2.5, told
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before and c.is_running()]
    # What starts workers, and what looks after their memory, stay for the next ones.
    assert not [c for c in left if "spawn_main" in " ".join(c.cmdline())]

"""Does anything grow? Lists, reads, loads and trains over and over in one process: ``python tests/endurance.py``.

Each cycle goes through every storage and client (files, a local S3 server, a local DSS; ``--config FILE`` takes the
storage that this file selects instead), and through both frameworks: listing, raw reads, loaders whose workers live as
long as the run, loaders that are made and closed again, trainings. After each cycle it notes memory, file handles,
processes and threads of this process and all that it started, the servers left out; a line through those notes says
what grows per hour. The exit status is 1 where something grows beyond its bound. Not in CI: an hour says more than a
minute, and less than ten minutes say little.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

from dnnbench.catalog import Catalog, list_catalog
from dnnbench.config import Config, expand_settings, load_config
from dnnbench.probe import PeakMemory, descendants
from dnnbench.servers import LocalServers
from dnnbench.storage.open import clients_of, open_storage, sources_of
from dnnbench.synth import SynthSpec, image, keys
from dnnbench.trained import load_builder
from dnnbench.transfer import transfer
from dnnbench.workloads import Listing, Loading, Reading, Training

LABELS = ("roses", "tulips")
IMAGES_PER_CATEGORY = 16
MEDIAN_BYTES = 20_000
# Of a data set that is given, so many objects are enough: what leaks, leaks per read, and a cycle should be short.
MOST_OBJECTS = 64
FRAMEWORKS = ("torch", "tf")
# Caches and pools fill at first; that is no leak.
WARM_UP_SHARE = 0.25
# What is below this is taken for noise of allocators, or is too slow to matter in the longest of runs.
# Not of pss_mib: it rises where other processes that have mapped the same libraries end.
BOUNDS_PER_HOUR = {"rss_mib": 48.0, "handles": 4.0, "processes": 2.0, "threads": 4.0}
# So many standard errors below the line's slope it still has to be above the bound.
SURE = 2.0


@dataclass(frozen=True)
class Note:
    """What this process and all that it started hold, at a moment."""

    at_s: float
    pss_mib: float
    rss_mib: float
    handles: int
    processes: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """How a quantity grows: the slope of a line through its notes, per hour, and the slope's standard error."""

    per_hour: float
    error: float

    def passes(self, bound: float) -> bool:
        """Whether it surely grows by more than ``bound`` per hour."""
        return self.per_hour - SURE * self.error > bound


def growth(at_s: Sequence[float], values: Sequence[float]) -> Growth:
    """A least-squares line through the values. Needs four of them, at different times."""
    if len(values) < 4:
        raise ValueError(f"a line that says something needs four notes, and there are {len(values)}; run for longer")
    (slope, _), covariance = np.polyfit(np.asarray(at_s) / 3600, values, 1, cov=True)
    return Growth(float(slope), float(np.sqrt(max(covariance[0, 0], 0.0))))


def growths(notes: Sequence[Note]) -> dict[str, Growth]:
    """The growth of each quantity, the warm-up left out."""
    settled = notes[int(len(notes) * WARM_UP_SHARE) :]
    at_s = [note.at_s for note in settled]
    return {
        name: growth(at_s, [getattr(note, name) for note in settled])
        for name in (field.name for field in fields(Note))
        if name != "at_s"
    }


def take_note(start_s: float, without: Collection[int]) -> Note:
    """Looks at this process and everything that descends from it, but for ``without``."""
    gc.collect()
    pss_bytes = rss_bytes = handles = processes = threads = 0
    for pid in (os.getpid(), *descendants()):
        # A worker that ends while it is looked at is gone.
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid in without:
                continue
            process = psutil.Process(pid)
            memory = process.memory_full_info()
            pss_bytes, rss_bytes = pss_bytes + memory.pss, rss_bytes + memory.rss
            handles, threads = handles + process.num_fds(), threads + process.num_threads()
            processes += 1
    return Note(time.monotonic() - start_s, pss_bytes / 2**20, rss_bytes / 2**20, handles, processes, threads)


class Place:
    """One storage and client, its data set, and loaders whose workers live as long as the run."""

    def __init__(self, config: Config, name: str, client: str, frameworks: Sequence[str]) -> None:
        self.config, self.storage = config, open_storage(config, name, client)
        self._sources = sources_of(config, name)
        self.whole = self._list()
        order = np.random.default_rng(0).permutation(len(self.whole))
        self.catalog = self.whole.select(np.sort(order[:MOST_OBJECTS]))
        self._builds = {framework: load_builder(framework) for framework in frameworks}
        self._kept = {framework: self._loader(framework, "random") for framework in frameworks}
        self._cycles = 0

    def _list(self) -> Catalog:
        return list_catalog(self.storage, self._sources, self.config.dataset.label, self.config.execution.workers)

    def _loader(self, framework: str, access: str) -> Any:
        return self._builds[framework].make_loader(self.config, self.storage, self.catalog, access)

    def cycle(self) -> None:
        """Everything once. Raises what goes wrong, and where a count is not what was read."""
        storage, catalog = self.storage, self.catalog
        labels, workers = self.config.dataset.label, self.config.execution.workers
        self._run(Listing(storage, self.whole, self._sources, labels, workers))
        for concurrency in (None, 32):
            self._run(Reading(storage, catalog, concurrency, seed=0))
        for framework, kept in self._kept.items():
            self._run(Loading(storage, catalog, kept, f"{framework} kept"))
            trainer = self._builds[framework].make_trainer(self.config, kept, len(labels))
            self._run(Training(storage, catalog, kept, trainer, f"{framework} train"))
            with contextlib.closing(self._loader(framework, "sequential")) as fresh:
                self._run(Loading(storage, catalog, fresh, f"{framework} fresh"), number=0)
        self._cycles += 1

    def _run(self, workload: Any, number: int | None = None) -> None:
        workload.prepare(self._cycles if number is None else number)
        workload.run()
        workload.account()

    def close(self) -> None:
        for loader in self._kept.values():
            loader.close()
        self.storage.close()


def local_places(folder: Path, servers: LocalServers) -> Iterator[tuple[Config, str, str]]:
    """(configuration, storage, client) for files, a local S3 server through every client, and a local DSS."""
    spec = SynthSpec(LABELS, sources=1, images_per_category=IMAGES_PER_CATEGORY, median_bytes=MEDIAN_BYTES)
    credentials, bucket = servers.aws()
    plain = {"storage": {"fs": {"data_dir": [str(folder / "source1")]}, "s3": {"prefix": ["source1/"]}}}
    plain["storage"]["s3"] |= {"bucket": bucket, "aws": {"credentials": _plain(credentials)}}
    plain["storage"]["s3"] |= {"dss": {"credentials": _plain(servers.dss())}}
    config = _settle(plain)
    clients = {"fs": ["posix"], "aws": ["boto3", "obstore", "s3torchconnector"], "dss": ["obstore"]}
    for name, libraries in clients.items():
        made = ((key, None, lambda at=at: image(spec, *at)) for key, at in keys(spec))
        destination = str(folder) if name == "fs" else ""
        with contextlib.closing(open_storage(config, name, libraries[0])) as storage:
            transfer(made, storage, destination, overwrite=True, progress=False)
        yield from ((config, name, client) for client in libraries)


def configured_places(path: Path) -> Iterator[tuple[Config, str, str]]:
    """(configuration, storage, client) for the storage that a file selects, and each client that it names."""
    config = _settle(load_config(path), str(path))
    name = config.storage.selected
    yield from ((config, name, client) for client in clients_of(config, name))


def _plain(credentials: Any) -> dict[str, Any]:
    return {
        key: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for key, value in credentials.model_dump().items()
        if value is not None
    }


def _settle(data: dict[str, Any], source: str = "endurance") -> Config:
    # Few epochs and small batches: many beginnings and ends, where things are forgotten.
    data = {"dataset": {"label": list(LABELS)}, **data}
    data["framework"] = {"batch_size": 8, "epochs": 2} | data.get("framework", {})
    return expand_settings(data, [], source)[0].config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--config", type=Path, help="a configuration whose storage is used; default: local servers")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dnnbench-endurance-") as folder,
        LocalServers() as servers,
        contextlib.ExitStack() as stack,
    ):
        found = configured_places(arguments.config) if arguments.config else local_places(Path(folder), servers)
        places = [Place(*one, arguments.frameworks) for one in found]
        for place in places:
            stack.callback(place.close)
        notes = _repeat(places, servers, arguments.minutes * 60)
    return _tell(notes)


def _repeat(places: Sequence[Place], servers: LocalServers, for_s: float) -> list[Note]:
    """Cycle after cycle for so many seconds, with a note after each."""
    start_s, notes = time.monotonic(), list[Note]()
    while not notes or notes[-1].at_s < for_s:
        with PeakMemory(without=servers.pids()):
            for place in places:
                place.cycle()
        notes.append(take_note(start_s, servers.pids()))
        held = ", ".join(f"{key} {value:,.0f}" for key, value in asdict(notes[-1]).items())
        served_mib = sum(psutil.Process(pid).memory_info().rss for pid in servers.pids()) / 2**20
        print(f"cycle {len(notes)}: {held}; the servers' rss_mib {served_mib:,.0f}", flush=True)
    return notes


def _tell(notes: Sequence[Note]) -> int:
    """Says what grows; 1 where something passes its bound."""
    leaks = []
    print(f"{len(notes)} cycles in {notes[-1].at_s / 60:.0f} min; growth per hour, the first quarter left out:")
    for name, found in growths(notes).items():
        bound = BOUNDS_PER_HOUR.get(name)
        within = "" if bound is None else f" (bound {bound:g})"
        print(f"  {name}: {found.per_hour:+.2f} ± {SURE * found.error:.2f}{within}")
        if bound is not None and found.passes(bound):
            leaks.append(name)
    print(f"LEAK: {', '.join(leaks)}" if leaks else "nothing grows beyond its bound")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())

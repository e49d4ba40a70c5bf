"""``python -m dnnbench``: makes or copies data, checks and runs configurations, compares, reports, plans, predicts."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dnnbench.check import check_configuration
from dnnbench.config import Config, expand_settings, exposed_secrets, load_config, without_secrets
from dnnbench.errors import DnnbenchError
from dnnbench.run import run_benchmarks

if TYPE_CHECKING:
    from dnnbench.storage.base import Storage

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    passed_on: list[str] = []
    if words[:1] == ["ab"] and "--" in words:
        words, passed_on = words[: words.index("--")], words[words.index("--") + 1 :]
    options = _parser().parse_args(words)
    options.passed_on = passed_on
    try:
        return int(options.command(options) or 0)
    except DnnbenchError as exc:
        print(f"dnnbench: {without_secrets(str(exc))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("dnnbench: interrupted; what was written is whole, run again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """What it says of a mistake shows no secret."""

    def error(self, message: str) -> NoReturn:
        super().error(without_secrets(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m dnnbench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    places = "a folder, s3://BUCKET/PREFIX, dss or dss:PREFIX"

    generate = commands.add_parser("generate", help="make a synthetic data set")
    generate.set_defaults(command=_generate)
    generate.add_argument("destination", metavar="DEST", help=places)
    generate.add_argument("--sources", type=int, default=2, help="sources, each with all categories (default 2)")
    generate.add_argument("--images-per-category", type=int, default=40, help="per source (default 40)")
    generate.add_argument("--median-bytes", type=int, default=110_000, help="median size of an image (default 110000)")
    generate.add_argument("--spread", type=float, default=0.35, help="sigma of the log-normal sizes (default 0.35)")
    generate.add_argument("--seed", type=int, default=0, help="the same seed makes the same bytes (default 0)")

    run = commands.add_parser("run", help="measure what a configuration names; a front to pytest bench/")
    run.set_defaults(command=run_benchmarks)
    run.add_argument("config", metavar="CONFIG", help="configuration file")
    run.add_argument("pytest_arguments", nargs=argparse.REMAINDER, help="passed on to pytest, such as -k loader")

    check = commands.add_parser("check", help="say whether a run would start, and what to mend")
    check.set_defaults(command=check_configuration)
    check.add_argument("config", metavar="CONFIG", help="configuration file")

    predict = commands.add_parser("predict", help="predict images with a saved network")
    predict.set_defaults(command=_predict)
    predict.add_argument("model", metavar="MODEL", help="a file that model.save_dir received (.pt or .keras)")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help=f"an image or what holds some: {places}")

    copy = commands.add_parser("copy", help="copy a data set from any place to any other")
    copy.set_defaults(command=_copy)
    copy.add_argument("source", metavar="SOURCE", help=places)
    copy.add_argument("destination", metavar="DEST", help=places)

    manifest = commands.add_parser("manifest", help="write the checksums of a source, for dataset.verify=checksum")
    manifest.set_defaults(command=_manifest)
    manifest.add_argument("places", metavar="PLACE", nargs="+", help=f"a source: {places}")

    pack = commands.add_parser("pack", help="pack a data set into shards, for dataset.format=tar or tfrecord")
    pack.set_defaults(command=_pack)
    pack.add_argument("catalog", metavar="CATALOG", help=f"a source, or what holds some: {places}")
    pack.add_argument("destination", metavar="DEST", help=f"receives them, for each source in its place: {places}")
    pack.add_argument("--format", choices=("tar", "tfrecord"), default="tar", help="default tar, as WebDataset has it")
    pack.add_argument("--shard-size", metavar="SIZE", type=_size, default="128MiB", help="at most (default 128MiB)")
    pack.add_argument("--seed", type=int, default=0, help="of the samples' order (default 0)")

    _add_compare(commands)
    _add_baseline(commands)
    _add_ab(commands)
    _add_report(commands)
    _add_plan(commands)

    for command in (generate, copy, predict, manifest, pack):
        command.add_argument("--config", metavar="FILE", help="configuration file: credentials, endpoints, categories")
        command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override one key of it")
    for command in (generate, copy, manifest, pack):
        command.add_argument("--concurrency", type=_positive, default=16, help="objects in flight (default 16)")
        command.add_argument("--overwrite", action="store_true", help="replace objects that exist")
    return parser


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare", help="compare runs with runs", description="Exit status: 0 no regression, 1 regression, 2 unusable."
    )
    compare.set_defaults(command=_compare)
    compare.add_argument("baseline", metavar="BASELINE", nargs="+", help="a baseline's name, result files, or globs")
    compare.add_argument(
        "--candidate", metavar="FILE", nargs="+", required=True, action="extend", help="result files, or globs"
    )
    compare.add_argument("--metrics", metavar="NAME[,NAME]", help="compare only these: throughput, listing rate, p50 …")
    compare.add_argument("--all", action="store_true", help="show also what is the same")
    compare.add_argument("-o", dest="output", metavar="FILE", help="write to this file, too")
    _add_rules(compare)
    compare.add_argument("--dir", default=None, metavar="FOLDER", help="where baselines lie (default baselines)")


def _add_rules(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow", metavar="KIND[,KIND]", action="append", default=[], help="compare although this differs"
    )
    command.add_argument("--confidence", type=_share, default=0.95, help="of the intervals (default 0.95)")
    command.add_argument("--tolerance", type=_share, default=0.05, help="so much is the same (default 0.05)")
    command.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default text")


def _add_baseline(commands: Any) -> None:
    baseline = commands.add_parser("baseline", help="keep runs under a name, to compare others with")
    actions = baseline.add_subparsers(required=True, dest="action")
    add = actions.add_parser("add", help="add runs; nothing else ever changes a baseline")
    listing = actions.add_parser("list", help="the baselines that there are")
    show = actions.add_parser("show", help="the runs of one, and how much they spread")
    for action in (add, show):
        action.add_argument("name", metavar="NAME")
    add.add_argument("files", metavar="FILE", nargs="+", help="result files, or globs")
    add.add_argument("--allow", metavar="KIND[,KIND]", action="append", default=[], help="add although this differs")
    for action in (add, listing, show):
        action.set_defaults(command=_baseline)
        action.add_argument("--dir", default="baselines", metavar="FOLDER", help="default baselines")


def _add_ab(commands: Any) -> None:
    ab = commands.add_parser(
        "ab",
        help="measure two configurations in turns, and compare them",
        epilog="What follows -- is passed on to pytest, such as -k loader.",
    )
    ab.set_defaults(command=_ab)
    ab.add_argument("a", metavar="A", help="configuration file: what is compared with")
    ab.add_argument("b", metavar="B", help="configuration file: what is compared")
    ab.add_argument("--runs", type=_positive, default=7, help="of each (default 7)")
    ab.add_argument("-o", dest="folder", metavar="FOLDER", default="ab", help="receives the result files (default ab)")
    ab.add_argument("--resume", action="store_true", help="go on from what the folder holds")
    ab.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override one key of both")
    ab.add_argument("--set-a", metavar="KEY=VALUE", action="append", default=[], help="override one key of A")
    ab.add_argument("--set-b", metavar="KEY=VALUE", action="append", default=[], help="override one key of B")
    _add_rules(ab)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1 (found {text})")
    return value


def _compare(options: argparse.Namespace) -> int:
    from dnnbench.baseline import FOLDER, runs_of
    from dnnbench.compare import METRICS, allowed_kinds, compare_files
    from dnnbench.compare_text import FORMATS, as_text
    from dnnbench.effect import Rules
    from dnnbench.outputs import check_writable, write_whole
    from dnnbench.results import find_files

    baseline = runs_of(options.baseline, Path(options.dir or FOLDER))
    metrics = options.metrics.split(",") if options.metrics else METRICS
    rules = Rules(options.confidence, options.tolerance)
    if options.output:
        check_writable("-o", Path(options.output))
    allowed = allowed_kinds(options.allow)
    compared = compare_files(baseline, find_files(options.candidate), rules, allowed, metrics)
    told = as_text(compared, options.all) if options.format == "text" else FORMATS[options.format](compared)
    print(told)
    if options.output:
        write_whole(Path(options.output), f"{told}\n".encode())
    return compared.exit_status


def _baseline(options: argparse.Namespace) -> int:
    from dnnbench.baseline import baseline_command

    return baseline_command(options)


def _ab(options: argparse.Namespace) -> int:
    from dnnbench.ab import ab_command

    return ab_command(options)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="show result files on one page that opens offline")
    report.set_defaults(command=_report)
    report.add_argument("files", metavar="OUT.json", nargs="+", help="result files, folders of them, or globs")
    report.add_argument("-o", dest="output", metavar="FILE", default="report.html", help="default: report.html")
    report.add_argument(
        "--baseline", metavar="BASELINE", nargs="+", default=[], help="compare with: a baseline's name, files, or globs"
    )


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a cluster would need, from a measured ladder",
        description="From the ladders of a result: what so many accelerators would need of the storage and the "
        "clients, and which known limit is the first to bite. docs/planning.md has the model.",
    )
    plan.set_defaults(command=_plan)
    plan.add_argument("file", metavar="OUT.json", help="a result file with a ladder (pytest bench/ -k ladder)")
    plan.add_argument("--accelerators", type=_positive, required=True, metavar="N", help="in all")
    plan.add_argument("--samples-per-s", type=_above_zero, required=True, metavar="RATE", help="of one accelerator")
    plan.add_argument("--accelerators-per-node", type=_positive, default=8, metavar="N", help="default 8")
    plan.add_argument(
        "--cores-per-node", type=_positive, metavar="N", help="for loading; default: those of the measured machine"
    )
    plan.add_argument("--nic-gbit", type=_above_zero, default=100.0, metavar="GBIT", help="of a node (default 100)")
    plan.add_argument("--endpoints", type=_positive, metavar="N", help="of the storage; default: as many as measured")
    plan.add_argument(
        "--get-per-endpoint", type=_above_zero, metavar="RATE", help="GET/s of one; default: as measured, where it was"
    )
    plan.add_argument(
        "--prefixes", type=_positive, default=1, metavar="N", help="partitioned prefixes of the bucket (default 1)"
    )
    plan.add_argument(
        "--get-per-prefix", type=_above_zero, metavar="RATE", help="GET/s of one; default: AWS 5500, others no limit"
    )
    plan.add_argument("--mean-bytes", type=_above_zero, metavar="BYTES", help="of a sample; default: as measured")
    plan.add_argument("-k", dest="words", default="", metavar="WORDS", help="only ladders so named: aws and torch")
    plan.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default text")
    plan.add_argument("-o", dest="output", metavar="FILE", help="write to this file, too")


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (found {text})")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (found {value})")
    return value


def _configuration(options: argparse.Namespace) -> Config:
    path = options.config
    for warning in exposed_secrets(Path(path) if path else None, options.set):
        print(f"dnnbench: {warning}", file=sys.stderr)
    return expand_settings(load_config(Path(path) if path else None), options.set, path or "", "--set")[0].config


def _generate(options: argparse.Namespace) -> None:
    from dnnbench.manifest import write_manifests
    from dnnbench.synth import SynthSpec, image, keys, size_bytes
    from dnnbench.transfer import Item

    config = _configuration(options)
    spec = SynthSpec(
        labels=tuple(config.dataset.label),
        sources=options.sources,
        images_per_category=options.images_per_category,
        median_bytes=options.median_bytes,
        spread=options.spread,
        seed=options.seed,
    )

    def maker(source: int, category: int, number: int) -> Callable[[], bytes]:
        return lambda: image(spec, source, category, number)

    items: list[Item] = [(key, size_bytes(spec, *place), maker(*place)) for key, place in keys(spec)]
    digests: dict[str, bytes] = {}
    destination, prefix = _transfer(options, config, items, digests)
    write_manifests(destination, prefix, items, digests)


def _copy(options: argparse.Namespace) -> None:
    from dnnbench.transfer import items_of, parse_place

    config = _configuration(options)
    _transfer(options, config, items_of(*parse_place(options.source, config)))


def _size(text: str) -> int:
    from dnnbench.pack import parse_size

    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"expected {exc}") from exc


def _pack(options: argparse.Namespace) -> None:
    from dnnbench.pack import pack
    from dnnbench.transfer import parse_place

    config = _configuration(options)
    start_s = time.perf_counter()
    done = pack(
        *parse_place(options.catalog, config),
        *parse_place(options.destination, config),
        config.dataset.label,
        kind=options.format,
        shard_bytes=options.shard_size,
        seed=options.seed,
        concurrency=options.concurrency,
        overwrite=options.overwrite,
    )
    rate = done.bytes / 1e6 / (time.perf_counter() - start_s)
    print(
        f"{options.destination}: {done.samples:,} samples of {done.sources} sources in {done.shards:,} shards, "
        f"{done.bytes:,} bytes, {rate:.1f} MB/s"
    )


def _manifest(options: argparse.Namespace) -> None:
    from dnnbench.manifest import make_manifest
    from dnnbench.transfer import as_folder, parse_place

    config = _configuration(options)
    for text in options.places:
        storage, prefix = parse_place(text, config)
        start_s = time.perf_counter()
        key, objects, read_bytes = make_manifest(storage, as_folder(prefix), options.concurrency, options.overwrite)
        rate = read_bytes / 1e6 / (time.perf_counter() - start_s)
        print(f"{key}: the checksums of {objects:,} objects, {read_bytes:,} bytes, {rate:.1f} MB/s")


def _predict(options: argparse.Namespace) -> None:
    from dnnbench.storage.errors import NotFoundError
    from dnnbench.trained import Trained, images_at
    from dnnbench.transfer import parse_place

    config = _configuration(options)
    trained = Trained(Path(options.model))
    for text in options.images:
        storage, prefix = parse_place(text, config)
        found = False
        for entry in images_at(storage, prefix):
            found = True
            label, probability = trained.predict(storage, entry)
            print(f"{entry.key}\t{label}\t{probability:.3f}")
        if not found:
            raise NotFoundError(storage.label, text, "there are no images here")


def _report(options: argparse.Namespace) -> None:
    from dnnbench.report import write_report

    print(write_report(options.files, options.baseline, Path(options.output)))


def _plan(options: argparse.Namespace) -> None:
    from dnnbench.outputs import check_writable, write_whole
    from dnnbench.plan import Cluster, plan_all
    from dnnbench.plan_text import FORMATS
    from dnnbench.results import read_result

    if options.output:
        check_writable("-o", Path(options.output))
    cluster = Cluster(
        accelerators=options.accelerators,
        samples_per_s=options.samples_per_s,
        accelerators_per_node=options.accelerators_per_node,
        cores_per_node=options.cores_per_node,
        nic_gbit_per_s=options.nic_gbit,
        endpoints=options.endpoints,
        gets_per_endpoint=options.get_per_endpoint,
        prefixes=options.prefixes,
        gets_per_prefix=options.get_per_prefix,
        mean_bytes=options.mean_bytes,
    )
    told = FORMATS[options.format](plan_all(read_result(Path(options.file)), cluster, options.words))
    print(told)
    if options.output:
        write_whole(Path(options.output), f"{told}\n".encode())


def _transfer(
    options: argparse.Namespace,
    config: Config,
    items: list[Any],
    digests: dict[str, bytes] | None = None,
) -> tuple[Storage, str]:
    """Writes the items to the destination, and returns that."""
    from dnnbench.transfer import parse_place, transfer

    destination, prefix = parse_place(options.destination, config)
    start_s = time.perf_counter()
    done = transfer(
        items,
        destination,
        prefix,
        total=len(items),
        overwrite=options.overwrite,
        concurrency=options.concurrency,
        digests=digests,
    )
    rate = done.bytes / 1e6 / (time.perf_counter() - start_s)
    skipped = f", {done.skipped:,} skipped (there already)" if done.skipped else ""
    print(f"{options.destination}: {done.objects:,} objects, {done.bytes:,} bytes, {rate:.1f} MB/s{skipped}")
    return destination, prefix


if __name__ == "__main__":
    sys.exit(main())

"""The configuration's keys, their types and defaults. Reading a file is in `load`.

Every key has a default, so ``Config()`` is a complete configuration. Keys that end in a unit say
so; dimensions are (height, width) in pixels.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from dnnbench.errors import DnnbenchError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonEmptyStr = Annotated[str, Field(min_length=1)]
# From what a socket can be told to no more than a day.
TimeoutS = Annotated[float, Field(ge=0.001, le=86_400, allow_inf_nan=False)]


def _different_names(value: list[Any]) -> list[Any]:
    if len(set(value)) != len(value):
        raise ValueError("different names (the same one is there twice)")
    return value


def _can_be_path(value: str) -> str:
    try:
        if b"\0" not in os.fsencode(value):
            return value
    except UnicodeEncodeError:
        pass
    raise ValueError("a path (found characters that no file's name can hold)")


PathStr = Annotated[str, AfterValidator(_can_be_path)]
Names = Annotated[list[NonEmptyStr], Field(min_length=1), AfterValidator(_different_names)]


class ConfigError(DnnbenchError):
    """The configuration is wrong; the message names the key's path, what was found and what is expected."""

    def __init__(self, message: str) -> None:
        # What a file or a setting holds may be anything; a message is one line that any terminal can show.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors and types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _one_word(value: str) -> str:
    # What goes into a request's line or headers; one of the client libraries ends the process otherwise.
    if not re.fullmatch(r"[\w.:/-]+", value, re.ASCII):
        raise ValueError('letters, digits and ". : / _ -" alone')
    return value


def _with_host(url: str) -> str:
    """The URL, where it has a host that can be one, and a port that can be one or none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.ip_address(host)
        elif not re.fullmatch(r"[\w.-]+", host, re.ASCII):
            raise ValueError
    except ValueError:
        raise ValueError("a URL with the name or address of a host, and a port below 65536 or none") from None
    return url


class S3Credentials(Section):
    """How to reach and sign in to an S3 server. What is left out comes from the standard AWS chain."""

    endpoint: str | None = None
    region_name: str | None = None
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    profile: str | None = None

    @field_validator("access_key", "secret_key", "session_token", mode="before")
    @classmethod
    def _secret(cls, value: Any) -> Any:
        if isinstance(value, str) and any(char.isspace() or not char.isprintable() for char in value):
            # A line break at the end is what a shell leaves in an environment variable.
            raise ValueError("no white space, line breaks or control characters (found some; the value is not shown)")
        # Strict mode takes no plain string for a SecretStr, and that is what a file holds.
        return SecretStr(value) if isinstance(value, str) else value

    @field_validator("endpoint")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("a URL that starts with http:// or https://")
        if value is not None and "@" in value:
            raise ValueError("a URL without credentials in it (use access_key and secret_key)")
        if value is not None and ("?" in value or "#" in value):
            raise ValueError('a URL without "?" and "#", not one that is signed (use access_key and secret_key)')
        return _with_host(value.rstrip("/")) if value else value

    @field_validator("region_name")
    @classmethod
    def _is_one_word(cls, value: str | None) -> str | None:
        return value if value is None else _one_word(value)

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> S3Credentials:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key together, or neither (then the AWS chain is asked)")
        return self


class S3Account(Section):
    """The ``aws`` or ``dss`` part of ``storage.s3``."""

    credentials: S3Credentials = S3Credentials()


class Requests(Section):
    """``storage.s3.requests``: how long an answer is waited for and how often it is asked for, with every client.

    ``connect_timeout_s``: making a connection; ``read_timeout_s``: the longest silence before an answer or within it;
    ``total_timeout_s``: an operation with all of its attempts and pauses (of a listing: each page). ``back_off_s`` is
    the longest first pause, of which a random part is kept; it doubles with each pause.
    """

    connect_timeout_s: TimeoutS = 1.0
    read_timeout_s: TimeoutS = 10.0
    total_timeout_s: TimeoutS = 60.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    back_off_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _total_is_longest(self) -> Requests:
        for name in ("connect_timeout_s", "read_timeout_s"):
            if getattr(self, name) > self.total_timeout_s:
                raise ValueError(f"{name} to be at most total_timeout_s ({self.total_timeout_s:g})")
        return self


DEFAULT_REQUESTS = Requests()


class S3Storage(Section):
    """``storage.s3``: one bucket, the data set's sources as prefixes, one or several client libraries.

    ``large_prefix``: what the keys of large objects begin with, which are read in ranges; none of the data set's.
    ``list_ranges``: whether a long prefix is listed in several key ranges at once. ``verify_tls``: whether a server
    must show a certificate that is trusted, or the file (PEM) of those that are.
    """

    bucket: str | None = None
    prefix: list[str] = [""]
    large_prefix: list[str] = []
    client_lib: NonEmptyStr | Names = "boto3"
    list_ranges: bool = True
    requests: Requests = DEFAULT_REQUESTS
    verify_tls: bool | NonEmptyStr = True
    aws: S3Account = S3Account()
    dss: S3Account = S3Account()

    @field_validator("bucket")
    @classmethod
    def _is_one_word(cls, value: str | None) -> str | None:
        return value if not value else _one_word(value)

    @field_validator("large_prefix")
    @classmethod
    def _no_part_of_another(cls, value: list[str]) -> list[str]:
        if any(a != b and a.startswith(b) for a in value for b in value) or len(set(value)) != len(value):
            raise ValueError("different prefixes, of which none begins as another does")
        return value

    @field_validator("prefix")
    @classmethod
    def _some_prefix(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError('at least one prefix (use "" for the whole bucket)')
        if len({p.strip("/") for p in value}) != len(value):
            raise ValueError("different prefixes (the same one is there twice)")
        return value

    @property
    def client_libs(self) -> list[str]:
        """The client libraries, always as a list."""
        return [self.client_lib] if isinstance(self.client_lib, str) else list(self.client_lib)


class FsStorage(Section):
    """``storage.fs``: the data set's sources as folders; ``large_dir``: files, and folders of files, read in ranges."""

    data_dir: list[Annotated[str, Field(min_length=1), AfterValidator(_can_be_path)]] = []
    large_dir: list[Annotated[str, Field(min_length=1), AfterValidator(_can_be_path)]] = []

    @field_validator("data_dir", "large_dir")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        if len({os.path.normpath(folder) for folder in value}) != len(value):
            raise ValueError("different folders (the same one is there twice)")
        return value


class Storage(Section):
    """``storage``: ``format`` and ``name`` select the one that runs; the others may be configured too."""

    format: Literal["fs", "s3"] = "fs"
    name: NonEmptyStr = "fs"
    s3: S3Storage = S3Storage()
    fs: FsStorage = FsStorage()

    @model_validator(mode="after")
    def _s3_is_aws_or_dss(self) -> Storage:
        if self.format == "s3" and self.name not in ("aws", "dss"):
            raise ValueError(f'name "aws" or "dss" where format is "s3" (found "{self.name}")')
        if self.format == "fs" and self.name in ("aws", "dss"):
            raise ValueError(f'format "s3" where name is "{self.name}", or another name for a file system')
        return self

    @property
    def selected(self) -> str:
        """The storage that ``format`` and ``name`` select: ``fs``, ``aws`` or ``dss``."""
        return "fs" if self.format == "fs" else self.name


class Access(Section):
    """``dataset.access``: which orders of reading are measured."""

    random: bool = True
    sequential: bool = True

    @model_validator(mode="after")
    def _one_at_least(self) -> Access:
        if not (self.random or self.sequential):
            raise ValueError("random or sequential (or both) to be true")
        return self


class Shards(Section):
    """``dataset.shards``: how shards are read, where ``dataset.format`` is one of shards.

    ``read`` whole: one GET per shard; ranges: of ``range_mib`` each, or one sample where that is larger. ``parallel``
    of them are read at a time by each worker where the framework's ``reading`` is concurrent. ``shuffle_buffer``:
    samples that a worker holds back to yield them in another order, where the order is random. ``folder``: that of
    each source which holds its shards, where it is not ``shards-FORMAT``.
    """

    folder: NonEmptyStr | None = None
    read: Literal["whole", "ranges"] = "ranges"
    range_mib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    parallel: PositiveInt = 4
    shuffle_buffer: NonNegativeInt = 256


class Dataset(Section):
    """``dataset``: the class that reads samples, and what a sample is.

    ``format``: single files, or shards of them (`dnnbench.shards`).
    ``decode`` "reduced" leaves out what ``image_dimension`` has no room for (`dnnbench.images.decode`). ``verify`` is
    what each object that is read is held against: nothing, its listed length, or a checksum too (`dnnbench.manifest`).
    """

    name: NonEmptyStr = "TorchImageClassificationDataset"
    access: Access = Access()
    format: Literal["files", "tar", "tfrecord"] = "files"
    shards: Shards = Shards()
    type: Literal["image"] = "image"
    label: list[NonEmptyStr] = ["roses", "sunflowers", "tulips", "daisy", "dandelion"]
    image_mode: Literal["grey", "colour"] = "grey"
    image_dimension: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = [32, 32]
    decode: Literal["full", "reduced"] = "full"
    verify: Literal["none", "length", "checksum"] = "length"

    @model_validator(mode="after")
    def _checksums_are_of_files(self) -> Dataset:
        if self.format != "files" and self.verify == "checksum":
            raise ValueError(
                f'verify "length" where format is "{self.format}": manifests are of single files (a shard is held '
                "against its index, and a TFRecord against its CRCs, in any case)"
            )
        return self

    @field_validator("label")
    @classmethod
    def _labels(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one category")
        if len(set(value)) != len(value):
            raise ValueError("different categories (the same one is there twice)")
        for label in value:
            if label.strip("/") != label or label in (".", ".."):
                raise ValueError(f'categories as folder names, without "/" at the ends (found "{label}")')
            within = [other for other in value if label.startswith(other + "/")]
            if within:
                raise ValueError(f'categories that hold different images ("{label}" is a folder in "{within[0]}")')
        return value


class Steps(Section):
    """``execution.steps``: what of the benchmarks runs."""

    model: bool = True
    training: bool = True
    inference: bool = True
    metrics: bool = True


class Ranges(Section):
    """``execution.ranges``: large objects are read in ranges of ``size_bytes``, ``concurrency`` of them at a time.

    ``max_bytes``: no more than so much is read in a round.
    """

    size_bytes: PositiveInt = 8 * 1024 * 1024
    concurrency: PositiveInt = 8
    max_bytes: PositiveInt = 1024 * 1024 * 1024


class Execution(Section):
    """``execution``: ``workers`` list in parallel; ``rounds``, ``seed`` and ``cache`` govern measuring.

    ``max_repeats``: how many disturbed rounds of a benchmark are made again. ``ranks``: how many of a launcher's ranks
    take part (None: all); one that gives no sign of life for ``rank_timeout_s`` ends the run.
    """

    workers: PositiveInt = 10
    steps: Steps = Steps()
    rounds: PositiveInt = 3
    seed: NonNegativeInt = 0
    cache: Literal["cold", "warm"] = "cold"
    max_repeats: NonNegativeInt = 2
    ranks: PositiveInt | None = None
    rank_timeout_s: Annotated[float, Field(ge=3, le=3600, allow_inf_nan=False)] = 15.0
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    ranges: Ranges = Ranges()


class DataLoader(Section):
    """``framework.PyTorch.DataLoader``: handed to ``torch.utils.data.DataLoader``."""

    shuffle: bool = True
    num_workers: NonNegativeInt = 2
    persistent_workers: bool = True
    prefetch_factor: PositiveInt = 2
    pin_memory: bool = False
    drop_last: bool = False
    multiprocessing_context: Literal["forkserver", "spawn", "fork"] = "forkserver"


Reading = Literal["plain", "concurrent"]


class PyTorch(Section):
    """``framework.PyTorch``; ``reading``: a worker reads one object after the other, or ``concurrency`` at a time."""

    reading: Reading = "plain"
    concurrency: PositiveInt = 32
    loader: DataLoader = Field(default=DataLoader(), alias="DataLoader")


class TensorFlow(Section):
    """``framework.TensorFlow``: knobs of the ``tf.data`` pipeline.

    ``num_parallel_calls`` reads run at a time and ``prefetch`` batches are kept ready (0: TensorFlow
    tunes both by itself); ``shuffle_buffer`` samples are shuffled in (0: the whole data set).
    With ``reading`` concurrent, whole batches are read, ``concurrency`` objects at a time in all.
    """

    reading: Reading = "plain"
    concurrency: PositiveInt = 32

    num_parallel_calls: NonNegativeInt = 8
    prefetch: NonNegativeInt = 2
    shuffle: bool = True
    shuffle_buffer: NonNegativeInt = 0
    deterministic: bool = True
    drop_last: bool = False


FrameworkName = Literal["PyTorch", "TensorFlow"]


class Framework(Section):
    """``framework``: its loader, and the size and number of batches and epochs."""

    name: FrameworkName | Annotated[list[FrameworkName], Field(min_length=1), AfterValidator(_different_names)] = [
        "PyTorch",
        "TensorFlow",
    ]
    pytorch: PyTorch = Field(default=PyTorch(), alias="PyTorch")
    tensorflow: TensorFlow = Field(default=TensorFlow(), alias="TensorFlow")
    batch_size: PositiveInt = 32
    max_batch_size: PositiveInt = 10
    epochs: PositiveInt = 3

    @property
    def names(self) -> list[str]:
        """The frameworks, always as a list."""
        return [self.name] if isinstance(self.name, str) else list(self.name)


class Model(Section):
    """``model``: the network's class and its loss."""

    name: NonEmptyStr = "ConvNet"
    loss_function: str = "CrossEntropyLoss"
    save_dir: PathStr | None = None


class Training(Section):
    """``training``: the trainer's class; ``batch_compute_ms`` is what a step of ``EmulatedAccelerator`` takes."""

    name: NonEmptyStr = "RandomAccessDatasetTrain"
    batch_compute_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0


class Metrics(Section):
    """``metrics``: where figures go beside pytest-benchmark's JSON."""

    path: PathStr | None = None


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(Section):
    """``prices``: what a provider asks, in ``currency``; GB are of 1024³ bytes, as they are billed.

    ``get_per_1000``: GET, HEAD and all that is not named elsewhere; ``put_list_per_1000``: PUT, COPY, POST and LIST;
    ``transfer_per_gb``: data that leaves the storage. No figure but costs depends on them, so `Config.hash` does not.
    """

    currency: NonEmptyStr = "USD"
    get_per_1000: Price = 0.0004
    put_list_per_1000: Price = 0.005
    transfer_per_gb: Price = 0.0
    storage_per_gb_month: Price = 0.023
    date: NonEmptyStr = "2026-06"
    source: NonEmptyStr = "AWS S3 Standard, us-east-1, list prices, read in that region"


class Config(Section):
    """The whole configuration."""

    storage: Storage = Storage()
    dataset: Dataset = Dataset()
    execution: Execution = Execution()
    framework: Framework = Framework()
    model: Model = Model()
    training: Training = Training()
    device: Literal["cpu", "gpu", "cuda"] = "cpu"
    metrics: Metrics = Metrics()
    prices: Prices = Prices()

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as JSON types, in the file's spelling, secrets masked."""
        return self.model_dump(mode="json", by_alias=True)

    def hash(self) -> str:
        """A SHA-256 over the resolved configuration (16 hex digits); secrets and prices do not enter into it."""
        text = json.dumps({key: value for key, value in self.resolved().items() if key != "prices"}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_storage(self, **parts: Any) -> Config:
        """A copy with parts of ``storage`` (such as ``fs`` or ``s3``) replaced."""
        return self.model_copy(update={"storage": self.storage.model_copy(update=parts)})

    def data_dirs(self) -> list[Path]:
        """``storage.fs.data_dir`` with ``~`` expanded. Raises `ConfigError` for a user that is not known."""
        return [_at_home("storage.fs.data_dir", folder) for folder in self.storage.fs.data_dir]

    def large_dirs(self) -> list[Path]:
        """``storage.fs.large_dir`` with ``~`` expanded. Raises `ConfigError` for a user that is not known."""
        return [_at_home("storage.fs.large_dir", path) for path in self.storage.fs.large_dir]

    def save_dir(self) -> Path | None:
        """``model.save_dir`` with ``~`` expanded. Raises `ConfigError` for a user that is not known."""
        return _at_home("model.save_dir", self.model.save_dir) if self.model.save_dir else None

    def metrics_path(self) -> Path | None:
        """``metrics.path`` with ``~`` expanded. Raises `ConfigError` for a user that is not known."""
        return _at_home("metrics.path", self.metrics.path) if self.metrics.path else None


def _at_home(key: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise ConfigError(f"{key}: {path}: {exc}") from exc

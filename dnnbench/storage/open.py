"""From the configuration to a storage, and to the prefixes of its data set's sources."""

from __future__ import annotations

import os

from dnnbench.config import Config, ConfigError
from dnnbench.storage.base import Storage
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.fs import FsStorage
from dnnbench.storage.s3 import S3Storage

NAMES = ("fs", "aws", "dss")


def clients_of(config: Config, name: str) -> list[str]:
    """The client libraries that the configuration wants for a storage."""
    return [FsStorage.client] if name == "fs" else config.storage.s3.client_libs


def open_storage(config: Config, name: str, client: str | None = None) -> Storage:
    """The storage ``name`` (``fs``, ``aws`` or ``dss``). No request is sent yet. Raises `ConfigError`."""
    s3 = config.storage.s3
    client = client or clients_of(config, name)[0]
    if name == "fs":
        return FsStorage()
    if name == "aws":
        if not s3.bucket:
            raise ConfigError('storage.s3.bucket: is not set, and the storage "aws" needs it')
        return open_bucket(config, s3.bucket, client)
    if name == "dss":
        return DssStorage(s3.dss.credentials, s3.bucket, client, s3.list_ranges, s3.requests, _verify_tls(config))
    raise ConfigError(f'found the storage "{name}", expected one of {", ".join(NAMES)}')


def open_bucket(config: Config, bucket: str, client: str) -> Storage:
    """Any bucket of the configured account. No request is sent yet. Raises `ConfigError`."""
    s3 = config.storage.s3
    return S3Storage(bucket, s3.aws.credentials, client, s3.list_ranges, s3.requests, _verify_tls(config))


def _verify_tls(config: Config) -> bool | str:
    """Whether, or by which file of trusted certificates, servers are verified."""
    verify_tls = config.storage.s3.verify_tls
    if isinstance(verify_tls, bool):
        return verify_tls
    path = os.path.abspath(os.path.expanduser(verify_tls))
    if not os.path.isfile(path):
        raise ConfigError(f"storage.s3.verify_tls: {path}: there is no such file; expected true, false or a PEM file")
    return path


def sources_of(config: Config, name: str) -> list[str]:
    """The prefixes of the data set's sources, each empty or ending in "/". Raises `ConfigError`."""
    if name != "fs":
        return [f"{prefix.strip('/')}/" if prefix.strip("/") else "" for prefix in config.storage.s3.prefix]
    folders = config.data_dirs()
    if not folders:
        raise ConfigError('storage.fs.data_dir: is not set, and the storage "fs" needs it')
    real = [os.path.realpath(folder) for folder in folders]
    for i, folder in enumerate(folders):
        if not os.path.isdir(folder):
            raise ConfigError(f"storage.fs.data_dir[{i}]: {folder}: there is no such folder")
        if real.index(real[i]) < i:
            raise ConfigError(
                f"storage.fs.data_dir[{i}]: {folder}: is the same folder as {folders[real.index(real[i])]}"
            )
    return [f"{folder}/" for folder in folders]


def large_places(config: Config, name: str) -> list[str]:
    """Where objects lie that are read in ranges, as `Storage.list` takes it: S3 prefixes as they are configured.

    Of a file system folders, which end in "/", and files. Raises `ConfigError`.
    """
    if name != "fs":
        return list(config.storage.s3.large_prefix)
    places = []
    for i, path in enumerate(config.large_dirs()):
        if not path.exists():
            raise ConfigError(f"storage.fs.large_dir[{i}]: {path}: there is no such folder or file")
        places.append(f"{path}/" if path.is_dir() else str(path))
    return places

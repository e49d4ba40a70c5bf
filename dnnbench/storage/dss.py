"""DSS: several clusters of S3 endpoints behind one name space. Placement is in `dss_placement`.

The facts of the wire (``conf.json``, hidden buckets ``dss<id>``, placement) are the design's.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from dnnbench.config import DEFAULT_REQUESTS, Requests, S3Credentials
from dnnbench.storage.base import Entry
from dnnbench.storage.dss_placement import place
from dnnbench.storage.errors import MisconfiguredError, NotFoundError
from dnnbench.storage.key_ranges import list_in_ranges
from dnnbench.storage.merge import merged
from dnnbench.storage.ranges import Part
from dnnbench.storage.s3 import EndpointStorage, client_class, listers

DISCOVERY_BUCKET = "dss"
DISCOVERY_KEY = "conf.json"


class _Endpoint(BaseModel):
    ipv4: str
    port: Annotated[int, Field(ge=1, le=65535)]


class _Cluster(BaseModel):
    id: Annotated[int, Field(ge=0)]
    endpoints: Annotated[list[_Endpoint], Field(min_length=1)]


class _Conf(BaseModel):
    """``conf.json``; keys that we do not know are left to the DSS."""

    clusters: Annotated[list[_Cluster], Field(min_length=1)]
    transport_type: str = "minio"

    @field_validator("clusters")
    @classmethod
    def _ids_differ(cls, value: list[_Cluster]) -> list[_Cluster]:
        if len({cluster.id for cluster in value}) != len(value):
            raise ValueError("cluster ids that differ")
        return value


@dataclass(frozen=True)
class Cluster:
    """One cluster: the bucket that holds its keys, and the URLs of its endpoints."""

    id: int
    bucket: str
    endpoints: tuple[str, ...]


class DssStorage(EndpointStorage):
    """The name space of a DSS, without its buckets. An endpoint without ``conf.json`` is plain S3 with ``bucket``."""

    name = "dss"

    def __init__(
        self,
        credentials: S3Credentials,
        bucket: str | None = None,
        client: str = "boto3",
        list_ranges: bool = True,
        rules: Requests = DEFAULT_REQUESTS,
        verify_tls: bool | str = True,
    ) -> None:
        self.bucket = bucket
        self._known: tuple[Cluster, ...] = ()
        super().__init__(credentials, client, list_ranges, rules, verify_tls)
        if credentials.endpoint is None and "DSS_CONFIG_FILE" not in os.environ:
            raise MisconfiguredError(self.label, "storage.s3.dss.credentials.endpoint", "is not set")

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """The clusters, asked for once; they travel to other processes with the storage."""
        if not self._known:
            self._known = self._discover()
        return self._known

    @property
    def _is_plain(self) -> bool:
        return self.clusters[0].id < 0

    # -- discovery -------------------------------------------------------------------------------

    def _discover(self) -> tuple[Cluster, ...]:
        path = os.environ.get("DSS_CONFIG_FILE")
        if path:
            try:
                with open(path, "rb") as file:
                    return self._parse(file.read(), path)
            except OSError as exc:
                problem = f"the file that DSS_CONFIG_FILE names cannot be read ({exc.strerror})"
                raise MisconfiguredError(self.label, path, problem) from exc
        endpoint = str(self.credentials.endpoint)
        where = f"{endpoint}/{DISCOVERY_BUCKET}/{DISCOVERY_KEY}"
        try:
            data = bytes(self._ask([endpoint], lambda client: client.get(DISCOVERY_BUCKET, DISCOVERY_KEY)))
        except NotFoundError:
            if not self.bucket:
                problem = "there is none, so this is a plain S3 server, and storage.s3.bucket is not set"
                raise MisconfiguredError(self.label, where, problem) from None
            return (Cluster(-1, self.bucket, (endpoint,)),)
        return self._parse(data, where)

    def _parse(self, data: bytes, where: str) -> tuple[Cluster, ...]:
        try:
            conf = _Conf.model_validate(json.loads(data))
        except ValidationError as exc:
            error = exc.errors(include_url=False)[0]
            path = ".".join(str(part) for part in error["loc"]) or "it"
            problem = f"conf.json is malformed: {path}: {error['msg'].removeprefix('Value error, ')}"
            raise MisconfiguredError(self.label, where, problem) from exc
        except ValueError as exc:
            raise MisconfiguredError(self.label, where, f"conf.json is malformed: not JSON ({exc})") from exc
        if conf.transport_type == "rdd":
            problem = 'transport_type "rdd" (RDMA) is not supported; use endpoints of type "minio"'
            raise MisconfiguredError(self.label, where, problem)
        if conf.transport_type != "minio":
            problem = f'transport_type "{conf.transport_type}" is not known; expected "minio"'
            raise MisconfiguredError(self.label, where, problem)
        scheme = "https" if str(self.credentials.endpoint).startswith("https://") else "http"
        clusters = sorted(conf.clusters, key=lambda cluster: cluster.id)
        return tuple(
            Cluster(c.id, f"dss{c.id}", tuple(f"{scheme}://{e.ipv4}:{e.port}" for e in c.endpoints)) for c in clusters
        )

    # -- requests --------------------------------------------------------------------------------

    def locate(self, key: str) -> tuple[Cluster, list[str]]:
        """The cluster that holds a key, and its endpoints in the order in which to ask them."""
        if self._is_plain:
            return self.clusters[0], list(self.clusters[0].endpoints)
        cluster_id, weight = place([cluster.id for cluster in self.clusters], key)
        cluster = next(cluster for cluster in self.clusters if cluster.id == cluster_id)
        first = weight % len(cluster.endpoints)
        return cluster, [*cluster.endpoints[first:], *cluster.endpoints[:first]]

    def _open(self) -> None:
        for cluster in self.clusters:
            for endpoint in cluster.endpoints:
                self._connect(endpoint).open(cluster.bucket)

    def _list(self, prefix: str) -> Iterator[Entry]:
        pages = [self._pages(cluster.endpoints, cluster.bucket, prefix) for cluster in self.clusters]
        return merged([itertools.chain.from_iterable(of_cluster) for of_cluster in pages])

    def _list_many(self, prefixes: Sequence[str], workers: int) -> Iterator[tuple[int, Sequence[Entry]]]:
        if not (self._list_ranges and client_class(self.client).begins_after):
            yield from super()._list_many(prefixes, workers)
            return
        clusters = self.clusters
        sources = [
            (prefix, partial(self._pages, cluster.endpoints, cluster.bucket, prefix))
            for prefix in prefixes
            for cluster in clusters
        ]
        for number, page in list_in_ranges(sources, listers(workers, len(sources), self.one_core)):
            yield number // len(clusters), page

    def _size(self, key: str) -> int:
        cluster, endpoints = self.locate(key)
        return self._ask(endpoints, lambda client: client.size(cluster.bucket, key))

    def _read(self, key: str, size_bytes: int | None) -> Any:
        cluster, endpoints = self.locate(key)
        return self._get(endpoints, cluster.bucket, key, size_bytes)

    def _read_verified(self, key: str, size_bytes: int | None) -> Any:
        cluster, endpoints = self.locate(key)
        return self._ask(endpoints, lambda client: client.get_verified(cluster.bucket, key, size_bytes))

    def _read_range(self, key: str, start: int, end: int) -> Part:
        cluster, endpoints = self.locate(key)
        return self._ask(endpoints, lambda client: client.get_range(cluster.bucket, key, start, end))

    def _write(self, key: str, data: bytes) -> None:
        cluster, endpoints = self.locate(key)
        self._ask(endpoints, lambda client: client.put(cluster.bucket, key, data))

    def settings(self) -> dict[str, Any]:
        servers = {client.server for client in self._clients.values() if client.server}
        return {
            "endpoint": self.credentials.endpoint,
            "clusters": [{"id": c.id, "endpoints": list(c.endpoints)} for c in self.clusters],
            "server": ", ".join(sorted(servers)) or None,
            **self._in_force(),
        }

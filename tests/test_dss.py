"""DSS: placement against known answers, discovery and its errors, fail-over, plain S3 behind the same door."""

import json
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnbench.config import S3Credentials
from dnnbench.storage import Entry, MisconfiguredError, NotFoundError, UnreachableError
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.dss_placement import murmur_hash_64a, place, weight

KNOWN = {
    "x": (16154611632512610361, 2),
    "": (2297668033614959926, 1),
    "flower_photos/daisy/a.jpg": (4001025908631063299, 0),
    "flower_photos2/tulips/日本.jpg": (7539038088963126121, 1),
}


@pytest.mark.parametrize("key", KNOWN)
def test_hash_and_placement_have_the_known_answers(key):
    value, cluster = KNOWN[key]
    assert murmur_hash_64a(f"0{key}".encode()) == value
    assert place([0, 1, 2, 3], key)[0] == cluster


@given(st.text(), st.sets(st.integers(0, 50), min_size=1, max_size=8))
def test_every_key_has_one_cluster_whatever_the_order_of_the_clusters(key, ids):
    ordered = sorted(ids)
    cluster, its_weight = place(ordered, key)
    assert place(ordered[::-1], key) == (cluster, its_weight)
    assert cluster in ids
    assert its_weight == weight(cluster, key) == max(weight(i, key) for i in ids)


@given(st.text(), st.sets(st.integers(0, 50), min_size=2, max_size=8))
def test_losing_a_cluster_moves_only_its_own_keys(key, ids):
    home, _ = place(sorted(ids), key)
    for gone in ids - {home}:
        assert place(sorted(ids - {gone}), key)[0] == home


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_keys_spread_evenly_over_clusters_and_endpoints(count):
    keys = [f"flower_photos/class{i % 5}/image_{i:06d}.jpg" for i in range(20_000)]
    placed = [place(range(count), key) for key in keys]
    clusters = Counter(cluster for cluster, _ in placed)
    assert max(clusters.values()) < 1.1 * min(clusters.values())
    endpoints = Counter(its_weight % 3 for _, its_weight in placed)
    assert max(endpoints.values()) < 1.1 * min(endpoints.values())


def test_a_tie_goes_to_the_lowest_id(monkeypatch):
    monkeypatch.setattr("dnnbench.storage.dss_placement.weight", lambda cluster_id, key: 7)
    assert place([3, 1, 2], "k") == (1, 7)


def _from_file(monkeypatch, tmp_path, text, **kwargs):
    path = tmp_path / "conf.json"
    path.write_text(text)
    monkeypatch.setenv("DSS_CONFIG_FILE", str(path))
    return DssStorage(S3Credentials(endpoint="http://127.0.0.1:1"), **kwargs)


MALFORMED = {
    "not JSON": "{",
    "no object": "[]",
    "no clusters": "{}",
    "empty clusters": '{"clusters": []}',
    "no endpoints": '{"clusters": [{"id": 0, "endpoints": []}]}',
    "no port": '{"clusters": [{"id": 0, "endpoints": [{"ipv4": "127.0.0.1"}]}]}',
    "port out of range": '{"clusters": [{"id": 0, "endpoints": [{"ipv4": "127.0.0.1", "port": 99999}]}]}',
    "same id twice": '{"clusters": [{"id": 0, "endpoints": [{"ipv4": "a", "port": 1}]},'
    ' {"id": 0, "endpoints": [{"ipv4": "b", "port": 1}]}]}',
    "no text": "\x00\x01",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_conf_json_is_one_clear_line(case, monkeypatch, tmp_path):
    storage = _from_file(monkeypatch, tmp_path, MALFORMED[case])
    with pytest.raises(MisconfiguredError, match="malformed") as caught:
        storage.read("key")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_rdma_is_refused_with_its_name(monkeypatch, tmp_path):
    conf = {"clusters": [{"id": 0, "endpoints": [{"ipv4": "127.0.0.1", "port": 1}]}], "transport_type": "rdd"}
    with pytest.raises(MisconfiguredError, match="RDMA"):
        _from_file(monkeypatch, tmp_path, json.dumps(conf)).read("key")


def test_clusters_come_sorted_with_their_hidden_buckets(monkeypatch, tmp_path):
    ends = [{"ipv4": "10.0.0.1", "port": 9000}, {"ipv4": "10.0.0.2", "port": 9001}]
    conf = {"clusters": [{"id": 7, "endpoints": ends}, {"id": 2, "endpoints": ends}], "init_time": "x"}
    storage = _from_file(monkeypatch, tmp_path, json.dumps(conf))
    assert [(c.id, c.bucket) for c in storage.clusters] == [(2, "dss2"), (7, "dss7")]
    assert storage.clusters[0].endpoints == ("http://10.0.0.1:9000", "http://10.0.0.2:9001")


def _closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_an_endpoint_that_refuses_is_unreachable():
    storage = DssStorage(S3Credentials(endpoint=f"http://127.0.0.1:{_closed_port()}", access_key="a", secret_key="b"))
    with pytest.raises(UnreachableError, match="no connection"):
        list(storage.list("x/"))


def test_a_cluster_answers_through_its_other_endpoint(local_servers, monkeypatch, tmp_path):
    credentials = local_servers.dss()
    conf = {
        "clusters": [
            {"id": c.id, "endpoints": [{"ipv4": "127.0.0.1", "port": _closed_port()}, *_endpoints(c)]}
            for c in DssStorage(credentials).clusters
        ]
    }
    path = tmp_path / "conf.json"
    path.write_text(json.dumps(conf))
    monkeypatch.setenv("DSS_CONFIG_FILE", str(path))
    storage = DssStorage(credentials)
    keys = [f"failover/{i}.bin" for i in range(12)]
    for key in keys:
        storage.write(key, key.encode())
    assert sorted(entry.key for entry in storage.list("failover/")) == sorted(keys)
    storage.meter.take()
    assert [storage.read(key) for key in keys] == [key.encode() for key in keys]
    # A dead endpoint is asked once and then last, so it costs no retry for every key.
    assert storage.meter.take().retries <= len(conf["clusters"])


@pytest.mark.parametrize("breaks_after", [0, 1, 3])
def test_a_listing_that_breaks_off_goes_on_at_the_next_endpoint(monkeypatch, tmp_path, breaks_after):
    ends = [{"ipv4": "10.0.0.1", "port": port} for port in (1, 2)]
    conf = {"clusters": [{"id": 0, "endpoints": ends}]}
    storage = _from_file(monkeypatch, tmp_path, json.dumps(conf))
    entries = [Entry(key, 1) for key in ("a", "b", "é", "日")]

    class Client:
        def __init__(self, endpoint):
            self.endpoint, self.breaks = endpoint, endpoint.endswith(":1")

        def pages(self, bucket, prefix, start_after):
            later = [entry for entry in entries if entry.key > start_after]
            yield from ([entry] for entry in (later[:breaks_after] if self.breaks else later))
            if self.breaks:
                raise UnreachableError("dss (boto3)", prefix, "broke off")

    monkeypatch.setattr(storage, "_connect", Client)
    assert list(storage.list("")) == entries
    assert storage.meter.take().retries == 1
    monkeypatch.setattr(storage, "_connect", lambda endpoint: Client("http://10.0.0.1:1"))
    with pytest.raises(UnreachableError, match="broke off"):
        list(storage.list(""))


def test_an_endpoint_that_hangs_is_asked_last_from_then_on(monkeypatch, tmp_path):
    ends = [{"ipv4": "10.0.0.1", "port": port} for port in (1, 2)]
    storage = _from_file(monkeypatch, tmp_path, json.dumps({"clusters": [{"id": 0, "endpoints": ends}]}))
    asked = []

    class Client:
        def __init__(self, endpoint):
            self.endpoint = endpoint

        def open(self, bucket):
            pass

        def get(self, bucket, key, size_bytes):
            asked.append(self.endpoint[-1])
            if self.endpoint.endswith(":1"):
                raise UnreachableError("dss (boto3)", key, "no answer within 60 s")
            return b"x"

    monkeypatch.setattr(storage, "_connect", Client)
    for i in range(20):
        assert storage.read(f"key{i}") == b"x"
    assert asked.count("1") == 1


def _endpoints(cluster):
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in cluster.endpoints]
    return [{"ipv4": "127.0.0.1", "port": port} for port in ports]


def test_each_key_lives_in_its_own_cluster_only(local_servers):
    from dnnbench.storage.s3 import S3Storage

    credentials = local_servers.dss()
    storage = DssStorage(credentials)
    keys = [f"placed/{i}.bin" for i in range(40)]
    for key in keys:
        storage.write(key, b"x")
    seen = {}
    for cluster in storage.clusters:
        there = S3Storage(cluster.bucket, credentials.model_copy(update={"endpoint": cluster.endpoints[0]}))
        for entry in there.list("placed/"):
            assert entry.key not in seen, "a key lives in two clusters"
            seen[entry.key] = cluster.id
    assert seen == {key: place([0, 1], key)[0] for key in keys}
    assert set(seen.values()) == {0, 1}


def test_an_endpoint_without_conf_json_is_plain_s3(local_servers):
    credentials, bucket = local_servers.aws()
    storage = DssStorage(credentials, bucket)
    storage.write("plain/a.bin", b"abc")
    assert storage.read("plain/a.bin", 3) == b"abc"
    assert storage.size("plain/a.bin") == 3
    with pytest.raises(MisconfiguredError, match=r"storage\.s3\.bucket is not set"):
        DssStorage(credentials).read("plain/a.bin")


def test_a_missing_key_is_not_tried_at_every_endpoint(local_servers):
    storage = DssStorage(local_servers.dss())
    assert storage.clusters
    storage.meter.take()
    with pytest.raises(NotFoundError):
        storage.read("not/there.jpg")
    tally = storage.meter.take()
    assert (tally.requests["GET"], tally.retries, tally.errors) == (1, 0, 1)

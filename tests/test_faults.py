"""Every client library meets every fault, in front of a real server: what `fault_table` says comes of it."""

import hashlib
import json
import pickle
import time
import uuid
from pathlib import Path

import fault_table
import pytest
from fault_table import AGAIN, CHANGED, CLIENTS, COMPARED, DSS, FAILS, FOLLOWED, LISTING, READING, REFUSED, UNSEEN
from faulty import Proxy
from test_bench import LABELS, _fails, bench, jpeg

from dnnbench.catalog import list_catalog
from dnnbench.config import Requests
from dnnbench.errors import DnnbenchError
from dnnbench.storage import CorruptError
from dnnbench.storage.dss import DssStorage
from dnnbench.storage.s3 import S3Storage
from dnnbench.workloads import Listing

CONTENT = bytes(range(256)) * 40
# Nothing that is slow by accident is taken for a fault, and no pause is long.
PATIENT = {"connect_timeout_s": 5, "read_timeout_s": 10, "total_timeout_s": 20, "back_off_s": 0.01}
# How long after its time an operation may end on a machine that is busy. A hang is longer.
LATE_S = 10
_READ_500 = READING["500"].options
NAMES = [f"{i}.jpg" for i in range(8)]


@pytest.fixture(scope="module")
def behind(local_servers):
    """(proxy, credentials of the proxy, of the server, bucket)."""
    credentials, bucket = local_servers.aws()
    with Proxy(credentials.endpoint, page_keys=3) as proxy:
        yield proxy, credentials.model_copy(update={"endpoint": proxy.endpoint}), credentials, bucket


@pytest.fixture
def proxy(behind):
    yield behind[0]
    behind[0].mend()


class Place:
    """A prefix of its own behind the proxy, with an object ``key``."""

    def __init__(self, behind):
        self.proxy, self.credentials, upstream, self.bucket = behind
        self.upstream = S3Storage(self.bucket, upstream)
        self.prefix = f"{uuid.uuid4()}/"
        self.key = f"{self.prefix}roses/0.jpg"
        self.upstream.write(self.key, CONTENT)

    def storage(self, client, **rules):
        storage = S3Storage(self.bucket, self.credentials, client, rules=Requests(**PATIENT | rules))
        storage.open()
        return storage

    def tells_region(self):
        """Whether the server says where the bucket is: then boto3 asks there after a redirect."""
        answer = self.upstream.connection()._client.head_bucket(Bucket=self.bucket)
        return "x-amz-bucket-region" in answer["ResponseMetadata"]["HTTPHeaders"]

    def fill(self):
        for name in NAMES:
            self.upstream.write(f"{self.prefix}roses/{name}", CONTENT)


@pytest.fixture
def place(behind, proxy):
    return Place(behind)


def _ends(storage, call, row, *named):
    """Checks that the call ends, in time, in the row's error: one line with storage, what is named, and the cause."""
    begun_s = time.monotonic()
    with pytest.raises(DnnbenchError) as caught:
        call()
    assert time.monotonic() - begun_s < storage.rules.total_timeout_s + LATE_S
    kinds = [kind.__name__ for kind in type(caught.value).__mro__]
    message = str(caught.value)
    assert row.error in kinds, message
    for words in (storage.label, row.words, *named):
        assert words in message
    assert "\n" not in message


def _all_counted(storage, proxy):
    """Checks that what was counted is what came to the proxy; returns the retries."""
    tally = storage.meter.take()
    seen = [verb for verb, _ in proxy.seen]
    assert dict(tally.requests) == {verb: seen.count(verb) for verb in seen}
    return tally.retries


def _is_seen_with_a_checksum(storage, key):
    storage.meter.take()
    with pytest.raises(CorruptError, match="SHA-256"):
        storage.read(key, len(CONTENT), hashlib.sha256(CONTENT).digest())
    assert not storage.meter.take().latency_ns, "a corrupt read is no figure"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", READING)
def test_a_read_meets_a_fault(place, proxy, fault, client):
    row = READING[fault].of(client)
    if fault in ("301", "307") and client == "boto3" and not place.tells_region():
        row = READING[fault]
    storage = place.storage(client, **row.rules)
    read = lambda: storage.read(place.key, len(CONTENT))  # noqa: E731 (said several times)
    if row.outcome == FAILS:
        proxy.fail(**row.options, times=None)
        _ends(storage, read, row, place.key)
        _all_counted(storage, proxy)
        return
    proxy.fail(**row.options)
    data = read()
    if row.outcome == UNSEEN:
        assert data != CONTENT
        assert len(data) == len(CONTENT)
        proxy.fail(**row.options)
        _is_seen_with_a_checksum(storage, place.key)
        return
    assert data == CONTENT
    if row.outcome == FOLLOWED:
        assert (dict(storage.meter.take().requests), len(proxy.seen)) == ({"GET": 1}, 2)
        return
    assert (_all_counted(storage, proxy) > 0) == (row.outcome == AGAIN)
    if row.outcome == AGAIN:
        proxy.mend()
        proxy.fail(**row.options, times=None)
        _ends(storage, read, row, place.key)
        assert _all_counted(storage, proxy) > 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_is_refused(place, proxy, client):
    row = REFUSED["refused"].of(client)
    storage = place.storage(client)
    proxy.refuse()
    _ends(storage, lambda: storage.read(place.key, len(CONTENT)), row, place.key, proxy.endpoint)
    tally = storage.meter.take()
    assert tally.requests["GET"] == tally.retries + 1 > 1
    proxy.listen()
    assert storage.read(place.key, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("change", CHANGED)
def test_an_object_changes_after_it_was_listed(place, client, change):
    row = CHANGED[change].of(client)
    storage = place.storage(client)
    (entry,) = storage.list(place.prefix)
    contents = {"shorter": CONTENT[:-1], "longer": CONTENT + b"x", "same length": CONTENT[::-1]}
    if change in contents:
        place.upstream.write(place.key, contents[change])
    else:
        place.upstream.connection().delete(place.bucket, place.key)
    if row.outcome == UNSEEN:
        assert storage.read(*entry) == CONTENT[::-1]
        _is_seen_with_a_checksum(storage, place.key)
        return
    _ends(storage, lambda: storage.read(*entry), row, place.key)
    tally = storage.meter.take()
    assert (tally.errors, len(tally.latency_ns)) == (1, 0)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", LISTING)
def test_a_listing_meets_a_fault(place, proxy, fault, client):
    row = LISTING[fault].of(client)
    place.fill()
    storage = place.storage(client, **row.rules)
    catalog = list_catalog(storage, [place.prefix], ["roses"], 1)
    assert [catalog.relative_key(i) for i in range(len(catalog))] == NAMES
    again = lambda: list_catalog(storage, [place.prefix], ["roses"], 1)  # noqa: E731
    _ = storage.meter.take(), proxy.mend()
    # The second page.
    proxy.fail(**row.options, verb="LIST", after=1, times=1 if row.outcome in (AGAIN, FAILS) else None)
    if row.outcome == FAILS:
        _ends(storage, again, row, place.prefix)
    elif row.outcome == COMPARED:
        listing = Listing(storage, catalog, [place.prefix], ["roses"], 1)
        listing.prepare(0)
        listing.run()
        _ends(storage, listing.account, row)
    else:
        assert again().hash() == catalog.hash()
        # How many pages obstore has asked for it does not tell.
        assert storage.meter.take().retries == 1
        proxy.mend()
        proxy.fail(**row.options, verb="LIST", after=1, times=None)
        _ends(storage, again, row, place.prefix)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_page_that_never_comes_ends_a_listing(place, proxy, client):
    """Also of a client that can only begin anew, and so gets the pages before it each time."""
    place.fill()
    storage = place.storage(client)
    proxy.fail(**_READ_500, verb="LIST", token="page-1", times=None)
    listed = lambda: sorted(entry.key for entry in storage.list(place.prefix))  # noqa: E731
    if storage.connection().begins_after and client != "obstore":
        # It asks for what comes after the page before, which is another page.
        assert listed() == [f"{place.prefix}roses/{name}" for name in NAMES]
    else:
        _ends(storage, listed, LISTING["500"], place.prefix, "given up after")


# -- DSS -------------------------------------------------------------------------------------------


class Dss:
    """A DSS behind a proxy for each endpoint; ``proxies`` by the URL of the endpoint behind it."""

    def __init__(self, credentials):
        self.upstream = DssStorage(credentials)
        self.proxies = {}
        for endpoint in [credentials.endpoint, *(e for c in self.upstream.clusters for e in c.endpoints)]:
            if endpoint not in self.proxies:
                self.proxies[endpoint] = Proxy(endpoint, rewrite=self._rewrite)
        self.credentials = credentials.model_copy(update={"endpoint": self.proxies[credentials.endpoint].endpoint})

    def _rewrite(self, key, body):
        if key == "conf.json":
            for endpoint, proxy in self.proxies.items():
                body = body.replace(endpoint.rpartition(":")[2].encode(), str(proxy.port).encode())
        return body

    def of(self, cluster):
        """The proxies of a cluster's endpoints."""
        return [self.proxies[endpoint] for endpoint in self.upstream.clusters[cluster].endpoints]


@pytest.fixture(scope="module")
def all_of_dss(local_servers):
    dss = Dss(local_servers.dss())
    yield dss
    for proxy in dss.proxies.values():
        proxy.close()


@pytest.fixture
def dss(all_of_dss):
    yield all_of_dss
    for proxy in all_of_dss.proxies.values():
        proxy.mend()


@pytest.fixture
def in_dss(dss):
    """(the DSS, sorted keys in it, four of each cluster)."""
    prefix = f"{uuid.uuid4()}/"
    # As many names are looked at as it takes: now and then eight names in a row lie in one cluster.
    candidates = [f"{prefix}{number:03}.jpg" for number in range(1000)]
    keys = sorted(
        key
        for cluster in dss.upstream.clusters
        for key in [key for key in candidates if dss.upstream.locate(key)[0].id == cluster.id][:4]
    )
    assert len(keys) == 4 * len(dss.upstream.clusters)
    for key in keys:
        dss.upstream.write(key, CONTENT)
    return dss, keys


def _open(dss, client):
    storage = DssStorage(dss.credentials, client=client, rules=Requests(**PATIENT))
    storage.open()
    storage.meter.take()
    return storage


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dss_endpoint_is_down(in_dss, client):
    dss, keys = in_dss
    if any(len(cluster.endpoints) < 2 for cluster in dss.upstream.clusters):
        pytest.skip("each cluster of this server has one endpoint only")
    storage = _open(dss, client)
    # The one that the first key is asked for at.
    dss.proxies[dss.upstream.locate(keys[0])[1][0]].refuse()
    assert [storage.read(key, len(CONTENT)) for key in keys] == [CONTENT] * len(keys)
    assert storage.meter.take().retries > 0
    assert sorted(entry.key for entry in storage.list(keys[0].rpartition("/")[0])) == keys


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dss_cluster_is_down(in_dss, client):
    dss, keys = in_dss
    row = DSS["cluster"].of(client)
    storage = _open(dss, client)
    down = dss.upstream.clusters[1]
    for proxy in dss.of(1):
        proxy.refuse()
    for key in keys:
        if dss.upstream.locate(key)[0] == down:
            _ends(storage, lambda key=key: storage.read(key, len(CONTENT)), row, key)
        else:
            assert storage.read(key, len(CONTENT)) == CONTENT
    _ends(storage, lambda: list(storage.list(keys[0].rpartition("/")[0])), row)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dss_has_lost_its_conf_json(in_dss, client):
    dss, keys = in_dss
    storage = _open(dss, client)
    gone = {"kind": "error", "key": "^conf.json$", "status": 404, "code": "NoSuchKey", "times": None}
    for proxy in dss.proxies.values():
        proxy.fail(**gone)
    for one in (storage, pickle.loads(pickle.dumps(storage))):  # noqa: S301 (our own bytes)
        assert [one.read(key, len(CONTENT)) for key in keys] == [CONTENT] * len(keys)
    with pytest.raises(DnnbenchError, match=r"conf\.json: there is none"):
        DssStorage(dss.credentials, client=client, rules=Requests(**PATIENT)).read(keys[0])


# -- a whole run -----------------------------------------------------------------------------------


def configuration(folder, credentials, bucket, prefix, **s3):
    """Writes a configuration of `images`; returns its path."""
    account = {
        "endpoint": credentials.endpoint,
        "access_key": credentials.access_key.get_secret_value(),
        "secret_key": credentials.secret_key.get_secret_value(),
    }
    s3 = {"bucket": bucket, "prefix": [prefix], "aws": {"credentials": account}, **s3}
    path = folder / "faulty.json"
    path.write_text(json.dumps({"storage": {"format": "s3", "name": "aws", "s3": s3}, "dataset": {"label": LABELS}}))
    return path


def images(upstream, prefix):
    """Writes four pictures of each category."""
    for label in LABELS:
        for i in range(4):
            upstream.write(f"{prefix}{label}/{i}.jpg", jpeg(i))


def test_a_benchmark_whose_reads_fail_publishes_no_figure_and_is_one_line(place, proxy, tmp_path):
    prefix, out = f"{place.prefix}run/", tmp_path / "out.json"
    images(place.upstream, prefix)
    config = configuration(tmp_path, place.credentials, place.bucket, prefix, requests={"back_off_s": 0})
    bad = f"{prefix}roses/2.jpg"
    proxy.fail("error", key=f"{bad}$", status=500, code="InternalError", times=None)
    done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", "-k", "read and (c8 or serial)")
    _fails(done, out, "TransientError", "aws (boto3)", bad, "500 InternalError; given up after 3 attempts")
    assert not Path(f"{out}.partial").exists()


def test_the_docs_have_the_table():
    docs = (Path(__file__).parent.parent / "docs" / "faults.md").read_text()
    assert "\n".join(fault_table.table()) in docs

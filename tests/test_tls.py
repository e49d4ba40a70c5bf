"""TLS: which servers each client library trusts, and what it says of the others."""

import csv
import datetime
import ipaddress
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from faulty import HOST, Proxy
from test_bench import bench
from test_faults import configuration, images

from dnnbench.config import Requests
from dnnbench.storage import MisconfiguredError
from dnnbench.storage.s3 import CLIENTS, S3Storage


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(key, subject, issuer, issuers_key, is_ca):
    today = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - day)
        .not_valid_after(today + day)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
    )
    return builder.sign(issuers_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with two CAs (``ca.pem``, ``other.pem``), and ``server.pem`` and ``server.key`` of the first."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    (folder / "ca.pem").write_bytes(_certificate(ca, "ca", "ca", ca, is_ca=True))
    (folder / "other.pem").write_bytes(_certificate(other, "other", "other", other, is_ca=True))
    (folder / "server.pem").write_bytes(_certificate(server, "server", "ca", ca, is_ca=False))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(server.private_bytes(serialization.Encoding.PEM, *private))
    return folder


@pytest.fixture
def place(local_servers, certificates):
    """(bucket, credentials of a server with TLS); it has an object ``tls/k``."""
    credentials, bucket = local_servers.aws()
    S3Storage(bucket, credentials).write("tls/k", b"abc")
    with _proxy(credentials, certificates) as proxy:
        yield bucket, credentials.model_copy(update={"endpoint": proxy.endpoint})


def _proxy(credentials, certificates):
    return Proxy(credentials.endpoint, tls=(certificates / "server.pem", certificates / "server.key"))


def _storage(place, client, verify_tls):
    bucket, credentials = place
    return S3Storage(bucket, credentials, client, rules=Requests(back_off_s=0), verify_tls=verify_tls)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_whose_ca_is_named_is_trusted(place, certificates, client):
    assert _storage(place, client, str(certificates / "ca.pem")).read("tls/k") == b"abc"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("trusted", ["", "other.pem"])
def test_any_other_server_is_an_error_that_says_what_to_do(place, certificates, trusted, client):
    storage = _storage(place, client, str(certificates / trusted) if trusted else True)
    with pytest.raises(MisconfiguredError) as caught:
        storage.read("tls/k")
    message = str(caught.value)
    for words in (storage.label, place[1].endpoint, "cannot be verified", "storage.s3.verify_tls"):
        assert words in message
    assert "\n" not in message
    # That does not get better when it is asked again.
    assert storage.meter.take().retries == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_verification_can_be_turned_off_where_the_library_can(place, client):
    storage = _storage(place, client, False)
    if client == "s3torchconnector":
        with pytest.raises(MisconfiguredError, match=r"cannot go without verifying .* use the client boto3 or obstore"):
            storage.read("tls/k")
    else:
        assert storage.read("tls/k") == b"abc"
        assert storage.settings()["verify_tls"] is False


def test_without_tls_there_is_nothing_to_turn_off(local_servers):
    credentials, bucket = local_servers.aws()
    S3Storage(bucket, credentials).write("tls/k", b"abc")
    assert S3Storage(bucket, credentials, "s3torchconnector", verify_tls=False).read("tls/k") == b"abc"


def test_every_output_tells_of_retries_and_of_verification_that_is_off(local_servers, certificates, tmp_path):
    credentials, bucket = local_servers.aws()
    images(S3Storage(bucket, credentials), "unverified/")
    out, table = tmp_path / "out.json", tmp_path / "out.csv"
    with _proxy(credentials, certificates) as proxy:
        there = credentials.model_copy(update={"endpoint": proxy.endpoint})
        config = configuration(tmp_path, there, bucket, "unverified/", verify_tls=False, requests={"back_off_s": 0})
        # A round's first read is that of making the connection.
        proxy.fail("error", status=503, code="SlowDown", after=2, times=2)
        done = bench(
            f"--dnn-config={config}",
            f"--benchmark-json={out}",
            f"--dnn-set=metrics.path={table}",
            "-k",
            "read and serial",
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(+2 retries)" in done.stdout
    assert "retries: in 1 of 1 benchmarks requests were sent again (2 in all)" in done.stdout
    assert "aws (boto3): TLS certificates were not verified: storage.s3.verify_tls is false" in done.stdout
    (record,) = (one["extra_info"] for one in json.loads(out.read_text())["benchmarks"])
    settings = record["settings"]
    assert (settings["verify_tls"], settings["back_off_s"], settings["max_attempts"]) == (False, 0, 3)
    assert (record["retries"], record["errors"]) == (2, 0)
    assert record["requests"] == {"GET": record["objects"] + 2}
    with table.open(newline="") as file:
        assert [row["verify_tls"] for row in csv.DictReader(file)] == ["False"]

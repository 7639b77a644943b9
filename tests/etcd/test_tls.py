"""TLS that is set up wrongly is an error at once, which names the file and the option."""

from __future__ import annotations

import pytest

from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.coordinated.handler import create_handler
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.connect import connect
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from tests.etcd.clusters import Certificates, Cluster, guard


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(tls):
    with Cluster(1, tls=tls) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def mutual_tls(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("mutual"), mutual=True)


@pytest.fixture(scope="module")
def mutual(mutual_tls):
    with Cluster(1, tls=mutual_tls) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plain():
    with Cluster(1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def attempts(monkeypatch):
    """The attempts to get an answer from etcd. An error that is final at once takes one or two."""
    made = []
    check = GrpcEtcdClient.check

    async def count(self, key, deadline):
        made.append(self)
        await check(self, key, deadline)

    monkeypatch.setattr(GrpcEtcdClient, "check", count)
    return made


def reach(endpoint, **conf):
    return connect(RendezvousParameters("etcd-v3", endpoint, "run", 1, 1, **conf))


def refused(endpoint, *words, **conf):
    """The connection fails for good, with these words."""
    with pytest.raises(RendezvousConnectionError) as error:
        reach(endpoint, **conf)
    assert not error.value.retryable
    for word in words:
        assert word in str(error.value)


def client_certificate(tls):
    return {"ssl_cert": tls.cert, "ssl_cert_key": tls.key}


# Files, which are checked before anything is sent.


def malformed(attempts, endpoint, *words, **conf):
    with pytest.raises(ValueError, match=r"^The rendezvous configuration option '") as error:
        reach(endpoint, protocol="https", **conf)
    for word in words:
        assert word in str(error.value)
    assert not attempts


@pytest.mark.parametrize(
    "content", ["", "not a certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
def test_an_authority_that_is_no_certificate(secure, attempts, tmp_path, content):
    path = tmp_path / "ca.pem"
    path.write_text(content)
    malformed(attempts, secure.endpoint, "'ca_cert'", f"'{path}'", "certificate in PEM format", ca_cert=str(path))


def test_a_client_certificate_that_is_none(mutual, mutual_tls, attempts, tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("not a certificate")
    files = {"ca_cert": mutual_tls.ca, "ssl_cert": str(path), "ssl_cert_key": mutual_tls.key}
    malformed(attempts, mutual.endpoint, "'ssl_cert'", f"'{path}'", "certificate in PEM format", **files)


def test_a_key_that_is_none(mutual, mutual_tls, attempts, tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("not a key")
    files = {"ca_cert": mutual_tls.ca, "ssl_cert": mutual_tls.cert, "ssl_cert_key": str(path)}
    malformed(attempts, mutual.endpoint, "'ssl_cert_key'", f"'{path}'", "private key in PEM format", **files)


def test_a_key_of_another_certificate(mutual, mutual_tls, attempts, tmp_path):
    other = Certificates(tmp_path)
    files = {"ca_cert": mutual_tls.ca, "ssl_cert": mutual_tls.cert, "ssl_cert_key": other.key}
    words = ("'ssl_cert_key'", f"'{other.key}'", "is not the key of", f"'{mutual_tls.cert}'")
    malformed(attempts, mutual.endpoint, *words, **files)


# Connections.


def test_plain_http_to_an_https_port(secure, attempts):
    refused(secure.endpoint, secure.endpoint, "uses TLS", "set 'protocol=https'")
    assert len(attempts) == 1


def test_https_to_a_plain_http_port(plain, tls, attempts):
    refused(plain.endpoint, plain.endpoint, "does not use TLS", "set 'protocol=http'", protocol="https", ca_cert=tls.ca)
    assert len(attempts) == 1


def test_a_name_that_is_not_in_the_certificate_of_etcd(attempts, tmp_path):
    certificates = Certificates(tmp_path, names=("127.0.0.1",))
    with Cluster(1, tls=certificates) as cluster:
        endpoint = f"localhost:{cluster.ports[0]}"
        words = (endpoint, "'localhost' is not a name in etcd's certificate")
        refused(endpoint, *words, protocol="https", ca_cert=certificates.ca)
    assert len(attempts) == 1


def test_an_authority_that_did_not_sign(secure, attempts, tmp_path):
    other = Certificates(tmp_path)
    refused(
        secure.endpoint, "'ca_cert'", f"'{other.ca}'", "CERTIFICATE_VERIFY_FAILED", protocol="https", ca_cert=other.ca
    )
    refused(secure.endpoint, "'ca_cert'", "CERTIFICATE_VERIFY_FAILED", protocol="https")
    assert len(attempts) == 2


def test_a_client_certificate_that_is_missing(mutual, mutual_tls, attempts):
    refused(mutual.endpoint, "'ssl_cert' and 'ssl_cert_key'", protocol="https", ca_cert=mutual_tls.ca)
    assert len(attempts) == 1


def test_a_client_certificate_of_another_authority(mutual, mutual_tls, attempts, tmp_path):
    other = Certificates(tmp_path)
    files = client_certificate(other)
    refused(mutual.endpoint, "'ssl_cert'", f"'{other.cert}'", protocol="https", ca_cert=mutual_tls.ca, **files)
    assert len(attempts) == 1


def test_one_endpoint_of_several_that_is_usable_is_enough(secure, plain, tls):
    client = reach(f"{plain.endpoint},{secure.endpoint}", protocol="https", ca_cert=tls.ca)
    assert client.target == secure.endpoint
    background.run(client.close())


# Users that etcd takes from certificates.


def with_name(folder, tls, name):
    """A certificate with the common name ``name``, of the authority that signed etcd's."""
    folder.mkdir()
    signed = tls.authority.issue_cert("client.example.com", common_name=name)
    cert, key = folder / "cert.pem", folder / "key.pem"
    signed.private_key_pem.write_to_path(str(key))
    for blob in signed.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    return {"protocol": "https", "ca_cert": tls.ca, "ssl_cert": str(cert), "ssl_cert_key": str(key)}


def test_a_user_from_a_certificate(tmp_path, attempts):
    tls = Certificates(tmp_path, mutual=True)
    with Cluster(1, tls=tls) as cluster:
        guard(cluster, "node", "unused", "/rendezvous")
        files = with_name(tmp_path / "node", tls, "node")
        handler = create_handler(
            RendezvousParameters("etcd-v3", cluster.endpoint, "run", 1, 1, "127.0.0.1", join_timeout=30, **files)
        )
        info = handler.next_rendezvous()
        info.store.set("key", b"value")
        assert info.store.get("key") == b"value"
        assert handler.shutdown()
        refused(cluster.endpoint, "permission denied", "'ssl_cert'", **with_name(tmp_path / "other", tls, "stranger"))
        assert len(attempts) == 2

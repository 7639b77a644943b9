"""TLS, client certificates, users and tokens, on real etcd servers that require them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time

import pytest

from benchmarks.etcd_cluster import unary
from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.config import Password
from rendezvous.coordinated.handler import create_handler
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.clients import Observer, Spy, on_a_loop, until, uses, within
from tests.etcd.clusters import BOUND, Certificates, Cluster, guard
from tests.proxy import Proxy

PASSWORD = "correct-horse"
MINE, FOREIGN = "/mine", "/foreign"
TOKEN_TTL = 2


@pytest.fixture(scope="module", params=["server", "mutual"])
def tls(request, tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls"), mutual=request.param == "mutual")


@pytest.fixture(scope="module")
def secure(tls):
    with Cluster(1, tls=tls) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plain():
    with Cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def guarded():
    """An etcd with authentication: user ``node`` may read and write under MINE, and tokens expire soon."""
    with Cluster(1, flags=["--auth-token", "simple", "--auth-token-ttl", str(TOKEN_TTL)]) as cluster:
        guard(cluster, "node", PASSWORD, MINE)
        yield cluster


@pytest.fixture
def join(run_id, caplog):
    """Join a rendezvous of one node. Fails if the password is in the log."""
    handlers = []
    caplog.set_level(logging.DEBUG, "rendezvous")

    def join(cluster, **conf):
        settings = {"join_timeout": 10, "read_timeout": 5, "close_timeout": 5, **conf}
        params = RendezvousParameters("etcd-v3", cluster.endpoint, run_id, 1, 1, local_addr="127.0.0.1", **settings)
        handlers.append(create_handler(params))
        return handlers[-1].next_rendezvous()

    yield join
    for handler in handlers:
        handler.shutdown()
    assert PASSWORD not in caplog.text


def files(tls):
    conf = {"protocol": "https", "ca_cert": tls.ca}
    return {**conf, "ssl_cert": tls.cert, "ssl_cert_key": tls.key} if tls.mutual else conf


def fails(join, cluster, **conf):
    began = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as error:
        join(cluster, **conf)
    assert time.monotonic() < began + 20
    assert PASSWORD not in repr(error.value)
    return error.value


# TLS.


def test_a_rendezvous_over_tls(secure, tls, join):
    info = join(secure, **files(tls))
    info.store.set("key", b"value")
    assert (info.rank, info.world_size, info.store.get("key")) == (0, 1, b"value")


def test_an_unknown_authority_is_refused_soon(secure, tls, join, tmp_path):
    foreign = Certificates(tmp_path)
    began = time.monotonic()
    error = fails(join, secure, **{**files(tls), "ca_cert": foreign.ca})
    assert time.monotonic() < began + 4
    assert not error.retryable
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert secure.endpoint in str(error)


def test_a_plain_client_of_a_secure_etcd(secure, join):
    assert secure.endpoint in str(fails(join, secure))


def test_a_secure_client_of_a_plain_etcd(plain, tls, join):
    assert plain.endpoint in str(fails(join, plain, **files(tls)))


@pytest.mark.parametrize("tls", ["mutual"], indirect=True)
def test_a_missing_client_certificate(secure, tls, join):
    assert secure.endpoint in str(fails(join, secure, protocol="https", ca_cert=tls.ca))


@on_a_loop
async def test_a_broken_connection_is_not_an_error_of_tls(secure, tls):
    """A handshake that is cut off is not an error of certificates: it is retried."""
    with Proxy(secure.ports[0]) as proxy:
        proxy.cut()
        client = Spy([("127.0.0.1", proxy.port)], tls.credentials)
        asked = asyncio.ensure_future(client.grant(60, within()))
        await asyncio.sleep(1)  # some handshakes are cut off
        proxy.restore()
        assert await asked
        await uses(client, b"key")
        await client.close()


# Users.


def test_a_rendezvous_of_a_user(guarded, join, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    info = join(guarded, prefix=MINE, username="node", password_file=str(secret))
    info.store.set("key", b"value")
    assert info.store.get("key") == b"value"


def test_a_password_from_the_environment(guarded, join, monkeypatch):
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", PASSWORD)
    assert join(guarded, prefix=MINE, username="node").world_size == 1


def test_a_wrong_password_is_final(guarded, join):
    error = fails(join, guarded, prefix=MINE, username="node", password=PASSWORD + "x")
    assert not error.retryable
    assert "authentication failed" in str(error)


def test_the_error_asks_for_a_missing_user(guarded, join):
    error = fails(join, guarded, prefix=MINE)
    assert not error.retryable
    assert "this etcd requires a user: set 'username' and 'password_file'" in str(error)


def test_a_missing_permission_is_final_and_names_the_keys(guarded, join):
    error = fails(join, guarded, prefix=FOREIGN, username="node", password=PASSWORD)
    assert not error.retryable
    assert "permission denied" in str(error)
    assert FOREIGN in str(error)


def test_a_user_while_authentication_is_not_enabled_is_a_warning(plain, join, caplog):
    info = join(plain, username="node", password=PASSWORD)
    info.store.set("key", b"value")
    assert info.store.get("key") == b"value"
    told = [record.getMessage() for record in caplog.records if "authentication is not enabled" in record.getMessage()]
    assert len(told) == 1
    assert plain.endpoint in told[0]


def test_the_password_is_not_printed():
    credentials = Credentials(tls=True, key="key.pem", username="node", password=Password(text=PASSWORD))
    assert PASSWORD not in f"{credentials!r} {credentials}"
    assert PASSWORD.encode() not in pickle.dumps(credentials)


def user():
    return Credentials(username="node", password=Password(text=PASSWORD))


@on_a_loop
async def test_a_refused_watch_does_not_end_the_others(guarded, run_id):
    key = f"{MINE}/{run_id}".encode()
    client = GrpcEtcdClient(guarded.endpoints, user())
    observer = Observer()
    await observer.watch(client, key)
    outcomes = await asyncio.gather(
        *(Observer().watch(client, FOREIGN.encode()) for _ in range(3)),
        *(Observer().watch(client, key) for _ in range(3)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, RendezvousConnectionError) for outcome in outcomes[:3])
    assert all("/foreign" in str(outcome) and not outcome.retryable for outcome in outcomes[:3])
    assert not any(isinstance(outcome, Exception) for outcome in outcomes[3:])
    await client.request(Call.PUT, rpc_pb2.PutRequest(key=key), within())
    await until(lambda: observer.changes, "the watch reports the change")
    await client.close()


@on_a_loop
async def test_everything_works_after_the_token_has_expired(guarded, run_id):
    key = f"{MINE}/{run_id}".encode()
    with Proxy(guarded.ports[0]) as proxy:
        client = GrpcEtcdClient([("127.0.0.1", proxy.port)], user())
        observer = Observer()
        await observer.watch(client, key)
        lease = await client.grant(60, within())
        put = rpc_pb2.PutRequest(key=key, lease=lease)
        for use in ("requests", "watch"):
            stale = client._endpoints.user._token
            bare = unary(guarded.channel(), rpc_pb2.RangeRequest)

            def expired(stale=stale, bare=bare):
                try:
                    bare(rpc_pb2.RangeRequest(key=key), metadata=(("token", stale),), timeout=BOUND)
                except Exception as exc:
                    return "invalid auth token" in str(exc)
                return False

            while not expired():  # asking prolongs it
                await asyncio.sleep(TOKEN_TTL + 1.5)
            if use == "watch":
                count = len(observer.changes)
                proxy.cut()
                proxy.restore()
                assert await client.keep_alive(lease, within())
                await Observer().watch(client, key)
            else:
                count = len(observer.changes)
                await asyncio.gather(*(client.request(Call.PUT, put, within()) for _ in range(20)))
            await client.request(Call.PUT, put, within())
            await until(lambda count=count: len(observer.changes) > count, "the watch reports the change")
            assert await client.keep_alive(lease, within())
            assert client._endpoints.user._token != stale
        assert observer.lost == 0
        await client.close()

"""Passwords and certificates that are replaced, and authentication that is enabled, while clients are in use."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from rendezvous.api import RendezvousConnectionError, RendezvousParameters
from rendezvous.config import Password
from rendezvous.coordinated.handler import create_handler
from rendezvous.etcd.v3 import background
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.credentials import Credentials
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.clients import Observer, Spy, on_a_loop, until, uses, within
from tests.etcd.clusters import BOUND, Certificates, Cluster, administer, guard
from tests.proxy import Proxy

OLD, NEW = "correct-horse", "battery-staple"
PREFIX = "/rendezvous"


@pytest.fixture
def guarded():
    """An etcd on which the user ``node`` has the password OLD."""
    with Cluster(1) as cluster:
        guard(cluster, "node", OLD, PREFIX)
        yield cluster


@pytest.fixture
def proxy(guarded):
    with Proxy(guarded.ports[0]) as proxy:
        yield proxy


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "password"
    path.write_text(f"{OLD}\n")
    return path


@pytest.fixture
def key(run_id):
    return f"{PREFIX}/{run_id}/key".encode()


def replace_password(cluster):
    administer(cluster, rpc_pb2.AuthUserChangePasswordRequest(name="node", password=NEW))


def authentications(cluster):
    """How many attempts to authenticate etcd has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.ports[0]}/metrics", timeout=BOUND) as answer:
        text = answer.read().decode()
    return int(re.search(r'grpc_server_started_total\{grpc_method="Authenticate"[^}]*\} (\d+)', text)[1])


async def in_thread(function, *arguments):
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def file_user(secret):
    return Credentials(username="node", password=Password(str(secret)))


@on_a_loop
async def test_a_watch_goes_on_after_the_password_has_been_replaced(guarded, proxy, secret, key, caplog):
    client = Spy([("127.0.0.1", proxy.port)], file_user(secret))
    await client.check(key, within())
    observer = Observer()
    await observer.watch(client, key)
    lease = await client.grant(60, within())
    await in_thread(replace_password, guarded)
    proxy.cut()
    proxy.restore()
    await until(lambda: "user 'node'" in caplog.text, "the refusal is logged")
    assert "trying again" in caplog.text
    pending = asyncio.ensure_future(client.put(key, b"new"))
    assert not observer.lost
    secret.write_text(NEW)
    await pending
    await until(lambda: observer.changes, "the watch reports the change")
    assert await client.keep_alive(lease, within())
    assert (observer.lost, observer.changes[0][2]) == (0, b"new")
    assert OLD not in caplog.text
    assert NEW not in caplog.text
    await client.close()


def test_num_nodes_waiting_works_after_the_password_has_been_replaced(guarded, proxy, secret, run_id, caplog):
    handlers = []

    def make(port):
        params = RendezvousParameters(
            *("etcd-v3", f"127.0.0.1:{port}", run_id, 1, 2, "127.0.0.1"),
            username="node",
            password_file=str(secret),
            join_timeout=30,
            last_call_timeout=1,
        )
        handlers.append(create_handler(params))
        return handlers[-1]

    first = make(proxy.port)
    assert first.next_rendezvous().world_size == 1
    replace_password(guarded)
    proxy.cut()
    proxy.restore()

    background.run(until(lambda: "user 'node'" in caplog.text, "the refusal is logged"))
    secret.write_text(NEW)
    with ThreadPoolExecutor() as pool:
        joining = pool.submit(make(guarded.ports[0]).next_rendezvous)
        waiting = pool.submit(_wait_for, lambda: first.num_nodes_waiting() == 1)
        assert waiting.result(BOUND)
        assert first.next_rendezvous().world_size == 2
        assert joining.result(BOUND).world_size == 2
    for handler in handlers:
        handler.shutdown()


def _wait_for(condition):
    deadline = time.monotonic() + BOUND
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@on_a_loop
async def test_a_refused_user_is_authenticated_ever_more_rarely(guarded, proxy, secret, key):
    client = Spy([("127.0.0.1", proxy.port)], file_user(secret))
    await client.check(key, within())
    await Observer().watch(client, key)
    await in_thread(replace_password, guarded)
    before = authentications(guarded)
    proxy.cut()
    proxy.restore()
    outcomes = await asyncio.gather(*(client.put(key, seconds=4) for _ in range(200)), return_exceptions=True)
    assert all(isinstance(outcome, RendezvousConnectionError) and outcome.retryable for outcome in outcomes)
    assert "user 'node': authentication failed" in str(outcomes[0])
    # The pauses between attempts are at least 1, 2 and 4 seconds.
    assert 1 <= authentications(guarded) - before <= 4
    await client.close()


@on_a_loop
async def test_a_burst_of_requests_with_an_old_token_gets_one_new_token(guarded, proxy, secret, key):
    client = Spy([("127.0.0.1", proxy.port)], file_user(secret))
    await client.check(key, within())
    old = await client._endpoints.metadata(BOUND)
    await in_thread(replace_password, guarded)
    secret.write_text(NEW)
    before = authentications(guarded)
    await asyncio.gather(*(client.put(key) for _ in range(200)))
    client._endpoints.user.forget(old)  # as a request does whose answer comes late
    await client.put(key)
    assert authentications(guarded) - before == 1
    await client.close()


@on_a_loop
async def test_authentication_that_is_enabled_later(secret, key, caplog):
    with Cluster(1) as cluster, Proxy(cluster.ports[0]) as proxy:
        client = Spy([("127.0.0.1", proxy.port)], file_user(secret))
        observer = Observer()
        await client.check(key, within())
        await observer.watch(client, key)
        lease = await client.grant(60, within())
        await asyncio.gather(*(client.put(key) for _ in range(20)))
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert ["authentication is not enabled" in record.getMessage() for record in warnings] == [True]
        await in_thread(guard, cluster, "node", OLD, PREFIX)
        await client.put(key, b"guarded", lease=lease)
        await until(lambda: observer.changes[-1][2] == b"guarded", "the watch reports the change")
        proxy.cut()
        proxy.restore()
        await client.put(key, b"again")
        await until(lambda: observer.changes[-1][2] == b"again", "the watch reports the change")
        assert await client.keep_alive(lease, within())
        assert not observer.lost
        await client.close()


@on_a_loop
async def test_no_frame_of_a_refusal_holds_the_password(guarded, key):
    client = Spy(guarded.endpoints, Credentials(username="node", password=Password(text=NEW)))
    with pytest.raises(Exception, match="authentication failed") as error:
        await client._attempt(Call.RANGE, rpc_pb2.RangeRequest(key=key), BOUND, within())
    assert not error.value.retryable
    frames = [entry.frame.f_locals for entry in error.traceback]
    assert len(frames) > 2
    assert NEW not in repr(frames)
    assert NEW not in repr(vars(client._endpoints.user))
    await client.close()


@pytest.mark.parametrize("mutual", [False, True])
@on_a_loop
async def test_certificates_that_are_replaced_while_etcd_restarts(tmp_path, key, mutual):
    certificates = Certificates(tmp_path, mutual=mutual)
    with Cluster(1, tls=certificates) as cluster:
        client = Spy(cluster.endpoints, certificates.credentials)
        await client.check(key, within())
        observer = Observer()
        await observer.watch(client, key)
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        cluster.kill(0)
        certificates.renew()
        cluster.forget_channels()
        await in_thread(cluster.mend)
        await client.put(key, b"new")
        await until(lambda: observer.changes, "the watch reports the change")
        assert await client.keep_alive(lease, within())
        assert not observer.lost
        await uses(client, key + b"2")
        await client.close()


@on_a_loop
async def test_certificates_that_are_replaced_later_than_those_of_etcd(tmp_path, key):
    """Until the files are replaced, the client waits; with its files it could not connect at all."""
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.mkdir()
    others.mkdir()
    client_side, server_side = Certificates(mine), Certificates(others)
    (mine / "ca.pem").write_bytes((others / "ca.pem").read_bytes())
    with Cluster(1, tls=server_side) as cluster:
        client = Spy(cluster.endpoints, client_side.credentials)
        await client.check(key, within())
        observer = Observer()
        await observer.watch(client, key)
        cluster.kill(0)
        server_side.renew()
        cluster.forget_channels()
        await in_thread(cluster.mend)
        pending = asyncio.ensure_future(client.put(key, b"new"))
        await until(lambda: any("CERTIFICATE_VERIFY" in each.reason for each in client.errors), "a handshake fails")
        assert not pending.done()
        (mine / "ca.pem").write_bytes((others / "ca.pem").read_bytes())
        await pending
        await until(lambda: observer.changes, "the watch reports the change")
        await client.close()

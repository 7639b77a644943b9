"""The etcd client on real etcd servers that die, stall, forget and refuse."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import subprocess
import sys
import textwrap
import urllib.request
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest

from benchmarks.etcd_cluster import send, unary
from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3 import background, connection
from rendezvous.etcd.v3.client import DELETE, PAGE, PUT, Call, absent, compare, delete_op, get_op, prefix_end
from rendezvous.etcd.v3.client import put_op as put
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import BusyError, CompactedError, EtcdError, LeaseNotFoundError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.utils import get_free_port
from tests.etcd.clusters import BOUND, Cluster
from tests.proxy import Proxy


def on_a_loop(test):
    """Run the test on the background loop, within a bound. What it leaves behind may not trouble asyncio."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        complaints = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            try:
                await asyncio.wait_for(test(*args, **kwargs), 2 * BOUND)
            finally:
                gc.collect()
                loop.set_exception_handler(None)

        background.run(main())
        assert not complaints

    return run


def within(seconds=BOUND):
    return asyncio.get_running_loop().time() + seconds


async def until(condition, what):
    deadline = within()
    while not condition():
        assert within(0) < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.01)


class Spy(GrpcEtcdClient):
    """Notes each try, and how it went wrong."""

    def __init__(self, endpoints, credentials=None):
        super().__init__(endpoints, credentials)
        self.tries = Counter()
        self.errors = []
        self.between = None
        """Awaited after each answer."""

    async def _attempt(self, call, request, timeout, deadline):
        self.tries[call] += 1
        try:
            answer = await super()._attempt(call, request, timeout, deadline)
        except EtcdError as exc:
            self.errors.append(exc)
            raise
        if self.between is not None:
            await self.between()
        return answer

    async def put(self, key, value=b"", seconds=BOUND, lease=0):
        message = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
        return (await self.request(Call.PUT, message, within(seconds))).header.revision


@contextlib.asynccontextmanager
async def connected(*endpoints):
    """A client of servers, each given by its port or as host and port."""
    client = Spy([("127.0.0.1", each) if isinstance(each, int) else each for each in endpoints])
    try:
        yield client
    finally:
        await client.close()


class Heard:
    """What a watch told."""

    def __init__(self):
        self.changes = []
        self.lost = 0

    def receive(self, events):
        self.changes += [(event.type, event.kv.key, event.kv.value) for event in events]

    def lose(self):
        self.lost += 1

    async def watch(self, client, key, end=b"", seconds=BOUND, revision=0):
        return await client.watch(key, end, self.receive, self.lose, within(seconds), revision)


@pytest.fixture(scope="module")
def server():
    """An etcd of one member; a test that stops it has it up again at its end."""
    with Cluster(1, flags=["--max-txn-ops", "100000"]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def port(server):
    yield server.ports[0]
    server.mend()


@pytest.fixture
def proxy(port):
    with Proxy(port) as proxy:
        yield proxy
        proxy.resume()


@pytest.fixture
def key(run_id):
    return f"/{run_id}/".encode()


def watchers(port):
    """How many watches etcd has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=BOUND) as answer:
        lines = answer.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")))


def compact(server, revision):
    send(server.channel(), rpc_pb2.CompactionRequest(revision=revision), BOUND)


# Requests and their answers.


@on_a_loop
async def test_a_long_range_is_read_in_pages_at_one_revision(port, key):
    names = [b"%s%05d" % (key, i) for i in range(2 * PAGE + 17)]
    async with connected(port) as writer, connected(port) as client:
        written = await writer.txn([], [put(name, name) for name in names], deadline=within())

        async def meddle():
            await writer.put(names[-1], b"later")
            await writer.put(key + b"more")
            await writer.delete(names[-2], b"", within())

        client.between = meddle
        found, revision = await client.range(key, prefix_end(key), within())
        assert client.tries[Call.RANGE] == 3
        assert [kv.key for kv in found] == names
        assert all(kv.value == kv.key for kv in found)
        assert revision == written.header.revision
        client.between = None
        again, same = await client.range(key, prefix_end(key), within(), revision=revision, serializable=True)
        assert ([kv.key for kv in again], same) == (names, revision)
        assert len((await client.range(key, prefix_end(key), within()))[0]) == len(names)


@on_a_loop
async def test_a_range_of_just_one_page_takes_one_request(port, key):
    async with connected(port) as client:
        await client.txn([], [put(b"%s%05d" % (key, i), b"") for i in range(PAGE)], deadline=within())
        assert len((await client.range(key, prefix_end(key), within()))[0]) == PAGE
        assert client.tries[Call.RANGE] == 1
        assert (await client.range(key + b"none", b"", within()))[0] == []


@on_a_loop
async def test_transactions_and_deletes(port, key):
    one, two = key + b"1", key + b"2"
    async with connected(port) as client:
        first = await client.txn([absent(one)], [put(one, b"a"), put(two, b"b")], deadline=within())
        assert first.succeeded
        second = await client.txn([absent(one)], [put(one, b"c")], [get_op(key, prefix_end(key))], deadline=within())
        assert not second.succeeded
        assert [kv.value for kv in second.responses[0].response_range.kvs] == [b"a", b"b"]
        conditions = [
            compare(one, "mod_revision", first.header.revision),
            compare(one, "value", b"a"),
            compare(two, "version", 2, "LESS"),
        ]
        third = await client.txn(conditions, [delete_op(one)], deadline=within())
        assert third.succeeded
        assert await client.delete(key, prefix_end(key), within()) == 1
        assert await client.delete(key, prefix_end(key), within()) == 0


@on_a_loop
async def test_a_lease_lives_until_it_is_revoked(port, key):
    async with connected(port) as client:
        lease = await client.grant(60, within())
        await client.put(key, lease=lease)
        assert await client.keep_alive(lease, within())
        assert all(await asyncio.gather(*(client.keep_alive(lease, within()) for _ in range(5))))
        await client.revoke(lease, within())
        assert (await client.range(key, b"", within()))[0] == []
        await client.revoke(lease, within())
        assert await client.keep_alive(lease, within()) is False
        with pytest.raises(EtcdError, match="lease not found") as error:
            await client.put(key, lease=lease)
        assert isinstance(error.value, LeaseNotFoundError)
        with pytest.raises(EtcdError) as error:
            await client.txn([], [put(key, b"", lease)], deadline=within())
        assert isinstance(error.value, LeaseNotFoundError)


@on_a_loop
async def test_a_lease_that_nobody_renews_ends(port, key):
    async with connected(port) as client:
        lease = await client.grant(1, within())
        await client.put(key, lease=lease)
        heard = Heard()
        await heard.watch(client, key)
        await until(lambda: heard.changes, "the lease ends")
        assert heard.changes == [(DELETE, key, b"")]
        assert await client.keep_alive(lease, within()) is False


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (rpc_pb2.PutRequest(key=b""), "key is not provided"),
        (rpc_pb2.PutRequest(key=b"k", value=bytes(1_600_000)), "request is too large"),
        (rpc_pb2.PutRequest(key=b"k", value=bytes(3_000_000)), "larger than max"),
        (rpc_pb2.TxnRequest(success=[put(b"k", b""), put(b"k", b"")]), "duplicate key"),
        (rpc_pb2.LeaseGrantRequest(TTL=10**10), "too large lease TTL"),
    ],
    ids=["no-key", "too-large-for-etcd", "too-large-for-grpc", "twice-in-one-txn", "ttl"],
)
@on_a_loop
async def test_what_etcd_will_never_accept_is_asked_once(port, request_, says):
    call = next(call for call in Call if call.value[1] is type(request_))
    async with connected(port) as client:
        with pytest.raises(
            RendezvousConnectionError, match=rf"{call.value[0]}: 127\.0\.0\.1:{port}: .*{says}"
        ) as error:
            await client.request(call, request_, within())
        assert not error.value.retryable
        assert client.tries[call] == 1


@on_a_loop
async def test_a_revision_that_etcd_has_forgotten_or_does_not_have_yet(server, port, key):
    async with connected(port) as client:
        first = await client.put(key)
        compact(server, await client.put(key))
        with pytest.raises(EtcdError, match="compacted") as error:
            await client.range(key, b"", within(), revision=first)
        assert isinstance(error.value, CompactedError)
        with pytest.raises(RendezvousConnectionError, match="future revision") as late:
            await client.range(key, b"", within(0.5), revision=10**12)
        assert late.value.retryable


@on_a_loop
async def test_more_requests_at_once_than_are_let_through(port, key):
    async with connected(port) as client:
        await asyncio.gather(*(client.put(b"%s%d" % (key, i)) for i in range(2000)))
        assert len((await client.range(key, prefix_end(key), within()))[0]) == 2000
        assert client.tries[Call.PUT] == 2000


@on_a_loop
async def test_too_many_requests_are_waited_out(server, port, key):
    """Etcd says so where more than 5,000 changes are agreed on and wait to be carried out: here behind a slow one."""
    async with connected(port) as client:
        await client.txn([], [put(b"%s%05d" % (key, i), b"") for i in range(2000)], deadline=within())
        count = rpc_pb2.RequestOp(
            request_range=rpc_pb2.RangeRequest(key=key, range_end=prefix_end(key), count_only=True)
        )
        txn, write = (unary(server.channel(), each) for each in (rpc_pb2.TxnRequest, rpc_pb2.PutRequest))
        slow = txn.future(rpc_pb2.TxnRequest(success=[put(key, b""), *[count] * 20_000]), timeout=BOUND)
        crowd = [write.future(rpc_pb2.PutRequest(key=key + b"crowd"), timeout=BOUND) for _ in range(7000)]
        asked = [asyncio.ensure_future(client.put(key + b"last"))]
        while not slow.done():
            asked.append(asyncio.ensure_future(client.put(key + b"last")))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asked)
        for each in crowd:
            each.exception(timeout=BOUND)
        # How many there are depends on how fast the machine is.
        assert all(
            isinstance(error, BusyError) and error.retryable
            for error in client.errors
            if "too many requests" in str(error)
        )
        assert (await client.range(key + b"last", b"", within()))[0][0].version == len(asked)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN])
@on_a_loop
async def test_too_many_requests_are_no_fault_of_the_endpoint(code):
    """Etcd's own list of errors has the first code; etcd 3.5.1 sends the second."""
    async with connected(1, 2) as client:
        before, nothing = client.endpoint, grpc.aio.Metadata()
        error = client.translate(
            grpc.aio.AioRpcError(code, nothing, nothing, details="etcdserver: too many requests"), before
        )
        assert isinstance(error, BusyError)
        assert error.retryable
        assert client.endpoint is before


# Deadlines.


@on_a_loop
async def test_the_deadline_holds_where_nothing_listens(key):
    port = get_free_port("127.0.0.1")
    async with connected(port) as client:
        began = within(0)
        with pytest.raises(
            RendezvousConnectionError, match=rf"KV/Put in time \(\d+ tries\): 127\.0\.0\.1:{port}"
        ) as no:
            await client.put(key, seconds=1)
        with pytest.raises(RendezvousConnectionError, match=f"127.0.0.1:{port} did not begin a watch in time"):
            await Heard().watch(client, key, seconds=1)
        with pytest.raises(RendezvousConnectionError, match="LeaseKeepAlive in time"):
            await client.keep_alive(7, within(1))
        assert no.value.retryable
        assert within(0) < began + 6


@pytest.mark.parametrize("trouble", ["stopped", "stalled", "stalled-from-the-start"])
@on_a_loop
async def test_the_deadline_holds_where_the_server_is_silent(server, port, proxy, key, trouble):
    async with connected(proxy.port) as client:
        if trouble != "stalled-from-the-start":
            await client.put(key)
        lease = await client.grant(60, within()) if trouble == "stopped" else 7
        server.pause(0) if trouble == "stopped" else proxy.stall()
        began = within(0)
        outcomes = await asyncio.gather(
            client.put(key, seconds=1),
            client.range(key, b"", within(1)),
            client.keep_alive(lease, within(1)),
            Heard().watch(client, key, seconds=1),
            return_exceptions=True,
        )
        assert within(0) < began + 4
        for outcome in outcomes:
            assert isinstance(outcome, RendezvousConnectionError)
            assert outcome.retryable
            assert f"127.0.0.1:{proxy.port}" in str(outcome)
        server.resume(0) if trouble == "stopped" else proxy.resume()
        await client.put(key)


@on_a_loop
async def test_the_deadline_holds_behind_many_patient_requests(port, proxy, key):
    async with connected(proxy.port) as client:
        await client.put(key)
        proxy.stall()
        patient = [asyncio.ensure_future(client.put(key)) for _ in range(600)]
        await asyncio.sleep(0)
        began = within(0)
        try:
            with pytest.raises(RendezvousConnectionError):
                await client.put(key, seconds=0.5)
            assert within(0) < began + 3
        finally:
            proxy.resume()
            await asyncio.gather(*patient)


# Several endpoints.


async def uses(client, key):
    """Use a client for all that it does."""
    heard = Heard()
    watch = await heard.watch(client, key)
    await client.put(key, b"value")
    lease = await client.grant(60, within())
    assert await client.keep_alive(lease, within())
    await until(lambda: heard.changes, "the watch tells")
    assert heard.changes[0] == (PUT, key, b"value")
    watch.cancel()


@on_a_loop
async def test_a_dead_endpoint_is_passed_over(port, key):
    dead = get_free_port("127.0.0.1")
    async with connected(dead, port) as client:
        await uses(client, key)
    async with connected(dead, port, dead) as client:
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        await uses(client, key)
    async with connected(("no-such-host.invalid", 2379), port) as client:
        await uses(client, key)


@on_a_loop
async def test_a_black_hole_is_passed_over(port, proxy, key):
    proxy.stall()
    async with connected(proxy.port, port) as client:
        await uses(client, key)


@on_a_loop
async def test_an_endpoint_that_dies_midway_is_left(port, proxy, key):
    async with connected(proxy.port, port) as client:
        heard = Heard()
        await heard.watch(client, key)
        await client.put(key, b"0")
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        for i in range(1, 6):
            proxy.cut()
            await client.put(key, b"%d" % i)
            assert await client.keep_alive(lease, within())
            await until(lambda i=i: heard.changes[-1][2] == b"%d" % i, "the watch tells")
        assert [value for _, _, value in heard.changes] == [b"%d" % i for i in range(6)]


@on_a_loop
async def test_a_stream_that_breaks_late_does_not_lead_back_to_the_dead_endpoint(port, proxy, key):
    """Requests have moved on before the stream notices: its end is the fault of the endpoint it was on."""
    async with connected(proxy.port, port) as client:
        heard = Heard()
        await heard.watch(client, key)
        proxy.stall()
        await client.put(key, b"1")
        assert client.endpoint.target == f"127.0.0.1:{port}"
        proxy.cut()
        await until(lambda: heard.changes, "the watch tells")
        assert client.endpoint.target == f"127.0.0.1:{port}"


@on_a_loop
async def test_an_endpoint_that_falls_silent_midway_is_left(port, proxy, key):
    async with connected(proxy.port, port) as client:
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        await client.put(key)
        proxy.stall()
        assert await client.keep_alive(lease, within())
        await client.put(key, b"other")
        assert client.endpoint.target == f"127.0.0.1:{port}"


# Watches.


@on_a_loop
async def test_a_watch_tells_all_from_when_it_began(port, key):
    async with connected(port) as client, connected(port) as other:
        before = await client.put(key + b"0", b"before")
        heard, earlier, single = Heard(), Heard(), Heard()
        watch = await heard.watch(client, key, prefix_end(key))
        await other.put(key + b"1", b"after")
        await other.delete(key + b"0", b"", within())
        await earlier.watch(client, key, prefix_end(key), revision=before)
        await single.watch(client, key + b"1", revision=before)
        story = [(PUT, key + b"0", b"before"), (PUT, key + b"1", b"after"), (DELETE, key + b"0", b"")]
        await until(lambda: len(heard.changes) == 2 and len(earlier.changes) == 3 and single.changes, "all tell")
        assert heard.changes == story[1:]
        assert earlier.changes == story
        assert single.changes == story[1:2]
        watch.cancel()
        await other.put(key + b"2")
        await until(lambda: len(earlier.changes) == 4, "the other watch tells")
        assert heard.changes == story[1:]


@on_a_loop
async def test_a_watch_resumes_over_cut_connections_and_misses_nothing(port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        heard, number = Heard(), 0
        await heard.watch(client, key, prefix_end(key))
        for _ in range(5):
            for cut in (False, True):
                if cut:
                    proxy.cut()
                for _ in range(30):
                    number += 1
                    if not cut and number % 60 == 15:
                        proxy.cut()
                        proxy.restore()
                    await writer.txn(
                        [], [put(key, b"%d" % number), put(key + b"twin", b"%d" % number)], deadline=within()
                    )
            proxy.restore()
            last = (PUT, key + b"twin", b"%d" % number)
            await until(lambda last=last: last in heard.changes, "the watch tells")
        told = [(key + name, b"%d" % i) for i in range(1, number + 1) for name in (b"", b"twin")]
        assert [(name, value) for _, name, value in heard.changes] == told
        assert heard.lost == 0


@on_a_loop
async def test_a_watch_that_etcd_forgot_is_lost_once(server, port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        heard, fresh = Heard(), Heard()
        await heard.watch(client, key)
        await writer.put(key, b"heard")
        await until(lambda: heard.changes, "the watch tells")
        proxy.cut()
        await writer.put(key, b"missed")
        compact(server, await writer.put(key, b"last"))
        proxy.restore()
        await until(lambda: heard.lost, "the watch is lost")
        await fresh.watch(client, key)
        proxy.cut()
        proxy.restore()
        await writer.put(key, b"new")
        await until(lambda: fresh.changes, "the new watch tells")
        assert fresh.changes == [(PUT, key, b"new")]
        assert heard.changes == [(PUT, key, b"heard")]
        assert heard.lost == 1


@on_a_loop
async def test_a_watch_from_a_forgotten_revision_is_lost_once(server, port, key):
    async with connected(port) as client:
        first = await client.put(key)
        compact(server, await client.put(key))
        heard = Heard()
        await heard.watch(client, key, revision=first)
        await until(lambda: heard.lost, "the watch is lost")
        await uses(client, key)
        assert (heard.lost, heard.changes) == (1, [])


@on_a_loop
async def test_hundreds_of_watches_on_one_stream_survive_a_reconnect(port, proxy, key):
    names = [b"%s%03d" % (key, i) for i in range(500)]
    async with connected(proxy.port) as client, connected(port) as writer:
        heard = [Heard() for _ in names]
        watches = await asyncio.gather(*(each.watch(client, name) for each, name in zip(heard, names, strict=True)))
        for each in watches[::10]:
            each.cancel()
        proxy.cut()
        await asyncio.gather(*(writer.put(name, b"1") for name in names))
        proxy.restore()
        for each in watches[1::10]:
            each.cancel()
        kept = [i for i in range(len(names)) if i % 10 > 1]
        await until(lambda: all(heard[i].changes for i in kept), "all watches tell")
        await asyncio.gather(*(writer.put(name, b"2") for name in names))
        await until(lambda: all(len(heard[i].changes) > 1 for i in kept), "all watches tell again")
        for i, (each, name) in enumerate(zip(heard, names, strict=True)):
            assert each.changes == ([(PUT, name, b"1"), (PUT, name, b"2")] if i % 10 > 1 else [])
            assert each.lost == 0
        await until(lambda: watchers(port) == len(kept), "etcd ends what was cancelled")


@on_a_loop
async def test_a_cancelled_watch_is_silent_and_leaves_nothing_in_etcd(port, key):
    async with connected(port) as client:
        heard, kept = Heard(), Heard()
        for patience in (0, 0, 0.001, 0.005):
            begun = asyncio.ensure_future(heard.watch(client, key))
            await asyncio.sleep(patience)  # the request may be on its way, or answered
            begun.cancel()
            if (watch := (await asyncio.gather(begun, return_exceptions=True))[0]) and hasattr(watch, "cancel"):
                watch.cancel()
        await kept.watch(client, key)
        watch = await heard.watch(client, key)
        watch.cancel()
        watch.cancel()
        await client.put(key)
        await until(lambda: kept.changes, "the other watch tells")
        await until(lambda: watchers(port) == 1, "etcd ends what was cancelled")
        assert heard.changes == []


@on_a_loop
async def test_watches_that_begin_while_the_connection_comes_and_goes(port, proxy, key):
    async with connected(proxy.port) as client, connected(port) as writer:
        heard = []

        async def begin(i):
            heard.append(Heard())
            await heard[-1].watch(client, key, prefix_end(key))

        beginnings = []
        for i in range(60):
            beginnings.append(asyncio.ensure_future(begin(i)))
            if i % 10 == 5:
                proxy.cut()
            if i % 10 == 9:
                proxy.restore()
            await asyncio.sleep(0.005)  # lets the stream come up, or not
        await asyncio.gather(*beginnings)
        await writer.put(key, b"end")
        await until(lambda: all(each.changes for each in heard), "all watches tell")
        assert all(each.changes == [(PUT, key, b"end")] for each in heard)
        await until(lambda: watchers(port) == len(heard), "etcd has each watch once")


@on_a_loop
async def test_a_quiet_watch_notices_that_its_connection_is_dead(monkeypatch, key):
    """Pings go out on a stream that says nothing for long, too."""
    options = {**dict(connection._OPTIONS), "grpc.keepalive_time_ms": 200, "grpc.http2.ping_timeout_ms": 300}
    monkeypatch.setattr(connection, "_OPTIONS", tuple(options.items()))
    with Cluster(1, flags=["--grpc-keepalive-min-time", "100ms"]) as server, Proxy(server.ports[0]) as proxy:
        async with connected(proxy.port, server.ports[0]) as client, connected(server.ports[0]) as writer:
            heard = Heard()
            await heard.watch(client, key)
            await asyncio.sleep(2)  # more pings pass in silence than gRPC allows by default
            proxy.stall()
            await writer.put(key)
            await until(lambda: heard.changes, "the watch tells")
            proxy.resume()


# Keep-alives.


@on_a_loop
async def test_keep_alives_of_many_leases_over_a_broken_stream(port, proxy):
    async with connected(proxy.port) as client:
        leases = await asyncio.gather(*(client.grant(60, within()) for _ in range(300)))
        gone = leases[::50]
        await asyncio.gather(*(client.revoke(lease, within()) for lease in gone))
        for _ in range(3):
            renewals = [asyncio.ensure_future(client.keep_alive(lease, within())) for lease in leases]
            await asyncio.sleep(0.01)  # some are answered
            proxy.cut()
            proxy.restore()
            answers = await asyncio.gather(*renewals)
            assert {lease for lease, lives in zip(leases, answers, strict=True) if not lives} == set(gone)
        await asyncio.gather(*(client.revoke(lease, within()) for lease in leases))


@on_a_loop
async def test_one_impatient_keep_alive_leaves_the_others_their_time(port, proxy):
    async with connected(proxy.port) as client:
        leases = [await client.grant(60, within()) for _ in range(3)]
        proxy.stall()
        patient = [asyncio.ensure_future(client.keep_alive(lease, within())) for lease in leases]
        with pytest.raises(RendezvousConnectionError, match=r"no answer to (a|the) keep-alive"):
            await client.keep_alive(leases[0], within(0.3))
        cancelled = asyncio.ensure_future(client.keep_alive(leases[1], within()))
        await asyncio.sleep(0)
        cancelled.cancel()
        proxy.resume()
        assert all(await asyncio.gather(*patient))


# A cluster of three.


@pytest.fixture
def members(three):
    yield three
    three.mend()


def from_the_leader(cluster):
    """Return the endpoints, the leader's first."""
    leader = cluster.leader
    return leader, cluster.endpoints[leader:] + cluster.endpoints[:leader]


@on_a_loop
async def test_requests_outlive_the_leader(members, key):
    leader, endpoints = from_the_leader(members)
    async with connected(*endpoints) as client:
        heard, lease = Heard(), await client.grant(60, within())
        await heard.watch(client, key, prefix_end(key))
        done = []

        async def work(i):
            for j in range(20):
                name = b"%s%02d-%02d" % (key, i, j)
                await client.put(name, lease=lease)
                done.append(name)

        work_ = [asyncio.ensure_future(work(i)) for i in range(20)]
        await until(lambda: len(done) > 50, "work goes on")
        members.kill(leader)
        assert await client.keep_alive(lease, within())
        await asyncio.gather(*work_)
        found, _ = await client.range(key, prefix_end(key), within())
        assert [kv.key for kv in found] == sorted(done)
        await until(lambda: {name for _, name, _ in heard.changes} == set(done), "the watch tells of each change")
        assert heard.lost == 0
        assert client.errors
        assert all(error.retryable for error in client.errors)


@on_a_loop
async def test_a_member_that_falls_silent_is_left(members, key):
    leader, endpoints = from_the_leader(members)
    async with connected(*endpoints[1:], endpoints[0]) as client:
        await client.put(key)
        members.pause((leader + 1) % 3)
        await client.put(key)
        await uses(client, key)


@on_a_loop
async def test_a_member_without_its_peers_is_no_etcd(members, key):
    alone = (members.leader + 1) % 3
    async with connected(members.endpoints[alone]) as client:
        heard = Heard()
        await heard.watch(client, key)
        for member in members.members:
            if member != alone:
                members.pause(member)
        with pytest.raises(RendezvousConnectionError) as error:
            await client.put(key, b"lonely", seconds=2)
        assert error.value.retryable
        await asyncio.get_running_loop().run_in_executor(None, members.mend)
        await client.put(key, b"together")
        await until(lambda: heard.changes and heard.changes[-1][2] == b"together", "the watch tells")
        assert heard.lost == 0


# Beside the rest of the process.


def python(script, *arguments, timeout=BOUND):
    """Run a script in a process of its own; it may say nothing but what it prints, and must end well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    # From Python 3.12 on, a fork beside threads is warned about: to fork there is what some scripts are for.
    warn = ["-W", "default", "-W", "ignore:This process (pid="]
    command = [sys.executable, *warn, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("trouble", ["stall", "cut", "close"])
def test_a_client_that_is_closed_with_requests_in_flight_is_quiet(port, trouble):
    """Those who wait learn of it."""
    script = """
        import asyncio, gc, logging, sys
        from rendezvous.etcd.v3.messages import rpc_pb2
        from rendezvous.etcd.v3.client import Call
        from rendezvous.etcd.v3.connection import GrpcEtcdClient
        from tests.proxy import Proxy

        logging.getLogger("rendezvous").addHandler(logging.NullHandler())

        async def main():
            loop, proxy = asyncio.get_running_loop(), Proxy(int(sys.argv[1]))
            client = GrpcEtcdClient([("127.0.0.1", proxy.port)])
            nothing = lambda *_: None
            await client.watch(b"quiet", b"", nothing, nothing, loop.time() + 30)
            lease = await client.grant(60, loop.time() + 30)
            await client.keep_alive(lease, loop.time() + 30)
            if sys.argv[2] == "stall":
                proxy.stall()
            elif sys.argv[2] == "cut":
                proxy.cut()
            deadline = loop.time() + 600
            put = rpc_pb2.PutRequest(key=b"k")
            asked = [asyncio.ensure_future(client.request(Call.PUT, put, deadline)) for _ in range(400)]
            asked += [asyncio.ensure_future(client.keep_alive(lease + i, deadline)) for i in range(3)]
            asked += [asyncio.ensure_future(client.watch(b"k", b"", nothing, nothing, deadline)) for _ in range(3)]
            await asyncio.sleep(0.01 if sys.argv[2] == "close" else 0.3)
            await client.close()
            over, running = await asyncio.wait(asked, timeout=10)
            print(len(running))
            await asyncio.gather(*asked, return_exceptions=True)
            proxy.resume()

        asyncio.run(main())
        gc.collect()
    """
    assert python(script, port, trouble) == "0\n"


def test_a_process_that_just_ends_is_quiet(port):
    script = """
        import asyncio, sys
        from rendezvous.etcd.v3 import background
        from rendezvous.etcd.v3.connection import GrpcEtcdClient

        async def main():
            loop = asyncio.get_running_loop()
            client = GrpcEtcdClient([("127.0.0.1", int(sys.argv[1]))])
            nothing = lambda *_: None
            await client.watch(b"quiet", b"", nothing, nothing, loop.time() + 30)
            lease = await client.grant(60, loop.time() + 30)
            await client.keep_alive(lease, loop.time() + 30)
            waits = asyncio.ensure_future(client.range(b"k", b"", loop.time() + 30, revision=10**12))

            async def farewell():
                print("farewell", await client.delete(b"nothing", b"", loop.time() + 30))

            background.at_exit("client", farewell)
            return client, waits

        client = background.run(main())
    """
    assert python(script, port) == "farewell 0\n"


def test_a_fork_leaves_the_parent_alone(port, key):
    """What becomes of the child is gRPC's affair: it may die as soon as it is born."""
    script = """
        import asyncio, os, sys
        from rendezvous.etcd.v3 import background
        from rendezvous.etcd.v3.client import put_op
        from rendezvous.etcd.v3.connection import GrpcEtcdClient

        key, changes = sys.argv[2].encode(), []

        async def connect():
            client = GrpcEtcdClient([("127.0.0.1", int(sys.argv[1]))])
            await client.watch(key, b"", changes.extend, changes.clear, asyncio.get_running_loop().time() + 20)
            return client

        async def count(client):
            answer = await client.txn([], [put_op(key, b"")], deadline=asyncio.get_running_loop().time() + 20)
            return answer.header.revision

        client = background.run(connect())
        first = background.run(count(client))
        child = os.fork()
        if child == 0:
            os._exit(0)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            background.run(count(client))
        last = background.run(count(client))

        async def all_told():
            while len(changes) < last - first + 1:
                await asyncio.sleep(0.01)
        background.run(all_told())
        print("told")
    """
    assert python(script, port, key.decode()) == "told\n"


def test_a_forked_child_is_told_that_grpc_does_not_work_there():
    script = """
        import asyncio, os
        from rendezvous.api import RendezvousConnectionError
        from rendezvous.etcd.v3 import background

        background.run(asyncio.sleep(0))
        child = os.fork()
        if child == 0:
            try:
                background.run(asyncio.sleep(0))
            except RendezvousConnectionError as exc:
                os._exit(7 if "was forked" in str(exc) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(script) == "7\n"


def test_an_interrupt_cancels_what_it_waits_for():
    script = """
        import asyncio, os, signal
        from rendezvous.etcd.v3 import background

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

        async def wait(told):
            try:
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        told = []
        try:
            background.run(wait(told))
        except KeyboardInterrupt:
            told.append("interrupted")

        async def over():
            while len(told) < 2:
                await asyncio.sleep(0.01)
        background.run(over())
        print(*sorted(told))
    """
    assert python(script) == "cancelled interrupted\n"

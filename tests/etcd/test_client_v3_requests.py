"""Requests of the etcd v3 client, their errors and their deadlines, on real etcd servers."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.etcd_cluster import send, unary
from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import ClientOptions
from rendezvous.etcd.v3.errors import BusyError, CompactedError, EtcdError, LeaseNotFoundError, NoSpaceError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import DELETE, absent, compare, delete_op, get_op, prefix_end
from rendezvous.etcd.v3.operations import put_op as put
from rendezvous.utils import get_free_port
from tests.etcd.clients import Observer, compact, connected, on_a_loop, until, within
from tests.etcd.clusters import BOUND, Cluster


@on_a_loop
async def test_a_long_range_is_read_in_pages_at_one_revision(port, key):
    page = ClientOptions().page_size
    names = [b"%s%05d" % (key, i) for i in range(2 * page + 17)]
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
    page = ClientOptions().page_size
    async with connected(port) as client:
        await client.txn([], [put(b"%s%05d" % (key, i), b"") for i in range(page)], deadline=within())
        assert len((await client.range(key, prefix_end(key), within()))[0]) == page
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
async def test_a_lease_that_is_not_renewed_ends(port, key):
    async with connected(port) as client:
        lease = await client.grant(1, within())
        await client.put(key, lease=lease)
        observer = Observer()
        await observer.watch(client, key)
        await until(lambda: observer.changes, "the lease ends")
        assert observer.changes == [(DELETE, key, b"")]
        assert await client.keep_alive(lease, within()) is False


@pytest.mark.parametrize(
    ("request_", "reason"),
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
async def test_a_bad_argument_is_sent_once(port, request_, reason):
    call = next(call for call in Call if call.request is type(request_))
    async with connected(port) as client:
        with pytest.raises(
            RendezvousConnectionError, match=rf"etcd at 127\.0\.0\.1:{port} did not {call.task}: .*{reason}"
        ) as error:
            await client.request(call, request_, within())
        assert not error.value.retryable
        assert client.tries[call] == 1


@on_a_loop
async def test_a_compacted_and_a_future_revision(server, port, key):
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
async def test_more_requests_at_once_than_the_limit(port, key):
    async with connected(port) as client:
        await asyncio.gather(*(client.put(b"%s%d" % (key, i)) for i in range(2000)))
        assert len((await client.range(key, prefix_end(key), within()))[0]) == 2000
        assert client.tries[Call.PUT] == 2000


@on_a_loop
async def test_too_many_requests_are_retried(server, port, key):
    """etcd answers this if more than 5,000 agreed changes wait to be applied; here they wait behind a slow one."""
    # An attempt that is given up because the machine is slow would be applied, and then applied again.
    async with connected(port, options=ClientOptions(attempt_timeout=BOUND, ping_timeout=BOUND)) as client:
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


@on_a_loop
async def test_a_full_database_is_waited_out(key, caplog):
    with Cluster(1, flags=["--quota-backend-bytes", "1000000"]) as server:
        async with connected(server.ports[0]) as client:
            lease = await client.grant(60, within())

            async def fill():
                while True:
                    await client.put(key, bytes(100_000), seconds=1)

            with pytest.raises(RendezvousConnectionError, match=r"space exceeded; .*etcdctl alarm disarm") as full:
                await fill()
            assert full.value.retryable
            assert isinstance(client.errors[-1], NoSpaceError)
            assert caplog.text.count("accepts no writes") == 1
            assert await client.keep_alive(lease, within())
            assert (await client.range(key, b"", within()))[0]
            failed = len(client.errors)
            asked = asyncio.ensure_future(client.put(key, b"value"))
            await until(lambda: len(client.errors) > failed, "etcd refuses the request")
            # What the message asks for.
            newest = (await client.range(key, b"", within()))[1]
            compact(server, newest)
            send(server.channel(), rpc_pb2.DefragmentRequest(), BOUND)
            for alarm in send(server.channel(), rpc_pb2.AlarmRequest(), BOUND).alarms:
                disarm = rpc_pb2.AlarmRequest(
                    action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
                )
                send(server.channel(), disarm, BOUND)
            assert await asked > newest


# Deadlines.


@on_a_loop
async def test_the_deadline_holds_if_nothing_listens(key):
    port = get_free_port("127.0.0.1")
    async with connected(port) as client:
        began = within(0)
        with pytest.raises(
            RendezvousConnectionError,
            match=rf"etcd at 127\.0\.0\.1:{port} did not write the key within 1 s: Connection refused",
        ) as no:
            await client.put(key, seconds=1)
        with pytest.raises(
            RendezvousConnectionError,
            match=rf"127\.0\.0\.1:{port} did not start to watch '{key.decode()}' within 1 s: Connection refused",
        ):
            await Observer().watch(client, key, seconds=1)
        with pytest.raises(RendezvousConnectionError, match="did not renew a lease within 1 s: "):
            await client.keep_alive(7, within(1))
        assert no.value.retryable
        assert within(0) < began + 6


@pytest.mark.parametrize("trouble", ["stopped", "stalled", "stalled-from-the-start"])
@on_a_loop
async def test_the_deadline_holds_if_the_server_does_not_answer(server, port, proxy, key, trouble):
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
            Observer().watch(client, key, seconds=1),
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
async def test_the_deadline_holds_behind_many_requests_with_later_deadlines(port, proxy, key):
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

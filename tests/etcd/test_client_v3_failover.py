"""The etcd v3 client with several endpoints, which die and stall, and with a cluster of three."""

from __future__ import annotations

import asyncio
import socket

import grpc
import grpc.aio
import pytest

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.client import ClientOptions
from rendezvous.etcd.v3.operations import prefix_end
from rendezvous.utils import get_free_port
from tests.etcd.clients import Observer, connected, on_a_loop, until, uses, within


@on_a_loop
async def test_a_dead_endpoint_is_skipped(port, key):
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
async def test_an_endpoint_that_never_answers_is_skipped(port, proxy, key):
    proxy.stall()
    async with connected(proxy.port, port) as client:
        await uses(client, key)


@on_a_loop
async def test_the_client_leaves_an_endpoint_that_dies(port, proxy, key):
    async with connected(proxy.port, port) as client:
        observer = Observer()
        await observer.watch(client, key)
        await client.put(key, b"0")
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        for i in range(1, 6):
            proxy.cut()
            await client.put(key, b"%d" % i)
            assert await client.keep_alive(lease, within())
            await until(lambda i=i: observer.changes[-1][2] == b"%d" % i, "the watch reports the change")
        assert [value for _, _, value in observer.changes] == [b"%d" % i for i in range(6)]


@on_a_loop
async def test_a_stream_that_breaks_late_does_not_lead_back_to_the_dead_endpoint(port, proxy, key):
    """Requests fail over before the stream detects it. Its end counts against the endpoint that it was on."""
    async with connected(proxy.port, port) as client:
        observer = Observer()
        await observer.watch(client, key)
        proxy.stall()
        await client.put(key, b"1")
        assert client.target == f"127.0.0.1:{port}"
        proxy.cut()
        await until(lambda: observer.changes, "the watch reports the change")
        assert client.target == f"127.0.0.1:{port}"


@pytest.mark.parametrize("what", ["request", "keep-alive"])
@on_a_loop
async def test_a_watch_leaves_an_endpoint_that_does_not_answer_something_else(port, proxy, key, what):
    """Without pings, only a request or a keep-alive shows that the endpoint is silent."""
    options = ClientOptions(ping_interval=3600, ping_timeout=3600)
    async with connected(proxy.port, port, options=options) as client:
        observer, lease = Observer(), await client.grant(3, within())
        await observer.watch(client, key)
        assert await client.keep_alive(lease, within())
        proxy.stall()
        async with connected(port) as other:
            await other.put(key, b"new")
        if what == "request":
            await client.put(key + b"2")
        else:
            await client.keep_alive(lease, within())
        await until(lambda: observer.changes, "the watch reports the change")
        assert not observer.lost


@on_a_loop
async def test_the_client_leaves_an_endpoint_that_stops_answering(port, proxy, key):
    async with connected(proxy.port, port) as client:
        lease = await client.grant(60, within())
        assert await client.keep_alive(lease, within())
        await client.put(key)
        proxy.stall()
        assert await client.keep_alive(lease, within())
        await client.put(key, b"other")
        assert client.target == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("code", "details", "moves"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", True),
        (grpc.StatusCode.UNKNOWN, "etcdserver: too many requests", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", False),
        (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", False),
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", False),
    ],
)
@on_a_loop
async def test_only_an_endpoint_that_is_unavailable_is_left(code, details, moves):
    nothing = grpc.aio.Metadata()
    async with connected(1, 2) as client:
        endpoints = client._endpoints
        error = endpoints.failure(grpc.aio.AioRpcError(code, nothing, nothing, details), endpoints.current)
        assert error.endpoint == "127.0.0.1:1"
        assert client.target == ("127.0.0.1:2" if moves else "127.0.0.1:1")


@on_a_loop
async def test_an_error_of_tls_is_final_if_all_endpoints_have_it():
    nothing = grpc.aio.Metadata()
    handshake = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "Ssl handshake failed: no")
    async with connected(1, 2) as client:
        endpoints = client._endpoints
        assert endpoints.failure(handshake, endpoints.current).retryable
        assert not endpoints.failure(handshake, endpoints.current).retryable


# A cluster of three.


def from_the_leader(cluster):
    """Return the endpoints, the leader's first."""
    leader = cluster.leader
    return leader, cluster.endpoints[leader:] + cluster.endpoints[:leader]


@on_a_loop
async def test_requests_survive_the_death_of_the_leader(members, key):
    leader, endpoints = from_the_leader(members)
    async with connected(*endpoints) as client:
        observer, lease = Observer(), await client.grant(60, within())
        await observer.watch(client, key, prefix_end(key))
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
        await until(lambda: {name for _, name, _ in observer.changes} == set(done), "the watch reports each change")
        assert observer.lost == 0
        assert client.errors
        assert all(error.retryable for error in client.errors)


@on_a_loop
async def test_the_client_leaves_a_member_that_stops_answering(members, key):
    leader, endpoints = from_the_leader(members)
    async with connected(*endpoints[1:], endpoints[0]) as client:
        await client.put(key)
        members.pause((leader + 1) % 3)
        await client.put(key)
        await uses(client, key)


@on_a_loop
async def test_a_member_without_a_majority_is_unavailable(members, key):
    alone = (members.leader + 1) % 3
    async with connected(members.endpoints[alone]) as client:
        observer = Observer()
        await observer.watch(client, key)
        for member in members.members:
            if member != alone:
                members.pause(member)
        with pytest.raises(RendezvousConnectionError) as error:
            await client.put(key, b"lonely", seconds=2)
        assert error.value.retryable
        await asyncio.get_running_loop().run_in_executor(None, members.mend)
        await client.put(key, b"together")
        await until(lambda: observer.changes and observer.changes[-1][2] == b"together", "the watch reports the change")
        assert observer.lost == 0


@on_a_loop
async def test_a_stream_that_is_moved_while_its_connection_fails_is_not_opened_twice(port, key):
    # gRPC may swallow the cancellation of the first stream: in two of three attempts here. Each of the two streams
    # would take the answers that the other one awaits.
    def streams():
        return {task for task in asyncio.all_tasks() if "Stream._run" in task.get_coro().__qualname__}

    others = streams()  # of other tests' clients on this loop
    for _ in range(20):
        # Nobody listens on a port that is bound, and no other process gets it.
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            async with connected(bound.getsockname()[1], port) as client:
                reads = [client.range(key, b"", within()) for _ in range(5)]
                await asyncio.gather(client.watch(key, b"", lambda events: None, lambda: None, within()), *reads)
                await until(lambda: len(streams() - others) == 1, "one stream is left")

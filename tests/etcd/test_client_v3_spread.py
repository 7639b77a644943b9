"""The clients of a cluster are spread over its members, and are so again after the members restarted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from rendezvous.etcd.v3.client import ClientOptions
from tests.etcd.clients import Observer, Spy, on_a_loop, until, watchers, within
from tests.etcd.clusters import Cluster

CLIENTS = 60


async def in_thread(function):
    await asyncio.get_running_loop().run_in_executor(None, function)


@on_a_loop
async def test_a_rolling_restart_leaves_the_clients_spread(key):
    options = ClientOptions(return_after=(0.2, 1.0))
    with Cluster(3) as cluster:
        starts = [i % 3 for i in range(CLIENTS)]
        clients = [Spy(cluster.endpoints[i:] + cluster.endpoints[:i], options=options) for i in starts]
        observers = [Observer() for _ in clients]
        for client, each in zip(clients, observers, strict=True):
            await each.watch(client, key)

        def spread():
            return sorted(Counter(client.target for client in clients).values())

        assert spread() == [20, 20, 20]
        for member in cluster.members:
            left = cluster.endpoints[member]
            cluster.kill(member)
            await until(
                lambda left=left: all(client._endpoints.current.target != f"{left[0]}:{left[1]}" for client in clients),
                "all clients leave the member",
            )
            assert len(spread()) == 2  # the others share the load
            await in_thread(cluster.mend)
        await until(lambda: spread() == [20, 20, 20], "the clients are spread again")
        for port in cluster.ports:
            await until(lambda port=port: watchers(port) == 20, "the watches have moved too")
        await clients[0].put(key, b"new")
        await until(lambda: all(each.changes for each in observers), "all watches report the change")
        assert [each.changes for each in observers] == [observers[0].changes] * CLIENTS
        await asyncio.gather(*(client.close() for client in clients))


@on_a_loop
async def test_a_client_returns_only_to_an_endpoint_that_answers(members, key):
    options = ClientOptions(return_after=(0.1, 0.2))
    away = random.randrange(3)
    client = Spy(members.endpoints[away:] + members.endpoints[:away], options=options)
    home = client.target
    await client.check(key, within())
    lease = await client.grant(60, within())
    members.kill(away)
    await client.put(key)
    assert client.target != home
    for _ in range(20):
        await client.put(key)
        await asyncio.sleep(0.02)  # in this time it looks for its endpoint
    assert client.target != home
    await in_thread(members.mend)
    await until(lambda: client.target == home, "the client returns")
    await client.put(key)
    assert await client.keep_alive(lease, within())
    await client.close()

"""etcd's database is full while a round runs. The coordinator says so, and goes on when there is space again."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from benchmarks.etcd_cluster import send
from rendezvous.api import RendezvousConnectionError
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.etcd.clients import Spy, compact, on_a_loop, until
from tests.etcd.clusters import BOUND, Cluster

# Requests fail soon, so that a test sees many failures.
OPTIONS = Options(request_timeout=0.5, retry_delay=0.1, max_retry_delay=0.5)


class Watcher(Spy):
    """A client that counts its reads of all nodes."""

    def __init__(self, cluster: Cluster, nodes: bytes) -> None:
        super().__init__(cluster.endpoints)
        self._nodes = nodes
        self.reads = 0

    async def _attempt(self, call, request, timeout, deadline):
        self.reads += call is Call.RANGE and request.key == self._nodes
        return await super()._attempt(call, request, timeout, deadline)


async def fill(client: Spy, key: bytes) -> None:
    """Write until etcd accepts no writes any more."""

    async def write() -> None:
        while True:
            await client.put(key, bytes(100_000), seconds=1)

    with pytest.raises(RendezvousConnectionError, match="space exceeded"):
        await write()


def make_room(cluster: Cluster, key: bytes) -> None:
    """Do what the error message asks for."""
    answer = send(cluster.channel(), rpc_pb2.DeleteRangeRequest(key=key), BOUND)
    compact(cluster, answer.header.revision)
    send(cluster.channel(), rpc_pb2.DefragmentRequest(), BOUND)
    for alarm in send(cluster.channel(), rpc_pb2.AlarmRequest(), BOUND).alarms:
        disarm = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
        )
        send(cluster.channel(), disarm, BOUND)


@on_a_loop
async def test_a_loss_is_logged_and_published_when_there_is_space_again(run_id, caplog):
    keys, junk = Keys("/rendezvous", run_id), f"/{run_id}/junk".encode()
    settings = Settings(run_id, Limits(2, 3, last_call=0.2), 1, 3, OPTIONS)
    with Cluster(1, flags=["--quota-backend-bytes", "1000000"]) as cluster:
        clients = [Watcher(cluster, keys.nodes) for _ in range(3)]
        nodes = [
            Member(client, keys, NodeRecord(f"node-{i}", os.getpid(), i), settings, random.Random(i))
            for i, client in enumerate(clients)
        ]
        first = asyncio.ensure_future(nodes[0].join(BOUND, lambda: 29500))
        await until(lambda: nodes[0].view.coordinator, "the first node is the coordinator")
        await asyncio.gather(first, *(node.join(BOUND, lambda: 29500) for node in nodes[1:]))
        await fill(clients[0], junk)
        lost, reads, failures = nodes.pop(), clients[0].reads, len(clients[0].errors)
        name = lost._node.name
        await lost.leave(BOUND)
        await until(lambda: f"the other nodes cannot be told: {name};" in caplog.text, "the loss is logged")
        await until(lambda: len(clients[0].errors) >= failures + 6, "the coordinator tries again and again")
        assert clients[0].reads == reads
        assert caplog.text.count("the other nodes cannot be told") == 1
        assert "then run 'etcdctl alarm disarm'" in caplog.text
        assert [node.num_nodes_waiting() for node in nodes] == [0, 0]
        await asyncio.get_running_loop().run_in_executor(None, make_room, cluster, junk)
        await until(lambda: all(node.num_nodes_waiting() for node in nodes), "the members are told")
        assert clients[0].reads == reads
        places = [place for place, _ in await asyncio.gather(*(node.join(BOUND, lambda: 29500) for node in nodes))]
        assert {(place.round, place.world_size) for place in places} == {(1, 2)}
        await asyncio.gather(*(node.leave(5) for node in nodes))
        for client in clients:
            await client.close()

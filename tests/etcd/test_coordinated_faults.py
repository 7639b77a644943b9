"""Real clusters of three etcd members whose leader is killed, and coordinators that die at every step of a round."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys
from rendezvous.coordinated.records import NodeRecord as Node
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.operations import prefix_end
from tests.etcd.clusters import Cluster
from tests.nodes import BOUND

NODES = 200


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + BOUND
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"this did not happen within {BOUND:g} s: {what}"
        await asyncio.sleep(0.02)


def members(client: GrpcEtcdClient, run_id: str, limits: Limits, count: int, interval: float, ttl: int) -> list[Member]:
    keys, settings = Keys("/rendezvous", run_id), Settings(run_id, limits, interval, ttl)
    return [Member(client, keys, Node(f"node-{i}", os.getpid(), i), settings, random.Random(i)) for i in range(count)]


async def join(nodes: list[Member]) -> list[Assignment]:
    joins = [asyncio.ensure_future(node.join(BOUND, lambda: 29500)) for node in nodes]
    places = [place for place, _ in await asyncio.gather(*joins)]
    assert sorted(place.rank for place in places) == list(range(len(nodes)))
    assert {place.world_size for place in places} == {len(nodes)}
    assert len({place.round for place in places}) == 1
    return places


async def leave(nodes: list[Member], *clients: GrpcEtcdClient) -> None:
    await asyncio.gather(*(node.leave(5) for node in nodes))
    for client in clients:
        await client.close()
        assert client.history.restorations == 0


def test_many_nodes_join_while_etcds_leader_is_killed(run_id):
    async def scenario(cluster: Cluster, leader: int) -> None:
        client = GrpcEtcdClient(cluster.endpoints)
        nodes = members(client, run_id, Limits(NODES, NODES), NODES, interval=5, ttl=15)
        halves = nodes[: NODES // 2], nodes[NODES // 2 :]
        first = [asyncio.ensure_future(node.join(BOUND, lambda: 29500)) for node in halves[0]]
        await until(lambda: halves[0][-1].node_id is not None, "the first half is under way")
        await asyncio.get_running_loop().run_in_executor(None, cluster.kill, leader)
        second = [asyncio.ensure_future(node.join(BOUND, lambda: 29500)) for node in halves[1]]
        places = [place for place, _ in await asyncio.gather(*first, *second)]
        assert sorted(place.rank for place in places) == list(range(NODES))
        assert {(place.world_size, place.round) for place in places} == {(NODES, 0)}
        await leave(nodes, client)

    with Cluster() as cluster:
        asyncio.run(scenario(cluster, cluster.leader))


def test_no_member_is_lost_if_etcds_leader_is_killed_while_a_job_runs(run_id):
    async def scenario(cluster: Cluster, leader: int) -> None:
        client = GrpcEtcdClient(cluster.endpoints)
        nodes = members(client, run_id, Limits(NODES, NODES), NODES, interval=1, ttl=3)
        await join(nodes)
        ids = [node.node_id for node in nodes]
        await asyncio.get_running_loop().run_in_executor(None, cluster.kill, leader)
        # Without keep-alives to the other etcd members, all leases would end in this time.
        until_then = asyncio.get_running_loop().time() + 9
        while asyncio.get_running_loop().time() < until_then:
            assert [node.num_nodes_waiting() for node in nodes] == [0] * NODES
            await asyncio.sleep(0.1)
        assert [node.node_id for node in nodes] == ids
        keys = Keys("/rendezvous", run_id)
        found, _ = await client.range(keys.nodes, prefix_end(keys.nodes), asyncio.get_running_loop().time() + BOUND)
        assert len(found) == NODES
        assert {place.round for place in await join(nodes)} == {1}  # and they can still form a round
        await leave(nodes, client)

    with Cluster() as cluster:
        asyncio.run(scenario(cluster, cluster.leader))


class Doomed(GrpcEtcdClient):
    """A client whose process stops before or after its n-th transaction, without closing anything."""

    def __init__(self, endpoints: Any, fatal: int, applied: bool, die: Callable[[], None]) -> None:
        super().__init__(endpoints)
        self._left, self._applied, self._die = fatal, applied, die

    async def _attempt(self, call: Call, request: Any, timeout: float, deadline: float) -> Any:
        if call is Call.TXN:
            self._left -= 1
            if self._left == 0:
                if self._applied:
                    await super()._attempt(call, request, timeout, deadline)
                self._die()
        if self._left <= 0:
            await asyncio.Event().wait()
        return await super()._attempt(call, request, timeout, deadline)

    def renew(self, lease: int, answered: Any, failed: Any) -> None:
        if self._left > 0:
            super().renew(lease, answered, failed)


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fatal", [1, 2, 3, 4])
def test_the_coordinator_dies_at_any_step_and_the_round_completes(etcd3, run_id, fatal, applied):
    """It joins, completes, publishes the bootstrap as rank 0, and publishes that there is a spare."""
    endpoints = [("localhost", etcd3.get_port())]

    async def scenario() -> None:
        dead = asyncio.Event()
        doomed_client = Doomed(endpoints, fatal, applied, dead.set)
        client = GrpcEtcdClient(endpoints)
        limits = Limits(3, 4, last_call=0.2)
        doomed = members(doomed_client, run_id, limits, 1, interval=0.5, ttl=2)[0]
        others = [node for node in members(client, run_id, limits, 4, interval=0.5, ttl=2) if node._node.local_id]

        async def rounds(node: Member) -> None:
            while True:
                await node.join(BOUND, lambda: 29500)
                await until(node.num_nodes_waiting, "nodes are waiting")

        tasks = [asyncio.ensure_future(rounds(doomed))]
        await until(lambda: doomed.view.coordinator is not None or dead.is_set(), "the doomed node coordinates")
        tasks += [asyncio.ensure_future(rounds(node)) for node in others]
        if fatal == 4:
            await until(lambda: all(node.view.bootstrap for node in others), "the first round")
            tasks.append(
                asyncio.ensure_future(members(client, run_id, limits, 9, 0.5, 2)[8].join(BOUND, lambda: 29500))
            )
        await asyncio.wait_for(dead.wait(), BOUND)
        died = asyncio.get_running_loop().time()

        def settled() -> bool:
            records = [node.view.record for node in others]
            return all(
                record and record.complete and not record.lost and not record.waiting and record.world_size >= 3
                for record in records
            ) and all(node._assignment and node._assignment.round == node.view.record.round for node in others)  # type: ignore[union-attr]

        await until(
            lambda: settled() and asyncio.get_running_loop().time() > died + 2.5, "the others are in a complete round"
        )
        for task in tasks:
            task.cancel()
        await leave(others, client)

    asyncio.run(scenario())

"""etcd is restored from a snapshot under running nodes. They notice, and form the next round."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.etcd_cluster import send
from rendezvous.api import RendezvousClosedError, RendezvousConnectionError, RendezvousParameters
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.store import AsyncEtcdStore
from rendezvous.dynamic.backend_v3 import create_backend
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import PUT, prefix_end
from tests.etcd.clients import Observer, connected, on_a_loop, until, within
from tests.etcd.clusters import BOUND, Cluster
from tests.etcd.snapshots import Restore, copy_data, go_back, take_snapshot
from tests.nodes import in_thread

LIMITS = Limits(3, 3)
SAVERS = pytest.mark.parametrize("save", [copy_data, take_snapshot], ids=["same_cluster_id", "new_cluster_id"])
PUSHED = pytest.mark.parametrize("pushed", [False, True], ids=["lower_revision", "pushed_revision"])

SOME = pytest.mark.parametrize(
    ("save", "pushed"),
    [(copy_data, True), (take_snapshot, False)],
    ids=["same_cluster_id-pushed_revision", "new_cluster_id-lower_revision"],
)
"""The two ways that are told by different signs."""


class Job:
    """Three nodes, each with a client of its own."""

    def __init__(self, cluster: Cluster, run_id: str, limits: Limits = LIMITS) -> None:
        self.cluster, self.run_id, self.limits = cluster, run_id, limits
        self.keys = Keys("/rendezvous", run_id)
        self.clients: list[GrpcEtcdClient] = []
        self.nodes = [self.node() for _ in range(3)]

    def node(self) -> Member:
        number = len(self.clients)
        self.clients.append(GrpcEtcdClient(self.cluster.endpoints))
        record = NodeRecord(f"node-{number}", os.getpid(), number)
        settings = Settings(self.run_id, self.limits, 1, 3)
        return Member(self.clients[-1], self.keys, record, settings, random.Random(number))

    async def join(self) -> list[Assignment]:
        """Let all nodes join; return what they got from the round."""
        joins = [asyncio.ensure_future(node.join(BOUND, lambda: 29500)) for node in self.nodes]
        places = [place for place, _ in await asyncio.gather(*joins)]
        assert sorted(place.rank for place in places) == list(range(len(self.nodes)))
        assert len({(place.round, place.attempt) for place in places}) == 1
        return places

    async def change(self, what: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, what, *arguments)

    async def are_told(self) -> None:
        """Wait until each node knows that it must form the next round."""
        await until(lambda: all(node.num_nodes_waiting() for node in self.nodes), "all nodes are told to form a round")

    async def stop(self) -> None:
        await asyncio.gather(*(node.leave(5) for node in self.nodes))
        for client in self.clients:
            await client.close()


def write(cluster: Cluster, count: int = 20) -> None:
    """Let another program write something."""
    for _ in range(count):
        send(cluster.channel(), rpc_pb2.PutRequest(key=b"/another/program"), BOUND)


@PUSHED
@SAVERS
@on_a_loop
async def test_the_members_of_a_round_form_the_next_one(run_id, caplog, save, pushed):
    with Cluster(1) as cluster:
        await members_form_the_next_round(cluster, run_id, caplog, save, pushed)


@SOME
@on_a_loop
async def test_the_members_form_the_next_round_on_a_cluster_of_three(run_id, caplog, save, pushed):
    with Cluster(3) as cluster:
        await members_form_the_next_round(cluster, run_id, caplog, save, pushed)


async def members_form_the_next_round(
    cluster: Cluster,
    run_id: str,
    caplog: pytest.LogCaptureFixture,
    save: Callable[[Cluster], Restore],
    pushed: bool,
) -> None:
    job = Job(cluster, run_id)
    assert {place.round for place in await job.join()} == {0}
    restore = await job.change(save, cluster)
    places = await job.join()
    assert {place.round for place in places} == {1}
    store = AsyncEtcdStore(job.clients[0], job.keys, 1, places[0].run_lease, 0, "client", random.Random(0))
    waiting = asyncio.ensure_future(store.wait([b"never"], 2 * BOUND))
    await store.set(b"key", b"value", BOUND)
    await job.change(write, cluster)
    await job.change(go_back, cluster, restore, pushed)
    await job.are_told()
    with pytest.raises(RendezvousConnectionError, match=r"was restored from a snapshot: what was written to the etcd"):
        await waiting
    with pytest.raises(RendezvousConnectionError, match="which has a store of its own"):
        await store.set(b"key", b"value", BOUND)
    places = await job.join()
    assert {place.round for place in places} == {2}
    store = AsyncEtcdStore(job.clients[1], job.keys, 2, places[0].run_lease, 0, "client", random.Random(0))
    assert await store.add(b"key", 1, BOUND) == 1
    assert "etcd was restored from a snapshot: " in caplog.text
    assert caplog.text.count("gives up its lease and joins the next round") == len(job.nodes)
    await job.stop()


@PUSHED
@SAVERS
@on_a_loop
async def test_nothing_of_the_run_is_in_the_snapshot(run_id, save, pushed):
    with Cluster(1) as cluster:
        job = Job(cluster, run_id, Limits(3, 3, reform_on_loss=False))
        restore = await job.change(save, cluster)
        await job.join()
        assert {place.round for place in await job.join()} == {1}
        await job.change(go_back, cluster, restore, pushed)
        await job.are_told()
        assert min(place.round for place in await job.join()) > 1
        assert [node.num_nodes_waiting() for node in job.nodes] == [0] * 3
        await job.stop()


@SAVERS
@on_a_loop
async def test_nodes_that_wait_for_a_round_get_into_one(run_id, save):
    """One is missing. The snapshot is taken before the others have joined."""
    with Cluster(1) as cluster:
        job = Job(cluster, run_id)
        restore = await job.change(save, cluster)
        early = [asyncio.ensure_future(node.join(2 * BOUND, lambda: 29500)) for node in job.nodes[:2]]
        await until(lambda: all(node.view.coordinator for node in job.nodes[:2]), "two nodes have joined")
        await job.change(write, cluster)
        await job.change(go_back, cluster, restore, False)
        last = asyncio.ensure_future(job.nodes[2].join(2 * BOUND, lambda: 29500))
        assert {place.round for place, _ in await asyncio.gather(*early, last)} == {0}
        await job.stop()


@SAVERS
@on_a_loop
async def test_nothing_has_changed_since_the_snapshot(run_id, save):
    """Then the round may go on, if the revision does not show it. The nodes still follow what happens."""
    with Cluster(1) as cluster:
        job = Job(cluster, run_id)
        await job.join()
        restore = await job.change(save, cluster)
        await job.change(write, cluster)
        await job.change(go_back, cluster, restore, True)
        lost = job.nodes.pop()
        await lost.leave(BOUND)
        await job.are_told()
        job.nodes.append(job.node())
        assert min(place.round for place in await job.join()) > 0
        await job.stop()


@SOME
@on_a_loop
async def test_a_run_that_was_closed_stays_closed(run_id, save, pushed):
    with Cluster(1) as cluster:
        job = Job(cluster, run_id)
        await job.join()
        restore = await job.change(save, cluster)
        await job.join()
        await job.nodes[0].close("enough", within())
        await until(lambda: all(node.is_closed() for node in job.nodes), "all nodes know that it is closed")
        await job.change(go_back, cluster, restore, pushed)
        newcomer = job.node()
        await until(lambda: all(client.history.restorations for client in job.clients[:3]), "all nodes have noticed")

        def closed() -> bool:
            return bool(send(cluster.channel(), rpc_pb2.RangeRequest(key=job.keys.closed), BOUND).kvs)

        while not await job.change(closed):
            await asyncio.sleep(0.05)
        assert all(node.is_closed() and not node.num_nodes_waiting() for node in job.nodes)
        with pytest.raises(RendezvousClosedError, match="enough"):
            await newcomer.join(BOUND, lambda: 29500)
        await job.stop()


@SOME
@on_a_loop
async def test_a_run_that_is_closed_in_the_snapshot_is_closed(run_id, save, pushed):
    """It was closed before, its keys were deleted, and it was begun again."""
    with Cluster(1) as cluster:
        job = Job(cluster, run_id)
        await job.node().close("an earlier life", within())
        restore = await job.change(save, cluster)
        request = rpc_pb2.DeleteRangeRequest(key=job.keys.closed)
        await job.change(send, cluster.channel(), request, BOUND)
        await job.join()
        await job.change(write, cluster)
        await job.change(go_back, cluster, restore, pushed)
        await until(lambda: all(node.is_closed() for node in job.nodes), "all nodes know that it is closed")
        with pytest.raises(RendezvousClosedError, match="an earlier life"):
            await job.nodes[0].join(BOUND, lambda: 29500)
        await job.stop()


@SAVERS
@on_a_loop
async def test_a_watch_is_lost_and_another_one_reports(run_id, save):
    key = f"/{run_id}".encode()
    with Cluster(1) as cluster:
        async with connected(*cluster.ports, restorations=1) as client:
            loop, observer, fresh = asyncio.get_running_loop(), Observer(), Observer()
            restore = await loop.run_in_executor(None, save, cluster)
            await observer.watch(client, key)
            await loop.run_in_executor(None, write, cluster)
            await client.put(key, b"lost")
            await until(lambda: observer.changes, "the watch reports the change")
            await loop.run_in_executor(None, go_back, cluster, restore, False)
            assert (await client.range(key, b"", within()))[0] == []
            await until(lambda: observer.lost, "the watch is lost")
            assert (observer.lost, client.history.restorations) == (1, 1)
            await fresh.watch(client, key)
            await client.put(key, b"new")
            await until(lambda: fresh.changes, "the new watch reports the change")
            assert (fresh.changes, len(observer.changes)) == ([(PUT, key, b"new")], 1)


@on_a_loop
async def test_a_round_begins_with_an_empty_store(run_id):
    """The number of a round that nobody knows any more may be used again."""
    with Cluster(1) as cluster:
        job = Job(cluster, run_id)
        for kind in ("store", "once"):
            key = job.keys.of_round(kind, 0) + b"left"
            await job.change(send, cluster.channel(), rpc_pb2.PutRequest(key=key), BOUND)
        places = await job.join()
        store = AsyncEtcdStore(job.clients[0], job.keys, 0, places[0].run_lease, 0, "client", random.Random(0))
        assert await store.num_keys(BOUND) == 0
        once = job.keys.of_round("once", 0)
        assert (await job.clients[0].range(once, prefix_end(once), within()))[0] == []
        await job.stop()


@SOME
def test_the_state_of_the_dynamic_rendezvous_is_read_again(run_id, save, pushed):
    with Cluster(1) as cluster:
        backend, store = create_backend(RendezvousParameters("etcd-v2", cluster.endpoint, run_id, 1, 2))
        backend.set_state(b"one")
        store.set("key", "one")
        restore = save(cluster)
        _, token = backend.get_state()
        _, token, _ = backend.set_state(b"two", token)
        store.set("key", "two")
        watching = in_thread(lambda: backend.watch(token, 2 * BOUND))
        write(cluster)
        go_back(cluster, restore, pushed)
        assert watching.result(BOUND)[0] == b"one"
        assert store.get("key") == b"one"  # it serves all rounds, so it goes on

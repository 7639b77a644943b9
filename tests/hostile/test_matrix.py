"""Each cell of the hostile matrix, on a simulated etcd."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.store import AsyncEtcdStore
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from tests.hostile.matrix import SOME_ID, Cell, cells, content
from tests.hostile.runs import SHARDED, Run, join, kill_coordinator, simulated, until

pytestmark = pytest.mark.both_twins

LIMITS = Limits(3, 3)
BLOCKED = 8.0  # seconds within which an error comes


def key_of(cell: Cell, run: Run, nodes: list[Member]) -> bytes:
    """Return the key of a cell."""
    if cell.key == "nodes/<own>":
        return run.keys.node(nodes[0].node_id or int(SOME_ID, 16))
    if cell.key == "nodes/<other>":
        return run.keys.node(int(SOME_ID, 16))
    if cell.key.startswith("roster"):
        number, attempt = 0, SOME_ID
        if run.keys.round in run.etcd.current and run.record().complete:
            number, attempt = run.record().round, run.record().attempt
        if "names" not in cell.key:
            return run.keys.shard(number, attempt, 0)
        # The name of the coordinator that is dead: the next one publishes it. The node's number is its rank.
        dead = next((rank for rank, link in enumerate(run.links) if link.dead), 0)
        return run.keys.names(number, attempt, dead)
    if cell.key == "store/<key>":
        return run.keys.of_round("store", 0) + b"key"
    if cell.key == "once/<slot>":
        return run.keys.of_round("once", 0) + b"client/0"
    return run.keys.root + cell.key.encode()


def plant(cell: Cell, run: Run, nodes: list[Member]) -> bytes:
    """Write what the cell says, and return the key."""
    key, lease = key_of(cell, run, nodes), 0
    if cell.content == "foreign lease":
        lease = run.etcd.handle(Call.GRANT, rpc_pb2.LeaseGrantRequest(TTL=3600), None).ID
    run.put(key, content(cell, run.keys, run.etcd.current.get(key), lease), lease)
    return key


async def outcomes(joins: list[asyncio.Task[Any]]) -> list[Any]:
    return list(await asyncio.gather(*joins, return_exceptions=True))


def check(cell: Cell, key: bytes, found: list[Any], seconds: float) -> None:
    """Check what came of the joins."""
    errors = [each for each in found if isinstance(each, BaseException)]
    if cell.outcome == "ok":
        assert errors == []
        assert sorted(place.rank for place, _ in found) == list(range(len(found)))
        assert len({place.round for place, _ in found}) == 1
        return
    assert len(errors) == len(found)
    for error in errors:
        assert isinstance(error, RendezvousError), error
        assert not isinstance(error, RendezvousTimeoutError), error
        if cell.outcome == "closed":
            assert isinstance(error, RendezvousClosedError)
        else:
            assert f"'{key.decode()}'" in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    assert seconds < BLOCKED


async def begin(cell: Cell, run: Run) -> tuple[bytes, list[Member], list[asyncio.Task[Any]]]:
    """Bring the run to the moment of the cell, and plant; return the key, and the nodes and their joins after that."""
    *used, fourth = [run.node(number, LIMITS, SHARDED) for number in range(4)]
    if cell.moment == "before":
        key = plant(cell, run, used)
        return key, used, [join(node) for node in used]
    if cell.moment == "forming":
        joins = [join(node) for node in used[:2]]
        await until(lambda: run.keys.round in run.etcd.current, "the round forms")
        key = plant(cell, run, used)
        await asyncio.sleep(3)
        return key, used, [*joins, join(used[2])]
    await asyncio.gather(*map(join, used))
    if cell.moment == "running":
        key = plant(cell, run, used)
        await asyncio.sleep(5)
    else:
        used = kill_coordinator(run, used)
        key = plant(cell, run, used)
        await asyncio.sleep(8)
        if cell.outcome == "ok":
            assert all(node.num_nodes_waiting() for node in used), "the nodes do not learn of the loss"
        used.append(fourth)
    return key, used, [join(node) for node in used]


async def play(cell: Cell) -> None:
    run, clock = Run(), asyncio.get_running_loop().time
    key, used, joins = await begin(cell, run)
    began = clock()
    check(cell, key, await outcomes(joins), clock() - began)
    if cell.outcome == "ok":
        check(cell, key, await outcomes([join(node) for node in used]), 0.0)


@pytest.mark.parametrize("cell", list(cells("ctl/", "nodes/", "roster/")), ids=str)
def test_the_nodes_join_or_an_error_names_the_key(cell: Cell):
    simulated(play(cell))


CHANGES = {
    "get": lambda store: store.multi_get(["key"], 1.0),
    "add 1": lambda store: store.add("key", 1, 1.0),
    "add 2": lambda store: store.add("key", 2, 1.0),
    "append": lambda store: store.append("key", b"x", 1.0),
    "compare_set": lambda store: store.compare_set("key", b"7", b"8", 1.0),
    "delete": lambda store: store.delete_key("key", 1.0),
}


async def play_with_store(cell: Cell, name: str) -> None:
    run = Run()
    key, used, joins = await begin(cell, run)
    places = [place for place, _ in await asyncio.gather(*joins)]
    link = run.links[used[0]._node.pid]
    store, other = (
        AsyncEtcdStore(link, run.keys, 0, places[0].run_lease, 0, client, random.Random(1))
        for client in ("client", "other client")
    )
    await other.set("key", b"7", 1.0)
    key = plant(cell, run, used)
    # Only deleting does not look at the value, and only reading does not use an idempotency key.
    reads = name != ("delete" if cell.key.startswith("store") else "get")
    if cell.outcome == "ok" or not reads:
        await CHANGES[name](store)
        return
    with pytest.raises(RendezvousError) as caught:
        await CHANGES[name](store)
    assert not isinstance(caught.value, RendezvousTimeoutError)
    assert f"'{key.decode()}'" in str(caught.value)
    assert await store.check(["other"], 1.0) is False


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("cell", list(cells("store/", "once/")), ids=str)
def test_what_uses_the_key_of_a_store_succeeds_or_an_error_names_the_key(cell: Cell, name: str):
    simulated(play_with_store(cell, name))

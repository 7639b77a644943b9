"""Nodes on a simulated etcd into which somebody else writes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rendezvous.coordinated.member import Member
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Bootstrap, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import delete_op, put_op
from tests.simulation.etcd import Etcd
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import VirtualLoop

TIMEOUT = 20.0
SOME_ID = "0123456789abcdef"
SHARDED = Options(inline_nodes=1, shard_nodes=1)


class Run:
    """Nodes on a simulated etcd, and somebody else who writes there too."""

    def __init__(self) -> None:
        self.etcd, self.keys = Etcd(self._check_write), Keys("/p", "run")
        self.links: list[Link] = []

    def _check_write(self, writer: Any, keys: list[bytes]) -> None:
        """Check that no node writes a round record that others cannot read."""
        if writer is not None and self.keys.round in keys and self.keys.round in self.etcd.current:
            self.record()

    def node(self, number: int, limits: Limits, options: Options = Options()) -> Member:  # noqa: B008
        rng = random.Random(number)
        self.links.append(Link(self.etcd, Conditions(latency=0.01), number, rng))
        settings = Settings("run", limits, 1.0, 3, options)
        return Member(self.links[-1], self.keys, NodeRecord(f"node-{number}", number, 0), settings, rng)

    def nodes(self, count: int, limits: Limits) -> list[Member]:
        return [self.node(number, limits) for number in range(count)]

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[put_op(key, value, lease)]), None)

    def delete(self, key: bytes) -> None:
        self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[delete_op(key)]), None)

    def record(self) -> RoundRecord:
        kv = self.etcd.current[self.keys.round]
        return RoundRecord.decode(kv.key, kv.value)


def join(node: Member, timeout: float = TIMEOUT) -> asyncio.Task[tuple[Assignment, Bootstrap]]:
    port = 1000 + node._node.pid
    return asyncio.get_running_loop().create_task(node.join(timeout, lambda: port))


async def form(nodes: list[Member], number: int) -> list[tuple[Assignment, Bootstrap]]:
    """Let nodes form a round, and check what they get from it."""
    places = await asyncio.gather(*map(join, nodes))
    assert sorted(place.rank for place, _ in places) == list(range(len(nodes)))
    assert {(place.round, place.world_size) for place, _ in places} == {(number, len(nodes))}
    first = next(node for node, (place, _) in zip(nodes, places, strict=True) if place.rank == 0)
    assert {(told.addr, told.port) for _, told in places} == {(first._node.addr, 1000 + first._node.pid)}
    return list(places)


async def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


def simulated(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario on a virtual clock."""
    loop = VirtualLoop()
    errors: list[str] = []
    loop.set_exception_handler(lambda loop, context: errors.append(str(context)))
    try:
        loop.run_until_complete(scenario)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert errors == []


def warnings(caplog: pytest.LogCaptureFixture, key: bytes) -> list[str]:
    """Return the warnings that name an etcd key."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if key.decode() in text]


def damage(run: Run, what: str) -> None:
    """Damage what a new coordinator reads."""
    prefix = run.keys.roster(run.record().round, run.record().attempt)
    keys = [key for key in run.etcd.current if key.startswith(prefix)]
    names = [key for key in keys if b"/names/" in key]
    if what == "the names":
        for key in names:
            run.put(key, b"\xff")
    elif what == "the names are gone":
        for key in names:
            run.delete(key)
    elif what == "a shard":
        run.put(min(keys), b"RR\x01 and nothing else")
    elif what == "a shard is gone":
        run.delete(min(keys))
    run.etcd.compact(run.etcd.revision)


def kill_coordinator(run: Run, nodes: list[Member]) -> list[Member]:
    """Kill the coordinator's process, and return the other nodes."""
    leader = run.etcd.current[run.keys.coordinator].lease
    dead = next(node for node in nodes if node.node_id == leader)
    run.links[nodes.index(dead)].dead = True
    return [node for node in nodes if node is not dead]


def end_run_lease(run: Run) -> None:
    """End the lease to which the records of the run are bound."""
    run.etcd.handle(Call.REVOKE, rpc_pb2.LeaseRevokeRequest(ID=run.etcd.current[run.keys.round].lease), None)
    assert run.keys.round not in run.etcd.current

"""Injects the faults of a plan into a world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rendezvous.coordinated.records import Bootstrap, Closed
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.simulation.plan import FAULTS_END, Fault, Kind, Plan
from tests.simulation.world import Node, World

__all__ = ["Faults", "cut", "reconnect"]

# Seconds.
_MAX_ELECTION = 4.0
_LEAVE_TIMEOUT = 2.0
_COMPACT_INTERVAL = 0.25


def cut(world: World, node: Node) -> None:
    """Cut a node off from etcd."""
    node.link.cut = True
    world.note(node.name, "is cut off from etcd")


def reconnect(world: World, node: Node) -> None:
    """Let a node reach etcd again."""
    if node.link.cut:
        node.link.cut = False
        world.note(node.name, "can reach etcd again")


class Faults:
    """The faults of one run.

    Args:
        world: the nodes, etcd and the network.
        plan: what happens.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._coordinator_writes = 0
        self._struck = False
        self._over = False
        world.hook = self._on_request
        self._actions: dict[Kind, Callable[[Fault, float], None]] = {
            Kind.CRASH: self._crash,
            Kind.RESTART: self._restart,
            Kind.LATE: self._restart,
            Kind.CUT: self._cut,
            Kind.CUT_AND_COMPACT: self._cut_and_compact,
            Kind.SLOW: self._slow,
            Kind.NO_LEADER: self._no_leader,
            Kind.OVERLOAD: self._overload,
            Kind.COMPACT: self._compact,
            Kind.LEAVE: self._leave,
            Kind.REJOIN: self._rejoin,
            Kind.CLOSE: self._close,
        }

    def schedule(self) -> None:
        """Set the timers of all faults."""
        loop = asyncio.get_running_loop()
        for fault in self._plan.faults:
            loop.call_later(fault.when, self._inject, fault)

    def end(self) -> None:
        """End all faults, and start a node on each host that has none."""
        world = self._world
        world.note("test", "all faults end")
        self._over = True
        world.conditions.recover()
        for node in world.nodes:
            node.link.cut, node.link.slowness = False, 1.0
        for host in range(self._plan.hosts):
            world.start(host)

    def _inject(self, fault: Fault) -> None:
        seconds = min(fault.seconds, max(0.0, FAULTS_END - asyncio.get_running_loop().time()))
        self._fault_until(asyncio.get_running_loop().time() + max(seconds, _LEAVE_TIMEOUT))
        self._actions[fault.kind](fault, seconds)

    def _fault_until(self, when: float) -> None:
        invariants = self._world.invariants
        invariants.faults_until = max(invariants.faults_until, when)

    # Nodes and their connections.

    def _crash(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            self._world.kill(node)

    def _restart(self, fault: Fault, seconds: float) -> None:
        self._crash(fault, seconds)
        asyncio.get_running_loop().call_later(seconds, self._world.start, fault.host)

    def _cut(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            cut(self._world, node)
            asyncio.get_running_loop().call_later(seconds, reconnect, self._world, node)

    def _cut_and_compact(self, fault: Fault, seconds: float) -> None:
        """Cut a node off, and compact the history before it can reach etcd again."""
        asyncio.get_running_loop().call_later(seconds, self._compact_once)
        self._cut(fault, seconds)

    def _slow(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            node.link.slowness = 50.0
            self._fault_until(FAULTS_END)
            self._world.note(node.name, "its connection is slow")

    def _leave(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            self._run(node, self._leave_and_start(node))

    async def _leave_and_start(self, node: Node) -> None:
        await self._world.leave(node)
        if self._over:  # the connection was slow: end() still found the node
            asyncio.get_running_loop().call_soon(self._world.start, node.host)

    def _rejoin(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            node.wants_to_rejoin = True

    def _close(self, fault: Fault, seconds: float) -> None:
        if (node := self._world.running(fault.host)) is not None:
            self._run(node, self._world.close(node))

    def _run(self, node: Node, coroutine: Any) -> None:
        node.tasks.append(asyncio.get_running_loop().create_task(coroutine))

    # etcd.

    def _no_leader(self, fault: Fault, seconds: float) -> None:
        self._world.conditions.no_leader = True
        self._world.note("etcd", "has no leader")
        asyncio.get_running_loop().call_later(min(seconds, _MAX_ELECTION), self._new_leader)

    def _new_leader(self) -> None:
        self._world.conditions.no_leader = False
        self._world.etcd.change_leader()
        self._world.note("etcd", "has a new leader")

    def _overload(self, fault: Fault, seconds: float) -> None:
        conditions = self._world.conditions
        conditions.overload = 0.7
        self._world.note("etcd", f"is overloaded for {seconds:.1f} s")
        asyncio.get_running_loop().call_later(seconds, setattr, conditions, "overload", 0.0)

    def _compact(self, fault: Fault, seconds: float) -> None:
        self._world.note("etcd", f"compacts its history again and again for {seconds:.1f} s")
        for number in range(1 + int(seconds / _COMPACT_INTERVAL)):
            asyncio.get_running_loop().call_later(number * _COMPACT_INTERVAL, self._compact_once)

    def _compact_once(self) -> None:
        self._world.etcd.compact(self._world.etcd.revision)

    # Faults at a certain request.

    def _on_request(self, node: Node, stage: str, call: Call, request: Any) -> None:
        if call is not Call.TXN:
            return
        if self._plan.close_at_completion and stage == "before" and self._world.invariants.closed_at is None:
            self._close_before_roster_of_round_1(request)
        if self._over:
            return
        if self._plan.kill_coordinator_at is not None:
            self._kill_coordinator(node, stage, *self._plan.kill_coordinator_at)
        if self._plan.strike_rank_0 is not None and stage == "before" and not self._struck:
            self._strike_rank_0(node, request, *self._plan.strike_rank_0)

    def _close_before_roster_of_round_1(self, request: Any) -> None:
        keys = self._world.keys
        if any(op.request_put.key.startswith(keys.of_round("roster", 1)) for op in request.success):
            closed = put_op(keys.closed, Closed("enough", "another program").encode())
            self._world.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[closed]), None)

    def _kill_coordinator(self, node: Node, stage: str, fatal_stage: str, fatal_write: int) -> None:
        key = self._world.etcd.current.get(self._world.keys.coordinator)
        if stage != fatal_stage or key is None or key.lease != node.member.node_id:
            return
        self._coordinator_writes += 1
        if self._coordinator_writes == fatal_write:
            self._fault_until(asyncio.get_running_loop().time())
            self._world.kill(node, f"is killed {stage} a transaction that it sent as the coordinator")

    def _strike_rank_0(self, node: Node, request: Any, number: int, seconds: float) -> None:
        """Stop rank 0 of a round just before its bootstrap is written."""
        key = self._world.keys.bootstrap
        written = [op.request_put.value for op in request.success if op.request_put.key == key]
        if not written or Bootstrap.decode(key, written[0]).round != number:
            return
        self._struck = True
        self._fault_until(asyncio.get_running_loop().time() + seconds)
        if not seconds:
            self._world.kill(node)
            return
        cut(self._world, node)
        asyncio.get_running_loop().call_later(seconds, reconnect, self._world, node)
        raise UnavailableError("the connection broke")

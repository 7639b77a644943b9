"""Injects the faults of a plan into a world."""

from __future__ import annotations

from typing import Any

from rendezvous.coordinated.records import Bootstrap, Closed
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.errors import UnavailableError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.simulation import etcd_faults, network_faults, process_faults
from tests.simulation.network_faults import cut, reconnect, repair
from tests.simulation.plan import FAULTS_END, Fault, Plan
from tests.simulation.scene import Scene
from tests.simulation.virtual import now
from tests.simulation.world import Node, World

__all__ = ["Faults"]

_LEAVE_TIMEOUT = 2.0
_SERVING = 0.05

_ACTIONS = {**process_faults.ACTIONS, **network_faults.ACTIONS, **etcd_faults.ACTIONS}


class Faults:
    """The faults of one run.

    Args:
        world: the nodes, etcd and the network.
        plan: what happens.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._scene = Scene(world)
        self._coordinator_writes = 0
        self._struck = False
        world.hook = self._on_request
        world.on_start = self._on_start
        world.limits_of = plan.limits_of
        world.etcd.lateness = plan.habits.late_leases
        # A join may need some twenty requests, one after another, where each shard takes one.
        slowness = 20 * plan.conditions.latency
        world.invariants.join_time += plan.habits.late_leases + plan.habits.serving + slowness

    def schedule(self) -> None:
        """Set the timers of all faults."""
        for fault in self._plan.faults:
            self._scene.later(fault.when, self._inject, fault)

    def end(self) -> None:
        """End all faults, and start a node on each host that has none."""
        world = self._world
        world.note("test", "all faults end")
        self._scene.over = True
        world.conditions.recover()
        world.etcd.no_space, world.etcd.lateness = False, 0.0
        world.remove_planted()
        for node in world.nodes:
            repair(node.link)
            node.cannot_serve, node.process.thread_time = False, _SERVING
            node.process.thaw()
        for host in range(self._plan.hosts):
            world.start(host)

    def _inject(self, fault: Fault) -> None:
        seconds = min(fault.seconds, max(0.0, FAULTS_END - now()))
        self._scene.fault_for(max(seconds, _LEAVE_TIMEOUT))
        _ACTIONS[fault.kind](self._scene, fault, seconds)

    def _on_start(self, node: Node) -> None:
        """Give a new process its clocks, and the time that it needs to start what the workers connect to."""
        habits, process, rng = self._plan.habits, node.process, node.link.rng
        if habits.clock_rates:
            process.rate = 1.0 + rng.uniform(-1, 1) * habits.clock_rates
            process.start = rng.uniform(0, 1e6)
        if not self._scene.over and habits.serving > _SERVING:
            process.thread_time = rng.uniform(_SERVING, habits.serving)

    # Faults at a certain request.

    def _on_request(self, node: Node, stage: str, call: Call, request: Any) -> None:
        if call is not Call.TXN:
            return
        if self._plan.close_at_completion and stage == "before" and self._world.invariants.closed_at is None:
            self._close_before_roster_of_round_1(request)
        if self._scene.over:
            return
        if self._world.on_roster is not None and stage == "before":
            roster = self._world.keys.root + b"roster/"
            if any(op.request_put.key.startswith(roster) for op in request.success):
                self._world.on_roster()
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
            self._scene.fault_for(0.0)
            self._world.kill(node, f"is killed {stage} a transaction that it sent as the coordinator")

    def _strike_rank_0(self, node: Node, request: Any, number: int, seconds: float) -> None:
        """Stop rank 0 of a round just before its bootstrap is written."""
        key = self._world.keys.bootstrap
        written = [op.request_put.value for op in request.success if op.request_put.key == key]
        if not written or Bootstrap.decode(key, written[0]).round != number:
            return
        self._struck = True
        self._scene.fault_for(seconds)
        if not seconds:
            self._world.kill(node)
            return
        cut(self._world, node)
        self._scene.later(seconds, reconnect, self._world, node)
        raise UnavailableError("the connection broke")

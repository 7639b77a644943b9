"""The nodes of one run on a simulated etcd: they start, join, run, join again, and are stopped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import Operation, delete_op, put_op
from tests.simulation.etcd import Etcd
from tests.simulation.invariants import Invariants
from tests.simulation.narrator import FIRST_PID, Narrator, line, short_name
from tests.simulation.network import Conditions, Link
from tests.simulation.trace import Trace
from tests.simulation.virtual import Process, now

__all__ = ["JOIN_TIMEOUT", "TTL", "Node", "ServeError", "World"]

TTL = 6
"""Seconds without a keep-alive after which a node's lease ends."""
JOIN_TIMEOUT = 40.0
"""The join timeout of all nodes in seconds."""

_RUN_ID = "job/1"  # the slash must be encoded in keys
_KEEP_ALIVE_INTERVAL = 2.0
_POLL_INTERVAL = 1.0
_CHECK_INTERVAL = 30.0
_LAST_PAUSE = 10.0  # a request that would be repeated after the deadline fails before it

RequestHook = Callable[["Node", str, Call, Any], None]
"""Called with a node, "before" or "after", the method and the message when etcd applies a request of the node."""


class ServeError(Exception):
    """What the workers connect to could not be started on rank 0."""


@dataclass(eq=False)
class Node:
    """One process on a host.

    Attributes:
        name: ``node-0`` for the first process on host 0, ``node-0.1`` for the second.
        host: the number of the host.
        link: the connection to etcd.
        member: the code under test.
        process: the process: its clocks and its tasks.
        limits: the configuration of the rules in this node.
        place: what the node got from the round that it is in; None while it joins.
        lease: the lease with which it is in that round.
        joins_since: when its join began, or when it was a spare for the last time; None if it does not join.
        alive: whether the process runs.
        wants_to_rejoin: whether the workers failed, so that the launcher joins again.
        wants_to_leave: whether the launcher is to leave the run, and then to join again.
        cannot_serve: whether what the workers connect to cannot be started.
        excused: whether there was a reason in its join for it to fail early: etcd refused the user, or the node left.
        ended: the error with which the launcher ended; empty if it goes on.
    """

    name: str
    host: int
    link: Link
    member: Member
    process: Process
    limits: Limits
    place: Assignment | None = None
    lease: int | None = None
    joins_since: float | None = None
    alive: bool = True
    wants_to_rejoin: bool = False
    wants_to_leave: bool = False
    cannot_serve: bool = False
    excused: bool = False
    ended: str = ""


class World:
    """The nodes, etcd, and the network between them.

    Args:
        limits: the configuration of the rules.
        conditions: the state of the network.
        options: intervals and limits of all members.
        rng: draws all that is random.
        transcript: gets a line for each event; None if no transcript is needed.
        topology: returns the position of a host in the network.

    Attributes:
        hook: see :data:`RequestHook`.
        limits_of: returns the configuration of the rules on a host.
        on_start: called with each node that starts.
        on_roster: called before each write of a part of a roster; None if nobody wants to know.
        trace: gets the lines for the specification; None if they are not needed.
    """

    def __init__(
        self,
        limits: Limits,
        conditions: Conditions,
        options: Options,
        rng: random.Random,
        transcript: list[str] | None = None,
        topology: Callable[[int], str] = lambda host: "",
    ) -> None:
        self.limits = limits
        self.conditions = conditions
        self.options = options
        self.rng = rng
        self.topology = topology
        self.transcript = transcript
        self.keys = Keys("/rendezvous", _RUN_ID)
        self.etcd = Etcd(self._on_write)
        self.nodes: list[Node] = []
        self.hook: RequestHook = lambda node, stage, call, request: None
        self.limits_of: Callable[[int], Limits] = lambda host: limits
        self.on_roster: Callable[[], None] | None = None
        self.on_start: Callable[[Node], None] = lambda node: None
        self.invariants = Invariants(
            self.keys, limits, self.etcd, self.nodes, lambda text: self.note("test", text.upper())
        )
        self.trace: Trace | None = None
        self._narrator = Narrator(self.keys, self.etcd)
        self._planting = False
        self._planted: dict[bytes, bytes] = {}

    # What happens, and what must hold.

    def note(self, who: str, what: str) -> None:
        """Add a line to the transcript."""
        if self.transcript is not None:
            self.transcript.append(line(now(), who, what))

    def _on_write(self, writer: Node | None, changed: list[bytes]) -> None:
        try:
            self._describe_and_check(writer, changed)
        except Exception as exc:  # it would be raised into the protocol, which may go on after it
            self.invariants.fail("no error is lost", repr(exc))

    def _describe_and_check(self, writer: Node | None, changed: list[bytes]) -> None:
        if self.transcript is not None and not self._planting:
            for who, what in self._narrator.describe(writer.name if writer is not None else "etcd", changed):
                self.note(who, what)
        if self.trace is not None:
            self.trace.write(writer, changed)
        self.invariants.check_write(writer, changed)

    def plant(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key as another program."""
        self.note("another", f"program writes {key.decode()}")
        self.invariants.planted = True
        self._planted[key] = value
        self._write(put_op(key, value, lease))

    def remove_planted(self) -> None:
        """Delete what another program wrote, if it is still there."""
        for key, value in self._planted.items():
            if key in self.etcd.current and self.etcd.current[key].value == value:
                self.note("operator", f"deletes {key.decode()}")
                self._write(delete_op(key))

    def _write(self, operation: Operation) -> None:
        self._planting = True
        self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[operation]), None)
        self._planting = False

    def raise_violation(self) -> None:
        """Raise the violation of an invariant, if there was one."""
        if self.invariants.violation is not None:
            raise self.invariants.violation

    async def sleep_until(self, when: float) -> None:
        """Wait until a time. Raises Violation soon after an invariant is violated."""
        while now() < when:
            self.invariants.check_joins(now())
            self.raise_violation()
            await asyncio.sleep(min(1.0, when - now()))

    # Nodes.

    def running(self, host: int) -> Node | None:
        """Return the node that runs on a host."""
        return next((node for node in self.nodes if node.host == host and node.alive), None)

    def start(self, host: int) -> None:
        """Start a node on a host, if none runs there."""
        if self.running(host) is not None:
            return
        rng, process = random.Random(self.rng.random()), Process()
        link = Link(self.etcd, self.conditions, None, rng, process.context)
        pid = FIRST_PID + sum(node.host == host for node in self.nodes)
        record = NodeRecord(f"node-{host}", pid, 0, topology=self.topology(host))
        limits = self.limits_of(host)
        settings = Settings(_RUN_ID, limits, _KEEP_ALIVE_INTERVAL, TTL, self.options)
        member = Member(link, self.keys, record, settings, rng)
        node = Node(short_name(record.name), host, link, member, process, limits)
        link._owner = node
        link.history.subscribe(lambda reason: self.invariants.check_history(node, reason))
        link.hook = lambda stage, call, request: self.hook(node, stage, call, request)
        self.nodes.append(node)
        self.note(node.name, "starts")
        self.on_start(node)
        self.run(node, self._launch(node))

    def run(self, node: Node, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the process of a node."""
        node.process.context.run(asyncio.get_running_loop().create_task, coroutine)

    def kill(self, node: Node, how: str = "is killed") -> None:
        """End a process at once."""
        if node.alive:
            self.note(node.name, how)
            node.alive = False
            node.place = None
            node.link.dead = True
            node.process.thaw()
            for task in node.process.tasks:
                task.cancel()

    async def leave(self, node: Node) -> None:
        """Have a node leave the run, and end its process."""
        node.excused = True
        await node.member.leave(2.0)
        self.kill(node, "ends")

    async def close(self, node: Node) -> None:
        """Have a node close the rendezvous. Its launcher goes on."""
        try:
            await node.member.close("enough", asyncio.get_running_loop().time() + 30)
        except RendezvousConnectionError as exc:
            self.note(node.name, f"close raises {type(exc).__name__}: {exc}")

    async def _launch(self, node: Node) -> None:
        """Do what a launcher does: join, run the workers, and join again whenever there is a reason."""
        while True:
            node.place, node.joins_since, node.excused = None, now(), node.link.refused
            began = asyncio.get_running_loop().time()
            try:
                place, bootstrap = await node.member.join(JOIN_TIMEOUT, lambda: self._serve(node))
            except (RendezvousError, ServeError) as exc:
                self.note(node.name, f"join raises {type(exc).__name__}: {exc}")
                patience = asyncio.get_running_loop().time() - began
                if not self._goes_on_after(node, exc, patience):
                    node.ended = type(exc).__name__
                    return
                await asyncio.sleep(1.0)
                continue
            if node.link.dead:
                return
            self.note(node.name, f"join returns: round {place.round}, rank {place.rank} of {place.world_size}")
            if self.trace is not None:
                self.trace.returned(node, place, bootstrap)
            self.invariants.check_return(node, place, bootstrap)
            node.place, node.lease, node.joins_since = place, node.member.node_id, None
            await self._run_workers(node)

    def _goes_on_after(self, node: Node, error: Exception, patience: float) -> bool:
        """Return whether the launcher tries again; check that the join, after so many seconds, had a reason to fail."""
        if isinstance(error, RendezvousTimeoutError):
            self.invariants.check_timeout(node)
        if isinstance(error, RendezvousConnectionError) and not node.excused and patience < JOIN_TIMEOUT - _LAST_PAUSE:
            self.invariants.fail("patience", f"the join of {node.name} failed after {patience:.1f} s: {error}")
        if isinstance(error, (RendezvousConnectionError, RendezvousTimeoutError, ServeError)):
            return True
        if isinstance(error, RendezvousStateError) and self.invariants.planted:
            return True
        if self.invariants.closed_at is None:
            self.invariants.fail("closed is final", f"{node.name} ended with {error!r} and nobody closed")
        return False

    def _serve(self, node: Node) -> int:
        if node.cannot_serve:
            raise ServeError("the address is already in use")
        return 29500 + node.host

    async def _run_workers(self, node: Node) -> None:
        """Run the workers until there is a reason to join again."""
        waiting = 0
        while not (node.wants_to_rejoin or node.wants_to_leave):
            if waiting := node.member.num_nodes_waiting():
                break
            await node.member.view.change(_CHECK_INTERVAL)
            await asyncio.sleep(node.link.rng.uniform(0, _POLL_INTERVAL))
        if node.wants_to_leave:
            self.note(node.name, "stops its workers and leaves, and then calls join")
            node.place = None
            await node.member.leave(2.0)
        elif node.wants_to_rejoin:
            self.note(node.name, "its workers fail, and it calls join")
        else:
            self.note(node.name, f"num_nodes_waiting returns {waiting}: it stops its workers and calls join")
        node.wants_to_rejoin = node.wants_to_leave = False

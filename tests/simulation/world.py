"""The nodes of one run on a simulated etcd: they start, join, run, join again, and are stopped."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rendezvous.api import RendezvousConnectionError, RendezvousError, RendezvousTimeoutError
from rendezvous.coordinated.member import Member, Settings
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Assignment, Limits
from rendezvous.etcd.v3.client import Call
from tests.simulation.etcd import Etcd
from tests.simulation.invariants import Invariants
from tests.simulation.narrator import FIRST_PID, Narrator, line, short_name
from tests.simulation.network import Conditions, Link
from tests.simulation.virtual import VirtualLoop

__all__ = ["TTL", "Node", "World", "make_loop"]

TTL = 6
"""Seconds without a keep-alive after which a node's lease ends."""

_RUN_ID = "job/1"  # the slash must be encoded in keys
_KEEP_ALIVE_INTERVAL = 2.0
_JOIN_TIMEOUT = 40.0
_POLL_INTERVAL = 0.5

RequestHook = Callable[["Node", str, Call, Any], None]
"""Called with a node, "before" or "after", the method and the message when etcd applies a request of the node."""

_current: contextvars.ContextVar[Node | None] = contextvars.ContextVar("node", default=None)


@dataclass(eq=False)
class Node:
    """One process on a host.

    Attributes:
        name: ``node-0`` for the first process on host 0, ``node-0.1`` for the second.
        host: the number of the host.
        link: the connection to etcd.
        member: the code under test.
        tasks: all tasks of the process.
        place: what the node got from the round that it is in; None while it joins.
        lease: the lease with which it is in that round.
        joins_since: when its join began, or when it was a spare for the last time; None if it does not join.
        alive: whether the process runs.
        wants_to_rejoin: whether the workers failed, so that the launcher joins again.
        ended: the error with which the launcher ended; empty if it goes on.
    """

    name: str
    host: int
    link: Link
    member: Member
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    place: Assignment | None = None
    lease: int | None = None
    joins_since: float | None = None
    alive: bool = True
    wants_to_rejoin: bool = False
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
        self.invariants = Invariants(
            self.keys, limits, self.etcd, self.nodes, lambda text: self.note("test", text.upper())
        )
        self._narrator = Narrator(self.keys, self.etcd)

    # What happens, and what must hold.

    def note(self, who: str, what: str) -> None:
        """Add a line to the transcript."""
        if self.transcript is not None:
            self.transcript.append(line(asyncio.get_running_loop().time(), who, what))

    def _on_write(self, writer: Node | None, changed: list[bytes]) -> None:
        try:
            self._describe_and_check(writer, changed)
        except Exception as exc:  # it would be raised into the protocol, which may go on after it
            self.invariants.fail("no error is lost", repr(exc))

    def _describe_and_check(self, writer: Node | None, changed: list[bytes]) -> None:
        if self.transcript is not None:
            for who, what in self._narrator.describe(writer.name if writer is not None else "etcd", changed):
                self.note(who, what)
        self.invariants.check_write(writer, changed)

    def raise_violation(self) -> None:
        """Raise the violation of an invariant, if there was one."""
        if self.invariants.violation is not None:
            raise self.invariants.violation

    async def sleep_until(self, when: float) -> None:
        """Wait until a time. Raises Violation soon after an invariant is violated."""
        loop = asyncio.get_running_loop()
        while loop.time() < when:
            self.invariants.check_joins(loop.time())
            self.raise_violation()
            await asyncio.sleep(min(1.0, when - loop.time()))

    # Nodes.

    def running(self, host: int) -> Node | None:
        """Return the node that runs on a host."""
        return next((node for node in self.nodes if node.host == host and node.alive), None)

    def start(self, host: int) -> None:
        """Start a node on a host, if none runs there."""
        if self.running(host) is not None:
            return
        rng = random.Random(self.rng.random())
        link = Link(self.etcd, self.conditions, None, rng)
        pid = FIRST_PID + sum(node.host == host for node in self.nodes)
        record = NodeRecord(f"node-{host}", pid, 0, topology=self.topology(host))
        settings = Settings(_RUN_ID, self.limits, _KEEP_ALIVE_INTERVAL, TTL, self.options)
        node = Node(short_name(record.name), host, link, Member(link, self.keys, record, settings, rng))
        link._owner = node
        link.history.subscribe(lambda reason: self.invariants.check_history(node, reason))
        link.hook = lambda stage, call, request: self.hook(node, stage, call, request)
        self.nodes.append(node)
        self.note(node.name, "starts")
        context = contextvars.copy_context()
        context.run(_current.set, node)
        context.run(asyncio.get_running_loop().create_task, self._launch(node))

    def kill(self, node: Node, how: str = "is killed") -> None:
        """End a process at once."""
        if node.alive:
            self.note(node.name, how)
            node.alive = False
            node.place = None
            node.link.dead = True
            for task in node.tasks:
                task.cancel()

    async def leave(self, node: Node) -> None:
        """Have a node leave the run, and end its process."""
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
        clock = asyncio.get_running_loop().time
        while True:
            node.place, node.joins_since = None, clock()
            try:
                place, bootstrap = await node.member.join(_JOIN_TIMEOUT, lambda: 29500 + node.host)
            except RendezvousError as exc:
                self.note(node.name, f"join raises {type(exc).__name__}: {exc}")
                if isinstance(exc, (RendezvousConnectionError, RendezvousTimeoutError)):
                    await asyncio.sleep(1.0)
                    continue
                node.ended = type(exc).__name__
                if self.invariants.closed_at is None:
                    self.invariants.fail("closed is final", f"{node.name} ended with {exc!r} and nobody closed")
                return
            if node.link.dead:
                return
            self.note(node.name, f"join returns: round {place.round}, rank {place.rank} of {place.world_size}")
            self.invariants.check_return(node, place, bootstrap)
            node.place, node.lease, node.joins_since = place, node.member.node_id, None
            while not node.wants_to_rejoin and not (waiting := node.member.num_nodes_waiting()):
                await asyncio.sleep(_POLL_INTERVAL)
            if node.wants_to_rejoin:
                self.note(node.name, "its workers fail, and it calls join")
            else:
                self.note(node.name, f"num_nodes_waiting returns {waiting}: it stops its workers and calls join")
            node.wants_to_rejoin = False


def make_loop() -> VirtualLoop:
    """Return a virtual loop that adds each new task to the tasks of its node."""
    loop = VirtualLoop()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        node = _current.get()
        if node is not None:
            node.tasks.append(task)
        return task

    loop.set_task_factory(make_task)
    return loop

"""A job in the simulation: its nodes, what befalls them, and the invariants that must hold after every step.

1 agreement    all that return from round r name one world size; their ranks are distinct and in range
2 exclusivity  round r+1 completes only after every member of r has left or lost its lease
3 bounds       min <= world size <= max, a multiple of the node unit
4 monotony     rounds only grow; closed is final
5 fencing      nobody but the coordinator of the moment writes rosters and rounds
6 liveness     once all is well, every node soon is in a complete round, or stands by because that has no place
7 store        the revision from which a member watches the round's store is not later than the first member's return
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import random
from dataclasses import dataclass, field
from typing import Any

from rendezvous._core import Roster
from rendezvous.api import RendezvousConnectionError, RendezvousError, RendezvousTimeoutError
from rendezvous.coordinated import rules
from rendezvous.coordinated.member import Member, Settings
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Closed, Keys, NodeRecord, RoundRecord
from rendezvous.coordinated.rules import Assignment, Limits, RankPolicy
from rendezvous.etcd.v3.client import Call
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import put_op
from tests.simulation.etcd import Etcd
from tests.simulation.network import Link, Weather
from tests.simulation.virtual import Deadlock, Livelock, VirtualLoop

TROUBLE = 60.0
"""Seconds in which things go wrong."""
PEACE = 90.0
"""Seconds after them within which everything must be well."""

TTL, INTERVAL = 6, 2.0

_current: contextvars.ContextVar[Node | None] = contextvars.ContextVar("node", default=None)


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Plan:
    """What happens in one run; all of it follows from the seed."""

    seed: int
    limits: Limits
    hosts: int
    events: list[tuple[float, str, int, float]]
    """When, what, to which host or with which strength, for how long."""
    kill_coordinator_at: tuple[str, int] | None
    """Before or after which of the coordinator's transactions it dies."""
    weather: Weather
    shard_nodes: int
    """How many nodes a shard of the roster takes, and how many operations a transaction: few, so that all have many."""
    operations: int
    close_at_completion: bool
    """Another node closes just before the coordinator writes the roster of the second round."""

    def options(self) -> Options:
        """Return the limits of all members."""
        return Options(inline_nodes=self.shard_nodes, shard_nodes=self.shard_nodes, operations=self.operations)

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Draw the plan of a seed."""
        rng = random.Random(seed)
        unit = rng.choice([1, 1, 1, 2])
        most = rng.randint(2, 7) * unit
        least = rng.randint(1, most)
        if most - most % unit < least:
            least = unit
        limits = Limits(
            least,
            most,
            last_call=rng.choice([0.5, 2.0, 5.0]),
            node_unit=unit,
            upscale=rng.random() < 0.8,
            reform_on_loss=rng.random() < 0.85,
            rank_policy=rng.choice(list(RankPolicy)),
        )
        hosts = rng.randint(rules.least(limits), most + 2)
        kinds = ["crash", "crash", "restart", "cut", "slow", "leader", "storm", "compact", "leave", "late", "rejoin"]
        if rng.random() < 0.15:
            kinds.append("close")
        events = [
            (rng.uniform(0, TROUBLE), rng.choice(kinds), rng.randrange(hosts), rng.choice([0.3, 1.5, 4.0, 9.0, 15.0]))
            for _ in range(rng.randint(0, 9))
        ]
        kill = (rng.choice(["before", "after"]), rng.randint(1, 12)) if rng.random() < 0.5 else None
        weather = Weather(
            loss=rng.choice([0.0, 0.0, 0.05, 0.2]),
            amnesia=rng.choice([0.0, 0.0, 0.05, 0.2]),
            repeats=rng.choice([0.0, 0.3]),
            latency=rng.choice([0.002, 0.01, 0.3]),
        )
        plan = cls(
            seed,
            limits,
            hosts,
            sorted(events),
            kill,
            weather,
            rng.choice([1, 2, 128]),
            rng.choice([1, 2, 100]),
            rng.random() < 0.05,
        )
        weather.late = rng.choice([0.0, 0.03, 0.1])
        return plan


@dataclass(eq=False)
class Node:
    """One process on a host."""

    host: int
    incarnation: int
    link: Link
    member: Member
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    place: Assignment | None = None
    alive: bool = True
    wants_to_rejoin: bool = False
    ended: str = ""

    @property
    def name(self) -> str:
        return f"node-{self.host}.{self.incarnation}"


class World:
    """Runs a plan."""

    def __init__(self, plan: Plan, transcript: list[str] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed + 1)
        self.keys = Keys("/rendezvous", "job/1")
        self.etcd = Etcd(self._check_write)
        self.nodes: list[Node] = []
        self.transcript = transcript
        self.incarnations = [0] * plan.hosts
        self.returned: dict[int, dict[str, Assignment]] = {}
        # The revision of etcd when the first member returned from a round: from then on the store is used.
        self.usable: dict[int, int] = {}
        self.record: RoundRecord | None = None
        self.leader: Node | None = None
        self.closed_at: int | None = None
        self.rosters: dict[int, list[int]] = {}
        self.violation: Violation | None = None
        self.coordinator_writes = 0
        self.calm = False

    def say(self, text: str) -> None:
        if self.transcript is not None:
            self.transcript.append(f"{asyncio.get_running_loop().time():9.3f}  {text}")

    def fail(self, invariant: str, text: str) -> None:
        self.say(f"VIOLATION of {invariant}: {text}")
        if self.violation is None:
            self.violation = Violation(f"seed {self.plan.seed}: {invariant}: {text}")

    # The run.

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.say(f"{self.plan.hosts} hosts; {self.plan.limits}; {self.plan.weather}")
        late = {target for _, kind, target, _ in self.plan.events if kind == "late"}
        for host in range(self.plan.hosts):
            if host not in late:
                loop.call_later(self.rng.uniform(0, 1.0), self.start, host)
        for when, kind, target, length in self.plan.events:
            loop.call_later(when, self.befall, kind, target, length)
        await self.until(TROUBLE)
        self.make_peace()
        await self.until(TROUBLE + PEACE)
        rounds = self.record.round if self.record is not None else -1
        self.check_liveness()
        await self.until(TROUBLE + PEACE + 20)
        self.check_liveness()
        if self.record is not None and self.record.round != rounds:
            self.fail("liveness", f"round {self.record.round} formed though nothing was wrong")
        for node in self.nodes:
            self.kill(node)
        await asyncio.sleep(0)
        if self.violation is not None:
            raise self.violation

    async def until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < when:
            if self.violation is not None:
                raise self.violation
            await asyncio.sleep(min(1.0, when - loop.time()))

    def make_peace(self) -> None:
        self.say("from here on all is well")
        self.calm = True
        weather = self.plan.weather
        weather.outage = False
        weather.loss = weather.amnesia = weather.late = weather.storm = weather.repeats = 0.0
        weather.latency = min(weather.latency, 0.02)
        for node in self.nodes:
            node.link.cut, node.link.slowness = False, 1.0
        for host in range(self.plan.hosts):
            if not self.running(host):
                self.start(host)

    # What befalls nodes.

    def running(self, host: int) -> list[Node]:
        return [node for node in self.nodes if node.host == host and node.alive]

    def start(self, host: int) -> None:
        if self.running(host):
            return
        rng = random.Random(self.rng.random())
        link = Link(self.etcd, self.plan.weather, None, rng)
        record = NodeRecord(f"node-{host}", 100 + self.incarnations[host], 0, topology="rack" if host % 2 else "")
        settings = Settings("job/1", self.plan.limits, INTERVAL, TTL, self.plan.options())
        node = Node(host, self.incarnations[host], link, Member(link, self.keys, record, settings, rng))
        self.incarnations[host] += 1
        link._owner = node
        link.hook = lambda stage, call, request: self.watch_coordinator(node, stage, call, request)
        self.nodes.append(node)
        self.say(f"{node.name} starts")
        context = contextvars.copy_context()
        context.run(_current.set, node)
        loop = asyncio.get_running_loop()
        context.run(loop.create_task, self.agent(node))

    def kill(self, node: Node) -> None:
        if node.alive:
            self.say(f"{node.name} dies")
            node.alive = False
            node.place = None
            node.link.dead = True
            for task in node.tasks:
                task.cancel()

    def watch_coordinator(self, node: Node, stage: str, call: Call, request: Any) -> None:
        if self.plan.close_at_completion and stage == "before" and call is Call.TXN and self.closed_at is None:
            written = [op.request_put.key for op in request.success]
            if any(key.startswith(self.keys.of_round("roster", 1)) for key in written):
                closed = put_op(self.keys.closed, Closed("enough", "someone").encode())
                self.etcd.handle(Call.TXN, rpc_pb2.TxnRequest(success=[closed]), None)
        kill = self.plan.kill_coordinator_at
        if kill is None or self.calm or call is not Call.TXN or stage != kill[0]:
            return
        key = self.etcd.current.get(self.keys.coordinator)
        if key is None or key.lease != node.member.node_id:
            return
        self.coordinator_writes += 1
        if self.coordinator_writes == kill[1]:
            self.say(f"{node.name}, the coordinator, dies {stage} its write")
            self.kill(node)

    def befall(self, kind: str, host: int, length: float) -> None:
        loop, weather = asyncio.get_running_loop(), self.plan.weather
        length = min(length, max(0.0, TROUBLE - loop.time()))
        self.say(f"{kind} host {host} for {length:.1f} s")
        running = self.running(host)
        if kind == "crash":
            for node in running:
                self.kill(node)
        elif kind in ("restart", "late"):
            for node in running:
                self.kill(node)
            loop.call_later(length, self.start, host)
        elif kind == "cut":
            for node in running:
                node.link.cut = True
                loop.call_later(length, setattr, node.link, "cut", False)
        elif kind == "slow":
            for node in running:
                node.link.slowness = 50.0
        elif kind == "leader":
            weather.outage = True
            loop.call_later(min(length, 4.0), self.elect)
        elif kind == "storm":
            weather.storm = 0.7
            loop.call_later(length, setattr, weather, "storm", 0.0)
        elif kind == "compact":
            self.etcd.compact(self.etcd.revision)
        elif kind == "leave":
            for node in running:
                self.say(f"{node.name} leaves")
                node.tasks.append(loop.create_task(self.depart(node)))
        elif kind == "rejoin":
            for node in running:
                node.wants_to_rejoin = True
        elif kind == "close":
            for node in running:
                node.tasks.append(loop.create_task(self.close(node)))

    def elect(self) -> None:
        self.plan.weather.outage = False
        self.etcd.change_leader()

    async def depart(self, node: Node) -> None:
        await node.member.leave(2.0)
        self.kill(node)

    async def close(self, node: Node) -> None:
        try:
            await node.member.close("enough", asyncio.get_running_loop().time() + 30)
        except RendezvousConnectionError as exc:
            self.say(f"{node.name} could not close: {exc}")

    async def agent(self, node: Node) -> None:
        """Do what a launcher does: join, run, and join again whenever there is a reason."""
        while True:
            node.place = None
            try:
                place, bootstrap = await node.member.join(40.0, lambda: 29500 + node.host)
            except (RendezvousConnectionError, RendezvousTimeoutError) as exc:
                self.say(f"{node.name}: {exc}")
                await asyncio.sleep(1.0)
                continue
            except RendezvousError as exc:
                self.say(f"{node.name} ends: {exc}")
                node.ended = type(exc).__name__
                if self.closed_at is None:
                    self.fail("closed is final", f"{node.name} ended with {exc!r} though nobody closed")
                return
            if node.link.dead:
                return
            self.say(f"{node.name} is rank {place.rank} of {place.world_size} in round {place.round}")
            self.check_return(node, place, bootstrap)
            node.place = place
            while not node.member.num_nodes_waiting() and not node.wants_to_rejoin:
                await asyncio.sleep(0.5)
            node.wants_to_rejoin = False
            self.say(f"{node.name} joins again")

    # The invariants.

    def check_return(self, node: Node, place: Assignment, bootstrap: Any) -> None:
        others = self.returned.setdefault(place.round, {})
        if node.name in others:
            self.fail("monotony", f"{node.name} returned twice from round {place.round}")
        for other, theirs in others.items():
            if theirs.world_size != place.world_size or theirs.rank == place.rank:
                self.fail("agreement", f"{node.name} has {place}, {other} has {theirs}")
        if not 0 <= place.rank < place.world_size:
            self.fail("agreement", f"{node.name} has {place}")
        if any(node.name in members for number, members in self.returned.items() if number > place.round):
            self.fail("monotony", f"{node.name} returned from round {place.round} after a later one")
        others[node.name] = place
        usable = self.usable.setdefault(place.round, self.etcd.revision)
        if not 0 < place.since <= usable:
            self.fail("store", f"{node.name} watches since {place.since}; keys may be older: {usable}")
        host = bootstrap.addr.removeprefix("node-")
        if (bootstrap.attempt, bootstrap.node) != (place.attempt, place.first) or bootstrap.port != 29500 + int(host):
            self.fail("agreement", f"{node.name} in round {place.round} was told to meet at {bootstrap}")

    def _check_write(self, writer: Node | None, keys: list[bytes]) -> None:
        if self.keys.coordinator in keys:
            self.leader = writer if self.keys.coordinator in self.etcd.current else None
        fenced = any(key.startswith((self.keys.round, self.keys.root + b"roster/")) for key in keys)
        if fenced and writer is not None and writer is not self.leader:
            self.fail("fencing", f"{writer.name} wrote {keys[0].decode()} and does not coordinate")
        if self.keys.closed in keys and self.closed_at is None and self.keys.closed in self.etcd.current:
            self.closed_at = self.etcd.revision
            self.say("closed")
        if self.keys.round in keys and self.keys.round in self.etcd.current:
            self._check_record(self.etcd.current[self.keys.round])

    def _check_record(self, kv: Any) -> None:
        record, before = RoundRecord.decode(kv.key, kv.value), self.record
        self.record = record
        self.say(f"round record: {json.loads(kv.value)}".replace("'", ""))
        if before is not None and (record.round, record.complete) < (before.round, before.complete):
            self.fail(
                "monotony", f"round {before.round} ({before.phase.value}) became {record.round} ({record.phase.value})"
            )
        if not record.complete or (before is not None and before.complete and before.round == record.round):
            return
        if self.closed_at is not None:
            self.fail("closed is final", f"round {record.round} completed after the rendezvous was closed")
        limits = self.plan.limits
        size = record.world_size
        if not limits.min_nodes <= size <= limits.max_nodes or size % limits.node_unit:
            self.fail("bounds", f"round {record.round} has {size} nodes")
        self._check_exclusivity(record)
        try:
            keys = [self.keys.shard(record.round, record.attempt, k) for k in range(record.shards)]
            shards = [self.etcd.current[key].value for key in keys]
            self.rosters[record.round] = Roster.decode(shards).nodes()
        except (KeyError, RendezvousError) as exc:
            self.fail("agreement", f"round {record.round} is complete and its roster cannot be read: {exc!r}")
            return
        if len(self.rosters[record.round]) != size:
            self.fail("agreement", f"the roster of round {record.round} does not have {size} nodes")

    def _check_exclusivity(self, record: RoundRecord) -> None:
        for node_id in self.rosters.get(record.round - 1, []):
            kv = self.etcd.current.get(self.keys.node(node_id))
            if kv is not None and NodeRecord.decode(kv.key, kv.value).last_round < record.round - 1:
                self.fail("exclusivity", f"round {record.round} completed while node {node_id:x} is in the last")

    def check_liveness(self) -> None:
        live = [node for node in self.nodes if node.alive and not node.ended]
        if self.closed_at is not None:
            hanging = [node.name for node in live if node.place is None]
            if hanging:
                self.fail("liveness", f"{hanging} still wait though the rendezvous is closed")
            return
        record = self.record
        if record is None or not record.complete:
            self.fail("liveness", f"no round is complete: {record}")
            return
        inside = [node for node in live if node.place is not None and node.place.round == record.round]
        if not self.plan.limits.reform_on_loss and any(node.member.node_id is None for node in inside):
            return  # by the user's wish nobody leaves for a member that lost its lease and may well go on
        size = rules.usable(len(live), self.plan.limits)
        if len(inside) != record.world_size and self.plan.limits.reform_on_loss:
            self.fail("liveness", f"{len(inside)} of the {record.world_size} members of round {record.round} are left")
        if len(inside) < min(size, record.world_size) or (self.plan.limits.upscale and len(inside) != size):
            self.fail("liveness", f"{len(inside)} of {len(live)} nodes are in round {record.round}, not {size}")
        if record.waiting:
            self.fail("liveness", f"{record.waiting} nodes are said to wait")
        if any(node.member.num_nodes_waiting() for node in inside):
            self.fail("liveness", "nodes see others waiting")


def simulate(seed: int, transcript: list[str] | None = None) -> World:
    """Run one seed. Raises Violation."""
    plan = Plan.of(seed)
    loop = VirtualLoop()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        node = _current.get()
        if node is not None:
            node.tasks.append(task)
        return task

    loop.set_task_factory(make_task)
    world = World(plan, transcript)
    loop.set_exception_handler(lambda loop, context: world.fail("no error goes unnoticed", str(context)))
    quiet = logging.getLogger("rendezvous")
    level, quiet.level = quiet.level, logging.CRITICAL
    try:
        loop.run_until_complete(world.run())
        if world.violation is not None:
            raise world.violation
        return world
    except (Deadlock, Livelock) as exc:
        raise Violation(f"seed {seed}: liveness: {exc}") from exc
    finally:
        quiet.level = level
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


__all__ = ["Plan", "Violation", "World", "simulate"]

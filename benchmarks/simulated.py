"""Worlds of nodes on the modelled etcd: the cost to form a world, to run it, and to form the next one after a loss.

The nodes run the unmodified protocol. The simulated etcd and the virtual clock are those of the tests.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.model import KEEP_ALIVE, ModelClient, ModelEtcd, Prices
from benchmarks.nodes import POLL_INTERVAL
from benchmarks.processes import PROCESSES
from benchmarks.queueing import Cores, Station
from rendezvous.bench.checks import Failed
from rendezvous.bench.contenders import PORT
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.records import Keys, NodeRecord
from rendezvous.coordinated.rules import Assignment, Limits, publish_interval
from rendezvous.coordinated.settings import Settings
from tests.simulation.etcd import Etcd
from tests.simulation.virtual import LargeLoop

__all__ = ["Machine", "predict", "run"]

_TIMEOUT = 600.0
_INTERVAL, _TTL = 5.0, 15


@dataclass(frozen=True)
class Machine:
    """Where the nodes and etcd run.

    Attributes:
        prices: the cost of all work.
        shared: whether the nodes, in few processes, and etcd share the cores of one machine. If not, each node has a
            process and a core of its own, and so has etcd.
    """

    prices: Prices
    shared: bool = False


@dataclass
class _Node:
    client: ModelClient
    member: Member
    dies: bool = False


@dataclass
class _World:
    machine: Machine
    nodes: int
    seed: int
    stations: list[Station] = field(default_factory=list)
    members: list[_Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        cores = Cores(PROCESSES) if self.machine.shared else Cores(1)
        self.random = random.Random(self.seed)
        self.keys = Keys("/rendezvous", "benchmark")
        station = Station(cores, cores.number)
        self.etcd = ModelEtcd(Etcd, station, self.machine.prices, self.keys)
        self.settings = Settings("benchmark", Limits(self.nodes, self.nodes), _INTERVAL, _TTL)
        if self.machine.shared:
            self.stations = [Station(cores) for _ in range(PROCESSES)]
            self.clients = [self._client(station, number) for number, station in enumerate(self.stations)]
        for index in range(self.nodes):
            self.add(index)

    def _client(self, station: Station, number: int) -> ModelClient:
        return ModelClient(self.etcd, station, random.Random(f"{self.seed}/client/{number}"))

    def add(self, index: int) -> _Node:
        if self.machine.shared:
            client = self.clients[index % PROCESSES]
        else:
            self.stations.append(Station(Cores(1)))
            client = self._client(self.stations[-1], index)
        record = NodeRecord(f"node-{index:05d}", 12345, index)
        member = Member(client, self.keys, record, self.settings, random.Random(f"{self.seed}/{index}"))
        self.members.append(_Node(client, member))
        return self.members[-1]

    # Phases of the job.

    async def form(self) -> dict[str, Any]:
        """Let all nodes join at the same time."""
        clock = asyncio.get_running_loop().time
        start = clock()
        places = await asyncio.gather(*(self._join(node) for node in self.members))
        took = clock() - start
        self._check(places)
        return {"seconds": took, **self._load(took)}

    async def _join(self, node: _Node) -> Assignment:
        place, _ = await node.member.join(_TIMEOUT, lambda: PORT)
        return place

    def _check(self, places: list[Assignment]) -> None:
        if sorted((place.rank, place.world_size) for place in places) != [(k, self.nodes) for k in range(self.nodes)]:
            raise Failed("the nodes of the model did not form one world")

    def _load(self, seconds: float) -> dict[str, Any]:
        """Return the traffic, and how busy etcd and the busiest process were, in the last ``seconds``."""
        traffic, busy, width = self.etcd.traffic, self.etcd.station.busy, self.etcd.station.width
        most = max(self.stations, key=lambda station: sum(station.busy.values()))
        return {
            "per_node": {kind: count / self.nodes for kind, count in traffic.items()},
            "etcd_busy": {kind: spent / seconds / width for kind, spent in busy.items()},
            "client_busy": {kind: spent / seconds for kind, spent in most.busy.items()},
        }

    def _reset(self) -> None:
        """Start to count again, from zero."""
        self.etcd.traffic.clear()
        for station in (self.etcd.station, *self.stations):
            station.busy.clear()

    async def rest(self) -> dict[str, Any]:
        """Let the job run for some keep-alives, and until the coordinator may publish a loss without waiting."""
        self._reset()
        seconds = max(10 * _INTERVAL, publish_interval(self.nodes, urgent=True))
        await asyncio.sleep(seconds)
        load = self._load(seconds)
        return {"seconds": seconds, "keep_alives_per_second": self.etcd.traffic[KEEP_ALIVE] / seconds, **load}

    async def lose_one(self) -> dict[str, Any]:
        """Let one node wait as a spare and another one die; return the cost of the next world, from the lease's end."""
        loop = asyncio.get_running_loop()
        spare = loop.create_task(self._join(self.add(self.nodes)))
        await asyncio.sleep(2 * _INTERVAL)
        lost = self.members[self.nodes // 2]
        lost.dies = lost.client.dead = True
        key = self.keys.node(lost.member.node_id or 0)
        self._reset()
        agents = [loop.create_task(self._agent(node)) for node in self.members[: self.nodes] if not node.dies]
        places = await asyncio.gather(spare, *agents)
        took = loop.time() - self.etcd.gone[key]
        self._check(places)
        return {"seconds": took, **self._load(took + _TTL)}

    async def _agent(self, node: _Node) -> Assignment:
        """Wait until there is a reason to join again; join after a delay, as an agent that polls."""
        while not node.member.num_nodes_waiting():
            await node.member.view.change(_TIMEOUT)
        await asyncio.sleep(self.random.uniform(0, POLL_INTERVAL))
        return await self._join(node)


def run(machine: Machine, nodes: int, seed: int = 0, formation_only: bool = False) -> dict[str, Any]:
    """Return the cost of a world: to form it, to run it, and to form the next one after a loss."""
    loop = LargeLoop()
    loop.thread_time = 0.0  # a node needs no time to choose a port: no worker is started

    async def scenario() -> dict[str, Any]:
        world = _World(machine, nodes, seed)
        result = {"formation": await world.form()}
        if not formation_only:
            result |= {"steady": await world.rest(), "loss": await world.lose_one()}
        return result

    try:
        return dict(loop.run_until_complete(scenario()))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def predict(machine: Machine, nodes: int, formation_only: bool, number: int, pipe: Connection) -> None:
    """Send the result of :func:`run`, and the time and memory that it took; to be run in a process of its own."""
    gc.disable()
    start = time.monotonic()
    result = run(machine, nodes, formation_only=formation_only)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send({**result, "model": {"seconds": time.monotonic() - start, "bytes": memory}})

"""The prices of the model, measured: the CPU time that an etcd on this machine and its clients need.

Two processes send requests of one kind, as many at a time as the protocol's client allows, while the CPU time of etcd
and of the processes is measured. One client alone gives the latency: its time without the CPU time.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.model import (
    DELIVERY,
    GRANT,
    KEEP_ALIVE,
    KINDS,
    READ,
    SERIALIZABLE,
    WATCH,
    WRITE,
    Cost,
    Prices,
)
from benchmarks.nodes import receive
from benchmarks.processes import PROCESSES, Processes
from rendezvous._core import Roster
from rendezvous.bench import metrics
from rendezvous.coordinated import rules
from rendezvous.coordinated.agreement import Agreement, published
from rendezvous.coordinated.candidates import Candidate, choose
from rendezvous.coordinated.coordinator import Coordinator
from rendezvous.coordinated.member import Member
from rendezvous.coordinated.options import Options
from rendezvous.coordinated.records import Bootstrap, CoordinatorRecord, Keys, NodeRecord, Phase, RoundRecord
from rendezvous.coordinated.rules import Limits
from rendezvous.coordinated.settings import Settings
from rendezvous.coordinated.view import CurrentCoordinator, View
from rendezvous.etcd.server import EtcdServer
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import EtcdClient, Watch, WatchSpec
from rendezvous.etcd.v3.connection import GrpcEtcdClient
from rendezvous.etcd.v3.errors import EtcdError
from rendezvous.etcd.v3.messages import rpc_pb2
from rendezvous.etcd.v3.operations import Event, Message, absent, get_op, prefix_end, put_op, txn_op
from rendezvous.utils import parse_rendezvous_endpoint

__all__ = ["STAGES", "measure", "prices", "share"]

FULL, SHORT = 10_000, 2_000
"""The number of requests of each kind."""

_TTL = 600
_ALONE = 200
_PAGES = 20
_PAGE = 1000
_CHANGES = 3
_KEYS = Keys("/capacities", "run")
_OPTIONS = Options()
_ATTEMPT = "0" * 16
_FIRST = f"{1:016x}"
_FENCE = CurrentCoordinator(1, 1, b"")
_SETTINGS = published(Limits(10_000, 10_000))
_AGREEMENT = Agreement("run", "node-00000_12345_0", _SETTINGS)
_SMALL = RoundRecord(0, Phase.COMPLETE, attempt=_ATTEMPT, first=_FIRST, world_size=10_000, shards=79)
_LARGE = RoundRecord(
    0,
    Phase.COMPLETE,
    attempt=_ATTEMPT,
    first=_FIRST,
    world_size=_OPTIONS.inline_nodes,
    shards=1,
    roster=Roster(list(range(1, _OPTIONS.inline_nodes + 1))).encode(1)[0],
)
_SMALL_CHANGE, _LARGE_CHANGE = "delivery, small", "delivery, large"
_PAGE_READ = "page"
STAGES = (GRANT, WRITE, READ, SERIALIZABLE, WATCH, _SMALL_CHANGE, _LARGE_CHANGE, KEEP_ALIVE, _PAGE_READ)
"""What the processes do, in this order: the writes need the leases, and the deliveries need the watches."""


class _Load:
    """The work of one process: one stage after another, each when its name is received."""

    def __init__(self, endpoint: str, number: int, count: int) -> None:
        self._client = GrpcEtcdClient([parse_rendezvous_endpoint(endpoint, 2379)])
        self._number = number
        self._count = count
        self._leases: list[int] = []
        self._received = 0
        self._all_received = asyncio.Event()
        self._stages: dict[str, Callable[[], Awaitable[int]]] = {
            GRANT: lambda: self._many(self._grant),
            WRITE: lambda: self._many(self._write),
            READ: lambda: self._many(self._read),
            SERIALIZABLE: lambda: self._many(self._read_anywhere),
            WATCH: lambda: self._many(self._watch),
            _SMALL_CHANGE: lambda: self._change(_SMALL),
            _LARGE_CHANGE: lambda: self._change(_LARGE),
            KEEP_ALIVE: self._renew_all,
            _PAGE_READ: self._pages,
        }

    async def run(self, pipe: Connection) -> None:
        pipe.send("ready")
        while (stage := await receive(pipe)) is not None:
            start = time.process_time()
            if stage == "alone":
                pipe.send(await self._latencies() if self._number == 0 else {})
            else:
                count = await self._stages[stage]()
                pipe.send((count, time.process_time() - start, time.monotonic()))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + 120

    async def _many(self, one: Callable[[int], Awaitable[object]]) -> int:
        await asyncio.gather(*(one(index) for index in range(self._count)))
        return self._count

    async def _latencies(self) -> dict[str, float]:
        """Return the median seconds of each kind of request of one client alone."""
        self._leases = [0]
        found = {}
        for kind, one in ((WRITE, self._write), (READ, self._read), (SERIALIZABLE, self._read_anywhere)):
            times = []
            for _ in range(_ALONE):
                start = time.perf_counter()
                await one(0)
                times.append(time.perf_counter() - start)
            found[kind] = statistics.median(times)
        self._leases = []
        return found

    async def _grant(self, index: int) -> None:
        self._leases.append(await self._client.grant(_TTL, self._deadline()))

    async def _write(self, index: int) -> None:
        """Send the transaction with which a node joins."""
        lease = self._leases[index]
        record = NodeRecord(f"node-{index:05d}", 12345, index, settings=_SETTINGS)
        node = put_op(_KEYS.node(lease), record.encode(), lease)
        elect = txn_op([absent(_KEYS.coordinator)], [put_op(_KEYS.coordinator, _coordinator(lease), lease)])
        read = get_op(_KEYS.ctl, prefix_end(_KEYS.ctl))
        await self._client.txn([], [elect, node, read], deadline=self._deadline())

    async def _read(self, index: int) -> None:
        await self._client.range(_KEYS.coordinator, b"", self._deadline())

    async def _read_anywhere(self, index: int) -> None:
        await self._client.range(_KEYS.coordinator, b"", self._deadline(), serializable=True)

    async def _watch(self, index: int) -> None:
        view = View(_KEYS, lambda: None)

        def receive(events: Sequence[Event]) -> None:
            view.receive(events)
            self._received += len(events)
            if self._received == self._count * _CHANGES:
                self._all_received.set()

        await self._client.watch(_KEYS.ctl, prefix_end(_KEYS.ctl), receive, lambda: None, self._deadline())

    async def _change(self, record: RoundRecord) -> int:
        """Change the round record several times, and wait until all watches have received that."""
        if self._number == 0:
            for _ in range(_CHANGES):
                await self._client.txn([], [put_op(_KEYS.round, record.encode())], deadline=self._deadline())
        await asyncio.wait_for(self._all_received.wait(), 120)
        self._received = 0
        self._all_received.clear()
        return self._count * _CHANGES

    async def _renew_all(self) -> int:
        """Renew all leases, with the calls that sessions use."""
        done = asyncio.get_running_loop().create_future()
        left = set(self._leases)

        def answered(lease: int, there: bool) -> None:
            left.discard(lease)
            if not (left or done.done()):
                done.set_result(None)

        def failed(error: EtcdError) -> None:
            if not done.done():
                done.set_exception(error)

        for lease in self._leases:
            self._client.renew(lease, partial(answered, lease), failed)
        await done
        return len(self._leases)

    async def _pages(self) -> int:
        for _ in range(_PAGES):
            request = rpc_pb2.RangeRequest(key=_KEYS.nodes, range_end=prefix_end(_KEYS.nodes), limit=_PAGE)
            await self._client.request(Call.RANGE, request, self._deadline())
        return _PAGES


def _work(endpoint: str, count: int, number: int, pipe: Connection) -> None:
    gc.disable()  # as in benchmarks/nodes.py

    async def run() -> None:
        await _Load(endpoint, number, count).run(pipe)

    asyncio.run(run())


def measure(full: bool = False) -> dict[str, Any]:
    """Return the CPU time of etcd and of its clients for each kind of work, and how much was done per second."""
    count = FULL if full else SHORT
    with EtcdServer(enable_v2=False) as server, Processes(_work, server.get_endpoint(), count) as processes:
        etcd = server.get_endpoint()
        processes.gather(time.monotonic() + 60)
        processes.send("alone")
        latency = processes.gather(time.monotonic() + 120)[0]
        stages = {stage: _stage(processes, etcd, stage) for stage in STAGES}
    return {"latency": latency, "stages": stages, "share": share(stages, PROCESSES), "own": _own(count)}


def share(stages: dict[str, dict[str, float]], cores: int) -> float:
    """Return the share of the cores that the load kept busy; in the rest of the time other processes ran, or none."""
    kinds = [stage for name, stage in stages.items() if name != _PAGE_READ]  # its requests are sent one after another
    work = sum((stage["etcd"] + stage["client"]) * stage["count"] for stage in kinds)
    return min(1.0, work / sum(stage["count"] / stage["per_second"] for stage in kinds) / cores)


def _stage(processes: Processes, etcd: str, stage: str) -> dict[str, float]:
    """Let all processes do one kind of work; return the CPU seconds of each request, and the requests per second."""
    reading = metrics.load(etcd)["cpu"]
    before, start = metrics.load(etcd)["cpu"], time.monotonic()
    reading = before - reading  # the cost of reading the counters
    processes.send(stage)
    results = processes.gather(time.monotonic() + 300)
    etcd_cpu = metrics.load(etcd)["cpu"] - before - reading
    count = sum(each for each, _, _ in results)
    return {
        "count": count,
        "etcd": max(0.0, etcd_cpu) / count,
        "client": sum(cpu for _, cpu, _ in results) / count,
        "per_second": count / (max(end for _, _, end in results) - start),
    }


# The CPU time of the protocol's own code.


def _own(count: int) -> dict[str, float]:
    """Return the CPU seconds of a join, of one change for the coordinator, and of completing a round, per node."""
    return {"join": _join(count), "node": _node(count), "completion": _completion(count)}


def _timed(work: Callable[[], object], count: int) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) / count


def _records(count: int) -> list[NodeRecord]:
    return [NodeRecord(f"node-{index:05d}", 12345, index, settings=_SETTINGS) for index in range(count)]


def _node(count: int) -> float:
    """Let a coordinator receive the keys of nodes one by one, and decide after each."""
    events = [
        rpc_pb2.Event(kv=rpc_pb2.KeyValue(key=_KEYS.node(i), value=record.encode(), mod_revision=i, lease=i))
        for i, record in enumerate(_records(count), 1)
    ]

    async def take_in() -> None:
        limits = Limits(count + 1, count + 1)
        await _Idle(_Silent(), _KEYS, limits, _FENCE, random.Random(0), _AGREEMENT).take_in(events)

    return _timed(lambda: asyncio.run(take_in()), count)


def _completion(count: int) -> float:
    candidates = [Candidate(index, index, record) for index, record in enumerate(_records(count), 1)]

    def complete() -> None:
        members = choose(candidates, 0, Limits(count, count))
        Roster([member.node_id for member in members]).encode(-(-count // _OPTIONS.shard_nodes))

    return _timed(complete, count)


def _join(count: int) -> float:
    """Let nodes join on an etcd that answers at once; subtract the time of the bare requests."""

    async def join() -> None:
        client, limits = _Silent(), Limits(2, 2)
        settings = Settings("run", limits, 3600.0, 7200)
        for record in _records(count):
            await Member(client, _KEYS, record, settings, client.random).join(60.0, lambda: 0)

    async def ask() -> None:
        client = _Silent()
        for _ in range(count):
            deadline = asyncio.get_running_loop().time() + 60
            lease = await client.grant(15, deadline)
            await client.txn([], [get_op(_KEYS.node(lease))], deadline=deadline)

    return max(0.0, _timed(lambda: asyncio.run(join()), count) - _timed(lambda: asyncio.run(ask()), count))


def _coordinator(lease: int) -> bytes:
    return CoordinatorRecord(f"{lease:016x}", "0" * 16).encode()


class _Idle(Coordinator):
    async def take_in(self, events: Sequence[Event]) -> None:
        """Process changes one by one, and decide after each."""
        self._published_at = asyncio.get_running_loop().time() + 3600  # there is nothing to publish
        self._closed = False
        for event in events:
            self._nodes._receive([event])
            counts = self._table.counts(self._closed)
            rules.coordinate(counts, self._limits, None)
            await self._publish(counts)


class _Silent(EtcdClient):
    """An etcd that answers each node at once with a complete round."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        super().__init__(self.random)
        self._leases = 1

    @property
    def target(self) -> str:
        return "nothing"

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        if call is Call.GRANT:
            self._leases += 1
            return rpc_pb2.LeaseGrantResponse(ID=self._leases)
        answer = rpc_pb2.TxnResponse(succeeded=True)
        roster = Roster([1, self._leases]).encode(1)[0]
        record = RoundRecord(0, Phase.COMPLETE, attempt=_ATTEMPT, first=_FIRST, world_size=2, shards=1, roster=roster)
        ctl = {_KEYS.coordinator: _coordinator(1), _KEYS.round: record.encode()}
        ctl[_KEYS.bootstrap] = Bootstrap(0, _ATTEMPT, _FIRST, "node-00000", 29500).encode()
        kvs = [rpc_pb2.KeyValue(key=key, value=value, lease=1, mod_revision=1) for key, value in ctl.items()]
        answer.responses.add().response_range.kvs.extend(kvs)
        return answer

    def renew(self, lease: int, answered: Any, failed: Any) -> None:
        pass

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        return _NoWatch()

    async def close(self) -> None:
        pass


class _NoWatch(Watch):
    def cancel(self) -> None:
        pass


# The prices.


class _Line(NamedTuple):
    """A time in seconds that is a linear function of a size."""

    base: float
    per_unit: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> _Line:
        """Return the line through two points, each a size and seconds."""
        per_unit = max(0.0, (large[1] - small[1]) / (large[0] - small[0]))
        return cls(max(0.0, small[1] - small[0] * per_unit), per_unit)


def prices(measured: dict[str, Any]) -> Prices:
    """Return the model's prices for this machine."""
    stages, own, alone = measured["stages"], measured["own"], measured["latency"]
    sizes = [len(record.encode()) + len(_KEYS.round) for record in (_SMALL, _LARGE)]

    def line(where: str) -> _Line:
        seconds = [stages[stage][where] for stage in (_SMALL_CHANGE, _LARGE_CHANGE)]
        return _Line.through((sizes[0], seconds[0]), (sizes[1], seconds[1]))

    def key(where: str) -> float:
        more: float = stages[_PAGE_READ][where] - stages[READ][where]
        return max(0.0, more) / (_PAGE - 1)

    def wait(kind: str) -> float:
        """Return the part of the time of one client alone in which neither etcd nor the client works."""
        like = {GRANT: WRITE, WATCH: SERIALIZABLE, DELIVERY: SERIALIZABLE, KEEP_ALIVE: SERIALIZABLE}.get(kind, kind)
        waiting: float = alone[like] - stages[like]["etcd"] - stages[like]["client"]
        return max(0.0, waiting)

    costs = {kind: Cost(stages[kind]["etcd"], stages[kind]["client"], wait(kind)) for kind in KINDS if kind != DELIVERY}
    costs[DELIVERY] = Cost(line("etcd").base, line("client").base, wait(DELIVERY))
    return Prices(
        costs,
        etcd_byte=line("etcd").per_unit,
        client_byte=line("client").per_unit,
        etcd_key=key("etcd"),
        client_key=key("client"),
        **own,
    )

"""A modelled etcd: the simulation decides what happens, and queues decide how long it takes.

Every request, keep-alive and delivery of a watch takes time on two stations: the station of the process that sends or
receives it, half before etcd and half after, and etcd's station. A latency is added in which no station is busy: the
network, the disk, and waiting for them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

from benchmarks.queueing import Station
from rendezvous.coordinated.records import Keys
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import EtcdClient, Watch, WatchSpec
from rendezvous.etcd.v3.errors import EtcdError, UnavailableError
from rendezvous.etcd.v3.limiter import Limiter
from rendezvous.etcd.v3.operations import DELETE, Event, KeyValue, Message

__all__ = [
    "DELIVERY",
    "GRANT",
    "KEEP_ALIVE",
    "KINDS",
    "READ",
    "SERIALIZABLE",
    "WATCH",
    "WRITE",
    "Cost",
    "ModelClient",
    "ModelEtcd",
    "Prices",
]

WRITE, GRANT, READ, SERIALIZABLE = "write", "grant", "read", "serializable read"
WATCH, DELIVERY, KEEP_ALIVE = "watch", "delivery", "keep-alive"
KINDS = (WRITE, GRANT, READ, SERIALIZABLE, WATCH, DELIVERY, KEEP_ALIVE)

_OF_CALL = {Call.TXN: WRITE, Call.PUT: WRITE, Call.DELETE: WRITE, Call.REVOKE: WRITE, Call.GRANT: GRANT}


@dataclass(frozen=True)
class Cost:
    """The cost of one request, keep-alive or delivery.

    Attributes:
        etcd: seconds on etcd's station.
        client: seconds in the client's process.
        latency: seconds of waiting, there and back.
    """

    etcd: float
    client: float
    latency: float


@dataclass(frozen=True)
class Prices:
    """The costs of all work, in seconds.

    Attributes:
        kinds: a :class:`Cost` for each of ``KINDS``.
        etcd_byte: etcd, for each byte of a delivery.
        client_byte: the client, for each byte of a delivery.
        etcd_key: etcd, for each key of a range after the first.
        client_key: the client, for each key of a range after the first.
        node: the coordinator, to process one change of a node's key.
        completion: the coordinator, to choose and order the members and to encode the roster, for each node.
        join: a node, for the work of joining apart from the requests.
    """

    kinds: dict[str, Cost]
    etcd_byte: float
    client_byte: float
    etcd_key: float
    client_key: float
    node: float
    completion: float
    join: float

    def slowed(self, share: float) -> Prices:
        """Return the prices if the work gets only a ``share`` of the cores: all but the latencies grow."""
        work = {f.name: getattr(self, f.name) / share for f in fields(self) if f.name != "kinds"}
        kinds = {kind: Cost(cost.etcd / share, cost.client / share, cost.latency) for kind, cost in self.kinds.items()}
        return Prices(kinds, **work)


class _Answer(NamedTuple):
    """An answer of etcd: what the client does with it, and additional seconds of etcd and of the client."""

    then: Callable[[], None]
    etcd: float = 0.0
    client: float = 0.0


class ModelEtcd:
    """An etcd whose requests take time.

    Args:
        make: makes the simulated etcd, from a callback for its changes.
        station: the station on which it works.
        prices: the costs of its work.
        keys: the keys of the run.
    """

    def __init__(self, make: Callable[[Any], Any], station: Station, prices: Prices, keys: Keys) -> None:
        self.state = make(self._changed)
        self.station = station
        self.prices = prices
        self.keys = keys
        self.traffic: Counter[str] = Counter()
        """The number of requests and deliveries by kind, and of bytes received and sent."""
        self.gone: dict[bytes, float] = {}
        """When each deleted key was deleted."""
        self._watchers: dict[tuple[bytes, bytes], dict[_ModelWatch, None]] = {}

    def watch(self, watch: _ModelWatch) -> None:
        """Start to deliver to a watch."""
        self._watchers.setdefault(watch.range, {})[watch] = None

    def unwatch(self, watch: _ModelWatch) -> None:
        """Stop to deliver to a watch."""
        self._watchers.get(watch.range, {}).pop(watch, None)

    def _changed(self, writer: object, keys: list[bytes]) -> None:
        events = [event for _, event in self.state.events_since(self.state.revision)]
        now = asyncio.get_running_loop().time()
        self.gone.update((event.kv.key, now) for event in events if event.type == DELETE)
        for (start, end), watchers in self._watchers.items():
            delivered = [event for event in events if start <= event.kv.key < end]
            if not delivered or not watchers:
                continue
            size = sum(event.ByteSize() for event in delivered)
            work = self.prices.kinds[DELIVERY].etcd + size * self.prices.etcd_byte
            for watch in watchers:
                watch.pending.append(delivered)
                self.traffic["sent"] += size
                self.traffic[DELIVERY] += 1
                self.station.submit(DELIVERY, work, partial(watch.deliver, delivered, size))


class ModelClient(EtcdClient):
    """A client of a modelled etcd, for one node or for several in one process.

    Args:
        etcd: the etcd.
        station: the process.
        random: the source of the backoff's jitter.
    """

    def __init__(self, etcd: ModelEtcd, station: Station, random: random.Random) -> None:
        super().__init__(random)
        self.etcd = etcd
        self.station = station
        self.dead = False
        self._loop = asyncio.get_running_loop()
        self.later: Callable[..., object] = getattr(self._loop, "later", self._loop.call_later)
        self._limiter = Limiter(self.options.max_in_flight)

    @property
    def target(self) -> str:
        """See :attr:`EtcdClient.target`."""
        return "the modelled etcd"

    async def close(self) -> None:
        """See :meth:`EtcdClient.close`."""
        self.dead = True

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        await self._limiter.acquire(deadline)
        try:
            answer: asyncio.Future[Message] = self._loop.create_future()
            timer = self._loop.call_later(timeout, _fail, answer, UnavailableError("deadline exceeded"))
            self._send(call, request, answer)
            try:
                return await answer
            finally:
                timer.cancel()
        finally:
            self._limiter.release()

    def _send(self, call: Call, request: Message, answer: asyncio.Future[Message]) -> None:
        kind = _OF_CALL.get(call) or (SERIALIZABLE if request.serializable else READ)
        self.etcd.traffic["received"] += request.ByteSize()

        def apply() -> _Answer:
            try:
                message = self.etcd.state.handle(call, request, self)
            except EtcdError as exc:
                return _Answer(partial(_fail, answer, exc))
            self.etcd.traffic["sent"] += message.ByteSize()
            then = partial(_succeed, answer, message)
            return _Answer(then, *self._further_keys(message.kvs)) if call is Call.RANGE else _Answer(then)

        self._exchange(kind, apply, self._own_part(call, request))

    def _own_part(self, call: Call, request: Message) -> float:
        """Return the seconds that the node works before it sends ``request``."""
        prices, keys = self.etcd.prices, self.etcd.keys
        if call is Call.GRANT:
            return prices.join
        first = request.success[0].request_put.key if call is Call.TXN else b""
        if first.startswith(keys.root + b"roster/") and first.endswith(b"/0000"):
            # A roster is written in several requests, and computed before the first one, which has shard 0.
            nodes = sum(1 for key in self.etcd.state.current if key.startswith(keys.nodes))
            return prices.completion * nodes
        return 0.0

    def _further_keys(self, found: Sequence[KeyValue]) -> tuple[float, float]:
        """Return the seconds of etcd and of the client for the keys of a range after the first."""
        prices, keys = self.etcd.prices, max(0, len(found) - 1)
        nodes = sum(kv.key.startswith(self.etcd.keys.nodes) for kv in found)
        return keys * prices.etcd_key, keys * prices.client_key + nodes * prices.node

    def _exchange(self, kind: str, apply: Callable[[], _Answer], before: float = 0.0) -> None:
        """Send a request to etcd and deliver the answer.

        Args:
            kind: the kind of the request.
            apply: called when etcd has done the work; returns the answer.
            before: additional seconds that the client works before it sends.
        """
        station, cost = self.etcd.station, self.etcd.prices.kinds[kind]
        client, half = cost.client / 2, cost.latency / 2
        self.etcd.traffic[kind] += 1

        def answer() -> None:
            then, etcd, more = apply()
            back: Callable[[], object] = partial(self.later, half, self._receive, kind, client + more, then)
            if etcd:
                station.submit(kind, etcd, back)
            else:
                back()

        arrive = partial(station.submit, kind, cost.etcd, answer)
        self.station.submit(kind, before + client, partial(self.later, half, arrive))

    def _receive(self, kind: str, work: float, then: Callable[[], None]) -> None:
        if not self.dead:
            self.station.submit(kind, work, then)

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        """See :meth:`EtcdClient.renew`."""
        if not self.dead:
            self._exchange(KEEP_ALIVE, lambda: _Answer(partial(answered, self.etcd.state.keep_alive(lease))))

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        assert not spec.revision, "the model's watches begin now"
        watch = _ModelWatch(self, spec)
        begun: asyncio.Future[None] = self._loop.create_future()

        def begin() -> _Answer:
            self.etcd.watch(watch)
            return _Answer(partial(_succeed, begun, None))

        self._exchange(WATCH, begin)
        await begun
        return watch


class _ModelWatch(Watch):
    __slots__ = ("_client", "_receive", "pending", "range")

    def __init__(self, client: ModelClient, spec: WatchSpec) -> None:
        self._client = client
        self._receive = spec.receive
        self.range = spec.key, spec.end
        self.pending: deque[list[Event]] = deque()
        """The events that have been sent and not yet received, in their order."""

    def deliver(self, events: list[Event], size: int) -> None:
        """Let the client receive what etcd has sent, after the latency."""
        self._client.later(self._client.etcd.prices.kinds[DELIVERY].latency / 2, self._arrive, events, size)

    def _arrive(self, events: list[Event], size: int) -> None:
        prices = self._client.etcd.prices
        nodes = sum(event.kv.key.startswith(self._client.etcd.keys.nodes) for event in events)
        work = prices.kinds[DELIVERY].client + size * prices.client_byte + nodes * prices.node
        self._client._receive(DELIVERY, work, self._next)

    def _next(self) -> None:
        self._receive(self.pending.popleft())

    def cancel(self) -> None:
        """See :meth:`Watch.cancel`."""
        self._client.etcd.unwatch(self)
        self._receive = lambda events: None


def _succeed(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: EtcdError) -> None:
    if not future.done():
        future.set_exception(error)

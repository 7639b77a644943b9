"""The connection between a node and the simulated etcd, and what can go wrong on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.client import Call, EtcdClient, Watch, WatchSpec
from rendezvous.etcd.v3.errors import BusyError, EtcdError, UnavailableError
from rendezvous.etcd.v3.operations import Message
from tests.simulation.etcd import Etcd, within

MAX_DELAY = 30.0
"""Seconds after which a late request is applied, at most."""

Hook = Callable[[str, Call, Message], None]


@dataclass
class Conditions:
    """The present state of the network and of etcd, the same for all nodes.

    Attributes:
        no_leader: etcd has no leader and refuses all requests.
        overload: the fraction of requests that etcd refuses because there are too many.
        lost_requests: the fraction of requests that do not arrive.
        lost_answers: the fraction of requests that are applied and not answered.
        late_requests: the fraction of requests that are not answered, and that etcd applies at any later time.
        repeated_events: the fraction of watch events that are delivered twice.
        latency: the maximum time in seconds of each way.
    """

    no_leader: bool = False
    overload: float = 0.0
    lost_requests: float = 0.0
    lost_answers: float = 0.0
    late_requests: float = 0.0
    repeated_events: float = 0.0
    latency: float = 0.005

    def recover(self) -> None:
        """End all faults."""
        self.no_leader = False
        self.overload = self.lost_requests = self.lost_answers = self.late_requests = self.repeated_events = 0.0
        self.latency = min(self.latency, 0.02)


class Link(EtcdClient):
    """The client of one process.

    Args:
        etcd: the cluster.
        conditions: the state of the network.
        owner: what etcd reports as the writer.
        rng: draws latencies and losses.

    Attributes:
        cut: whether nothing gets through.
        dead: whether the process has ended: it sends nothing and receives nothing.
        slowness: the factor by which its latency is greater.
        hook: called with "before" or "after", the method and the message when etcd applies a request.
    """

    def __init__(self, etcd: Etcd, conditions: Conditions, owner: Any, rng: random.Random) -> None:
        super().__init__(rng)
        self._etcd = etcd
        self._conditions = conditions
        self._owner = owner
        self._rng = rng
        self.cut = False
        self.dead = False
        self.slowness = 1.0
        self.hook: Hook = lambda stage, call, request: None
        self._watches: dict[_LinkWatch, None] = {}
        self.history.subscribe(self._restored)

    def _restored(self, reason: str) -> None:
        """End all watches."""
        for watch in list(self._watches):
            watch.lose()

    async def close(self) -> None:
        self.dead = True

    @property
    def target(self) -> str:
        return "etcd"

    async def pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0005, self._conditions.latency) * self.slowness)

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        def apply() -> Message:
            self.hook("before", call, request)
            if self.dead:
                raise asyncio.CancelledError
            answer = self._etcd.handle(call, request, self._owner)
            self.hook("after", call, request)
            return answer

        if self._conditions.late_requests and self._rng.random() < self._conditions.late_requests:
            await self.pause()
            asyncio.get_running_loop().call_later(
                self._rng.uniform(0, MAX_DELAY), self._apply_late, call, request, self._etcd.restarts
            )
            await asyncio.sleep(min(timeout, self._rng.uniform(0, 1.0)))
            raise UnavailableError("the connection broke")
        return await self._exchange(apply, timeout)

    def _apply_late(self, call: Call, request: Message, restarts: int) -> None:
        """Apply a request after its sender has given up. The sender may have sent others since, or may have ended."""
        if restarts != self._etcd.restarts:
            return  # the connection broke
        try:
            self._etcd.handle(call, request, self._owner)
        except EtcdError:
            pass  # nobody waits for the answer

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        async def renew() -> None:
            try:
                renewed, header = await self._exchange(lambda: (self._etcd.keep_alive(lease), self._etcd.header()), 5.0)
                known = self.history.known()
                self.history.observe(header, self.target)
                self.history.check(known)
                answered(renewed)
            except EtcdError as exc:
                failed(exc)

        asyncio.get_running_loop().create_task(renew())

    async def _exchange(self, apply: Callable[[], Any], timeout: float) -> Any:
        """Send a request and return its answer; either of them may be lost."""
        loop = asyncio.get_running_loop()
        ends, restarts = loop.time() + timeout, self._etcd.restarts
        await self.pause()
        if self.dead:
            raise asyncio.CancelledError
        if self.cut or self._rng.random() < self._conditions.lost_requests:
            await asyncio.sleep(self._until_noticed(ends) if self.cut else 0.1)
            raise UnavailableError("unavailable")
        if self._conditions.no_leader or restarts != self._etcd.restarts:
            raise UnavailableError("etcdserver: no leader")
        if self._rng.random() < self._conditions.overload:
            raise BusyError("etcdserver: too many requests")
        answer = apply()
        if self._rng.random() < self._conditions.lost_answers:
            raise UnavailableError("the connection broke")
        await self.pause()
        if self.cut:
            await asyncio.sleep(self._until_noticed(ends))
            raise UnavailableError("deadline exceeded")
        if restarts != self._etcd.restarts:
            raise UnavailableError("the connection broke")
        return answer

    def _until_noticed(self, ends: float) -> float:
        """Return the seconds until the client notices a cut: its request times out, or a ping is not answered."""
        left = ends - asyncio.get_running_loop().time()
        return max(0.0, min(left, self.options.ping_interval + self.options.ping_timeout))

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        loop = asyncio.get_running_loop()
        while self.cut or self._conditions.no_leader:
            if loop.time() > deadline:
                raise RendezvousConnectionError(f"etcd did not start to watch '{spec.name}' in time")
            await asyncio.sleep(0.2)
        await self.pause()
        watch = _LinkWatch(self, spec, spec.revision or self._etcd.revision + 1)
        watch.task = loop.create_task(watch.run())
        self._watches[watch] = None
        await self.pause()
        return watch


class _LinkWatch(Watch):
    _numbers = 0

    def __init__(self, link: Link, spec: WatchSpec, revision: int) -> None:
        self._link = link
        self._spec = spec
        self._next = revision
        self.task: asyncio.Task[None] | None = None
        type(self)._numbers += 1
        self._number = type(self)._numbers

    def cancel(self) -> None:
        self._link._watches.pop(self, None)
        if self.task is not None:
            self.task.cancel()

    def lose(self) -> None:
        """End, and say that changes may be missing."""
        self.cancel()
        self._spec.lost()

    async def run(self) -> None:
        link, etcd, last = self._link, self._link._etcd, []
        restarts = etcd.restarts
        while True:
            interrupted = restarts != etcd.restarts
            while link.cut or link._conditions.no_leader:
                await asyncio.sleep(0.1)
                interrupted = True
            restarts = etcd.restarts
            if interrupted:
                self._spec.resumed()
            if self._next < etcd.compacted:
                self.lose()
                return
            batch = [event for _, event in etcd.events_since(self._next)]
            if not batch:
                await etcd.change(self._number)
                await link.pause()
                continue
            before, self._next = self._next, etcd.revision + 1
            batch = [event for event in batch if within(event.kv.key, self._spec.key, self._spec.end)]
            if batch:
                await link.pause()
                while link.cut:
                    await asyncio.sleep(0.1)
                if restarts != etcd.restarts:
                    self._next = before  # the connection broke
                    continue
                if last and link._rng.random() < link._conditions.repeated_events:
                    self._spec.receive(last)
                self._spec.receive(batch)
                last = batch

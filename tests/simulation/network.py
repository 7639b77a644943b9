"""The way between a node and the simulated etcd, with all that can happen on it."""

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
from tests.simulation.etcd import Etcd, _within

LATEST = 30.0
"""Seconds after which a late request is applied, at most."""


@dataclass
class Weather:
    """What the network and etcd do to all nodes at the moment.

    Attributes:
        outage: etcd has no leader.
        storm: the part of requests that etcd refuses as too many.
        loss: the part of requests that do not arrive.
        amnesia: the part of requests that are applied and not answered.
        late: the part of requests that are not answered and that etcd applies at any later time.
        repeats: the part of watch deliveries that come twice.
        latency: seconds, at most, of each way.
    """

    outage: bool = False
    storm: float = 0.0
    loss: float = 0.0
    amnesia: float = 0.0
    late: float = 0.0
    repeats: float = 0.0
    latency: float = 0.005


class Link(EtcdClient):
    """One process's client.

    Attributes:
        cut: nothing gets through.
        slowness: how many times slower than others'.
        hook: called before and after each request is applied; it may cut or kill.
    """

    def __init__(self, etcd: Etcd, weather: Weather, owner: Any, rng: random.Random) -> None:
        super().__init__(rng)
        self._etcd = etcd
        self._weather = weather
        self._owner = owner
        self._rng = rng
        self.cut = False
        self.dead = False
        self.slowness = 1.0
        self.hook: Callable[[str, Call, Message], None] = lambda stage, call, request: None

    async def close(self) -> None:
        self.dead = True

    @property
    def target(self) -> str:
        return "etcd"

    async def pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0005, self._weather.latency) * self.slowness)

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        def apply() -> Message:
            self.hook("before", call, request)
            if self.dead:
                raise asyncio.CancelledError
            answer = self._etcd.handle(call, request, self._owner)
            self.hook("after", call, request)
            return answer

        if self._weather.late and self._rng.random() < self._weather.late:
            await self.pause()
            asyncio.get_running_loop().call_later(self._rng.uniform(0, LATEST), self._apply_late, call, request)
            await asyncio.sleep(min(timeout, self._rng.uniform(0, 1.0)))
            raise UnavailableError("the connection broke")
        return await self._exchange(apply, timeout)

    def _apply_late(self, call: Call, request: Message) -> None:
        """Apply a request that its sender has given up, although it may have sent others since, or have died."""
        try:
            self._etcd.handle(call, request, self._owner)
        except EtcdError:
            pass  # nobody waits for the answer

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        async def renew() -> None:
            try:
                answered(await self._exchange(lambda: self._etcd.keep_alive(lease), 5.0))
            except EtcdError as exc:
                failed(exc)

        asyncio.get_running_loop().create_task(renew())

    async def _exchange(self, apply: Callable[[], Message], timeout: float) -> Message:
        """Send a request and bring back its answer, or what becomes of them on the way."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        await self.pause()
        if self.dead:
            raise asyncio.CancelledError
        if self.cut or self._rng.random() < self._weather.loss:
            await asyncio.sleep(max(0.0, ends - loop.time()) if self.cut else 0.1)
            raise UnavailableError("unavailable")
        if self._weather.outage:
            raise UnavailableError("etcdserver: no leader")
        if self._rng.random() < self._weather.storm:
            raise BusyError("etcdserver: too many requests")
        answer = apply()
        if self._rng.random() < self._weather.amnesia:
            raise UnavailableError("the connection broke")
        await self.pause()
        if self.cut:
            await asyncio.sleep(max(0.0, ends - loop.time()))
            raise UnavailableError("deadline exceeded")
        return answer

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        loop = asyncio.get_running_loop()
        while self.cut or self._weather.outage:
            if loop.time() > deadline:
                raise RendezvousConnectionError(f"etcd did not start to watch '{spec.name}' in time")
            await asyncio.sleep(0.2)
        await self.pause()
        watch = _LinkWatch(self, spec, spec.revision or self._etcd.revision + 1)
        watch.task = loop.create_task(watch.run())
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
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        link, etcd, last = self._link, self._link._etcd, []
        while True:
            while link.cut or link._weather.outage:
                await asyncio.sleep(0.1)
            if self._next < etcd.compacted:
                self._spec.lost()
                return
            batch = [event for _, event in etcd.events_since(self._next)]
            if not batch:
                await etcd.change(self._number)
                await link.pause()
                continue
            self._next = etcd.revision + 1
            batch = [event for event in batch if _within(event.kv.key, self._spec.key, self._spec.end)]
            if batch:
                await link.pause()
                while link.cut:
                    await asyncio.sleep(0.1)
                if last and link._rng.random() < link._weather.repeats:
                    self._spec.receive(last)
                self._spec.receive(batch)
                last = batch

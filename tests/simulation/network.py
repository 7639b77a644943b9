"""The connection between a node and the simulated etcd, and what can go wrong on it.

What happens on the way and in etcd runs outside the process: it goes on while the process is frozen. Answers and events
are then delivered in the process's context, so that they pile up.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rendezvous.api import RendezvousConnectionError
from rendezvous.etcd.v3.calls import Call
from rendezvous.etcd.v3.client import EtcdClient, Watch, WatchSpec
from rendezvous.etcd.v3.errors import BusyError, EtcdError, RefusedError, UnavailableError
from rendezvous.etcd.v3.operations import Message
from tests.simulation.etcd import Etcd
from tests.simulation.virtual import OUTSIDE, running_loop
from tests.simulation.watching import LinkWatch

__all__ = ["MAX_DELAY", "Conditions", "Hook", "Link"]

MAX_DELAY = 30.0
"""Seconds after which a late request is applied, at most."""

_NOTICED_LOSS = 0.1  # seconds after which a client notices that a request was lost

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
        context: the context of the process; by default the present one.

    Attributes:
        requests_cut: no request arrives at etcd.
        answers_cut: no answer and no event arrives at the process.
        dead: the process has ended.
        slowness: how many times longer than usual each way takes.
        behind: by how many seconds the member of etcd that the process uses is behind the others: in what it reports
            to watches, and in what it answers from its own data.
        silent: keep-alives are not answered; etcd applies some of them.
        refused: etcd refuses the user.
        hook: called before and after etcd applies a request.
    """

    def __init__(
        self,
        etcd: Etcd,
        conditions: Conditions,
        owner: Any,
        rng: random.Random,
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(rng)
        self.etcd = etcd
        self.conditions = conditions
        self._owner = owner
        self.rng = rng
        self.context = context or contextvars.copy_context()
        self.requests_cut = self.answers_cut = False
        self.dead = False
        self.slowness = 1.0
        self.behind = 0.0
        self.silent = False
        self.refused = False
        self.watches: list[LinkWatch] = []
        self.hook: Hook = lambda stage, call, request: None
        self.history.subscribe(self._end_watches)

    def _end_watches(self, reason: str) -> None:
        for watch in list(self.watches):
            watch.lose()

    @property
    def cut(self) -> bool:
        """Whether nothing arrives, in either direction."""
        return self.requests_cut and self.answers_cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self.requests_cut = self.answers_cut = cut

    async def close(self) -> None:
        self.dead = True

    @property
    def target(self) -> str:
        return "etcd"

    def latency(self) -> float:
        """Return the seconds of one way."""
        return self.rng.uniform(0.0005, self.conditions.latency) * self.slowness

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Let something happen outside the process."""
        running_loop().send(seconds, callback, *arguments, context=OUTSIDE)

    def deliver(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Let the process receive something."""
        if not self.dead:
            asyncio.get_running_loop().call_soon(callback, *arguments, context=self.context)

    # Requests.

    async def _attempt(self, call: Call, request: Message, timeout: float, deadline: float) -> Message:
        loop = asyncio.get_running_loop()
        if self.dead:
            raise asyncio.CancelledError
        answer: asyncio.Future[Message] = loop.create_future()
        exchange = _Exchange(
            self,
            timeout,
            lambda: self._apply(call, request),
            lambda result: answer.done() or answer.set_result(result),
            lambda error: answer.done() or answer.set_exception(error),
            answer.cancel,
        )
        if self.conditions.late_requests and self.rng.random() < self.conditions.late_requests:
            delay = self.latency() + self.rng.uniform(0, MAX_DELAY)
            self.later(delay, self._apply_late, call, request, self.etcd.restarts)
            exchange.lose(self.rng.uniform(0, 1.0))
        else:
            exchange.begin()
        return await answer

    def _apply(self, call: Call, request: Message) -> Message:
        self.hook("before", call, request)
        if self.dead:
            raise asyncio.CancelledError
        answer = self.etcd.handle(call, request, self._owner, self.behind)
        self.hook("after", call, request)
        return answer

    def _apply_late(self, call: Call, request: Message, restarts: int) -> None:
        """Apply a request after its sender has given up. The sender may have sent others since, or may have ended."""
        if restarts != self.etcd.restarts:
            return  # the connection broke
        try:
            self.etcd.handle(call, request, self._owner)
        except EtcdError:
            pass  # nobody waits for the answer

    def renew(self, lease: int, answered: Callable[[bool], None], failed: Callable[[EtcdError], None]) -> None:
        ttl = self.etcd.ttl(lease)
        timeout = min(self.options.keep_alive_timeout, ttl / 3 if ttl else math.inf)
        _Exchange(
            self, timeout, lambda: self._renew(lease), partial(self._renewed, answered, failed), failed, lambda: None
        ).begin()

    def _renew(self, lease: int) -> tuple[bool, Message] | None:
        if self.silent and self.rng.random() < 0.5:
            return None
        renewed = self.etcd.keep_alive(lease)
        return None if self.silent or renewed is None else (renewed, self.etcd.header())

    def _renewed(
        self, answered: Callable[[bool], None], failed: Callable[[EtcdError], None], answer: tuple[bool, Message]
    ) -> None:
        renewed, header = answer
        known = self.history.known()
        self.history.observe(header, self.target)
        try:
            self.history.check(known)
        except EtcdError as exc:
            failed(exc)
        else:
            answered(renewed)

    # Watches.

    async def _watch(self, spec: WatchSpec, deadline: float) -> Watch:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.latency())
        while not self.connected:
            if loop.time() > deadline:
                raise RendezvousConnectionError(f"etcd did not start to watch '{spec.name}' in time")
            await asyncio.sleep(0.2)
        if self.refused:
            raise RendezvousConnectionError(f"etcd refused to watch '{spec.name}': permission denied", retryable=False)
        watch = LinkWatch(self, spec)
        try:
            await asyncio.sleep(self.latency())
        except BaseException:
            watch.cancel()
            raise
        return watch

    @property
    def connected(self) -> bool:
        """Whether a stream can be opened, and stays open."""
        return not (self.requests_cut or self.answers_cut or self.conditions.no_leader)

    def break_streams(self) -> None:
        """Let all watches continue on another stream."""
        for watch in list(self.watches):
            watch.interrupt()

    def refuse(self) -> None:
        """Refuse the user from now on. Watches end."""
        self.refused = True
        for watch in list(self.watches):
            watch.lose()


class _Exchange:
    """A request on its way to etcd, and its answer on the way back; either of them may be lost.

    Args:
        link: the connection.
        timeout: seconds after which the client gives up.
        apply: applies the request; returns None if it is not answered.
        succeed: receives the answer.
        failed: receives the error.
        cancel: called instead if the process has ended.
    """

    def __init__(
        self,
        link: Link,
        timeout: float,
        apply: Callable[[], Any],
        succeed: Callable[[Any], object],
        failed: Callable[[EtcdError], object],
        cancel: Callable[[], object],
    ) -> None:
        self._link = link
        self._timeout = timeout
        self._apply = apply
        self._succeed = succeed
        self._failed = failed
        self._cancel = cancel
        self._there = link.latency()
        self._back = link.latency()
        self._restarts = link.etcd.restarts

    def begin(self) -> None:
        """Send the request."""
        self._link.later(self._there, self._arrive)
        if self._there > self._timeout:
            self._expire(0.0)

    def lose(self, seconds: float) -> None:
        """Let the client notice after some seconds that the connection broke, instead of :meth:`begin`."""
        self._there = 0.0
        self.fail(seconds, "the connection broke")

    def fail(self, seconds: float, reason: str, kind: type[EtcdError] = UnavailableError) -> None:
        """Let the client notice after some seconds that the request failed, unless it has given up before."""
        self._return(seconds, self._fail, kind(reason))

    def _fail(self, error: EtcdError) -> None:
        if self._link.dead:
            self._cancel()
        else:
            self._failed(error)

    def _return(self, seconds: float, callback: Callable[[Any], None], result: Any) -> None:
        """Let the client receive the result, unless it gives up before."""
        if self._there > self._timeout:
            return  # it has given up
        if self._there + seconds > self._timeout:
            self._expire(self._there)
            return
        running_loop().send(seconds, callback, result, context=self._link.context)

    def _expire(self, elapsed: float) -> None:
        """Let the client give up. The timer is the client's own; its clock does not matter much here."""
        error = UnavailableError("no answer in time")
        asyncio.get_running_loop().call_later(self._timeout - elapsed, self._fail, error, context=self._link.context)

    def _arrive(self) -> None:
        link, conditions = self._link, self._link.conditions
        if link.dead:
            self._cancel()
        elif link.requests_cut:
            self._notice_cut()
        elif conditions.lost_requests and link.rng.random() < conditions.lost_requests:
            self.fail(_NOTICED_LOSS, "unavailable")
        elif conditions.no_leader or self._restarts != link.etcd.restarts:
            self.fail(0.0, "etcdserver: no leader")
        elif link.refused:
            self._return(0.0, self._fail, RefusedError("etcdserver: permission denied", retryable=True))
        elif conditions.overload and link.rng.random() < conditions.overload:
            self.fail(0.0, "etcdserver: too many requests", BusyError)
        else:
            self._be_applied()

    def _be_applied(self) -> None:
        link = self._link
        try:
            answer = self._apply()
        except EtcdError as exc:
            self._return(self._back, self._fail, exc)
            return
        except asyncio.CancelledError:
            self._cancel()
            return
        if answer is None:
            self._expire(self._there)
        elif link.conditions.lost_answers and link.rng.random() < link.conditions.lost_answers:
            self.fail(0.0, "the connection broke")
        else:
            self._return(self._back, self._receive, answer)

    def _receive(self, answer: Any) -> None:
        if self._link.dead:
            self._cancel()
        elif self._link.answers_cut:
            self._there += self._back
            self._notice_cut()
        elif self._restarts != self._link.etcd.restarts:
            self._failed(UnavailableError("the connection broke"))
        else:
            self._succeed(answer)

    def _notice_cut(self) -> None:
        """A ping is not answered, if the request does not time out before."""
        options = self._link.options
        self.fail(options.ping_interval + options.ping_timeout, "unavailable")

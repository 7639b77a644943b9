"""An event loop whose clock jumps to the next timer, so that hours pass in milliseconds and always the same way."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Deadlock(AssertionError):
    """Everybody waits for something that cannot come."""


class Livelock(AssertionError):
    """Somebody is busy for ever, and time stands still."""


_MOST_STEPS = 100_000


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop
    steps = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock(f"at {self.loop.time():.3f} s nothing is left that could happen")
        self.steps = 0 if timeout > 1e-6 else self.steps + 1
        if self.steps > _MOST_STEPS:
            self.steps = 0
            raise Livelock(f"at {self.loop.time():.3f} s there is no end to what happens")
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what only sleeps and waits for futures; threads and sockets have no place in it.

    Attributes:
        thread_time: seconds that what is to run in a thread takes.
    """

    thread_time = 0.05

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self.call_later(self.thread_time, lambda: future.done() or future.set_result(function(*arguments)))
        return future


class _Agenda(selectors.DefaultSelector):
    loop: LargeLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout != 0:
            self.loop.go_on()
        return []


class LargeLoop(VirtualLoop):
    """A virtual loop for millions of timers: they wait in a heap of tuples, and need no handle where nobody cancels.

    It does not look for livelocks. Of timers for the same moment the one that was set first comes first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agenda: list[tuple[Any, ...]] = []
        self._numbers = itertools.count()
        self._selector.close()
        self._selector = _Agenda()
        self._selector.loop = self

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Do as ``call_later``, where nobody cancels; the callback must not raise."""
        heappush(self._agenda, (self.now + seconds, next(self._numbers), None, callback, arguments))

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._agenda, (when, next(self._numbers), handle, None, ()))
        return handle

    def go_on(self) -> None:
        """Let time pass until there is something to run."""
        agenda = self._agenda
        while not self._ready:
            if not agenda:
                raise Deadlock(f"at {self.now:.3f} s nothing is left that could happen")
            when, _, handle, callback, arguments = heappop(agenda)
            if handle is None:
                self.now = max(self.now, when)
                callback(*arguments)
            elif not handle.cancelled():
                self.now = max(self.now, when)
                self._ready.append(handle)

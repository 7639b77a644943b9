"""An event loop with a virtual clock: the clock jumps to the next timer, so hours pass in milliseconds.

A run on this loop depends on nothing outside it, so it repeats exactly.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any


class Deadlock(AssertionError):
    """All tasks wait, and no timer is set."""


class Livelock(AssertionError):
    """Tasks run without end while the clock does not move."""


_MAX_STEPS = 100_000


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop
    steps = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock(f"at {self.loop.time():.3f} s all tasks wait and no timer is set")
        self.steps = 0 if timeout > 1e-6 else self.steps + 1
        if self.steps > _MAX_STEPS:
            self.steps = 0
            raise Livelock(f"at {self.loop.time():.3f} s the tasks have run {_MAX_STEPS} steps and the clock stands")
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs tasks that only sleep and wait for futures. Threads and sockets do not work.

    Attributes:
        thread_time: seconds that a function takes which would run in a thread.
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


def run(coroutine: Coroutine[Any, Any, None], loop: VirtualLoop | None = None) -> None:
    """Run a coroutine on a virtual loop; then cancel all tasks that are left, and close the loop."""
    loop = loop or VirtualLoop()
    try:
        loop.run_until_complete(coroutine)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


class _Agenda(selectors.DefaultSelector):
    loop: LargeLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout != 0:
            self.loop.advance()
        return []


class LargeLoop(VirtualLoop):
    """A virtual loop for millions of timers: they are tuples in a heap, and those that nobody cancels have no handle.

    It does not detect livelocks. Timers for the same moment run in the order in which they were set.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agenda: list[tuple[Any, ...]] = []
        self._numbers = itertools.count()
        self._selector.close()
        self._selector = _Agenda()
        self._selector.loop = self

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Do as ``call_later``, for a timer that nobody cancels; the callback must not raise."""
        heappush(self._agenda, (self.now + seconds, next(self._numbers), None, callback, arguments))

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._agenda, (when, next(self._numbers), handle, None, ()))
        return handle

    def advance(self) -> None:
        """Move the clock to the next timer until there is something to run."""
        agenda = self._agenda
        while not self._ready:
            if not agenda:
                raise Deadlock(f"at {self.now:.3f} s all tasks wait and no timer is set")
            when, _, handle, callback, arguments = heappop(agenda)
            if handle is None:
                self.now = max(self.now, when)
                callback(*arguments)
            elif not handle.cancelled():
                self.now = max(self.now, when)
                self._ready.append(handle)

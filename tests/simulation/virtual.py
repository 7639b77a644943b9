"""An event loop whose clock jumps to the next timer, so that hours pass in milliseconds and always the same way."""

from __future__ import annotations

import asyncio
import selectors
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

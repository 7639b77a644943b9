"""An event loop with a virtual clock: the clock jumps to the next timer, so hours pass in milliseconds.

A run on this loop depends on nothing outside it, so it repeats exactly. What runs in the context of a
:class:`Process` sees the clock of that process, and does not run while the process is frozen.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any


class Deadlock(AssertionError):
    """All tasks wait, and no timer is set."""


class Livelock(AssertionError):
    """Tasks run without end while the clock does not move."""


OUTSIDE = contextvars.Context()
"""The context of what happens outside all processes, in the network and in etcd."""

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Process:
    """A process: it has clocks of its own, and can be frozen.

    Attributes:
        rate: how many seconds the clock of the loop advances in a second.
        start: what this clock showed at the beginning.
        wall_offset: by how much its wall clock is wrong, in seconds.
        thread_time: seconds that a function takes which would run in a thread.
        tasks: all its tasks.
        context: the context in which it runs.
    """

    def __init__(self) -> None:
        self.rate = 1.0
        self.start = 0.0
        self.wall_offset = 0.0
        self.thread_time = 0.05
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self._pending: list[asyncio.Handle] | None = None
        self._due: list[asyncio.Handle] = []

    @property
    def frozen(self) -> bool:
        """Whether nothing of it runs."""
        return self._pending is not None

    def freeze(self) -> None:
        """Let nothing of it run until :meth:`thaw`. What it receives and its timers pile up."""
        if self._pending is None:
            self._pending = []
            running_loop().frozen += 1

    def thaw(self) -> None:
        """Let it run again: first what it has received meanwhile, then the timers that are due, as asyncio does."""
        if self._pending is not None:
            loop = running_loop()
            loop.frozen -= 1
            loop.put_back([*self._pending, *self._due])
            self._pending, self._due = None, []

    def hold(self, handle: asyncio.Handle, due: bool) -> None:
        """Keep what must not run now. ``due``: whether it is a timer."""
        assert self._pending is not None
        (self._due if due else self._pending).append(handle)


class _Timer(asyncio.TimerHandle):
    """As TimerHandle, and made in half the time. The simulation makes more of them than of anything else."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: Any, loop: VirtualLoop, context: Any) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs tasks that only sleep and wait for futures. Threads and sockets do not work.

    Attributes:
        now: the time in seconds, outside all processes.
        thread_time: seconds that a function takes which would run in a thread, if no process calls it.
        max_steps: how many steps the tasks may run while the clock stands.
        frozen: how many processes are frozen.
    """

    _ready: deque[asyncio.Handle]
    thread_time = 0.05
    max_steps = 100_000

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.frozen = 0
        self._agenda: list[tuple[Any, ...]] = []
        self._numbers = itertools.count()
        self._steps = 0
        self._moved_at = 0.0

    def time(self) -> float:
        process = _process.get()
        return self.now if process is None else self.now * process.rate + process.start

    def wall_time(self) -> float:
        """Return what the wall clock shows."""
        process = _process.get()
        return self.now if process is None else self.now + process.wall_offset

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def send(self, delay: float, callback: Any, *args: Any, context: contextvars.Context) -> None:
        """Let ``callback`` receive a message after ``delay`` seconds outside all processes."""
        heappush(self._agenda, (self.now + delay, next(self._numbers), asyncio.Handle(callback, args, self, context)))

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = _process.get() if context is None else context.get(_process)
        return self._schedule(self.now + (delay if process is None else delay / process.rate), callback, args, context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _schedule(
        self, when: float, callback: Any, args: Any, context: contextvars.Context | None
    ) -> asyncio.TimerHandle:
        handle = _Timer(when, callback, args, self, context)
        heappush(self._agenda, (when, next(self._numbers), handle))
        return handle

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> asyncio.Future[Any]:
        future, process = self.create_future(), _process.get()

        def finish() -> None:
            if not future.done():
                try:
                    future.set_result(function(*arguments))
                except Exception as exc:
                    future.set_exception(exc)

        self.call_later(self.thread_time if process is None else process.thread_time, finish)
        return future

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        """Run what was held."""
        self._ready.extend(handles)

    def _run_once(self) -> None:
        ready = self._ready
        if not ready and not self._stopping:
            self._advance()
        self._steps += 1
        if self._steps > self.max_steps:
            self._steps = 0
            raise Livelock(f"at {self.now:.3f} s the tasks have run {self.max_steps} steps and the clock stands")
        if self.frozen:
            self._hold()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _hold(self) -> None:
        """Keep back what belongs to a frozen process."""
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            process = handle._context.get(_process)
            if process is None or not process.frozen:
                self._ready.append(handle)
            else:
                process.hold(handle, isinstance(handle, asyncio.TimerHandle))

    def _advance(self) -> None:
        """Move the clock to the next timer."""
        agenda = self._agenda
        while agenda:
            when, _, handle = heappop(agenda)
            if handle._cancelled:
                continue
            self.now = max(self.now, when)
            self._ready.append(handle)
            if self.now > self._moved_at + 1e-6:
                self._moved_at, self._steps = self.now, 0
            return
        raise Deadlock(f"at {self.now:.3f} s all tasks wait and no timer is set")


def running_loop() -> VirtualLoop:
    """Return the loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def now() -> float:
    """Return the time in seconds, whatever the clock of the process shows."""
    return running_loop().now


def make_loop() -> VirtualLoop:
    """Return a virtual loop that adds each new task to the tasks of its process."""
    loop = VirtualLoop()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        process = _process.get()
        if process is not None:
            process.tasks.append(task)
        return task

    loop.set_task_factory(make_task)
    return loop


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


class LargeLoop(VirtualLoop):
    """A virtual loop for millions of timers: those that nobody cancels have no handle.

    It does not detect livelocks. Timers for the same moment run in the order in which they were set.
    """

    max_steps = sys.maxsize

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Do as ``call_later``, for a timer that nobody cancels; the callback must not raise."""
        heappush(self._agenda, (self.now + seconds, next(self._numbers), None, callback, arguments))

    def _advance(self) -> None:
        agenda = self._agenda
        while not self._ready:
            if not agenda:
                raise Deadlock(f"at {self.now:.3f} s all tasks wait and no timer is set")
            when, _, handle, *call = heappop(agenda)
            if handle is None:
                callback, arguments = call
                self.now = max(self.now, when)
                callback(*arguments)
            elif not handle._cancelled:
                self.now = max(self.now, when)
                self._ready.append(handle)

"""Queues in a model: stations that serve one piece of work after the other, on cores that they may share.

It runs on the clock of an event loop, a virtual one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

__all__ = ["Cores", "Station"]


class Cores:
    """Processor cores, for which the stations on them take turns, one piece of work at a time.

    Args:
        number: how many cores there are.
    """

    __slots__ = ("_free", "_waiting", "number")

    def __init__(self, number: int) -> None:
        self.number = self._free = number
        self._waiting: deque[Station] = deque()

    def want(self, station: Station) -> None:
        """Give ``station`` a core for one piece of work, now or when its turn comes."""
        if self._free:
            self._free -= 1
            station.serve()
        else:
            self._waiting.append(station)

    def release(self) -> None:
        """Give the core that became free to the next station."""
        if self._waiting:
            self._waiting.popleft().serve()
        else:
            self._free += 1


class Station:
    """A process: a queue of work, first come, first served.

    Args:
        cores: where it runs.
        width: how many pieces of work it does at once at most: 1 for Python.

    Attributes:
        busy: seconds of work done, by kind.
    """

    __slots__ = ("_cores", "_in_line", "_later", "_queue", "_running", "busy", "width")

    def __init__(self, cores: Cores, width: int = 1) -> None:
        self._cores = cores
        loop = asyncio.get_running_loop()
        # A loop for large worlds has a faster way.
        self._later: Callable[..., object] = getattr(loop, "later", loop.call_later)
        self._queue: deque[tuple[str, float, Callable[[], None]]] = deque()
        self._running = 0
        self._in_line = 0
        """How many pieces of its queue wait for a core; the rest wait for the station."""
        self.width = width
        self.busy: Counter[str] = Counter()

    def submit(self, kind: str, seconds: float, then: Callable[[], None]) -> None:
        """Queue a piece of work.

        Args:
            kind: what it counts as.
            seconds: how long it takes on a core.
            then: called when it is done.
        """
        self._queue.append((kind, seconds, then))
        if self._running + self._in_line < self.width:
            self._line_up()

    def _line_up(self) -> None:
        self._in_line += 1
        self._cores.want(self)

    def serve(self) -> None:
        """Do the next piece of work, on a core that was given."""
        self._in_line -= 1
        self._running += 1
        kind, seconds, then = self._queue.popleft()
        self.busy[kind] += seconds
        self._later(seconds, self._done, then)

    def _done(self, then: Callable[[], None]) -> None:
        self._running -= 1
        self._cores.release()  # before it lines up again: the cores are shared fairly
        if len(self._queue) > self._in_line:
            self._line_up()
        then()

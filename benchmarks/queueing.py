"""Queues of a model: stations that serve one piece of work after the other, on cores that they may share.

They run on the clock of the event loop, which may be virtual.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

__all__ = ["Cores", "Station"]


class Cores:
    """Processor cores. The stations on them take turns, one piece of work at a time.

    Args:
        number: how many cores there are.
    """

    __slots__ = ("_free", "_waiting", "number")

    def __init__(self, number: int) -> None:
        self.number = self._free = number
        self._waiting: deque[Station] = deque()

    def request(self, station: Station) -> None:
        """Give ``station`` a core for one piece of work, now or when its turn comes."""
        if self._free:
            self._free -= 1
            station.serve()
        else:
            self._waiting.append(station)

    def release(self) -> None:
        """Give the free core to the next station."""
        if self._waiting:
            self._waiting.popleft().serve()
        else:
            self._free += 1


class Station:
    """A process: a queue of work, first come, first served.

    Args:
        cores: where it runs.
        width: the largest number of pieces of work at the same time: 1 for a Python process.

    Attributes:
        busy: seconds of work done, by kind.
    """

    __slots__ = ("_cores", "_later", "_queue", "_requests", "_running", "busy", "width")

    def __init__(self, cores: Cores, width: int = 1) -> None:
        self._cores = cores
        loop = asyncio.get_running_loop()
        # The loop for large worlds has a faster method.
        self._later: Callable[..., object] = getattr(loop, "later", loop.call_later)
        self._queue: deque[tuple[str, float, Callable[[], object]]] = deque()
        self._running = 0
        self._requests = 0
        """The number of pieces of work in the queue that wait for a core; the others wait for the station."""
        self.width = width
        self.busy: dict[str, float] = defaultdict(float)

    def submit(self, kind: str, seconds: float, then: Callable[[], object]) -> None:
        """Queue a piece of work.

        Args:
            kind: the kind under which ``busy`` counts it.
            seconds: the time that it takes on a core.
            then: called when it is done.
        """
        self._queue.append((kind, seconds, then))
        if self._running + self._requests < self.width:
            self._request_core()

    def _request_core(self) -> None:
        self._requests += 1
        self._cores.request(self)

    def serve(self) -> None:
        """Do the next piece of work, on the core that the station was given."""
        self._requests -= 1
        self._running += 1
        kind, seconds, then = self._queue.popleft()
        self.busy[kind] += seconds
        self._later(seconds, self._done, then)

    def _done(self, then: Callable[[], object]) -> None:
        self._running -= 1
        self._cores.release()  # before this station requests a core again, so that the cores are shared fairly
        if len(self._queue) > self._requests:
            self._request_core()
        then()

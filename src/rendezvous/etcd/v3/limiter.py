"""A limit on the requests that are in flight at the same time."""

from __future__ import annotations

import asyncio
from collections import deque

from rendezvous.etcd.v3.errors import BusyError

__all__ = ["Limiter"]


class Limiter:
    """Admits a fixed number of requests at the same time. The others wait in a queue, each until its deadline.

    Args:
        limit: how many are admitted.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._queue: deque[asyncio.Future[None]] = deque()

    async def acquire(self, deadline: float) -> None:
        """Wait for admission.

        Raises:
            BusyError: the deadline passed first.
        """
        if self._free > 0:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        admitted = loop.create_future()
        self._queue.append(admitted)
        timer = loop.call_at(deadline, self._expire, admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.release()  # admitted and cancelled at the same moment
            raise
        finally:
            timer.cancel()

    def _expire(self, admitted: asyncio.Future[None]) -> None:
        if not admitted.done():
            admitted.set_exception(BusyError("other requests of this process were in flight all the time"))

    def release(self) -> None:
        """Admit the next request in the queue."""
        while self._queue:
            admitted = self._queue.popleft()
            if not admitted.done():
                admitted.set_result(None)
                return
        self._free += 1

"""The pauses of the coordinator after failures, and what it logs about them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from rendezvous.coordinated.options import Options
from rendezvous.utils import listed

__all__ = ["Retry", "wait"]

logger = logging.getLogger(__name__)


class Retry:
    """Counts the failures in a row.

    Args:
        options: has the first and the longest pause.
        random: jitters the pauses.
    """

    def __init__(self, options: Options, random: random.Random) -> None:
        self._options = options
        self._random = random
        self._failures = 0
        self._reported: list[str] = []

    def succeed(self) -> None:
        """Record that there is no failure any more."""
        self._failures = 0
        self._reported = []

    def fail(self, error: Exception, lost: Sequence[str] = ()) -> float:
        """Record a failure, and return the seconds to wait.

        Args:
            error: what happened.
            lost: the names of all members that are lost. The other nodes cannot be told, so it is logged.
        """
        logger.warning("the coordinator cannot continue: %s; trying again", error)
        if lost and list(lost) != self._reported:
            self._reported = list(lost)
            logger.error("members are lost, and the other nodes cannot be told: %s; %s", listed(lost), error)
        longest = min(self._options.max_retry_delay, self._options.retry_delay * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return self._random.uniform(longest / 2, longest)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for ``event``, at most ``seconds``. Afterwards it may be set without reason."""
    timer = asyncio.get_running_loop().call_later(max(0.0, seconds), event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
